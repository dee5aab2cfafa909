//! What the tenant asked for: the parameters that every chunk of a job shares.

use serde::{Deserialize, Serialize};

/// The element type of the stored vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 4 bytes a dimension; what the engine computes.
    #[default]
    F32,
    /// 2 bytes a dimension, rounded to nearest even from f32.
    F16,
}

/// What becomes of a text that has more tokens than the model takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Truncate {
    /// Its row fails, with an error that names it
    #[default]
    None,
    /// Its end is cut off, and its row says so
    End,
}

impl Truncate {
    fn is_default(&self) -> bool {
        *self == Self::None
    }
}

/// The parameters of a job. They are part of the job's identity: another value is another job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// The model's name as the signer's allow-list spells it, for example `Qwen/Qwen3-Embedding-4B`.
    pub model: String,
    /// Length of each stored vector: 32 up to the model's hidden size (Matryoshka cut, then L2).
    pub dimensions: u32,
    /// Element type of the stored vectors.
    #[serde(default)]
    pub dtype: Dtype,
    /// The task of Qwen3's query prompt; absent for documents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instruction: Option<String>,
    /// What becomes of a text that is too long.
    #[serde(default, skip_serializing_if = "Truncate::is_default")]
    pub truncate: Truncate,
}

/// Why a [`JobSpec`] can't be accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Qwen3-Embedding is trained for 32 dimensions and up (model card, "Custom Dimensions").
    #[error("dimensions is {0}: the model's vectors can be cut to 32 or more, up to its hidden size")]
    Dimensions(u32),
    /// The model's name is empty or too long.
    #[error("model must be a name of 1 to 128 characters")]
    Model,
    /// The instruction is empty or too long.
    #[error("instruction must have 1 to 4096 bytes: it is put before every text and spends its tokens on each")]
    Instruction,
}

impl JobSpec {
    /// Checks what can be known without the model. The worker checks `dimensions` against the hidden size.
    pub fn check(&self) -> Result<(), SpecError> {
        if !(32..=65_536).contains(&self.dimensions) {
            return Err(SpecError::Dimensions(self.dimensions));
        }
        if !(1..=128).contains(&self.model.len()) {
            return Err(SpecError::Model);
        }
        if self.instruction.as_ref().is_some_and(|text| !(1..=4096).contains(&text.len())) {
            return Err(SpecError::Instruction);
        }
        Ok(())
    }
}
