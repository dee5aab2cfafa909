//! Lines of bounded length, the core of JSON lines and of plain lines.

use std::{
    borrow::Cow,
    io::{self, BufRead, Read},
};

use super::{
    BadRow, ReadError, ReadOptions, Row,
    check::{self, too_long, utf8},
    text::{Origin, Text},
};

/// Cuts bytes at line feeds. Holds one line, and never more than the bound of it.
pub(super) struct LineSplitter<R> {
    input: R,
    bytes_max: usize,
    number: u64,
    line: Vec<u8>,
}

/// One line, without its line break (`\n` or `\r\n`).
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// All of it.
    Whole(&'a [u8]),
    /// More than the bound; it was skipped.
    TooLong,
}

impl<R: BufRead> LineSplitter<R> {
    /// `bytes_max` counts a carriage return, not the line feed.
    pub(super) fn new(input: R, bytes_max: usize) -> Self {
        Self { input, bytes_max, number: 0, line: Vec::new() }
    }

    /// Lines read so far: after [`next_line`](Self::next_line), the number of the line that it gave.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The next line, or `None` at the end. A last line need not have a line break.
    pub(super) fn next_line(&mut self) -> io::Result<Option<Line<'_>>> {
        self.line.clear();
        let most = (self.bytes_max as u64).saturating_add(1);
        if self.input.by_ref().take(most).read_until(b'\n', &mut self.line)? == 0 {
            return Ok(None);
        }
        let line = match self.line.strip_suffix(b"\n") {
            Some(line) => line,
            None if self.line.len() > self.bytes_max => {
                self.input.skip_until(b'\n')?;
                self.number += 1;
                return Ok(Some(Line::TooLong));
            }
            None => &self.line,
        };
        self.number += 1;
        Ok(Some(Line::Whole(line.strip_suffix(b"\r").unwrap_or(line))))
    }

    #[cfg(test)]
    pub(super) fn buffer_bytes(&self) -> usize {
        self.line.capacity()
    }
}

/// Makes a row of a line's bytes; `None` for a blank line.
type ParseLine = fn(u64, &[u8], &ReadOptions) -> Option<Result<Row, BadRow>>;

/// The rows of an input that has one a line.
pub(super) struct LineRows {
    lines: LineSplitter<Text>,
    origin: Origin,
    options: ReadOptions,
    parse: ParseLine,
    ended: bool,
}

impl LineRows {
    pub(super) fn new((text, origin): (Text, Origin), options: ReadOptions, parse: ParseLine) -> Self {
        Self { lines: LineSplitter::new(text, options.record_bytes_max()), origin, options, parse, ended: false }
    }
}

impl Iterator for LineRows {
    type Item = Result<Result<Row, BadRow>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            let number = self.lines.number() + 1;
            // A blank line costs one as well.
            if let Err(spent) = self.origin.budget.rows(1) {
                self.ended = true;
                return Some(Err(spent.into()));
            }
            match self.lines.next_line() {
                Ok(Some(Line::Whole(line))) => {
                    if let Some(row) = (self.parse)(number, line, &self.options) {
                        return Some(Ok(row));
                    }
                }
                Ok(Some(Line::TooLong)) => {
                    return Some(Ok(Err(too_long(number, "line_too_long", "line", self.options.record_bytes_max()))));
                }
                Ok(None) => self.ended = true,
                Err(error) => {
                    self.ended = true;
                    return Some(Err(self.origin.error(number - 1, error)));
                }
            }
        }
        None
    }
}

/// A plain line is a text, and its number is its id.
pub(super) fn row(number: u64, line: &[u8], options: &ReadOptions) -> Option<Result<Row, BadRow>> {
    match utf8(number, "line", line) {
        Ok(text) if text.trim_start().is_empty() => None,
        Ok(text) => Some(check::row(number, Cow::Owned(number.to_string()), Cow::Borrowed(text), options)),
        Err(bad) => Some(Err(bad)),
    }
}
