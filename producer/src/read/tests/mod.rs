//! Each format's good rows beside each kind of bad one.

mod csv;
mod forge;
mod fuzz;
mod hostile;
mod json;
mod parquet;
mod text;

use std::{io::Write, path::Path};

use tempfile::NamedTempFile;

use crate::contract::RowInput;

use super::{BadRow, InputFormat, ReadError, ReadOptions, Row, Rows, Stop};

fn open(path: &Path, format: InputFormat, options: &ReadOptions) -> Result<Rows, ReadError> {
    super::open(path, format, options, Stop::default())
}

fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("a file");
    file.write_all(bytes).expect("bytes");
    file
}

fn options() -> ReadOptions {
    ReadOptions { dimensions: Some(64), model: Some("m".to_owned()), ..ReadOptions::default() }
}

/// Good rows and bad ones of an input that can be read as a whole.
fn sort(rows: Rows) -> (Vec<Row>, Vec<BadRow>) {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for row in rows {
        match row.expect("a readable input") {
            Ok(row) => good.push(row),
            Err(row) => bad.push(row),
        }
    }
    (good, bad)
}

fn read(bytes: &[u8], format: InputFormat) -> (Vec<Row>, Vec<BadRow>) {
    sort(open(file(bytes).path(), format, &options()).expect("an input"))
}

fn refusal(bytes: &[u8], format: InputFormat, options: &ReadOptions) -> ReadError {
    open(file(bytes).path(), format, options).err().expect("a refusal")
}

fn row(line: u64, id: &str, text: &str) -> Row {
    Row { line, id: id.to_owned(), input: RowInput::Text(text.to_owned()) }
}

fn token_row(line: u64, id: &str, tokens: &[u32]) -> Row {
    Row { line, id: id.to_owned(), input: RowInput::Tokens(tokens.to_vec()) }
}

fn codes(bad: &[BadRow]) -> Vec<(u64, &'static str)> {
    bad.iter().map(|bad| (bad.line, bad.code)).collect()
}
