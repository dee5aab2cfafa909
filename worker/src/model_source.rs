//! Which model to serve: a folder, one from the Hugging Face hub, or the one in the box, which needs no download.

use std::path::PathBuf;

use crate::{
    built_in::{self, BUILT_IN_MODEL},
    engine::{Compute, LoadError, Model, Tokenizer},
    hub::{DEFAULT_REVISION, Hub, HubError, Snapshot, is_model_name, is_revision},
};

/// Where the model comes from.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct ModelSource {
    /// Model's name, as grants spell it; without a folder it is downloaded from the Hugging Face hub, except for
    /// `vecmill/mini`, which the program carries
    #[arg(long, env = "VECMILL_MODEL", value_name = "NAME", default_value = "Qwen/Qwen3-Embedding-4B")]
    pub model: String,
    /// Folder with config.json, tokenizer.json and the safetensors files
    #[arg(long, env = "VECMILL_MODEL_DIR", value_name = "DIR")]
    pub model_dir: Option<PathBuf>,
    /// Commit, branch or tag on the hub [default: main]; pin a commit in production: a branch may move between two
    /// workers' starts
    #[arg(long = "revision", env = "VECMILL_MODEL_REVISION", value_name = "REVISION")]
    pub model_revision: Option<String>,
    /// How it computes.
    #[command(flatten)]
    pub compute: Compute,
}

impl ModelSource {
    /// What is wrong with the settings, a sentence each.
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        match &self.model_dir {
            Some(dir) if !dir.join("config.json").is_file() => {
                mistakes.push(format!("--model-dir (VECMILL_MODEL_DIR) {} has no config.json", dir.display()));
            }
            None if self.model != BUILT_IN_MODEL && !is_model_name(&self.model) => mistakes.push(format!(
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

    /// The model's folder, and its commit where it is from the hub. Downloads it, or unpacks the one in the box, unless it
    /// is there. Blocking, and long for a large model.
    fn locate(&self) -> Result<(PathBuf, Option<String>), LoadModelError> {
        if let Some(dir) = &self.model_dir {
            return Ok((dir.clone(), None));
        }
        if self.model != BUILT_IN_MODEL {
            let revision = self.model_revision.as_deref().unwrap_or(DEFAULT_REVISION);
            let Snapshot { dir, commit } = Hub::from_env().fetch(&self.model, revision)?;
            return Ok((dir, Some(commit)));
        }
        let cache = cache_dir();
        let dir = built_in::unpack(&cache).map_err(|reason| LoadModelError::Unpack { cache, reason })?;
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
    /// The model in the box can't be unpacked.
    #[error(
        "{BUILT_IN_MODEL} can't be unpacked to {} (set VECMILL_CACHE_DIR to a folder that can be written): {reason}",
        cache.display()
    )]
    Unpack {
        /// The folder for it.
        cache: PathBuf,
        /// Why.
        reason: std::io::Error,
    },
}

/// `VECMILL_CACHE_DIR`, else the user's cache folder, else the temporary folder.
fn cache_dir() -> PathBuf {
    let given = std::env::var_os("VECMILL_CACHE_DIR").map(PathBuf::from);
    let users = || std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    given.unwrap_or_else(|| users().or_else(home).unwrap_or_else(std::env::temp_dir).join("vecmill"))
}
