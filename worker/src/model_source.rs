//! Which model to serve: a folder, one from the Hugging Face hub, or the seeded random one that needs no download.

use std::path::PathBuf;

use crate::{
    engine::{Compute, LoadError, Model, Tokenizer, synthetic},
    hub::{DEFAULT_REVISION, Hub, HubError, Snapshot, is_model_name, is_revision},
};

/// The name under which the random model is served. Its vectors mean nothing; it is for trying the pipeline.
pub const RANDOM_MODEL: &str = "vecmill/random";
/// The random model's seed: the same on every machine, so that its vectors are too.
const RANDOM_SEED: u64 = 20_260_101;

/// Where the model comes from.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct ModelSource {
    /// Model's name, as grants spell it; without a folder it is downloaded from the Hugging Face hub, except for
    /// `vecmill/random`
    #[arg(long, env = "VECMILL_MODEL", value_name = "NAME", default_value = "Qwen/Qwen3-Embedding-4B")]
    pub model: String,
    /// Folder with config.json, tokenizer.json and the safetensors files
    #[arg(long, env = "VECMILL_MODEL_DIR", value_name = "DIR")]
    pub model_dir: Option<PathBuf>,
    /// Commit, branch or tag on the hub [default: main]; for Qwen/Qwen3-Embedding-0.6B, -4B and -8B, as for all, pin a
    /// commit: a branch may move between two workers' starts
    #[arg(long = "revision", env = "VECMILL_MODEL_REVISION", value_name = "REVISION")]
    pub model_revision: Option<String>,
    /// How it computes.
    #[command(flatten)]
    pub compute: Compute,
}

impl ModelSource {
    /// The random model.
    pub fn random() -> Self {
        Self { model: RANDOM_MODEL.to_owned(), model_dir: None, model_revision: None, compute: Compute::default() }
    }

    /// What is wrong with the settings, a sentence each.
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        match &self.model_dir {
            Some(dir) if !dir.join("config.json").is_file() => {
                mistakes.push(format!("--model-dir (VECMILL_MODEL_DIR) {} has no config.json", dir.display()));
            }
            None if self.model != RANDOM_MODEL && !is_model_name(&self.model) => mistakes.push(format!(
                "--model (VECMILL_MODEL) is {:?}: to be downloaded it must be OWNER/NAME as on the Hugging Face hub, for \
                 example Qwen/Qwen3-Embedding-0.6B; or give its folder with --model-dir (VECMILL_MODEL_DIR)",
                self.model
            )),
            _ => {}
        }
        match &self.model_revision {
            Some(_) if self.model_dir.is_some() => mistakes.push(
                "--revision (VECMILL_MODEL_REVISION) is for models from the Hugging Face hub, and --model-dir \
                 (VECMILL_MODEL_DIR) is taken as it is: leave one of them out"
                    .to_owned(),
            ),
            Some(revision) if !is_revision(revision) => mistakes.push(format!(
                "--revision (VECMILL_MODEL_REVISION) is {revision:?}: it must be a commit, a branch or a tag"
            )),
            _ => {}
        }
        mistakes
    }

    /// The model's folder, and its commit where it is from the hub. Downloads it, or writes the random model, unless it is
    /// there. Blocking, and long for a large model.
    fn locate(&self) -> Result<(PathBuf, Option<String>), LoadModelError> {
        if let Some(dir) = &self.model_dir {
            return Ok((dir.clone(), None));
        }
        if self.model != RANDOM_MODEL {
            let revision = self.model_revision.as_deref().unwrap_or(DEFAULT_REVISION);
            let Snapshot { dir, commit } = Hub::from_env().fetch(&self.model, revision)?;
            return Ok((dir, Some(commit)));
        }
        let dir = cache_dir().join(format!("random-model-{RANDOM_SEED}"));
        synthetic::write(&dir, &synthetic::Shape::first_look(), RANDOM_SEED)
            .map_err(|error| LoadModelError::Write { dir: dir.clone(), reason: error.to_string() })?;
        Ok((dir, None))
    }

    /// The model's folder.
    pub fn dir(&self) -> Result<PathBuf, LoadModelError> {
        self.locate().map(|(dir, _)| dir)
    }

    /// Loads the model and its tokenizer. Blocking, and long for a large model.
    pub fn load(&self) -> Result<(Model, Tokenizer), LoadModelError> {
        let (dir, commit) = self.locate()?;
        let model = Model::load(&dir, &self.compute)?.with_commit(commit);
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
    /// It can't be downloaded.
    #[error(transparent)]
    Hub(#[from] HubError),
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
