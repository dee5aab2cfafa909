//! Making a batch: what it may be told, the same batch asked for twice, and its place among those of its tenant.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::HeaderMap;
use axum::{Extension, Json};
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use utoipa::ToSchema;
use vecmill_signer::claims::{Digest, TenantId};

use super::super::auth::Caller;
use super::super::embeddings::{parsed, printable};
use super::super::error::{ApiError, ErrorEnvelope};
use super::super::files::FileRecord;
use super::super::shared::refusal;
use super::super::stored::{Room, of_upload};
use super::super::{App, ids, storage, webhooks};
use super::record::{BatchRecord, InputOptions, Order, OutputOptions, PREFIX};
use super::view::{self, Batch};
use super::{ENDPOINT, pending};
use crate::contract::{CONTRACT_VERSION, INSTRUCTION_BYTES_MAX, MODEL_BYTES_MAX, Truncate};

/// OpenAI's bounds of `metadata`.
const METADATA_MAX: usize = 16;
const METADATA_KEY_MAX: usize = 64;
const METADATA_VALUE_MAX: usize = 512;
/// Bytes of a field's name: as long as anybody calls a column. With metadata and what else is bounded, a record that holds it is far
/// shorter than its readers take.
const FIELD_BYTES_MAX: usize = 256;
/// Of the oldest batches, those that are looked at when a tenant has as many as it may: what nothing is left of is removed.
const OLDEST_MAX: usize = 100;
/// Longest completion window: a week, as `vecmill submit` has it. What a tenant may have is the signer's to say.
const WINDOW_S: std::ops::RangeInclusive<u64> = 3600..=7 * 24 * 3600;
/// How long a batch that is asked for again without an idempotency key is the same: OpenAI's clients ask up to three times.
const SAME_S: u64 = 60;
/// How long one with a key is.
const SAME_KEY_S: u64 = 24 * 3600;
/// Longest idempotency key.
const KEY_MAX: usize = 255;

/// A batch to make. A field that is not known is refused by name.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct CreateBatch {
    /// The file, uploaded with purpose `batch`.
    input_file_id: String,
    /// `/v1/embeddings`.
    #[schema(pattern = "^/v1/embeddings$")]
    endpoint: String,
    /// How long it may take: hours or days, such as `1h`, `24h` or `7d`.
    #[schema(pattern = "^([1-9][0-9]{0,2}h|[1-7]d)$")]
    completion_window: String,
    /// Up to 16 names of up to 64 characters, each with a text of up to 512.
    #[serde(default, deserialize_with = "few")]
    metadata: Option<BTreeMap<String, String>>,
    /// The model; what the first line names where this is left out.
    model: Option<String>,
    /// The task of Qwen3's query prompt, for all lines.
    instruction: Option<String>,
    /// How the file is read.
    input: Option<InputOptions>,
    /// What is made of the vectors.
    output: Option<OutputOptions>,
    /// What becomes of a text that is too long: `none`, its line fails, or `end`, it is cut off.
    #[schema(value_type = Option<String>, pattern = "^(none|end)$")]
    truncate: Option<Truncate>,
    /// Make nothing of a file with a bad line. Where this is left out, the good lines go on.
    strict: Option<bool>,
    /// Publish a running job's messages again, for a broker that lost its queues.
    republish: Option<bool>,
    /// Where to post that the batch has ended: signed, `GET /v1/webhooks/secret` says with what.
    webhook_url: Option<String>,
    /// Delete the input file once its chunks are queued.
    delete_input: Option<bool>,
    /// Most texts in a chunk.
    #[schema(minimum = 1, maximum = 100_000)]
    chunk_rows: Option<u32>,
    /// Most bytes of text in a chunk.
    #[schema(minimum = 1_024, maximum = 4_194_304)]
    chunk_bytes: Option<u32>,
}

/// No more names than metadata may have, refused as the first too many is read.
fn few<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    struct Few;
    impl<'de> Visitor<'de> for Few {
        type Value = Option<BTreeMap<String, String>>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("names with texts")
        }

        fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut few = BTreeMap::new();
            while let Some((name, text)) = map.next_entry()? {
                if few.len() == METADATA_MAX {
                    return Err(de::Error::custom(format_args!("`metadata` may have {METADATA_MAX} names")));
                }
                few.insert(name, text);
            }
            Ok(Some(few))
        }
    }
    deserializer.deserialize_any(Few)
}

