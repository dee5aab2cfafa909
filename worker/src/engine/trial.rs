//! What a pass must show before it is given any work: texts that have finite values, and the same bits alone and among
//! others. A GPU is put to it when a model is loaded, the passes on CPUs by tests.

use super::EngineError;

/// A text of as many tokens as fit.
const LONGEST: usize = 1500;

/// Tokens of the beginning that some of them share: no multiple of anything that kernels work in.
const BEGINNING: usize = 37;

/// Lengths of those that begin alike: further tokens of each, in blocks of keys and queries that end elsewhere.
const ENDINGS: [usize; 4] = [1, 20, 100, 331];

/// Texts of ids below `vocab`: one and two tokens, some that begin alike, a long one. None has more than `tokens_max`.
pub(super) fn texts(vocab: usize, tokens_max: usize) -> Vec<Vec<u32>> {
    let mut numbers = numbers(1);
    let mut draw = |length: usize| -> Vec<u32> {
        numbers.by_ref().take(length).map(|number| (u64::from(number) % vocab as u64) as u32).collect()
    };
    let beginning = draw(BEGINNING);
    let mut texts = vec![draw(1), draw(2), draw(LONGEST)];
    texts.extend(ENDINGS.map(|own| [beginning.clone(), draw(own)].concat()));
    texts.iter_mut().for_each(|text| text.truncate(tokens_max));
    texts
}

/// Numbers below 2^31 without visible order, the same ones for a seed on every machine: Knuth's generator.
pub(super) fn numbers(seed: u64) -> impl Iterator<Item = u32> {
    let next =
        |state: &u64| Some(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407));
    std::iter::successors(next(&seed), next).map(|state| (state >> 33) as u32)
}

/// Values from -1 to 1, of [`numbers`].
pub(super) fn values(seed: u64) -> impl Iterator<Item = f32> {
    numbers(seed).map(|number| number as f32 / (1u32 << 30) as f32 - 1.0)
}

/// Why a pass is not to be used.
#[derive(Debug)]
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "tests print it, and only a GPU's is told to people"))]
pub(super) enum Flaw {
    /// It can't compute.
    Fails(EngineError),
    /// It gives values that are no numbers, or the wrong number of them.
    NotFinite,
    /// A text of so many tokens has other bits alone than among others.
    Differs(usize),
}

/// Computes `texts` together and each alone by `rows`, which gives a row a text. `invariant` asks for the same bits.
pub(super) fn prove(
    texts: &[Vec<u32>],
    invariant: bool,
    rows: impl Fn(&[&[u32]]) -> Result<Vec<Vec<f32>>, EngineError>,
) -> Result<(), Flaw> {
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let among = rows(&texts).map_err(Flaw::Fails)?;
    let finite = among.iter().flatten().all(|value| value.is_finite());
    if !finite || among.len() != texts.len() || among.iter().any(Vec::is_empty) {
        return Err(Flaw::NotFinite);
    }
    if invariant {
        let mut alone = Vec::with_capacity(texts.len());
        for text in &texts {
            alone.extend(rows(&[text]).map_err(Flaw::Fails)?);
        }
        if let Some(text) = first_that_differs(&alone, &among) {
            return Err(Flaw::Differs(texts[text].len()));
        }
    }
    Ok(())
}

/// The first text whose rows, alone and among others, are not the same bits.
fn first_that_differs(alone: &[Vec<f32>], among: &[Vec<f32>]) -> Option<usize> {
    let bits = |row: &[f32]| row.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    alone.iter().zip(among).position(|(alone, among)| bits(alone) != bits(among))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::packing::Packed;
    use crate::engine::synthetic::{self, Shape};
    use crate::engine::{Compute, ComputePath, Model};

    #[test]
    fn some_begin_alike_and_all_fit() {
        let texts = texts(1000, 40_960);
        let packed = Packed::new(&texts.iter().map(Vec::as_slice).collect::<Vec<_>>());
        assert_eq!(packed.spans.iter().filter(|span| span.shared.len() == BEGINNING).count(), ENDINGS.len());
        assert!(texts.iter().flatten().all(|&id| id < 1000));
        assert!(super::texts(7, 100).iter().all(|text| (1..=100).contains(&text.len())));
    }

    #[test]
    fn every_path_of_this_cpu_proves_itself() {
        let dir = tempfile::tempdir().expect("a folder");
        let model = dir.path().join("model");
        synthetic::write(&model, &Shape::tiny(), 1).expect("a model");
        for path in ComputePath::ON_CPUS.into_iter().filter(|path| path.lacking().is_none()) {
            let model = Model::load(&model, &Compute::by(path)).expect("it loads");
            let texts = texts(model.info().vocab, model.info().tokens_max);
            // What candle computes depends on the batch: there only the rest is asked for.
            let proved = prove(&texts, path != ComputePath::CandleF32, |texts| model.forward(texts));
            assert!(proved.is_ok(), "{path}: {proved:?}");
        }
    }

    #[test]
    fn flaws_are_found() {
        let texts = texts(1000, 100);
        let rows = |texts: &[&[u32]]| texts.iter().map(|text| vec![text.len() as f32, 1.0]).collect::<Vec<_>>();
        assert!(prove(&texts, true, |texts| Ok(rows(texts))).is_ok());
        let by_batch = |texts: &[&[u32]]| {
            let mut rows = rows(texts);
            rows[texts.len() / 2][1] += texts.len() as f32 * f32::EPSILON;
            Ok(rows)
        };
        assert!(matches!(prove(&texts, true, by_batch), Err(Flaw::Differs(_))));
        assert!(prove(&texts, false, by_batch).is_ok());
        let no_number = |texts: &[&[u32]]| Ok(vec![vec![f32::NAN]; texts.len()]);
        assert!(matches!(prove(&texts, false, no_number), Err(Flaw::NotFinite)));
        assert!(matches!(prove(&texts, false, |_| Ok(vec![vec![1.0]])), Err(Flaw::NotFinite)), "a row for each text");
        let fails = |_: &[&[u32]]| Err(EngineError::Empty { index: 0 });
        assert!(matches!(prove(&texts, true, fails), Err(Flaw::Fails(_))));
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
