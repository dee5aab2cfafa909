//! CSV and TSV with a header.
//!
//! The state machine of `csv-core` is driven here directly: the `csv` crate's reader grows a record without bound, so
//! one missing quote would take a whole file into memory.

use std::{
    borrow::Cow,
    io::{self, BufRead, Chain, Cursor, Read},
    ops::Range,
};

use csv_core::ReadRecordResult;

use super::{
    BadRow, ReadError, ReadOptions, Row,
    budget::Budget,
    check::{self, too_long, utf8},
    error::names,
    options::ID_FIELD,
    text::{Origin, Text},
};

/// Most columns: far above any corpus, and 32 KiB of field ends.
const COLUMNS_MAX: usize = 4096;
/// Room for a record at first; doubled up to the bound as records need it.
const RECORD_BYTES: usize = 16 << 10;
/// Most bytes looked at to tell tabs from commas.
const SNIFF_BYTES_MAX: u64 = 64 << 10;

/// The rows of a CSV file.
pub(super) struct CsvRows {
    records: Records<Chain<Cursor<Vec<u8>>, Text>>,
    origin: Origin,
    options: ReadOptions,
    columns: Columns,
    ended: bool,
}

/// The columns that are read.
struct Columns {
    count: usize,
    text: usize,
    /// `None`: rows are numbered.
    id: Option<usize>,
}

impl CsvRows {
    /// Reads the header. `delimiter` is guessed where it is not known: a first line with tabs and no comma is TSV's.
    pub(super) fn new(
        (mut text, origin): (Text, Origin),
        options: ReadOptions,
        delimiter: Option<u8>,
    ) -> Result<Self, ReadError> {
        let failed = |error| origin.error(0, error);
        let mut head = Vec::new();
        text.by_ref().take(SNIFF_BYTES_MAX).read_until(b'\n', &mut head).map_err(failed)?;
        let guessed = if head.contains(&b'\t') && !head.contains(&b',') { b'\t' } else { b',' };
        let input = Cursor::new(head).chain(text);
        let mut records =
            Records::new(input, origin.budget.clone(), delimiter.unwrap_or(guessed), options.record_bytes_max());
        let columns = match records.next_record().map_err(failed)? {
            None | Some((_, Record::Whole)) => Columns::find(&records, &options)?,
            Some((_, Record::TooLong)) => return Err(ReadError::Header("it is too long; is a quote missing?")),
            Some((_, Record::Unclosed)) => return Err(ReadError::Header("a quote is not closed")),
        };
        Ok(Self { records, origin, options, columns, ended: false })
    }

    fn row(&self, line: u64) -> Result<Row, BadRow> {
        let (found, expected) = (self.records.fields(), self.columns.count);
        if found != expected {
            let reason = format!("the record has {found} fields, the header has {expected}: is a quote missing?");
            return Err(BadRow::new(line, "wrong_fields", reason));
        }
        let id = match self.columns.id {
            Some(column) => Cow::Borrowed(utf8(line, "id", self.records.field(column))?),
            None => Cow::Owned(line.to_string()),
        };
        let text = utf8(line, "text", self.records.field(self.columns.text))?;
        check::row(line, id, Cow::Borrowed(text), &self.options)
    }
}

impl Iterator for CsvRows {
    type Item = Result<Result<Row, BadRow>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        if let Err(spent) = self.origin.budget.rows(1) {
            self.ended = true;
            return Some(Err(spent.into()));
        }
        match self.records.next_record() {
            Ok(Some((line, Record::Whole))) => Some(Ok(self.row(line))),
            Ok(Some((line, Record::TooLong))) => {
                Some(Ok(Err(too_long(line, "record_too_long", "record", self.options.record_bytes_max()))))
            }
            Ok(Some((line, Record::Unclosed))) => {
                let reason = "the record opens a quote that is never closed: close it; rows after it are lost in it";
                Some(Ok(Err(BadRow::new(line, "unclosed_quote", reason))))
            }
            Ok(None) => {
                self.ended = true;
                None
            }
            Err(error) => {
                self.ended = true;
                Some(Err(self.origin.error(self.records.line() - 1, error)))
            }
        }
    }
}

impl Columns {
    fn find<R: BufRead>(header: &Records<R>, options: &ReadOptions) -> Result<Self, ReadError> {
        let found: Vec<Cow<'_, str>> =
            (0..header.fields()).map(|column| String::from_utf8_lossy(header.field(column).trim_ascii())).collect();
        let place = |name: &str| {
            let mut places = (0..found.len()).filter(|&column| found[column] == name);
            match (places.next(), places.next()) {
                (Some(column), None) => Ok(column),
                (Some(_), Some(_)) => Err(ReadError::DuplicateColumn(name.to_owned())),
                (None, _) => {
                    Err(ReadError::NoColumn { wanted: name.to_owned(), found: names(found.iter().map(|name| &**name)) })
                }
            }
        };
        let text = place(&options.text_field)?;
        let id = match place(&options.id_field) {
            Err(ReadError::NoColumn { .. }) if options.id_field == ID_FIELD => None,
            found => Some(found?),
        };
        Ok(Self { count: found.len(), text, id })
    }
}

