use std::sync::Arc;

use ::parquet::{
    arrow::ArrowWriter,
    basic::Compression,
    data_type::{ByteArray, ByteArrayType},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};
use arrow_array::{
    Array, ArrayRef, ArrowPrimitiveType, BinaryArray, DictionaryArray, Int32Array, Int64Array, LargeStringArray,
    ListArray, RecordBatch, StringArray, StringViewArray, StructArray, TimestampMillisecondArray, UInt8Array,
    UInt64Array,
    types::{Float32Type, Int32Type, Int64Type, UInt32Type},
};

use super::*;

fn parquet(columns: Vec<(&str, ArrayRef)>) -> NamedTempFile {
    let columns = columns.into_iter().map(|(name, column)| (name, column, true));
    let batch = RecordBatch::try_from_iter_with_nullable(columns).expect("columns");
    let out = NamedTempFile::new().expect("a file");
    // Small groups and pages, so that reading crosses their borders.
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(100))
        .set_data_page_row_count_limit(7)
        .set_write_batch_size(5)
        .set_compression(Compression::SNAPPY)
        .build();
    let file = out.reopen().expect("a file");
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).expect("a writer");
    writer.write(&batch).expect("a batch");
    writer.close().expect("a footer");
    out
}

fn strings(values: &[Option<&str>]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

#[test]
fn nulls_and_empties_are_bad_rows() {
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![Some(10), None, Some(12), Some(13), Some(-14)]));
    let texts = strings(&[Some("one"), Some("two"), None, Some(" "), Some("five")]);
    let file = parquet(vec![("id", ids), ("more", texts.clone()), ("text", texts)]);
    let (good, bad) = sort(open(file.path(), InputFormat::Parquet, &options()).expect("Parquet"));
    assert_eq!(good, [row(1, "10", "one"), row(5, "-14", "five")]);
    assert_eq!(codes(&bad), [(2, "bad_id"), (3, "no_text"), (4, "empty_text")]);
}

#[test]
fn every_type_of_text_and_id() {
    let dictionary: DictionaryArray<Int32Type> = vec!["one", "two"].into_iter().collect();
    let texts: [ArrayRef; 4] = [
        strings(&[Some("one"), Some("two")]),
        Arc::new(LargeStringArray::from(vec!["one", "two"])),
        Arc::new(StringViewArray::from(vec!["one", "two"])),
        Arc::new(dictionary),
    ];
    let ids: [(ArrayRef, [&str; 2]); 5] = [
        (strings(&[Some("a"), Some("b")]), ["a", "b"]),
        (Arc::new(Int32Array::from(vec![-1, 2])), ["-1", "2"]),
        (Arc::new(UInt8Array::from(vec![1, 255])), ["1", "255"]),
        (Arc::new(Int64Array::from(vec![i64::MIN, 2])), ["-9223372036854775808", "2"]),
        (Arc::new(UInt64Array::from(vec![u64::MAX, 2])), ["18446744073709551615", "2"]),
    ];
    for text in &texts {
        for (id, shown) in &ids {
            let file = parquet(vec![("text", text.clone()), ("id", id.clone())]);
            let (good, bad) = sort(open(file.path(), InputFormat::Parquet, &options()).expect("Parquet"));
            assert_eq!((good, bad), (vec![row(1, shown[0], "one"), row(2, shown[1], "two")], vec![]));
        }
    }
}

