//! Tensors of a checkpoint: one safetensors file or several with an index, with or without the `model.` prefix.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use super::LoadError;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Checkpoints saved from the bare model have no prefix; those saved with a language-model head do.
const PREFIXES: [&str; 2] = ["", "model."];

/// A checkpoint's files, mapped. Dropping it unmaps them: every tensor taken from it is a copy.
pub(super) struct Weights {
    files: MmapedSafetensors,
    prefix: &'static str,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// Names of the weight files in `dir`, sorted.
    pub(super) fn file_names(dir: &Path) -> Result<Vec<String>, LoadError> {
        let path = dir.join(INDEX);
        if dir.join(SINGLE).exists() || !path.exists() {
            return Ok(vec![SINGLE.to_owned()]);
        }
        let bytes = std::fs::read(&path).map_err(LoadError::read(&path))?;
        let index: Index = serde_json::from_slice(&bytes).map_err(LoadError::json(&path))?;
        let names: BTreeSet<String> = index.weight_map.into_values().collect();
        if let Some(name) = names.iter().find(|name| !is_file_name(name)) {
            return Err(LoadError::Tensor { name: name.clone(), reason: "the index points outside its folder".into() });
        }
        Ok(names.into_iter().collect())
    }

    /// Maps `names` (of [`Self::file_names`]) and finds out about the prefix.
    #[allow(unsafe_code, reason = "a mapping can't be proven stable; the SAFETY comment states what keeps it so")]
    pub(super) fn open(dir: &Path, names: &[String]) -> Result<Self, LoadError> {
        let paths: Vec<_> = names.iter().map(|name| dir.join(name)).collect();
        for path in &paths {
            std::fs::metadata(path).map_err(LoadError::read(path))?;
        }
        // SAFETY: the mapping is read-only, and sound as long as nobody changes the files while it lives. It lives only
        // while `Model::load` runs, on files of a model folder, which deployments mount read-only. A file that is cut
        // short meanwhile ends the process at start-up (SIGBUS), before it has taken any work. Reading instead of
        // mapping would double the memory that the 8B model needs to load.
        let files = unsafe { MmapedSafetensors::multi(&paths)? };
        let has = |prefix: &&str| files.get(&format!("{prefix}{EMBEDDINGS}")).is_ok();
        let prefix = PREFIXES.into_iter().find(has).ok_or_else(|| LoadError::Tensor {
            name: EMBEDDINGS.to_owned(),
            reason: "is in none of the weight files, with or without \"model.\"".to_owned(),
        })?;
        Ok(Self { files, prefix })
    }

    /// A tensor as it is on disk, after checking its shape and that its type is a float the engine can widen.
    pub(super) fn stored(&self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        let name = format!("{}{name}", self.prefix);
        let refuse = |reason: String| LoadError::Tensor { name: name.clone(), reason };
        let view = self.files.get(&name).map_err(|_| refuse("is absent".into()))?;
        if view.shape() != shape {
            return Err(refuse(format!("has the shape {:?}, config.json calls for {shape:?}", view.shape())));
        }
        let tensor = self.files.load(&name, &Device::Cpu)?;
        match tensor.dtype() {
            DType::BF16 | DType::F16 | DType::F32 => Ok(tensor),
            other => Err(refuse(format!("is stored as {other:?}; bf16, f16 and f32 are supported"))),
        }
    }

    /// A tensor widened to f32.
    pub(super) fn f32(&self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        Ok(self.stored(name, shape)?.to_dtype(DType::F32)?)
    }

    /// Several `[rows, columns]` tensors on top of each other, as f32: one matrix product instead of several.
    pub(super) fn stacked(&self, parts: &[(String, usize)], columns: usize) -> Result<Tensor, LoadError> {
        let parts = parts
            .iter()
            .map(|(name, rows)| self.f32(name, &[*rows, columns]))
            .collect::<Result<Vec<_>, LoadError>>()?;
        Ok(Tensor::cat(&parts, 0)?)
    }
}

/// The embedding table, which every checkpoint has.
pub(super) const EMBEDDINGS: &str = "embed_tokens.weight";

/// One plain name: an index is data and must not lead out of the model's folder.
fn is_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
}
