//! Where a batch stands: its record, and the job it has become.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;
use vecmill_signer::claims::{Digest, JobId, TenantId};

use super::super::error::ApiError;
use super::super::files::{self, FileRecord, MadeFrom, What};
use super::super::{App, ids, storage};
use super::record::{BAD_LINES_MAX, BadLine, BatchRecord, Counts, Ended, OutputFormat};
use crate::contract::{Cancelled, DeadChunk, FinalManifest, JobKeys, MANIFEST_BYTES_MAX, Manifest, RunId};
use crate::life::{CANCELLING_S, EndState, Entry, Ledger, Run, RunView, read_summary, summarize, write_summary};
use crate::status::{JobState, JobStatus, StatusError, Waiting};
use crate::submit::Submitted;

/// Seconds by which a batch's window and its own run's may differ: the one begins when the other is signed.
const WINDOWS_DIFFER_S: u64 = 120;

/// A batch, as OpenAI has it, and its job beyond that.
#[derive(Serialize, ToSchema)]
pub(in super::super) struct Batch {
    /// Its id.
    id: String,
    /// `batch`.
    object: &'static str,
    /// `/v1/embeddings`.
    endpoint: &'static str,
    /// The lines that can't be used, at most a thousand of them; or why there is no job.
    errors: Option<Errors>,
    /// The input.
    input_file_id: String,
    /// How long it may take.
    completion_window: String,
    /// Where it stands.
    status: State,
    /// The vectors, once it has ended.
    output_file_id: Option<String>,
    /// The lines without a vector, once it has ended.
    error_file_id: Option<String>,
    /// Unix seconds, as all times.
    created_at: u64,
    /// When its chunks were queued.
    in_progress_at: Option<u64>,
    /// When its window is over.
    expires_at: Option<u64>,
    /// When its last chunk was done.
    finalizing_at: Option<u64>,
    /// When it was complete.
    completed_at: Option<u64>,
    /// When it failed.
    failed_at: Option<u64>,
    /// When it expired.
    expired_at: Option<u64>,
    /// When it was asked to stop.
    cancelling_at: Option<u64>,
    /// When it had stopped.
    cancelled_at: Option<u64>,
    /// How many lines have come to what.
    request_counts: Counts,
    /// What it has cost so far; null while that is not known, of a job of thousands of chunks.
    usage: Option<Usage>,
    /// As given.
    metadata: Option<BTreeMap<String, String>>,
    /// The model, once the first line has been read.
    model: Option<String>,
    /// The job that it is: `/v1/jobs/{job}` tells more.
    #[schema(value_type = Option<String>)]
    job: Option<JobId>,
    /// What was submitted, once its chunks are queued: texts, rejected lines, chunks.
    #[schema(value_type = Option<Object>)]
    submitted: Option<Submitted>,
    /// What it waits for.
    #[schema(value_type = Option<Object>)]
    waiting: Option<Waiting>,
}

/// Lines that can't be used.
#[derive(Serialize, ToSchema)]
pub(in super::super) struct Errors {
    /// `list`.
    object: &'static str,
    /// The lines.
    data: Vec<BadLine>,
}

/// Tokens, in OpenAI's words.
#[derive(Serialize, ToSchema)]
#[schema(as = BatchUsage)]
pub(in super::super) struct Usage {
    /// Exact tokens of the lines done.
    input_tokens: u64,
    /// Of these.
    input_tokens_details: InputDetails,
    /// None: there is no output.
    output_tokens: u64,
    /// Of these.
    output_tokens_details: OutputDetails,
    /// All.
    total_tokens: u64,
}

/// Of the tokens.
#[derive(Default, Serialize, ToSchema)]
pub(in super::super) struct InputDetails {
    /// None is cached.
    cached_tokens: u64,
}

/// Of the tokens.
#[derive(Default, Serialize, ToSchema)]
pub(in super::super) struct OutputDetails {
    /// Nothing is reasoned.
    reasoning_tokens: u64,
}

/// Where a batch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = BatchStatus)]
pub(in super::super) enum State {
    /// Its lines are being read.
    Validating,
    /// There is no job, or parts of it were given up.
    Failed,
    /// Its chunks are queued, or some are done.
    InProgress,
    /// The end is being written.
    Finalizing,
    /// All is done.
    Completed,
    /// Its window was over first.
    Expired,
    /// Workers are stopping.
    Cancelling,
    /// They have stopped.
    Cancelled,
}

