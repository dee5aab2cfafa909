//! `/v1/batches`: the same jobs that `vecmill submit` makes, from an uploaded file and in OpenAI's words.

mod content;
mod pending;
mod prepare;
mod record;
mod turns;
mod view;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::{Extension, Json};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use vecmill_signer::claims::{Digest, JobId, TenantId};

use super::auth::Caller;
use super::embeddings::{parsed, printable};
use super::error::{ApiError, ErrorEnvelope};
use super::files::{FileRecord, What};
use super::shared::refusal;
use super::stored::{Room, of_upload};
use super::{App, ids, paging, storage, webhooks};
use crate::contract::{CONTRACT_VERSION, RunId, Truncate};
use crate::life::{Appended, Entry, Event, Ledger, Moot, UNRECORDED};

pub(super) use content::content;
pub(super) use pending::run;
pub(super) use record::BatchRecord;
use record::{InputOptions, Order, OutputOptions, PREFIX};
pub(super) use turns::Turns;
pub(super) use view::Batch;

/// The one endpoint of a batch.
const ENDPOINT: &str = "/v1/embeddings";
/// OpenAI's bounds of `metadata`.
const METADATA_MAX: usize = 16;
const METADATA_KEY_MAX: usize = 64;
const METADATA_VALUE_MAX: usize = 512;
/// Bytes of a body: all that a batch may be told, in JSON's longest way of writing it.
const BODY_BYTES_MAX: usize = 256 << 10;
/// Bytes of a model's name, of an instruction and of a field's name: as [`crate::contract::JobSpec`] has them, and as long as
/// anybody calls a column. With metadata, a record that holds them is far shorter than its readers take.
const MODEL_BYTES_MAX: usize = 128;
const INSTRUCTION_BYTES_MAX: usize = 4_096;
const FIELD_BYTES_MAX: usize = 256;
/// Of the oldest batches, those that are looked at when a tenant has as many as it may: what nothing is left of is removed.
const OLDEST_MAX: usize = 100;
/// Longest completion window: a week, as `vecmill submit` has it. What a tenant may have is the signer's to say.
const WINDOW_S: std::ops::RangeInclusive<u64> = 3600..=7 * 24 * 3600;
/// Most batches of a list, and how many where nobody says.
const LIST_MAX: usize = 100;
const LIST_DEFAULT: usize = 20;
/// Batches looked at at once for a list; each that runs is a handful of S3 requests.
const LOOKS_MAX: usize = 8;
/// How long a batch that is asked for again without an idempotency key is the same: OpenAI's clients ask up to three times.
const SAME_S: u64 = 60;
/// Seconds after which a batch without its record never was: whoever made it has died in between.
const RECORD_WITHIN_S: u64 = 60;
/// How long one with a key is.
const SAME_KEY_S: u64 = 24 * 3600;
/// Longest idempotency key.
const KEY_MAX: usize = 255;

/// A batch to make. A field that is not known is refused by name.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateBatch {
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
pub(super) fn window(text: &str) -> Result<u64, ApiError> {
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
pub(super) async fn create(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Batch>, ApiError> {
    let tenant = caller.access.tenant().clone();
    if body.as_ref().is_ok_and(|body| body.len() > BODY_BYTES_MAX) {
        return Err(ApiError::too_large(format!("the body of a batch may have {BODY_BYTES_MAX} bytes")));
    }
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
                match looked.await {
                    Err(error) if error.is_of_a_record() => {
                        app.shared.set_aside(&storage::batch(tenant, &id));
                        Ok(None)
                    }
                    looked => looked,
                }
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
