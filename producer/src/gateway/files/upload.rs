//! Uploading a file: a form, read piece by piece, its file on to S3 as it comes.

use std::sync::Arc;

use axum::extract::multipart::Field;
use axum::extract::{FromRequest as _, Multipart, Request, State};
use axum::{Extension, Json};
use utoipa::ToSchema;
use vecmill_signer::claims::{Digest, TenantId};

use super::super::auth::Caller;
use super::super::error::{ApiError, ErrorEnvelope};
use super::super::shared::{Over, refusal};
use super::super::stored::of_upload;
use super::super::{App, ids, storage};
use super::form::{self, Form, Part, Reading, not_read_on};
use super::{BATCH, FileObject, FileRecord, PREFIX, sweep};
use crate::contract::CONTRACT_VERSION;
use crate::store::Upload;

/// Bytes for which room is taken at once, before they are stored: a part's to S3.
const ROOM_BYTES: u64 = 8 << 20;

/// A file to upload; for the description only.
#[derive(ToSchema)]
#[expect(dead_code, reason = "read piece by piece")]
pub(in super::super) struct FileForm {
    /// `batch`.
    #[schema(pattern = "^batch$")]
    purpose: String,
    /// The file: lines as OpenAI's batches have them, or a corpus as `vecmill submit` takes it.
    #[schema(value_type = String, format = Binary, min_length = 1)]
    file: Vec<u8>,
}

/// Uploads a file. It may be of any length up to the gateway's bound, and is never held as a whole.
#[utoipa::path(
    post,
    path = "/v1/files",
    request_body(content = FileForm, content_type = "multipart/form-data"),
    responses(
        (status = 200, description = "The file", body = FileObject),
        (status = 400, response = ErrorEnvelope),
        (status = 413, response = ErrorEnvelope),
    ),
)]
pub(in super::super) async fn upload(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Json<FileObject>, ApiError> {
    let reading = Reading::default();
    let form = Multipart::from_request(request.map(|body| form::bounded(body, reading.clone())), &()).await;
    let mut form = form.map_err(|_| {
        ApiError::invalid("invalid_body", None, "the body must be multipart/form-data with the fields purpose and file")
    })?;
    let tenant = caller.access.tenant();
    let _place = app.transfer(tenant)?;
    sweep(&app, tenant).await;
    let id = ids::new(PREFIX);
    let to = To { app: &app, tenant, limit: caller.access.limits().stored_bytes, id: &id };
    // Before a byte is taken: whoever has no room hears of it at once.
    to.take(0).await.map_err(refusal)?;
    let mut given = Form::default();
    let read = read(&to, &mut given, &mut form, &reading).await;
    let checked = read.and_then(|()| given.check());
    let (expires_after_s, (filename, bytes, sha256)) = match checked {
        Ok(checked) => checked,
        Err(refusal) => {
            // The form was wrong beside the file.
            app.store.delete(&storage::content(tenant, &id)).await?;
            app.shared.stored().settle(tenant, &id, Some(0), 0, 0).await;
            return Err(refusal);
        }
    };
    let created_at = ids::unix_s();
    let record = FileRecord {
        version: CONTRACT_VERSION,
        id,
        bytes,
        created_at,
        filename,
        purpose: BATCH.to_owned(),
        sha256: Some(sha256),
        expires_at: expires_after_s.map(|seconds| created_at + seconds),
        made_from: None,
    };
    record.write(&app, tenant).await?;
    app.shared.stored().settle(tenant, &record.id, Some(bytes), 1, 0).await;
    tracing::info!(%tenant, key_id = caller.access.key_id(), file = record.id, bytes, "file uploaded");
    Ok(Json(record.object()))
}

/// Where an upload goes, and on whose account.
struct To<'a> {
    app: &'a App,
    tenant: &'a TenantId,
    limit: Option<u64>,
    id: &'a str,
}

impl To<'_> {
    /// Takes room for so many bytes in all.
    async fn take(&self, bytes: u64) -> Result<(), Result<Over, ApiError>> {
        let room = of_upload(self.id, bytes);
        let stored = self.app.shared.stored();
        stored.take(&self.app.shared, &self.app.store, self.tenant, self.limit, room).await.map(drop)
    }

    /// Takes room for the next pieces, so that not each has to ask; or for these bytes alone, where there is no more. Gives for
    /// how many.
    async fn take_more(&self, bytes: u64) -> Result<u64, ApiError> {
        match self.take(bytes + ROOM_BYTES).await {
            Ok(()) => Ok(bytes + ROOM_BYTES),
            Err(Ok(_)) => self.take(bytes).await.map(|()| bytes).map_err(refusal),
            Err(Err(away)) => Err(away),
        }
    }
}

async fn read(to: &To<'_>, given: &mut Form, form: &mut Multipart, reading: &Reading) -> Result<(), ApiError> {
    loop {
        match given.next(form, reading).await? {
            Part::File(name, content) => given.received(name, received(to, content).await?),
            Part::Field => {}
            Part::End => return Ok(()),
        }
    }
}

/// Streams the file to S3; gives its length and digest. Nothing stays there of one that does not come whole.
async fn received(to: &To<'_>, mut field: Field<'_>) -> Result<(u64, Digest), ApiError> {
    let mut upload = to.app.store.upload(&storage::content(to.tenant, to.id));
    let streamed = pieces(to, &mut field, &mut upload).await;
    match streamed {
        Ok(()) => Ok(upload.finish().await?),
        Err(refusal) => {
            if let Err(error) = upload.abort().await {
                tracing::warn!(%error, "a part of an upload that failed is left on S3");
            }
            Err(refusal)
        }
    }
}

async fn pieces(to: &To<'_>, field: &mut Field<'_>, upload: &mut Upload) -> Result<(), ApiError> {
    let app = to.app;
    let (mut bytes, mut taken) = (0, 0);
    while let Some(piece) = field.chunk().await.map_err(not_read_on)? {
        bytes += piece.len() as u64;
        if bytes > app.file_bytes_max {
            return Err(ApiError::too_large(format!("a file may have {} bytes here", app.file_bytes_max)));
        }
        if bytes > taken {
            taken = to.take_more(bytes).await?;
        }
        upload.push(&piece).await?;
    }
    Ok(())
}
