//! The Qwen3-Embedding engine: token ids in, one hidden row a text out.
//!
//! Texts are packed, never padded: all tokens of a batch lie in one `[total, hidden]` matrix, and only attention knows
//! where one text ends. A text's row does not depend on what it shares a batch with: on nearly every path it has the same
//! bits in every batch ([`ComputePath`] says on which not).
//!
//! A vector is made in three steps, each on its own thread of the pipeline: [`Tokenizer::encode`] (any thread),
//! [`Model::forward`] (the one thread that owns the model), [`finish`] (any thread).

#[cfg(any(feature = "cuda", test))]
mod algorithms;
// Without the feature there is nobody to ask them, but their tests run on any machine.
#[cfg(any(feature = "cuda", test))]
mod budget;
mod card;
mod compute;
mod config;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod error;
mod finish;
mod marks;
mod model;
mod packing;
mod place;
mod products;
mod revision;
mod rope;
pub mod synthetic;
mod tensor;
mod tokenizer;
#[cfg(any(feature = "cuda", test))]
mod trial;
mod weights;

pub use compute::{
    Compute, ComputeDevice, ComputeDtype, ComputePath, CudaAttention, CudaOptions, CudaProducts, PassedOver, Precision,
    Sharing,
};
use std::path::Path;

pub use error::{EngineError, LoadError, NonFinite, TokenizeError};
pub use finish::finish;
pub use marks::{Operation, Operations};
pub use model::{Launched, Model, ModelInfo};
pub use products::{Algorithm, ProductFigures, measure_products};
pub use tokenizer::{END_TOKEN, Encoded, Input, TEXT_BYTES_PER_TOKEN_MAX, Tokenizer};

/// Names of the weight files of a model's folder, whether they are there or not.
pub(crate) fn weight_files(dir: &Path) -> Result<Vec<String>, LoadError> {
    weights::Weights::file_names(dir)
}

/// SHA-256 of a file, in hex.
pub(crate) fn file_sha256(path: &Path) -> Result<String, LoadError> {
    revision::file_sha256(path)
}
