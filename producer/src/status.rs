//! Where a job stands, read from S3 alone: Redis may be flushed and RabbitMQ replaced, and this stays true.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vecmill_signer::claims::{Digest, JobId, TenantId};

use crate::{
    contract::{
        ChunkResult, DeadChunk, FinalManifest, JobKeys, MANIFEST_BYTES_MAX, Manifest, ManifestError, Outcome,
        PartEntry, Precision, chunk_of_key, job_of_key, tenant_jobs_prefix,
    },
    life::{End, EndState, Entry, Ledger, LedgerError, Run, RunView, conclude},
    store::{Object, Store, StoreError},
};

/// Chunk results read in one go. A status of a huge job must answer in seconds; a watch reads on at each look.
const RESULTS_PER_LOOK_MAX: usize = 2_000;
/// The rate is taken over the chunks finished in this time, and nothing is said of a job of which none was finished in it.
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

/// Looks at a job again and again, reading each record once.
pub struct Watch {
    ledger: Ledger,
    job: JobId,
    /// The manifest of a life, and its digest.
    manifest: Option<(u32, Manifest, Digest)>,
    /// What chunks of the run that counts came to.
    seen: Option<Seen>,
}

/// What a watch has seen of a run.
struct Seen {
    view: RunView,
    results: BTreeMap<u32, ChunkResult>,
}

impl Watch {
    /// A watch that has seen nothing yet.
    pub fn new(store: Store, tenant: &TenantId, job: &JobId) -> Self {
        Self { ledger: Ledger::new(store, tenant, job), job: job.clone(), manifest: None, seen: None }
    }

    /// The job.
    pub fn job(&self) -> &JobId {
        &self.job
    }

    /// The job's ledger.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Whether the job is there: its corpus was cut once, and it is not deleted.
    pub async fn exists(&self) -> Result<bool, LedgerError> {
        let Some(entry) = self.newest().await? else { return Ok(false) };
        let manifest = self.ledger.keys_of(entry.job.at()).manifest();
        Ok(entry.job.run.is_some() || self.ledger.store().exists(&manifest).await?)
    }

    /// The keys of the run that counts; `None` where there is no such job.
    pub async fn keys(&self) -> Result<Option<JobKeys>, LedgerError> {
        Ok(self.newest().await?.map(|entry| self.ledger.keys_of(entry.job.at())))
    }

    async fn newest(&self) -> Result<Option<Entry>, LedgerError> {
        Ok(self.ledger.head().await?.filter(|entry| !entry.job.deleted))
    }

    /// Where the job stands now. An end that has come and that nobody has written down is written down: what is told stays so.
    pub async fn look(&mut self) -> Result<JobStatus, StatusError> {
        let mut status = JobStatus::unknown(&self.job);
        let Some(entry) = self.newest().await? else {
            status.note = Some("nobody has submitted it".to_owned());
            return Ok(status);
        };
        self.read_manifest(&entry).await?;
        let Some((_, manifest, manifest_sha256)) = &self.manifest else {
            status.note = Some("the corpus is still being uploaded".to_owned());
            return Ok(status);
        };
        status.model = Some(manifest.spec.model.clone());
        status.dimensions = Some(manifest.spec.dimensions);
        status.precision = manifest.spec.precision;
        status.rows = manifest.rows;
        status.rejected = manifest.rejected;
        status.chunks = manifest.chunk_count();
        status.rows_waiting = manifest.rows;
        let Some(run) = &entry.job.run else {
            status.note = note(&status, None);
            return Ok(status);
        };
        let (store, keys) = (self.ledger.store(), self.ledger.keys_of(entry.job.at()));
        if self.seen.as_ref().is_none_or(|seen| *seen.view.keys() != keys) {
            let view = RunView::open(store, &keys, run, manifest.chunk_count()).await?;
            self.seen = Some(Seen { view, results: BTreeMap::new() });
        }
        let Some(seen) = &mut self.seen else { return Ok(status) };
        let ended = match run.end {
            Some(_) => Vec::new(),
            None => seen.view.ended(store, None).await?,
        };
        let count = seen.view.inherited().count() + ended.len() as u32;
        let over = run.end.is_some() || run.ending(status.chunks, count, 0, jiff::Timestamp::now(), true).is_some();
        let newest = match over {
            true => conclude(&self.ledger, entry.clone(), manifest, *manifest_sha256, true, |_| {}).await?.entry(),
            false => entry.clone(),
        };
        match newest.job.run.as_ref().filter(|_| newest.job.at() == entry.job.at() && !newest.job.deleted) {
            Some(run) => {
                about(&mut status, run, &keys);
                match &run.end {
                    Some(end) => ended_status(&mut status, end, store, &keys).await?,
                    None => seen.tell(store, &mut status, manifest, run, &ended).await?,
                }
                Ok(status)
            }
            // Another run has begun since: there is more to tell of that.
            None => Box::pin(self.look()).await,
        }
    }

