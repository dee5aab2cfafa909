//! Which of cuBLASLt's algorithms multiplies by a matrix, where a row's product must have the same bits at every height
//! (number of rows): one for all heights, that sums each value from its first term to its last in one piece.

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

/// Which candidate to take: the first, for they come fastest first, that sums in one piece and takes all heights. Those
/// without workspace go before the others: it is where parts of sums would be kept.
///
/// # Errors
/// There is none; says why.
pub(super) fn choose(candidates: &[Candidate]) -> Result<usize, String> {
    let whole: Vec<usize> = (0..candidates.len()).filter(|&place| candidates[place].sums_in_one_piece()).collect();
    let general = || whole.iter().copied().filter(|&place| candidates[place].takes_all());
    general().find(|&place| candidates[place].needs_no_workspace()).or_else(|| general().next()).ok_or_else(|| {
        let number = candidates.len();
        let refused = whole.first().and_then(|&place| candidates[place].workspaces.iter().position(Option::is_none));
        match (number, refused) {
            (0, _) => "cuBLASLt proposes none".to_owned(),
            (_, None) => format!("all {number} that cuBLASLt proposes add up sums from pieces"),
            (_, Some(place)) => format!(
                "of {number} that cuBLASLt proposes, {} sum in one piece, and none of these takes all heights; the first \
                 refuses {} rows",
                whole.len(),
                HEIGHTS[place]
            ),
        }
    })
}

impl Candidate {
    fn sums_in_one_piece(&self) -> bool {
        self.pieces <= 1 && self.reduction == 0
    }

    fn takes_all(&self) -> bool {
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
        assert_eq!(choose(&candidates), Ok(3));
        assert_eq!(choose(&candidates[4..]), Ok(0), "no pieces is one");
    }

    #[test]
    fn one_without_workspace_goes_before_faster_ones() {
        let with = candidate(1, 0, Some(4096));
        assert_eq!(choose(&[with.clone(), with.clone(), candidate(1, 0, Some(0))]), Ok(2));
        assert_eq!(choose(&[with.clone(), with]), Ok(0));
    }

    #[test]
    fn one_that_refuses_a_height_is_not_taken_for_any() {
        let mut picky = candidate(1, 0, Some(0));
        picky.workspaces[5] = None;
        assert_eq!(choose(&[picky.clone(), candidate(1, 0, Some(8))]), Ok(1));
        let why = choose(&[picky, candidate(2, 1, Some(0))]).expect_err("none is left");
        assert!(why.contains("of 2") && why.contains("refuses 9 rows"), "{why}");
    }

    #[test]
    fn none_is_a_reason() {
        assert!(choose(&[]).expect_err("none").contains("none"));
        assert!(choose(&[candidate(2, 1, Some(0))]).expect_err("split").contains("all 1"));
    }

    #[test]
    fn heights_rise_to_the_longest_text() {
        assert!(HEIGHTS.is_sorted() && HEIGHTS[0] == 1 && HEIGHTS.contains(&REFERENCE_HEIGHT));
        assert!(HEIGHTS[HEIGHTS.len() - 1] >= 40_960);
    }
}
