//! Where a job stands, read from S3 alone: Redis may be flushed and RabbitMQ replaced, and this stays true.

use std::collections::{BTreeMap, HashSet};

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use vecmill_signer::claims::{JobId, TenantId};

use crate::{
    contract::{
        Cancelled, ChunkResult, DeadChunk, FinalManifest, JobKeys, MANIFEST_BYTES_MAX, Manifest, ManifestError, Paused,
        Precision, Submission, chunk_of_key, job_of_key, tenant_jobs_prefix,
    },
    store::{Object, Store, StoreError},
};

/// Small JSON documents are this long at most.
const DOCUMENT_BYTES_MAX: usize = 64 << 10;
/// Chunk results read in one go. A status of a huge job must answer in seconds; a watch reads on at each look.
const RESULTS_PER_LOOK_MAX: usize = 2_000;
/// Reads of small objects at once.
const READS_MAX: usize = 32;
/// The rate is taken over the chunks finished in this time.
const RATE_WINDOW_S: f64 = 60.0;
/// Dead chunks named in a status; their number is always exact.
const DEAD_NAMED_MAX: usize = 100;

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
    /// The manifest is not one.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
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
    /// Input rows that the producer could not use.
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

/// Looks at a job again and again, reading each record once.
pub struct Watch {
    store: Store,
    job: JobId,
    keys: JobKeys,
    manifest: Option<Manifest>,
    results: BTreeMap<u32, ChunkResult>,
}

impl Watch {
    /// A watch that has seen nothing yet.
    pub fn new(store: Store, tenant: &TenantId, job: &JobId) -> Self {
        let keys = JobKeys::new(tenant, job);
        Self { store, job: job.clone(), keys, manifest: None, results: BTreeMap::new() }
    }

    /// The job's keys.
    pub fn keys(&self) -> &JobKeys {
        &self.keys
    }

    /// Whether anything of the job is there.
    pub async fn exists(&self) -> Result<bool, StoreError> {
        Ok(self.store.exists(&self.keys.manifest()).await? || self.store.exists(&self.keys.submission()).await?)
    }

    /// Where the job stands now.
    pub async fn look(&mut self) -> Result<JobStatus, StatusError> {
        let mut status = JobStatus::unknown(&self.job);
        let submission: Option<Submission> = self.store.get_json(&self.keys.submission(), DOCUMENT_BYTES_MAX).await?;
        if let Some(submission) = &submission {
            status.name = Some(submission.name.clone());
            status.submitted_at = Some(submission.submitted_at);
            status.expires_at = Some(submission.expires_at);
        }
        if self.manifest.is_none()
            && let Some(bytes) = self.store.get(&self.keys.manifest(), MANIFEST_BYTES_MAX).await?
        {
            self.manifest = Some(Manifest::parse(&bytes)?);
        }
        let Some(manifest) = &self.manifest else {
            status.note = Some("the corpus is still being uploaded".to_owned());
            return Ok(status);
        };
        status.model = Some(manifest.spec.model.clone());
        status.dimensions = Some(manifest.spec.dimensions);
        status.precision = manifest.spec.precision;
        status.rows = manifest.rows;
        status.rejected = manifest.rejected;
        status.chunks = manifest.chunk_count();

        let done = self.store.list(&self.keys.done_prefix(), None).await?;
        let mut dead = self.store.list(&self.keys.dead_prefix(), None).await?;
        // A chunk that was given up once and done later counts as done.
        let numbers: HashSet<_> = done.iter().map(|object| chunk_of_key(&object.key)).collect();
        dead.retain(|object| !numbers.contains(&chunk_of_key(&object.key)));
        status.chunks_done = done.len() as u32;
        status.chunks_dead = dead.len() as u32;
        status.rows_done = done.iter().map(|object| u64::from(rows_of(manifest, object))).sum();
        let rows_dead: u64 = dead.iter().map(|object| u64::from(rows_of(manifest, object))).sum();
        status.rows_waiting = status.rows.saturating_sub(status.rows_done + rows_dead);
        rate(&mut status, manifest, &done);
        status.dead = self.documents(dead.iter().take(DEAD_NAMED_MAX).map(key).collect()).await?;
        self.count(&mut status, &done).await?;
        if let (Some(tokens), 1..) = (status.tokens, status.rows_done) {
            status.tokens_waiting = Some((tokens as f64 / status.rows_done as f64 * status.rows_waiting as f64) as u64);
        }
        (status.state, status.ended_at) = self.state(&status, submission.as_ref()).await?;
        if matches!(status.state, JobState::Queued | JobState::Running) {
            status.waiting = self.paused().await?;
        }
        if status.state != JobState::Running || status.waiting.is_some() {
            status.eta_s = None;
        }
        status.note = status
            .waiting
            .as_ref()
            .map_or_else(|| note(&status, submission.as_ref()), |waiting| Some(waiting.message.clone()));
        Ok(status)
    }

    async fn paused(&self) -> Result<Option<Waiting>, StoreError> {
        let paused: Option<Paused> = self.store.get_json(&self.keys.paused(), DOCUMENT_BYTES_MAX).await?;
        Ok(paused.map(|paused| Waiting {
            reason: WaitReason::Paused,
            until: None,
            message: format!("its tenant has held it up since {:.0}: resume it to go on", paused.at),
        }))
    }

