//! Cutting a corpus into chunks and uploading them, in flat memory.
//!
//! One thread reads and compresses; the uploads overlap with it. Between them lies a channel of a few chunks,
//! so a slow S3 stops the reading and nothing piles up.

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;
use vecmill_signer::claims::Digest;

use crate::{
    contract::{CHUNKS_MAX, ChunkEntry, ChunkRow, ChunkWriter, JobKeys, RowError},
    read::{BadRow, ReadError, Rows},
    store::{Store, StoreError},
};

/// Chunks on the way to S3 at once: enough to hide its latency, at a few hundred KiB each.
const UPLOADS_MAX: usize = 8;
/// Chunks cut and waiting for an upload.
const CUT_MAX: usize = 4;
/// Bytes of one block of rejected rows.
const REJECTED_BLOCK_BYTES: usize = 1 << 20;

/// Where chunks are cut.
///
/// The defaults make chunks of at most about 64,000 tokens: a second on an H100 with the 4B model, minutes at
/// worst on a CPU, far below the 30 minutes after which RabbitMQ takes an unacknowledged delivery back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub struct Cut {
    /// Most texts in a chunk
    #[arg(long, env = "VECMILL_CHUNK_ROWS", value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub chunk_rows: u32,
    /// Most bytes of text in a chunk, 4 for each token id (a longer single text makes a chunk of its own)
    #[arg(long, env = "VECMILL_CHUNK_BYTES", value_name = "BYTES", default_value_t = 256 << 10, value_parser = clap::value_parser!(u32).range(1024..=4 << 20))]
    pub chunk_bytes: u32,
}

/// What a corpus was cut into.
#[derive(Debug, Default)]
pub struct Split {
    /// The chunks in input order.
    pub chunks: Vec<ChunkEntry>,
    /// Texts in them.
    pub rows: u64,
    /// Rows that could not be used.
    pub rejected: u64,
    /// Bytes of text in all chunks, 4 for each token id.
    pub text_bytes: u64,
}

/// Why a corpus could not be cut.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    /// The input as a whole can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// S3 failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Compression failed (memory).
    #[error("a chunk can't be compressed: {0}")]
    Compress(#[from] std::io::Error),
    /// More than [`CHUNKS_MAX`].
    #[error(
        "the corpus makes more than {CHUNKS_MAX} chunks: raise --chunk-rows and --chunk-bytes, or submit it in parts"
    )]
    TooManyChunks,
}

enum Piece {
    Chunk { number: u32, entry: ChunkEntry, object: Vec<u8> },
    Rejected { block: u32, lines: Vec<u8> },
}

/// Cuts and uploads. `rejected` is called for each bad row as it is met, `uploaded` with the rows of each chunk
/// that has reached S3.
pub async fn split(
    store: &Store,
    keys: &JobKeys,
    rows: Rows,
    cut: Cut,
    rejected: impl FnMut(&BadRow) + Send + 'static,
    mut uploaded: impl FnMut(u32),
) -> Result<Split, SplitError> {
    let (pieces, mut received) = mpsc::channel(CUT_MAX);
    let cutter = tokio::task::spawn_blocking(move || cut_rows(rows, cut, rejected, &pieces));
    let uploads = stream::poll_fn(move |context| received.poll_recv(context))
        .map(|piece| upload(store, keys, piece))
        .buffer_unordered(UPLOADS_MAX)
        .try_for_each(|rows| {
            uploaded(rows);
            std::future::ready(Ok(()))
        })
        .await;
    // A failed upload drops the channel, at which the cutter stops; its own error is the second one then.
    let cut = cutter.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
    uploads?;
    cut
}

async fn upload(store: &Store, keys: &JobKeys, piece: Piece) -> Result<u32, StoreError> {
    match piece {
        Piece::Chunk { number, entry, object } => {
            store.put(&keys.chunk(number, &entry.sha256), object, "application/zstd").await?;
            Ok(entry.rows)
        }
        Piece::Rejected { block, lines } => {
            store.put(&keys.rejected(block), lines, "application/x-ndjson").await?;
            Ok(0)
        }
    }
}

fn cut_rows(
    rows: Rows,
    cut: Cut,
    mut rejected: impl FnMut(&BadRow),
    pieces: &mpsc::Sender<Piece>,
) -> Result<Split, SplitError> {
    let mut split = Split::default();
    let mut writer = ChunkWriter::new()?;
    let mut refused = RejectedBlocks::default();
    for row in rows {
        let row = match row? {
            Ok(row) => ChunkRow { line: row.line, id: row.id, input: row.input },
            Err(bad) => {
                rejected(&bad);
                split.rejected += 1;
                if !refused.push(&bad, pieces)? {
                    return Ok(split);
                }
                continue;
            }
        };
        let full = writer.rows() == cut.chunk_rows
            || writer.rows() > 0 && writer.size_bytes() + row.input.size_bytes() > cut.chunk_bytes as usize;
        if full && !close(std::mem::replace(&mut writer, ChunkWriter::new()?), &mut split, pieces)? {
            return Ok(split);
        }
        writer.push(&row)?;
    }
    if writer.rows() > 0 {
        close(writer, &mut split, pieces)?;
    }
    refused.flush(pieces);
    Ok(split)
}

/// Hands a chunk to the uploads; false when nobody takes them any more.
fn close(writer: ChunkWriter, split: &mut Split, pieces: &mpsc::Sender<Piece>) -> Result<bool, SplitError> {
    if split.chunks.len() == CHUNKS_MAX {
        return Err(SplitError::TooManyChunks);
    }
    let (rows, text_bytes) = (writer.rows(), writer.size_bytes());
    let object = writer.finish()?;
    // Cut bounds and zstd's worst case keep an object far below 4 GiB.
    let entry = ChunkEntry { rows, bytes: object.len() as u32, sha256: Digest::of(&object) };
    let number = split.chunks.len() as u32;
    split.chunks.push(entry);
    split.rows += u64::from(rows);
    split.text_bytes += text_bytes as u64;
    Ok(pieces.blocking_send(Piece::Chunk { number, entry, object }).is_ok())
}

#[derive(Default)]
struct RejectedBlocks {
    lines: Vec<u8>,
    blocks: u32,
}

impl RejectedBlocks {
    fn push(&mut self, bad: &BadRow, pieces: &mpsc::Sender<Piece>) -> Result<bool, SplitError> {
        let error = RowError { line: bad.line, id: None, code: bad.code.to_owned(), message: bad.reason.clone() };
        serde_json::to_writer(&mut self.lines, &error).map_err(std::io::Error::from)?;
        self.lines.push(b'\n');
        Ok(self.lines.len() < REJECTED_BLOCK_BYTES || self.flush(pieces))
    }

    fn flush(&mut self, pieces: &mpsc::Sender<Piece>) -> bool {
        let lines = std::mem::take(&mut self.lines);
        if lines.is_empty() {
            return true;
        }
        let block = self.blocks;
        self.blocks += 1;
        pieces.blocking_send(Piece::Rejected { block, lines }).is_ok()
    }
}
