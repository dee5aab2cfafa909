//! From a batch's file to a queued job: the same path as `vecmill submit` takes. Every step gives the same when it is done twice.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use vecmill_signer::claims::{JobId, TenantId};
use vecmill_signer::client::ClientError;

use super::super::error::ApiError;
use super::super::files::FileRecord;
use super::super::shared::{Over, Reservation};
use super::super::stored::Room;
use super::super::{App, ids, storage};
use super::pending::Pending;
use super::record::{BAD_LINES_MAX, BadLine, BatchRecord, InputOptions, OutputOptions};
use super::turns::long_enough;
use crate::contract::{Input, JobKeys, JobSpec, RowError};
use crate::life::Ledger;
use crate::prepare::{Corpus, Event, PrepareError, Prepared, job_id, prepare};
use crate::read::{BadRow, InputFormat, ReadOptions};
use crate::source::{Source, SourceError};
use crate::split::{Cut, SplitError};
use crate::submit::{SubmitError, enter};

/// Where chunks are cut, if the tenant does not say: as `vecmill submit` does.
const CUT: Cut = Cut { chunk_rows: 1000, chunk_bytes: 256 << 10 };
/// Seconds after the longest preparation that room for it lapses, where its gateway has died.
const ROOM_AFTER_S: u64 = 600;
/// Bytes of a block of rejected rows; the writer cuts far below.
const REJECTED_BYTES_MAX: usize = 16 << 20;