    /// What of the job's results is there: of a run that has ended, what its end names. `None` where there is no such job.
    pub async fn results(&self) -> Result<Option<Results>, StatusError> {
        let Some(entry) = self.newest().await? else { return Ok(None) };
        let Some(run) = &entry.job.run else { return Ok(Some(Results::default())) };
        let (store, keys) = (self.ledger.store(), self.ledger.keys_of(entry.job.at()));
        if let Some(end) = &run.end {
            let summary: Option<FinalManifest> =
                store.get_json(&keys.summary(&end.summary), 2 * MANIFEST_BYTES_MAX).await?;
            let parts = summary.as_ref().map(|summary| summary.parts.clone()).unwrap_or_default();
            return Ok(Some(Results { parts, summary, complete: end.state == EndState::Completed }));
        }
        let Some(bytes) = store.get(&keys.manifest(), MANIFEST_BYTES_MAX).await? else {
            return Ok(Some(Results::default()));
        };
        let view = RunView::open(store, &keys, run, Manifest::parse(&bytes)?.chunk_count()).await?;
        let parts = view.results(store).await?.into_iter().map(PartEntry::from).collect();
        Ok(Some(Results { parts, summary: None, complete: false }))
    }

    /// The key of one part, if it is finished.
    pub async fn part(&self, chunk: u32) -> Result<Option<String>, StatusError> {
        let Some(entry) = self.newest().await? else { return Ok(None) };
        let Some(run) = &entry.job.run else { return Ok(None) };
        let (store, keys) = (self.ledger.store(), self.ledger.keys_of(entry.job.at()));
        let view = RunView::open(store, &keys, run, u32::MAX).await?;
        Ok(match view.outcome(store, chunk).await? {
            Some(Outcome::Done(result)) => Some(keys.object(&result.part_path())),
            Some(Outcome::Dead(_)) | None => None,
        })
    }

    async fn read_manifest(&mut self, entry: &Entry) -> Result<(), StatusError> {
        let life = entry.job.life;
        if self.manifest.as_ref().is_some_and(|(of, ..)| *of == life) {
            return Ok(());
        }
        let key = self.ledger.keys_of(entry.job.at()).manifest();
        self.manifest = match self.ledger.store().get(&key, MANIFEST_BYTES_MAX).await? {
            Some(bytes) => Some((life, Manifest::parse(&bytes)?, Digest::of(&bytes))),
            None => None,
        };
        Ok(())
    }
}

/// What is there of a job's results.
#[derive(Debug, Default)]
pub struct Results {
    /// The parts, in input order.
    pub parts: Vec<PartEntry>,
    /// The summary, once the run has ended.
    pub summary: Option<FinalManifest>,
    /// Whether these are all.
    pub complete: bool,
}

fn about(status: &mut JobStatus, run: &Run, keys: &JobKeys) {
    status.run = run.number;
    status.prefix = Some(keys.prefix().to_owned());
    status.lane = run.lane;
    status.name = Some(run.name.clone());
    status.submitted_at = Some(run.submitted_at);
    status.expires_at = Some(run.expires_at);
}

/// A run that has ended is what its end says, whatever was written since.
async fn ended_status(status: &mut JobStatus, end: &End, store: &Store, keys: &JobKeys) -> Result<(), StatusError> {
    status.state = match end.state {
        EndState::Completed => JobState::Completed,
        EndState::Failed => JobState::Failed,
        EndState::Expired => JobState::Expired,
        EndState::Cancelled => JobState::Cancelled,
    };
    status.ended_at = Some(end.at);
    status.chunks_done = end.chunks_done;
    status.chunks_dead = end.chunks_dead;
    status.rows_done = end.rows + end.failed;
    status.rows_failed = Some(end.failed);
    status.rows_truncated = Some(end.truncated);
    status.rows_waiting = status.rows.saturating_sub(status.rows_done + end.rows_dead);
    status.tokens = Some(end.tokens);
    if end.chunks_dead > 0 {
        let summary: Option<FinalManifest> =
            store.get_json(&keys.summary(&end.summary), 2 * MANIFEST_BYTES_MAX).await?;
        status.dead = summary.map(|summary| summary.dead).unwrap_or_default();
        status.dead.truncate(DEAD_NAMED_MAX);
    }
    expect_tokens(status);
    status.note = note(status, None);
    Ok(())
}

