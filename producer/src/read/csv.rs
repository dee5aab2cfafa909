//! CSV and TSV, with a header that names the columns.

use std::io::{self, Read};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use csv::{ByteRecord, ErrorKind, ReaderBuilder};

use super::{BadRow, ReadError, ReadOptions, Row, Rows, check_row, options::LINE_BYTES_MAX};

/// Rows by the header's names. A tab in the header's line makes it TSV.
pub(super) fn rows(input: Box<dyn Read + Send>, options: &ReadOptions) -> Result<Rows, ReadError> {
    let broken = |error| ReadError::Broken { line: 0, error };
    let (begin, input) = peek(input).map_err(broken)?;
    let header = begin.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let delimiter = if header.contains(&b'\t') && !header.contains(&b',') { b'\t' } else { b',' };
    // The parser gathers a record whole, however long a runaway quote makes it: the meter stops it.
    let meter = Meter { input, since_record: Arc::default() };
    let since_record = meter.since_record.clone();
    let mut reader = ReaderBuilder::new().delimiter(delimiter).flexible(true).from_reader(meter);
    let headers = reader.byte_headers().map_err(|error| ReadError::Broken { line: 1, error: into_io(error) })?.clone();
    let names: Vec<String> =
        headers.iter().map(|name| String::from_utf8_lossy(name).trim_start_matches('\u{feff}').to_owned()).collect();
    let place = |wanted: &str| names.iter().position(|name| name == wanted);
    let Some(text_column) = place(&options.text_field) else {
        return Err(ReadError::NoColumn { wanted: options.text_field.clone(), found: names.join(", ") });
    };
    let id_column = place(&options.id_field);
    let (options, columns) = (options.clone(), names.len());
    let mut record = ByteRecord::new();
    let mut ended = false;
    Ok(Box::new(std::iter::from_fn(move || {
        if ended {
            return None;
        }
        since_record.store(0, Ordering::Relaxed);
        let begins = reader.position().line();
        match reader.read_byte_record(&mut record) {
            Ok(false) => None,
            Ok(true) => {
                let line = record.position().map_or(0, csv::Position::line);
                Some(Ok(parse(line, &record, columns, id_column, text_column, &options)))
            }
            Err(error) => {
                ended = true;
                let line = begins;
                Some(match into_io(error) {
                    // Where the record ends is not known, so nothing after it can be trusted.
                    error if error.kind() == io::ErrorKind::FileTooLarge => {
                        let reason = format!(
                            "a record that begins here has more than {LINE_BYTES_MAX} bytes: is a quote not closed? What follows was not read"
                        );
                        Ok(Err(BadRow::new(line, "record_too_long", reason)))
                    }
                    error => Err(ReadError::Broken { line, error }),
                })
            }
        }
    })))
}

fn parse(
    line: u64,
    record: &ByteRecord,
    columns: usize,
    id_column: Option<usize>,
    text_column: usize,
    options: &ReadOptions,
) -> Result<Row, BadRow> {
    if record.len() != columns {
        let reason =
            format!("the record has {} fields, the header {columns}: is a comma or a quote missing?", record.len());
        return Err(BadRow::new(line, "wrong_fields", reason));
    }
    let field = |column: usize| {
        let bytes = record.get(column).unwrap_or_default();
        String::from_utf8(bytes.to_vec())
            .map_err(|_| BadRow::new(line, "not_utf8", "the record is not UTF-8: convert the file"))
    };
    let id = id_column.map(field).transpose()?;
    check_row(line, id, field(text_column)?, options)
}

fn into_io(error: csv::Error) -> io::Error {
    match error.into_kind() {
        ErrorKind::Io(error) => error,
        other => io::Error::other(format!("{other:?}")),
    }
}

/// The first bytes, and a reader that gives them again.
fn peek(mut input: Box<dyn Read + Send>) -> io::Result<(Vec<u8>, impl Read + Send)> {
    let mut begin = Vec::new();
    input.by_ref().take(64 << 10).read_to_end(&mut begin)?;
    Ok((begin.clone(), io::Cursor::new(begin).chain(input)))
}

/// Fails when more than a line's bound was read since the last record, and a buffer more.
struct Meter<R> {
    input: R,
    since_record: Arc<AtomicU64>,
}

impl<R: Read> Read for Meter<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.since_record.load(Ordering::Relaxed) > LINE_BYTES_MAX as u64 {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        let bytes = self.input.read(buffer)?;
        self.since_record.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(bytes)
    }
}
