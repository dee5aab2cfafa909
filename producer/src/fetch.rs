//! Fetching a job's vectors: the parts, the summary, and one file with every row that has no vector.

use std::{
    io::Write,
    path::{Path, PathBuf},
    pin::pin,
};

use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use serde::Serialize;
use vecmill_signer::claims::{Digest, JobId};

use crate::{
    client::{GatewayClient, GatewayError, RemoteParts},
    contract::{JobKeys, PartEntry},
    status::{Results, StatusError, Watch},
    store::{Store, StoreError},
};

/// Downloads at once.
const DOWNLOADS_MAX: usize = 8;
/// A file that says whose folder it is.
const MARK: &str = ".vecmill-job";
/// Most bytes of a block of row errors; the writers cut far below.
const ERRORS_BYTES_MAX: usize = 64 << 20;

/// What was fetched.
#[derive(Clone, Debug, Serialize)]
pub struct Fetched {
    /// The folder.
    pub dir: PathBuf,
    /// Parts in the folder now.
    pub parts: usize,
    /// Of these, parts that were there already.
    pub kept: usize,
    /// Bytes downloaded.
    pub bytes: u64,
    /// Rows without a vector, in `errors.jsonl`.
    pub errors: u64,
    /// Whether the job is complete; if not, these are the parts finished so far.
    pub complete: bool,
}

impl Fetched {
    /// Sees the downloads through, several at once, and counts them.
    async fn take<D>(
        &mut self,
        downloads: impl Stream<Item = D>,
        progress: impl Fn(usize, usize),
    ) -> Result<(), FetchError>
    where
        D: Future<Output = Result<Option<u64>, FetchError>>,
    {
        let mut downloads = pin!(downloads.buffer_unordered(DOWNLOADS_MAX));
        let mut there = 0;
        while let Some(bytes) = downloads.try_next().await? {
            there += 1;
            progress(there, self.parts);
            match bytes {
                Some(bytes) => self.bytes += bytes,
                None => self.kept += 1,
            }
        }
        Ok(())
    }
}

/// Why a fetch failed. What has been fetched stays, and the next fetch goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// S3 failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What the job has come to can't be read.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// The gateway failed.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    /// The folder can't be written.
    #[error("{path} can't be written: {error}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The folder has another job's parts.
    #[error("{dir} holds parts of job {job}: fetch into another folder")]
    Foreign {
        /// The folder.
        dir: PathBuf,
        /// The job.
        job: String,
    },
    /// A part is not the one that the summary lists.
    #[error("{key} hashes to {found}, the job's summary says {expected}: fetch again, and report it if it stays so")]
    Digest {
        /// The part.
        key: String,
        /// In the summary.
        expected: Digest,
        /// As downloaded.
        found: Digest,
    },
}

/// Downloads what is there of the job into `dir`, checking every part against its digest; `None` where there is no such job.
/// `progress` is called with (parts there, parts in all).
pub async fn fetch(
    store: &Store,
    watch: &Watch,
    dir: &Path,
    progress: impl Fn(usize, usize),
) -> Result<Option<Fetched>, FetchError> {
    let Some(Results { keys, parts, summary, complete }) = watch.results().await? else { return Ok(None) };
    claim(dir, watch.job())?;
    let mut fetched = Fetched { dir: dir.to_owned(), parts: parts.len(), kept: 0, bytes: 0, errors: 0, complete };
    let downloads = stream::iter(&parts).map(|part| fetch_part(store, &keys, part, dir));
    fetched.take(downloads, progress).await?;
    fetched.errors = fetch_errors(store, &keys, &parts, dir).await?;
    if let Some(summary) = summary {
        write_summary(dir, &summary)?;
    }
    Ok(Some(fetched))
}

/// [`fetch`] through a gateway; `None` where there is no such job.
pub async fn fetch_from_gateway(
    client: &GatewayClient,
    job: &JobId,
    dir: &Path,
    progress: impl Fn(usize, usize),
) -> Result<Option<Fetched>, FetchError> {
    let Some(RemoteParts { data: parts, complete }) = client.parts(job).await? else { return Ok(None) };
    claim(dir, job)?;
    let mut fetched = Fetched { dir: dir.to_owned(), parts: parts.len(), kept: 0, bytes: 0, errors: 0, complete };
    let downloads = stream::iter(&parts).map(|part| async move {
        let name = format!("part-{:06}.parquet", part.part);
        let download = async |path: &Path| Ok(client.part(job, part.part, path).await?);
        place(dir, &name, name.clone(), part.sha256, download).await
    });
    fetched.take(downloads, progress).await?;
    let path = dir.join("errors.jsonl");
    let write = |error| FetchError::Write { path: path.clone(), error };
    if client.errors(job, &path).await? == 0 {
        std::fs::remove_file(&path).map_err(write)?;
    } else {
        let lines = std::fs::read(&path).map_err(write)?;
        fetched.errors = lines.iter().filter(|&&byte| byte == b'\n').count() as u64;
    }
    if let Some(summary) = client.manifest(job).await? {
        write_summary(dir, &summary)?;
    }
    Ok(Some(fetched))
}

