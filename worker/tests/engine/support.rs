//! Models on disk and vectors side by side.

use std::path::Path;

use tempfile::TempDir;
use vecmill_worker::engine::synthetic::{self, Shape};
use vecmill_worker::engine::{Compute, ComputeDtype, ComputePath, Model, finish};

pub(crate) const SEED: u64 = 7;

/// A model folder that goes away with the guard. Its name is `model`.
pub(crate) fn written(shape: &Shape) -> (TempDir, std::path::PathBuf) {
    let guard = tempfile::tempdir().unwrap();
    let dir = guard.path().join("model");
    synthetic::write(&dir, shape, SEED).unwrap();
    (guard, dir)
}

/// Every path that this CPU can take.
pub(crate) fn paths_here() -> impl Iterator<Item = ComputePath> {
    ComputePath::ON_CPUS.into_iter().filter(|path| path.lacking().is_none())
}

/// In f32, whose vectors are the same on every CPU.
pub(crate) fn loaded(shape: &Shape, seed: u64) -> Model {
    load(shape, seed, &Compute::cpu(ComputeDtype::F32))
}

pub(crate) fn loaded_by(shape: &Shape, seed: u64, path: ComputePath) -> Model {
    load(shape, seed, &Compute::by(path))
}

fn load(shape: &Shape, seed: u64, compute: &Compute) -> Model {
    let guard = tempfile::tempdir().unwrap();
    let dir = guard.path().join("model");
    synthetic::write(&dir, shape, seed).unwrap();
    Model::load(&dir, compute).unwrap()
}

/// Whole unit vectors of a batch.
pub(crate) fn vectors<T: AsRef<[u32]>>(model: &Model, texts: &[T]) -> Vec<Vec<f32>> {
    let texts: Vec<&[u32]> = texts.iter().map(AsRef::as_ref).collect();
    let rows = model.forward(&texts).unwrap();
    assert_eq!(rows.len(), texts.len());
    rows.iter().map(|row| finish(row, model.info().hidden).unwrap()).collect()
}

/// Cosine of two unit vectors.
pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Largest difference of two values at the same place.
pub(crate) fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Changes a JSON file of a model folder.
pub(crate) fn edit(path: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let mut value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, serde_json::to_vec(&value).unwrap()).unwrap();
}
