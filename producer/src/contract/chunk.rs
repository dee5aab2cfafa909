//! A chunk's object: JSON lines, zstd-compressed.

use std::io::{Read, Write};

use serde::{Deserialize, Serialize};

/// Most bytes of a chunk's JSON lines. A reader stops there, so that a small object that decompresses to
/// gigabytes costs this much memory and no more. It is far above what a producer cuts by default (256 KiB),
/// and holds a single text of the largest size that a producer accepts, escaped.
pub const CHUNK_TEXT_BYTES_MAX: usize = 16 << 20;

/// zstd's default level: 3 to 5 times smaller on text at hundreds of MB/s, far faster than any upload.
const ZSTD_LEVEL: i32 = 3;

/// One text of a chunk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkRow {
    /// Where the text stood in the input, counted from 1.
    pub line: u64,
    /// The tenant's own id for the text; need not be unique.
    pub id: String,
    /// The text.
    pub text: String,
}

/// Why a chunk's object can't be read, though its digest is right: its producer is at fault, not the transport.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// Not zstd, or cut off.
    #[error("the chunk can't be decompressed")]
    Compression,
    /// Over [`CHUNK_TEXT_BYTES_MAX`].
    #[error("the chunk decompresses to more than {CHUNK_TEXT_BYTES_MAX} bytes")]
    TooLong,
    /// A line that is not a row.
    #[error("line {0} of the chunk is not a row")]
    Row(usize),
    /// Another number of rows than the manifest says.
    #[error("the chunk has {found} rows, the manifest says {expected}")]
    Rows {
        /// In the manifest.
        expected: u32,
        /// In the chunk.
        found: usize,
    },
}

/// Gathers rows into one chunk's object.
pub struct ChunkWriter {
    encoder: zstd::Encoder<'static, Vec<u8>>,
    rows: u32,
    text_bytes: usize,
}

impl ChunkWriter {
    /// An empty chunk.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { encoder: zstd::Encoder::new(Vec::new(), ZSTD_LEVEL)?, rows: 0, text_bytes: 0 })
    }

    /// Appends a row.
    pub fn push(&mut self, row: &ChunkRow) -> std::io::Result<()> {
        serde_json::to_writer(&mut self.encoder, row)?;
        self.encoder.write_all(b"\n")?;
        self.rows += 1;
        self.text_bytes += row.text.len();
        Ok(())
    }

    /// Rows so far.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// Bytes of text so far, before compression.
    pub fn text_bytes(&self) -> usize {
        self.text_bytes
    }

    /// The object's bytes.
    pub fn finish(self) -> std::io::Result<Vec<u8>> {
        self.encoder.finish()
    }
}

/// Reads a chunk's object, in bounded memory.
pub fn read_chunk(object: &[u8], rows: u32) -> Result<Vec<ChunkRow>, ChunkError> {
    let decoder = zstd::Decoder::with_buffer(object).map_err(|_| ChunkError::Compression)?;
    let mut text = Vec::new();
    decoder.take(CHUNK_TEXT_BYTES_MAX as u64 + 1).read_to_end(&mut text).map_err(|_| ChunkError::Compression)?;
    if text.len() > CHUNK_TEXT_BYTES_MAX {
        return Err(ChunkError::TooLong);
    }
    let lines = text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    let parsed: Vec<ChunkRow> = lines
        .enumerate()
        .map(|(index, line)| serde_json::from_slice(line).map_err(|_| ChunkError::Row(index + 1)))
        .collect::<Result<_, _>>()?;
    if parsed.len() != rows as usize {
        return Err(ChunkError::Rows { expected: rows, found: parsed.len() });
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(line: u64, text: &str) -> ChunkRow {
        ChunkRow { line, id: format!("id-{line}"), text: text.to_owned() }
    }

    #[test]
    fn rows_come_back_as_they_went_in() {
        let rows = [row(1, "one"), row(3, "a\nline break and \u{2028} and \0"), row(9, "ünïcödé 你好")];
        let mut writer = ChunkWriter::new().expect("an encoder");
        for row in &rows {
            writer.push(row).expect("a write to memory");
        }
        let object = writer.finish().expect("a write to memory");
        assert_eq!(read_chunk(&object, 3), Ok(rows.to_vec()));
        assert_eq!(read_chunk(&object, 2), Err(ChunkError::Rows { expected: 2, found: 3 }));
        assert_eq!(read_chunk(&object[..object.len() - 3], 3), Err(ChunkError::Compression));
    }

    #[test]
    fn a_bomb_stops_at_the_bound() {
        let zeros = vec![b'0'; CHUNK_TEXT_BYTES_MAX + 2];
        let bomb = zstd::encode_all(&zeros[..], 3).expect("a write to memory");
        assert!(bomb.len() < 10_000, "the object is small");
        assert_eq!(read_chunk(&bomb, 1), Err(ChunkError::TooLong));
    }
}
