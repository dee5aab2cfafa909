//! Files that are small where they come in and large where they are read.

use std::{io::Write, sync::Arc};

use arrow_array::{ArrayRef, RecordBatch, StringArray};
use flate2::{Compression, write::GzEncoder};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression as Codec, ZstdLevel},
    file::properties::WriterProperties,
};

/// A Parquet file whose schema is `depth` groups, each in the one before: the footer by hand, in Thrift's compact protocol.
pub(crate) fn deep_schema(depth: usize) -> Vec<u8> {
    let mut footer = vec![
        // FileMetaData: version (1, i32) = 1
        0x15, 0x02, // schema (2, list of structs), its length as a varint below
        0x19, 0xfc,
    ];
    varint(&mut footer, depth as u64 + 1);
    for level in 0..=depth {
        let leaf = level == depth;
        if leaf {
            // SchemaElement: type (1, i32) = BYTE_ARRAY
            footer.extend([0x15, 0x0c]);
        }
        // repetition_type (3) = REQUIRED; name (4) = "a"; num_children (5) = 1
        footer.extend(if leaf { [0x25, 0x00] } else { [0x35, 0x00] });
        footer.extend([0x18, 0x01, b'a']);
        if !leaf {
            footer.extend([0x15, 0x02]);
        }
        footer.push(0);
    }
    // num_rows (3, i64) = 0; row_groups (4, list of structs) = none
    footer.extend([0x16, 0x00, 0x19, 0x0c, 0x00]);
    let mut file = b"PAR1".to_vec();
    file.extend(&footer);
    file.extend((footer.len() as u32).to_le_bytes());
    file.extend(b"PAR1");
    file
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A Parquet file of `texts` texts, each of so many bytes of one letter, each in a page of its own.
pub(crate) fn pages(texts: usize, bytes: usize) -> anyhow::Result<Vec<u8>> {
    let column: ArrayRef = Arc::new(StringArray::from(vec!["x".repeat(bytes); texts]));
    let batch = RecordBatch::try_from_iter([("text", column)])?;
    let properties = WriterProperties::builder()
        .set_compression(Codec::ZSTD(ZstdLevel::try_new(3)?))
        .set_dictionary_enabled(false)
        .set_data_page_row_count_limit(1)
        .set_write_batch_size(1)
        .build();
    let mut file = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut file, batch.schema(), Some(properties))?;
    writer.write(&batch)?;
    writer.close()?;
    Ok(file)
}

/// `line` again and again, until that is so many bytes, compressed.
pub(crate) fn gzip_of(line: &[u8], bytes: usize) -> anyhow::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    let block = line.repeat((1 << 20) / line.len());
    for _ in 0..bytes.div_ceil(block.len()) {
        encoder.write_all(&block)?;
    }
    Ok(encoder.finish()?)
}
