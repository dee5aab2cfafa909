//! What becomes of a job: the records that workers leave on S3 and that status is read from.

use serde::{Deserialize, Serialize};
use vecmill_signer::claims::{Digest, JobId};

use super::JobSpec;

/// `submission.json`: when a job from before there were runs was handed in and until when its grant lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    /// [`super::CONTRACT_VERSION`].
    pub version: u32,
    /// When, as RFC 3339.
    pub submitted_at: jiff::Timestamp,
    /// When the grant expires: chunks not done by then are never computed.
    pub expires_at: jiff::Timestamp,
    /// Set once every chunk's message was confirmed by the broker.
    pub published: bool,
    /// What the submitter called the input.
    pub name: String,
    /// The lane its messages went to, as the grant numbers it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lane: Option<u32>,
}

/// `cancelled.json`: the tenant wants no more of a job from before there were runs, or of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancelled {
    /// When, as RFC 3339.
    pub at: jiff::Timestamp,
}

/// `paused.json`: the tenant wants nothing more computed for now of a job from before there were runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paused {
    /// When, as RFC 3339.
    pub at: jiff::Timestamp,
}

/// `ended/chunk-….json`: what a chunk came to in a run. Put once: a second computation that finds one leaves it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Outcome {
    /// Its vectors and audit record are durable.
    Done(Box<ChunkResult>),
    /// It was given up.
    Dead(DeadChunk),
}

/// A chunk whose vectors and audit record are durable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkResult {
    /// [`super::CONTRACT_VERSION`].
    pub version: u32,
    /// The chunk's number.
    pub chunk: u32,
    /// Rows with a vector.
    pub rows: u32,
    /// Rows that failed; each is a line of the chunk's errors object.
    pub failed: u32,
    /// Of the rows with a vector, those whose text was cut off; the part's column `truncated` names them.
    #[serde(default)]
    pub truncated: u32,
    /// Exact tokens, as charged to the tenant.
    pub tokens: u64,
    /// Bytes of the Parquet part.
    pub part_bytes: u64,
    /// SHA-256 of the Parquet part.
    pub part_sha256: Digest,
    /// Where the part lies, from the life's prefix; absent in records from before parts were named by their digests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
    /// Where the failed rows lie, from the life's prefix; absent where none failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errors: Option<String>,
    /// SHA-256 of the vectors' little-endian bytes in row order.
    pub vectors_sha256: Digest,
    /// The revision of the model that computed them.
    pub revision: String,
    /// The commit of the model's repository, where it came from the Hugging Face hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// What computed them, and in which precision, for example `avx512-bf16`; absent in records from before it was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute: Option<String>,
}

impl ChunkResult {
    /// Where the part lies, from the life's prefix.
    pub fn part_path(&self) -> String {
        self.part.clone().unwrap_or_else(|| format!("vectors/part-{:06}.parquet", self.chunk))
    }

    /// Where the failed rows lie, from the life's prefix, if any failed.
    pub fn errors_path(&self) -> Option<String> {
        let old = || (self.part.is_none() && self.failed > 0).then(|| format!("errors/part-{:06}.jsonl", self.chunk));
        self.errors.clone().or_else(old)
    }
}

/// A chunk that was given up, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadChunk {
    /// The chunk's number.
    pub chunk: u32,
    /// A stable word that a program can branch on, for example `bad_digest`.
    pub code: String,
    /// A sentence for a person.
    pub reason: String,
    /// When, as RFC 3339.
    pub at: jiff::Timestamp,
}

/// A line of an errors or rejected object: one row that has no vector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowError {
    /// Where the row stood in the input, counted from 1.
    pub line: u64,
    /// The tenant's id for it, where it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// A stable word that a program can branch on, for example `too_long`.
    pub code: String,
    /// A sentence for a person; never the text itself.
    pub message: String,
}

/// One part in the [`FinalManifest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartEntry {
    /// The part's place under the life's prefix, which is where the summary lies.
    pub path: String,
    /// The place of the chunk's failed rows under the life's prefix; absent where none failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errors: Option<String>,
    /// The chunk's number.
    pub chunk: u32,
    /// Rows with a vector.
    pub rows: u32,
    /// Rows that failed.
    pub failed: u32,
    /// Rows whose text was cut off.
    #[serde(default)]
    pub truncated: u32,
    /// Exact tokens.
    pub tokens: u64,
    /// Bytes of the part.
    pub bytes: u64,
    /// SHA-256 of the part.
    pub sha256: Digest,
    /// What computed it, as its chunk's record has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute: Option<String>,
}

impl From<ChunkResult> for PartEntry {
    fn from(result: ChunkResult) -> Self {
        Self {
            path: result.part_path(),
            errors: result.errors_path(),
            chunk: result.chunk,
            rows: result.rows,
            failed: result.failed,
            truncated: result.truncated,
            tokens: result.tokens,
            bytes: result.part_bytes,
            sha256: result.part_sha256,
            compute: result.compute,
        }
    }
}

/// `_manifest.json`: the whole result of a job. Of a run that did not complete, the same of what there is lies among the
/// summaries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalManifest {
    /// [`super::CONTRACT_VERSION`].
    pub version: u32,
    /// The job.
    pub job: JobId,
    /// The run of the job that it sums up; 0 in summaries from before there were runs.
    #[serde(default)]
    pub run: u32,
    /// Chunks in the job: those that are neither among the parts nor among the dead have not ended.
    #[serde(default)]
    pub chunks: u32,
    /// The job's parameters.
    pub spec: JobSpec,
    /// Revisions of the model that computed the parts; more than one only when the fleet was
    /// updated in mid-job.
    pub revisions: Vec<String>,
    /// What computed the parts, each path once; more than one where workers of several kinds had a hand in it.
    #[serde(default)]
    pub compute: Vec<String>,
    /// SHA-256 of the manifest that the grant vouched for.
    pub manifest_sha256: Digest,
    /// Rows with a vector.
    pub rows: u64,
    /// Rows that failed.
    pub failed: u64,
    /// Rows whose text was cut off.
    #[serde(default)]
    pub truncated: u64,
    /// Input rows that the producer could not use.
    pub rejected: u64,
    /// Exact tokens.
    pub tokens: u64,
    /// The parts in input order.
    pub parts: Vec<PartEntry>,
    /// Chunks that were given up.
    pub dead: Vec<DeadChunk>,
}
