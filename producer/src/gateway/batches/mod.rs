//! `/v1/batches`: the same jobs that `vecmill submit` makes, from an uploaded file and in OpenAI's words.

mod content;
pub(super) mod create;
mod pending;
mod prepare;
mod record;
mod turns;
mod view;

use std::sync::Arc;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::{Extension, Json};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use vecmill_signer::claims::{JobId, TenantId};

use super::auth::Caller;
use super::embeddings::printable;
use super::error::{ApiError, ErrorEnvelope};
use super::files::What;
use super::{App, ids, paging, storage};
use crate::contract::RunId;
use crate::life::{Appended, Entry, Event, Ledger, Moot, UNRECORDED};

pub(super) use content::content;
pub(super) use create::window;
pub(super) use pending::run;
pub(super) use record::BatchRecord;
use record::PREFIX;
pub(super) use turns::Turns;
pub(super) use view::Batch;

/// The one endpoint of a batch.
const ENDPOINT: &str = "/v1/embeddings";
/// Most batches of a list, and how many where nobody says.
const LIST_MAX: usize = 100;
const LIST_DEFAULT: usize = 20;
/// Batches looked at at once for a list; each that runs is a handful of S3 requests.
const LOOKS_MAX: usize = 8;
/// Seconds after which a batch without its record never was: whoever made it has died in between.
const RECORD_WITHIN_S: u64 = 60;

/// Which batches to list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    /// The id after which the list begins.
    after: Option<String>,
    /// How many, 1 to 100; 20 where this is left out.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<usize>,
}

/// Some batches.
#[derive(Serialize, ToSchema)]
pub(super) struct BatchList {
    /// `list`.
    object: &'static str,
    /// The batches, the newest first.
    data: Vec<Batch>,
    /// The first's id.
    first_id: Option<String>,
    /// The last's id: `after` it come the next.
    last_id: Option<String>,
    /// Whether there are more.
    has_more: bool,
}

/// How far a batch is, for whoever tells of its end.
pub(super) enum Ended {
    /// There is no such batch.
    Gone,
    /// It is under way.
    NotYet,
    /// It has ended: OpenAI's name of the event, and when, in Unix seconds.
    At {
        /// Such as `batch.completed`.
        kind: &'static str,
        /// When.
        at: u64,
    },
}

/// Whether a batch that was made at `created_at` has ended, and how.
pub(super) async fn end_of(app: &App, tenant: &TenantId, id: &str, created_at: u64) -> Result<Ended, ApiError> {
    let Some(record) = BatchRecord::read(app, tenant, id).await? else {
        let awaited = ids::unix_s() < created_at + RECORD_WITHIN_S;
        return Ok(if awaited { Ended::NotYet } else { Ended::Gone });
    };
    Ok(view::look(app, tenant, record).await?.end())
}

type Id = Result<Path<String>, PathRejection>;

async fn found(app: &App, caller: &Caller, id: Id) -> Result<BatchRecord, ApiError> {
    let id = id.map(|Path(id)| id).unwrap_or_default();
    BatchRecord::read(app, caller.access.tenant(), &id).await?.ok_or_else(|| {
        let sentence = format!("there is no batch {} of this tenant", printable(&id));
        ApiError::not_found("batch_not_found", sentence).at("batch_id")
    })
}

/// One batch.
#[utoipa::path(
    get,
    path = "/v1/batches/{batch_id}",
    params(("batch_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "The batch", body = Batch),
        (status = 404, response = ErrorEnvelope),
    ),
)]
pub(super) async fn get(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    id: Id,
) -> Result<Json<Batch>, ApiError> {
    let record = found(&app, &caller, id).await?;
    Ok(Json(view::look(&app, caller.access.tenant(), record).await?))
}

/// The tenant's batches.
#[utoipa::path(
    get,
    path = "/v1/batches",
    params(Page),
    responses(
        (status = 200, description = "The batches", body = BatchList),
        (status = 400, response = ErrorEnvelope),
    ),
)]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<BatchList>, ApiError> {
    let Query(page) = page.map_err(|error| ApiError::bad_query(&error))?;
    let limit = paging::limit(page.limit, LIST_DEFAULT, LIST_MAX)?;
    paging::after(page.after.as_deref(), PREFIX)?;
    let tenant = caller.access.tenant();
    let start_after = page.after.map(|after| storage::batch(tenant, &after));
    // One more than asked for tells whether there are more.
    let objects = app.store.list_some(&storage::batches(tenant), start_after.as_deref(), limit + 1).await?;
    let has_more = objects.len() > limit;
    let ids: Vec<String> =
        objects.iter().take(limit).map(|object| storage::id_of_key(&object.key).to_owned()).collect();
    // Of what is listed, whether or not it can be read: the next page must begin behind it.
    let (first_id, last_id) = paging::ends(&ids, |id: &String| id);
    let data: Vec<Batch> = stream::iter(ids)
        .map(|id| {
            let app = &app;
            async move {
                let looked = async {
                    match BatchRecord::read(app, tenant, &id).await? {
                        Some(record) => view::look(app, tenant, record).await.map(Some),
                        None => Ok(None),
                    }
                };
                app.shared.or_set_aside(&storage::batch(tenant, &id), looked.await)
            }
        })
        .buffered(LOOKS_MAX)
        .try_filter_map(async |batch| Ok::<_, ApiError>(batch))
        .try_collect()
        .await?;
    Ok(Json(BatchList { object: "list", data, first_id, last_id, has_more }))
}

