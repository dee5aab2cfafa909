//! What a job has come to, while it runs and after: its parts, its rows without a vector, its summary.

use std::sync::Arc;

use axum::Extension;
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::CONTENT_LENGTH;
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use serde::Serialize;
use utoipa::ToSchema;

use super::super::App;
use super::super::auth::Caller;
use super::super::error::{ApiError, ErrorEnvelope};
use super::super::files::{named, streamed};
use super::super::transfers::paid;
use super::{JobPath, found, no_such_job};
use crate::contract::FinalManifest;
use crate::status::{Results, Watch};

/// A finished part.
#[derive(Serialize, ToSchema)]
pub(in super::super) struct Part {
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
    /// What computed it and in which precision, such as `avx512-bf16`; null of a part from before it was named.
    compute: Option<String>,
}

/// A job's summary.
#[derive(ToSchema)]
#[expect(dead_code, reason = "for the description only")]
pub(in super::super) struct Summary {
    /// The job.
    job: String,
    /// What computed the parts, each path once, such as `avx512-bf16`.
    compute: Vec<String>,
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
pub(in super::super) struct Parts {
    /// `list`.
    object: &'static str,
    /// The parts, in input order.
    data: Vec<Part>,
    /// Whether these are all.
    complete: bool,
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
pub(in super::super) async fn parts(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    id: JobPath,
) -> Result<Json<Parts>, ApiError> {
    let (_, watch) = found(&app, caller.access.tenant(), id).await?;
    let Results { parts, complete, .. } = watch.results().await?.ok_or_else(no_such_job)?;
    let data = parts.into_iter().map(|part| Part {
        part: part.chunk,
        rows: part.rows,
        failed: part.failed,
        tokens: part.tokens,
        bytes: part.bytes,
        sha256: part.sha256.to_string(),
        compute: part.compute,
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
pub(in super::super) async fn part(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<Response, ApiError> {
    let Path((id, part)) = path.map_err(|_| no_such_job())?;
    let (_, watch) = found(&app, caller.access.tenant(), Ok(Path(id))).await?;
    let no_such_part = || {
        ApiError::not_found("part_not_found", "that part is not finished; the job's parts lists those that are")
            .at("part")
    };
    let part: u32 = part.parse().map_err(|_| no_such_part())?;
    let key = watch.part(part).await?.ok_or_else(no_such_part)?;
    let place = app.transfer(caller.access.tenant())?;
    let (bytes, stream) = app.store.open(&key).await?.ok_or_else(no_such_part)?;
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
pub(in super::super) async fn manifest(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    id: JobPath,
) -> Result<Json<FinalManifest>, ApiError> {
    let (_, watch) = found(&app, caller.access.tenant(), id).await?;
    let summary = watch.results().await?.and_then(|results| results.summary);
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
pub(in super::super) async fn errors(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    id: JobPath,
) -> Result<Response, ApiError> {
    let (_, watch) = found(&app, caller.access.tenant(), id).await?;
    let place = app.transfer(caller.access.tenant())?;
    let keys = error_objects(&app, &watch).await?;
    let body = stream::try_unfold((app, keys.into_iter(), None), async |(app, mut keys, mut open)| {
        loop {
            let mut now: Option<crate::store::ByteStream> = open.take();
            if let Some(stream) = &mut now
                && let Some(piece) = stream.try_next().await.map_err(std::io::Error::other)?
            {
                return Ok::<_, std::io::Error>(Some((piece, (app, keys, now))));
            }
            let Some(key) = keys.next() else { return Ok(None) };
            open = app.store.open(&key).await.map_err(std::io::Error::other)?.map(|(_, stream)| stream);
        }
    });
    let content_type = [(axum::http::header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((content_type, paid(body, place)).into_response())
}

/// The objects that hold the rows without a vector, in the order in which they are told.
async fn error_objects(app: &App, watch: &Watch) -> Result<Vec<String>, ApiError> {
    let Results { keys, parts, .. } = watch.results().await?.ok_or_else(no_such_job)?;
    let rejected = app.store.list(&keys.rejected_prefix(), None).await?.into_iter().map(|object| object.key);
    let failed = parts.iter().filter_map(|part| part.errors.as_ref()).map(|path| keys.object(path));
    Ok(rejected.chain(failed).collect())
}
