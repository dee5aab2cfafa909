//! The two files of a batch, made of its job's parts and records whenever they are read: vectors are stored once. In flat
//! memory: a part goes through a temporary file, and no faster than the reader takes what it becomes.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use serde_json::json;
use tempfile::TempPath;
use tokio::sync::mpsc;
use vecmill_signer::claims::{JobId, TenantId};

use super::super::App;
use super::super::embeddings::{self, Encoding};
use super::super::error::ApiError;
use super::super::files::What;
use super::super::transfers::paid;
use super::record::{BatchRecord, OutputFormat};
use crate::contract::{
    DeadChunk, FinalManifest, JobKeys, MANIFEST_BYTES_MAX, Manifest, PartEntry, RowError, RunId, read_chunk,
};
use crate::life::{EndState, Ledger, read_summary};
use crate::part::{OneFile, PartRows};
use crate::shares::Share;
use crate::status::JobStatus;
use crate::store::Store;

/// Bytes gathered before they are sent on.
const PIECE_BYTES: usize = 128 << 10;
/// Pieces made and not yet taken.
const PIECES_MAX: usize = 4;
/// Bytes of a block of row errors; the writers cut far below.
const ERRORS_BYTES_MAX: usize = 64 << 20;

type Piece = Result<Bytes, std::io::Error>;
type Outcome = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// One of a batch's files, as it is made. The place is held until its end.
pub(in super::super) async fn content(
    app: Arc<App>,
    tenant: TenantId,
    record: BatchRecord,
    what: What,
    place: Share,
) -> Result<Body, ApiError> {
    let source = Source::of(&app, &tenant, record).await?;
    let (pieces, taken) = mpsc::channel(PIECES_MAX);
    tokio::spawn(async move {
        let out = Out { pieces: pieces.clone(), held: Vec::with_capacity(PIECE_BYTES) };
        let made = match (what, source.record.order.output.format) {
            (What::Output, OutputFormat::Jsonl) => source.lines(out).await,
            (What::Output, OutputFormat::Parquet) => source.parquet(out).await,
            (What::Errors, _) => source.errors(out).await,
        };
        if let Err(error) = made {
            tracing::warn!(%tenant, batch = source.record.id, %error, "a batch's file could not be made to its end");
            // Cut off, so that nobody takes it for whole.
            let _ = pieces.send(Err(std::io::Error::other("the file could not be made to its end"))).await;
        }
    });
    Ok(paid(stream::unfold(taken, async |mut taken| Some((taken.recv().await?, taken))), place))
}

/// Where pieces are gathered. Used from threads that may block.
struct Out {
    pieces: mpsc::Sender<Piece>,
    held: Vec<u8>,
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.held.extend_from_slice(bytes);
        if self.held.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        let piece = Bytes::from(std::mem::replace(&mut self.held, Vec::with_capacity(PIECE_BYTES)));
        self.pieces.blocking_send(Ok(piece)).map_err(|_| std::io::Error::other("the reader has gone"))
    }
}

struct Source {
    store: Store,
    keys: JobKeys,
    job: JobId,
    record: BatchRecord,
    /// What the batch came to: what was done with the job since is not in it.
    summary: FinalManifest,
}

impl Source {
    async fn of(app: &App, tenant: &TenantId, record: BatchRecord) -> Result<Self, ApiError> {
        let gone = || {
            let sentence = "what the file was made of was deleted with the output of its batch";
            ApiError::gone("content_deleted", sentence).at("file_id")
        };
        let (Some(job), Some(ended)) = (record.job.clone(), &record.ended) else { return Err(gone()) };
        let ledger = Ledger::new(app.store.clone(), tenant, &job);
        let (life, summary) = match ended.summary {
            Some(summary) => (ended.life, summary),
            // It ended before there were summaries: as the job is looked at, one is written.
            None => {
                JobStatus::read(&app.store, tenant, &job).await?;
                let end = ledger.first_end_since(0, 0).await?.filter(|entry| !entry.job.deleted);
                let end = end.and_then(|entry| Some((entry.job.life, entry.job.run?.end?.summary)));
                end.ok_or_else(gone)?
            }
        };
        let keys = ledger.keys_of(RunId { life, run: 0 });
        let summary = read_summary(&app.store, &keys, &summary).await?;
        Ok(Self { store: app.store.clone(), keys, job, record, summary: summary.ok_or_else(gone)? })
    }

    /// OpenAI's lines, one for each row with a vector.
    async fn lines(&self, mut out: Out) -> Outcome {
        let model = self.record.order.model.clone().unwrap_or_default();
        let encoding = self.record.order.output.encoding_format.unwrap_or(Encoding::Float);
        for entry in &self.summary.parts {
            let (chunk, part) = (entry.chunk, self.part(entry).await?);
            let (job, model) = (self.job.clone(), model.clone());
            out = blocking(move || {
                let mut line = String::new();
                let mut number = 0;
                for rows in PartRows::open(File::open(&part.path)?)? {
                    for (id, vector, tokens) in rows? {
                        line.clear();
                        write_line(&mut line, &job, chunk, number, &id, &model, &vector, tokens, encoding);
                        out.write_all(line.as_bytes())?;
                        number += 1;
                    }
                }
                Ok(out)
            })
            .await?;
        }
        finished(out).await
    }

