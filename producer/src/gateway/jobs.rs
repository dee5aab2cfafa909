//! `/v1/jobs`: where each job stands and why it waits, its parts while it runs, and a hand on it. A batch is a job, too.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::header::CONTENT_LENGTH;
use axum::response::sse::{Event, KeepAlive};
use axum::response::{IntoResponse as _, Response, Sse};
use axum::{Extension, Json};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;
use utoipa::{IntoParams, ToSchema};
use vecmill_signer::claims::{JobId, TenantId};

use super::App;
use super::auth::Caller;
use super::embeddings::parsed;
use super::error::{ApiError, ErrorEnvelope};
use super::files::{named, streamed};
use super::paging;
use crate::contract::{ChunkResult, FinalManifest, JobKeys, MANIFEST_BYTES_MAX, Submission};
use crate::control;
use crate::status::{JobState, JobStatus, WaitReason, Waiting, Watch, list_jobs};
use crate::submit::{SubmitError, Submitted, repair};

/// Jobs looked at at once for a list.
const LOOKS_MAX: usize = 8;
/// Most jobs of a list, and how many where nobody says.
const LIST_MAX: usize = 1_000;
const LIST_DEFAULT: usize = 100;
/// Records read at once.
const READS_MAX: usize = 32;
/// Small JSON documents are this long at most.
const DOCUMENT_BYTES_MAX: usize = 64 << 10;
/// Between two looks at a job that is watched.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Looks that may fail in a row before a watch ends: an S3 server that restarts is back by then.
const FAILED_LOOKS_MAX: u32 = 60;
/// Completion window of what goes on, where nobody says: as `vecmill repair` has it.
const WINDOW_S: u64 = 24 * 3600;

/// Where a job stands; `vecmill status --json` prints the same.
#[derive(ToSchema)]
#[expect(dead_code, reason = "for the description only")]
pub(super) struct Job {
    /// Its id.
    job: String,
    /// Its state.
    state: String,
    /// A sentence where the state alone leaves a question.
    note: Option<String>,
    /// What it waits for: a reason for programs, until when, and a sentence.
    #[schema(value_type = Option<Object>)]
    waiting: Option<()>,
    /// Texts in the job.
    rows: u64,
    /// Texts in finished chunks.
    rows_done: u64,
    /// Of these, texts that failed.
    rows_failed: Option<u64>,
    /// Texts that have not been looked at.
    rows_waiting: u64,
    /// Exact tokens done.
    tokens: Option<u64>,
    /// Tokens that wait, about.
    tokens_waiting: Option<u64>,
    /// Texts a second over the last minute.
    rows_per_s: Option<f64>,
    /// Seconds to go at that rate.
    eta_s: Option<u64>,
}

/// What was published again.
#[derive(ToSchema)]
#[expect(dead_code, reason = "for the description only")]
pub(super) struct Retried {
    /// The job.
    job: String,
    /// Its chunks.
    chunks: u32,
    /// Of these, those that go on.
    published: u32,
    /// Its state before.
    was: String,
}

/// The tenant's jobs.
#[derive(Serialize, ToSchema)]
pub(super) struct Jobs {
    /// `list`.
    object: &'static str,
    /// The jobs, in the order of their ids.
    #[schema(value_type = Vec<Job>)]
    data: Vec<JobStatus>,
    /// The last's id: `after` it come the next.
    last_id: Option<String>,
    /// Whether there are more.
    has_more: bool,
}

/// Which jobs to list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    /// The id after which the list begins.
    #[param(pattern = "^[0-9a-f]{32}$")]
    after: Option<String>,
    /// How many, 1 to 1,000; 100 where this is left out.
    #[param(minimum = 1, maximum = 1_000)]
    limit: Option<usize>,
}

/// A finished part.
#[derive(Serialize, ToSchema)]
pub(super) struct Part {
    /// Its number: the chunk that it is made of.
    part: u32,
    /// Texts with a vector.
    rows: u32,
    /// Texts that failed.
    failed: u32,
    /// Exact tokens.
    tokens: u64,
    /// Length of the Parquet file.
    bytes: u64,
    /// Its SHA-256, in hex.
    sha256: String,
}