impl CreateBatch {
    fn check(self) -> Result<BatchRecord, ApiError> {
        let wrong = |param: &str, sentence: String| ApiError::invalid("invalid_body", Some(param), sentence);
        if self.endpoint != ENDPOINT {
            return Err(wrong("endpoint", format!("endpoint must be {ENDPOINT:?}: nothing else is computed here")));
        }
        let window_s = window(&self.completion_window)?;
        for (name, value) in self.metadata.iter().flatten() {
            if name.chars().count() > METADATA_KEY_MAX || value.chars().count() > METADATA_VALUE_MAX {
                let sentence =
                    format!("a name of metadata may have {METADATA_KEY_MAX} characters, its text {METADATA_VALUE_MAX}");
                return Err(wrong("metadata", sentence));
            }
        }
        let input = self.input.as_ref();
        let fields = [
            ("input_file_id", Some(&self.input_file_id), MODEL_BYTES_MAX),
            ("model", self.model.as_ref(), MODEL_BYTES_MAX),
            ("instruction", self.instruction.as_ref(), INSTRUCTION_BYTES_MAX),
            ("input.id_field", input.and_then(|input| input.id_field.as_ref()), FIELD_BYTES_MAX),
            ("input.text_field", input.and_then(|input| input.text_field.as_ref()), FIELD_BYTES_MAX),
        ];
        for (name, text, most) in fields {
            if text.is_some_and(|text| !(1..=most).contains(&text.len())) {
                return Err(wrong(name, format!("{name} must have 1 to {most} bytes")));
            }
        }
        if self.chunk_rows.is_some_and(|rows| !(1..=100_000).contains(&rows)) {
            return Err(wrong("chunk_rows", "chunk_rows must be 1 to 100,000".to_owned()));
        }
        if self.chunk_bytes.is_some_and(|bytes| !(1024..=4 << 20).contains(&bytes)) {
            return Err(wrong("chunk_bytes", "chunk_bytes must be 1,024 to 4,194,304".to_owned()));
        }
        let order = Order {
            model: self.model,
            instruction: self.instruction,
            input: self.input.unwrap_or_default(),
            output: self.output.unwrap_or_default(),
            truncate: self.truncate.unwrap_or_default(),
            strict: self.strict.unwrap_or_default(),
            republish: self.republish.unwrap_or_default(),
            delete_input: self.delete_input.unwrap_or_default(),
            chunk_rows: self.chunk_rows,
            chunk_bytes: self.chunk_bytes,
        };
        let record = BatchRecord {
            version: CONTRACT_VERSION,
            id: ids::new(PREFIX),
            created_at: ids::unix_s(),
            input_file_id: self.input_file_id,
            completion_window: self.completion_window,
            window_s,
            metadata: self.metadata,
            order,
            job: None,
            submitted: None,
            in_progress_at: None,
            expires_at: None,
            bad_lines: Vec::new(),
            failed_at: None,
            ended: None,
        };
        Ok(record)
    }
}

/// A completion window in seconds.
pub(in super::super) fn window(text: &str) -> Result<u64, ApiError> {
    window_s(text).filter(|seconds| WINDOW_S.contains(seconds)).ok_or_else(|| {
        let sentence = "completion_window must be hours or days, from 1h to 7d, for example 24h";
        ApiError::invalid("invalid_body", Some("completion_window"), sentence)
    })
}

/// `24h` or `7d` in seconds.
fn window_s(text: &str) -> Option<u64> {
    let (number, unit_s) = match text.strip_suffix('h') {
        Some(hours) => (hours, 3600),
        None => (text.strip_suffix('d')?, 86_400),
    };
    let plain = number.len() <= 3 && number.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| number.parse::<u64>().ok().map(|number| number * unit_s)).flatten()
}

