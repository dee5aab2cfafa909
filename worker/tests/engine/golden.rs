//! Against transformers (`tests/golden/make.py`), and each text against itself in every kind of batch.

use serde::Deserialize;
use vecmill_worker::engine::synthetic::{Shape, Stored, token_ids};
use vecmill_worker::engine::{Compute, ComputePath, EngineError, Model, NonFinite, Precision, finish};

use crate::support::{SEED, cosine, difference, loaded, loaded_by, paths_here, vectors, written};

/// What a path must hold.
struct Bounds {
    path: ComputePath,
    /// The cosine that golden vectors, which are f32, must reach.
    cosine_min: f64,
    /// How far a unit vector's values may lie from transformers'. Another library's f32 adds in another order, in every
    /// layer; bf16 rounds what goes into a product to 8 bits.
    golden: f32,
    /// How far a unit vector's values may move with the batch. A wrong position, mask or row moves them by 1e-2 and more.
    batch: f32,
}

impl Bounds {
    fn of(path: ComputePath) -> Self {
        let (cosine_min, golden) = match path.precision() {
            Precision::F32 => (0.99999, 1e-5),
            Precision::Bf16 => (0.9999, 1e-2),
            Precision::Fp8 => unreachable!("no path on a CPU computes in FP8"),
        };
        // Our own paths: the same bits. candle's products of another height add in another order; measured: 3e-7.
        let batch = if path == ComputePath::CandleF32 { 3e-6 } else { 0.0 };
        Self { path, cosine_min, golden, batch }
    }
}

/// Every path that this CPU can take, but for the plain one where there are others: it takes minutes, and agrees with them
/// to the bit. That paths are refused where the CPU lacks something is `loading`'s to test.
fn paths() -> impl Iterator<Item = Bounds> {
    let own = paths_here().filter(|path| !matches!(path, ComputePath::PortableF32 | ComputePath::CandleF32)).count();
    paths_here().filter(move |path| own == 0 || *path != ComputePath::PortableF32).map(Bounds::of)
}

#[derive(Deserialize)]
struct Golden {
    seed: u64,
    shape: Shape,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    length: usize,
    vector: Vec<f32>,
}

