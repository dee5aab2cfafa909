//! Uploading a file: a form, read piece by piece, its file on to S3 as it comes.

use std::sync::Arc;

use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{FromRequest as _, Multipart, Request, State};
use axum::{Extension, Json};
use utoipa::ToSchema;
use vecmill_signer::claims::{Digest, TenantId};

use super::super::auth::Caller;
use super::super::embeddings::printable;
use super::super::error::{ApiError, ErrorEnvelope, cause};
use super::super::shared::{Over, refusal};
use super::super::stored::of_upload;
use super::super::{App, ids, storage};
use super::form::{self, FormError, Reading};
use super::{BATCH, FileObject, FileRecord, PREFIX, sweep};
use crate::contract::CONTRACT_VERSION;
use crate::store::Upload;

/// Longest field of a form that is not the file.
const FIELD_BYTES_MAX: usize = 1024;
/// Most parts of a form: it may have four, each once.
const PARTS_MAX: usize = 4;
/// Bytes for which room is taken at once, before they are stored: a part's to S3.
const ROOM_BYTES: u64 = 8 << 20;
/// Seconds that a file may be kept: an hour to thirty days, as OpenAI has it.
const KEPT_S: std::ops::RangeInclusive<u64> = 3600..=2_592_000;

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
    let read = given.read(&to, &mut form, &reading).await;
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

/// A file's name, length and digest.
type Received = (String, u64, Digest);

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

/// What a form has brought so far.
#[derive(Default)]
struct Form {
    purpose: Option<String>,
    anchor: Option<String>,
    seconds: Option<String>,
    file: Option<Received>,
}

impl Form {
    async fn read(&mut self, to: &To<'_>, form: &mut Multipart, reading: &Reading) -> Result<(), ApiError> {
        let mut parts = 0;
        loop {
            reading.looks_for_a_part();
            let Some(field) = form.next_field().await.map_err(not_read_on)? else { return Ok(()) };
            reading.has_found_one();
            parts += 1;
            if parts > PARTS_MAX {
                let sentence = format!("the form has more than {PARTS_MAX} parts");
                return Err(ApiError::invalid("invalid_body", None, sentence));
            }
            let name = field.name().unwrap_or_default().to_owned();
            match name.as_str() {
                "purpose" => self.purpose = Some(text(field).await?),
                "expires_after[anchor]" => self.anchor = Some(text(field).await?),
                "expires_after[seconds]" => self.seconds = Some(text(field).await?),
                "file" if self.file.is_some() => {
                    return Err(ApiError::invalid("invalid_body", Some("file"), "the form has two fields named file"));
                }
                "file" => {
                    let filename: String =
                        field.file_name().unwrap_or("file").chars().filter(|c| !c.is_control()).take(255).collect();
                    let (bytes, sha256) = received(to, field).await?;
                    self.file = Some((filename, bytes, sha256));
                }
                other => {
                    let name = printable(other);
                    let sentence =
                        format!("the form has a field {name:?}; it may have purpose, expires_after and file");
                    return Err(ApiError::invalid("invalid_body", None, sentence));
                }
            }
        }
    }

    /// The seconds to keep the file, if it is not for ever; and its name, length and digest.
    fn check(&mut self) -> Result<(Option<u64>, Received), ApiError> {
        let wrong = |param: &str, sentence: String| Err(ApiError::invalid("invalid_body", Some(param), sentence));
        match self.purpose.as_deref() {
            Some(BATCH) => {}
            Some(_) => return wrong("purpose", "purpose must be \"batch\": files are for batches here".to_owned()),
            None => return wrong("purpose", "the form lacks the field purpose: it must be \"batch\"".to_owned()),
        }
        let expires_after_s = match (self.anchor.as_deref(), self.seconds.as_deref()) {
            (None, None) => None,
            (Some("created_at"), Some(seconds)) => match seconds.parse() {
                Ok(seconds) if KEPT_S.contains(&seconds) => Some(seconds),
                _ => {
                    let (from, to) = (KEPT_S.start(), KEPT_S.end());
                    return wrong("expires_after", format!("expires_after[seconds] must be {from} to {to}"));
                }
            },
            _ => {
                let sentence = "expires_after must have both anchor, \"created_at\", and seconds".to_owned();
                return wrong("expires_after", sentence);
            }
        };
        match self.file.take() {
            None => wrong("file", "the form lacks the field file".to_owned()),
            Some((_, 0, _)) => wrong("file", "the file is empty".to_owned()),
            Some(file) => Ok((expires_after_s, file)),
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

async fn text(mut field: Field<'_>) -> Result<String, ApiError> {
    let mut text = Vec::new();
    while let Some(piece) = field.chunk().await.map_err(not_read_on)? {
        text.extend_from_slice(&piece);
        if text.len() > FIELD_BYTES_MAX {
            return Err(ApiError::too_large(format!("a field of the form may have {FIELD_BYTES_MAX} bytes")));
        }
    }
    String::from_utf8(text).map_err(|_| ApiError::invalid("invalid_body", None, "a field of the form is not UTF-8"))
}

/// Why a form is not read on, for its sender. Our own refusal is among the causes of the parser's.
fn not_read_on(error: MultipartError) -> ApiError {
    match cause::<FormError>(&error) {
        Some(FormError::Header) => ApiError::too_large(format!("{}: give it fewer headers", FormError::Header)),
        Some(FormError::Slow) => ApiError::invalid("upload_stalled", None, FormError::Slow.to_string()),
        Some(FormError::Broken) | None => {
            ApiError::invalid("invalid_body", None, "the form ends too early or is not multipart/form-data")
        }
    }
}
