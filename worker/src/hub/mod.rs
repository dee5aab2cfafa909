//! Models from the Hugging Face hub, in the cache that its other tools use. What is there is not asked for again; what
//! broke goes on where it was.
//!
//! A branch is resolved to its commit before anything is downloaded, so that all files are of one commit, and that commit
//! is what gets recorded. Small files come first and weights last: where the weights are complete, everything is.

mod download;
mod error;
mod progress;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use hf_hub::{
    Cache, Repo, RepoType,
    api::tokio::{Api, ApiBuilder, ApiError},
};
// Only there to choose its TLS.
use hf_hub_reqwest as _;

use self::download::Download;
pub use self::error::HubError;
use crate::engine::weight_files;

/// The branch that is taken where no revision is given.
pub const DEFAULT_REVISION: &str = "main";

/// Files of the card. The first two must be there.
const CARD: [&str; 5] =
    ["config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json", "config_sentence_transformers.json"];
const REQUIRED: usize = 2;
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A download that broke begins again at its last whole chunk. Each of [`CONNECTIONS`] holds one in memory.
const CHUNK_BYTES: usize = 32 << 20;
/// Downloads at once: one connection does not fill a fast line.
const CONNECTIONS: usize = 4;
/// [`Hub::retry_wait`]: with five tries, a hub is given up after about 8 seconds.
const RETRY_WAIT: Duration = Duration::from_millis(500);

/// Where models come from and are kept.
#[derive(Clone, Debug)]
pub struct Hub {
    /// The hub's URL; `None` is huggingface.co.
    pub endpoint: Option<String>,
    /// Folder of the cache, in the layout that all tools of the hub share.
    pub cache: PathBuf,
    /// An access token, for models that need one.
    pub token: Option<String>,
    /// Take what the cache has and ask nobody.
    pub offline: bool,
    /// Bytes of a chunk; a broken download loses at most the chunks at hand.
    pub chunk_bytes: usize,
    /// Before the second try; doubled for each further one.
    pub retry_wait: Duration,
}

/// A model's folder in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The folder.
    pub dir: PathBuf,
    /// The commit that it holds: 40 hex digits.
    pub commit: String,
}

impl Hub {
    /// What the environment says, as the hub's other tools understand it: `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`,
    /// and for the cache `HF_HUB_CACHE`, `HF_HOME` or `XDG_CACHE_HOME`. `VECMILL_CACHE_DIR` goes before these.
    pub fn from_env() -> Self {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let home = || {
            let home = set("HF_HOME").map(PathBuf::from);
            let users = || set("XDG_CACHE_HOME").map(|cache| Path::new(&cache).join("huggingface"));
            let default = || set("HOME").map(|home| Path::new(&home).join(".cache/huggingface"));
            home.or_else(users).or_else(default).unwrap_or_else(|| std::env::temp_dir().join("huggingface"))
        };
        let ours = set("VECMILL_CACHE_DIR").map(|dir| Path::new(&dir).join("hub"));
        let cache = ours.or_else(|| set("HF_HUB_CACHE").map(PathBuf::from)).unwrap_or_else(|| home().join("hub"));
        let login = || std::fs::read_to_string(home().join("token")).ok().map(|token| token.trim().to_owned());
        Self {
            endpoint: set("HF_ENDPOINT").map(|endpoint| endpoint.trim_end_matches('/').to_owned()),
            cache,
            token: set("HF_TOKEN").or_else(login).filter(|token| !token.is_empty()),
            offline: set("HF_HUB_OFFLINE")
                .is_some_and(|value| !matches!(value.to_lowercase().as_str(), "0" | "false" | "no" | "off")),
            chunk_bytes: CHUNK_BYTES,
            retry_wait: RETRY_WAIT,
        }
    }

    /// The model's folder, downloaded unless it is in the cache. Blocks; a thread of a runtime may call it.
    pub fn fetch(&self, model: &str, revision: &str) -> Result<Snapshot, HubError> {
        // A commit never changes: what is there needs no question.
        if is_commit(revision)
            && let Some(snapshot) = self.complete(model, revision)
        {
            return Ok(snapshot);
        }
        if self.offline {
            return self.cached(model, revision).map_err(|missing| HubError::Offline {
                model: model.to_owned(),
                revision: revision.to_owned(),
                cache: self.cache.clone(),
                missing,
            });
        }
        // hf-hub is asynchronous. A runtime must not be waited for on a thread of another.
        std::thread::scope(|scope| {
            let downloading = scope.spawn(|| Download { hub: self, model, revision }.run());
            downloading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// What the cache has of a revision, or the first file that it lacks.
    fn cached(&self, model: &str, revision: &str) -> Result<Snapshot, String> {
        let commit = if is_commit(revision) {
            Some(revision.to_owned())
        } else {
            let reference = self.cache.join(repo(model, revision).folder_name()).join("refs").join(revision);
            std::fs::read_to_string(reference).ok().map(|commit| commit.trim().to_owned()).filter(|it| is_commit(it))
        };
        let commit = commit.ok_or_else(|| format!("the commit of {revision}"))?;
        let dir = self.dir(model, &commit);
        match missing(&dir) {
            None => Ok(Snapshot { dir, commit }),
            Some(missing) => Err(missing),
        }
    }

    fn complete(&self, model: &str, commit: &str) -> Option<Snapshot> {
        self.cached(model, commit).ok()
    }

    fn dir(&self, model: &str, commit: &str) -> PathBuf {
        Cache::new(self.cache.clone()).repo(repo(model, commit)).pointer_path(commit)
    }

    fn endpoint(&self) -> &str {
        self.endpoint.as_deref().unwrap_or("https://huggingface.co")
    }

    fn api(&self) -> Result<Api, ApiError> {
        // reqwest 0.12 takes the process' provider. Somebody else's choice would be the same one: there is no other.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_endpoint(self.endpoint().to_owned())
            .with_token(self.token.clone())
            .with_user_agent("vecmill", env!("CARGO_PKG_VERSION"))
            .with_progress(false)
            .with_max_files(CONNECTIONS)
            .with_chunk_size(Some(self.chunk_bytes))
            .build()
    }
}

fn repo(model: &str, revision: &str) -> Repo {
    Repo::with_revision(model.to_owned(), RepoType::Model, revision.to_owned())
}

/// The first file that the folder lacks.
fn missing(dir: &Path) -> Option<String> {
    let lacks = |name: &&str| !dir.join(name).exists();
    if let Some(name) = CARD[..REQUIRED].iter().copied().find(lacks) {
        return Some(name.to_owned());
    }
    match weight_files(dir) {
        Ok(names) => names.into_iter().find(|name| lacks(&name.as_str())),
        Err(_) => Some(INDEX.to_owned()),
    }
}

/// Whether a revision is a commit and not a branch or a tag.
pub fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a model's name is `owner/name` as the hub has them. It becomes part of a path and a URL.
pub fn is_model_name(model: &str) -> bool {
    model.split_once('/').is_some_and(|(owner, name)| is_path_part(owner) && is_path_part(name))
}

/// Whether a revision is a commit, a branch or a tag by its form. It becomes part of a path and a URL.
pub fn is_revision(revision: &str) -> bool {
    revision.len() <= 200 && revision.split('/').all(is_path_part)
}

fn is_path_part(part: &str) -> bool {
    !part.is_empty()
        && !part.starts_with('.')
        && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}
