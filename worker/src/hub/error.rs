//! Why there is no model from the hub.

use std::path::PathBuf;

/// Why a model can't be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// Nobody may be asked, and the cache lacks something.
    #[error(
        "{model} at {revision} is not complete in {cache}: {missing} is missing, and HF_HUB_OFFLINE forbids to download it; \
         unset it, or give the model's folder with --model-dir (VECMILL_MODEL_DIR)"
    )]
    Offline {
        /// Its name.
        model: String,
        /// What was asked for.
        revision: String,
        /// The cache's folder.
        cache: PathBuf,
        /// The first missing file.
        missing: String,
    },
    /// The hub does not answer, and the cache lacks something.
    #[error(
        "{model} can't be downloaded: {endpoint} is out of reach ({reason}), and {missing} is not in {cache}; \
         try again with a network, which goes on where this ended, or give the model's folder with --model-dir \
         (VECMILL_MODEL_DIR)"
    )]
    Unreachable {
        /// Its name.
        model: String,
        /// The hub.
        endpoint: String,
        /// What happened.
        reason: String,
        /// The cache's folder.
        cache: PathBuf,
        /// The first missing file.
        missing: String,
    },
    /// The hub has no such model or revision, or does not show it.
    #[error(
        "{endpoint} does not give {what} of {model} at {revision} ({status}): check --model and --revision, set HF_TOKEN if \
         it is not public, or give the model's folder with --model-dir (VECMILL_MODEL_DIR)"
    )]
    Refused {
        /// The hub.
        endpoint: String,
        /// The file, or the list of files.
        what: String,
        /// The model's name.
        model: String,
        /// What was asked for.
        revision: String,
        /// The HTTP status.
        status: u16,
    },
    /// It is there, but not in the form that the engine reads.
    #[error("{model} has no {missing}: it is not a model in safetensors with a fast tokenizer")]
    NotAModel {
        /// Its name.
        model: String,
        /// The file that is not among its files.
        missing: String,
    },
    /// What the hub says can't be used.
    #[error("{endpoint} gives what is not {model}: {reason}")]
    Malformed {
        /// The hub.
        endpoint: String,
        /// The model's name.
        model: String,
        /// What is wrong.
        reason: String,
    },
    /// The cache can't be written.
    #[error("the cache {cache} can't be used (set VECMILL_CACHE_DIR or HF_HOME to a folder that can): {reason}")]
    Cache {
        /// The cache's folder.
        cache: PathBuf,
        /// Why.
        reason: String,
    },
}
