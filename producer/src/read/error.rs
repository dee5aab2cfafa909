//! What can be wrong with one row, and with the input as a whole.

use std::{io, path::PathBuf};

/// A row that can't be used. The others go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRow {
    /// Where it stands in the input; counted as [`super::Row::line`] is.
    pub line: u64,
    /// What is wrong, in stable snake_case.
    pub code: &'static str,
    /// What is wrong and what to do, as a sentence. Never holds any of the text or the id.
    pub reason: String,
}

impl BadRow {
    pub(super) fn new(line: u64, code: &'static str, reason: impl Into<String>) -> Self {
        Self { line, code, reason: reason.into() }
    }
}

/// Why the input, or the rest of it, can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Not there, or not readable.
    #[error("{} can't be read: {error}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The disk failed in mid-file.
    #[error("reading failed after line {line}: {error}")]
    Io {
        /// The last line that was read, from 1.
        line: u64,
        /// Why.
        error: io::Error,
    },
    /// Damaged or cut off compression.
    #[error(
        "the {compression} data is damaged or cut off near its byte {position}, after line {line} ({error}): \
         is the file cut off?"
    )]
    Corrupt {
        /// gzip or zstd.
        compression: &'static str,
        /// Bytes of compressed input taken so far.
        position: u64,
        /// The last whole line before it, from 1.
        line: u64,
        /// What the decoder says.
        error: io::Error,
    },
    /// Small where it comes in and large where it is read.
    #[error("{0}")]
    TooMuch(String),
    /// Nobody waits for it any more.
    #[error("reading was given up: nobody waits for it any more")]
    Stopped,
    /// Begins with the byte order mark of UTF-16.
    #[error("the text is UTF-16: save it as UTF-8")]
    Utf16,
    /// A column that was asked for.
    #[error("there is no column {wanted:?}; there are: {found} (name the columns with --id-field and --text-field)")]
    NoColumn {
        /// Its name.
        wanted: String,
        /// The names that there are.
        found: String,
    },
    /// Two columns of one name.
    #[error("there are two columns {0:?}: rename one")]
    DuplicateColumn(String),
    /// A column that can't hold what it should.
    #[error("column {column:?} is {found}; it must be {wanted}")]
    ColumnType {
        /// Its name.
        column: String,
        /// Its type.
        found: String,
        /// The types that can be read.
        wanted: &'static str,
    },
    /// A CSV header over its bounds, or without end.
    #[error("the header can't be read: {0}")]
    Header(&'static str),
    /// Not Parquet, or of a kind that is not supported.
    #[error("this is no Parquet file that can be read: {0}")]
    NotParquet(String),
    /// Damaged in mid-file.
    #[error("the Parquet file is damaged after row {row}: {reason}")]
    Parquet {
        /// The last row that was read, from 1.
        row: u64,
        /// What the decoder says.
        reason: String,
    },
}

/// Names of columns for a message, cut so that a file without a header does not spill its first row into a log.
pub(super) fn names<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    const NAMES_MAX: usize = 20;
    const CHARS_MAX: usize = 40;
    let count = names.len();
    if count == 0 {
        return "none".to_owned();
    }
    let mut shown: Vec<String> =
        names.take(NAMES_MAX).map(|name| name.chars().take(CHARS_MAX).collect::<String>()).collect();
    if count > NAMES_MAX {
        shown.push(format!("{} more", count - NAMES_MAX));
    }
    shown.join(", ")
}
