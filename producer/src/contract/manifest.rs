//! The manifest: every chunk of a job with its digest. The grant vouches for the SHA-256 of its raw bytes.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, SeqAccess, Visitor},
};
use vecmill_signer::claims::{Digest, JobId};

use super::{CHUNK_OBJECT_BYTES_MAX, CHUNK_ROWS_MAX, CHUNK_TEXT_BYTES_MAX, CONTRACT_VERSION, JobSpec, SpecError};
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
    /// Input rows that could not be used; the `rejected` blocks name each, or the first of very many.
    pub rejected: u64,
    /// Bytes of text in all chunks, 4 for each token id; absent in manifests from before it was counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_bytes: Option<u64>,
    /// The chunks in input order.
    #[serde(deserialize_with = "chunks")]
    pub chunks: Vec<ChunkEntry>,
}

/// Reads entries as long as a job may have more of them.
fn chunks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ChunkEntry>, D::Error> {
    struct Entries;

    impl<'de> Visitor<'de> for Entries {
        type Value = Vec<ChunkEntry>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of chunks")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
            let mut chunks = Vec::new();
            while let Some(entry) = entries.next_element::<ChunkEntry>()? {
                if chunks.len() == CHUNKS_MAX {
                    return Err(A::Error::custom(format!("there are more than {CHUNKS_MAX} chunks")));
                }
                chunks.push(entry);
            }
            Ok(chunks)
        }
    }

    deserializer.deserialize_seq(Entries)
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
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::Malformed(format!("{} bytes are too many", bytes.len())));
        }
        let manifest: Self =
            serde_json::from_slice(bytes).map_err(|error| ManifestError::Malformed(error.to_string()))?;
        if manifest.version != CONTRACT_VERSION {
            return Err(ManifestError::Malformed(format!("version {} is unknown", manifest.version)));
        }
        // What no producer cuts is no chunk: a worker holds it in memory, and a message of each costs the broker.
        let odd = manifest.chunks.iter().position(|chunk| {
            let (rows, bytes) = (chunk.rows, chunk.bytes as usize);
            !(1..=CHUNK_ROWS_MAX).contains(&rows) || bytes > CHUNK_OBJECT_BYTES_MAX
        });
        if let Some(number) = odd {
            let ChunkEntry { rows, bytes, .. } = manifest.chunks[number];
            return Err(ManifestError::Malformed(format!(
                "chunk {number} has {rows} rows in {bytes} bytes; a chunk has 1 to {CHUNK_ROWS_MAX}, in at most \
                 {CHUNK_OBJECT_BYTES_MAX}"
            )));
        }
        let rows: u64 = manifest.chunks.iter().map(|chunk| u64::from(chunk.rows)).sum();
        if rows != manifest.rows {
            return Err(ManifestError::Malformed(format!("it says {} rows, its chunks have {rows}", manifest.rows)));
        }
        let most = manifest.chunks.len() as u64 * CHUNK_TEXT_BYTES_MAX as u64;
        if let Some(text_bytes) = manifest.text_bytes.filter(|bytes| !(manifest.rows..=most).contains(bytes)) {
            let rows = manifest.rows;
            return Err(ManifestError::Malformed(format!("{rows} rows can't have {text_bytes} bytes of text")));
        }
        manifest.spec.check()?;
        Ok(manifest)
    }

    /// Bytes of text in all chunks, 4 for each token id: what the job's tokens can be told from before anybody has counted them, however
    /// small the corpus was compressed. Where the manifest does not say, what zstd usually makes of text: [`TEXT_PER_CHUNK_BYTE`]
    /// times the chunks' bytes, and a byte a row at least.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{Dtype, Truncate};

    fn manifest(chunks: Vec<ChunkEntry>) -> Manifest {
        let spec = JobSpec {
            model: "m".to_owned(),
            dimensions: 32,
            dtype: Dtype::F32,
            instruction: None,
            truncate: Truncate::None,
            precision: None,
        };
        Manifest {
            version: CONTRACT_VERSION,
            job: "ab".repeat(16).try_into().expect("a job"),
            spec,
            input: Input { sha256: Digest::of(b"x"), bytes: 1, format: InputFormat::Jsonl },
            rows: chunks.iter().map(|chunk| u64::from(chunk.rows)).sum(),
            rejected: 0,
            text_bytes: None,
            chunks,
        }
    }

    fn chunk(rows: u32, bytes: u32) -> ChunkEntry {
        ChunkEntry { rows, bytes, sha256: Digest::of(b"x") }
    }

    #[test]
    fn chunks_that_no_producer_cuts_are_refused() {
        let largest = chunk(CHUNK_ROWS_MAX, CHUNK_OBJECT_BYTES_MAX as u32);
        assert!(Manifest::parse(&manifest(vec![largest, chunk(1, 1)]).to_bytes()).is_ok());
        for odd in [chunk(0, 1), chunk(CHUNK_ROWS_MAX + 1, 1), chunk(1, CHUNK_OBJECT_BYTES_MAX as u32 + 1)] {
            let error =
                Manifest::parse(&manifest(vec![chunk(1, 1), odd]).to_bytes()).expect_err("a refusal").to_string();
            assert!(error.contains("chunk 1 has"), "{error}");
        }
        let many = manifest(vec![chunk(1, 1); CHUNKS_MAX + 1]).to_bytes();
        let error = Manifest::parse(&many).expect_err("a refusal").to_string();
        assert!(error.contains("more than"), "{error}");
        assert!(Manifest::parse(&vec![b' '; MANIFEST_BYTES_MAX + 1]).is_err());
    }

    #[test]
    fn a_manifest_of_before_says_nothing_of_its_text_and_is_estimated() {
        let mut manifest = manifest(vec![chunk(10, 1000), chunk(5, 500)]);
        let old = manifest.to_bytes();
        assert!(!String::from_utf8_lossy(&old).contains("text_bytes"));
        assert_eq!(Manifest::parse(&old).expect("a manifest").text_bytes(), 1500 * TEXT_PER_CHUNK_BYTE);
        // Said, it must be possible: at least a byte a row, at most what the chunks can hold.
        for (said, good) in [(15, true), (14, false), (32 << 20, true), ((32 << 20) + 1, false)] {
            manifest.text_bytes = Some(said);
            let parsed = Manifest::parse(&manifest.to_bytes());
            assert_eq!(parsed.is_ok(), good, "{said}");
            assert!(parsed.map_or(!good, |parsed| parsed.text_bytes() == said));
        }
    }
}