    /// The state, and since when it is in it where that is a final one.
    async fn state(
        &self,
        status: &JobStatus,
        submission: Option<&Submission>,
    ) -> Result<(JobState, Option<jiff::Timestamp>), StoreError> {
        if let Some(at_s) = self.store.modified_s(&self.keys.success()).await? {
            return Ok((JobState::Completed, timestamp(at_s)));
        }
        let cancelled: Option<Cancelled> = self.store.get_json(&self.keys.cancelled(), DOCUMENT_BYTES_MAX).await?;
        if let Some(cancelled) = cancelled {
            return Ok((JobState::Cancelled, Some(cancelled.at)));
        }
        let ended = status.chunks_done + status.chunks_dead >= status.chunks;
        if ended
            && status.chunks_dead > 0
            && let Some(at_s) = self.store.modified_s(&self.keys.final_manifest()).await?
        {
            return Ok((JobState::Failed, timestamp(at_s)));
        }
        let expires_at = submission.map(|submission| submission.expires_at);
        if !ended && expires_at.is_some_and(|at| at < jiff::Timestamp::now()) {
            return Ok((JobState::Expired, expires_at));
        }
        let state = match submission {
            _ if ended => JobState::Finalizing,
            Some(submission) if submission.published && status.chunks_done == 0 => JobState::Queued,
            Some(submission) if submission.published => JobState::Running,
            _ => JobState::Validating,
        };
        Ok((state, None))
    }

    /// Tokens, failed and truncated rows: from the summary when it is there, else from the chunks' records.
    async fn count(&mut self, status: &mut JobStatus, done: &[Object]) -> Result<(), StoreError> {
        let summary: Option<FinalManifest> =
            self.store.get_json(&self.keys.final_manifest(), 2 * MANIFEST_BYTES_MAX).await?;
        if let Some(summary) = summary {
            status.tokens = Some(summary.tokens);
            status.rows_failed = Some(summary.failed);
            status.rows_truncated = Some(summary.truncated);
            return Ok(());
        }
        let known = &self.results;
        let is_new = |object: &&Object| chunk_of_key(&object.key).is_some_and(|chunk| !known.contains_key(&chunk));
        let unread = done.iter().filter(is_new).take(RESULTS_PER_LOOK_MAX).map(key).collect();
        let read: Vec<ChunkResult> = self.documents(unread).await?;
        self.results.extend(read.into_iter().map(|result| (result.chunk, result)));
        if self.results.len() >= done.len() {
            status.tokens = Some(self.results.values().map(|result| result.tokens).sum());
            status.rows_failed = Some(self.results.values().map(|result| u64::from(result.failed)).sum());
            status.rows_truncated = Some(self.results.values().map(|result| u64::from(result.truncated)).sum());
        }
        Ok(())
    }

    async fn documents<T: serde::de::DeserializeOwned>(&self, keys: Vec<String>) -> Result<Vec<T>, StoreError> {
        let found: Vec<Option<T>> = stream::iter(keys)
            .map(|key| async move { self.store.get_json(&key, DOCUMENT_BYTES_MAX).await })
            .buffered(READS_MAX)
            .try_collect()
            .await?;
        Ok(found.into_iter().flatten().collect())
    }
}

fn timestamp(unix_s: f64) -> Option<jiff::Timestamp> {
    jiff::Timestamp::from_millisecond((unix_s * 1000.0) as i64).ok()
}

fn key(object: &Object) -> String {
    object.key.clone()
}

fn rows_of(manifest: &Manifest, object: &Object) -> u32 {
    let chunk = chunk_of_key(&object.key).and_then(|chunk| manifest.chunks.get(chunk as usize));
    chunk.map_or(0, |chunk| chunk.rows)
}

/// The rate needs no memory of earlier looks: the records carry the times at which they were written.
fn rate(status: &mut JobStatus, manifest: &Manifest, done: &[Object]) {
    let newest = done.iter().map(|object| object.modified_s).fold(0.0, f64::max);
    let oldest = done.iter().map(|object| object.modified_s).fold(f64::INFINITY, f64::min);
    let from = (newest - RATE_WINDOW_S).max(oldest);
    // S3 keeps times to the second: less than two seconds is no measure.
    if newest - from < 2.0 {
        return;
    }
    let rows: u64 =
        done.iter().filter(|object| object.modified_s > from).map(|object| u64::from(rows_of(manifest, object))).sum();
    let rate = rows as f64 / (newest - from);
    status.rows_per_s = Some(rate);
    if rate > 0.0 {
        status.eta_s = Some((status.rows.saturating_sub(status.rows_done) as f64 / rate).ceil() as u64);
    }
}

fn note(status: &JobStatus, submission: Option<&Submission>) -> Option<String> {
    match status.state {
        JobState::Validating if submission.is_some() => {
            Some("its messages are not all published; if no submit is running, submit the same corpus again".to_owned())
        }
        JobState::Validating => Some("the corpus is uploaded; if no submit is running, submit it again".to_owned()),
        JobState::Queued => Some(format!(
            "no chunk is done yet: it waits for a worker{}, or for the tenant's quota",
            status.precision.map(|precision| format!(" that computes in {precision}")).unwrap_or_default()
        )),
        JobState::Failed => Some(format!(
            "{} of {} chunks were given up; the others' vectors are there; submit the same corpus again to retry",
            status.chunks_dead, status.chunks
        )),
        JobState::Expired => Some("its completion window is over; submit the same corpus again to go on".to_owned()),
        JobState::Cancelled => Some("submit the same corpus again to go on".to_owned()),
        _ => None,
    }
}

/// The tenant's jobs.
pub async fn list_jobs(store: &Store, tenant: &TenantId) -> Result<Vec<JobId>, StoreError> {
    let folders = store.list_folders(&tenant_jobs_prefix(tenant)).await?;
    Ok(folders.iter().filter_map(|folder| job_of_key(tenant, folder)).collect())
}
