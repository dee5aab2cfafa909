//! What the tenant asked for: the parameters that every chunk of a job shares.

use serde::{Deserialize, Serialize};

/// Most bytes of a model's name.
pub const MODEL_BYTES_MAX: usize = 128;
/// Most bytes of an instruction, of a job's and of a request's: it is put before every text, so that a long one would be tokenized as
/// often.
pub const INSTRUCTION_BYTES_MAX: usize = 4096;

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

/// How a model computes: the type of its matrix products' inputs. Sums are f32 either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32 products.
    F32,
    /// bf16 products.
    Bf16,
    /// e4m3 products, each row with a scale of its own.
    Fp8,
}

impl Precision {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::Fp8];
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
        })
    }
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
    /// The precision to compute in; absent, it is that of whichever worker takes a chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
}

/// Why a [`JobSpec`] can't be accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Qwen3-Embedding is trained for 32 dimensions and up (model card, "Custom Dimensions").
    #[error("dimensions is {0}: the model's vectors can be cut to 32 or more, up to its hidden size")]
    Dimensions(u32),
    /// The model's name is empty or too long.
    #[error("model must be a name of 1 to {MODEL_BYTES_MAX} characters")]
    Model,
    /// The instruction is empty or too long.
    #[error(
        "instruction must have 1 to {INSTRUCTION_BYTES_MAX} bytes: it is put before every text and spends its tokens on \
         each"
    )]
    Instruction,
}

impl JobSpec {
    /// Checks what can be known without the model. The worker checks `dimensions` against the hidden size.
    pub fn check(&self) -> Result<(), SpecError> {
        if !(32..=65_536).contains(&self.dimensions) {
            return Err(SpecError::Dimensions(self.dimensions));
        }
        if !(1..=MODEL_BYTES_MAX).contains(&self.model.len()) {
            return Err(SpecError::Model);
        }
        if self.instruction.as_ref().is_some_and(|text| !(1..=INSTRUCTION_BYTES_MAX).contains(&text.len())) {
            return Err(SpecError::Instruction);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_precision_is_in_the_document_only_where_it_is_asked_for() {
        let plain = r#"{"model":"m","dimensions":32,"dtype":"f32"}"#;
        let spec: JobSpec = serde_json::from_str(plain).expect("a spec");
        assert_eq!(spec.precision, None);
        assert_eq!(serde_json::to_string(&spec).expect("JSON"), plain, "what jobs were called before stays");
        for precision in Precision::ALL {
            let asking = JobSpec { precision: Some(precision), ..spec.clone() };
            let json = serde_json::to_string(&asking).expect("JSON");
            assert!(json.contains(&format!(r#""precision":"{precision}""#)), "{json}");
            assert_eq!(serde_json::from_str::<JobSpec>(&json).expect("a spec"), asking);
        }
        assert!(serde_json::from_str::<JobSpec>(r#"{"model":"m","dimensions":32,"precision":"f16"}"#).is_err());
    }
}