#[test]
fn a_text_may_be_its_token_ids() {
    type Refused = Vec<(u64, &'static str)>;
    fn lists<T: ArrowPrimitiveType>(items: &[Option<Vec<Option<T::Native>>>]) -> ListArray {
        ListArray::from_iter_primitive::<T, _, _>(items.to_vec())
    }
    let ints =
        [Some(vec![Some(1), Some(151_643)]), None, Some(vec![]), Some(vec![Some(2), None]), Some(vec![Some(-1)])];
    let longs: Vec<_> =
        [Some(vec![Some(7), Some(4_294_967_295)]), Some(vec![Some(4_294_967_296)])].into_iter().collect();
    let columns: [(ArrayRef, Vec<Row>, Refused); 3] = [
        (
            Arc::new(lists::<Int32Type>(&ints)),
            vec![token_row(1, "1", &[1, 151_643])],
            vec![(2, "no_text"), (3, "empty_text"), (4, "bad_tokens"), (5, "bad_tokens")],
        ),
        (Arc::new(lists::<Int64Type>(&longs)), vec![token_row(1, "1", &[7, u32::MAX])], vec![(2, "bad_tokens")]),
        (
            Arc::new(lists::<UInt32Type>(&[Some(vec![Some(u32::MAX)]), Some(vec![Some(5), Some(6), Some(7)])])),
            vec![token_row(1, "1", &[u32::MAX]), token_row(2, "2", &[5, 6, 7])],
            vec![],
        ),
    ];
    for (column, expected, refused) in columns {
        for name in ["input", "text"] {
            let file = parquet(vec![(name, column.clone())]);
            let (good, bad) = sort(open(file.path(), InputFormat::Parquet, &options()).expect("Parquet"));
            assert_eq!((&good, codes(&bad)), (&expected, refused.clone()), "{name}");
        }
    }
    // Across batches and row groups.
    let many: Vec<_> = (0..1_000_u32).map(|row| Some((0..row % 7).map(Some).collect())).collect();
    let file = parquet(vec![("input", Arc::new(lists::<UInt32Type>(&many)) as ArrayRef)]);
    let (good, bad) = sort(open(file.path(), InputFormat::Parquet, &options()).expect("Parquet"));
    assert_eq!(bad.len(), many.iter().flatten().filter(|list| list.is_empty()).count());
    for row in good {
        let expected: Vec<u32> = (0..(row.line as u32 - 1) % 7).collect();
        assert_eq!(row.input, RowInput::Tokens(expected), "row {}", row.line);
    }
    // A name that was asked for has no stand-in.
    let asked = ReadOptions { text_field: "body".to_owned(), ..options() };
    let error = open(file.path(), InputFormat::Parquet, &asked).err();
    assert!(matches!(error, Some(ReadError::NoColumn { .. })), "{error:?}");
}

#[test]
fn row_groups_and_pages_are_crossed() {
    let texts: Vec<Option<String>> = (1..=1_234).map(|row| (row % 5 != 0).then(|| format!("text {row}"))).collect();
    let file = parquet(vec![("text", Arc::new(StringArray::from(texts)))]);
    let (good, bad) = sort(open(file.path(), InputFormat::Parquet, &options()).expect("Parquet"));
    let expected: Vec<Row> =
        (1..=1_234).filter(|n| n % 5 != 0).map(|n| row(n, &n.to_string(), &format!("text {n}"))).collect();
    assert_eq!(good, expected);
    assert_eq!(codes(&bad), (1..=1_234).filter(|n| n % 5 == 0).map(|n| (n, "no_text")).collect::<Vec<_>>());
}

#[test]
fn a_string_that_is_not_utf8_fails_its_row_alone() {
    let schema = parse_message_type("message m { required binary text (STRING); }").expect("a schema");
    let out = NamedTempFile::new().expect("a file");
    let file = out.reopen().expect("a file");
    let mut writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::default()).expect("a writer");
    let mut group = writer.next_row_group().expect("a group");
    let mut column = group.next_column().expect("no error").expect("a column");
    let texts: Vec<ByteArray> = [&b"one"[..], b"\xff\xfe", b"three"].map(|text| ByteArray::from(text.to_vec())).into();
    column.typed::<ByteArrayType>().write_batch(&texts, None, None).expect("a batch");
    column.close().expect("a column");
    group.close().expect("a group");
    writer.close().expect("a footer");
    let (good, bad) = sort(open(out.path(), InputFormat::Parquet, &options()).expect("Parquet"));
    assert_eq!(good, [row(1, "1", "one"), row(3, "3", "three")]);
    assert_eq!(codes(&bad), [(2, "not_utf8")]);
}

#[test]
fn a_column_of_another_type_is_named_with_it() {
    let texts = strings(&[Some("x")]);
    let list = ListArray::from_iter_primitive::<Float32Type, _, _>([Some([Some(1.0)])]);
    let ids: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>([Some([Some(1)])]));
    let structure = StructArray::try_from(vec![("ids", ids)]).expect("a structure");
    let wrong_texts: [(ArrayRef, &str); 4] = [
        (Arc::new(Int64Array::from(vec![1])), "INT64"),
        (Arc::new(BinaryArray::from(vec![&b"x"[..]])), "BYTE_ARRAY"),
        (Arc::new(list), "nested"),
        (Arc::new(structure), "nested"),
    ];
    for (text, expected) in wrong_texts {
        let error = open(parquet(vec![("text", text)]).path(), InputFormat::Parquet, &options()).err();
        assert!(matches!(&error, Some(ReadError::ColumnType { found, .. }) if found == expected), "{error:?}");
    }
    let time: ArrayRef = Arc::new(TimestampMillisecondArray::from(vec![1]));
    let error = open(parquet(vec![("id", time), ("text", texts)]).path(), InputFormat::Parquet, &options()).err();
    assert!(matches!(&error, Some(ReadError::ColumnType { found, .. }) if found.starts_with("INT64 (")), "{error:?}");
}

