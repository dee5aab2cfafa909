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

/// Most bytes of a chunk's object: what zstd makes of [`CHUNK_TEXT_BYTES_MAX`] that it can't compress, which is a 256th more, and
/// frames.
pub const CHUNK_OBJECT_BYTES_MAX: usize = CHUNK_TEXT_BYTES_MAX + (CHUNK_TEXT_BYTES_MAX >> 8) + (64 << 10);

/// Most rows of a chunk.
pub const CHUNK_ROWS_MAX: u32 = 100_000;

/// Most memory of a zstd window, as a power of two: four times what the level that chunks are written with uses.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// Most bytes of a row's id: room for any URL or composite key in use, small beside its text. It travels into the results of every
/// row.
pub const ID_BYTES_MAX: usize = 512;

/// Most bytes of a text. The model takes 32,768 tokens: about 150 KiB of English, under 400 KiB of any script. What is
/// longer would fail there after having been stored and moved.
pub const TEXT_BYTES_MAX: usize = 1 << 20;

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
    /// Over [`CHUNK_TEXT_BYTES_MAX`], or an object over [`CHUNK_OBJECT_BYTES_MAX`].
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
    /// Most bytes that its lines may have come to.
    lines_bytes: usize,
}

impl ChunkWriter {
    /// An empty chunk.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { encoder: zstd::Encoder::new(Vec::new(), ZSTD_LEVEL)?, rows: 0, size_bytes: 0, lines_bytes: 0 })
    }

    /// Appends a row.
    pub fn push(&mut self, row: &ChunkRow) -> std::io::Result<()> {
        serde_json::to_writer(&mut self.encoder, row)?;
        self.encoder.write_all(b"\n")?;
        self.rows += 1;
        self.size_bytes += row.input.size_bytes();
        self.lines_bytes += line_bytes_max(row);
        Ok(())
    }

    /// Whether the chunk can still be read with this row in it. An empty one has room for any.
    pub fn has_room_for(&self, row: &ChunkRow) -> bool {
        self.rows == 0 || self.rows < CHUNK_ROWS_MAX && self.lines_bytes + line_bytes_max(row) <= CHUNK_TEXT_BYTES_MAX
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

/// Most bytes that a row can have in a chunk: JSON writes a byte of text as up to six, and a token id with its comma as eleven.
fn line_bytes_max(row: &ChunkRow) -> usize {
    let text = match &row.input {
        RowInput::Text(text) => escaped_bytes(text),
        RowInput::Tokens(tokens) => 11 * tokens.len(),
    };
    128 + escaped_bytes(&row.id) + text
}

/// Bytes of a string in JSON.
fn escaped_bytes(text: &str) -> usize {
    let more = text.bytes().map(|byte| match byte {
        b'"' | b'\\' => 1,
        0..0x20 => 5,
        _ => 0,
    });
    text.len() + more.sum::<usize>()
}

/// Reads a chunk's object, in bounded memory, and takes none that no producer cuts: whoever has keys to S3 can put anything there.
pub fn read_chunk(object: &[u8], rows: u32) -> Result<Vec<ChunkRow>, ChunkError> {
    if object.len() > CHUNK_OBJECT_BYTES_MAX {
        return Err(ChunkError::TooLong);
    }
    let mut decoder = zstd::Decoder::with_buffer(object).map_err(|_| ChunkError::Compression)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(|_| ChunkError::Compression)?;
    let mut text = Vec::new();
    decoder.take(CHUNK_TEXT_BYTES_MAX as u64 + 1).read_to_end(&mut text).map_err(|_| ChunkError::Compression)?;
    if text.len() > CHUNK_TEXT_BYTES_MAX {
        return Err(ChunkError::TooLong);
    }
    let lines = || text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    // Counted first: rows take more memory than their lines.
    let found = lines().count();
    if found != rows as usize {
        return Err(ChunkError::Rows { expected: rows, found });
    }
    let parse = |(index, line)| match serde_json::from_slice::<ChunkRow>(line) {
        Ok(row) if row.is_in_bounds() => Ok(row),
        _ => Err(ChunkError::Row(index + 1)),
    };
    lines().enumerate().map(parse).collect()
}

impl ChunkRow {
    /// Whether its parts are no longer than a producer takes them.
    fn is_in_bounds(&self) -> bool {
        self.id.len() <= ID_BYTES_MAX && self.input.size_bytes() <= TEXT_BYTES_MAX
    }
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
    fn what_no_producer_cuts_is_not_read() {
        let object = |line: String, times: usize| zstd::encode_all(line.repeat(times).as_bytes(), 3).expect("memory");
        let text = |bytes| format!("{{\"line\":1,\"id\":\"a\",\"text\":\"{}\"}}\n", "x".repeat(bytes));
        let id = |bytes| format!("{{\"line\":1,\"id\":\"{}\",\"text\":\"x\"}}\n", "i".repeat(bytes));
        for (longest, longer) in
            [(text(TEXT_BYTES_MAX), text(TEXT_BYTES_MAX + 1)), (id(ID_BYTES_MAX), id(ID_BYTES_MAX + 1))]
        {
            assert!(read_chunk(&object(longest, 1), 1).is_ok());
            assert_eq!(read_chunk(&object(longer, 1), 1), Err(ChunkError::Row(1)));
        }
        // Rows without end are counted before one is made.
        let rows = CHUNK_TEXT_BYTES_MAX / 2;
        assert_eq!(read_chunk(&object("x\n".to_owned(), rows), 1), Err(ChunkError::Rows { expected: 1, found: rows }));
        let deep = object("[".repeat(1 << 20), 1);
        assert_eq!(read_chunk(&deep, 1), Err(ChunkError::Row(1)));
        assert_eq!(read_chunk(&vec![0; CHUNK_OBJECT_BYTES_MAX + 1], 1), Err(ChunkError::TooLong));
        // A window of 128 MiB, which would be reserved.
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).expect("an encoder");
        encoder.window_log(27).expect("a window");
        encoder.write_all(&vec![b'x'; 9 << 20]).expect("memory");
        assert_eq!(read_chunk(&encoder.finish().expect("memory"), 1), Err(ChunkError::Compression));
    }

    #[test]
    fn a_chunk_has_room_for_what_can_be_read() {
        // What JSON makes six times as long, and what is short beside its id.
        let escaped = row(1, &"\u{1}".repeat(TEXT_BYTES_MAX));
        let short = ChunkRow { id: "i".repeat(ID_BYTES_MAX), ..row(1, "x") };
        for row in [escaped, short] {
            let mut writer = ChunkWriter::new().expect("an encoder");
            while writer.has_room_for(&row) {
                writer.push(&row).expect("a write to memory");
            }
            let rows = writer.rows();
            assert!(rows > 1);
            let object = writer.finish().expect("a write to memory");
            assert_eq!(read_chunk(&object, rows).expect("a chunk").len(), rows as usize);
        }
    }

    #[test]
    fn a_bomb_stops_at_the_bound() {
        let zeros = vec![b'0'; CHUNK_TEXT_BYTES_MAX + 2];
        let bomb = zstd::encode_all(&zeros[..], 3).expect("a write to memory");
        assert!(bomb.len() < 10_000, "the object is small");
        assert_eq!(read_chunk(&bomb, 1), Err(ChunkError::TooLong));
    }
}
