//! `/v1/files`: what tenants upload for batches, and what batches come to, streamed from and to S3.

mod form;
#[cfg(any(test, fuzzing))]
pub(in super::super) mod fuzz;
pub(super) mod upload;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use vecmill_signer::claims::{Digest, TenantId};

use super::auth::Caller;
use super::error::{ApiError, ErrorEnvelope};
use super::transfers::paid;
use super::{App, batches, ids, paging, storage};
use crate::contract::CONTRACT_VERSION;
use crate::shares::Share;
use crate::store::ByteStream;

/// How a file's id begins.
pub(super) const PREFIX: &str = "file-";
/// The purpose of what is uploaded.
const BATCH: &str = "batch";
/// The purpose of what batches come to.
const BATCH_OUTPUT: &str = "batch_output";
/// Files removed at once because their time is over: a request must not take much longer for it.
const SWEPT_MAX: usize = 20;
/// Records read at once for a list.
const READS_MAX: usize = 32;
/// Most files of a list.
const LIST_MAX: usize = 10_000;

/// A file's record on S3.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct FileRecord {
    version: u32,
    pub(super) id: String,
    pub(super) bytes: u64,
    created_at: u64,
    pub(super) filename: String,
    pub(super) purpose: String,
    pub(super) sha256: Option<Digest>,
    expires_at: Option<u64>,
    /// Of what a batch came to: made from the job whenever it is read.
    made_from: Option<MadeFrom>,
}

/// Which batch a file is made from, and what of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct MadeFrom {
    pub(super) batch: String,
    pub(super) what: What,
}

/// One of the two files of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum What {
    /// The vectors.
    Output,
    /// The rows that have none.
    Errors,
}

/// A file.
#[derive(Serialize, ToSchema)]
pub(super) struct FileObject {
    /// Its id.
    id: String,
    /// `file`.
    object: &'static str,
    /// Its length. Of what a batch came to: of the vectors as they are stored; the file is made of them as it is read.
    bytes: u64,
    /// When it was made, in Unix seconds.
    created_at: u64,
    /// When it is deleted, in Unix seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<u64>,
    /// Its name.
    filename: String,
    /// `batch` or `batch_output`.
    purpose: String,
    /// `processed`.
    status: &'static str,
    /// SHA-256 of an uploaded file, in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    sha256: Option<Digest>,
}

/// Some files.
#[derive(Serialize, ToSchema)]
pub(super) struct FileList {
    /// `list`.
    object: &'static str,
    /// The files.
    data: Vec<FileObject>,
    /// The first's id.
    first_id: Option<String>,
    /// The last's id: `after` it come the next.
    last_id: Option<String>,
    /// Whether there are more.
    has_more: bool,
}

/// That a file is gone.
#[derive(Serialize, ToSchema)]
pub(super) struct Deleted {
    /// Its id.
    id: String,
    /// `file`.
    object: &'static str,
    /// `true`.
    deleted: bool,
}

/// Which files to list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    /// The id after which the list begins.
    after: Option<String>,
    /// How many, 1 to 10,000, which it is where this is left out.
    #[param(minimum = 1, maximum = 10_000)]
    limit: Option<usize>,
    /// `desc`, the newest first, or `asc`.
    #[param(inline)]
    order: Option<Order>,
    /// Only those of this purpose.
    purpose: Option<String>,
}

/// Which comes first.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Order {
    /// The oldest.
    Asc,
    /// The newest.
    Desc,
}

impl FileRecord {
    /// The record of what a batch came to.
    pub(super) fn made(id: String, bytes: u64, created_at: u64, filename: String, made_from: MadeFrom) -> Self {
        let (purpose, made_from) = (BATCH_OUTPUT.to_owned(), Some(made_from));
        Self {
            version: CONTRACT_VERSION,
            id,
            bytes,
            created_at,
            filename,
            purpose,
            sha256: None,
            expires_at: None,
            made_from,
        }
    }

    fn object(self) -> FileObject {
        let Self { id, bytes, created_at, filename, purpose, sha256, expires_at, .. } = self;
        FileObject { id, object: "file", bytes, created_at, expires_at, filename, purpose, status: "processed", sha256 }
    }

