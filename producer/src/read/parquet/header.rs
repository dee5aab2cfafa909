//! The header of a page, and the bounds that a page is held to by what its header says.

use parquet::{basic::Encoding, errors::Result as ParquetResult, file::reader::ChunkReader};

use super::thrift::{CUT_OFF, Kind, Refusal, Thrift, refused};

/// Most bytes of a page, decompressed or not: writers cut them at 1 MiB, DuckDB at 100 MB. At most one page of each of two columns is
/// in hand, with what it was decompressed from.
const PAGE_BYTES_MAX: usize = 128 << 20;
/// Most bytes of a dictionary: writers give it up at 1 MiB.
const DICTIONARY_BYTES_MAX: usize = 16 << 20;
/// Most values of a dictionary; decoded, each takes 32 bytes.
const DICTIONARY_VALUES_MAX: u32 = 1 << 20;
/// Most values of a page, and of all pages that one row lies in. Runs of any length take a few bytes; decoded, a value and its levels
/// take 12, and all of a row are decoded at once: 48 MiB.
pub(super) const VALUES_MAX: u32 = 4 << 20;
/// Most bytes of a page's header: it may have statistics with the largest text and the smallest.
const HEADER_BYTES_MAX: usize = 4 << 20;
/// Read of a header at first.
const HEADER_BYTES: usize = 4 << 10;
/// What a page costs of the budget besides its bytes: empty ones are work as well.
pub(super) const PAGE_COST: u64 = 256;

const MISSING: Refusal = "a page's header lacks what it must have";

/// What a page's header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: PageKind,
    /// Bytes of the page once it is decompressed.
    pub(super) uncompressed: usize,
    /// Bytes of the page in the file.
    pub(super) compressed: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PageKind {
    /// Of the file's index, or of a kind that is not known: passed over.
    Other,
    Dictionary {
        values: u32,
        encoding: Encoding,
    },
    Data {
        values: u32,
        encoding: Encoding,
        definition: Encoding,
        repetition: Encoding,
    },
    DataV2 {
        values: u32,
        nulls: u32,
        rows: u32,
        encoding: Encoding,
        definition: u32,
        repetition: u32,
        compressed: bool,
    },
}

impl Header {
    /// What a page costs of the budget, with a header of so many bytes.
    pub(super) fn cost(&self, length: u64) -> u64 {
        PAGE_COST + length + self.compressed.max(self.uncompressed) as u64
    }

    /// Where a page ends that begins at `at` with a header of so many bytes.
    pub(super) fn end(&self, at: u64, length: u64) -> u64 {
        at.saturating_add(length).saturating_add(self.compressed as u64)
    }

    /// Holds the page to its bounds.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        let (values, values_max, bytes_max) = match self.kind {
            PageKind::Other => (0, VALUES_MAX, PAGE_BYTES_MAX),
            PageKind::Dictionary { values, .. } => (values, DICTIONARY_VALUES_MAX, DICTIONARY_BYTES_MAX),
            PageKind::Data { values, .. } | PageKind::DataV2 { values, .. } => (values, VALUES_MAX, PAGE_BYTES_MAX),
        };
        if self.compressed.max(self.uncompressed) > bytes_max {
            return Err("a page is too large: write the file with smaller pages");
        }
        if values > values_max {
            return Err("a page has too many values: write the file with smaller pages");
        }
        Ok(())
    }
}

/// A page's header and its length.
pub(super) fn header_at(file: &impl ChunkReader, at: u64, end: u64) -> ParquetResult<(Header, u64)> {
    let left = usize::try_from(end - at).unwrap_or(usize::MAX);
    let mut most = HEADER_BYTES;
    loop {
        let bytes = file.get_bytes(at, left.min(most))?;
        match header(&bytes) {
            Ok((header, length)) => return Ok((header, length as u64)),
            Err(CUT_OFF) if bytes.len() == most && most < HEADER_BYTES_MAX => most *= 16,
            Err(refusal) => return Err(refused(refusal)),
        }
    }
}

