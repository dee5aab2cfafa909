//! A chunk's vectors as a Parquet file: the part that lies in the tenant's prefix.
//!
//! Columns: `id` (string), `embedding` (fixed-size list of 32- or 16-bit floats), `tokens` (unsigned 32-bit), `truncated`
//! (boolean: the text's end was cut off); none of them null. The same rows give the same bytes, so a chunk that is computed
//! twice overwrites its part with itself.

use std::io::Write;
use std::sync::Arc;

use arrow_array::{
    ArrayRef, BooleanArray, FixedSizeListArray, Float16Array, Float32Array, RecordBatch, StringArray, UInt32Array,
};
use arrow_schema::{ArrowError, DataType, Field, FieldRef, Schema, SchemaRef};
use half::f16;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use sha2::{Digest, Sha256};
use vecmill_producer::contract::Dtype;
use vecmill_producer::part::{COMMIT, COMPUTE, PRECISION, REVISION};

use crate::engine::ModelInfo;

/// What a file that grows row by row holds back before it writes: readers like large row groups, memory small ones.
const ROW_GROUP_BYTES: usize = 64 << 20;

/// An encoded part.
#[derive(Debug)]
pub struct Part {
    /// The Parquet file.
    pub bytes: Vec<u8>,
    /// Its rows.
    pub rows: u64,
    /// SHA-256 over the stored embeddings' little-endian bytes, in row order. Whoever reads the part with any Parquet
    /// library can compute it again; a digest of the file would depend on how it was written.
    pub vectors_sha256: [u8; 32],
}

