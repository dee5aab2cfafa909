//! Models from the Hugging Face hub, in the cache that its other tools use. What is there is not asked for again; what
//! broke goes on where it was.
//!
//! A branch is resolved to its commit before anything is downloaded, so that all files are of one commit, and that commit
//! is what gets recorded. Small files come first and weights last: where the weights are complete, everything is.

use std::{
    collections::BTreeSet,
    error::Error,
    io::IsTerminal,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hf_hub::{
    Cache, Repo, RepoType,
    api::{
        RepoInfo,
        tokio::{Api, ApiBuilder, ApiError, ApiRepo},
    },
};
// Only there to choose its TLS.
use hf_hub_reqwest as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing::{info, warn};

use crate::engine::{file_sha256, weight_files};

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
/// Tries of a request or file before the hub counts as out of reach.
const ATTEMPTS_MAX: u32 = 5;
/// [`Hub::retry_wait`]: with five tries, a hub is given up after about 8 seconds.
const RETRY_WAIT: Duration = Duration::from_millis(500);
/// For the list of a model's files.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// A connection on which nothing comes for this long is taken for dead.
const STALLED_AFTER: Duration = Duration::from_secs(60);
/// Between two lines of the log about a download.
const LOG_EVERY: Duration = Duration::from_secs(10);

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

/// One download.
struct Download<'a> {
    hub: &'a Hub,
    model: &'a str,
    revision: &'a str,
}

/// Why one try failed.
enum Failed {
    Api(ApiError),
    /// No answer came.
    Silent,
    /// Nothing came any more.
    Stalled,
    /// The bytes are not those that the hub names.
    Digest,
}

impl Download<'_> {
    fn run(&self) -> Result<Snapshot, HubError> {
        let known = self.hub.cached(self.model, self.revision);
        // With everything at hand, nobody should have to wait for a network that is not there.
        let attempts_max = if known.is_ok() { 1 } else { ATTEMPTS_MAX };
        let listing = self.trying(self.revision, "the list of files", attempts_max, async |files| {
            tokio::time::timeout(ANSWER_MAX, files.info()).await.map_err(|_| Failed::Silent)?.map_err(Failed::Api)
        });
        let info = match (listing, known) {
            (Ok(info), _) => info,
            (Err(error @ HubError::Unreachable { .. }), Ok(snapshot)) => {
                warn!(model = self.model, commit = snapshot.commit, %error, "taking the model from the cache");
                return Ok(snapshot);
            }
            (Err(HubError::Unreachable { model, endpoint, reason, cache, .. }), Err(missing)) => {
                return Err(HubError::Unreachable { model, endpoint, reason, cache, missing });
            }
            (Err(error), _) => return Err(error),
        };
        let RepoInfo { sha: commit, siblings } = info;
        // It becomes a folder's name.
        if !is_commit(&commit) {
            return Err(self.malformed(format!("its commit is {commit:?}")));
        }
        info!(model = self.model, revision = self.revision, commit, "fetching the model");
        let there: BTreeSet<&str> = siblings.iter().map(|file| file.rfilename.as_str()).collect();
        let dir = self.hub.dir(self.model, &commit);
        for (place, file) in CARD.into_iter().enumerate() {
            if there.contains(file) {
                self.file(&commit, &dir, file)?;
            } else if place < REQUIRED {
                return Err(self.not_a_model(file));
            }
        }
        if there.contains(WEIGHTS) {
            self.file(&commit, &dir, WEIGHTS)?;
        } else if there.contains(INDEX) {
            self.file(&commit, &dir, INDEX)?;
            for shard in weight_files(&dir).map_err(|error| self.malformed(error.to_string()))? {
                if !there.contains(shard.as_str()) {
                    return Err(self.not_a_model(&shard));
                }
                self.file(&commit, &dir, &shard)?;
            }
        } else {
            return Err(self.not_a_model(WEIGHTS));
        }
        let cache = Cache::new(self.hub.cache.clone());
        // For the next start without a network.
        cache.repo(repo(self.model, self.revision)).create_ref(&commit).map_err(|error| self.cache_failed(&error))?;
        Ok(Snapshot { dir, commit })
    }

    /// Brings one file to the cache, unless it is there.
    fn file(&self, commit: &str, dir: &Path, name: &str) -> Result<(), HubError> {
        let path = dir.join(name);
        if path.exists() {
            return Ok(());
        }
        self.trying(commit, name, ATTEMPTS_MAX, async |files: ApiRepo| {
            let progress = Progress::new();
            let stalled = progress.stalled();
            tokio::select! {
                downloaded = files.download_with_progress(name, progress.clone()) => drop(downloaded?),
                () = stalled => return Err(Failed::Stalled),
            }
            if is_what_was_named(&path) { Ok(()) } else { Err(Failed::Digest) }
        })
    }

    /// Tries until it works, or can't.
    fn trying<T>(
        &self,
        revision: &str,
        what: &str,
        attempts_max: u32,
        work: impl AsyncFn(ApiRepo) -> Result<T, Failed>,
    ) -> Result<T, HubError> {
        let mut wait = self.hub.retry_wait;
        for attempt in 1.. {
            // A runtime for each try: what a failed one has left running ends with it.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|error| self.cache_failed(&error))?;
            let outcome = runtime.block_on(async {
                let api = self.hub.api().map_err(Failed::Api)?;
                work(api.repo(repo(self.model, revision))).await
            });
            runtime.shutdown_background();
            let failed = match outcome {
                Ok(value) => return Ok(value),
                Err(failed) => failed,
            };
            if let Some(error) = self.last_word(&failed, revision, what) {
                return Err(error);
            }
            let reason = failed.reason();
            if attempt == attempts_max {
                return Err(HubError::Unreachable {
                    model: self.model.to_owned(),
                    endpoint: self.hub.endpoint().to_owned(),
                    reason,
                    cache: self.hub.cache.clone(),
                    missing: what.to_owned(),
                });
            }
            warn!(model = self.model, what, attempt, reason, "the download broke; trying again");
            std::thread::sleep(wait);
            wait *= 2;
        }
        unreachable!("the loop has no end of its own")
    }

    /// What another try would not change.
    fn last_word(&self, failed: &Failed, revision: &str, what: &str) -> Option<HubError> {
        match failed {
            Failed::Api(ApiError::RequestError(error)) => {
                let status = error.status()?;
                let passing = status.is_server_error() || matches!(status.as_u16(), 408 | 429);
                (!passing).then(|| HubError::Refused {
                    endpoint: self.hub.endpoint().to_owned(),
                    what: what.to_owned(),
                    model: self.model.to_owned(),
                    revision: revision.to_owned(),
                    status: status.as_u16(),
                })
            }
            Failed::Api(ApiError::IoError(error)) => Some(self.cache_failed(error)),
            Failed::Api(ApiError::LockAcquisition(lock)) => {
                Some(self.cache_failed(&format!("another process is downloading the same file ({})", lock.display())))
            }
            Failed::Api(
                error @ (ApiError::MissingHeader(_)
                | ApiError::InvalidHeader(_)
                | ApiError::InvalidHeaderValue(_)
                | ApiError::ToStr(_)
                | ApiError::ParseIntError(_)),
            ) => Some(self.malformed(error.to_string())),
            Failed::Api(_) | Failed::Silent | Failed::Stalled | Failed::Digest => None,
        }
    }

    fn malformed(&self, reason: String) -> HubError {
        HubError::Malformed { endpoint: self.hub.endpoint().to_owned(), model: self.model.to_owned(), reason }
    }

    fn not_a_model(&self, missing: &str) -> HubError {
        HubError::NotAModel { model: self.model.to_owned(), missing: missing.to_owned() }
    }

    fn cache_failed(&self, reason: &dyn std::fmt::Display) -> HubError {
        HubError::Cache { cache: self.hub.cache.clone(), reason: reason.to_string() }
    }
}