/// Makes a batch. It is `validating` at first: its lines are read, cut into chunks and signed in the background.
#[utoipa::path(
    post,
    path = "/v1/batches",
    tag = "batches",
    request_body = CreateBatch,
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key within a day is the same batch", max_length = 255, pattern = "^[ -~]*$")),
    responses(
        (status = 200, description = "The batch", body = Batch),
        (status = 400, response = ErrorEnvelope),
        (status = 404, response = ErrorEnvelope),
        (status = 409, response = ErrorEnvelope),
        (status = 413, response = ErrorEnvelope),
    ),
)]
pub(in super::super) async fn create(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Batch>, ApiError> {
    let tenant = caller.access.tenant().clone();
    let body: CreateBatch = parsed(body, "a batch")?;
    let idempotency_key = match headers.get("idempotency-key").map(|key| key.to_str()) {
        None => None,
        Some(Ok(key)) if (1..=KEY_MAX).contains(&key.len()) => Some(key.to_owned()),
        Some(_) => {
            let sentence = format!("Idempotency-Key must be 1 to {KEY_MAX} plain characters");
            return Err(ApiError::invalid("invalid_header", Some("Idempotency-Key"), sentence));
        }
    };
    let webhook_url = body.webhook_url.clone();
    if let Some(url) = &webhook_url {
        app.webhooks()?.check(url)?;
    }
    let record = body.check()?;
    let file = FileRecord::read(&app, &tenant, &record.input_file_id).await?.ok_or_else(|| {
        let id = printable(&record.input_file_id);
        ApiError::not_found("file_not_found", format!("there is no file {id} of this tenant: upload it"))
            .at("input_file_id")
    })?;
    if file.sha256.is_none() {
        let sentence = "that file is what a batch came to: upload one with purpose batch";
        return Err(ApiError::invalid("invalid_file", Some("input_file_id"), sentence));
    }
    let asked = (&record.input_file_id, record.window_s, &record.metadata, &record.order, &webhook_url);
    let asked = Digest::of(&serde_json::to_vec(&asked).unwrap_or_default()).to_string();
    let (name, kept_s) = match &idempotency_key {
        Some(key) => (Digest::of(key.as_bytes()).to_string(), SAME_KEY_S),
        None => (asked.clone(), SAME_S),
    };
    let value = format!("{} {asked}", record.id);
    let beside = || {
        let sentence = "the same batch is being made by a request beside this one: ask again";
        ApiError::conflict("in_progress", sentence, true)
    };
    if let Some(known) = app.shared.remember(&tenant, &name, &value, kept_s).await? {
        let (id, was_asked) = known.split_once(' ').unwrap_or_default();
        if was_asked != asked {
            let sentence = "that Idempotency-Key was given with another batch: use a new key for a new batch";
            return Err(ApiError::conflict("idempotency_key_reused", sentence, false).at("Idempotency-Key"));
        }
        let record = BatchRecord::read(&app, &tenant, id).await?.ok_or_else(beside)?;
        let batch = view::look(&app, &tenant, record).await?;
        // What has ended is not the same request any more, except under the same key.
        if idempotency_key.is_some() || !batch.has_ended() {
            return Ok(Json(batch));
        }
        app.shared.forget(&tenant, &name).await;
        if app.shared.remember(&tenant, &name, &value, kept_s).await?.is_some() {
            return Err(beside());
        }
    }
    let written = async {
        // After its name is known to be new: who asks twice makes one batch.
        count(&app, &caller, &record.id).await?;
        // The record last: where it is missing, the others are of no effect and go.
        pending::entrust(&app, &caller, &record.id).await?;
        if let Some(url) = &webhook_url {
            webhooks::register(&app, &tenant, &record, url).await?;
        }
        record.write(&app, &tenant).await
    };
    let written = written.await;
    app.shared.stored().settle(&tenant, &record.id, Some(0), 0, i64::from(written.is_ok())).await;
    if let Err(refusal) = written {
        app.shared.forget(&tenant, &name).await;
        return Err(refusal);
    }
    tracing::info!(%tenant, key_id = caller.access.key_id(), batch = record.id, file = record.input_file_id, "batch made");
    pending::start(&app, &tenant, &record.id);
    Ok(Json(view::look(&app, &tenant, record).await?))
}

/// Counts a batch more, before it is made. Where the tenant has as many as it may, the oldest that nothing is left of make room.
async fn count(app: &App, caller: &Caller, id: &str) -> Result<(), ApiError> {
    let (tenant, limit) = (caller.access.tenant(), caller.access.limits().stored_bytes);
    let room = Room { files: 0, batches: 1, ..of_upload(id, 0) };
    let stored = app.shared.stored();
    match stored.take(&app.shared, &app.store, tenant, limit, room).await {
        Err(Ok(over)) if over.limit == "batches" && removed_oldest(app, tenant).await? > 0 => {
            stored.take(&app.shared, &app.store, tenant, limit, room).await.map(drop).map_err(refusal)
        }
        taken => taken.map(drop).map_err(refusal),
    }
}

/// Removes the records of the oldest batches that have ended and whose files are gone; gives how many.
async fn removed_oldest(app: &App, tenant: &TenantId) -> Result<u64, ApiError> {
    let mut objects = app.store.list(&storage::batches(tenant), None).await?;
    let mut removed = 0;
    for object in objects.drain(..).rev().take(OLDEST_MAX) {
        let id = storage::id_of_key(&object.key);
        let Ok(Some(record)) = BatchRecord::read(app, tenant, id).await else { continue };
        let files = match (&record.ended, record.failed_at) {
            (Some(ended), _) => [&ended.output_file_id, &ended.error_file_id].map(Option::clone),
            (None, Some(_)) => [None, None],
            (None, None) => continue,
        };
        let mut left = false;
        for file in files.into_iter().flatten() {
            left |= app.store.exists(&storage::file(tenant, &file)).await?;
        }
        if left {
            continue;
        }
        // Its record last: what is left of a removal that failed is removed by the next.
        app.store.delete(&storage::batch_cancelled(tenant, id)).await?;
        app.store.delete(&storage::batch_ended(tenant, id)).await?;
        app.store.delete(&object.key).await?;
        app.shared.stored().removed(tenant, object.bytes, 0, 1).await;
        removed += 1;
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_hours_or_days() {
        for (text, seconds) in [("1h", 3600), ("24h", 86_400), ("7d", 604_800), ("168h", 604_800)] {
            assert_eq!(window_s(text), Some(seconds), "{text}");
        }
        for text in ["", "h", "24", "24m", "-1h", "+1h", "1.5h", "9999h", "1 h", "٣h"] {
            assert_eq!(window_s(text), None, "{text}");
        }
    }
}