/// Why a part can't be written.
#[derive(thiserror::Error, Debug)]
pub enum PartError {
    /// The columns differ in length.
    #[error(
        "{ids} ids, {vectors} vectors, {tokens} token counts and {truncated} marks are not the same number of rows"
    )]
    Rows {
        /// Length of `ids`.
        ids: usize,
        /// Length of `vectors`.
        vectors: usize,
        /// Length of `tokens`.
        tokens: usize,
        /// Length of `truncated`.
        truncated: usize,
    },
    /// A vector has another length than asked for.
    #[error("the vector of row {row} has {found} dimensions, not {expected}")]
    Dimensions {
        /// Its row, from 0.
        row: usize,
        /// Its length.
        found: usize,
        /// The length asked for.
        expected: usize,
    },
    /// A vector holds an infinity or what is not a number, or does once it is rounded to 16 bits. It would spoil a
    /// tenant's index without a word.
    #[error("the vector of row {row} holds a number that is not finite")]
    NotFinite {
        /// Its row, from 0.
        row: usize,
    },
    /// Arrow refused the columns: more dimensions, or bytes of ids, than its 31-bit lengths hold.
    #[error("the columns can't be put together")]
    Arrow(#[from] ArrowError),
    /// The file can't be written.
    #[error("the Parquet file can't be written")]
    Parquet(#[from] ParquetError),
}

/// What a file says of the model that computed it, as key-value metadata.
pub fn metadata(model: &str, info: &ModelInfo, dimensions: usize) -> Vec<(String, String)> {
    let known = [
        ("vecmill.model", Some(model.to_owned())),
        (REVISION, Some(info.revision.clone())),
        (COMMIT, info.commit.clone()),
        (PRECISION, Some(info.precision.to_string())),
        (COMPUTE, Some(info.path.to_string())),
        ("vecmill.dimensions", Some(dimensions.to_string())),
    ];
    known.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// Encodes a chunk's rows. `metadata` goes to the file's key-value metadata, in the order given.
///
/// Takes about 20 ms for 1,000 vectors of 1,024 numbers in 32 bits, 45 ms in 16: too long for a runtime's thread.
///
/// # Errors
/// When the columns don't fit each other or `dimensions`, or a number is not finite.
pub fn encode(
    ids: &[String],
    vectors: &[Vec<f32>],
    tokens: &[u32],
    truncated: &[bool],
    dimensions: usize,
    dtype: Dtype,
    metadata: &[(String, String)],
) -> Result<Part, PartError> {
    let rows = Rows { ids, vectors, tokens, truncated };
    let (schema, element) = schema(dimensions, dtype)?;
    let (batch, vectors_sha256) = batch(&schema, element, rows, dimensions, dtype)?;
    let mut writer = ArrowWriter::try_new(Vec::new(), schema, Some(properties(metadata)))?;
    writer.write(&batch)?;
    Ok(Part { bytes: writer.into_inner()?, rows: ids.len() as u64, vectors_sha256 })
}

/// A file of a part's form, written row by row in flat memory: for vectors of which nobody knows how many will come.
pub struct PartFile<W: Write + Send> {
    writer: ArrowWriter<W>,
    schema: SchemaRef,
    element: FieldRef,
    dimensions: usize,
    dtype: Dtype,
}

impl<W: Write + Send> PartFile<W> {
    /// Begins a file. `metadata` as [`encode`] has it.
    ///
    /// # Errors
    /// When it can't be written, or there are too many dimensions.
    pub fn begin(out: W, dimensions: usize, dtype: Dtype, metadata: &[(String, String)]) -> Result<Self, PartError> {
        let (schema, element) = schema(dimensions, dtype)?;
        let writer = ArrowWriter::try_new(out, Arc::clone(&schema), Some(properties(metadata)))?;
        Ok(Self { writer, schema, element, dimensions, dtype })
    }

    /// Adds rows.
    ///
    /// # Errors
    /// As [`encode`]; the rows are not added then.
    pub fn write(
        &mut self,
        ids: &[String],
        vectors: &[Vec<f32>],
        tokens: &[u32],
        truncated: &[bool],
    ) -> Result<(), PartError> {
        let rows = Rows { ids, vectors, tokens, truncated };
        let (batch, _) = batch(&self.schema, Arc::clone(&self.element), rows, self.dimensions, self.dtype)?;
        self.writer.write(&batch)?;
        if self.writer.in_progress_size() >= ROW_GROUP_BYTES {
            self.writer.flush()?;
        }
        Ok(())
    }

    /// Ends the file. One that is dropped instead can't be read.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn finish(self) -> Result<W, PartError> {
        Ok(self.writer.into_inner()?)
    }
}

/// Rows, column by column.
#[derive(Clone, Copy)]
struct Rows<'a> {
    ids: &'a [String],
    vectors: &'a [Vec<f32>],
    tokens: &'a [u32],
    truncated: &'a [bool],
}

/// The columns of some rows, and the digest of their vectors.
fn batch(
    schema: &SchemaRef,
    element: FieldRef,
    rows: Rows<'_>,
    dimensions: usize,
    dtype: Dtype,
) -> Result<(RecordBatch, [u8; 32]), PartError> {
    let Rows { ids, vectors, tokens, truncated } = rows;
    if [vectors.len(), tokens.len(), truncated.len()] != [ids.len(); 3] {
        let (ids, vectors, tokens, truncated) = (ids.len(), vectors.len(), tokens.len(), truncated.len());
        return Err(PartError::Rows { ids, vectors, tokens, truncated });
    }
    for (row, vector) in vectors.iter().enumerate() {
        if vector.len() != dimensions {
            return Err(PartError::Dimensions { row, found: vector.len(), expected: dimensions });
        }
    }
    let (numbers, vectors_sha256) = match dtype {
        Dtype::F32 => flatten(vectors, |x| x, f32::is_finite, f32::to_le_bytes)
            .map(|(flat, digest)| (Arc::new(Float32Array::from(flat)) as ArrayRef, digest)),
        Dtype::F16 => flatten(vectors, f16::from_f32, f16::is_finite, f16::to_le_bytes)
            .map(|(flat, digest)| (Arc::new(Float16Array::from(flat)) as ArrayRef, digest)),
    }?;

    let embedding = FixedSizeListArray::try_new_with_length(element, width(dimensions)?, numbers, None, ids.len())?;
    let columns: [ArrayRef; 4] = [
        Arc::new(StringArray::from_iter_values(ids)),
        Arc::new(embedding),
        Arc::new(UInt32Array::from_iter_values(tokens.iter().copied())),
        Arc::new(BooleanArray::from(truncated.to_vec())),
    ];
    Ok((RecordBatch::try_new(Arc::clone(schema), columns.into())?, vectors_sha256))
}