/// What came of one record.
#[derive(Debug, PartialEq, Eq)]
enum Record {
    /// Its fields can be had until the next one is read.
    Whole,
    /// Over the bound of bytes or columns; it was skipped.
    TooLong,
    /// The input ended within quotes.
    Unclosed,
}

/// Cuts bytes into records, holding one of bounded size.
struct Records<R> {
    input: R,
    budget: Budget,
    parser: csv_core::Reader,
    bytes_max: usize,
    bytes: Vec<u8>,
    ends: Vec<usize>,
    fields: usize,
    /// The record ended with a `\r`; the parser counts lines by their `\n` alone.
    after_return: bool,
    ended: bool,
}

impl<R: BufRead> Records<R> {
    fn new(input: R, budget: Budget, delimiter: u8, bytes_max: usize) -> Self {
        let parser = csv_core::ReaderBuilder::new().delimiter(delimiter).build();
        let bytes = vec![0; RECORD_BYTES.min(bytes_max)];
        Self {
            input,
            budget,
            parser,
            bytes_max,
            bytes,
            ends: vec![0; 16],
            fields: 0,
            after_return: false,
            ended: false,
        }
    }

    /// The line that comes next, from 1.
    fn line(&self) -> u64 {
        self.parser.line()
    }

    fn fields(&self) -> usize {
        self.fields
    }

    fn field(&self, column: usize) -> &[u8] {
        let start = column.checked_sub(1).map_or(0, |before| self.ends[before]);
        let range: Range<usize> = start..self.ends[column];
        &self.bytes[range]
    }

    /// The next record and the line on which it starts.
    fn next_record(&mut self) -> io::Result<Option<(u64, Record)>> {
        if self.ended || !self.skip_line_breaks()? {
            self.ended = true;
            return Ok(None);
        }
        let line = self.line();
        let (mut filled, mut fields, mut too_long) = (0, 0, false);
        loop {
            let input = self.input.fill_buf()?;
            // The parser takes the input's end for the record's, even within quotes. A line break tells them apart.
            self.ended = input.is_empty();
            let input = if self.ended { b"\n" } else { input };
            let (result, taken, written, found) =
                self.parser.read_record(input, &mut self.bytes[filled..], &mut self.ends[fields..]);
            self.after_return = input[..taken].last() == Some(&b'\r');
            if !self.ended {
                self.input.consume(taken);
            }
            filled += written;
            fields += found;
            match result {
                ReadRecordResult::Record | ReadRecordResult::End => {
                    self.fields = fields;
                    self.parser.set_line(self.parser.line() + u64::from(self.after_return));
                    return Ok(Some((line, if too_long { Record::TooLong } else { Record::Whole })));
                }
                _ if self.ended && taken > 0 => return Ok(Some((line, Record::Unclosed))),
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull if filled < self.bytes_max && !too_long => {
                    self.bytes.resize((filled * 2).min(self.bytes_max), 0);
                }
                ReadRecordResult::OutputEndsFull if fields < COLUMNS_MAX && !too_long => {
                    self.ends.resize((fields * 2).min(COLUMNS_MAX), 0);
                }
                // The rest of the record is parsed for its end only, over and over into the same room.
                ReadRecordResult::OutputFull | ReadRecordResult::OutputEndsFull => {
                    (filled, fields, too_long) = (0, 0, true);
                }
            }
        }
    }

    /// Passes blank lines and the rest of a `\r\n`, so that a record's line is the one on which it starts. `false`
    /// at the end.
    fn skip_line_breaks(&mut self) -> io::Result<bool> {
        loop {
            let input = self.input.fill_buf()?;
            let bytes = input.len();
            let breaks = input.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            for &byte in &input[..breaks] {
                // The line of a `\r\n` was counted at its `\r`.
                let counted = byte == b'\n' && self.after_return;
                self.parser.set_line(self.parser.line() + u64::from(!counted));
                self.after_return = byte == b'\r';
            }
            self.budget.rows(breaks as u64)?;
            self.input.consume(breaks);
            if bytes == 0 || breaks < bytes {
                return Ok(bytes > 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::budget::{Allowance, Stop};

    #[test]
    fn a_quote_that_is_never_closed_does_not_fill_the_memory() {
        const BOUND: usize = 100_000;
        let text = b"id,text\n1,\"".chain(io::repeat(b'x').take(200 << 20));
        let mut records =
            Records::new(io::BufReader::new(text), Budget::new(Allowance::USUAL, Stop::default()), b',', BOUND);
        assert_eq!(records.next_record().expect("a header"), Some((1, Record::Whole)));
        assert_eq!(records.next_record().expect("a record"), Some((2, Record::Unclosed)));
        assert_eq!(records.next_record().expect("the end"), None);
        assert!(records.bytes.capacity() <= 2 * BOUND, "{}", records.bytes.capacity());
    }
}
