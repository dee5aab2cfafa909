//! Text lines, and what they share with JSON lines.

use std::io::Read;

use super::{
    BadRow, ReadError, ReadOptions, Row, Rows, check_row,
    options::LINE_BYTES_MAX,
    splitter::{Line, Splitter},
};

/// Each line that is not blank is a text.
pub(super) fn rows(input: Box<dyn Read + Send>, options: &ReadOptions) -> Rows {
    let options = options.clone();
    each_line(input, move |line, text| check_row(line, None, text.to_owned(), &options))
}

/// Calls `parse` with the number and the text of each line that is not blank; names lines that are no text.
pub(super) fn each_line(
    input: Box<dyn Read + Send>,
    parse: impl Fn(u64, &str) -> Result<Row, BadRow> + Send + 'static,
) -> Rows {
    let mut lines = Splitter::new(input, LINE_BYTES_MAX);
    let mut broken = false;
    Box::new(std::iter::from_fn(move || {
        while !broken {
            let number = lines.number() + 1;
            let line = match lines.next_line() {
                Ok(None) => return None,
                Ok(Some(line)) => line,
                Err(error) => {
                    broken = true;
                    return Some(Err(ReadError::Broken { line: number - 1, error }));
                }
            };
            let bytes = match line {
                Line::TooLong => {
                    let reason = format!("the line has more than {LINE_BYTES_MAX} bytes: split its text");
                    return Some(Ok(Err(BadRow::new(number, "line_too_long", reason))));
                }
                Line::Whole(bytes) => bytes,
            };
            if bytes.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            return Some(Ok(match std::str::from_utf8(bytes) {
                Ok(text) => parse(number, text),
                Err(error) => {
                    let reason = format!("the line is not UTF-8 (byte {}): convert the file", error.valid_up_to() + 1);
                    Err(BadRow::new(number, "not_utf8", reason))
                }
            }));
        }
        None
    }))
}