impl Golden {
    fn read(name: &str) -> Self {
        let path = format!("{}/../tests/golden/{name}.json", env!("CARGO_MANIFEST_DIR"));
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    fn texts(&self) -> Vec<Vec<u32>> {
        self.cases.iter().map(|case| token_ids(self.seed, case.length)).collect()
    }
}

fn agrees_with_golden(name: &str) {
    for bounds in paths() {
        agrees_within(name, &bounds);
    }
}

fn agrees_within(name: &str, bounds: &Bounds) {
    let golden = Golden::read(name);
    let model = loaded_by(&golden.shape, golden.seed, bounds.path);
    let name = format!("{name} {}", bounds.path);
    let texts = golden.texts();
    let mut worst = (1.0f64, 0.0f32);
    let mut compare = |how: &str, got: &[Vec<f32>], order: &[usize]| {
        for (got, &index) in got.iter().zip(order) {
            let case = &golden.cases[index];
            let cosine = cosine(got, &case.vector);
            let difference = difference(got, &case.vector);
            worst = (worst.0.min(cosine), worst.1.max(difference));
            assert!(cosine > bounds.cosine_min, "{name}, {how}, {} tokens: cosine {cosine}", case.length);
            assert!(difference < bounds.golden, "{name}, {how}, {} tokens: differs by {difference}", case.length);
        }
    };
    let order: Vec<usize> = (0..texts.len()).collect();
    // 7 is prime to the number of cases, so this is a permutation.
    let shuffled: Vec<usize> = order.iter().map(|index| (index * 7 + 3) % texts.len()).collect();

    let alone: Vec<_> = texts.iter().flat_map(|text| vectors(&model, &[text])).collect();
    compare("alone", &alone, &order);
    compare("mixed", &vectors(&model, &texts), &order);
    let permuted: Vec<_> = shuffled.iter().map(|&index| &texts[index]).collect();
    compare("permuted", &vectors(&model, &permuted), &shuffled);
    for (index, text) in texts.iter().enumerate().filter(|(_, text)| text.len() <= 300) {
        compare("equal", &vectors(&model, &[text, text, text]), &[index; 3]);
    }
    println!("{name}: cosines from {:.9}, values differ by {:e} at most", worst.0, worst.1);
}

#[test]
fn wide_heads_agree_with_transformers() {
    agrees_with_golden("wide_heads");
}

#[test]
fn an_untied_model_agrees_with_transformers() {
    agrees_with_golden("untied");
}

#[test]
fn a_sharded_model_agrees_with_transformers() {
    agrees_with_golden("sharded");
}

/// Different texts, so that a row that gets its neighbour's vector shows; goldens of a length are one text each.
#[test]
fn a_text_has_one_vector_whatever_it_is_batched_with() {
    for bounds in paths() {
        let model = loaded_by(&Shape::small(), SEED, bounds.path);
        let equal: Vec<_> = (0..9).map(|seed| token_ids(seed, 130)).collect();
        let mixed: Vec<_> = (1..80).step_by(3).chain([257, 600, 128]).map(|n| token_ids(n as u64, n)).collect();
        let permuted: Vec<_> = mixed.iter().rev().cloned().collect();
        // Their first 40 tokens lie in the batch once, as a common instruction does; one of them is nothing else.
        let instruction = &token_ids(99, 41)[..40];
        let alike: Vec<Vec<u32>> =
            [1, 2, 30, 300].iter().map(|&n| [instruction, &token_ids(n as u64, n)].concat()).collect();
        // Among thousands of tokens' worth of short ones, some of them twice.
        let many: Vec<_> = (0..700).map(|n| token_ids(n % 690, 2 + n as usize % 13)).collect();
        let (together, alone) = (vectors(&model, &many), many.iter().step_by(97));
        for (alone, place) in alone.zip((0..).step_by(97)) {
            let moved = difference(&vectors(&model, &[alone])[0], &together[place]);
            assert!(moved <= bounds.batch, "{}, text {place} of 700: {moved:e}", bounds.path);
        }
        for batch in [&equal, &mixed, &permuted, &alike] {
            let together = vectors(&model, batch);
            let alone: Vec<_> = batch.iter().flat_map(|text| vectors(&model, &[text])).collect();
            let worst = together.iter().zip(&alone).map(|(a, b)| difference(a, b)).fold(0.0, f32::max);
            println!("{}, {} texts: alone and together differ by {worst:e}", bounds.path, batch.len());
            assert!(worst <= bounds.batch, "{}: {worst:e}", bounds.path);
            for (i, a) in together.iter().enumerate() {
                for b in &together[..i] {
                    assert!(cosine(a, b) < 0.99, "different texts must be told apart: {}", cosine(a, b));
                }
            }
        }
    }
}

/// Widths that fill neither registers nor panels.
#[test]
fn odd_widths_agree_between_paths() {
    let shape = Shape { hidden: 74, intermediate: 106, heads: 5, kv_heads: 5, head_dim: 22, ..Shape::tiny() };
    let texts: Vec<_> = [1, 7, 33, 97, 260].map(|n| token_ids(n as u64, n)).into();
    let wanted = vectors(&loaded(&shape, SEED), &texts);
    for bounds in paths() {
        let got = vectors(&loaded_by(&shape, SEED, bounds.path), &texts);
        for ((text, got), wanted) in texts.iter().zip(&got).zip(&wanted) {
            let cosine = cosine(got, wanted);
            assert!(cosine > bounds.cosine_min, "{}, {} tokens: cosine {cosine}", bounds.path, text.len());
        }
    }
}

/// How many threads there are decides how rows are cut into blocks and tiles.
#[test]
fn threads_change_no_bit() {
    let texts: Vec<_> = [1, 5, 96, 97, 250, 300].map(|n| token_ids(n as u64, n)).into();
    for bounds in paths().filter(|bounds| bounds.batch == 0.0) {
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| vectors(&loaded_by(&Shape::small(), SEED, bounds.path), &texts))
        };
        let alone = on(1);
        for threads in [2, 3, 8] {
            assert!(on(threads) == alone, "{}, {threads} threads", bounds.path);
        }
    }
}

/// Whatever the width of a CPU's registers: the plain one in Rust says what is right.
#[test]
fn paths_in_f32_agree_to_the_bit() {
    let odd = Shape { hidden: 74, intermediate: 106, heads: 5, kv_heads: 5, head_dim: 22, ..Shape::tiny() };
    // Weights of both kinds: f32, and bf16, which is widened on the way.
    for shape in [Shape::small(), Shape { stored: Stored::Bf16, ..Shape::small() }, odd] {
        let instruction = &token_ids(99, 41)[..40];
        let texts: Vec<Vec<u32>> = [1, 2, 17, 33, 97, 300]
            .iter()
            .flat_map(|&n| [token_ids(n as u64, n), [instruction, &token_ids(n as u64, n)].concat()])
            .collect();
        let wanted = vectors(&loaded_by(&shape, SEED, ComputePath::PortableF32), &texts);
        for path in paths_here().filter(|path| path.precision() == Precision::F32 && *path != ComputePath::CandleF32) {
            assert!(vectors(&loaded_by(&shape, SEED, path), &texts) == wanted, "{path}");
        }
    }
}

