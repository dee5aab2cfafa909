//! A chunk's object: JSON lines, zstd-compressed.

use std::{
    fmt,
    io::{Read, Write},
};

use serde::{Deserialize, Serialize, Serializer, ser::SerializeStruct};

/// Most bytes of a chunk's JSON lines. A reader stops there, so that a small object that decompresses to
/// gigabytes costs this much memory and no more. It is far above what a producer cuts by default (256 KiB),
/// and holds a single text of the largest size that a producer accepts, escaped.
pub const CHUNK_TEXT_BYTES_MAX: usize = 16 << 20;

/// zstd's default level: 3 to 5 times smaller on text at hundreds of MB/s, far faster than any upload.
const ZSTD_LEVEL: i32 = 3;

/// What is to be embedded.
#[derive(Clone, PartialEq, Eq)]
pub enum RowInput {
    /// A text.
    Text(String),
    /// A text as ids of the model's own tokens. Whether the model has them is the worker's to check.
    Tokens(Vec<u32>),
}

impl RowInput {
    /// Bytes of the text, or 4 a token id: as many bytes as English has in a token, so that a chunk of either kind is
    /// about as much work.
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Tokens(tokens) => 4 * tokens.len(),
        }
    }
}

/// Without the text, which must not reach a log.
impl fmt::Debug for RowInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{} bytes", text.len()),
            Self::Tokens(tokens) => write!(f, "{} token ids", tokens.len()),
        }
    }
}

/// One row of a chunk: `{"line", "id", "text"}` or `{"line", "id", "tokens"}`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "WireRow")]
pub struct ChunkRow {
    /// Where the text stood in the input, counted from 1.
    pub line: u64,
    /// The tenant's own id for the text; need not be unique.
    pub id: String,
    /// The text, or its tokens.
    pub input: RowInput,
}

/// A row as it is read.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireRow {
    line: u64,
    id: String,
    text: Option<String>,
    tokens: Option<Vec<u32>>,
}

impl TryFrom<WireRow> for ChunkRow {
    type Error = &'static str;

    fn try_from(row: WireRow) -> Result<Self, Self::Error> {
        let WireRow { line, id, text, tokens } = row;
        let input = match (text, tokens) {
            (Some(text), None) => RowInput::Text(text),
            (None, Some(tokens)) => RowInput::Tokens(tokens),
            _ => return Err("a row has either a text or tokens"),
        };
        Ok(Self { line, id, input })
    }
}

impl Serialize for ChunkRow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut row = serializer.serialize_struct("ChunkRow", 3)?;
        row.serialize_field("line", &self.line)?;
        row.serialize_field("id", &self.id)?;
        match &self.input {
            RowInput::Text(text) => row.serialize_field("text", text)?,
            RowInput::Tokens(tokens) => row.serialize_field("tokens", tokens)?,
        }
        row.end()
    }
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
    size_bytes: usize,
}

impl ChunkWriter {
    /// An empty chunk.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { encoder: zstd::Encoder::new(Vec::new(), ZSTD_LEVEL)?, rows: 0, size_bytes: 0 })
    }

    /// Appends a row.
    pub fn push(&mut self, row: &ChunkRow) -> std::io::Result<()> {
        serde_json::to_writer(&mut self.encoder, row)?;
        self.encoder.write_all(b"\n")?;
        self.rows += 1;
        self.size_bytes += row.input.size_bytes();
        Ok(())
    }

    /// Rows so far.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// [`RowInput::size_bytes`] of all rows so far.
    pub fn size_bytes(&self) -> usize {
        self.size_bytes
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
        ChunkRow { line, id: format!("id-{line}"), input: RowInput::Text(text.to_owned()) }
    }

    #[test]
    fn rows_come_back_as_they_went_in() {
        let tokens = ChunkRow { line: 10, id: "ids".to_owned(), input: RowInput::Tokens(vec![0, 151_643, u32::MAX]) };
        let rows = [row(1, "one"), row(3, "a\nline break and \u{2028} and \0"), row(9, "ünïcödé 你好"), tokens];
        let mut writer = ChunkWriter::new().expect("an encoder");
        for row in &rows {
            writer.push(row).expect("a write to memory");
        }
        let object = writer.finish().expect("a write to memory");
        assert_eq!(read_chunk(&object, 4), Ok(rows.to_vec()));
        assert_eq!(read_chunk(&object, 2), Err(ChunkError::Rows { expected: 2, found: 4 }));
        assert_eq!(read_chunk(&object[..object.len() - 3], 4), Err(ChunkError::Compression));
    }

    #[test]
    fn a_row_has_one_input() {
        for row in [
            r#"{"line":1,"id":"a"}"#,
            r#"{"line":1,"id":"a","text":"x","tokens":[1]}"#,
            r#"{"line":1,"id":"a","tokens":[-1]}"#,
            r#"{"line":1,"id":"a","text":"x","more":1}"#,
        ] {
            let object = zstd::encode_all(row.as_bytes(), 3).expect("a write to memory");
            assert_eq!(read_chunk(&object, 1), Err(ChunkError::Row(1)), "{row}");
        }
    }

    #[test]
    fn nothing_of_a_row_reaches_a_log() {
        let shown = format!("{:?} {:?}", row(1, "secret"), RowInput::Tokens(vec![4711]));
        assert!(!shown.contains("secret") && !shown.contains("4711"), "{shown}");
    }

    #[test]
    fn a_bomb_stops_at_the_bound() {
        let zeros = vec![b'0'; CHUNK_TEXT_BYTES_MAX + 2];
        let bomb = zstd::encode_all(&zeros[..], 3).expect("a write to memory");
        assert!(bomb.len() < 10_000, "the object is small");
        assert_eq!(read_chunk(&bomb, 1), Err(ChunkError::TooLong));
    }
}