/// A job's summary.
#[derive(ToSchema)]
#[expect(dead_code, reason = "for the description only")]
pub(super) struct Summary {
    /// The job.
    job: String,
    /// Rows with a vector.
    rows: u64,
    /// Rows that failed.
    failed: u64,
    /// Exact tokens.
    tokens: u64,
    /// The parts in input order.
    #[schema(value_type = Vec<Object>)]
    parts: Vec<()>,
}

/// The parts of a job that are finished.
#[derive(Serialize, ToSchema)]
pub(super) struct Parts {
    /// `list`.
    object: &'static str,
    /// The parts, in input order.
    data: Vec<Part>,
    /// Whether these are all.
    complete: bool,
}

/// How what is left of a job goes on.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Again {
    /// How long it may take: hours or days, such as `1h`, `24h` or `7d`. A day where this is left out.
    #[schema(pattern = "^([1-9][0-9]{0,2}h|[1-7]d)$")]
    completion_window: Option<String>,
}

type JobPath = Result<Path<String>, PathRejection>;

fn no_such_job() -> ApiError {
    ApiError::not_found("job_not_found", "there is no such job of this tenant; /v1/jobs lists those there are")
        .at("job")
}

/// A watch of a job that is there.
async fn found(app: &App, tenant: &TenantId, id: JobPath) -> Result<(JobId, Watch), ApiError> {
    let job = id.ok().and_then(|Path(id)| JobId::try_from(id).ok()).ok_or_else(no_such_job)?;
    let watch = Watch::new(app.store.clone(), tenant, &job);
    if watch.exists().await? { Ok((job, watch)) } else { Err(no_such_job()) }
}

/// The tenant's jobs.
#[utoipa::path(
    get,
    path = "/v1/jobs",
    params(Page),
    responses(
        (status = 200, description = "The jobs", body = Jobs),
        (status = 400, response = ErrorEnvelope),
    ),
)]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<Jobs>, ApiError> {
    let Query(page) = page.map_err(|error| ApiError::bad_query(&error))?;
    let limit = paging::limit(page.limit, LIST_DEFAULT, LIST_MAX)?;
    let after = page.after.map(JobId::try_from).transpose();
    let after =
        after.map_err(|_| ApiError::invalid("invalid_query", Some("after"), "after must be the id of a job"))?;
    let tenant = caller.access.tenant();
    let mut jobs = list_jobs(&app.store, tenant).await?;
    jobs.retain(|job| after.as_ref().is_none_or(|after| job > after));
    jobs.sort();
    let has_more = jobs.len() > limit;
    jobs.truncate(limit);
    let last_id = jobs.last().map(JobId::to_string);
    let mut data: Vec<JobStatus> = stream::iter(jobs)
        .map(|job| {
            let store = &app.store;
            async move { JobStatus::read(store, tenant, &job).await }
        })
        .buffered(LOOKS_MAX)
        .try_collect()
        .await?;
    data.retain(JobStatus::is_known);
    Ok(Json(Jobs { object: "list", data, last_id, has_more }))
}

/// Where a job stands, and why it waits.
#[utoipa::path(
    get,
    path = "/v1/jobs/{job}",
    params(("job" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "Where it stands", body = Job),
        (status = 404, response = ErrorEnvelope),
    ),
)]
pub(super) async fn get(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    id: JobPath,
) -> Result<Json<JobStatus>, ApiError> {
    let (_, mut watch) = found(&app, caller.access.tenant(), id).await?;
    Ok(Json(look(&app, &caller, &mut watch).await?))
}

/// A job's status as it changes: an event `status` a second at most, the last when the job has ended.
#[utoipa::path(
    get,
    path = "/v1/jobs/{job}/events",
    params(("job" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "Server-sent events", content_type = "text/event-stream"),
        (status = 404, response = ErrorEnvelope),
    ),
)]
pub(super) async fn events(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    id: JobPath,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let (_, watch) = found(&app, caller.access.tenant(), id).await?;
    let place = app.transfer()?;
    Ok(Sse::new(statuses(app, caller, watch, place)).keep_alive(KeepAlive::default()))
}