/// Longer than what attention and the MLP take at a time, beside short ones.
#[test]
fn long_texts_are_cut_into_blocks_without_a_trace() {
    for bounds in paths() {
        let shape = Shape { tokens_max: 8192, ..Shape::tiny() };
        let model = loaded_by(&shape, SEED, bounds.path);
        let texts = [token_ids(1, 12), token_ids(2, 8192), token_ids(3, 5)];
        let together = vectors(&model, &texts);
        for (text, together) in texts.iter().zip(&together) {
            let alone = vectors(&model, &[text]);
            let moved = difference(&alone[0], together);
            println!("{}, {} tokens: alone and together differ by {moved:e}", bounds.path, text.len());
            assert!(moved <= bounds.batch, "{}, {} tokens: {moved:e}", bounds.path, text.len());
        }
    }
}

#[test]
fn every_token_counts_and_only_those_of_the_text() {
    let model = loaded(&Shape::tiny(), SEED);
    let text = token_ids(1, 70);
    let vector = vectors(&model, &[&text]).remove(0);
    for place in [0, 1, 33, 63, 64, 68] {
        let mut other = text.clone();
        other[place] = (other[place] + 1) % 256;
        let moved = difference(&vector, &vectors(&model, &[&other])[0]);
        assert!(moved > 100.0 * 3e-6, "token {place} moves the vector by {moved:e}");
    }
}

/// Weights of a checkpoint with a bad value in the embedding of one token.
#[test]
fn a_value_that_is_not_finite_stays_in_its_text() {
    for bad in [f32::NAN, f32::INFINITY] {
        let (_guard, dir) = written(&Shape::tiny());
        let path = dir.join("model.safetensors");
        spoil(&path, 90, bad);
        for path in paths_here() {
            let (clean, spoilt) =
                (loaded_by(&Shape::tiny(), SEED, path), Model::load(&dir, &Compute::by(path)).unwrap());
            let text = |length, token: u32| -> Vec<u32> {
                token_ids(length as u64, length).into_iter().map(|id| if id == 90 { token } else { id }).collect()
            };
            let mut texts: Vec<_> = [12, 40, 7, 130].map(|length| text(length, 91)).into();
            texts[1][20] = 90;
            let rows: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
            let (clean, spoilt) = (clean.forward(&rows).unwrap(), spoilt.forward(&rows).unwrap());
            for (place, (clean, spoilt)) in clean.iter().zip(&spoilt).enumerate() {
                let vector = finish(spoilt, 64);
                match place {
                    1 => assert_eq!(vector, Err(NonFinite), "{bad}, {path}"),
                    _ => assert_eq!(vector, finish(clean, 64), "text {place} beside {bad}, {path}"),
                }
            }
        }
    }
}

/// Writes a value into the embedding of a token, in a file of f32 tensors.
fn spoil(path: &std::path::Path, token: usize, value: f32) {
    let mut bytes = std::fs::read(path).unwrap();
    let header_bytes = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_bytes]).unwrap();
    let table = &header["embed_tokens.weight"];
    assert_eq!(table["dtype"], "F32");
    let width = table["shape"][1].as_u64().unwrap() as usize;
    let place = 8 + header_bytes + table["data_offsets"][0].as_u64().unwrap() as usize + 4 * width * token;
    bytes[place..place + 4].copy_from_slice(&value.to_le_bytes());
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn refuses_texts_it_can_not_run_and_stays_usable() {
    let model = loaded(&Shape { tokens_max: 16, ..Shape::tiny() }, SEED);
    let good = token_ids(1, 16);
    let (long, foreign) = (token_ids(1, 17), [3, 257]);
    let run = |text: &[u32]| model.forward(&[&good, text]);
    assert!(matches!(run(&[]), Err(EngineError::Empty { index: 1 })));
    assert!(matches!(run(&long), Err(EngineError::TooLong { index: 1, tokens: 17, tokens_max: 16 })));
    assert!(matches!(run(&foreign), Err(EngineError::Token { index: 1, token: 257, vocab: 257 })));
    assert_eq!(run(&good).unwrap().len(), 2);
    assert!(model.forward(&[]).unwrap().is_empty());
}

#[test]
fn a_model_can_move_to_the_thread_that_will_own_it() {
    fn is_send<T: Send>() {}
    is_send::<Model>();
}
