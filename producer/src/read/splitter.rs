//! Lines of a stream in bounded memory: a line over the bound is passed over as it flows by, not gathered.

use std::io::{ErrorKind, Read};

/// A line, or that there was one.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// Its bytes, without the line's end.
    Whole(&'a [u8]),
    /// It was longer than the bound.
    TooLong,
}

/// Splits at `\n`; a `\r` before it and a byte-order mark at the beginning are dropped.
pub(super) struct Splitter<R> {
    input: R,
    /// Holds `start..end` of what was read and not yet given out.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    bound: usize,
    number: u64,
    ended: bool,
}

/// The buffer's first size; it doubles up to the bound when a line needs it.
const BUFFER_BYTES: usize = 64 << 10;

impl<R: Read> Splitter<R> {
    /// Lines of at most `bound` bytes.
    pub(super) fn new(input: R, bound: usize) -> Self {
        Self { input, buffer: vec![0; BUFFER_BYTES.min(bound + 2)], start: 0, end: 0, bound, number: 0, ended: false }
    }

    /// The number of the line last given out, from 1.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The next line, or `None` at the end.
    pub(super) fn next_line(&mut self) -> std::io::Result<Option<Line<'_>>> {
        let mut searched = 0;
        let mut too_long = false;
        loop {
            let held = &self.buffer[self.start..self.end];
            if let Some(found) = memchr::memchr(b'\n', &held[searched..]) {
                let line = self.start..self.start + searched + found;
                self.start = line.end + 1;
                return Ok(Some(self.give(line, too_long)));
            }
            searched = held.len();
            // One byte more than the bound may be the `\r`.
            if searched > self.bound + 1 {
                too_long = true;
                (self.start, self.end, searched) = (0, 0, 0);
            }
            if !self.fill()? {
                if self.start == self.end && !too_long {
                    return Ok(None);
                }
                let line = self.start..self.end;
                self.start = self.end;
                return Ok(Some(self.give(line, too_long)));
            }
        }
    }

    fn give(&mut self, line: std::ops::Range<usize>, too_long: bool) -> Line<'_> {
        self.number += 1;
        let mut line = &self.buffer[line];
        if self.number == 1 {
            line = line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line);
        }
        line = line.strip_suffix(b"\r").unwrap_or(line);
        if too_long || line.len() > self.bound { Line::TooLong } else { Line::Whole(line) }
    }

    /// Reads more; false at the end.
    fn fill(&mut self) -> std::io::Result<bool> {
        if self.ended {
            return Ok(false);
        }
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.buffer.len() {
            let longer = (2 * self.buffer.len()).min(self.bound + 2);
            self.buffer.resize(longer, 0);
        }
        loop {
            match self.input.read(&mut self.buffer[self.end..]) {
                Ok(0) => {
                    self.ended = true;
                    return Ok(false);
                }
                Ok(bytes) => {
                    self.end += bytes;
                    return Ok(true);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The size of the buffer, for tests of its bound.
    #[cfg(test)]
    pub(super) fn buffer_bytes(&self) -> usize {
        self.buffer.capacity()
    }
}
