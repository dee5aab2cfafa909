//! Reading a job's parts: the rows of one, and many as one file. Workers write them; columns `id` (string), `embedding`
//! (fixed-size list of 32- or 16-bit floats), `tokens` (unsigned 32-bit) and `truncated` (boolean), none of them null.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float16Type, Float32Type, UInt32Type};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field};
use bytes::Bytes;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, ParquetMetaData};
use parquet::file::properties::WriterProperties;
use parquet::file::reader::ChunkReader;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::ColumnDescriptor;

use crate::read::parquet::{check_part, metadata};

/// In a part's key-value metadata: the model's revision.
pub const REVISION: &str = "vecmill.revision";
/// In a part's key-value metadata: the commit of the model's repository.
pub const COMMIT: &str = "vecmill.commit";
/// In a part's key-value metadata: the precision of the model's products.
pub const PRECISION: &str = "vecmill.precision";
/// In a part's key-value metadata: what computed it, such as `avx512-bf16`.
pub const COMPUTE: &str = "vecmill.compute";
/// In a part's key-value metadata: the number of its chunk.
pub const CHUNK: &str = "vecmill.chunk";

/// What parts of one job may differ in, if their workers do.
const OF_A_WORKER: [&str; 4] = [REVISION, COMMIT, PRECISION, COMPUTE];

/// Most columns of a part: twice as many as there are.
const COLUMNS_MAX: usize = 8;
/// Longest vectors: twice those of the largest model.
const DIMENSIONS_MAX: i32 = 8192;
/// Rows decoded at once: 256 rows of 4,096 floats are 4 MiB.
const DECODE_ROWS: usize = 256;

/// A row of a part: the tenant's id for the text, its vector (16-bit numbers widened), and its tokens.
pub type PartRow = (String, Vec<f32>, u32);

/// Why a part can't be read.
#[derive(Debug, thiserror::Error)]
pub enum PartError {
    /// The file is Parquet, but not a part.
    #[error("not a part: column {column:?} is missing or of another type")]
    Schema {
        /// The first column that is not as it must be.
        column: &'static str,
    },
    /// The file can't be read or written.
    #[error("the Parquet file can't be read or written")]
    Parquet(#[from] ParquetError),
    /// A page can't be decoded.
    #[error("the Parquet file is damaged")]
    Arrow(#[from] arrow_schema::ArrowError),
}

/// The rows of a part in the file's order, some at a time.
pub struct PartRows(ParquetRecordBatchReader);

impl PartRows {
    /// Opens a part. Blocks, as does each step.
    ///
    /// # Errors
    /// When it is not Parquet.
    pub fn open(part: impl ChunkReader + 'static) -> Result<Self, PartError> {
        let metadata = checked(&part)?;
        check_part(&part, &metadata)?;
        let metadata = ArrowReaderMetadata::try_new(Arc::new(metadata), ArrowReaderOptions::new())?;
        let embedding = metadata.schema().field_with_name("embedding").map(Field::data_type);
        // A vector that is null has room for all its numbers.
        if !matches!(embedding, Ok(DataType::FixedSizeList(_, ..=DIMENSIONS_MAX))) {
            return Err(PartError::Schema { column: "embedding" });
        }
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(part, metadata);
        Ok(Self(builder.with_batch_size(DECODE_ROWS).build()?))
    }
}

/// A part's metadata. A worker wrote it; or whoever else has keys to S3.
fn checked(part: &impl ChunkReader) -> Result<ParquetMetaData, PartError> {
    let metadata = metadata(part)?;
    let schema = metadata.file_metadata().schema_descr();
    let odd = |column: &ColumnDescriptor| column.max_rep_level() > 1 || column.path().parts().len() > 3;
    if schema.num_columns() > COLUMNS_MAX || schema.columns().iter().any(|column| odd(column)) {
        return Err(PartError::Schema { column: "id" });
    }
    Ok(metadata)
}

impl Iterator for PartRows {
    type Item = Result<Vec<PartRow>, PartError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.0.next()?.map_err(PartError::from).and_then(|batch| rows(&batch)))
    }
}

/// Every row of a part that lies in memory.
///
/// # Errors
/// When the bytes are not a part.
pub fn decode(part: Bytes) -> Result<Vec<PartRow>, PartError> {
    PartRows::open(part)?.try_fold(Vec::new(), |mut all, rows| {
        all.extend(rows?);
        Ok(all)
    })
}

