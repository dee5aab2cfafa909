//! Which model to serve: a folder, or the seeded random one that needs no download.

use std::path::PathBuf;

use crate::engine::{Compute, LoadError, Model, Tokenizer, synthetic};

/// The name under which the random model is served. Its vectors mean nothing; it is for trying the pipeline.
pub const RANDOM_MODEL: &str = "vecmill/random";
/// The random model's seed: the same on every machine, so that its vectors are too.
const RANDOM_SEED: u64 = 20_260_101;

/// Where the model comes from.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct ModelSource {
    /// Model's name, as grants spell it; `vecmill/random` needs no folder
    #[arg(long, env = "VECMILL_MODEL", value_name = "NAME", default_value = "Qwen/Qwen3-Embedding-4B")]
    pub model: String,
    /// Folder with config.json, tokenizer.json and the safetensors files
    #[arg(long, env = "VECMILL_MODEL_DIR", value_name = "DIR")]
    pub model_dir: Option<PathBuf>,
    /// How it computes.
    #[command(flatten)]
    pub compute: Compute,
}

impl ModelSource {
    /// The random model.
    pub fn random() -> Self {
        Self { model: RANDOM_MODEL.to_owned(), model_dir: None, compute: Compute::default() }
    }

    /// What is wrong with the settings, a sentence each.
    pub fn mistakes(&self) -> Vec<String> {
        match &self.model_dir {
            None if self.model != RANDOM_MODEL => vec![format!(
                "VECMILL_MODEL_DIR is not set: give the folder that holds {} (or serve {RANDOM_MODEL}, to try the pipeline)",
                self.model
            )],
            Some(dir) if !dir.join("config.json").is_file() => {
                vec![format!("--model-dir (VECMILL_MODEL_DIR) {} has no config.json", dir.display())]
            }
            _ => Vec::new(),
        }
    }

    /// The model's folder. Writes the random model, unless it was written before.
    pub fn dir(&self) -> Result<PathBuf, LoadModelError> {
        if let Some(dir) = &self.model_dir {
            return Ok(dir.clone());
        }
        let dir = cache_dir().join(format!("random-model-{RANDOM_SEED}"));
        synthetic::write(&dir, &synthetic::Shape::first_look(), RANDOM_SEED)
            .map_err(|error| LoadModelError::Write { dir: dir.clone(), reason: error.to_string() })?;
        Ok(dir)
    }

    /// Loads the model and its tokenizer. Blocking, and long for a large model.
    pub fn load(&self) -> Result<(Model, Tokenizer), LoadModelError> {
        let model = Model::load(&self.dir()?, &self.compute)?;
        let tokenizer = model.tokenizer().clone();
        Ok((model, tokenizer))
    }
}

/// Why there is no model.
#[derive(Debug, thiserror::Error)]
pub enum LoadModelError {
    /// The folder is not a model that the engine runs.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The random model can't be written.
    #[error("the random model can't be written to {dir} (set VECMILL_CACHE_DIR to a folder that can): {reason}")]
    Write {
        /// The folder.
        dir: PathBuf,
        /// Why.
        reason: String,
    },
}

/// `VECMILL_CACHE_DIR`, else the user's cache folder, else the temporary folder.
fn cache_dir() -> PathBuf {
    let given = std::env::var_os("VECMILL_CACHE_DIR").map(PathBuf::from);
    let users = || std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    given.unwrap_or_else(|| users().or_else(home).unwrap_or_else(std::env::temp_dir).join("vecmill"))
}
