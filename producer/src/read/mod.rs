//! Reading a corpus: rows from JSON lines, CSV, Parquet or text lines, one at a time and in bounded memory.
//!
//! A bad row is an item, not an end: it is named by its place and reason, and the rows beside it go on.

mod batch_line;
mod csv;
mod decompress;
mod jsonl;
mod lines;
mod options;
mod parquet;
mod splitter;

use std::{fs::File, io::BufReader, path::Path};

pub use self::options::{InputFormat, ReadOptions};

/// Bytes of the file read at once.
const READ_BYTES: usize = 256 << 10;

/// A text to embed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its place, counted from 1: the line (JSON lines, text lines), the line on which the record begins (CSV), or the
    /// row (Parquet).
    pub line: u64,
    /// The tenant's id for it; where it has none, its place.
    pub id: String,
    /// The text.
    pub text: String,
}

/// A row that can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRow {
    /// Its place, as [`Row::line`].
    pub line: u64,
    /// A stable word that a program can branch on.
    pub code: &'static str,
    /// What is wrong, as a sentence; never the text itself.
    pub reason: String,
}

impl BadRow {
    pub(crate) fn new(line: u64, code: &'static str, reason: impl Into<String>) -> Self {
        Self { line, code, reason: reason.into() }
    }
}

/// Why the input as a whole can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file can't be opened.
    #[error("{path} can't be opened: {error}")]
    Open {
        /// The file.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// Reading stopped in mid-file: a disk fault, or compressed data that is cut off or damaged.
    #[error("reading stopped after line {line}: {error} (is the file cut off?)")]
    Broken {
        /// The last line read.
        line: u64,
        /// Why.
        error: std::io::Error,
    },
    /// A column is missing.
    #[error("there is no column {wanted:?}; there are: {found} (name the columns with --id-field and --text-field)")]
    NoColumn {
        /// The column.
        wanted: String,
        /// Those there are.
        found: String,
    },
    /// A column has a type that is no text or id.
    #[error("column {column:?} is of type {found}; it must be {wanted}")]
    ColumnType {
        /// The column.
        column: String,
        /// Its type.
        found: String,
        /// What it may be.
        wanted: &'static str,
    },
    /// The file is not Parquet, or damaged.
    #[error("the Parquet file can't be read: {0}")]
    Parquet(String),
}

/// The rows of an input, good and bad. After an error there are no more.
pub type Rows = Box<dyn Iterator<Item = Result<Result<Row, BadRow>, ReadError>> + Send>;

/// Opens a local file. Blocking, as is the iterator that it gives.
pub fn open(path: &Path, format: InputFormat, options: &ReadOptions) -> Result<Rows, ReadError> {
    let file = File::open(path).map_err(|error| ReadError::Open { path: path.display().to_string(), error })?;
    if format == InputFormat::Parquet {
        return parquet::rows(file, options);
    }
    let plain = decompress::reader(BufReader::with_capacity(READ_BYTES, file))
        .map_err(|error| ReadError::Open { path: path.display().to_string(), error })?;
    Ok(match format {
        InputFormat::Jsonl => jsonl::rows(plain, options),
        InputFormat::Lines => lines::rows(plain, options),
        InputFormat::Csv | InputFormat::Parquet => csv::rows(plain, options)?,
    })
}

/// The checks that every text passes, whatever it was read from.
fn check_row(line: u64, id: Option<String>, text: String, options: &ReadOptions) -> Result<Row, BadRow> {
    let id = id.unwrap_or_else(|| line.to_string());
    if id.is_empty() || id.len() > options::ID_BYTES_MAX {
        let reason = format!("the id has {} bytes: give 1 to {}, or leave it out", id.len(), options::ID_BYTES_MAX);
        return Err(BadRow::new(line, "bad_id", reason));
    }
    if id.contains('\0') {
        return Err(BadRow::new(line, "bad_id", "the id holds a NUL character: remove it"));
    }
    if text.len() > options.text_bytes_max {
        let reason =
            format!("the text has {} bytes, at most {} are taken: split it", text.len(), options.text_bytes_max);
        return Err(BadRow::new(line, "text_too_long", reason));
    }
    if text.chars().all(char::is_whitespace) {
        return Err(BadRow::new(line, "empty_text", "the text is empty: remove the row"));
    }
    Ok(Row { line, id, text })
}
#[cfg(test)]
mod tests;
