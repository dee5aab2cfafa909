//! Bringing a revision's files to the cache.

use std::{collections::BTreeSet, error::Error, path::Path, time::Duration};

use hf_hub::{
    Cache,
    api::{
        RepoInfo,
        tokio::{ApiError, ApiRepo},
    },
};
use tracing::{info, warn};

use super::{
    CARD, Hub, HubError, INDEX, REQUIRED, Snapshot, WEIGHTS, is_commit,
    progress::{Progress, STALLED_AFTER},
    repo,
};
use crate::engine::{file_sha256, weight_files};

/// Tries of a request or file before the hub counts as out of reach.
const ATTEMPTS_MAX: u32 = 5;
/// For the list of a model's files.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// One download.
pub(super) struct Download<'a> {
    pub(super) hub: &'a Hub,
    pub(super) model: &'a str,
    pub(super) revision: &'a str,
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
    pub(super) fn run(&self) -> Result<Snapshot, HubError> {
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
