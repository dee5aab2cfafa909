//! Files that are small where they come in and large where they are read.

use std::{io::Write, iter::repeat_n, sync::Arc};

use arrow_array::{ArrayRef, RecordBatch, StringArray};
use flate2::{Compression, write::GzEncoder};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression as Codec, ZstdLevel},
    file::properties::{EnabledStatistics, WriterProperties},
};

/// A Parquet file whose schema is `depth` groups, each in the one before, and a column of strings in the last: the footer by
/// hand, in Thrift's compact protocol.
pub fn deep_schema(depth: usize) -> Vec<u8> {
    let mut footer = vec![
        // FileMetaData: version (1, i32) = 1
        0x15, 0x02, // schema (2, list of structs), its length as a varint below
        0x19, 0xfc,
    ];
    varint(&mut footer, depth as u64 + 1);
    for _ in 0..depth {
        // SchemaElement: repetition_type (3) = REQUIRED; name (4) = "g"; num_children (5) = 1
        footer.extend([0x35, 0x00, 0x18, 0x01, b'g', 0x15, 0x02, 0x00]);
    }
    // SchemaElement: type (1, i32) = BYTE_ARRAY; repetition_type (3) = REQUIRED; name (4) = "text"
    footer.extend([0x15, 0x0c, 0x25, 0x00, 0x18, 0x04]);
    footer.extend(b"text\0");
    // num_rows (3, i64) = 0; row_groups (4, list of structs) = none
    footer.extend([0x16, 0x00, 0x19, 0x0c, 0x00]);
    let length = (footer.len() as u32).to_le_bytes();
    [b"PAR1", &footer[..], &length, b"PAR1"].concat()
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A Parquet file of `texts` texts, each of so many bytes of one letter, each in a page of its own.
pub fn pages(texts: usize, bytes: usize) -> Vec<u8> {
    let text = "x".repeat(bytes);
    let column: ArrayRef = Arc::new(StringArray::from(vec![text.as_str(); texts]));
    let batch = RecordBatch::try_from_iter([("text", column)]).expect("one column");
    let properties = WriterProperties::builder()
        .set_compression(Codec::ZSTD(ZstdLevel::default()))
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_data_page_row_count_limit(1)
        .set_write_batch_size(1);
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties.build())).expect("a schema");
    writer.write(&batch).expect("memory");
    writer.into_inner().expect("memory")
}

/// Bytes, compressed.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    compressed([bytes])
}

/// `line` again and again, until that is so many bytes, compressed.
pub fn gzip_of(line: &[u8], bytes: usize) -> Vec<u8> {
    let block = line.repeat((1 << 20) / line.len());
    compressed(repeat_n(&block[..], bytes.div_ceil(block.len())))
}

fn compressed<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    for piece in pieces {
        encoder.write_all(piece).expect("memory");
    }
    encoder.finish().expect("memory")
}