/// Why a batch is not a job yet.
pub(super) enum Trouble {
    /// It never will be.
    Failed { code: &'static str, message: String, bad_lines: Vec<BadLine> },
    /// Something is away.
    Passing(String),
    /// The tenant wants no more of it.
    Cancelled,
    /// Its window is over.
    Expired,
    /// The gateway shuts down.
    Closing,
    /// It has had its time.
    TooLong,
}

impl From<ApiError> for Trouble {
    fn from(error: ApiError) -> Self {
        Self::Passing(error.to_string())
    }
}

/// Makes a job of a batch. While its file is read and cut it can be stopped, for the reason that `unwanted` gives: what was read
/// by then is dropped, and its threads end. From its reservation on it goes on to its end, which is seconds away.
pub(super) async fn attempt(
    app: &App,
    pending: &Pending,
    tenant: &TenantId,
    mut record: BatchRecord,
    unwanted: impl Future<Output = Trouble>,
) -> Result<(), Trouble> {
    let signer = app.auth.signer_with(pending.token(tenant))?;
    let file = FileRecord::read(app, tenant, &record.input_file_id).await?.ok_or_else(|| Trouble::Failed {
        code: "file_not_found",
        message: "the input file was deleted before it was read".to_owned(),
        bad_lines: Vec::new(),
    })?;
    // What it will be cut into is about as long as its file; held before there is anything of it.
    let until = ids::unix_s() + long_enough(file.bytes).as_secs() + ROOM_AFTER_S;
    let room = Room { name: &record.id, bytes: file.bytes, until, files: 0, batches: 0 };
    let taken = app.shared.stored().take(&app.shared, &app.store, tenant, pending.limits.stored_bytes, room).await;
    taken.map_err(over)?;
    let job = OnceLock::new();
    let cutting = async {
        let corpus = corpus(app, tenant, &mut record, &file).await?;
        let spec = spec(app, &record);
        spec.check().map_err(|error| failed("invalid_parameters", error.to_string()))?;
        if let Some(sha256) = file.sha256 {
            let input = Input { sha256, bytes: file.bytes, format: corpus.format };
            _ = job.set(job_id(tenant, &spec, &input, &corpus.options, corpus.cut));
        }
        prepared(app, tenant, &spec, &corpus).await
    };
    let cut = tokio::select! {
        cut = cutting => cut,
        why = unwanted => Err(why),
        () = tokio::time::sleep(long_enough(file.bytes)) => Err(Trouble::TooLong),
    };
    let prepared = match cut {
        Ok(prepared) => prepared,
        Err(trouble) => {
            if let (Some(job), Trouble::Cancelled | Trouble::Expired | Trouble::TooLong) = (job.get(), &trouble) {
                abandon(app, tenant, job).await;
            }
            app.shared.stored().settle(tenant, &record.id, Some(0), 0, 0).await;
            return Err(trouble);
        }
    };
    record.bad_lines = match prepared.manifest.rejected {
        0 => Vec::new(),
        _ => rejected(app, &prepared.keys()).await?,
    };
    let expires_at = ids::unix_s() + record.window_s;
    let wanted = Reservation::of(&prepared, expires_at);
    let reserved = app.shared.reserve(&app.store, tenant, pending.limits, wanted).await;
    // Its chunks are in what the job holds.
    app.shared.stored().settle(tenant, &record.id, Some(0), 0, 0).await;
    reserved.map_err(over)?;
    if is_cancelled(app, tenant, &record.id).await? {
        give_back(app, tenant, &prepared).await?;
        return Err(Trouble::Cancelled);
    }
    let (window_s, republish) = (record.window_s, record.order.republish);
    let entered = enter(&signer, &app.broker, &prepared, &record.id, window_s, republish, |_| {}).await;
    let submitted = match entered {
        Ok(submitted) => submitted,
        Err(error) => {
            let trouble = refused(error);
            if matches!(trouble, Trouble::Failed { .. }) {
                give_back(app, tenant, &prepared).await?;
            }
            return Err(trouble);
        }
    };
    record.job = Some(prepared.job.clone());
    record.submitted = Some(submitted);
    record.in_progress_at = Some(ids::unix_s());
    record.expires_at = Some(expires_at);
    record.write(app, tenant).await?;
    tracing::info!(%tenant, batch = record.id, job = %prepared.job, rows = prepared.manifest.rows, "batch queued");
    if record.order.delete_input {
        file.remove(app, tenant).await?;
    }
    // Cancelled since then: the other side may have seen no job yet.
    if is_cancelled(app, tenant, &record.id).await? {
        super::leave(app, tenant, &prepared.job, &record.id).await?;
    }
    Ok(())
}

/// Removes what was cut of a corpus that is not cut to its end. Whoever cuts it beside, for another batch or a submission, sees that
/// the life is over, and begins anew. A failure is for the log: what is left counts as the tenant's, and is cut over the next time.
async fn abandon(app: &App, tenant: &TenantId, job: &JobId) {
    let ledger = Ledger::new(app.store.clone(), tenant, job);
    let abandoning = async {
        let Some(head) = ledger.head().await?.filter(|head| !head.job.deleted) else { return Ok(()) };
        // Complete, it is a job that others may have.
        if head.job.run.is_some() || app.store.exists(&ledger.keys_of(head.job.at()).manifest()).await? {
            return Ok(());
        }
        ledger.abandon(head.job.life).await
    };
    if let Err(error) = abandoning.await {
        tracing::warn!(%tenant, %job, %error, "a corpus that was not cut to its end has left objects behind");
    }
}

/// Gives back what was reserved for a job, unless it runs for somebody else.
async fn give_back(app: &App, tenant: &TenantId, prepared: &Prepared) -> Result<(), Trouble> {
    let head = prepared.ledger.head().await.map_err(ApiError::from)?;
    if head.is_none_or(|head| head.job.unfinished().is_none()) {
        app.shared.give_back(tenant, &prepared.job, true).await;
    }
    Ok(())
}

/// That the tenant is over a limit, as a batch's failure.
fn over(no: Result<Over, ApiError>) -> Trouble {
    match no {
        Ok(Over { limit: "stored_bytes", sentence }) => failed("storage_limit_exceeded", sentence),
        Ok(Over { sentence, .. }) => failed("token_limit_exceeded", sentence),
        Err(away) => Trouble::from(away),
    }
}

async fn is_cancelled(app: &App, tenant: &TenantId, id: &str) -> Result<bool, ApiError> {
    Ok(app.store.exists(&storage::batch_cancelled(tenant, id)).await?)
}

fn failed(code: &'static str, message: String) -> Trouble {
    Trouble::Failed { code, message, bad_lines: Vec::new() }
}

/// How the file is read. What its first line asks for is what all must ask for, where the batch itself says nothing.
async fn corpus(app: &App, tenant: &TenantId, record: &mut BatchRecord, file: &FileRecord) -> Result<Corpus, Trouble> {
    let order = &mut record.order;
    let InputOptions { format, id_field, text_field } = &order.input;
    let format = format.or_else(|| InputFormat::from_name(&file.filename)).unwrap_or(InputFormat::Jsonl);
    let key = storage::content(tenant, &file.id);
    let first = match format {
        InputFormat::Jsonl => first_line::of(app, &key).await?,
        _ => first_line::Body::default(),
    };
    let asked = order.output.dimensions.is_some();
    let OutputOptions { dimensions, encoding_format, .. } = &mut order.output;
    // Lines then differ from one another where one says nothing and another does: that is for `read` to find.
    let every_line = !asked && first.dimensions.is_some();
    *dimensions = dimensions.or(first.dimensions).or(Some(app.model_dimensions));
    *encoding_format = encoding_format.or(first.encoding_format);
    order.model = order.model.take().or(first.model).or_else(|| Some(app.model.clone()));
    if order.model.as_ref() != Some(&app.model) {
        let message = format!("the model asked for is not served here; {} is", app.model);
        return Err(failed("model_not_found", message));
    }
    let defaults = ReadOptions::default();
    let options = ReadOptions {
        id_field: id_field.clone().unwrap_or(defaults.id_field),
        text_field: text_field.clone().unwrap_or(defaults.text_field),
        dimensions: order.output.dimensions,
        dimensions_in_every_line: every_line,
        model: order.model.clone(),
        ..ReadOptions::default()
    };
    let cut = Cut {
        chunk_rows: order.chunk_rows.unwrap_or(CUT.chunk_rows),
        chunk_bytes: order.chunk_bytes.unwrap_or(CUT.chunk_bytes),
    };
    let source = Source::Stored { key, name: file.filename.clone() };
    Ok(Corpus { source, format, options, cut, strict: order.strict })
}

fn spec(app: &App, record: &BatchRecord) -> JobSpec {
    let order = &record.order;
    JobSpec {
        model: order.model.clone().unwrap_or_else(|| app.model.clone()),
        dimensions: order.output.dimensions.unwrap_or(app.model_dimensions),
        dtype: order.output.dtype,
        instruction: order.instruction.clone(),
        truncate: order.truncate,
        precision: order.output.precision,
    }
}

/// Cuts the file into chunks on S3.
async fn prepared(app: &App, tenant: &TenantId, spec: &JobSpec, corpus: &Corpus) -> Result<Prepared, Trouble> {
    let bad: Arc<Mutex<Vec<BadLine>>> = Arc::default();
    let report = {
        let bad = Arc::clone(&bad);
        move |event| {
            if let Event::Rejected(row) = event {
                let mut bad = bad.lock().unwrap_or_else(PoisonError::into_inner);
                if bad.len() < BAD_LINES_MAX {
                    bad.push(BadLine::of(&row));
                }
            }
        }
    };
    prepare(&app.store, tenant, spec, corpus, report).await.map_err(|error| {
        let bad_lines = std::mem::take(&mut *bad.lock().unwrap_or_else(PoisonError::into_inner));
        match error {
            PrepareError::Strict { bad, .. } => Trouble::Failed {
                code: "invalid_lines",
                message: format!("{bad} lines can't be used and strict was asked for: nothing was made of the file"),
                bad_lines,
            },
            PrepareError::Empty { bad, .. } => Trouble::Failed {
                code: "empty_file",
                message: format!("the file has no line that can be embedded ({bad} bad ones)"),
                bad_lines,
            },
            PrepareError::Read(_)
            | PrepareError::Source(SourceError::TooLong { .. })
            | PrepareError::Split(SplitError::Read(_) | SplitError::TooManyChunks) => {
                Trouble::Failed { code: "unreadable_file", message: told(&error), bad_lines }
            }
            PrepareError::Source(SourceError::Store(_) | SourceError::Read { .. } | SourceError::Spool { .. })
            | PrepareError::Changed { .. }
            | PrepareError::Ledger(_)
            | PrepareError::Split(_)
            | PrepareError::Store(_)
            | PrepareError::Manifest(_) => Trouble::Passing(error.to_string()),
        }
    })
}

/// A sentence about the file without the place at which the gateway held it.
fn told(error: &PrepareError) -> String {
    let sentence = error.to_string();
    if sentence.contains(std::env::temp_dir().to_string_lossy().as_ref()) {
        "the file can't be read".to_owned()
    } else {
        sentence
    }
}

/// The lines that were not used, as far as a batch names them.
async fn rejected(app: &App, keys: &JobKeys) -> Result<Vec<BadLine>, Trouble> {
    let passing = |error: crate::store::StoreError| Trouble::Passing(error.to_string());
    let mut lines = Vec::new();
    for block in app.store.list(&keys.rejected_prefix(), None).await.map_err(passing)? {
        let Some(bytes) = app.store.get(&block.key, REJECTED_BYTES_MAX).await.map_err(passing)? else { continue };
        let errors =
            bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<RowError>(line).ok());
        lines.extend(errors.map(|error| BadLine {
            code: error.code,
            line: Some(error.line),
            message: error.message,
            param: None,
        }));
        if lines.len() >= BAD_LINES_MAX {
            break;
        }
    }
    Ok(BadLine::bounded(lines))
}

