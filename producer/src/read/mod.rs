//! Taking rows from a corpus: JSON lines, Parquet, CSV or plain lines, in flat memory.
//!
//! One bad row never stops a corpus: it comes out as a [`BadRow`] in its place, and reading goes on. Only what makes
//! the rest unreadable (the disk, damaged compression, a missing column) is a [`ReadError`], and the last item.

mod budget;
mod check;
mod csv;
mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod json;
mod json_value;
mod lines;
mod options;
pub(crate) mod parquet;
#[cfg(test)]
mod tests;
mod text;

use std::{fmt, io::Read, path::Path};

use self::budget::{Allowance, Budget};
use crate::contract::RowInput;

pub use self::{
    budget::{Stop, StopOnDrop, stoppable},
    error::{BadRow, ReadError},
    options::{InputFormat, ReadOptions},
};

/// A text to embed.
#[derive(Clone, PartialEq, Eq)]
pub struct Row {
    /// Where it stands in the input, from 1: the line (JSON lines, plain lines), the line on which the record starts
    /// (CSV), or the row (Parquet).
    pub line: u64,
    /// The tenant's own id, 1 to 512 bytes; need not be unique. The line's number where the input has none.
    pub id: String,
    /// The text, never empty or only white space; or its token ids, at least one.
    pub input: RowInput,
}

/// Without the text, which must not reach a log.
impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, id, input } = self;
        write!(f, "Row {{ line: {line}, id: {id:?}, input: {input:?} }}")
    }
}

/// The rows of a corpus in input order, good and bad. After a [`ReadError`] nothing follows.
pub type Rows = Box<dyn Iterator<Item = Result<Result<Row, BadRow>, ReadError>> + Send>;

/// Opens a corpus. Blocks, as does each step of the iterator.
///
/// gzip and zstd are seen through by their first bytes, whatever the file's name, except for Parquet, which
/// compresses inside. Rows end soon after `stop` was told, in the middle of a long decode too.
pub fn open(path: &Path, format: InputFormat, options: &ReadOptions, stop: Stop) -> Result<Rows, ReadError> {
    open_within(path, format, options, Budget::new(Allowance::USUAL, stop))
}

fn open_within(path: &Path, format: InputFormat, options: &ReadOptions, budget: Budget) -> Result<Rows, ReadError> {
    let options = options.clone();
    Ok(match format {
        InputFormat::Parquet => Box::new(parquet::ParquetRows::open(path, options, budget)?),
        InputFormat::Jsonl => Box::new(lines::LineRows::new(text::open(path, budget)?, options, json::row)),
        InputFormat::Lines => Box::new(lines::LineRows::new(text::open(path, budget)?, options, lines::row)),
        InputFormat::Csv => {
            let tab = matches!(path.to_str().and_then(options::extension).as_deref(), Some("tsv" | "tab"));
            Box::new(csv::CsvRows::new(text::open(path, budget)?, options, tab.then_some(b'\t'))?)
        }
    })
}

/// The budget of an input that comes as it is read. Who reads it waits for each row.
fn streaming() -> Budget {
    Budget::new(Allowance::USUAL, Stop::default())
}

/// JSON lines from anything that can be read, a row as soon as its line is there. Compression is seen through.
pub fn stream_jsonl(input: impl Read + Send + 'static, options: &ReadOptions) -> Result<Rows, ReadError> {
    Ok(Box::new(lines::LineRows::new(text::from_reader(input, streaming())?, options.clone(), json::row)))
}

/// [`stream_jsonl`] for plain lines, each a text.
pub fn stream_lines(input: impl Read + Send + 'static, options: &ReadOptions) -> Result<Rows, ReadError> {
    Ok(Box::new(lines::LineRows::new(text::from_reader(input, streaming())?, options.clone(), lines::row)))
}
