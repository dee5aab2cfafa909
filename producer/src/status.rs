//! Where a job stands, read from S3 alone: Redis may be flushed and RabbitMQ replaced, and this stays true.

mod budget;
mod watch;

use serde::{Deserialize, Serialize};
use vecmill_signer::claims::{JobId, TenantId};

pub use self::{
    budget::ManifestBudget,
    watch::{Results, Watch},
};
use crate::{
    contract::{DeadChunk, ManifestError, Precision, job_of_key, tenant_jobs_prefix},
    life::LedgerError,
    store::{Store, StoreError},
};

/// The states of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Its chunks are being uploaded or published.
    Validating,
    /// No chunk is done yet.
    Queued,
    /// Some chunks are done.
    Running,
    /// All chunks have ended; the summary is being written.
    Finalizing,
    /// All chunks are done; `_SUCCESS` is there.
    Completed,
    /// All chunks have ended and at least one was given up.
    Failed,
    /// The completion window ended before the job.
    Expired,
    /// The tenant has cancelled it, and workers are stopping.
    Cancelling,
    /// The tenant cancelled it.
    Cancelled,
}

impl JobState {
    /// Whether nothing more will happen without a new submission.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Expired | Self::Cancelled)
    }
}

impl std::fmt::Display for JobState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Validating => "validating",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Finalizing => "finalizing",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Expired => "expired",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
        })
    }
}

/// Why a status can't be given.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// S3 failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The job's ledger can't be read or written.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The manifest is not one.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Too many large manifests of the tenant are being read.
    #[error("too many large jobs of the tenant are looked at at once; ask again")]
    Busy,
}

/// What a job that could run waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitReason {
    /// Its tenant holds it up.
    Paused,
    /// The tenant has used up its tokens of the minute.
    TokensPerMinute,
    /// The tenant has used up its tokens of the day.
    TokensPerDay,
    /// Nobody takes chunks from its lane.
    NoWorker,
    /// Nobody computes in the precision that it asks for.
    NoWorkerInPrecision,
    /// Chunks before it.
    Backlog,
}

/// That a job waits, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// For programs.
    pub reason: WaitReason,
    /// Until when, where that is known.
    pub until: Option<jiff::Timestamp>,
    /// For people.
    pub message: String,
}

/// Where a job stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobStatus {
    /// The job.
    pub job: JobId,
    /// The run that counts: each submission that takes the job up begins one. Within a run no state and no count goes back.
    #[serde(default)]
    pub run: u32,
    /// The prefix under which its results lie on S3, once there is a run.
    #[serde(default)]
    pub prefix: Option<String>,
    /// The lane that its messages go to.
    #[serde(skip)]
    pub lane: Option<u32>,
    /// Its state.
    pub state: JobState,
    /// A sentence where the state alone leaves the reader with a question.
    pub note: Option<String>,
    /// What it waits for, where that is known: S3 tells of a pause, a gateway of the rest.
    pub waiting: Option<Waiting>,
    /// What the submitter called the input.
    pub name: Option<String>,
    /// The model.
    pub model: Option<String>,
    /// Length of each vector.
    pub dimensions: Option<u32>,
    /// The precision that it asks for; absent where any will do.
    #[serde(default)]
    pub precision: Option<Precision>,
    /// Texts in the job.
    pub rows: u64,
    /// Texts in finished chunks.
    pub rows_done: u64,
    /// Of these, texts that failed; absent where too many records would have to be read.
    pub rows_failed: Option<u64>,
    /// Texts that were cut to the model's longest; absent where too many records would have to be read.
    pub rows_truncated: Option<u64>,
    /// Texts in chunks that have not ended.
    pub rows_waiting: u64,
    /// Input rows that the producer could not use. Of very many the first are listed among the errors, and the others counted there.
    pub rejected: u64,
    /// Chunks in the job.
    pub chunks: u32,
    /// Finished chunks.
    pub chunks_done: u32,
    /// Chunks that were given up.
    pub chunks_dead: u32,
    /// The first of them, with the reason of each.
    pub dead: Vec<DeadChunk>,
    /// Exact tokens of the finished chunks; absent where too many records would have to be read.
    pub tokens: Option<u64>,
    /// Tokens of the texts that wait, as far as those that are done tell.
    pub tokens_waiting: Option<u64>,
    /// Texts a second over the last minute.
    pub rows_per_s: Option<f64>,
    /// Seconds to go at that rate.
    pub eta_s: Option<u64>,
    /// When the job was last submitted.
    pub submitted_at: Option<jiff::Timestamp>,
    /// When its grant expires.
    pub expires_at: Option<jiff::Timestamp>,
    /// When it reached the final state that it is in.
    pub ended_at: Option<jiff::Timestamp>,
}

impl JobStatus {
    /// Reads the status once.
    pub async fn read(store: &Store, tenant: &TenantId, job: &JobId) -> Result<Self, StatusError> {
        Watch::new(store.clone(), tenant, job).look().await
    }

    /// Whether the job is there: neither one that is being uploaded for the first time nor the empty folder that some
    /// S3-compatible servers leave of a deleted one is.
    pub fn is_known(&self) -> bool {
        self.model.is_some() || self.submitted_at.is_some()
    }

    fn unknown(job: &JobId) -> Self {
        Self {
            job: job.clone(),
            run: 0,
            prefix: None,
            lane: None,
            state: JobState::Validating,
            note: None,
            waiting: None,
            name: None,
            model: None,
            dimensions: None,
            precision: None,
            rows: 0,
            rows_done: 0,
            rows_failed: None,
            rows_truncated: None,
            rows_waiting: 0,
            rejected: 0,
            chunks: 0,
            chunks_done: 0,
            chunks_dead: 0,
            dead: Vec::new(),
            tokens: None,
            tokens_waiting: None,
            rows_per_s: None,
            eta_s: None,
            submitted_at: None,
            expires_at: None,
            ended_at: None,
        }
    }
}

/// The tenant's jobs.
pub async fn list_jobs(store: &Store, tenant: &TenantId) -> Result<Vec<JobId>, StoreError> {
    let folders = store.list_folders(&tenant_jobs_prefix(tenant)).await?;
    Ok(folders.iter().filter_map(|folder| job_of_key(tenant, folder)).collect())
}
