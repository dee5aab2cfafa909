//! Where a corpus comes from: a file, standard input, or an S3 object.
//!
//! A corpus is read twice, first for its digest (the job's identity) and then for its rows, and Parquet needs to
//! seek. So what is not a file is first spooled into one: disk is cheap, memory stays flat.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use tempfile::TempPath;
use vecmill_signer::claims::Digest;

use crate::{
    digest::Hasher,
    read::{Stop, stoppable},
    store::{Store, StoreError},
};

/// Most bytes of a corpus that is spooled to local disk: a hundred million texts of 2.5 KiB. A pipe or an object without end must not
/// fill the disk; a file that is there already may be as long as it is.
const SPOOL_BYTES_MAX: u64 = 256 << 30;
/// Bytes read at once while hashing or spooling.
const BLOCK_BYTES: usize = 1 << 20;

/// A place to read a corpus from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A local file.
    File(PathBuf),
    /// Standard input, named `-`.
    Stdin,
    /// `s3://bucket/key`.
    S3 {
        /// The bucket.
        bucket: String,
        /// The object's key.
        key: String,
    },
    /// An object of Vecmill's own bucket: a file that was uploaded.
    Stored {
        /// The object's key.
        key: String,
        /// What its owner calls it.
        name: String,
    },
}

/// Why a corpus can't be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Opening or reading failed.
    #[error("{name} can't be read: {error}")]
    Read {
        /// The corpus.
        name: String,
        /// Why.
        error: std::io::Error,
    },
    /// The temporary file could not be written.
    #[error("{name} can't be spooled to a temporary file (set TMPDIR to a folder with room for it): {error}")]
    Spool {
        /// The corpus.
        name: String,
        /// Why.
        error: std::io::Error,
    },
    /// S3 failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Longer than what is spooled at most.
    #[error("{name} has more than {SPOOL_BYTES_MAX} bytes: submit it in parts, or as a file")]
    TooLong {
        /// The corpus.
        name: String,
    },
}

/// A corpus on local disk with its digest.
#[derive(Debug)]
pub struct Spooled {
    /// The file to read.
    pub path: PathBuf,
    /// Bytes of the corpus as it came.
    pub bytes: u64,
    /// SHA-256 of those bytes.
    pub sha256: Digest,
    /// What the user called it.
    pub name: String,
    /// Keeps the temporary file, if there is one, until the corpus has been cut.
    spool: Option<TempPath>,
}

impl Spooled {
    /// Whether the bytes are still those that were hashed. A file that is not our own may be written to meanwhile.
    pub async fn is_unchanged(&self) -> Result<bool, SourceError> {
        if self.spool.is_some() {
            return Ok(true);
        }
        let (path, name, known) = (self.path.clone(), self.name.clone(), (self.bytes, self.sha256));
        let hashed = stoppable(move |stop| {
            let file = std::fs::File::open(&path)?;
            Ok(copy(file, &stop, |_| Ok(()))? == known)
        });
        hashed.await.map_err(|error| SourceError::Read { name, error })
    }
}

impl std::str::FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "-" {
            return Ok(Self::Stdin);
        }
        let Some(rest) = text.strip_prefix("s3://") else { return Ok(Self::File(text.into())) };
        match rest.split_once('/') {
            Some((bucket, key)) if !bucket.is_empty() && !key.is_empty() => {
                Ok(Self::S3 { bucket: bucket.to_owned(), key: key.to_owned() })
            }
            _ => Err(format!("{text:?} names no object: write s3://bucket/key")),
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Stdin => f.write_str("standard input"),
            Self::S3 { bucket, key } => write!(f, "s3://{bucket}/{key}"),
            Self::Stored { name, .. } => f.write_str(name),
        }
    }
}

impl Source {
    /// Brings the corpus to local disk where it is not there already, and hashes it. Blocking work runs on a
    /// thread of its own.
    pub async fn spool(&self, store: &Store) -> Result<Spooled, SourceError> {
        let name = self.to_string();
        let object = match self {
            Self::S3 { bucket, key } => Some((Some(bucket.as_str()), key)),
            Self::Stored { key, .. } => Some((None, key)),
            Self::File(_) | Self::Stdin => None,
        };
        if let Some((bucket, key)) = object {
            let path = temporary(&name)?;
            let downloaded = store.download_within(bucket, key, &path, SPOOL_BYTES_MAX).await;
            return match downloaded {
                Ok((bytes, sha256)) => Ok(Spooled { path: path.to_path_buf(), bytes, sha256, name, spool: Some(path) }),
                Err(error) if error.is_too_long() => Err(SourceError::TooLong { name }),
                Err(error) => Err(error.into()),
            };
        }
        let source = self.clone();
        stoppable(move |stop| match &source {
            Self::File(path) => hash_file(path, name, &stop),
            _ => spool(std::io::stdin().lock(), name, &stop),
        })
        .await
    }
}

fn hash_file(path: &Path, name: String, stop: &Stop) -> Result<Spooled, SourceError> {
    let read = |error| SourceError::Read { name: name.clone(), error };
    let file = std::fs::File::open(path).map_err(read)?;
    let metadata = file.metadata().map_err(read)?;
    if metadata.is_dir() {
        return Err(read(std::io::Error::other("it is a folder; name a file")));
    }
    if !metadata.is_file() {
        // A pipe gives its bytes once.
        return spool(file, name, stop);
    }
    let (bytes, sha256) = copy(file, stop, |_| Ok(())).map_err(read)?;
    Ok(Spooled { path: path.to_owned(), bytes, sha256, name, spool: None })
}

fn spool(from: impl Read, name: String, stop: &Stop) -> Result<Spooled, SourceError> {
    let path = temporary(&name)?;
    let mut file = std::fs::File::create(&path).map_err(|error| SourceError::Spool { name: name.clone(), error })?;
    let (bytes, sha256) =
        copy(from.take(SPOOL_BYTES_MAX + 1), stop, |block| std::io::Write::write_all(&mut file, block))
            .map_err(|error| SourceError::Read { name: name.clone(), error })?;
    if bytes > SPOOL_BYTES_MAX {
        return Err(SourceError::TooLong { name });
    }
    Ok(Spooled { path: path.to_path_buf(), bytes, sha256, name, spool: Some(path) })
}

fn temporary(name: &str) -> Result<TempPath, SourceError> {
    let file = tempfile::Builder::new().prefix("vecmill-").tempfile();
    Ok(file.map_err(|error| SourceError::Spool { name: name.to_owned(), error })?.into_temp_path())
}

fn copy(
    mut from: impl Read,
    stop: &Stop,
    mut to: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> std::io::Result<(u64, Digest)> {
    let mut hasher = Hasher::default();
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        stop.check()?;
        match from.read(&mut block) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(bytes) => {
                hasher.update(&block[..bytes]);
                to(&block[..bytes])?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
