//! Cutting a corpus into chunks and uploading them, in flat memory.
//!
//! One thread reads and compresses; the uploads overlap with it. Between them lies a channel of a few chunks,
//! so a slow S3 stops the reading and nothing piles up.

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;
use vecmill_signer::claims::Digest;

use crate::{
    contract::{CHUNK_ROWS_MAX, CHUNKS_MAX, ChunkEntry, ChunkRow, ChunkWriter, JobKeys, RowError},
    read::{BadRow, ReadError, Rows},
    store::{Store, StoreError},
};

/// Chunks on the way to S3 at once: enough to hide its latency, at a few hundred KiB each.
const UPLOADS_MAX: usize = 8;
/// Chunks cut and waiting for an upload.
const CUT_MAX: usize = 4;
/// Bytes of one block of rejected rows.
const REJECTED_BLOCK_BYTES: usize = 1 << 20;
/// Most bad rows that are listed one by one: more than anybody reads, and with their reasons some 15 MB. The others are counted.
pub const REJECTED_LISTED_MAX: u64 = 100_000;
/// Bytes that the list of bad rows may have for any corpus; beyond them it may have as many as the corpus itself: what a few bytes decode
/// to must not be stored as many times their size.
const REJECTED_FREE_BYTES: u64 = 1 << 20;
/// Bytes of a line of the list besides its words.
const REJECTED_LINE_BYTES: u64 = 48;

/// Where chunks are cut.
///
/// The defaults make chunks of at most about 64,000 tokens: a second on an H100 with the 4B model, minutes at
/// worst on a CPU, far below the 30 minutes after which RabbitMQ takes an unacknowledged delivery back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub struct Cut {
    /// Most texts in a chunk
    #[arg(long, env = "VECMILL_CHUNK_ROWS", value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=i64::from(CHUNK_ROWS_MAX)))]
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

/// Which bad rows are listed one by one: the first, up to the bounds.
pub(crate) struct Listing {
    rows: u64,
    bytes: u64,
    bytes_max: u64,
    /// The first that is not listed, and how many are not.
    unlisted: Option<(u64, u64)>,
}

impl Listing {
    /// For a corpus of so many bytes.
    pub(crate) fn new(corpus_bytes: u64) -> Self {
        Self { rows: 0, bytes: 0, bytes_max: REJECTED_FREE_BYTES.saturating_add(corpus_bytes), unlisted: None }
    }

    /// Whether a bad row is listed. Once one is not, no later one is.
    pub(crate) fn admits(&mut self, bad: &BadRow) -> bool {
        self.rows += 1;
        self.bytes += REJECTED_LINE_BYTES + (bad.code.len() + bad.reason.len()) as u64;
        if self.unlisted.is_none() && self.rows <= REJECTED_LISTED_MAX && self.bytes <= self.bytes_max {
            return true;
        }
        self.unlisted.get_or_insert((bad.line, 0)).1 += 1;
        false
    }

    /// Bad rows so far.
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// What is said in place of those that are not listed.
    pub(crate) fn more(&self) -> Option<BadRow> {
        let (line, rows) = self.unlisted?;
        let reason =
            format!("{rows} bad rows from here on are counted and not listed one by one: mend those before them first");
        Some(BadRow { line, code: "more_bad_rows", reason })
    }
}

/// Cuts and uploads. `rejected` is called for each bad row that is listed as it is met, `uploaded` with the rows of each chunk
/// that has reached S3. `corpus_bytes` is the size of what `rows` are read from.
pub async fn split(
    store: &Store,
    keys: &JobKeys,
    rows: Rows,
    corpus_bytes: u64,
    cut: Cut,
    rejected: impl FnMut(&BadRow) + Send + 'static,
    mut uploaded: impl FnMut(u32),
) -> Result<Split, SplitError> {
    let (pieces, mut received) = mpsc::channel(CUT_MAX);
    let cutter = tokio::task::spawn_blocking(move || cut_rows(rows, corpus_bytes, cut, rejected, &pieces));
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
    corpus_bytes: u64,
    cut: Cut,
    mut rejected: impl FnMut(&BadRow),
    pieces: &mpsc::Sender<Piece>,
) -> Result<Split, SplitError> {
    let mut split = Split::default();
    let mut writer = ChunkWriter::new()?;
    let mut refused = RejectedBlocks::default();
    let mut listing = Listing::new(corpus_bytes);
    for row in rows {
        let row = match row? {
            Ok(row) => ChunkRow { line: row.line, id: row.id, input: row.input },
            Err(bad) => {
                if listing.admits(&bad) {
                    rejected(&bad);
                    if !refused.push(&bad, pieces)? {
                        return Ok(split);
                    }
                }
                continue;
            }
        };
        let full = writer.rows() == cut.chunk_rows
            || writer.rows() > 0 && writer.size_bytes() + row.input.size_bytes() > cut.chunk_bytes as usize;
        if (full || !writer.has_room_for(&row))
            && !close(std::mem::replace(&mut writer, ChunkWriter::new()?), &mut split, pieces)?
        {
            return Ok(split);
        }
        writer.push(&row)?;
    }
    if writer.rows() > 0 {
        close(writer, &mut split, pieces)?;
    }
    if let Some(more) = listing.more() {
        rejected(&more);
        refused.push(&more, pieces)?;
    }
    refused.flush(pieces);
    split.rejected = listing.rows();
    Ok(split)
}