    /// Reads a record; one whose time is over is gone.
    pub(super) async fn read(app: &App, tenant: &TenantId, id: &str) -> Result<Option<Self>, ApiError> {
        if !ids::is_good(PREFIX, id) {
            return Ok(None);
        }
        let record: Option<Self> = app.store.get_json(&storage::file(tenant, id), storage::RECORD_BYTES_MAX).await?;
        let Some(record) = record else { return Ok(None) };
        storage::readable(record.version)?;
        if record.expires_at.is_some_and(|at| at <= ids::unix_s()) {
            record.remove(app, tenant).await?;
            return Ok(None);
        }
        Ok(Some(record))
    }

    pub(super) async fn write(&self, app: &App, tenant: &TenantId) -> Result<(), ApiError> {
        // First: a file that nobody removes would be the worse of the two.
        if let Some(at) = self.expires_at {
            app.store.put(&storage::expiring(tenant, at, &self.id), Vec::new(), "text/plain").await?;
        }
        Ok(app.store.put_json(&storage::file(tenant, &self.id), self).await?)
    }

    /// Removes the file. With a batch's output goes the job it is made from, its chunks, its vectors, its records, unless another
    /// batch or a submission holds it, too.
    pub(super) async fn remove(&self, app: &App, tenant: &TenantId) -> Result<(), ApiError> {
        match &self.made_from {
            None => {
                app.store.delete(&storage::content(tenant, &self.id)).await?;
                app.shared.stored().removed(tenant, self.bytes, 1, 0).await;
            }
            Some(MadeFrom { batch, what }) => batches::release(app, tenant, batch, *what).await?,
        }
        if let Some(at) = self.expires_at {
            app.store.delete(&storage::expiring(tenant, at, &self.id)).await?;
        }
        // Last: what is left of a deletion that failed can be deleted again.
        Ok(app.store.delete(&storage::file(tenant, &self.id)).await?)
    }
}

/// Removes some files whose time is over: whoever uploads more, or looks, has those before removed. One that can't be removed keeps
/// neither the others nor the request that came by.
async fn sweep(app: &App, tenant: &TenantId) {
    if let Err(error) = swept(app, tenant).await {
        tracing::warn!(%tenant, %error, "files whose time is over wait to be removed");
    }
}

async fn swept(app: &App, tenant: &TenantId) -> Result<(), ApiError> {
    let prefix = storage::all_expiring(tenant);
    let (mut after, mut removed) = (None, 0);
    loop {
        let (keys, next) = app.shared.list_readable(&app.store, &prefix, after.as_deref(), SWEPT_MAX).await?;
        for key in &keys {
            let Some((at, id)) = storage::id_of_key(key).split_once('-') else {
                app.shared.set_aside(key);
                continue;
            };
            if at.parse::<u64>().is_ok_and(|at| at > ids::unix_s()) {
                // They are listed in the order of their times.
                return Ok(());
            }
            removed += 1;
            // Reading one whose time is over removes it.
            match FileRecord::read(app, tenant, id).await {
                Ok(None) => app.store.delete(key).await?,
                Ok(Some(_)) => {}
                Err(error) if error.is_of_a_record() => app.shared.set_aside(key),
                Err(error) => return Err(error),
            }
        }
        if next.is_none() || removed >= SWEPT_MAX {
            return Ok(());
        }
        after = next;
    }
}

fn no_such_file(id: &str) -> ApiError {
    let id = super::embeddings::printable(id);
    ApiError::not_found("file_not_found", format!("there is no file {id} of this tenant")).at("file_id")
}

/// The tenant's files.
#[utoipa::path(
    get,
    path = "/v1/files",
    params(Page),
    responses(
        (status = 200, description = "The files", body = FileList),
        (status = 400, response = ErrorEnvelope),
    ),
)]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<FileList>, ApiError> {
    let Query(page) = page.map_err(|error| ApiError::bad_query(&error))?;
    let limit = paging::limit(page.limit, LIST_MAX, LIST_MAX)?;
    let (tenant, after) = (caller.access.tenant(), page.after.as_deref());
    paging::after(after, PREFIX)?;
    sweep(&app, tenant).await;
    let ids = match page.order.unwrap_or(Order::Desc) {
        Order::Desc => {
            let start_after = after.map(|after| storage::file(tenant, after));
            app.store.list(&storage::files(tenant), start_after.as_deref()).await?
        }
        Order::Asc => {
            let mut objects = app.store.list(&storage::files(tenant), None).await?;
            objects.reverse();
            let passed = after.and_then(|after| objects.iter().position(|file| storage::id_of_key(&file.key) == after));
            objects.split_off(passed.map_or(0, |at| at + 1))
        }
    };
    // One more than asked for tells whether there are more.
    let found: Vec<FileRecord> = stream::iter(ids)
        .map(|object| {
            let (app, tenant) = (&app, tenant);
            async move {
                let read = FileRecord::read(app, tenant, storage::id_of_key(&object.key)).await;
                app.shared.or_set_aside(&object.key, read)
            }
        })
        .buffered(READS_MAX)
        .try_filter_map(async |record| Ok(record))
        .try_filter(|record| std::future::ready(page.purpose.as_ref().is_none_or(|purpose| *purpose == record.purpose)))
        .take(limit + 1)
        .try_collect()
        .await?;
    let has_more = found.len() > limit;
    let data: Vec<FileObject> = found.into_iter().take(limit).map(FileRecord::object).collect();
    let (first_id, last_id) = paging::ends(&data, |file: &FileObject| &file.id);
    Ok(Json(FileList { object: "list", data, first_id, last_id, has_more }))
}