impl BadLine {
    fn of(row: &BadRow) -> Self {
        Self { code: row.code.to_owned(), line: Some(row.line), message: row.reason.clone(), param: None }
    }
}

fn refused(error: SubmitError) -> Trouble {
    match error {
        SubmitError::Signer(ClientError::Refused { status: 401, .. }) => failed(
            "access_denied",
            "the API key behind the batch was revoked or has expired, or the batch could not be prepared in a day: make it \
             again"
                .to_owned(),
        ),
        SubmitError::Signer(ClientError::Refused { status, description, .. })
            if (400..500).contains(&status) && status != 429 =>
        {
            failed("access_denied", description)
        }
        SubmitError::Spec(error) => failed("invalid_parameters", error.to_string()),
        SubmitError::TooManyHolders => failed("too_many_batches", error.to_string()),
        error => Trouble::Passing(error.to_string()),
    }
}

/// What the first line of a file asks for.
mod first_line {
    use std::io::{BufRead, BufReader, Read};

    use serde::Deserialize;

    use super::super::super::App;
    use super::super::super::embeddings::Encoding;
    use super::Trouble;

    /// Read of the file in search of it: longer than any line may be.
    const BYTES_MAX: u64 = 8 << 20;

    /// Read before the first look: most lines are shorter.
    const LOOK_AT_BYTES: usize = 64 << 10;