impl Batch {
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.status, State::Failed | State::Completed | State::Expired | State::Cancelled)
    }

    /// Its end, if it has come.
    pub(super) fn end(&self) -> super::Ended {
        let (kind, at) = match self.status {
            State::Completed => ("batch.completed", self.completed_at),
            State::Failed => ("batch.failed", self.failed_at),
            State::Expired => ("batch.expired", self.expired_at),
            State::Cancelled => ("batch.cancelled", self.cancelled_at),
            State::Validating | State::InProgress | State::Finalizing | State::Cancelling => {
                return super::Ended::NotYet;
            }
        };
        super::Ended::At { kind, at: at.unwrap_or(self.created_at) }
    }

    pub(super) fn state(&self) -> String {
        serde_json::to_value(self.status).ok().and_then(|state| state.as_str().map(str::to_owned)).unwrap_or_default()
    }

    fn of(record: BatchRecord, status: State) -> Self {
        let bad_lines = record.bad_lines;
        Self {
            id: record.id,
            object: "batch",
            endpoint: super::ENDPOINT,
            errors: (!bad_lines.is_empty()).then_some(Errors { object: "list", data: bad_lines }),
            input_file_id: record.input_file_id,
            completion_window: record.completion_window,
            status,
            output_file_id: None,
            error_file_id: None,
            created_at: record.created_at,
            in_progress_at: record.in_progress_at,
            // Before it is signed, what it will be.
            expires_at: record.expires_at.or(Some(record.created_at + record.window_s)),
            finalizing_at: None,
            completed_at: None,
            failed_at: record.failed_at,
            expired_at: None,
            cancelling_at: None,
            cancelled_at: None,
            request_counts: Counts::default(),
            usage: Some(Usage::of(0)),
            metadata: record.metadata,
            model: record.order.model,
            job: record.job,
            submitted: record.submitted,
            waiting: None,
        }
    }

    fn ended(mut record: BatchRecord, cancelling_at: Option<u64>) -> Self {
        let Some(mut ended) = record.ended.take() else { return Self::of(record, State::Failed) };
        record.bad_lines.append(&mut ended.bad_lines);
        record.bad_lines.truncate(BAD_LINES_MAX);
        let status = match ended.state {
            EndState::Completed => State::Completed,
            EndState::Failed => State::Failed,
            EndState::Expired => State::Expired,
            EndState::Cancelled => State::Cancelled,
        };
        let at = Some(ended.at);
        let mut batch = Self::of(record, status);
        match ended.state {
            EndState::Completed => (batch.finalizing_at, batch.completed_at) = (at, at),
            EndState::Failed => batch.failed_at = at,
            EndState::Expired => batch.expired_at = at,
            EndState::Cancelled => (batch.cancelling_at, batch.cancelled_at) = (cancelling_at.or(at), at),
        }
        batch.request_counts = ended.counts;
        batch.usage = Some(Usage::of(ended.tokens));
        batch.output_file_id = ended.output_file_id;
        batch.error_file_id = ended.error_file_id;
        batch
    }
}

impl Usage {
    fn of(tokens: u64) -> Self {
        Self {
            input_tokens: tokens,
            input_tokens_details: <_>::default(),
            output_tokens: 0,
            output_tokens_details: <_>::default(),
            total_tokens: tokens,
        }
    }
}

/// When a batch was cancelled, if it was, in Unix seconds.
pub(super) async fn cancelled_at(app: &App, tenant: &TenantId, id: &str) -> Result<Option<u64>, ApiError> {
    let key = storage::batch_cancelled(tenant, id);
    let marked: Option<Cancelled> = app.store.get_json(&key, storage::RECORD_BYTES_MAX).await?;
    Ok(marked.map(|cancelled| seconds(cancelled.at)))
}

