//! Parquet: the column of texts (or of their token ids) and the id column, a few rows at a time.
//!
//! Columns are read as bytes, below the Arrow layer: that one refuses a whole page for one string that is not UTF-8,
//! and copies the values of a dictionary page once a row. Here a bad string fails its row, values are slices of their
//! page, and memory is that of a page of each of two columns and their dictionaries, whatever the size of row groups: usually 4 MiB, and
//! 128 MiB a page at worst. A file's own word on its sizes is believed by nobody: see `footer`, `header` and `pages`.

mod footer;
mod header;
mod pages;
mod thrift;

use std::{
    borrow::Cow,
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
};

use parquet::{
    basic::{ConvertedType, LogicalType, Type as Physical},
    column::reader::{ColumnReaderImpl, get_column_reader, get_typed_column_reader},
    data_type::{ByteArray, ByteArrayType, DataType, Int32Type, Int64Type},
    errors::{ParquetError, Result as ParquetResult},
    file::metadata::ParquetMetaData,
    schema::types::{ColumnDescriptor, SchemaDescriptor, Type},
};

use self::pages::{Pages, RowValues};
pub(crate) use self::{footer::metadata, pages::check_part};
use super::{
    BadRow, ReadError, ReadOptions, Row,
    budget::{Budget, Spent},
    check::{self, utf8},
    error::names,
    options::{ID_FIELD, INPUT_FIELD, TEXT_FIELD},
};

/// A value of each column; an id that is `None` is null.
type Cells = (Option<ByteArray>, TextCell);

/// A value of the column of texts.
enum TextCell {
    Null,
    Text(ByteArray),
    Tokens(Vec<u32>),
    /// A list with an item that is no token id.
    NotTokens,
}

/// The rows of a Parquet file.
pub(super) struct ParquetRows {
    file: Arc<File>,
    metadata: ParquetMetaData,
    options: ReadOptions,
    budget: Budget,
    text: TextColumn,
    /// `None`: rows are numbered.
    id: Option<Column>,
    next_group: usize,
    group: Option<Group>,
    row: u64,
    ended: bool,
}

/// A column that is read.
#[derive(Clone, Copy)]
struct Column {
    index: usize,
    optional: bool,
    kind: Kind,
}

/// The column of the texts.
#[derive(Clone, Copy)]
enum TextColumn {
    Strings(Column),
    Tokens(ListColumn),
}

/// A column of lists of integers. Its definition levels say, from 0: a null list, an empty one, a null item, an item;
/// without the nulls where the schema has none.
#[derive(Clone, Copy)]
struct ListColumn {
    index: usize,
    kind: Kind,
    may_be_null: bool,
    item_level: i16,
}

/// How its values are kept.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Int32 { signed: bool },
    Int64 { signed: bool },
}

/// The row group that is being read.
struct Group {
    text: TextReader,
    id: Option<CellReader>,
    /// Of each column.
    row_values: [RowValues; 2],
    rows_left: u64,
}

/// The texts of a row group.
enum TextReader {
    Strings { reader: CellReader, optional: bool },
    Tokens { reader: CellReader, column: ListColumn },
}

/// A column of a row group.
enum CellReader {
    Text(ColumnReaderImpl<ByteArrayType>),
    Int32 { reader: ColumnReaderImpl<Int32Type>, signed: bool },
    Int64 { reader: ColumnReaderImpl<Int64Type>, signed: bool },
}

impl ParquetRows {
    /// Reads the file's metadata and finds the columns.
    pub(super) fn open(path: &Path, options: ReadOptions, budget: Budget) -> Result<Self, ReadError> {
        let opening = |error| ReadError::Open { path: path.to_owned(), error };
        let file = File::open(path).map_err(opening)?;
        // It is read here and there, so all of it counts from the first.
        budget.take(file.metadata().map_err(opening)?.len())?;
        let metadata = guarded(|| metadata(&file)).map_err(|error| ReadError::NotParquet(told(&error)))?;
        let schema = metadata.file_metadata().schema_descr();
        let text = match find_text(schema, &options.text_field) {
            // Only in place of the default: a name that somebody asked for has no stand-in.
            Err(missing @ ReadError::NoColumn { .. }) if options.text_field == TEXT_FIELD => {
                find_text(schema, INPUT_FIELD).map_err(|error| match error {
                    ReadError::NoColumn { .. } => missing,
                    other => other,
                })?
            }
            found => found?,
        };
        let id_types = [Physical::BYTE_ARRAY, Physical::INT32, Physical::INT64];
        let id = match find(schema, &options.id_field, &id_types, "a string or an integer") {
            Err(ReadError::NoColumn { .. }) if options.id_field == ID_FIELD => None,
            found => Some(found?),
        };
        Ok(Self {
            file: Arc::new(file),
            metadata,
            options,
            budget,
            text,
            id,
            next_group: 0,
            group: None,
            row: 0,
            ended: false,
        })
    }

