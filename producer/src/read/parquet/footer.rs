//! A Parquet file's metadata, looked through before the `parquet` crate reads it.
//!
//! That one goes down a level of the stack for each level of the schema, which no guard catches when it overflows, reserves
//! what the file says it has, and takes a known field for what it should be, whatever the file says it is. So the bytes are
//! first walked here, with each known field held to its type: both then see the same, within the bounds below.

use parquet::{
    errors::ParquetError,
    file::{
        metadata::{ParquetMetaData, ParquetMetaDataOptions, ParquetMetaDataReader, ParquetStatisticsPolicy},
        reader::ChunkReader,
    },
};

use super::thrift::{Kind, Refusal, Thrift, refused};

/// Most bytes of the metadata: a thousand row groups of a hundred columns have less, and what is made of them is a few times as
/// large.
const FOOTER_BYTES_MAX: u32 = 16 << 20;
/// Most columns and groups of columns: more than any table of texts has.
const SCHEMA_ELEMENTS_MAX: usize = 16 << 10;
/// Deepest nesting of columns. The crate takes stack for each level: a thousand pass on a blocking thread, five thousand do not.
const SCHEMA_DEPTH_MAX: usize = 64;
/// Most bytes of the paths of all columns. Each column has a copy of the names above it.
const PATHS_BYTES_MAX: usize = 16 << 20;
/// Most row groups times columns. The crate keeps some 500 bytes of each: 64 MiB.
const COLUMN_CHUNKS_MAX: usize = 128 << 10;
/// Most row groups: 100 million rows in groups of 2,000.
const ROW_GROUPS_MAX: usize = 50_000;
/// Most pairs of key and value; writers have a handful.
const KEY_VALUES_MAX: usize = 4096;

/// Bytes after the metadata: its length and the magic.
const TAIL_BYTES: u64 = 8;

