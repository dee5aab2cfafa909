//! The pages of a column, one at a time, each held to its bounds before it is decompressed.
//!
//! The `parquet` crate's own reader believes what a page says of itself: it decompresses gzip to whatever length comes, and
//! reserves what dictionaries and deltas say they have.

use std::{
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use bytes::Bytes;
use parquet::{
    basic::{Compression, Encoding},
    column::page::{Page, PageMetadata, PageReader},
    errors::{ParquetError, Result as ParquetResult},
    file::{
        metadata::{ColumnChunkMetaData, ParquetMetaData},
        reader::ChunkReader,
    },
};

use super::{
    header::{Header, PAGE_COST, PageKind, VALUES_MAX, header_at},
    thrift::{Refusal, Thrift, refused},
};
use crate::read::budget::{Allowance, Budget, Stop};

/// Pages of one column of a row group.
pub(super) struct Pages<R> {
    file: Arc<R>,
    /// Where the next header is.
    at: u64,
    end: u64,
    compression: Compression,
    levels: Levels,
    budget: Budget,
    /// The next page's header, and its length, where it has been looked at.
    next: Option<(Header, u64)>,
    row: RowValues,
}

/// Values of the pages that were opened for the row that is being read. Whoever reads rows begins each anew.
#[derive(Clone, Default)]
pub(super) struct RowValues(Arc<AtomicU32>);

/// The largest levels of the column.
#[derive(Clone, Copy)]
struct Levels {
    repetition: i16,
    definition: i16,
}

impl RowValues {
    pub(super) fn begin(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

impl<R: ChunkReader> Pages<R> {
    pub(super) fn new(
        file: Arc<R>,
        column: &ColumnChunkMetaData,
        budget: Budget,
        row: RowValues,
    ) -> ParquetResult<Self> {
        let (at, end) = range(&*file, column)?;
        let descriptor = column.column_descr();
        let levels = Levels { repetition: descriptor.max_rep_level(), definition: descriptor.max_def_level() };
        Ok(Self { file, at, end, compression: column.compression(), levels, budget, next: None, row })
    }

    /// The header of the next page, and its length.
    fn look(&mut self) -> ParquetResult<Option<(Header, u64)>> {
        if self.next.is_none() && self.at < self.end {
            self.next = Some(header_at(&*self.file, self.at, self.end)?);
        }
        Ok(self.next.clone())
    }

    /// Passes over the next page.
    fn pass(&mut self, header: &Header, length: u64) -> ParquetResult<()> {
        self.next = None;
        self.at = header.end(self.at, length);
        if self.at > self.end { Err(refused("a page is longer than its column")) } else { Ok(()) }
    }

    /// The page's bytes, decompressed.
    fn decompressed(&self, header: &Header, at: u64) -> ParquetResult<Bytes> {
        let bytes = self.file.get_bytes(at, header.compressed)?;
        let (plain, compressed) = match header.kind {
            PageKind::DataV2 { definition, repetition, compressed, .. } => {
                (u64::from(definition) + u64::from(repetition), compressed)
            }
            _ => (0, true),
        };
        if self.compression == Compression::UNCOMPRESSED || !compressed {
            return Ok(bytes);
        }
        let plain = usize::try_from(plain).ok().filter(|plain| *plain <= bytes.len().min(header.uncompressed));
        let plain = plain.ok_or_else(|| refused("a page's levels are longer than the page"))?;
        let mut all = bytes[..plain].to_vec();
        decompress(self.compression, &bytes[plain..], header.uncompressed - plain, &mut all)?;
        Ok(all.into())
    }

    /// Checks what the crate's decoders would reserve room for.
    fn check_values(&self, kind: &PageKind, page: &[u8]) -> Result<(), Refusal> {
        let (encoding, values, data) = match *kind {
            PageKind::Data { encoding, values, definition, repetition } => {
                let mut data = page;
                for (level, encoding) in [(self.levels.repetition, repetition), (self.levels.definition, definition)] {
                    data = if level > 0 { after_levels(data, encoding, level, values)? } else { data };
                }
                (encoding, values, data)
            }
            PageKind::DataV2 { encoding, values, definition, repetition, .. } => {
                let levels = usize::try_from(u64::from(definition) + u64::from(repetition)).unwrap_or(usize::MAX);
                (encoding, values, page.get(levels..).ok_or(CUT_OFF_PAGE)?)
            }
            PageKind::Dictionary { .. } | PageKind::Other => return Ok(()),
        };
        match encoding {
            Encoding::DELTA_LENGTH_BYTE_ARRAY => delta(data, values).map(drop),
            // Lengths of what is as in the value before, then those of what is not.
            Encoding::DELTA_BYTE_ARRAY => delta(delta(data, values)?, values).map(drop),
            _ => Ok(()),
        }
    }
}

const CUT_OFF_PAGE: Refusal = "a page is cut off";

impl<R: ChunkReader> PageReader for Pages<R> {
    fn get_next_page(&mut self) -> ParquetResult<Option<Page>> {
        while let Some((header, length)) = self.look()? {
            let at = self.at + length;
            // Before anything is reserved.
            self.budget.decode(header.cost(length))?;
            self.pass(&header, length)?;
            let values = match header.kind {
                PageKind::Other => continue,
                PageKind::Dictionary { .. } => 0,
                PageKind::Data { values, .. } | PageKind::DataV2 { values, .. } => values,
            };
            header.check().map_err(refused)?;
            if self.row.0.fetch_add(values, Ordering::Relaxed) > VALUES_MAX - values {
                return Err(refused("a row lies in too many values: write the file with smaller pages"));
            }
            let buf = self.decompressed(&header, at)?;
            self.check_values(&header.kind, &buf).map_err(refused)?;
            let page = match header.kind {
                PageKind::Dictionary { values: num_values, encoding } => {
                    Page::DictionaryPage { buf, num_values, encoding, is_sorted: false }
                }
                PageKind::DataV2 { values, nulls, rows, encoding, definition, repetition, compressed } => {
                    Page::DataPageV2 {
                        buf,
                        num_values: values,
                        encoding,
                        num_nulls: nulls,
                        num_rows: rows,
                        def_levels_byte_len: definition,
                        rep_levels_byte_len: repetition,
                        is_compressed: compressed,
                        statistics: None,
                    }
                }
                PageKind::Data { values, encoding, definition, repetition } => Page::DataPage {
                    buf,
                    num_values: values,
                    encoding,
                    def_level_encoding: definition,
                    rep_level_encoding: repetition,
                    statistics: None,
                },
                PageKind::Other => continue,
            };
            return Ok(Some(page));
        }
        Ok(None)
    }

    fn peek_next_page(&mut self) -> ParquetResult<Option<PageMetadata>> {
        while let Some((header, length)) = self.look()? {
            let (num_rows, num_levels, is_dict) = match header.kind {
                PageKind::Other => {
                    self.budget.decode(PAGE_COST)?;
                    self.pass(&header, length)?;
                    continue;
                }
                PageKind::Dictionary { .. } => (None, None, true),
                PageKind::Data { values, .. } => (None, Some(values as usize), false),
                PageKind::DataV2 { values, rows, .. } => (Some(rows as usize), Some(values as usize), false),
            };
            return Ok(Some(PageMetadata { num_rows, num_levels, is_dict }));
        }
        Ok(None)
    }

    fn skip_next_page(&mut self) -> ParquetResult<()> {
        match self.look()? {
            Some((header, length)) => self.pass(&header, length),
            None => Ok(()),
        }
    }
}

impl<R: ChunkReader> Iterator for Pages<R> {
    type Item = ParquetResult<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

/// Where a column's pages lie.
fn range(file: &impl ChunkReader, column: &ColumnChunkMetaData) -> ParquetResult<(u64, u64)> {
    let at = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
    let range = u64::try_from(at).ok().zip(u64::try_from(column.compressed_size()).ok());
    let range = range.and_then(|(at, bytes)| Some((at, at.checked_add(bytes)?)));
    range.filter(|(_, end)| *end <= file.len()).ok_or_else(|| refused("a column lies outside the file"))
}

/// Looks through the pages of a part, which Arrow then reads: a worker writes parts, but whoever has keys to S3 can put others in
/// their place. Its columns are compressed with zstd or not at all, nothing is packed as deltas, and a list has room for its items.
pub(crate) fn check_part(file: &impl ChunkReader, metadata: &ParquetMetaData) -> ParquetResult<()> {
    let budget = Budget::new(Allowance::USUAL, Stop::default());
    budget.take(file.len())?;
    for column in metadata.row_groups().iter().flat_map(|group| group.columns()) {
        if !matches!(column.compression(), Compression::UNCOMPRESSED | Compression::ZSTD(_)) {
            return Err(refused("a part is compressed as no worker does it"));
        }
        let (mut at, end) = range(file, column)?;
        while at < end {
            let (header, length) = header_at(file, at, end)?;
            budget.decode(header.cost(length))?;
            header.check().map_err(refused)?;
            let (values, encoding) = match header.kind {
                PageKind::Other => return Err(refused("a part has a page that no worker writes")),
                PageKind::Dictionary { values, encoding } => (values, encoding),
                PageKind::Data { values, encoding, .. } | PageKind::DataV2 { values, encoding, .. } => {
                    (values, encoding)
                }
            };
            let known = [Encoding::PLAIN, Encoding::RLE, Encoding::RLE_DICTIONARY, Encoding::PLAIN_DICTIONARY];
            // Two bytes are the least that a number of a vector has.
            let crowded = column.column_descr().max_rep_level() > 0 && values as usize > header.uncompressed / 2;
            if !known.contains(&encoding) || crowded {
                return Err(refused("a part has a page that no worker writes"));
            }
            at = header.end(at, length);
        }
    }
    Ok(())
}

fn decompress(compression: Compression, from: &[u8], bytes: usize, to: &mut Vec<u8>) -> ParquetResult<()> {
    const WRONG: Refusal = "a page does not decompress to what it says";
    let before = to.len();
    let wrong = || refused(WRONG);
    match compression {
        Compression::SNAPPY => {
            if snap::raw::decompress_len(from).map_err(|_| wrong())? == bytes {
                to.resize(before + bytes, 0);
                snap::raw::Decoder::new().decompress(from, &mut to[before..]).map_err(|_| wrong())?;
            }
        }
        Compression::GZIP(_) => {
            // One byte more than it says, to see that it says less than it has.
            to.reserve_exact(bytes + 1);
            let decoder = flate2::read::MultiGzDecoder::new(from);
            decoder.take(bytes as u64 + 1).read_to_end(to).map_err(|_| wrong())?;
        }
        // At once: a stream would have a window of its own.
        Compression::ZSTD(_) => {
            to.resize(before + bytes, 0);
            let length = zstd::bulk::decompress_to_buffer(from, &mut to[before..]).map_err(|_| wrong())?;
            to.truncate(before + length);
        }
        other => {
            return Err(ParquetError::NYI(format!("{other} is not read: write it with zstd, snappy or gzip")));
        }
    }
    if to.len() - before == bytes { Ok(()) } else { Err(wrong()) }
}

/// What follows the levels of a page of the first version.
fn after_levels(data: &[u8], encoding: Encoding, level_max: i16, values: u32) -> Result<&[u8], Refusal> {
    let bytes = match encoding {
        Encoding::RLE => 4 + u64::from(u32::from_le_bytes(*data.first_chunk().ok_or(CUT_OFF_PAGE)?)),
        _ => (u64::from(values) * u64::from(i16::BITS - level_max.leading_zeros())).div_ceil(8),
    };
    usize::try_from(bytes).ok().and_then(|bytes| data.get(bytes..)).ok_or(CUT_OFF_PAGE)
}

/// Passes over integers that are packed as deltas; there may be no more than the page has values, for room is reserved for all of
/// them.
fn delta(data: &[u8], values: u32) -> Result<&[u8], Refusal> {
    const WRONG: Refusal = "a page's lengths can't be read";
    let mut at = Thrift::new(data);
    let (block, parts, count) = (at.varint()?, at.varint()?, at.varint()?);
    at.varint()?;
    if count > values.into() || parts == 0 || block % 128 != 0 || block % parts != 0 || block / parts % 32 != 0 {
        return Err(WRONG);
    }
    let part = block / parts;
    let mut left = count.saturating_sub(1);
    while left > 0 {
        at.varint()?;
        let widths = at.take(parts)?;
        for &width in widths {
            if left == 0 {
                break;
            }
            at.take(part.checked_mul(width.into()).ok_or(WRONG)? / 8)?;
            left = left.saturating_sub(part);
        }
    }
    Ok(at.rest())
}
