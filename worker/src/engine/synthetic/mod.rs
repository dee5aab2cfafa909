//! Seeded random models in Qwen3's files, so that tests, benchmarks and a first look need no download.
//!
//! The vectors mean nothing; everything else is real: the same files, the same shapes, the same cost for each token, and
//! the same bytes for the same seed on every machine.

mod shape;
mod tokenizer_json;
mod values;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use serde::{Deserialize, Serialize};

pub use shape::{Shape, Stored};
pub use values::token_ids;

use shape::TensorPlan;

/// Holds what a folder was made from. Also tells people that these weights are random.
const MARKER: &str = "synthetic.json";

/// Counted up when the same shape and seed begin to give other bytes.
const FORMAT: u32 = 1;

/// Why no model was written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// No such model can exist.
    #[error("shape: {0}")]
    Shape(&'static str),
    /// The folder exists and was not made from this shape and seed. It is left as it is.
    #[error("{0} exists and is another model")]
    Occupied(PathBuf),
    /// A file could not be written.
    #[error("can't write {path}: {source}")]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

#[derive(Serialize, Deserialize, PartialEq)]
struct Marker {
    format: u32,
    seed: u64,
    shape: Shape,
}

/// Writes `config.json`, `tokenizer.json` and weights to `dir`, which appears complete or not at all. A folder that
/// already holds this shape and seed is left alone, so callers may call this at every start.
///
/// # Errors
/// The shape is impossible, the folder holds something else, or writing fails.
pub fn write(dir: &Path, shape: &Shape, seed: u64) -> Result<(), WriteError> {
    shape.check().map_err(WriteError::Shape)?;
    let marker = Marker { format: FORMAT, seed, shape: shape.clone() };
    if dir.exists() {
        return if holds(dir, &marker) { Ok(()) } else { Err(WriteError::Occupied(dir.to_owned())) };
    }
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(failed(parent))?;
    let partial = tempfile::Builder::new().prefix(".synthetic-").tempdir_in(parent).map_err(failed(parent))?;
    fill(partial.path(), shape, seed)?;
    write_json(&partial.path().join(MARKER), &marker)?;
    match std::fs::rename(partial.path(), dir) {
        // The folder has its new name: there is nothing left for the guard to remove.
        Ok(()) => _ = partial.keep(),
        // Somebody else was first, with the same bytes.
        Err(_) if holds(dir, &marker) => {}
        Err(error) => return Err(failed(dir)(error)),
    }
    Ok(())
}

fn holds(dir: &Path, marker: &Marker) -> bool {
    let found = std::fs::read(dir.join(MARKER)).ok().and_then(|bytes| serde_json::from_slice::<Marker>(&bytes).ok());
    found.as_ref() == Some(marker)
}

fn fill(dir: &Path, shape: &Shape, seed: u64) -> Result<(), WriteError> {
    write_json(&dir.join("config.json"), &shape.config_json())?;
    write_json(&dir.join("tokenizer.json"), &tokenizer_json::build())?;
    let plans = shape.tensors();
    if shape.shards == 1 {
        return write_weights(&dir.join("model.safetensors"), &plans, shape.stored, seed);
    }
    let mut weight_map = BTreeMap::new();
    for (shard, plans) in plans.chunks(plans.len().div_ceil(shape.shards)).enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", shard + 1, shape.shards);
        write_weights(&dir.join(&file), plans, shape.stored, seed)?;
        weight_map.extend(plans.iter().map(|plan| (plan.name.clone(), file.clone())));
    }
    let bytes: usize = plans.iter().map(|plan| plan.len() * shape.stored.bytes()).sum();
    let index = serde_json::json!({ "metadata": { "total_size": bytes }, "weight_map": weight_map });
    write_json(&dir.join("model.safetensors.index.json"), &index)
}

fn write_weights(path: &Path, plans: &[TensorPlan], stored: Stored, seed: u64) -> Result<(), WriteError> {
    let data: Vec<Vec<u8>> = plans.iter().map(|plan| values::bytes(plan, stored, seed)).collect();
    let views = plans.iter().zip(&data).map(|(plan, data)| {
        let view = TensorView::new(stored.dtype(), plan.dims.clone(), data).map_err(std::io::Error::other)?;
        Ok((plan.name.as_str(), view))
    });
    let views = views.collect::<std::io::Result<Vec<_>>>().map_err(failed(path))?;
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    safetensors::serialize_to_file(views, Some(metadata), path)
        .map_err(|error| failed(path)(std::io::Error::other(error)))
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), WriteError> {
    let bytes = serde_json::to_vec_pretty(value).map_err(|error| failed(path)(error.into()))?;
    std::fs::write(path, bytes).map_err(failed(path))
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> WriteError {
    move |source| WriteError::Write { path: path.to_owned(), source }
}