/// What a field is.
enum Type {
    Is(Kind),
    ListOf(&'static Type),
    Struct(Fields),
}

/// The fields that the crate reads of a struct, in version 60; a later one may read more. It passes over all others, as the walk does.
type Fields = &'static [(i16, Type)];

const BOOL: Type = Type::Is(Kind::Bool);
const I8: Type = Type::Is(Kind::I8);
const I16: Type = Type::Is(Kind::I16);
const I32: Type = Type::Is(Kind::I32);
const I64: Type = Type::Is(Kind::I64);
const DOUBLE: Type = Type::Is(Kind::Double);
const BINARY: Type = Type::Is(Kind::Binary);
const EMPTY: Type = Type::Struct(&[]);

const TIME: Type = Type::Struct(&[(1, BOOL), (2, Type::Struct(&[(1, EMPTY), (2, EMPTY), (3, EMPTY)]))]);
const LOGICAL_TYPE: Type = Type::Struct(&[
    (1, EMPTY),
    (2, EMPTY),
    (3, EMPTY),
    (4, EMPTY),
    (5, Type::Struct(&[(1, I32), (2, I32)])),
    (6, EMPTY),
    (7, TIME),
    (8, TIME),
    (10, Type::Struct(&[(1, I8), (2, BOOL)])),
    (11, EMPTY),
    (12, EMPTY),
    (13, EMPTY),
    (14, EMPTY),
    (15, EMPTY),
    (16, Type::Struct(&[(1, I8)])),
    (17, Type::Struct(&[(1, BINARY)])),
    (18, Type::Struct(&[(1, BINARY), (2, I32)])),
    (19, EMPTY),
]);
const SCHEMA_ELEMENT: Fields = &[
    (1, I32),
    (2, I32),
    (3, I32),
    (NAME, BINARY),
    (CHILDREN, I32),
    (6, I32),
    (7, I32),
    (8, I32),
    (9, I32),
    (10, LOGICAL_TYPE),
];
const NAME: i16 = 4;
const CHILDREN: i16 = 5;
// Statistics (12, 13, 16) are passed over by the crate too: it is told to.
const COLUMN: Type = Type::Struct(&[
    (1, I32),
    (2, Type::ListOf(&I32)),
    (4, I32),
    (5, I64),
    (6, I64),
    (7, I64),
    (9, I64),
    (10, I64),
    (11, I64),
    (14, I64),
    (15, I32),
    (
        17,
        Type::Struct(&[
            (
                1,
                Type::Struct(&[
                    (1, DOUBLE),
                    (2, DOUBLE),
                    (3, DOUBLE),
                    (4, DOUBLE),
                    (5, DOUBLE),
                    (6, DOUBLE),
                    (7, DOUBLE),
                    (8, DOUBLE),
                ]),
            ),
            (2, Type::ListOf(&I32)),
        ]),
    ),
]);
const COLUMN_CHUNK: Type = Type::Struct(&[(1, BINARY), (2, I64), (3, COLUMN), (4, I64), (5, I32), (6, I64), (7, I32)]);
const ROW_GROUP: Fields = &[
    (COLUMNS, Type::ListOf(&COLUMN_CHUNK)),
    (2, I64),
    (3, I64),
    (4, Type::ListOf(&Type::Struct(&[(1, I32), (2, BOOL), (3, BOOL)]))),
    (5, I64),
    (6, I64),
    (7, I16),
];
const COLUMNS: i16 = 1;
const FILE: Fields = &[
    (1, I32),
    (SCHEMA, Type::ListOf(&Type::Struct(SCHEMA_ELEMENT))),
    (3, I64),
    (ROW_GROUPS, Type::ListOf(&Type::Struct(ROW_GROUP))),
    (KEY_VALUES, Type::ListOf(&Type::Struct(&[(1, BINARY), (2, BINARY)]))),
    (6, BINARY),
    (COLUMN_ORDERS, Type::ListOf(&Type::Struct(&[(1, EMPTY), (2, EMPTY), (3, EMPTY)]))),
];
const SCHEMA: i16 = 2;
const ROW_GROUPS: i16 = 4;
const KEY_VALUES: i16 = 5;
const COLUMN_ORDERS: i16 = 7;

/// Reads the metadata of a file that anybody may have written.
pub(crate) fn metadata(file: &impl ChunkReader) -> Result<ParquetMetaData, ParquetError> {
    let tail_at = file.len().checked_sub(TAIL_BYTES).ok_or_else(|| refused("it is too short"))?;
    let tail = file.get_bytes(tail_at, TAIL_BYTES as usize)?;
    let (length, magic) = match tail.first_chunk::<4>() {
        Some(length) => (u32::from_le_bytes(*length), &tail[4..]),
        None => return Err(refused("it is cut off")),
    };
    match magic {
        b"PAR1" => {}
        b"PARE" => return Err(refused("it is encrypted: decrypt it first")),
        _ => return Err(refused("it does not end as a Parquet file does: is it cut off?")),
    }
    if length > FOOTER_BYTES_MAX {
        return Err(ParquetError::General(format!(
            "its metadata has {length} bytes and may have {FOOTER_BYTES_MAX}: write it with larger row groups, or fewer columns"
        )));
    }
    let at = tail_at.checked_sub(length.into()).ok_or_else(|| refused("its metadata is cut off"))?;
    let footer = file.get_bytes(at, length as usize)?;
    check(&footer).map_err(refused)?;
    let options = ParquetMetaDataOptions::new()
        .with_column_stats_policy(ParquetStatisticsPolicy::SkipAll)
        .with_encoding_stats_policy(ParquetStatisticsPolicy::SkipAll)
        .with_size_stats_policy(ParquetStatisticsPolicy::SkipAll);
    ParquetMetaDataReader::decode_metadata_with_options(&footer, Some(&options))
}

/// Walks the metadata and holds it to the bounds.
pub(super) fn check(footer: &[u8]) -> Result<(), Refusal> {
    let mut columns = 0;
    fields(&mut Thrift::new(footer), FILE, &mut |thrift, id| {
        match id {
            SCHEMA => {
                columns = schema(thrift)?;
                return Ok(true);
            }
            ROW_GROUPS => {
                // A copy: the list is walked as any is.
                let (_, groups) = thrift.ahead().list()?;
                if groups > ROW_GROUPS_MAX || groups.saturating_mul(columns) > COLUMN_CHUNKS_MAX {
                    return Err(
                        "it has too many row groups and columns: write it with larger row groups, or fewer columns",
                    );
                }
            }
            KEY_VALUES if thrift.ahead().list()?.1 > KEY_VALUES_MAX => {
                return Err("its metadata has too many keys and values");
            }
            COLUMN_ORDERS if thrift.ahead().list()?.1 > SCHEMA_ELEMENTS_MAX => {
                return Err("its metadata orders more columns than there may be");
            }
            _ => {}
        }
        Ok(false)
    })
}

/// Walks the list of columns and groups of columns, each of which says how many of those that follow are its own. Gives the number of
/// columns.
fn schema(thrift: &mut Thrift<'_>) -> Result<usize, Refusal> {
    let (kind, elements) = thrift.list()?;
    if kind != Kind::Struct {
        return Err("its schema is not one");
    }
    if elements > SCHEMA_ELEMENTS_MAX {
        return Err("it has too many columns: leave out those that are not needed");
    }
    // Of each group around the current element: children to come, and bytes of the path to it.
    let mut around: Vec<(usize, usize)> = Vec::new();
    let (mut columns, mut paths_bytes) = (0, 0);
    for element in 0..elements {
        let (mut name_bytes, mut children) = (0, 0);
        fields(thrift, SCHEMA_ELEMENT, &mut |thrift, id| {
            match id {
                NAME => name_bytes = thrift.ahead().binary()?.len(),
                CHILDREN => children = thrift.ahead().i32()?,
                _ => {}
            }
            Ok(false)
        })?;
        let children = usize::try_from(children).map_err(|_| "its schema is not one")?;
        let path_bytes = match around.last_mut() {
            Some((to_come, path_bytes)) => {
                *to_come -= 1;
                *path_bytes + name_bytes
            }
            None if element == 0 => 0,
            None => return Err("its schema has several roots"),
        };
        if children > elements - element - 1 {
            return Err("its schema has fewer columns than it says");
        }
        if children > 0 {
            if around.len() == SCHEMA_DEPTH_MAX {
                return Err("its columns are nested too deep: flatten them");
            }
            around.push((children, path_bytes));
        } else {
            columns += 1;
            paths_bytes += path_bytes;
            if paths_bytes > PATHS_BYTES_MAX {
                return Err("the names of its columns are too long");
            }
            while around.pop_if(|(to_come, _)| *to_come == 0).is_some() {}
        }
    }
    Ok(columns)
}

/// Walks a struct, each known field of which is held to its type. `at` is told of each before its value, and says whether it has read
/// that.
fn fields<'a>(
    thrift: &mut Thrift<'a>,
    known: Fields,
    at: &mut dyn FnMut(&mut Thrift<'a>, i16) -> Result<bool, Refusal>,
) -> Result<(), Refusal> {
    let mut seen = 0_u32;
    thrift.fields(|thrift, id, kind, _| {
        let Some((_, expected)) = known.iter().find(|(known, _)| *known == id) else { return Ok(false) };
        if kind != expected.kind() {
            return Err("a field of its metadata has another type than it must have");
        }
        // Known fields have small numbers. Given twice, lists would be appended to one another.
        if seen & 1 << id != 0 {
            return Err("a field of its metadata is given twice");
        }
        seen |= 1 << id;
        if !at(thrift, id)? {
            value(thrift, expected)?;
        }
        Ok(true)
    })
}

fn value(thrift: &mut Thrift<'_>, expected: &Type) -> Result<(), Refusal> {
    match expected {
        Type::Is(kind) => thrift.skip(*kind),
        Type::Struct(known) => fields(thrift, known, &mut |_, _| Ok(false)),
        Type::ListOf(item) => {
            thrift.enter()?;
            let (kind, items) = thrift.list()?;
            // Some writers give an empty list no type.
            if items > 0 && kind != item.kind() {
                return Err("a list of its metadata has items of another type than it must have");
            }
            for _ in 0..items {
                value(thrift, item)?;
            }
            thrift.leave();
            Ok(())
        }
    }
}

impl Type {
    fn kind(&self) -> Kind {
        match self {
            Self::Is(kind) => *kind,
            Self::ListOf(_) => Kind::List,
            Self::Struct(_) => Kind::Struct,
        }
    }
}
