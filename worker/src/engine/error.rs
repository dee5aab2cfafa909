//! What can go wrong, told apart where a caller acts differently. No message holds a tenant's text.

use std::path::{Path, PathBuf};

use super::compute::{ComputeDtype, ComputePath};

/// A model folder that can't be used. Ends the program at start-up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// There is no memory for the weights.
    #[error("no memory for the weights: {0}")]
    Memory(std::io::Error),
    /// A file is absent or can't be read.
    #[error("can't read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A JSON file does not have the expected form.
    #[error("{path} is not what Qwen3-Embedding's should be: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// The configuration asks for something the forward pass does not do. Going on would give wrong vectors.
    #[error("config.json: {field} = {value} is not supported: {expected}")]
    Unsupported {
        /// The field's name in `config.json`.
        field: &'static str,
        /// Its value, as JSON.
        value: String,
        /// What the engine computes instead.
        expected: &'static str,
    },
    /// A file of the model card asks for something that is not what Qwen3-Embedding does.
    #[error("{path}: {field} = {value} is not supported: {expected}")]
    Card {
        /// The file.
        path: PathBuf,
        /// The field's name in it.
        field: String,
        /// Its value, as JSON.
        value: String,
        /// What the engine computes instead.
        expected: String,
    },
    /// A tensor is absent, or its shape or type is not what `config.json` calls for.
    #[error("tensor {name}: {reason}")]
    Tensor {
        /// The tensor's name in the checkpoint.
        name: String,
        /// Why.
        reason: String,
    },
    /// The tokenizer can't be loaded, or does not end its output with the end token.
    #[error("tokenizer {path}: {reason}")]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The CPU can't compute in bf16.
    #[error("this CPU has neither AMX nor AVX512-BF16: compute in f32 (--dtype f32, VECMILL_COMPUTE_DTYPE)")]
    NoBf16,
    /// The CPU can't take the path that is asked for.
    #[error("--cpu-path {path} (VECMILL_CPU_PATH): {reason}; leave it out to compute with what the CPU has")]
    NoPath {
        /// The path.
        path: ComputePath,
        /// What the CPU lacks.
        reason: String,
    },
    /// A path of another precision than is asked for.
    #[error(
        "--cpu-path {path} (VECMILL_CPU_PATH) computes in {}, --dtype (VECMILL_COMPUTE_DTYPE) asks for {dtype}: leave one \
         of them out",
        path.precision()
    )]
    PathDtype {
        /// The path.
        path: ComputePath,
        /// The precision that is asked for.
        dtype: ComputeDtype,
    },
    /// There is no GPU, or the program can't use it.
    #[error("{0}; --device cpu (VECMILL_DEVICE) computes on the CPU")]
    NoCuda(String),
    /// A precision that no CPU is used in.
    #[error("--dtype fp8 (VECMILL_COMPUTE_DTYPE) is computed on Hopper GPUs: leave it out, or take --device cuda")]
    NoFp8,
    /// FP8 has one way to be computed.
    #[error(
        "--dtype fp8 (VECMILL_COMPUTE_DTYPE) is computed with FlashAttention 3, by a program that infra/cuda/build has made, \
         and with the same products for every batch: leave --cuda-attention and --cuda-products out"
    )]
    Fp8Alone,
    /// A precision that the GPU is not used in.
    #[error("the GPU computes in bf16: leave --dtype (VECMILL_COMPUTE_DTYPE) out, or take --device cpu")]
    NoF32,
    /// The GPU gave a text other bits alone than among others.
    #[error(
        "the GPU gives a text of {tokens} tokens other bits alone than among others: --cuda-products fastest \
         (VECMILL_CUDA_PRODUCTS) computes without that promise"
    )]
    NotInvariant {
        /// Its length.
        tokens: usize,
    },
    /// candle refused an operation.
    #[error("loading weights: {0}")]
    Candle(#[from] candle_core::Error),
}

impl LoadError {
    /// For `map_err` on any file operation.
    pub(crate) fn read(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Read { path: path.to_owned(), source }
    }

    /// For `map_err` on parsing.
    pub(crate) fn json(path: &Path) -> impl FnOnce(serde_json::Error) -> Self {
        move |source| Self::Json { path: path.to_owned(), source }
    }
}

/// A batch that could not be run. Nothing of it was computed; the model can still be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A text has no token, not even the end token. [`super::Tokenizer::encode`] never gives this.
    #[error("text {index} of the batch has no tokens")]
    Empty {
        /// The text's place in the batch.
        index: usize,
    },
    /// A text is longer than the model's positions.
    #[error("text {index} of the batch has {tokens} tokens; the model takes {tokens_max}")]
    TooLong {
        /// The text's place in the batch.
        index: usize,
        /// Its length.
        tokens: usize,
        /// [`super::ModelInfo::tokens_max`].
        tokens_max: usize,
    },
    /// A token id the embedding table does not have: the tokenizer belongs to another model.
    #[error("text {index} of the batch has a token id of {token}; the vocabulary has {vocab}")]
    Token {
        /// The text's place in the batch.
        index: usize,
        /// The id.
        token: u32,
        /// [`super::ModelInfo::vocab`].
        vocab: usize,
    },
    /// candle refused an operation, or memory ran out.
    #[error("forward: {0}")]
    Candle(#[from] candle_core::Error),
}

/// A row with a value that is not finite, or of no length. It must not be written; the row fails, not its chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the model gave a vector that is not finite or has no length")]
pub struct NonFinite;

/// A text that can't be embedded. Fails its row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenizeError {
    /// No text, or none that gives a token.
    #[error("the text is empty")]
    Empty,
    /// More tokens than the model's positions, the end token included.
    #[error("the text has {tokens} tokens; the model takes {tokens_max}")]
    TooLong {
        /// The exact number, or a low estimate where the text was too long to tokenize at all
        /// ([`super::TEXT_BYTES_PER_TOKEN_MAX`]).
        tokens: usize,
        /// The model's limit.
        tokens_max: usize,
    },
    /// A token id that the model does not have: it comes from another model's tokenizer.
    #[error("token id {token} is none of the model's: its vocabulary has {vocab}, from 0 to {}", vocab - 1)]
    Unknown {
        /// The id.
        token: u32,
        /// Ids are below this.
        vocab: usize,
    },
    /// The tokenizer gave up on this text.
    #[error("the tokenizer failed on this text")]
    Failed,
}