/// A page's header and its length.
fn header(bytes: &[u8]) -> Result<(Header, usize), Refusal> {
    let mut thrift = Thrift::new(bytes);
    let (mut kind, mut uncompressed, mut compressed) = (None, None, None);
    let (mut data, mut dictionary, mut data_v2) = (None, None, None);
    thrift.fields(|thrift, id, of, _| {
        match (id, of) {
            (1, Kind::I32) => kind = Some(thrift.i32()?),
            (2, Kind::I32) => uncompressed = Some(thrift.i32()?),
            (3, Kind::I32) => compressed = Some(thrift.i32()?),
            (5, Kind::Struct) => data = Some(numbers(thrift, 4)?),
            (7, Kind::Struct) => dictionary = Some(numbers(thrift, 2)?),
            (8, Kind::Struct) => data_v2 = Some(numbers(thrift, 6)?),
            // Of another type, the crate would take them for what they should be.
            (4, Kind::I32) | (6, Kind::Struct) | (..=0 | 9.., _) => return Ok(false),
            _ => return Err("a field of a page's header has another type than it must have"),
        }
        Ok(true)
    })?;
    let size = |bytes: Option<i32>| usize::try_from(bytes.ok_or(MISSING)?).map_err(|_| "a page has a negative size");
    let kind = match kind.ok_or(MISSING)? {
        0 => {
            let data = data.ok_or(MISSING)?;
            PageKind::Data {
                values: data.count(1)?,
                encoding: data.encoding(2)?,
                definition: data.encoding(3)?,
                repetition: data.encoding(4)?,
            }
        }
        2 => {
            let dictionary = dictionary.ok_or(MISSING)?;
            PageKind::Dictionary { values: dictionary.count(1)?, encoding: dictionary.encoding(2)? }
        }
        3 => {
            let data = data_v2.ok_or(MISSING)?;
            PageKind::DataV2 {
                values: data.count(1)?,
                nulls: data.count(2)?,
                rows: data.count(3)?,
                encoding: data.encoding(4)?,
                definition: data.count(5)?,
                repetition: data.count(6)?,
                compressed: data.is_compressed,
            }
        }
        _ => PageKind::Other,
    };
    let header = Header { kind, uncompressed: size(uncompressed)?, compressed: size(compressed)? };
    Ok((header, bytes.len() - thrift.left()))
}

/// The numbers in a kind's own part of a header.
struct Numbers {
    of: [Option<i32>; 7],
    /// Says so where it says nothing.
    is_compressed: bool,
}

/// The first `count` fields are numbers, and the next a boolean, if there is one.
fn numbers(thrift: &mut Thrift<'_>, count: i16) -> Result<Numbers, Refusal> {
    let mut numbers = Numbers { of: [None; 7], is_compressed: true };
    thrift.fields(|thrift, id, kind, yes| {
        match usize::try_from(id).ok().and_then(|id| numbers.of.get_mut(id)) {
            Some(number) if id <= count && kind == Kind::I32 => *number = Some(thrift.i32()?),
            Some(_) if (1..=count).contains(&id) => {
                return Err("a field of a page's header has another type than it must have");
            }
            _ if id == 7 && kind == Kind::Bool => numbers.is_compressed = yes,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(numbers)
}

impl Numbers {
    fn count(&self, id: usize) -> Result<u32, Refusal> {
        let number = self.of[id].ok_or(MISSING)?;
        number.try_into().map_err(|_| "a page's header has a negative number")
    }

    fn encoding(&self, id: usize) -> Result<Encoding, Refusal> {
        let number = self.of[id].ok_or(MISSING)?;
        let found = Encoding::VARIANTS.iter().find(|encoding| **encoding as i32 == number);
        found.copied().ok_or("a page has an encoding that is not known")
    }
}