fn statuses(
    app: Arc<App>,
    caller: Caller,
    watch: Watch,
    place: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Event, Infallible>> {
    struct Watching {
        app: Arc<App>,
        caller: Caller,
        watch: Watch,
        last: Option<JobStatus>,
        _place: OwnedSemaphorePermit,
    }
    let watching = Watching { app, caller, watch, last: None, _place: place };
    stream::unfold(watching, async |mut watching| {
        if watching.last.as_ref().is_some_and(|status| status.state.is_final()) {
            return None;
        }
        let mut failed_looks = 0;
        let status = loop {
            if watching.last.is_some() || failed_looks > 0 {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            match look(&watching.app, &watching.caller, &mut watching.watch).await {
                Ok(status) if watching.last.as_ref() != Some(&status) => break status,
                Ok(_) => failed_looks = 0,
                Err(_) if failed_looks < FAILED_LOOKS_MAX => failed_looks += 1,
                Err(_) => return None,
            }
            // Whoever was cut off meanwhile hears no more.
            if watching.app.auth.still_good(&watching.caller).await.is_err() {
                return None;
            }
        };
        let event = Event::default().event("status").json_data(&status).unwrap_or_default();
        watching.last = Some(status);
        Some((Ok(event), watching))
    })
}

/// The status, with what only the servers beside S3 know of why the job waits.
async fn look(app: &App, caller: &Caller, watch: &mut Watch) -> Result<JobStatus, ApiError> {
    let mut status = watch.look().await?;
    if matches!(status.state, JobState::Queued | JobState::Running) && status.waiting.is_none() {
        status.waiting = waiting(app, caller, watch.keys(), &status).await;
        if let Some(waiting) = &status.waiting {
            status.note = Some(waiting.message.clone());
        }
    }
    Ok(status)
}

/// Why a job that could run does not, or not faster. What can't be asked at the moment is passed over: the status itself is
/// from S3.
async fn waiting(app: &App, caller: &Caller, keys: &JobKeys, status: &JobStatus) -> Option<Waiting> {
    let tenant = caller.access.tenant();
    let submission: Submission = app.store.get_json(&keys.submission(), DOCUMENT_BYTES_MAX).await.ok()??;
    let lane = match submission.lane {
        Some(lane) => lane_of(app, lane).await,
        None => None,
    };
    if let Some(Lane { workers: 0, .. }) = lane {
        let message = "no worker takes chunks from its lane: it goes on when one starts".to_owned();
        return Some(Waiting { reason: WaitReason::NoWorker, until: None, message });
    }
    let each = match (status.tokens, status.chunks_done) {
        (Some(tokens), done @ 1..) => tokens / u64::from(done),
        _ => 1,
    };
    if let Some((reason, limit, wait_ms)) = app.limits.wait(tenant, caller.access.limits(), each).await {
        let until = jiff::Timestamp::now() + Duration::from_millis(wait_ms);
        let message = format!("the tenant is over its quota ({limit}) until {until:.0}; nothing is lost meanwhile");
        return Some(Waiting { reason, until: Some(until), message });
    }
    let lane = lane?;
    let message = format!(
        "{} chunks wait in its lane, its own {} among them; workers that take them in turn: {}",
        lane.chunks, status.chunks, lane.workers
    );
    (status.state == JobState::Queued && lane.chunks > 0).then_some(Waiting {
        reason: WaitReason::Backlog,
        until: None,
        message,
    })
}

/// A lane as RabbitMQ sees it.
struct Lane {
    chunks: u32,
    workers: u32,
}

async fn lane_of(app: &App, lane: u32) -> Option<Lane> {
    let topology = app.broker.topology();
    let queue = topology.lane_queue(&topology.lane_key_of(lane));
    let declared = app.workers.channel().await?;
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    let queue = declared.queue_declare(queue.as_str().into(), options, FieldTable::default()).await.ok()?;
    Some(Lane { chunks: queue.message_count(), workers: queue.consumer_count() })
}

/// The parts that are finished, while the job runs and after.
#[utoipa::path(
    get,
    path = "/v1/jobs/{job}/parts",
    params(("job" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "The parts", body = Parts),
        (status = 404, response = ErrorEnvelope),
    ),
)]
pub(super) async fn parts(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    id: JobPath,
) -> Result<Json<Parts>, ApiError> {
    let (_, watch) = found(&app, caller.access.tenant(), id).await?;
    let keys = watch.keys();
    let complete = app.store.exists(&keys.success()).await?;
    let done = app.store.list(&keys.done_prefix(), None).await?;
    let records: Vec<Option<ChunkResult>> = stream::iter(done)
        .map(|object| {
            let store = &app.store;
            async move { store.get_json(&object.key, DOCUMENT_BYTES_MAX).await }
        })
        .buffered(READS_MAX)
        .try_collect()
        .await?;
    let data = records.into_iter().flatten().map(|record| Part {
        part: record.chunk,
        rows: record.rows,
        failed: record.failed,
        tokens: record.tokens,
        bytes: record.part_bytes,
        sha256: record.part_sha256.to_string(),
    });
    Ok(Json(Parts { object: "list", data: data.collect(), complete }))
}