    /// The next row; `None` at the end.
    fn read_row(&mut self) -> ParquetResult<Option<Cells>> {
        loop {
            // A row group without rows is work as well.
            self.budget.rows(1)?;
            let Some(group) = &mut self.group else {
                if self.next_group == self.metadata.num_row_groups() {
                    return Ok(None);
                }
                self.group = Some(self.open_group(self.next_group)?);
                self.next_group += 1;
                continue;
            };
            if group.rows_left == 0 {
                self.group = None;
                continue;
            }
            group.row_values.iter().for_each(RowValues::begin);
            let text = group.text.read()?;
            let id = match (&mut group.id, self.id) {
                (Some(reader), Some(column)) => reader.read(column.optional)?,
                _ => Some(None),
            };
            let (Some(text), Some(id)) = (text, id) else {
                return Err(ParquetError::EOF("a column has fewer values than its row group has rows".to_owned()));
            };
            group.rows_left -= 1;
            return Ok(Some((id, text)));
        }
    }

    fn open_group(&self, group: usize) -> ParquetResult<Group> {
        let rows = self.metadata.row_group(group).num_rows();
        let rows_left = u64::try_from(rows).map_err(|_| ParquetError::General(format!("{rows} rows")))?;
        let row_values: [RowValues; 2] = Default::default();
        let open = |index, kind| self.open_column(group, index, kind, &row_values[0]);
        let text = match self.text {
            TextColumn::Strings(Column { index, optional, kind }) => {
                TextReader::Strings { reader: open(index, kind)?, optional }
            }
            TextColumn::Tokens(column) => TextReader::Tokens { reader: open(column.index, column.kind)?, column },
        };
        let id =
            self.id.map(|column| self.open_column(group, column.index, column.kind, &row_values[1])).transpose()?;
        Ok(Group { text, id, row_values, rows_left })
    }

    fn open_column(&self, group: usize, index: usize, kind: Kind, row: &RowValues) -> ParquetResult<CellReader> {
        let chunk = self.metadata.row_group(group).column(index);
        let pages = Pages::new(self.file.clone(), chunk, self.budget.clone(), row.clone())?;
        let reader = get_column_reader(chunk.column_descr_ptr(), Box::new(pages));
        Ok(match kind {
            Kind::Text => CellReader::Text(get_typed_column_reader(reader)),
            Kind::Int32 { signed } => CellReader::Int32 { reader: get_typed_column_reader(reader), signed },
            Kind::Int64 { signed } => CellReader::Int64 { reader: get_typed_column_reader(reader), signed },
        })
    }

    fn row(&self, (id, text): Cells) -> Result<Row, BadRow> {
        let null =
            |code, what: &str| BadRow::new(self.row, code, format!("the {what} is null: fill it or drop the row"));
        let id_bytes;
        let id = match self.id {
            None => Cow::Owned(self.row.to_string()),
            Some(_) => {
                id_bytes = id.ok_or_else(|| null("bad_id", "id"))?;
                Cow::Borrowed(utf8(self.row, "id", id_bytes.data())?)
            }
        };
        match text {
            TextCell::Null => Err(null("no_text", "text")),
            TextCell::Text(text) => {
                check::row(self.row, id, Cow::Borrowed(utf8(self.row, "text", text.data())?), &self.options)
            }
            TextCell::Tokens(tokens) => check::token_row(self.row, id, tokens, &self.options),
            TextCell::NotTokens => Err(check::not_token_ids(self.row, "the text")),
        }
    }
}

impl Iterator for ParquetRows {
    type Item = Result<Result<Row, BadRow>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let row = match guarded(|| self.read_row()) {
            Ok(Some(cells)) => {
                self.row += 1;
                // Few decoded bytes can be the text of many rows.
                match self.budget.text(bytes_of(&cells)) {
                    Ok(()) => return Some(Ok(self.row(cells))),
                    Err(spent) => Some(Err(spent.into())),
                }
            }
            Ok(None) => None,
            Err(error) => Some(Err(match spent(&error) {
                Some(spent) => spent.into(),
                None => ReadError::Parquet { row: self.row, reason: told(&error) },
            })),
        };
        self.ended = true;
        row
    }
}

