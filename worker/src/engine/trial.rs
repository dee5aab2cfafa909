//! Texts that a GPU must give the same bits alone and among others before it is given any work.

/// A text of as many tokens as fit.
const LONGEST: usize = 1500;

/// Tokens of the beginning that some of them share: no multiple of anything that kernels work in.
const BEGINNING: usize = 37;

/// Lengths of those that begin alike: further tokens of each, in blocks of keys and queries that end elsewhere.
const ENDINGS: [usize; 4] = [1, 20, 100, 331];

/// Texts of ids below `vocab`: one and two tokens, some that begin alike, a long one. None has more than `tokens_max`.
pub(super) fn texts(vocab: usize, tokens_max: usize) -> Vec<Vec<u32>> {
    let mut state = 1u64;
    let mut draw = |length: usize| -> Vec<u32> {
        let id = || {
            // Knuth's generator: what matters is that tokens differ, the same way on every machine.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % vocab as u64) as u32
        };
        std::iter::repeat_with(id).take(length).collect()
    };
    let beginning = draw(BEGINNING);
    let mut texts = vec![draw(1), draw(2), draw(LONGEST)];
    texts.extend(ENDINGS.map(|own| [beginning.clone(), draw(own)].concat()));
    texts.iter_mut().for_each(|text| text.truncate(tokens_max));
    texts
}

/// The first text whose rows, alone and among others, are not the same bits.
pub(super) fn first_that_differs(alone: &[Vec<f32>], among: &[Vec<f32>]) -> Option<usize> {
    let bits = |row: &[f32]| row.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    alone.iter().zip(among).position(|(alone, among)| bits(alone) != bits(among))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::packing::Packed;

    #[test]
    fn some_begin_alike_and_all_fit() {
        let texts = texts(1000, 40_960);
        let packed = Packed::new(&texts.iter().map(Vec::as_slice).collect::<Vec<_>>());
        assert_eq!(packed.spans.iter().filter(|span| span.shared.len() == BEGINNING).count(), ENDINGS.len());
        assert!(texts.iter().flatten().all(|&id| id < 1000));
        assert!(super::texts(7, 100).iter().all(|text| (1..=100).contains(&text.len())));
    }

    #[test]
    fn a_bit_is_a_difference() {
        let rows = vec![vec![1.0, 0.0], vec![2.0, 0.5]];
        assert_eq!(first_that_differs(&rows, &rows), None);
        let mut other = rows.clone();
        other[1][1] = f32::from_bits(0.5f32.to_bits() + 1);
        assert_eq!(first_that_differs(&rows, &other), Some(1));
        assert_eq!(first_that_differs(&[vec![0.0]], &[vec![-0.0]]), Some(0));
    }
}