/// A finished part: a Parquet file.
#[utoipa::path(
    get,
    path = "/v1/jobs/{job}/parts/{part}",
    params(("job" = String, Path, description = "Its id"), ("part" = u32, Path, description = "The part's number")),
    responses(
        (status = 200, description = "The part", content_type = "application/octet-stream"),
        (status = 404, response = ErrorEnvelope),
    ),
)]
pub(super) async fn part(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<Response, ApiError> {
    let Path((id, part)) = path.map_err(|_| no_such_job())?;
    let (_, watch) = found(&app, caller.access.tenant(), Ok(Path(id))).await?;
    let keys = watch.keys();
    let no_such_part = || {
        ApiError::not_found("part_not_found", "that part is not finished; the job's parts lists those that are")
            .at("part")
    };
    let part: u32 = part.parse().map_err(|_| no_such_part())?;
    if !app.store.exists(&keys.done(part)).await? {
        return Err(no_such_part());
    }
    let place = app.transfer()?;
    let (bytes, stream) = app.store.open(&keys.part(part)).await?.ok_or_else(no_such_part)?;
    let mut response = named(&format!("part-{part:06}.parquet"), streamed(stream, place));
    response.headers_mut().insert(CONTENT_LENGTH, bytes.into());
    Ok(response)
}

/// The summary of a job that has ended: every part with its rows and digests.
#[utoipa::path(
    get,
    path = "/v1/jobs/{job}/manifest",
    params(("job" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "The summary", body = Summary),
        (status = 404, response = ErrorEnvelope),
    ),
)]
pub(super) async fn manifest(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    id: JobPath,
) -> Result<Json<FinalManifest>, ApiError> {
    let (_, watch) = found(&app, caller.access.tenant(), id).await?;
    let summary: Option<FinalManifest> =
        app.store.get_json(&watch.keys().final_manifest(), 2 * MANIFEST_BYTES_MAX).await?;
    let not_yet =
        || ApiError::not_found("manifest_not_found", "the job has not ended: its summary is written at its end");
    Ok(Json(summary.ok_or_else(not_yet)?))
}