/// The vectors' numbers as stored, one after the other, and the digest of their bytes.
fn flatten<N: Copy, const BYTES: usize>(
    vectors: &[Vec<f32>],
    store: impl Fn(f32) -> N,
    is_finite: impl Fn(N) -> bool,
    to_le_bytes: impl Fn(N) -> [u8; BYTES],
) -> Result<(Vec<N>, [u8; 32]), PartError> {
    let dimensions = vectors.first().map_or(0, Vec::len);
    let mut flat = Vec::with_capacity(vectors.len() * dimensions);
    let mut digest = Sha256::new();
    // Hashed a row at a time: four bytes at a time would take longer than the hashing.
    let mut row_bytes = Vec::with_capacity(dimensions * BYTES);
    for (row, vector) in vectors.iter().enumerate() {
        row_bytes.clear();
        for &number in vector {
            let number = store(number);
            if !is_finite(number) {
                return Err(PartError::NotFinite { row });
            }
            flat.push(number);
            row_bytes.extend_from_slice(&to_le_bytes(number));
        }
        digest.update(&row_bytes);
    }
    Ok((flat, digest.finalize().into()))
}

/// Arrow's width of a fixed-size list.
fn width(dimensions: usize) -> Result<i32, ArrowError> {
    i32::try_from(dimensions).map_err(|_| ArrowError::InvalidArgumentError("too many dimensions".to_owned()))
}

/// The file's schema, and the field of a vector's numbers in it.
fn schema(dimensions: usize, dtype: Dtype) -> Result<(SchemaRef, FieldRef), ArrowError> {
    let number = match dtype {
        Dtype::F32 => DataType::Float32,
        Dtype::F16 => DataType::Float16,
    };
    // "element" is the name the Parquet format gives a list's items, and what readers look for.
    let element = Arc::new(Field::new("element", number, false));
    let embedding = DataType::FixedSizeList(Arc::clone(&element), width(dimensions)?);
    let fields = vec![
        Field::new("id", DataType::Utf8, false),
        Field::new("embedding", embedding, false),
        Field::new("tokens", DataType::UInt32, false),
        Field::new("truncated", DataType::Boolean, false),
    ];
    Ok((Arc::new(Schema::new(fields)), element))
}

/// How the columns are written.
fn properties(metadata: &[(String, String)]) -> WriterProperties {
    let embedding = || ColumnPath::from(["embedding", "list", "element"].map(str::to_owned).to_vec());
    let metadata = metadata.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone())).collect();
    WriterProperties::builder()
        // The default names the library's version: an upgrade alone would change every part.
        .set_created_by("vecmill".to_owned())
        .set_key_value_metadata(Some(metadata))
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        // Ids are all different: a dictionary of them is built only to be thrown away.
        .set_column_dictionary_enabled(ColumnPath::from("id"), false)
        // Nor do a vector's numbers repeat, and nobody asks for their least and greatest. Zstd takes 7 % off normalized
        // vectors (32 and 16 bits alike); with split byte streams 16 %, but readers of before 2024 don't know those for
        // 16 bits. Plain pages can be mapped and used as they are.
        .set_column_dictionary_enabled(embedding(), false)
        .set_column_compression(embedding(), Compression::UNCOMPRESSED)
        .set_column_statistics_enabled(embedding(), EnabledStatistics::None)
        .build()
}

#[cfg(test)]
mod tests;
