//! What every row must keep to, whatever format it comes from.

use std::borrow::Cow;

use super::{BadRow, ReadOptions, Row};
use crate::contract::{ID_BYTES_MAX, RowInput};

/// A row, if its parts can be used.
pub(super) fn row(line: u64, id: Cow<'_, str>, text: Cow<'_, str>, options: &ReadOptions) -> Result<Row, BadRow> {
    let bad = |code, reason: String| Err(BadRow::new(line, code, reason));
    let id = self::id(line, id)?;
    if text.len() > options.text_bytes_max {
        let (bytes, most) = (text.len(), options.text_bytes_max);
        return bad("text_too_long", format!("the text has {bytes} bytes: split it into texts of at most {most}"));
    }
    if text.trim_start().is_empty() {
        return bad("empty_text", "the text is empty or only white space: fill it or drop the row".to_owned());
    }
    Ok(Row { line, id, input: RowInput::Text(text.into_owned()) })
}

/// A row of token ids, if its parts can be used.
pub(super) fn token_row(line: u64, id: Cow<'_, str>, tokens: Vec<u32>, options: &ReadOptions) -> Result<Row, BadRow> {
    let bad = |code, reason: String| Err(BadRow::new(line, code, reason));
    let id = self::id(line, id)?;
    let (count, most) = (tokens.len(), options.tokens_max());
    if count > most {
        return bad("text_too_long", format!("the text has {count} token ids: split it into texts of at most {most}"));
    }
    if tokens.is_empty() {
        return bad("empty_text", "the list of token ids is empty: fill it or drop the row".to_owned());
    }
    Ok(Row { line, id, input: RowInput::Tokens(tokens) })
}

/// What a list must hold that is to be a text.
pub(super) fn not_token_ids(line: u64, field: &str) -> BadRow {
    let reason = format!("{field} is a list: its items must be token ids, whole numbers from 0 to {}", u32::MAX);
    BadRow::new(line, "bad_tokens", reason)
}

fn id(line: u64, id: Cow<'_, str>) -> Result<String, BadRow> {
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
    Ok(id.into_owned())
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