fn rows(batch: &RecordBatch) -> Result<Vec<PartRow>, PartError> {
    let bad = |column| PartError::Schema { column };
    let ids = batch.column_by_name("id").and_then(|column| column.as_string_opt::<i32>()).ok_or(bad("id"))?;
    let vectors = batch.column_by_name("embedding").and_then(|column| column.as_fixed_size_list_opt());
    let vectors = vectors.ok_or(bad("embedding"))?;
    let tokens = batch.column_by_name("tokens").and_then(|column| column.as_primitive_opt::<UInt32Type>());
    let tokens = tokens.ok_or(bad("tokens"))?;
    let row = |row| {
        let vector = floats(&vectors.value(row)).ok_or(bad("embedding"))?;
        Ok((ids.value(row).to_owned(), vector, tokens.value(row)))
    };
    (0..batch.num_rows()).map(row).collect()
}

/// One vector's numbers, whichever way they are stored.
fn floats(vector: &ArrayRef) -> Option<Vec<f32>> {
    if let Some(numbers) = vector.as_primitive_opt::<Float32Type>() {
        return Some(numbers.values().to_vec());
    }
    let numbers = vector.as_primitive_opt::<Float16Type>()?;
    Some(numbers.values().iter().map(|number| number.to_f32()).collect())
}

/// Many parts of one job as one Parquet file: each part's row groups, byte for byte, one after the other. Nothing is decoded,
/// and of what has been written only the footer's entries are kept. What the file says of itself holds for all parts: where
/// workers of several kinds had a hand in them, it names each kind.
pub struct OneFile<W: Write + Send> {
    out: Option<W>,
    writer: Option<SerializedFileWriter<W>>,
    /// What the parts say of their workers, each value once.
    workers: BTreeMap<&'static str, BTreeSet<String>>,
}

impl<W: Write + Send> OneFile<W> {
    /// An empty file; its schema is that of the first part.
    pub fn new(out: W) -> Self {
        Self { out: Some(out), writer: None, workers: BTreeMap::new() }
    }

    /// Appends a part.
    ///
    /// # Errors
    /// When it is not Parquet, has another schema, or can't be written.
    pub fn append(&mut self, part: &impl ChunkReader) -> Result<(), PartError> {
        let metadata = checked(part)?;
        let file = metadata.file_metadata();
        let said = file.key_value_metadata().map(Vec::as_slice).unwrap_or_default();
        for name in OF_A_WORKER {
            let value = said.iter().find(|entry| entry.key == name).and_then(|entry| entry.value.clone());
            self.workers.entry(name).or_default().extend(value);
        }
        let writer = match (&mut self.writer, self.out.take()) {
            (Some(writer), _) => writer,
            (empty, Some(out)) => {
                // Of no part alone is said what differs between them.
                let of_the_job = said.iter().filter(|entry| entry.key != CHUNK && !OF_A_WORKER.contains(&&*entry.key));
                let properties = WriterProperties::builder()
                    .set_created_by("vecmill".to_owned())
                    .set_key_value_metadata(Some(of_the_job.cloned().collect()))
                    .build();
                let schema = file.schema_descr().root_schema_ptr();
                empty.insert(SerializedFileWriter::new(out, schema, Arc::new(properties))?)
            }
            (None, None) => return Err(ParquetError::General("the file could not be begun".to_owned()).into()),
        };
        if writer.schema_descr().root_schema() != file.schema_descr().root_schema() {
            return Err(ParquetError::General("the parts are not of one schema".to_owned()).into());
        }
        for group in metadata.row_groups() {
            let mut row_group = writer.next_row_group()?;
            for column in group.columns() {
                let close = ColumnCloseResult {
                    bytes_written: column.compressed_size() as u64,
                    rows_written: group.num_rows() as u64,
                    metadata: column.clone(),
                    bloom_filter: None,
                    column_index: None,
                    offset_index: None,
                };
                row_group.append_column(part, close)?;
            }
            row_group.close()?;
        }
        Ok(())
    }

    /// Ends the file; gives whether there was any part.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn finish(self) -> Result<bool, PartError> {
        let Some(mut writer) = self.writer else { return Ok(false) };
        for (name, values) in self.workers.into_iter().filter(|(_, values)| !values.is_empty()) {
            let values = Vec::from_iter(values).join(", ");
            writer.append_key_value_metadata(KeyValue::new(name.to_owned(), values));
        }
        writer.close()?;
        Ok(true)
    }
}
