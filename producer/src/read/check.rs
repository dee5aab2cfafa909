//! What every row must keep to, whatever format it comes from.

use std::borrow::Cow;

use super::{BadRow, ReadOptions, Row};

/// Most bytes of an id: room for any URL or composite key in use, small beside its text. It travels into the
/// results of every row.
pub(super) const ID_BYTES_MAX: usize = 512;

/// A row, if its parts can be used.
pub(super) fn row(line: u64, id: Cow<'_, str>, text: Cow<'_, str>, options: &ReadOptions) -> Result<Row, BadRow> {
    let bad = |code, reason: String| Err(BadRow::new(line, code, reason));
    if id.is_empty() {
        return bad("bad_id", "the id is empty: give it a value".to_owned());
    }
    if id.len() > ID_BYTES_MAX {
        return bad("bad_id", format!("the id has {} bytes: at most {ID_BYTES_MAX} are allowed", id.len()));
    }
    if id.contains('\0') {
        return bad("bad_id", "the id has a NUL character: remove it".to_owned());
    }
    if text.len() > options.text_bytes_max {
        let (bytes, most) = (text.len(), options.text_bytes_max);
        return bad("text_too_long", format!("the text has {bytes} bytes: split it into texts of at most {most}"));
    }
    if text.trim_start().is_empty() {
        return bad("empty_text", "the text is empty or only white space: fill it or drop the row".to_owned());
    }
    Ok(Row { line, id: id.into_owned(), text: text.into_owned() })
}

/// Bytes as text, or which byte is wrong.
pub(super) fn utf8<'a>(line: u64, what: &str, bytes: &'a [u8]) -> Result<&'a str, BadRow> {
    std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to() + 1;
        BadRow::new(line, "not_utf8", format!("byte {at} of the {what} is not UTF-8: save the input as UTF-8"))
    })
}

/// A row over the bound of a line or record.
pub(super) fn too_long(line: u64, code: &'static str, what: &str, most: usize) -> BadRow {
    BadRow::new(line, code, format!("the {what} has more than {most} bytes: shorten or split its text"))
}
