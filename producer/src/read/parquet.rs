//! Parquet: two columns, a bounded number of rows at a time.

use std::fs::File;

use arrow_array::{Array, ArrayRef, RecordBatch, cast::AsArray, types};
use arrow_schema::{DataType, Schema};
use parquet::arrow::{
    ProjectionMask,
    arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder},
};

use super::{BadRow, ReadError, ReadOptions, Row, Rows, check_row};

/// Rows decoded at once: few enough that long texts stay small in sum, enough to amortize decoding.
const BATCH_ROWS: usize = 256;

const TEXT_TYPES: &str = "text (string, large string, string view, or a dictionary of strings)";
const ID_TYPES: &str = "text or an integer";

/// Rows of the two columns; others are not read.
pub(super) fn rows(file: File, options: &ReadOptions) -> Result<Rows, ReadError> {
    let builder =
        ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| ReadError::Parquet(error.to_string()))?;
    let schema = builder.schema().clone();
    let text = column(&schema, &options.text_field)?;
    check_type(&schema, text, is_text, TEXT_TYPES)?;
    let id = column(&schema, &options.id_field).ok();
    if let Some(id) = id {
        check_type(&schema, id, |found| is_text(found) || found.is_integer(), ID_TYPES)?;
    }
    let mask = ProjectionMask::roots(builder.parquet_schema(), id.into_iter().chain([text]));
    let batches = builder
        .with_projection(mask)
        .with_batch_size(BATCH_ROWS)
        .build()
        .map_err(|error| ReadError::Parquet(error.to_string()))?;
    let rows = ParquetRows { batches, options: options.clone(), has_id: id.is_some(), read: 0, ended: false };
    Ok(Box::new(rows.flatten()))
}

fn column(schema: &Schema, wanted: &str) -> Result<usize, ReadError> {
    schema.index_of(wanted).map_err(|_| {
        let found: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        ReadError::NoColumn { wanted: wanted.to_owned(), found: found.join(", ") }
    })
}

fn check_type(
    schema: &Schema,
    column: usize,
    fits: impl Fn(&DataType) -> bool,
    wanted: &'static str,
) -> Result<(), ReadError> {
    let field = schema.field(column);
    if fits(field.data_type()) {
        return Ok(());
    }
    Err(ReadError::ColumnType { column: field.name().clone(), found: field.data_type().to_string(), wanted })
}

fn is_text(found: &DataType) -> bool {
    match found {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, value) => is_text(value),
        _ => false,
    }
}

struct ParquetRows {
    batches: ParquetRecordBatchReader,
    options: ReadOptions,
    has_id: bool,
    read: u64,
    ended: bool,
}

type BatchRows = Vec<Result<Result<Row, BadRow>, ReadError>>;

impl Iterator for ParquetRows {
    type Item = BatchRows;

    fn next(&mut self) -> Option<BatchRows> {
        if self.ended {
            return None;
        }
        match self.batches.next()? {
            Ok(batch) => Some(self.batch_rows(&batch)),
            Err(error) => {
                self.ended = true;
                Some(vec![Err(ReadError::Parquet(format!("after row {}: {error}", self.read)))])
            }
        }
    }
}

impl ParquetRows {
    fn batch_rows(&mut self, batch: &RecordBatch) -> BatchRows {
        let text = batch.column_by_name(&self.options.text_field);
        let id = if self.has_id { batch.column_by_name(&self.options.id_field) } else { None };
        let first = self.read + 1;
        self.read += batch.num_rows() as u64;
        (0..batch.num_rows())
            .map(|row| {
                let line = first + row as u64;
                let Some(text) = text.and_then(|column| value(column, row)) else {
                    return Ok(Err(BadRow::new(line, "no_text", "the text is null: remove the row")));
                };
                let id = match id {
                    None => None,
                    Some(column) => match value(column, row) {
                        Some(id) => Some(id),
                        None => return Ok(Err(BadRow::new(line, "bad_id", "the id is null: give the row one"))),
                    },
                };
                Ok(check_row(line, id, text, &self.options))
            })
            .collect()
    }
}

/// The value at `row` as text, `None` for null. The columns' types were checked when the file was opened.
fn value(column: &ArrayRef, row: usize) -> Option<String> {
    if column.is_null(row) {
        return None;
    }
    macro_rules! integer {
        ($type:ty) => {
            column.as_primitive::<$type>().value(row).to_string()
        };
    }
    Some(match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().value(row).to_owned(),
        DataType::LargeUtf8 => column.as_string::<i64>().value(row).to_owned(),
        DataType::Utf8View => column.as_string_view().value(row).to_owned(),
        DataType::Dictionary(..) => {
            let dictionary = column.as_any_dictionary();
            let key = dictionary.normalized_keys().get(row).copied()?;
            return value(dictionary.values(), key);
        }
        DataType::Int8 => integer!(types::Int8Type),
        DataType::Int16 => integer!(types::Int16Type),
        DataType::Int32 => integer!(types::Int32Type),
        DataType::Int64 => integer!(types::Int64Type),
        DataType::UInt8 => integer!(types::UInt8Type),
        DataType::UInt16 => integer!(types::UInt16Type),
        DataType::UInt32 => integer!(types::UInt32Type),
        DataType::UInt64 => integer!(types::UInt64Type),
        _ => return None,
    })
}
