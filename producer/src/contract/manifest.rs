//! The manifest: every chunk of a job with its digest. The grant vouches for the SHA-256 of its raw bytes.

use serde::{Deserialize, Serialize};
use vecmill_signer::claims::{Digest, JobId};

use super::{CONTRACT_VERSION, JobSpec, SpecError};
use crate::read::InputFormat;

/// Most chunks in a job. At about 130 bytes an entry the manifest stays below 64 MiB, which a worker may hold
/// for several jobs at once; 500,000 chunks of 1,000 rows are 500 million texts.
pub const CHUNKS_MAX: usize = 500_000;

/// Most bytes of a manifest that a reader will take: [`CHUNKS_MAX`] entries and their surroundings.
pub const MANIFEST_BYTES_MAX: usize = 80 << 20;

/// Bytes of text that stand for a stored byte of a chunk where nobody counted: zstd makes text three to five times smaller.
pub const TEXT_PER_CHUNK_BYTE: u64 = 4;

/// One chunk of the job. Its number is its place in [`Manifest::chunks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkEntry {
    /// Texts in the chunk.
    pub rows: u32,
    /// Bytes of the object as stored, compressed.
    pub bytes: u32,
    /// SHA-256 of the object as stored.
    pub sha256: Digest,
}

/// What the chunks were cut from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// SHA-256 of the input's raw bytes.
    pub sha256: Digest,
    /// Bytes of the input.
    pub bytes: u64,
    /// How it was read.
    pub format: InputFormat,
}

/// The list of a job's chunks. Holds no time and no name, so that the same corpus gives the same bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`CONTRACT_VERSION`].
    pub version: u32,
    /// The job.
    pub job: JobId,
    /// The job's parameters.
    pub spec: JobSpec,
    /// What the chunks were cut from.
    pub input: Input,
    /// Texts in all chunks.
    pub rows: u64,
    /// Input rows that could not be used; each is named in the `rejected` blocks.
    pub rejected: u64,
    /// Bytes of text in all chunks, 4 for each token id; absent in manifests from before it was counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_bytes: Option<u64>,
    /// The chunks in input order.
    pub chunks: Vec<ChunkEntry>,
}

/// Why a manifest is not acceptable.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Its bytes are not those that the grant vouches for.
    #[error("the manifest hashes to {found}, the grant is for {granted}")]
    Digest {
        /// The digest in the grant.
        granted: Digest,
        /// The digest of the bytes at hand.
        found: Digest,
    },
    /// It is not a manifest of this version.
    #[error("the manifest can't be read: {0}")]
    Malformed(String),
    /// Its parameters are out of range.
    #[error("the manifest's parameters are refused: {0}")]
    Spec(#[from] SpecError),
}

impl Manifest {
    /// The bytes that are stored and hashed.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads a manifest whose bytes must hash to `granted`.
    pub fn verify(bytes: &[u8], granted: Digest) -> Result<Self, ManifestError> {
        let found = Digest::of(bytes);
        if found != granted {
            return Err(ManifestError::Digest { granted, found });
        }
        Self::parse(bytes)
    }

    /// Reads a manifest and checks that its parts agree with one another.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let manifest: Self =
            serde_json::from_slice(bytes).map_err(|error| ManifestError::Malformed(error.to_string()))?;
        if manifest.version != CONTRACT_VERSION {
            return Err(ManifestError::Malformed(format!("version {} is unknown", manifest.version)));
        }
        if manifest.chunks.len() > CHUNKS_MAX {
            return Err(ManifestError::Malformed(format!("{} chunks are too many", manifest.chunks.len())));
        }
        let rows: u64 = manifest.chunks.iter().map(|chunk| u64::from(chunk.rows)).sum();
        if rows != manifest.rows {
            return Err(ManifestError::Malformed(format!("it says {} rows, its chunks have {rows}", manifest.rows)));
        }
        manifest.spec.check()?;
        Ok(manifest)
    }

    /// Bytes of text in all chunks, 4 for each token id. Where the manifest does not say, what zstd usually makes of text:
    /// [`TEXT_PER_CHUNK_BYTE`] times the chunks' bytes, and a byte a row at least.
    pub fn text_bytes(&self) -> u64 {
        self.text_bytes.unwrap_or_else(|| {
            let stored: u64 = self.chunks.iter().map(|chunk| u64::from(chunk.bytes)).sum();
            stored.saturating_mul(TEXT_PER_CHUNK_BYTE).max(self.rows)
        })
    }

    /// Texts in a chunk; none in one that the job does not have.
    pub fn rows_of(&self, chunk: u32) -> u64 {
        self.chunks.get(chunk as usize).map_or(0, |entry| u64::from(entry.rows))
    }

    /// The number of chunks; at most [`CHUNKS_MAX`], so it fits.
    pub fn chunk_count(&self) -> u32 {
        self.chunks.len() as u32
    }
}