#[test]
fn a_missing_column_is_named_beside_those_there_are() {
    let file = parquet(vec![("body", strings(&[Some("x")])), ("key", strings(&[Some("x")]))]);
    let error = open(file.path(), InputFormat::Parquet, &options()).err().expect("no text column").to_string();
    assert!(error.contains("\"text\"") && error.contains("body, key"), "{error}");
    let typo = ReadOptions { id_field: "kye".to_owned(), text_field: "body".to_owned(), ..options() };
    let error = open(file.path(), InputFormat::Parquet, &typo).err();
    assert!(matches!(error, Some(ReadError::NoColumn { .. })), "{error:?}");
}

#[test]
fn what_is_not_parquet_is_refused() {
    for bytes in [&b""[..], b"PAR1", b"no parquet at all", b"PAR1\xff\xff\xff\x7fPAR1"] {
        let error = refusal(bytes, InputFormat::Parquet, &options());
        assert!(matches!(error, ReadError::NotParquet(_)), "{error:?}");
    }
}

#[test]
fn damage_in_mid_file_is_an_error_and_never_a_panic() {
    let texts: Vec<String> = (0..500).map(|row| format!("text {row}")).collect();
    let whole = parquet(vec![("text", Arc::new(StringArray::from(texts)) as Arc<dyn Array>)]);
    let whole = std::fs::read(whole.path()).expect("bytes");
    let mut failed = 0;
    for place in (4..whole.len()).step_by(whole.len() / 300) {
        let mut damaged = whole.clone();
        damaged[place] ^= 0xff;
        let file = file(&damaged);
        let Ok(rows) = open(file.path(), InputFormat::Parquet, &options()) else {
            failed += 1;
            continue;
        };
        let rows: Vec<_> = rows.take(10_000).collect();
        assert!(rows.iter().rev().skip(1).all(Result::is_ok), "an error is the last item");
        failed += usize::from(rows.last().is_some_and(Result::is_err));
    }
    assert!(failed > 50, "{failed}");
}

/// Small files in every encoding, compression and version that is read.
pub(super) fn every_encoding() -> Vec<Vec<u8>> {
    use ::parquet::{
        basic::{Encoding, GzipLevel, ZstdLevel},
        file::properties::WriterVersion,
    };
    let texts = strings(&[Some("one"), None, Some("a text that is longer"), Some("a text that is as long")]);
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![1, -2, 3, 4]));
    let tokens: ArrayRef = Arc::new(ListArray::from_iter_primitive::<UInt32Type, _, _>([
        Some(vec![Some(1), Some(2)]),
        None,
        Some(vec![]),
        Some(vec![None, Some(7)]),
    ]));
    let mut files = Vec::new();
    for (column, encodings) in [
        (texts, &[Encoding::PLAIN, Encoding::DELTA_LENGTH_BYTE_ARRAY, Encoding::DELTA_BYTE_ARRAY][..]),
        (tokens, &[Encoding::PLAIN, Encoding::DELTA_BINARY_PACKED]),
    ] {
        let columns = [("id", ids.clone(), true), ("text", column, true)];
        let batch = RecordBatch::try_from_iter_with_nullable(columns).expect("columns");
        for compression in [
            Compression::UNCOMPRESSED,
            Compression::SNAPPY,
            Compression::GZIP(GzipLevel::default()),
            Compression::ZSTD(ZstdLevel::default()),
        ] {
            for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
                // With a dictionary, and with each encoding instead.
                for encoding in [None].into_iter().chain(encodings.iter().copied().map(Some)) {
                    let builder = WriterProperties::builder()
                        .set_compression(compression)
                        .set_writer_version(version)
                        .set_data_page_row_count_limit(2)
                        .set_write_batch_size(1)
                        .set_dictionary_enabled(encoding.is_none());
                    let builder = match encoding {
                        Some(encoding) => builder
                            .set_column_encoding(["text"].map(str::to_owned).to_vec().into(), encoding)
                            .set_column_encoding(["text", "list", "item"].map(str::to_owned).to_vec().into(), encoding),
                        None => builder,
                    };
                    let mut writer =
                        ArrowWriter::try_new(Vec::new(), batch.schema(), Some(builder.build())).expect("a writer");
                    writer.write(&batch).expect("a batch");
                    files.push(writer.into_inner().expect("a footer"));
                }
            }
        }
    }
    files
}

#[test]
fn every_encoding_compression_and_version_is_read() {
    for bytes in every_encoding() {
        let (good, bad) = read(&bytes, InputFormat::Parquet);
        let rows = good.iter().map(|row| (row.line, row.id.as_str())).collect::<Vec<_>>();
        // Texts, or lists of token ids.
        match bad.len() {
            1 => assert_eq!((rows, codes(&bad)), (vec![(1, "1"), (3, "3"), (4, "4")], vec![(2, "no_text")])),
            _ => assert_eq!(
                (rows, codes(&bad)),
                (vec![(1, "1")], vec![(2, "no_text"), (3, "empty_text"), (4, "bad_tokens")])
            ),
        }
    }
}