    #[derive(Default, Deserialize)]
    pub(super) struct Body {
        pub(super) model: Option<String>,
        pub(super) dimensions: Option<u32>,
        pub(super) encoding_format: Option<Encoding>,
    }

    #[derive(Deserialize)]
    struct Line {
        body: Body,
    }

    /// The first line that is one of OpenAI's; nothing where none of the first is.
    pub(super) async fn of(app: &App, key: &str) -> Result<Body, Trouble> {
        let passing = |error: &dyn std::fmt::Display| Trouble::Passing(error.to_string());
        let opened = app.store.open(key).await.map_err(|error| passing(&error))?;
        let Some((_, mut stream)) = opened else { return Ok(Body::default()) };
        let mut head = Vec::new();
        // Twice as much before each look: a long line must not be read from its start at every piece.
        let mut enough = LOOK_AT_BYTES;
        while (head.len() as u64) < BYTES_MAX {
            let Some(piece) = stream.try_next().await.map_err(|error| passing(&error))? else { break };
            head.extend_from_slice(&piece);
            if head.len() >= enough {
                enough = 2 * head.len();
                if let Some(body) = look(&head) {
                    return Ok(body);
                }
            }
        }
        Ok(look(&head).unwrap_or_default())
    }

    fn look(head: &[u8]) -> Option<Body> {
        let plain: Box<dyn Read + '_> = match head {
            [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(head)),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::Decoder::new(head).ok()?),
            _ => Box::new(head),
        };
        let mut line = Vec::new();
        // What is cut off is no JSON.
        BufReader::new(plain.take(BYTES_MAX)).read_until(b'\n', &mut line).ok()?;
        serde_json::from_slice::<Line>(&line).ok().map(|line| line.body)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_first_line_is_seen_through_compression() {
            let line =
                br#"{"custom_id":"a","body":{"input":"x","model":"m","dimensions":64,"encoding_format":"base64"}}"#;
            let compressed = zstd::encode_all(&line[..], 3).expect("a write to memory");
            for head in [&line[..], &compressed] {
                let body = look(head).expect("a body");
                assert_eq!((body.model.as_deref(), body.dimensions), (Some("m"), Some(64)));
                assert!(body.encoding_format == Some(Encoding::Base64));
            }
            assert!(look(&line[..40]).is_none() && look(b"{\"id\":\"a\",\"text\":\"x\"}\n").is_none());
        }
    }
}