impl From<ApiError> for Failed {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

impl Failed {
    fn reason(&self) -> String {
        match self {
            // The innermost says what happened, the others where.
            Self::Api(error) => {
                let mut cause: &dyn Error = error;
                while let Some(inner) = cause.source() {
                    cause = inner;
                }
                cause.to_string()
            }
            Self::Silent => format!("no answer came in {} s", ANSWER_MAX.as_secs()),
            Self::Stalled => format!("nothing came for {} s", STALLED_AFTER.as_secs()),
            Self::Digest => "the file's SHA-256 is not the one that the hub names".to_owned(),
        }
    }
}

/// Shows how far a file is: a bar where somebody looks, lines of the log elsewhere.
#[derive(Clone)]
struct Progress {
    bar: Option<ProgressBar>,
    bytes: Arc<AtomicU64>,
    file: Arc<Mutex<(String, u64, Instant)>>,
}

impl Progress {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { bar, bytes: Arc::default(), file: Arc::new(Mutex::new((String::new(), 0, Instant::now()))) }
    }

    /// Returns once nothing has come for [`STALLED_AFTER`].
    fn stalled(&self) -> impl Future<Output = ()> + use<> {
        let bytes = self.bytes.clone();
        async move {
            let mut before = None;
            loop {
                let now = bytes.load(Ordering::Relaxed);
                if before == Some(now) {
                    return;
                }
                before = Some(now);
                tokio::time::sleep(STALLED_AFTER).await;
            }
        }
    }
}

impl hf_hub::api::tokio::Progress for Progress {
    async fn init(&mut self, size: usize, filename: &str) {
        if let Some(bar) = &self.bar {
            bar.set_length(size as u64);
            bar.set_message(filename.to_owned());
        } else {
            info!(file = filename, bytes = size, "downloading");
        }
        if let Ok(mut file) = self.file.lock() {
            *file = (filename.to_owned(), size as u64, Instant::now());
        }
    }

    async fn update(&mut self, size: usize) {
        let done = self.bytes.fetch_add(size as u64, Ordering::Relaxed) + size as u64;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        } else if let Ok(mut file) = self.file.lock()
            && file.2.elapsed() >= LOG_EVERY
        {
            file.2 = Instant::now();
            info!(file = file.0, done, bytes = file.1, "downloading");
        }
    }

    async fn finish(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
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

/// Large files are named by their SHA-256 in the cache. One that is another is removed, so that the next try begins anew.
fn is_what_was_named(path: &Path) -> bool {
    let Ok(blob) = path.canonicalize() else { return false };
    let name = blob.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let is_digest = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_digest || file_sha256(&blob).is_ok_and(|digest| digest == name.to_lowercase()) {
        return true;
    }
    let _ = std::fs::remove_file(&blob);
    let _ = std::fs::remove_file(path);
    false
}

/// Whether a revision is a commit and not a branch or a tag.
pub fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a model's name is `owner/name` as the hub has them. It becomes part of a path and a URL.
pub fn is_model_name(model: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    model.split_once('/').is_some_and(|(owner, name)| part(owner) && part(name))
}

/// Whether a revision is a commit, a branch or a tag by its form. It becomes part of a path and a URL.
pub fn is_revision(revision: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    revision.len() <= 200 && revision.split('/').all(part)
}
