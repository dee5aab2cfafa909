//! Tensors of a checkpoint: one safetensors file or several with an index, with or without the `model.` prefix.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
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
        let (name, _, _) = self.view(name, shape)?;
        Ok(self.files.load(&name, &Device::Cpu)?)
    }

    /// A tensor widened to f32.
    pub(super) fn f32(&self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        Ok(self.stored(name, shape)?.to_dtype(DType::F32)?)
    }

    /// Values of a norm.
    pub(super) fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        Ok(self.f32(name, &[len])?.to_vec1()?)
    }

    /// Several `[rows, columns]` tensors on top of each other, where they are mapped.
    pub(super) fn matrix(&self, parts: &[(String, usize)], columns: usize) -> Result<Matrix<'_>, LoadError> {
        let parts = parts
            .iter()
            .map(|(name, rows)| {
                let (_, stored, view) = self.view(name, &[*rows, columns])?;
                Ok(Part { bytes: view.data(), stored, rows: *rows })
            })
            .collect::<Result<_, LoadError>>()?;
        Ok(Matrix { parts, columns })
    }

    fn view(&self, name: &str, shape: &[usize]) -> Result<(String, Dtype, TensorView<'_>), LoadError> {
        let name = format!("{}{name}", self.prefix);
        let refuse = |reason: String| LoadError::Tensor { name: name.clone(), reason };
        let view = self.files.get(&name).map_err(|_| refuse("is absent".into()))?;
        if view.shape() != shape {
            return Err(refuse(format!("has the shape {:?}, config.json calls for {shape:?}", view.shape())));
        }
        match view.dtype() {
            stored @ (Dtype::BF16 | Dtype::F16 | Dtype::F32) => Ok((name, stored, view)),
            other => Err(refuse(format!("is stored as {other:?}; bf16, f16 and f32 are supported"))),
        }
    }
}

/// `[rows, columns]` values in the mapped files.
pub(super) struct Matrix<'a> {
    parts: Vec<Part<'a>>,
    columns: usize,
}

struct Part<'a> {
    bytes: &'a [u8],
    stored: Dtype,
    rows: usize,
}

impl Matrix<'_> {
    pub(super) fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.rows).sum()
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Whether all of it is stored as bf16.
    pub(super) fn is_bf16(&self) -> bool {
        self.parts.iter().all(|part| part.stored == Dtype::BF16)
    }

    /// Writes a row to `out`, each value as `store` makes it of an f32.
    pub(super) fn row<T>(&self, mut row: usize, out: &mut [T], store: impl Fn(f32) -> T) {
        for part in &self.parts {
            if row < part.rows {
                return part.row(row, self.columns, out, store);
            }
            row -= part.rows;
        }
    }
}

impl Part<'_> {
    fn row<T>(&self, row: usize, columns: usize, out: &mut [T], store: impl Fn(f32) -> T) {
        let width = if self.stored == Dtype::F32 { 4 } else { 2 };
        let bytes = &self.bytes[row * columns * width..][..columns * width];
        let (pairs, _) = bytes.as_chunks::<2>();
        let (quads, _) = bytes.as_chunks::<4>();
        match self.stored {
            Dtype::F32 => out.iter_mut().zip(quads).for_each(|(out, v)| *out = store(f32::from_le_bytes(*v))),
            Dtype::F16 => out.iter_mut().zip(pairs).for_each(|(out, v)| *out = store(f16::from_le_bytes(*v).to_f32())),
            _ => out.iter_mut().zip(pairs).for_each(|(out, v)| *out = store(bf16::from_le_bytes(*v).to_f32())),
        }
    }
}

/// The embedding table, which every checkpoint has.
pub(super) const EMBEDDINGS: &str = "embed_tokens.weight";

/// One plain name: an index is data and must not lead out of the model's folder.
fn is_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
}