/// Every row without a vector, as JSON lines: rejected ones, then those that failed.
#[utoipa::path(
    get,
    path = "/v1/jobs/{job}/errors",
    params(("job" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "JSON lines: line, id, code, message", content_type = "application/x-ndjson"),
        (status = 404, response = ErrorEnvelope),
    ),
)]
pub(super) async fn errors(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    id: JobPath,
) -> Result<Response, ApiError> {
    let (_, watch) = found(&app, caller.access.tenant(), id).await?;
    let place = app.transfer()?;
    let keys = watch.keys();
    let mut objects = app.store.list(&keys.rejected_prefix(), None).await?;
    objects.extend(app.store.list(&keys.errors_prefix(), None).await?);
    let keys: Vec<String> = objects.into_iter().map(|object| object.key).collect();
    let body = stream::try_unfold((app, keys.into_iter(), None, place), async |(app, mut keys, mut open, place)| {
        loop {
            let mut now: Option<crate::store::ByteStream> = open.take();
            if let Some(stream) = &mut now
                && let Some(piece) = stream.try_next().await.map_err(std::io::Error::other)?
            {
                return Ok::<_, std::io::Error>(Some((piece, (app, keys, now, place))));
            }
            let Some(key) = keys.next() else { return Ok(None) };
            open = app.store.open(&key).await.map_err(std::io::Error::other)?.map(|(_, stream)| stream);
        }
    });
    let content_type = [(axum::http::header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((content_type, axum::body::Body::from_stream(body)).into_response())
}

/// What can be said to a job that is under way.
#[derive(Clone, Copy)]
enum Say {
    Cancel,
    Pause,
    Resume,
}

async fn say(app: &App, caller: &Caller, id: JobPath, say: Say) -> Result<Json<JobStatus>, ApiError> {
    let tenant = caller.access.tenant();
    let (job, mut watch) = found(app, tenant, id).await?;
    let status = watch.look().await?;
    let keys = watch.keys();
    match say {
        // Said to one that has ended, there is nothing to do.
        _ if status.state.is_final() => {}
        Say::Cancel => {
            control::cancel(&app.store, keys).await?;
            app.shared.give_back(tenant, &job).await;
        }
        Say::Pause => control::pause(&app.store, keys).await?,
        Say::Resume => control::resume(&app.store, keys).await?,
    }
    Ok(Json(look(app, caller, &mut watch).await?))
}

/// Cancels a job; what is finished stays.
#[utoipa::path(
    post,
    path = "/v1/jobs/{job}/cancel",
    params(("job" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "Where it stands", body = Job),
        (status = 404, response = ErrorEnvelope),
    ),
)]
pub(super) async fn cancel(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    id: JobPath,
) -> Result<Json<JobStatus>, ApiError> {
    say(&app, &caller, id, Say::Cancel).await
}

/// Holds a job up: within seconds no chunk of it is begun. Its window goes on.
#[utoipa::path(
    post,
    path = "/v1/jobs/{job}/pause",
    params(("job" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "Where it stands", body = Job),
        (status = 404, response = ErrorEnvelope),
    ),
)]
pub(super) async fn pause(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    id: JobPath,
) -> Result<Json<JobStatus>, ApiError> {
    say(&app, &caller, id, Say::Pause).await
}

/// Lets a job go on that was held up, within half a minute.
#[utoipa::path(
    post,
    path = "/v1/jobs/{job}/resume",
    params(("job" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "Where it stands", body = Job),
        (status = 404, response = ErrorEnvelope),
    ),
)]
pub(super) async fn resume(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    id: JobPath,
) -> Result<Json<JobStatus>, ApiError> {
    say(&app, &caller, id, Say::Resume).await
}

/// Publishes again what is not done of a job: chunks that were given up, or all that is left of one that was cancelled, has
/// expired, or was lost by the broker.
#[utoipa::path(
    post,
    path = "/v1/jobs/{job}/retry",
    request_body(content = Again, content_type = "application/json"),
    params(("job" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "What was published", body = Retried),
        (status = 400, response = ErrorEnvelope),
        (status = 404, response = ErrorEnvelope),
        (status = 413, response = ErrorEnvelope),
    ),
)]
pub(super) async fn retry(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    id: JobPath,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Submitted>, ApiError> {
    let (job, _) = found(&app, caller.access.tenant(), id).await?;
    let again: Again = match body {
        Ok(body) if body.is_empty() => Again::default(),
        body => parsed(body, "how a job goes on")?,
    };
    let window_s = match again.completion_window.as_deref() {
        None => WINDOW_S,
        Some(text) => super::batches::window(text)?,
    };
    let signer = app.auth.signer(&caller)?;
    let published = repair(&app.store, &signer, &app.broker, &job, window_s, |_| {}).await;
    let published = published.map_err(|error| match error {
        SubmitError::Signer(error) => ApiError::from(error),
        error => {
            tracing::warn!(%job, %error, "a job could not be published again");
            ApiError::unavailable("publish_failed", "the rest of the job could not be published; ask again")
        }
    })?;
    tracing::info!(tenant = %caller.access.tenant(), key_id = caller.access.key_id(), %job, "job retried");
    Ok(Json(published.ok_or_else(no_such_job)?))
}
