//! Opening a text file: compression and byte order marks are dealt with here, once for all text formats.

use std::{
    fs::File,
    io::{self, BufReader, Chain, Cursor, Read},
    path::Path,
};

use super::{
    ReadError,
    budget::{Budget, Spent},
};

/// Bytes read from the file, and decompressed, at once: large against a system call, small against a cache.
const BLOCK_BYTES: usize = 128 << 10;
/// Most memory of a zstd window, as a power of two: zstd's own default for decoding, and all that its levels use
/// without `--long`. A file that asks for more is refused.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Decompressed text without its byte order mark.
pub(super) type Text = BufReader<Box<dyn Read + Send>>;

/// What an I/O error of a [`Text`] means.
#[derive(Debug)]
pub(super) struct Origin {
    compression: Option<&'static str>,
    /// What reading may take: each reader counts its rows, and its blank lines, with it.
    pub(super) budget: Budget,
}

impl Origin {
    /// Names the place of an error.
    pub(super) fn error(&self, line: u64, error: io::Error) -> ReadError {
        if let Some(spent) = Spent::of(&error) {
            return spent.into();
        }
        match self.compression {
            // The decoders pass the system's errors on as they are; errors of their own have no code.
            Some(compression) if error.raw_os_error().is_none() => {
                ReadError::Corrupt { compression, position: self.budget.taken(), line, error }
            }
            _ => ReadError::Io { line, error },
        }
    }
}

/// Opens a file and looks through its compression.
pub(super) fn open(path: &Path, budget: Budget) -> Result<(Text, Origin), ReadError> {
    let failed = |error| ReadError::Open { path: path.to_owned(), error };
    let file = File::open(path).map_err(failed)?;
    // A folder opens, and fails at the first read.
    if file.metadata().map_err(failed)?.is_dir() {
        return Err(failed(io::ErrorKind::IsADirectory.into()));
    }
    from_reader(file, budget)
}

/// [`open`] for anything that can be read.
pub(super) fn from_reader(input: impl Read + Send + 'static, budget: Budget) -> Result<(Text, Origin), ReadError> {
    let taken = Counted {
        input,
        count: {
            let budget = budget.clone();
            move |bytes| budget.take(bytes)
        },
    };
    let mut origin = Origin { compression: None, budget };
    let (head, raw) = peek(taken, 4).map_err(|error| origin.error(0, error))?;
    let decoded: Box<dyn Read + Send> = match *head {
        [0x1f, 0x8b, ..] => {
            origin.compression = Some("gzip");
            let raw = BufReader::with_capacity(BLOCK_BYTES, raw);
            Box::new(flate2::bufread::MultiGzDecoder::new(raw))
        }
        // A frame, or the skippable one that parallel compressors put first.
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
            origin.compression = Some("zstd");
            Box::new(zstd(raw).map_err(|error| origin.error(0, error))?)
        }
        _ => Box::new(raw),
    };
    let decoded = Counted {
        input: decoded,
        count: {
            let budget = origin.budget.clone();
            move |bytes| budget.decode(bytes)
        },
    };
    let (head, rest) = peek(decoded, 3).map_err(|error| origin.error(0, error))?;
    let text: Box<dyn Read + Send> = match *head {
        [0xef, 0xbb, 0xbf] => Box::new(rest.into_inner().1),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => return Err(ReadError::Utf16),
        _ => Box::new(rest),
    };
    Ok((BufReader::with_capacity(BLOCK_BYTES, text), origin))
}

fn zstd<R: Read>(raw: R) -> io::Result<impl Read + use<R>> {
    let mut decoder = ::zstd::Decoder::with_buffer(BufReader::with_capacity(BLOCK_BYTES, raw))?;
    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
    Ok(decoder)
}

/// A reader that begins with bytes that were read before.
type Again<R> = Chain<Cursor<Vec<u8>>, R>;

/// The first bytes (fewer at the end), and a reader that begins with them again.
fn peek<R: Read>(mut input: R, bytes: u64) -> io::Result<(Vec<u8>, Again<R>)> {
    let mut head = Vec::new();
    input.by_ref().take(bytes).read_to_end(&mut head)?;
    Ok((head.clone(), Cursor::new(head).chain(input)))
}

/// Counts what passes, block by block.
struct Counted<R, C> {
    input: R,
    count: C,
}

impl<R: Read, C: Fn(u64) -> Result<(), Spent>> Read for Counted<R, C> {
    fn read(&mut self, block: &mut [u8]) -> io::Result<usize> {
        let bytes = self.input.read(block)?;
        (self.count)(bytes as u64)?;
        Ok(bytes)
    }
}
