//! Where a batch stands: its record, and the job it has become.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;
use vecmill_signer::claims::{JobId, TenantId};

use super::super::error::ApiError;
use super::super::files::{self, FileRecord, MadeFrom, What};
use super::super::{App, ids, storage};
use super::record::{BadLine, BatchRecord, Counts, End, Ended, OutputFormat};
use crate::contract::{Cancelled, JobKeys};
use crate::status::{JobState, JobStatus, Waiting};
use crate::submit::Submitted;

/// How long a batch is `cancelling`: workers stop within it.
const CANCELLING_S: u64 = 3;

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
    /// What it has cost so far.
    usage: Usage,
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
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn is_validating(&self) -> bool {
        self.status == State::Validating
    }

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
            usage: Usage::of(0),
            metadata: record.metadata,
            model: record.order.model,
            job: record.job,
            submitted: record.submitted,
            waiting: None,
        }
    }

    fn ended(mut record: BatchRecord, cancelling_at: Option<u64>) -> Self {
        let Some(ended) = record.ended.take() else { return Self::of(record, State::Failed) };
        let status = match ended.state {
            End::Completed => State::Completed,
            End::Failed => State::Failed,
            End::Expired => State::Expired,
            End::Cancelled => State::Cancelled,
        };
        let at = Some(ended.at);
        let mut batch = Self::of(record, status);
        match ended.state {
            End::Completed => (batch.finalizing_at, batch.completed_at) = (at, at),
            End::Failed => batch.failed_at = at,
            End::Expired => batch.expired_at = at,
            End::Cancelled => (batch.cancelling_at, batch.cancelled_at) = (cancelling_at.or(at), at),
        }
        batch.request_counts = ended.counts;
        batch.usage = Usage::of(ended.tokens);
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

/// Where a batch stands now. Its end is written down the first time that it is seen, with the files it has come to.
pub(super) async fn look(app: &App, tenant: &TenantId, mut record: BatchRecord) -> Result<Batch, ApiError> {
    if record.ended.is_some() || record.failed_at.is_some() {
        return Ok(Batch::ended(record, None));
    }
    let marked: Option<Cancelled> =
        app.store.get_json(&storage::batch_cancelled(tenant, &record.id), storage::RECORD_BYTES_MAX).await?;
    let marked_at = marked.map(|cancelled| seconds(cancelled.at));
    let Some(job) = record.job.clone() else {
        let over_at = record.created_at + record.window_s;
        let (state, at) = match marked_at {
            Some(at) => (End::Cancelled, at),
            // Nobody could prepare it in its whole window.
            None if over_at <= ids::unix_s() => (End::Expired, over_at),
            None => return Ok(Batch::of(record, State::Validating)),
        };
        let counts = Counts::default();
        record.ended = Some(Ended { state, at, counts, tokens: 0, output_file_id: None, error_file_id: None });
        return Ok(Batch::ended(record, marked_at));
    };
    let status = JobStatus::read(&app.store, tenant, &job).await?;
    let end = match status.state {
        JobState::Completed => Some(End::Completed),
        JobState::Failed => Some(End::Failed),
        JobState::Expired => Some(End::Expired),
        _ if marked_at.is_some() => Some(End::Cancelled),
        JobState::Cancelled => Some(End::Cancelled),
        _ => None,
    };
    let ended_at = status.ended_at.map_or_else(ids::unix_s, seconds);
    let stopping = end == Some(End::Cancelled) && ids::unix_s() < marked_at.unwrap_or(ended_at) + CANCELLING_S;
    let (Some(state), false) = (end, stopping) else {
        let state = match status.state {
            _ if stopping => State::Cancelling,
            JobState::Finalizing => State::Finalizing,
            _ => State::InProgress,
        };
        let mut batch = Batch::of(record, state);
        batch.cancelling_at = stopping.then(|| marked_at.unwrap_or(ended_at));
        batch.request_counts = counts(&status, false);
        batch.usage = Usage::of(status.tokens.unwrap_or_default());
        batch.waiting = status.waiting;
        return Ok(batch);
    };
    let at = marked_at.filter(|_| state == End::Cancelled).unwrap_or(ended_at);
    let counts = counts(&status, true);
    let (output_file_id, error_file_id) = files_of(app, tenant, &record, &job, counts, at).await?;
    let tokens = status.tokens.unwrap_or_default();
    if state == End::Failed {
        record.bad_lines.extend(status.dead.iter().map(|dead| BadLine {
            code: dead.code.clone(),
            line: None,
            message: format!("chunk {}: {}", dead.chunk, dead.reason),
            param: None,
        }));
        record.bad_lines.truncate(super::record::BAD_LINES_MAX);
    }
    record.ended = Some(Ended { state, at, counts, tokens, output_file_id, error_file_id });
    record.write(app, tenant).await?;
    app.shared.give_back(tenant, &job).await;
    Ok(Batch::ended(record, marked_at))
}

/// Lines of a job: those without a vector have failed once it has ended.
fn counts(status: &JobStatus, ended: bool) -> Counts {
    let total = status.rows + status.rejected;
    let completed = status.rows_done.saturating_sub(status.rows_failed.unwrap_or_default());
    let failed = if ended { total - completed } else { status.rows_failed.unwrap_or_default() + status.rejected };
    Counts { total, completed, failed }
}

/// The records of a batch's two files, where it has them. Whoever writes them writes the same.
async fn files_of(
    app: &App,
    tenant: &TenantId,
    record: &BatchRecord,
    job: &JobId,
    counts: Counts,
    at: u64,
) -> Result<(Option<String>, Option<String>), ApiError> {
    let keys = JobKeys::new(tenant, job);
    let output = match counts.completed {
        0 => None,
        _ => Some(file(app, tenant, record, What::Output, &[keys.parts_prefix()], at).await?),
    };
    let errors = match counts.failed {
        0 => None,
        _ => Some(file(app, tenant, record, What::Errors, &[keys.rejected_prefix(), keys.errors_prefix()], at).await?),
    };
    Ok((output, errors))
}

/// Writes the record of one of them: as long as the objects that it is made of.
async fn file(
    app: &App,
    tenant: &TenantId,
    record: &BatchRecord,
    what: What,
    prefixes: &[String],
    at: u64,
) -> Result<String, ApiError> {
    let mut bytes = 0;
    for prefix in prefixes {
        bytes += app.store.list(prefix, None).await?.iter().map(|object| object.bytes).sum::<u64>();
    }
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
