//! Which of cuBLASLt's algorithms multiply by a matrix, where a row's product must have the same bits at every height
//! (number of rows): those that sum each value from its first term to its last in one piece, take all heights, and have
//! given the same bits as the first of them when they were tried. Among these the fastest is taken, for few rows another
//! than for many: how fast they are is measured, and bits never follow from that.

use super::budget;

/// The height that algorithms are proposed for: a full batch's, where time is spent. The same on every GPU, so that GPUs
/// of one kind settle on the same.
pub(super) const REFERENCE_HEIGHT: usize = budget::TOKENS_MAX;

/// Heights that an algorithm must take, all of them, before it is used for any: a text alone and a full batch, both sides
/// of what tiles are made of, and more than the longest text has tokens.
pub(super) const HEIGHTS: [usize; 22] = [
    1,
    2,
    3,
    7,
    8,
    9,
    16,
    33,
    63,
    64,
    127,
    128,
    129,
    255,
    257,
    1000,
    1024,
    4095,
    10_001,
    REFERENCE_HEIGHT,
    40_960,
    65_536,
];

/// What cuBLASLt says of an algorithm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Pieces that a sum is cut into. Their number follows the height, and so does the rounding. 0 is 1.
    pub(super) pieces: u32,
    /// How pieces are added up; 0 if they are not.
    pub(super) reduction: u32,
    /// Bytes of workspace that it needs at each of [`HEIGHTS`], where it takes that height.
    pub(super) workspaces: [Option<usize>; HEIGHTS.len()],
}

/// Bands of heights, by the most rows of each, and the height that algorithms are tried at for it: what is fast for a
/// single text is not for a batch. A batch's own height is tried at a quarter: there, too, each multiprocessor has many tiles.
pub(super) const BANDS: [(usize, usize); 4] = [(64, 32), (512, 256), (4096, 2048), (usize::MAX, 8192)];

/// What came of an algorithm that was tried.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Trial {
    /// Of the output's first rows.
    pub(super) digest: u64,
    /// For a product.
    pub(super) seconds: f64,
}

/// The fastest of those that gave the bits that are called for.
pub(super) fn fastest_alike(trials: &[Option<Trial>], digest: u64) -> Option<usize> {
    let alike = trials
        .iter()
        .enumerate()
        .filter_map(|(place, trial)| trial.filter(|trial| trial.digest == digest).map(|trial| (place, trial)));
    alike.min_by(|(_, left), (_, right)| left.seconds.total_cmp(&right.seconds)).map(|(place, _)| place)
}

/// The candidates that may be taken, those first that are better references: they come fastest first, but those without
/// workspace go before the others, for it is where parts of sums would be kept.
///
/// # Errors
/// There is none; says why.
pub(super) fn eligible(candidates: &[Candidate]) -> Result<Vec<usize>, String> {
    let whole: Vec<usize> = (0..candidates.len()).filter(|&place| candidates[place].sums_in_one_piece()).collect();
    let mut general: Vec<usize> = whole.iter().copied().filter(|&place| candidates[place].takes_all()).collect();
    // Stable: in either part they stay fastest first.
    general.sort_by_key(|&place| !candidates[place].needs_no_workspace());
    if general.is_empty() {
        let number = candidates.len();
        let refused = whole.first().and_then(|&place| candidates[place].workspaces.iter().position(Option::is_none));
        return Err(match (number, refused) {
            (0, _) => "cuBLASLt proposes none".to_owned(),
            (_, None) => format!("all {number} that cuBLASLt proposes add up sums from pieces"),
            (_, Some(place)) => format!(
                "of {number} that cuBLASLt proposes, {} sum in one piece, and none of these takes all heights; the first \
                 refuses {} rows",
                whole.len(),
                HEIGHTS[place]
            ),
        });
    }
    Ok(general)
}

impl Candidate {
    pub(super) fn sums_in_one_piece(&self) -> bool {
        self.pieces <= 1 && self.reduction == 0
    }

    pub(super) fn takes_all(&self) -> bool {
        self.workspaces.iter().all(Option::is_some)
    }

    fn needs_no_workspace(&self) -> bool {
        self.workspaces.iter().all(|bytes| *bytes == Some(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(pieces: u32, reduction: u32, workspace: Option<usize>) -> Candidate {
        Candidate { pieces, reduction, workspaces: [workspace; HEIGHTS.len()] }
    }

    #[test]
    fn the_fastest_that_sums_in_one_piece() {
        let split = candidate(4, 2, Some(1 << 20));
        // Not split by its number, but by its way to add up; and the other way round, -1 as cuBLASLt might put it.
        let (reduced, automatic) = (candidate(1, 1, Some(0)), candidate(u32::MAX, 0, Some(0)));
        let candidates = [split, reduced, automatic, candidate(1, 0, Some(0)), candidate(0, 0, Some(0))];
        assert_eq!(eligible(&candidates), Ok(vec![3, 4]));
        assert_eq!(eligible(&candidates[4..]), Ok(vec![0]), "no pieces is one");
    }

    #[test]
    fn one_without_workspace_goes_before_faster_ones() {
        let with = candidate(1, 0, Some(4096));
        assert_eq!(eligible(&[with.clone(), with.clone(), candidate(1, 0, Some(0))]), Ok(vec![2, 0, 1]));
        assert_eq!(eligible(&[with.clone(), with]), Ok(vec![0, 1]));
    }

    #[test]
    fn one_that_refuses_a_height_is_not_taken_for_any() {
        let mut picky = candidate(1, 0, Some(0));
        picky.workspaces[5] = None;
        assert_eq!(eligible(&[picky.clone(), candidate(1, 0, Some(8))]), Ok(vec![1]));
        let why = eligible(&[picky, candidate(2, 1, Some(0))]).expect_err("none is left");
        assert!(why.contains("of 2") && why.contains("refuses 9 rows"), "{why}");
    }

    #[test]
    fn none_is_a_reason() {
        assert!(eligible(&[]).expect_err("none").contains("none"));
        assert!(eligible(&[candidate(2, 1, Some(0))]).expect_err("split").contains("all 1"));
    }

    #[test]
    fn speed_never_settles_bits() {
        let trial = |digest, seconds| Some(Trial { digest, seconds });
        let trials = [trial(7, 3.0), trial(8, 1.0), trial(7, 2.0), None, trial(7, 2.5)];
        assert_eq!(fastest_alike(&trials, 7), Some(2));
        assert_eq!(fastest_alike(&trials, 8), Some(1));
        assert_eq!(fastest_alike(&trials, 9), None);
    }

    #[test]
    fn each_height_is_in_a_band() {
        assert!(BANDS.is_sorted() && BANDS.iter().all(|(most, tried)| tried <= most));
        assert_eq!(BANDS[BANDS.len() - 1].0, usize::MAX);
    }

    #[test]
    fn heights_rise_to_the_longest_text() {
        assert!(HEIGHTS.is_sorted() && HEIGHTS[0] == 1 && HEIGHTS.contains(&REFERENCE_HEIGHT));
        assert!(HEIGHTS[HEIGHTS.len() - 1] >= 40_960);
    }
}