/// Hands a chunk to the uploads; false when nobody takes them any more.
fn close(writer: ChunkWriter, split: &mut Split, pieces: &mpsc::Sender<Piece>) -> Result<bool, SplitError> {
    if split.chunks.len() == CHUNKS_MAX {
        return Err(SplitError::TooManyChunks);
    }
    let (rows, text_bytes) = (writer.rows(), writer.size_bytes());
    let object = writer.finish()?;
    // At most `CHUNK_OBJECT_BYTES_MAX`.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        contract::{CHUNK_ROWS_MAX, ID_BYTES_MAX, RowInput, read_chunk},
        read::Row,
    };

    const CUT: Cut = Cut { chunk_rows: 1000, chunk_bytes: 256 << 10 };

    /// What is uploaded of `rows`: chunks, and blocks of bad rows.
    fn cut(
        rows: impl Iterator<Item = Result<Row, BadRow>> + Send + 'static,
        corpus_bytes: u64,
        cut: Cut,
    ) -> (Split, Vec<Vec<u8>>, Vec<u8>) {
        let (pieces, mut received) = mpsc::channel(CUT_MAX);
        let cutter = std::thread::spawn(move || cut_rows(Box::new(rows.map(Ok)), corpus_bytes, cut, |_| {}, &pieces));
        let (mut chunks, mut rejected) = (Vec::new(), Vec::new());
        while let Some(piece) = received.blocking_recv() {
            match piece {
                Piece::Chunk { object, .. } => chunks.push(object),
                Piece::Rejected { lines, .. } => rejected.extend(lines),
            }
        }
        (cutter.join().expect("no panic").expect("a split"), chunks, rejected)
    }

    fn bad(line: u64) -> BadRow {
        BadRow { line, code: "bad_json", reason: "the line is not JSON that can be used".to_owned() }
    }

    #[test]
    fn bad_rows_are_stored_at_no_many_times_their_size() {
        const BAD: u64 = 300_000;
        let (split, _, rejected) = cut((1..=BAD).map(|line| Err(bad(line))), 647, CUT);
        assert_eq!(split.rejected, BAD);
        assert!(rejected.len() as u64 <= REJECTED_FREE_BYTES + 647 + 1024, "{}", rejected.len());
        let lines: Vec<RowError> = rejected
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).expect("a row"))
            .collect();
        let listed = lines.len() as u64 - 1;
        let last = lines.last().expect("a line");
        assert_eq!((last.line, last.code.as_str()), (listed + 1, "more_bad_rows"));
        assert!(last.message.starts_with(&(BAD - listed).to_string()), "{}", last.message);
        // Of a large corpus, the first of them.
        let (split, _, rejected) = cut((1..=BAD).map(|line| Err(bad(line))), 1 << 30, CUT);
        let lines = rejected.iter().filter(|byte| **byte == b'\n').count() as u64;
        assert_eq!((split.rejected, lines), (BAD, REJECTED_LISTED_MAX + 1));
        // Of few, each.
        let (split, _, rejected) = cut((1..=10).map(|line| Err(bad(line))), 1, CUT);
        assert_eq!((split.rejected, rejected.iter().filter(|byte| **byte == b'\n').count()), (10, 10));
    }

    #[test]
    fn every_chunk_that_is_cut_can_be_read() {
        let widest = Cut { chunk_rows: CHUNK_ROWS_MAX, chunk_bytes: 4 << 20 };
        let rows = |text: &'static str, times: usize, ids: usize| {
            (1..=60_000)
                .map(move |line| Ok(Row { line, id: "i".repeat(ids), input: RowInput::Text(text.repeat(times)) }))
        };
        // Long ids beside short texts, and texts that JSON makes six times as long.
        for (cut, text_bytes) in [
            (cut(rows("x", 1, ID_BYTES_MAX), 1, widest), 60_000),
            (cut(rows("\u{1}", 100, 1), 1, widest), 60_000 * 100),
        ] {
            let (split, chunks, _) = cut;
            assert!(chunks.len() > 1 && split.rows == 60_000 && split.text_bytes == text_bytes);
            for (entry, object) in split.chunks.iter().zip(&chunks) {
                assert_eq!(read_chunk(object, entry.rows).expect("a chunk").len(), entry.rows as usize);
            }
        }
    }
}