/// Makes the folder this job's. Two jobs in one folder could not be told apart.
fn claim(dir: &Path, job: &JobId) -> Result<(), FetchError> {
    let write = |path: PathBuf| |error| FetchError::Write { path, error };
    std::fs::create_dir_all(dir).map_err(write(dir.to_owned()))?;
    let mark = dir.join(MARK);
    let of = match std::fs::read_to_string(&mark) {
        Ok(of) => Some(of.trim().to_owned()),
        Err(_) => summary_of(dir),
    };
    match of {
        Some(of) if of != job.as_str() => Err(FetchError::Foreign { dir: dir.to_owned(), job: of }),
        Some(_) => Ok(()),
        None => std::fs::write(&mark, format!("{job}\n")).map_err(write(mark)),
    }
}

/// The job whose summary lies in a folder: what was fetched before folders were marked.
fn summary_of(dir: &Path) -> Option<String> {
    let summary = std::fs::read(dir.join("_manifest.json")).ok()?;
    let summary: serde_json::Value = serde_json::from_slice(&summary).ok()?;
    Some(summary["job"].as_str()?.to_owned())
}

fn write_summary(dir: &Path, summary: &impl Serialize) -> Result<(), FetchError> {
    let path = dir.join("_manifest.json");
    let bytes = serde_json::to_vec_pretty(summary).unwrap_or_default();
    std::fs::write(&path, bytes).map_err(|error| FetchError::Write { path, error })
}

/// Downloads one part unless it is there; gives the bytes downloaded.
async fn fetch_part(store: &Store, keys: &JobKeys, part: &PartEntry, dir: &Path) -> Result<Option<u64>, FetchError> {
    let (name, key) = (format!("part-{:06}.parquet", part.chunk), keys.object(&part.path));
    let download = async |path: &Path| Ok(store.download(&key, path).await?);
    place(dir, &name, key.clone(), part.sha256, download).await
}

/// Brings a file to its place unless it is there; gives the bytes downloaded. `key` is what it is called where it comes from.
async fn place(
    dir: &Path,
    name: &str,
    key: String,
    expected: Digest,
    download: impl AsyncFnOnce(&Path) -> Result<(u64, Digest), FetchError>,
) -> Result<Option<u64>, FetchError> {
    let path = dir.join(name);
    if std::fs::read(&path).is_ok_and(|bytes| Digest::of(&bytes) == expected) {
        return Ok(None);
    }
    // Beside its place first, so that a part under its own name is always whole. Under a name of its own: others may be
    // fetching into the same folder.
    let write = |error| FetchError::Write { path: path.clone(), error };
    let partial = tempfile::Builder::new().prefix(&format!(".{name}.")).suffix(".partial").tempfile_in(dir);
    let partial = partial.map_err(write)?.into_temp_path();
    let (bytes, found) = download(&partial).await?;
    if expected != found {
        return Err(FetchError::Digest { key, expected, found });
    }
    partial.persist(&path).map_err(|error| write(error.error))?;
    Ok(Some(bytes))
}

/// Gathers rejected and failed rows into `errors.jsonl`; gives their number. No file when there are none.
async fn fetch_errors(store: &Store, keys: &JobKeys, parts: &[PartEntry], dir: &Path) -> Result<u64, FetchError> {
    let path = dir.join("errors.jsonl");
    let rejected = store.list(&keys.rejected_prefix(), None).await?.into_iter().map(|object| object.key);
    let failed = parts.iter().filter_map(|part| part.errors.as_ref()).map(|path| keys.object(path));
    let objects: Vec<String> = rejected.chain(failed).collect();
    if objects.is_empty() {
        return Ok(0);
    }
    let write = |error| FetchError::Write { path: path.clone(), error };
    let mut file = std::fs::File::create(&path).map_err(write)?;
    let mut errors = 0;
    for key in objects {
        let Some(lines) = store.get(&key, ERRORS_BYTES_MAX).await? else { continue };
        errors += lines.iter().filter(|&&byte| byte == b'\n').count() as u64;
        file.write_all(&lines).map_err(write)?;
    }
    Ok(errors)
}