/// Where a batch stands now. Its end is written down the first time that it is seen, with the files it has come to.
pub(super) async fn look(app: &App, tenant: &TenantId, mut record: BatchRecord) -> Result<Batch, ApiError> {
    if record.ended.is_some() || record.failed_at.is_some() {
        return Ok(Batch::ended(record, None));
    }
    let marked_at = cancelled_at(app, tenant, &record.id).await?;
    let Some(job) = record.job.clone() else {
        // Whoever prepares it writes down that it is cancelled, or was not prepared in time: until then it may become a job.
        let state = if marked_at.is_some() { State::Cancelling } else { State::Validating };
        let mut batch = Batch::of(record, state);
        batch.cancelling_at = marked_at;
        return Ok(batch);
    };
    // An end that has come is in the ledger after this.
    let status = app.status(tenant, &job).await?;
    let ledger = Ledger::new(app.store.clone(), tenant, &job);
    let (since, run) = record.submitted.as_ref().map_or((0, 0), |submitted| (submitted.entry, submitted.run));
    let not_there = || ApiError::internal("job_not_found", "the batch's job is not there: make the batch again");
    let mut entry = ledger.first_end_since(since, run).await?.ok_or_else(not_there)?;
    let leaving = Leaving { cancelled_at: marked_at, expired_at: expired_at(&record, &entry) };
    if (leaving.cancelled_at.or(leaving.expired_at)).is_some() && wants(&entry, &record.id) {
        // Its time is over and the run goes on for others; or whoever cancelled it has died over it.
        super::leave(app, tenant, &job, &record.id).await?;
        entry = ledger.first_end_since(since, run).await?.unwrap_or(entry);
    }
    let came = came_to(app, &ledger, &record, &entry, leaving).await?;
    let Some(came) = came else {
        let cancelling = entry.job.run.as_ref().and_then(|run| run.cancelling_at).map(seconds);
        let cancelling = marked_at.or(cancelling);
        let state = match status.state {
            _ if cancelling.is_some() => State::Cancelling,
            JobState::Finalizing => State::Finalizing,
            _ => State::InProgress,
        };
        let mut batch = Batch::of(record, state);
        batch.cancelling_at = cancelling;
        batch.request_counts = counts(&status);
        batch.usage = status.tokens.map(Usage::of);
        batch.waiting = status.waiting;
        return Ok(batch);
    };
    let ended = came.ended(app, tenant, &record, &ledger).await?;
    record.end(app, tenant, ended).await?;
    // Of a job that goes on for others, the reservation is theirs.
    if entry.job.unfinished().is_none() {
        app.shared.give_back(tenant, &job, true).await;
    }
    Ok(Batch::ended(record, marked_at))
}

/// Whether the run that counts is to go on for a batch.
fn wants(entry: &Entry, batch: &str) -> bool {
    entry.job.unfinished().is_some_and(|run| run.cancelling_at.is_none() && run.wanted_by.contains(batch))
}

/// Why a batch wants no more of a run.
#[derive(Clone, Copy)]
struct Leaving {
    cancelled_at: Option<u64>,
    expired_at: Option<u64>,
}

/// When a batch's own window was over, where the run has much more time than that: another asked for it.
fn expired_at(record: &BatchRecord, entry: &Entry) -> Option<u64> {
    let until = seconds(entry.job.run.as_ref()?.expires_at);
    record.expires_at.filter(|at| *at <= ids::unix_s() && at + WINDOWS_DIFFER_S < until)
}

/// What a batch came to, before it is written down.
struct Came {
    state: EndState,
    at: u64,
    life: u32,
    /// The summary and its digest; none where the job was deleted.
    summary: Option<(FinalManifest, Digest)>,
}

/// What a batch came to, if its end has come. `entry` is the ledger's first end since the batch had a part in the job, or the newest
/// entry where there is none.
async fn came_to(
    app: &App,
    ledger: &Ledger,
    record: &BatchRecord,
    entry: &Entry,
    leaving: Leaving,
) -> Result<Option<Came>, ApiError> {
    let life = entry.job.life;
    if entry.job.deleted {
        // Not by this batch, which held it: it is from before jobs were held.
        return Ok(Some(Came { state: EndState::Failed, at: seconds(entry.at), life, summary: None }));
    }
    let Some(run) = &entry.job.run else { return Ok(None) };
    let keys = ledger.keys_of(entry.job.at());
    // Who has left is cancelled, or expired, whatever became of the run for the others.
    let Leaving { cancelled_at, expired_at } = leaving;
    let left = cancelled_at.map(|at| (at, EndState::Cancelled)).or(expired_at.map(|at| (at, EndState::Expired)));
    let left = left.filter(|_| !run.wanted_by.contains(&record.id));
    if let Some(end) = &run.end {
        let state = left.map_or(end.state, |(_, state)| state);
        let summary = read_summary(&app.store, &keys, &end.summary).await?;
        let at = left.map_or_else(|| seconds(end.at), |(at, _)| at);
        return Ok(Some(Came { state, at, life, summary: summary.map(|summary| (summary, end.summary)) }));
    }
    let over = left.filter(|(at, _)| run.cancelling_at.is_none() && at + CANCELLING_S.unsigned_abs() <= ids::unix_s());
    let Some((at, state)) = over else { return Ok(None) };
    let summary = summary_now(app, &keys, run).await?;
    Ok(Some(Came { state, at, life, summary }))
}