/// Bytes that a row hands out.
fn bytes_of((id, text): &Cells) -> u64 {
    let text = match text {
        TextCell::Text(text) => text.len(),
        TextCell::Tokens(tokens) => 4 * tokens.len(),
        TextCell::Null | TextCell::NotTokens => 0,
    };
    (text + id.as_ref().map_or(0, ByteArray::len)) as u64
}

impl TextReader {
    /// The next one; `None` at the end.
    fn read(&mut self) -> ParquetResult<Option<TextCell>> {
        match self {
            Self::Strings { reader, optional } => {
                Ok(reader.read(*optional)?.map(|text| text.map_or(TextCell::Null, TextCell::Text)))
            }
            Self::Tokens { reader, column } => match reader {
                CellReader::Int32 { reader, signed: true } => list(reader, *column, |id| id.try_into().ok()),
                CellReader::Int32 { reader, signed: false } => list(reader, *column, |id| Some(id.cast_unsigned())),
                CellReader::Int64 { reader, signed: true } => list(reader, *column, |id| id.try_into().ok()),
                CellReader::Int64 { reader, signed: false } => {
                    list(reader, *column, |id| id.cast_unsigned().try_into().ok())
                }
                CellReader::Text(_) => Err(ParquetError::General("a list of strings".to_owned())),
            },
        }
    }
}

impl CellReader {
    /// The next one, which may be null; `None` at the end.
    fn read(&mut self, optional: bool) -> ParquetResult<Option<Option<ByteArray>>> {
        match self {
            Self::Text(reader) => cell(reader, optional, |text| text),
            Self::Int32 { reader, signed: true } => cell(reader, optional, decimal),
            Self::Int32 { reader, signed: false } => cell(reader, optional, |id| decimal(id.cast_unsigned())),
            Self::Int64 { reader, signed: true } => cell(reader, optional, decimal),
            Self::Int64 { reader, signed: false } => cell(reader, optional, |id| decimal(id.cast_unsigned())),
        }
    }
}

fn decimal(id: impl ToString) -> ByteArray {
    ByteArray::from(id.to_string().into_bytes())
}

/// The next value of a column, which may be null; `None` at its end.
fn cell<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    optional: bool,
    to_bytes: impl Fn(T::T) -> ByteArray,
) -> ParquetResult<Option<Option<ByteArray>>> {
    let (mut levels, mut values) = (Vec::new(), Vec::new());
    let (rows, ..) = reader.read_records(1, optional.then_some(&mut levels), None, &mut values)?;
    Ok((rows == 1).then(|| values.pop().map(to_bytes)))
}

/// The next list of a column; `None` at its end.
fn list<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    column: ListColumn,
    to_token: impl Fn(T::T) -> Option<u32>,
) -> ParquetResult<Option<TextCell>> {
    let (mut defined, mut repeated, mut values) = (Vec::new(), Vec::new(), Vec::new());
    reader.read_records(1, Some(&mut defined), Some(&mut repeated), &mut values)?;
    if repeated.iter().skip(1).any(|level| *level == 0) || repeated.first().is_some_and(|level| *level > 0) {
        return Err(ParquetError::General("a list begins in the middle of another".to_owned()));
    }
    let Some(first) = defined.first() else { return Ok(None) };
    if column.may_be_null && *first == 0 {
        return Ok(Some(TextCell::Null));
    }
    if defined.iter().any(|level| column.is_null_item(*level)) {
        return Ok(Some(TextCell::NotTokens));
    }
    let tokens: Option<Vec<u32>> = values.into_iter().map(to_token).collect();
    Ok(Some(tokens.map_or(TextCell::NotTokens, TextCell::Tokens)))
}

impl ListColumn {
    /// Whether this definition level stands for a null within a list, not for a list without items.
    fn is_null_item(self, defined: i16) -> bool {
        let empty_level = i16::from(self.may_be_null);
        defined > empty_level && defined < self.item_level
    }
}

