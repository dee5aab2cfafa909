//! Seeing through gzip and zstd, by their first bytes rather than their names.

use std::io::{BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

use super::READ_BYTES;

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The plain bytes of `input`. They stream, so a file that decompresses to terabytes costs time and no memory.
pub(super) fn reader(mut input: impl BufRead + Send + 'static) -> std::io::Result<Box<dyn Read + Send>> {
    let begin = input.fill_buf()?;
    if begin.starts_with(&GZIP) {
        return Ok(Box::new(MultiGzDecoder::new(input)));
    }
    if begin.starts_with(&ZSTD) {
        return Ok(Box::new(zstd::Decoder::with_buffer(input)?));
    }
    Ok(Box::new(BufReader::with_capacity(READ_BYTES, input)))
}