type Id = Result<Path<String>, PathRejection>;

async fn found(app: &App, caller: &Caller, id: Id) -> Result<FileRecord, ApiError> {
    let Path(id) = id.map_err(|_| no_such_file(""))?;
    FileRecord::read(app, caller.access.tenant(), &id).await?.ok_or_else(|| no_such_file(&id))
}

/// One file.
#[utoipa::path(
    get,
    path = "/v1/files/{file_id}",
    params(("file_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "The file", body = FileObject),
        (status = 404, response = ErrorEnvelope),
    ),
)]
pub(super) async fn get(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    id: Id,
) -> Result<Json<FileObject>, ApiError> {
    Ok(Json(found(&app, &caller, id).await?.object()))
}

/// Deletes a file; with what a batch came to, the job's vectors, where nobody else has them.
#[utoipa::path(
    delete,
    path = "/v1/files/{file_id}",
    params(("file_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "It is gone", body = Deleted),
        (status = 404, response = ErrorEnvelope),
    ),
)]
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    id: Id,
) -> Result<Json<Deleted>, ApiError> {
    let record = found(&app, &caller, id).await?;
    record.remove(&app, caller.access.tenant()).await?;
    tracing::info!(tenant = %caller.access.tenant(), key_id = caller.access.key_id(), file = record.id, "file deleted");
    Ok(Json(Deleted { id: record.id, object: "file", deleted: true }))
}

/// A file's bytes.
#[utoipa::path(
    get,
    path = "/v1/files/{file_id}/content",
    params(("file_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "The bytes", content_type = "application/octet-stream"),
        (status = 404, response = ErrorEnvelope),
        (status = 410, response = ErrorEnvelope),
    ),
)]
pub(super) async fn content(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    id: Id,
) -> Result<Response, ApiError> {
    let record = found(&app, &caller, id).await?;
    let tenant = caller.access.tenant();
    let place = app.transfer(tenant)?;
    let Some(made_from) = &record.made_from else {
        let object = app.store.open(&storage::content(tenant, &record.id)).await?;
        let (bytes, stream) = object.ok_or_else(|| no_such_file(&record.id))?;
        let mut response = named(&record.filename, streamed(stream, place));
        response.headers_mut().insert(CONTENT_LENGTH, bytes.into());
        return Ok(response);
    };
    let batch = batches::BatchRecord::read(&app, tenant, &made_from.batch).await?;
    let batch = batch.ok_or_else(|| no_such_file(&record.id))?;
    let body = batches::content(Arc::clone(&app), tenant.clone(), batch, made_from.what, place).await?;
    Ok(named(&record.filename, body))
}

/// A response that saves as `filename`.
pub(super) fn named(filename: &str, body: Body) -> Response {
    // What a header can't hold, a file's name can do without.
    let plain: String =
        filename.chars().map(|c| if c.is_ascii_graphic() && c != '"' && c != '\\' { c } else { '_' }).collect();
    let disposition = format!("attachment; filename=\"{plain}\"");
    ([(CONTENT_TYPE, "application/octet-stream".to_owned()), (CONTENT_DISPOSITION, disposition)], body).into_response()
}

/// An object as a body. The place is held until its end.
pub(super) fn streamed(bytes: ByteStream, place: Share) -> Body {
    paid(
        stream::try_unfold(bytes, async |mut bytes| {
            Ok::<_, std::io::Error>(bytes.try_next().await.map_err(std::io::Error::other)?.map(|piece| (piece, bytes)))
        }),
        place,
    )
}