    /// One Parquet file of all parts.
    async fn parquet(&self, out: Out) -> Outcome {
        let mut file = OneFile::new(out);
        for entry in &self.summary.parts {
            let part = self.part(entry).await?;
            file = blocking(move || {
                file.append(&File::open(&part.path)?)?;
                Ok(file)
            })
            .await?;
        }
        blocking(move || Ok(file.finish().map(drop)?)).await
    }

    /// OpenAI's lines, one for each row without a vector.
    async fn errors(&self, mut out: Out) -> Outcome {
        let rejected = self.store.list(&self.keys.rejected_prefix(), None).await?.into_iter().map(|object| object.key);
        let failed = self.summary.parts.iter().filter_map(|part| part.errors.as_ref());
        for key in rejected.chain(failed.map(|path| self.keys.object(path))) {
            let Some(lines) = self.store.get(&key, ERRORS_BYTES_MAX).await? else { continue };
            let job = self.job.clone();
            out = blocking(move || {
                for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                    let error: RowError = serde_json::from_slice(line)?;
                    write_error(&mut out, &job, error.line, error.id.as_deref(), &error.code, &error.message)?;
                }
                Ok(out)
            })
            .await?;
        }
        self.chunks_without(out).await
    }

    /// The rows of chunks that were never done.
    async fn chunks_without(&self, mut out: Out) -> Outcome {
        let end = self.record.ended.as_ref().map(|ended| ended.state);
        let Some(manifest) = self.store.get(&self.keys.manifest(), MANIFEST_BYTES_MAX).await? else {
            return finished(out).await;
        };
        let manifest = Manifest::parse(&manifest)?;
        let done: HashSet<u32> = self.summary.parts.iter().map(|part| part.chunk).collect();
        let dead: HashMap<u32, &DeadChunk> = self.summary.dead.iter().map(|dead| (dead.chunk, dead)).collect();
        for (chunk, entry) in (0..).zip(&manifest.chunks).filter(|(chunk, _)| !done.contains(chunk)) {
            let key = self.keys.chunk(chunk, &entry.sha256);
            let Some(object) = self.store.get(&key, entry.bytes as usize).await? else { continue };
            let (code, message) = match (end, dead.get(&chunk)) {
                (_, Some(dead)) => (dead.code.clone(), dead.reason.clone()),
                (Some(EndState::Cancelled), None) => {
                    ("batch_cancelled".to_owned(), "the batch was cancelled before this line was done".to_owned())
                }
                _ => ("batch_expired".to_owned(), "the batch's window was over before this line was done".to_owned()),
            };
            let (job, rows) = (self.job.clone(), entry.rows);
            out = blocking(move || {
                for row in read_chunk(&object, rows)? {
                    write_error(&mut out, &job, row.line, Some(&row.id), &code, &message)?;
                }
                Ok(out)
            })
            .await?;
        }
        finished(out).await
    }

    /// Brings a part to local disk, checked against the summary.
    async fn part(&self, entry: &PartEntry) -> Result<Part, Box<dyn std::error::Error + Send + Sync>> {
        let path = tempfile::Builder::new().prefix("vecmill-part-").tempfile()?.into_temp_path();
        let (_, sha256) = self.store.download(&self.keys.object(&entry.path), &path).await?;
        if sha256 != entry.sha256 {
            return Err(format!("part {} hashes to {sha256}, its summary says {}", entry.chunk, entry.sha256).into());
        }
        Ok(Part { path: path.to_path_buf(), _file: path })
    }
}

struct Part {
    path: PathBuf,
    /// Removes it.
    _file: TempPath,
}

async fn finished(mut out: Out) -> Outcome {
    blocking(move || Ok(out.flush()?)).await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
) -> Result<T, Box<dyn std::error::Error + Send + Sync>> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| Err(panic.into()))
}

#[expect(clippy::too_many_arguments, reason = "the parts of one line")]
fn write_line(
    line: &mut String,
    job: &JobId,
    chunk: u32,
    number: u32,
    id: &str,
    model: &str,
    vector: &[f32],
    tokens: u32,
    encoding: Encoding,
) {
    let id = serde_json::to_string(id).unwrap_or_default();
    let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
    // Writing to a string can't fail.
    let _ = write!(
        line,
        "{{\"id\":\"batch_req_{job}_{chunk}_{number}\",\"custom_id\":{id},\"response\":{{\"status_code\":200,\
         \"request_id\":\"{job}_{chunk}_{number}\",\"body\":"
    );
    embeddings::render(line, model, &[tokens], vector.len() as u32, &bytes, encoding);
    line.push_str("},\"error\":null}\n");
}

fn write_error(
    out: &mut impl Write,
    job: &JobId,
    number: u64,
    id: Option<&str>,
    code: &str,
    message: &str,
) -> std::io::Result<()> {
    let line = json!({
        "id": format!("batch_req_{job}_line_{number}"),
        "custom_id": id,
        "line": number,
        "response": null,
        "error": {"code": code, "message": message},
    });
    writeln!(out, "{line}")
}
