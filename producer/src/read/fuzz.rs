//! Corpora that nobody vouched for. See [`crate::fuzz`].

use std::io::Write as _;

use tempfile::NamedTempFile;

use super::budget::{Allowance, Budget};
use super::{InputFormat, ReadOptions, Stop, open_within};

/// Little that is free, so that what is out of bounds shows.
const LITTLE: Allowance = Allowance { bytes_free: 64 << 10, bytes_times: 100, rows_free: 1000, rows_times: 2 };

const OF_LINES: [InputFormat; 3] = [InputFormat::Jsonl, InputFormat::Lines, InputFormat::Csv];

/// A Parquet file, whatever its footer and pages say.
pub(crate) fn parquet(bytes: &[u8]) {
    keeps_to_its_budget(bytes, InputFormat::Parquet);
}

/// The metadata of a Parquet file, of which its length is right.
pub(crate) fn parquet_footer(metadata: &[u8]) {
    let length = u32::try_from(metadata.len()).expect("a short input").to_le_bytes();
    // What metadata may point at: a page of one text, as often as it likes.
    let pages = b"PAR1\x15\x00\x15\x12\x15\x12\x2c\x15\x02\x15\x00\x15\x06\x15\x06\x00\x00\x05\x00\x00\x00hello";
    keeps_to_its_budget(&[&pages[..], metadata, &length, b"PAR1"].concat(), InputFormat::Parquet);
}

/// A stream of gzip or zstd, members and frames one after the other, of lines in one of the formats.
pub(crate) fn compressed(bytes: &[u8]) {
    const MAGICS: [&[u8]; 2] = [b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"];
    let named = MAGICS.iter().any(|magic| bytes.starts_with(magic));
    // The length is as good as chance for what the input is taken for.
    let magic = if named { b"" } else { MAGICS[bytes.len() % 2] };
    let format = OF_LINES[bytes.len() % OF_LINES.len()];
    keeps_to_its_budget(&[magic, bytes].concat(), format);
}

/// Lines of JSON, CSV and plain lines.
pub(crate) fn rows(bytes: &[u8]) {
    for format in OF_LINES {
        keeps_to_its_budget(bytes, format);
    }
}

/// Whatever the bytes are, what comes of them keeps to what they may come to, and each row is good or named.
fn keeps_to_its_budget(bytes: &[u8], format: InputFormat) {
    let mut input = NamedTempFile::new().expect("a file");
    input.write_all(bytes).expect("room for it");
    let options = ReadOptions { dimensions: Some(64), model: Some("m".to_owned()), ..ReadOptions::default() };
    let Ok(rows) = open_within(input.path(), format, &options, Budget::new(LITTLE, Stop::default())) else { return };
    let (mut last, mut count, mut text) = (0, 0, 0);
    let mut ended = false;
    for row in rows {
        assert!(!ended, "a row after the end");
        let line = match row {
            Ok(Ok(row)) => {
                text += row.input.size_bytes() as u64;
                row.line
            }
            Ok(Err(bad)) => {
                assert!(!bad.code.is_empty() && bad.reason.len() > 10);
                bad.line
            }
            Err(_) => {
                ended = true;
                continue;
            }
        };
        count += 1;
        assert!(line > last, "{format:?}: {last}, then {line}");
        last = line;
    }
    let length = bytes.len() as u64;
    assert!(count <= LITTLE.rows_free + LITTLE.rows_times * length, "{count} rows of {length} bytes");
    assert!(text <= LITTLE.bytes_free + LITTLE.bytes_times * length, "{text} bytes of {length}");
}