/// A summary of what there is of a run that goes on without the batch.
async fn summary_now(app: &App, keys: &JobKeys, run: &Run) -> Result<Option<(FinalManifest, Digest)>, ApiError> {
    let Some(bytes) = app.store.get(&keys.manifest(), MANIFEST_BYTES_MAX).await? else { return Ok(None) };
    let manifest = Manifest::parse(&bytes).map_err(StatusError::from)?;
    let view = RunView::open(&app.store, keys, run, manifest.chunk_count()).await?;
    let ended = view.all_ended(&view.ended(&app.store, None).await?);
    let summary = summarize(&app.store, &view, ended, &manifest, Digest::of(&bytes)).await?;
    let sha256 = write_summary(&app.store, keys, &summary).await?;
    Ok(Some((summary, sha256)))
}

impl Came {
    /// With its counts and its files.
    async fn ended(
        self,
        app: &App,
        tenant: &TenantId,
        record: &BatchRecord,
        ledger: &Ledger,
    ) -> Result<Ended, ApiError> {
        let Self { state, at, life, summary } = self;
        let total = record.submitted.as_ref().map_or(0, |submitted| submitted.rows + submitted.rejected);
        let Some((summary, sha256)) = summary else {
            let counts = Counts { total, completed: 0, failed: total };
            let reason = "its job was deleted before the batch had ended".to_owned();
            let line = BadLine { code: "job_deleted".to_owned(), line: None, message: reason, param: None };
            return Ok(Ended { counts, bad_lines: vec![line], ..Ended::unprepared(state, at) });
        };
        let counts = Counts { total, completed: summary.rows, failed: total.saturating_sub(summary.rows) };
        let keys = ledger.keys_of(RunId { life, run: summary.run });
        let (output_file_id, error_file_id) = files_of(app, tenant, record, &keys, &summary, counts, at).await?;
        // Bounded before it is stored: a record that is longer than its reader takes would be lost.
        let told = if state == EndState::Failed { BAD_LINES_MAX } else { 0 };
        let bad_lines = BadLine::bounded(summary.dead.iter().take(told).map(BadLine::of_dead));
        let tokens = summary.tokens;
        Ok(Ended { state, at, counts, tokens, output_file_id, error_file_id, life, summary: Some(sha256), bad_lines })
    }
}

impl BadLine {
    fn of_dead(dead: &DeadChunk) -> Self {
        let message = format!("chunk {}: {}", dead.chunk, dead.reason);
        Self { code: dead.code.clone(), line: None, message, param: None }
    }
}

/// Lines of a job that goes on.
fn counts(status: &JobStatus) -> Counts {
    let failed = status.rows_failed.unwrap_or_default();
    Counts {
        total: status.rows + status.rejected,
        completed: status.rows_done.saturating_sub(failed),
        failed: failed + status.rejected,
    }
}

/// The records of a batch's two files, where it has them. Whoever writes them writes the same.
async fn files_of(
    app: &App,
    tenant: &TenantId,
    record: &BatchRecord,
    keys: &JobKeys,
    summary: &FinalManifest,
    counts: Counts,
    at: u64,
) -> Result<(Option<String>, Option<String>), ApiError> {
    let output = match counts.completed {
        0 => None,
        _ => {
            let bytes = summary.parts.iter().map(|part| part.bytes).sum();
            Some(file(app, tenant, record, What::Output, bytes, at).await?)
        }
    };
    let errors = match counts.failed {
        0 => None,
        _ => {
            let mut bytes = 0;
            for prefix in [keys.rejected_prefix(), keys.errors_prefix()] {
                bytes += app.store.list(&prefix, None).await?.iter().map(|object| object.bytes).sum::<u64>();
            }
            Some(file(app, tenant, record, What::Errors, bytes, at).await?)
        }
    };
    Ok((output, errors))
}

/// Writes the record of one of them: as long as the objects that it is made of.
async fn file(
    app: &App,
    tenant: &TenantId,
    record: &BatchRecord,
    what: What,
    bytes: u64,
    at: u64,
) -> Result<String, ApiError> {
    let (name, form) = match (what, record.order.output.format) {
        (What::Output, OutputFormat::Parquet) => ("output", "parquet"),
        (What::Output, OutputFormat::Jsonl) => ("output", "jsonl"),
        (What::Errors, _) => ("error", "jsonl"),
    };
    // The last moment of its second: it was not there before its input.
    let id = ids::derived(files::PREFIX, at * 1000 + 999, &format!("{} {name}", record.id));
    let filename = format!("{}_{name}.{form}", record.id);
    let made_from = MadeFrom { batch: record.id.clone(), what };
    FileRecord::made(id.clone(), bytes, at, filename, made_from).write(app, tenant).await?;
    Ok(id)
}

fn seconds(time: jiff::Timestamp) -> u64 {
    time.as_second().unsigned_abs()
}