/// The column of texts: strings, or lists of token ids.
fn find_text(schema: &SchemaDescriptor, name: &str) -> Result<TextColumn, ReadError> {
    const WANTED: &str = "a string or a list of integers";
    let mut leaves = schema.columns().iter().enumerate();
    let mut of_name = leaves.by_ref().filter(|(_, leaf)| leaf.path().parts().first().is_some_and(|top| top == name));
    // A list has one leaf, below a group of its own; what has more is a struct or a map.
    if let (Some((index, leaf)), None) = (of_name.next(), of_name.next())
        && (2..=3).contains(&leaf.path().parts().len())
        && leaf.max_rep_level() == 1
        && let Some(kind @ (Kind::Int32 { .. } | Kind::Int64 { .. })) = kind(leaf)
        && let Some(top) = schema.root_schema().get_fields().iter().find(|field| field.name() == name)
        && is_list(top)
        && schema.root_schema().get_fields().iter().filter(|field| field.name() == name).count() == 1
    {
        let column = ListColumn { index, kind, may_be_null: top.is_optional(), item_level: leaf.max_def_level() };
        return Ok(TextColumn::Tokens(column));
    }
    find(schema, name, &[Physical::BYTE_ARRAY], WANTED).map(TextColumn::Strings)
}

fn is_list(field: &Type) -> bool {
    let info = field.get_basic_info();
    info.converted_type() == ConvertedType::LIST || info.logical_type_ref() == Some(&LogicalType::List)
}

/// A column of the schema's top level.
fn find(schema: &SchemaDescriptor, name: &str, types: &[Physical], wanted: &'static str) -> Result<Column, ReadError> {
    let fields = schema.root_schema().get_fields();
    let wrong = |found| ReadError::ColumnType { column: name.to_owned(), found, wanted };
    match fields.iter().filter(|field| field.name() == name).count() {
        0 => {
            let found = names(fields.iter().map(|field| field.name()));
            return Err(ReadError::NoColumn { wanted: name.to_owned(), found });
        }
        1 => {}
        _ => return Err(ReadError::DuplicateColumn(name.to_owned())),
    }
    let mut leaves = schema.columns().iter().enumerate();
    let top = leaves.find(|(_, leaf)| matches!(leaf.path().parts(), [only] if only == name));
    let Some((index, leaf)) = top else { return Err(wrong("nested".to_owned())) };
    if leaf.max_rep_level() > 0 {
        return Err(wrong("a list".to_owned()));
    }
    match kind(leaf).filter(|_| types.contains(&leaf.physical_type())) {
        Some(kind) => Ok(Column { index, optional: leaf.max_def_level() > 0, kind }),
        None => Err(wrong(describe(leaf))),
    }
}

fn kind(leaf: &ColumnDescriptor) -> Option<Kind> {
    use ConvertedType::*;
    let integer = match (leaf.logical_type_ref(), leaf.converted_type()) {
        (Some(LogicalType::Integer(integer)), _) => Some(integer.is_signed),
        (None, NONE | INT_8 | INT_16 | INT_32 | INT_64) => Some(true),
        (None, UINT_8 | UINT_16 | UINT_32 | UINT_64) => Some(false),
        _ => None,
    };
    let text = matches!(
        (leaf.logical_type_ref(), leaf.converted_type()),
        (Some(LogicalType::String | LogicalType::Enum | LogicalType::Json), _) | (None, UTF8 | ENUM | JSON)
    );
    match leaf.physical_type() {
        Physical::BYTE_ARRAY if text => Some(Kind::Text),
        Physical::INT32 => integer.map(|signed| Kind::Int32 { signed }),
        Physical::INT64 => integer.map(|signed| Kind::Int64 { signed }),
        _ => None,
    }
}

fn describe(leaf: &ColumnDescriptor) -> String {
    let physical = leaf.physical_type();
    match (leaf.logical_type_ref(), leaf.converted_type()) {
        (Some(logical), _) => format!("{physical} ({logical:?})"),
        (None, ConvertedType::NONE) => physical.to_string(),
        (None, converted) => format!("{physical} ({converted})"),
    }
}

/// Runs the decoder. A damaged or hostile file may make it panic; that is an error of the file. What was being read
/// is not touched again afterwards.
fn guarded<T>(decode: impl FnOnce() -> ParquetResult<T>) -> ParquetResult<T> {
    catch_unwind(AssertUnwindSafe(decode))
        .unwrap_or_else(|_| Err(ParquetError::General("the decoder stopped at it".to_owned())))
}

impl From<Spent> for ParquetError {
    fn from(spent: Spent) -> Self {
        Self::External(Box::new(spent))
    }
}

/// The budget that ran out, if that is what the error is.
fn spent(error: &ParquetError) -> Option<Spent> {
    match error {
        ParquetError::External(inner) => inner.downcast_ref().copied(),
        _ => None,
    }
}

/// What is wrong, without the crate's own heading.
fn told(error: &ParquetError) -> String {
    match error {
        ParquetError::General(reason) => reason.clone(),
        error => error.to_string(),
    }
}
