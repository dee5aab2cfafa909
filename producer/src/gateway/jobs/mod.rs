//! `/v1/jobs`: where each job stands and why it waits, its parts while it runs, and a hand on it. A batch is a job, too.

pub(super) mod results;
mod waiting;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use axum::{Extension, Json};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use vecmill_signer::claims::{JobId, TenantId};

use super::App;
use super::auth::Caller;
use super::embeddings::parsed;
use super::error::{ApiError, ErrorEnvelope};
use super::shared::{Reservation, refusal};
use super::{ids, paging};
use crate::contract::{JobKeys, MANIFEST_BYTES_MAX, Manifest, tenant_jobs_prefix};
use crate::control;
use crate::life::Ledger;
use crate::shares::Share;
use crate::status::{JobState, JobStatus, StatusError, Watch, list_jobs};
use crate::submit::{SubmitError, Submitted, repair};

/// Jobs looked at at once for a list.
const LOOKS_MAX: usize = 8;
/// Most jobs of a list, and how many where nobody says.
const LIST_MAX: usize = 1_000;
const LIST_DEFAULT: usize = 100;
/// Between two looks at a job that is watched.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Longest life of a watch: whoever wants to see more begins another, and its place is shared out anew.
const WATCH_MAX: Duration = Duration::from_secs(3600);
/// Bytes of a body: it may name a window.
const BODY_BYTES_MAX: usize = 1 << 10;
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
    /// The run that counts: each submission that takes the job up begins one. Within a run no state and no count goes back.
    run: u32,
    /// The prefix under which its results lie on S3.
    prefix: Option<String>,
    /// Its state: `validating`, `queued`, `running`, `finalizing`, `completed`, `failed`, `expired`, `cancelling` or `cancelled`.
    state: String,
    /// A sentence where the state alone leaves a question.
    note: Option<String>,
    /// What it waits for: a reason for programs, until when, and a sentence.
    #[schema(value_type = Option<Object>)]
    waiting: Option<()>,
    /// The precision that it asks for: `f32`, `bf16` or `fp8`; null where any will do.
    precision: Option<String>,
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
    let watch = app.watch(tenant, &job);
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
            let app = &app;
            async move {
                let status = app.status(tenant, &job).await.map(Some);
                app.shared.or_set_aside(&format!("{}{job}/", tenant_jobs_prefix(tenant)), status)
            }
        })
        .buffered(LOOKS_MAX)
        .try_filter_map(async |status| Ok::<_, ApiError>(status))
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
    let place = app.transfer(caller.access.tenant())?;
    Ok(Sse::new(statuses(app, caller, watch, place)).keep_alive(KeepAlive::default()))
}

fn statuses(
    app: Arc<App>,
    caller: Caller,
    watch: Watch,
    place: Share,
) -> impl Stream<Item = Result<Event, Infallible>> {
    struct Watching {
        app: Arc<App>,
        caller: Caller,
        watch: Watch,
        last: Option<JobStatus>,
        until: Instant,
        _place: Share,
    }
    let until = Instant::now() + WATCH_MAX;
    let watching = Watching { app, caller, watch, last: None, until, _place: place };
    stream::unfold(watching, async |mut watching| {
        if watching.last.as_ref().is_some_and(|status| status.state.is_final()) {
            return None;
        }
        let mut failed_looks = 0;
        let status = loop {
            if watching.last.is_some() || failed_looks > 0 {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            if watching.until <= Instant::now() {
                return None;
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
        status.waiting = waiting::waiting(app, caller, &status).await;
        if let Some(waiting) = &status.waiting {
            status.note = Some(waiting.message.clone());
        }
    }
    Ok(status)
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
    // Said to one that has ended, there is nothing to do.
    if !watch.look().await?.state.is_final() {
        match say {
            Say::Cancel => {
                control::cancel(watch.ledger()).await?;
                app.shared.give_back(tenant, &job, true).await;
            }
            Say::Pause => drop(control::pause(watch.ledger()).await?),
            Say::Resume => {
                // Until its own window's end: what it held may have been lost with Redis, or never taken.
                let until = watch.look().await?.expires_at.map_or(0, |at| at.as_second().unsigned_abs());
                reserve(app, caller, &job, until).await?;
                drop(control::resume(watch.ledger()).await?);
            }
        }
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

/// Reserves for what is left of a job, as a batch does for all of it: whatever begins a run, or lets one go on, is held to the
/// tenant's limits of what is queued.
async fn reserve(app: &App, caller: &Caller, job: &JobId, until: u64) -> Result<(), ApiError> {
    let tenant = caller.access.tenant();
    let status = app.status(tenant, job).await?;
    if status.state == JobState::Completed {
        return Ok(());
    }
    let Some(entry) = Ledger::new(app.store.clone(), tenant, job).head().await? else { return Ok(()) };
    let keys = JobKeys::new(tenant, job, entry.job.at());
    let Some(bytes) = app.store.get(&keys.manifest(), MANIFEST_BYTES_MAX).await? else { return Ok(()) };
    let manifest = Manifest::parse(&bytes).map_err(StatusError::from)?;
    let wanted = Reservation::of_rest(job, &manifest, &status, until);
    app.shared.reserve(&app.store, tenant, caller.access.limits(), wanted).await.map_err(refusal)
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
        Ok(body) if body.len() > BODY_BYTES_MAX => {
            return Err(ApiError::too_large(format!("the body may have {BODY_BYTES_MAX} bytes")));
        }
        Ok(body) if body.is_empty() => Again::default(),
        body => parsed(body, "how a job goes on")?,
    };
    let window_s = match again.completion_window.as_deref() {
        None => WINDOW_S,
        Some(text) => super::batches::window(text)?,
    };
    let signer = app.auth.signer(&caller)?;
    let tenant = caller.access.tenant();
    reserve(&app, &caller, &job, ids::unix_s() + window_s).await?;
    let published = repair(&app.store, &signer, &app.broker, &job, window_s, |_| {}).await;
    if !matches!(&published, Ok(Some(_))) {
        // Nothing was begun; what runs keeps what it holds.
        let head = Ledger::new(app.store.clone(), tenant, &job).head().await?;
        if head.is_none_or(|head| head.job.unfinished().is_none()) {
            app.shared.give_back(tenant, &job, true).await;
        }
    }
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