/// Cancels a batch; what is finished stays. Its job goes on where another batch or a submission wants it, too.
#[utoipa::path(
    post,
    path = "/v1/batches/{batch_id}/cancel",
    params(("batch_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "The batch", body = Batch),
        (status = 404, response = ErrorEnvelope),
        (status = 409, response = ErrorEnvelope),
    ),
)]
pub(super) async fn cancel(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    id: Id,
) -> Result<Json<Batch>, ApiError> {
    let record = found(&app, &caller, id).await?;
    let tenant = caller.access.tenant();
    let batch = view::look(&app, tenant, record.clone()).await?;
    if batch.has_ended() {
        let sentence = format!("the batch is {} already", batch.state());
        return Err(ApiError::conflict("already_ended", sentence, false));
    }
    // First the mark, then a look at the job: whoever prepares the batch does it the other way round, so that one of the two
    // sees the other.
    let cancelled = crate::contract::Cancelled { at: jiff::Timestamp::now() };
    app.store.put_json(&storage::batch_cancelled(tenant, &record.id), &cancelled).await?;
    let record = BatchRecord::read(&app, tenant, &record.id).await?.unwrap_or(record);
    match &record.job {
        Some(job) => leave(&app, tenant, job, &record.id).await?,
        // Whoever prepares it sees the mark, and writes down that it is cancelled.
        None => pending::end(&app, tenant, &record.id),
    }
    tracing::info!(%tenant, key_id = caller.access.key_id(), batch = record.id, "batch cancelled");
    Ok(Json(view::look(&app, tenant, record).await?))
}

/// Lets go of what one of a batch's files is made from, and deletes that where nobody else holds it. With an output file go the errors;
/// the errors alone go with the file where there is no output.
pub(super) async fn release(app: &App, tenant: &TenantId, batch: &str, what: What) -> Result<(), ApiError> {
    let Some(record) = BatchRecord::read(app, tenant, batch).await? else { return Ok(()) };
    let has_output = record.ended.as_ref().is_some_and(|ended| ended.output_file_id.is_some());
    let (Some(job), false) = (&record.job, what == What::Errors && has_output) else { return Ok(()) };
    let ledger = Ledger::new(app.store.clone(), tenant, job);
    let mut released = ledger.append(|_| Ok(Event::Release(batch.to_owned()))).await?;
    if let Appended::Moot(Moot::Already, Some(entry)) = &released
        && entry.job.holders.iter().eq([UNRECORDED])
        && !is_named_elsewhere(app, tenant, job, batch).await?
    {
        // From before holders were recorded, and no other batch's.
        released = ledger.append(|_| Ok(Event::Release(UNRECORDED.to_owned()))).await?;
    }
    // Deleted before, it may not have been removed to its end.
    if let Appended::Written(entry) | Appended::Moot(Moot::Deleted, Some(entry)) = released
        && entry.job.deleted
    {
        let mut bytes = 0;
        let prefix = ledger.keys_of(RunId { life: entry.job.life, run: 0 }).prefix().to_owned();
        app.store.each(&prefix, |page| bytes += page.iter().map(|object| object.bytes).sum::<u64>()).await?;
        ledger.remove(entry.job.life).await?;
        app.shared.give_back(tenant, job, false).await;
        app.shared.stored().removed(tenant, bytes, 0, 0).await;
    }
    Ok(())
}

/// Whether another batch of the tenant is of the job. One that can't be read may be.
async fn is_named_elsewhere(app: &App, tenant: &TenantId, job: &JobId, batch: &str) -> Result<bool, ApiError> {
    for object in app.store.list(&storage::batches(tenant), None).await? {
        let id = storage::id_of_key(&object.key);
        if id == batch {
            continue;
        }
        match BatchRecord::read(app, tenant, id).await {
            Ok(other) if other.as_ref().is_some_and(|other| other.job.as_ref() == Some(job)) => return Ok(true),
            Ok(_) => {}
            Err(error) if error.is_of_a_record() => return Ok(true),
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Has nothing more of a job computed for a batch. It goes on for the others that want it.
async fn leave(app: &App, tenant: &TenantId, job: &JobId, batch: &str) -> Result<(), ApiError> {
    let ledger = Ledger::new(app.store.clone(), tenant, job);
    let entry = ledger.append(|_| Ok(Event::Leave(batch.to_owned()))).await?.entry();
    let goes_on = |entry: Entry| entry.job.unfinished().is_some_and(|run| run.cancelling_at.is_none());
    if !entry.is_some_and(goes_on) {
        app.shared.give_back(tenant, job, true).await;
    }
    Ok(())
}