impl Seen {
    /// A run that goes on.
    async fn tell(
        &mut self,
        store: &Store,
        status: &mut JobStatus,
        manifest: &Manifest,
        run: &Run,
        ended: &[Object],
    ) -> Result<(), StatusError> {
        let all = self.view.all_ended(ended);
        let dead = self.view.dead(store, ended).await?;
        let rows_of = |chunk: u32| manifest.chunks.get(chunk as usize).map_or(0, |entry| u64::from(entry.rows));
        let rows_dead: u64 = dead.iter().map(|dead| rows_of(dead.chunk)).sum();
        status.chunks_dead = dead.len() as u32;
        status.chunks_done = all.len() as u32 - status.chunks_dead;
        status.rows_done = all.iter().map(|&chunk| rows_of(chunk)).sum::<u64>() - rows_dead;
        status.rows_waiting = status.rows.saturating_sub(status.rows_done + rows_dead);
        rate(status, manifest, ended);
        self.count(store, status, &all, dead.len()).await?;
        status.dead = dead;
        status.dead.truncate(DEAD_NAMED_MAX);
        expect_tokens(status);
        status.state = match run {
            Run { cancelling_at: Some(_), .. } => JobState::Cancelling,
            _ if all.len() as u32 >= status.chunks => JobState::Finalizing,
            Run { published: false, .. } => JobState::Validating,
            _ if status.chunks_done == 0 => JobState::Queued,
            _ => JobState::Running,
        };
        if let (JobState::Queued | JobState::Running, Some(at)) = (status.state, run.paused_at) {
            status.waiting = Some(Waiting {
                reason: WaitReason::Paused,
                until: None,
                message: format!("its tenant has held it up since {at:.0}: resume it to go on"),
            });
        }
        if status.state != JobState::Running || status.waiting.is_some() {
            status.eta_s = None;
        }
        status.note = match &status.waiting {
            Some(waiting) => Some(waiting.message.clone()),
            None => note(status, Some(run)),
        };
        Ok(())
    }

    /// Tokens, failed and truncated rows, from the chunks' records, where not too many have to be read.
    async fn count(
        &mut self,
        store: &Store,
        status: &mut JobStatus,
        all: &[u32],
        dead: usize,
    ) -> Result<(), StoreError> {
        let unread = all.iter().copied().filter(|chunk| !self.results.contains_key(chunk));
        let unread: Vec<u32> = unread.take(RESULTS_PER_LOOK_MAX).collect();
        for outcome in self.view.outcomes(store, unread).await? {
            if let Outcome::Done(result) = outcome {
                self.results.insert(result.chunk, *result);
            }
        }
        if self.results.len() + dead >= all.len() {
            status.tokens = Some(self.results.values().map(|result| result.tokens).sum());
            status.rows_failed = Some(self.results.values().map(|result| u64::from(result.failed)).sum());
            status.rows_truncated = Some(self.results.values().map(|result| u64::from(result.truncated)).sum());
        }
        Ok(())
    }
}

fn expect_tokens(status: &mut JobStatus) {
    if let (Some(tokens), 1..) = (status.tokens, status.rows_done) {
        status.tokens_waiting = Some((tokens as f64 / status.rows_done as f64 * status.rows_waiting as f64) as u64);
    }
}

fn rows_of(manifest: &Manifest, object: &Object) -> u32 {
    let chunk = chunk_of_key(&object.key).and_then(|chunk| manifest.chunks.get(chunk as usize));
    chunk.map_or(0, |chunk| chunk.rows)
}

/// The rate needs no memory of earlier looks: the records carry the times at which they were written. Only the run's own count: what
/// it went on from was written at another time.
fn rate(status: &mut JobStatus, manifest: &Manifest, done: &[Object]) {
    let newest = done.iter().map(|object| object.modified_s).fold(0.0, f64::max);
    let oldest = done.iter().map(|object| object.modified_s).fold(f64::INFINITY, f64::min);
    let from = (newest - RATE_WINDOW_S).max(oldest);
    let stalled = jiff::Timestamp::now().as_second() as f64 - newest > RATE_WINDOW_S;
    // S3 keeps times to the second: less than two seconds is no measure.
    if newest - from < 2.0 || stalled {
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

fn note(status: &JobStatus, run: Option<&Run>) -> Option<String> {
    match status.state {
        JobState::Validating if run.is_some() => {
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
        JobState::Cancelling => Some("workers are stopping; what is finished stays".to_owned()),
        JobState::Cancelled => Some("submit the same corpus again to go on".to_owned()),
        _ => None,
    }
}

/// The tenant's jobs.
pub async fn list_jobs(store: &Store, tenant: &TenantId) -> Result<Vec<JobId>, StoreError> {
    let folders = store.list_folders(&tenant_jobs_prefix(tenant)).await?;
    Ok(folders.iter().filter_map(|folder| job_of_key(tenant, folder)).collect())
}
