#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use arrow_array::cast::AsArray;
use bytes::Bytes;
use half::f16;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::reader::{FileReader, SerializedFileReader};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

use vecmill_producer::contract::Dtype;
use vecmill_producer::part::{self, OneFile, decode};

use super::{Part, PartError, encode};

fn metadata() -> Vec<(String, String)> {
    [("model", "m"), ("dimensions", "3"), ("job", "j"), ("chunk", "7")].map(|(k, v)| (k.into(), v.into())).to_vec()
}

fn three_rows(dtype: Dtype) -> Part {
    let ids = ["a", "b", "ü\n"].map(str::to_owned);
    let vectors = [vec![1.0, -0.5, 0.1], vec![0.0, 1e-3, -1.0], vec![0.25; 3]];
    encode(&ids, &vectors, &[3, 1, u32::MAX], &[false, false, true], 3, dtype, &metadata()).unwrap()
}

#[test]
fn rows_come_back() {
    let part = three_rows(Dtype::F32);
    assert_eq!(part.rows, 3);
    let rows = decode(part.bytes.into()).unwrap();
    assert_eq!(rows[0], ("a".to_owned(), vec![1.0, -0.5, 0.1], 3));
    assert_eq!(rows[2], ("ü\n".to_owned(), vec![0.25; 3], u32::MAX));
    assert_eq!(rows.len(), 3);
}

#[test]
fn texts_that_were_cut_are_marked() {
    let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(three_rows(Dtype::F32).bytes)).unwrap();
    let batch = reader.build().unwrap().next().unwrap().unwrap();
    let marks: Vec<bool> = batch["truncated"].as_boolean().iter().map(Option::unwrap).collect();
    assert_eq!(marks, [false, false, true]);
}

#[test]
fn sixteen_bits_are_rounded_to_nearest() {
    let rows = decode(three_rows(Dtype::F16).bytes.into()).unwrap();
    // 0.1 lies between 0x2E66 (0.09998) and 0x2E67 (0.10004), nearer to the first.
    assert_eq!(rows[0].1, [1.0, -0.5, f16::from_bits(0x2E66).to_f32()]);
    // Halfway between 1 and the next number, and between that and the one after: the even one each time.
    let ties = vec![1.0 + 2_f32.powi(-11), 1.0 + 3.0 * 2_f32.powi(-11)];
    let part = encode(&["t".to_owned()], &[ties], &[1], &[false], 2, Dtype::F16, &[]).unwrap();
    let rows = decode(part.bytes.into()).unwrap();
    assert_eq!(rows[0].1, [1.0, 1.0 + 2_f32.powi(-9)]);
}

#[test]
fn a_chunk_without_rows_is_a_part() {
    let part = encode(&[], &[], &[], &[], 1_024, Dtype::F16, &metadata()).unwrap();
    assert_eq!(part.rows, 0);
    assert_eq!(part.vectors_sha256[..], Sha256::digest([])[..]);
    assert!(decode(part.bytes.into()).unwrap().is_empty());
}

#[test]
fn the_same_rows_give_the_same_bytes() {
    for dtype in [Dtype::F32, Dtype::F16] {
        assert_eq!(three_rows(dtype).bytes, three_rows(dtype).bytes);
    }
}

#[test]
fn the_digest_covers_the_stored_numbers_in_order() {
    let part = three_rows(Dtype::F16);
    let mut digest = Sha256::new();
    for number in decode(part.bytes.into()).unwrap().into_iter().flat_map(|(_, vector, _)| vector) {
        digest.update(f16::from_f32(number).to_le_bytes());
    }
    assert_eq!(part.vectors_sha256[..], digest.finalize()[..]);
    assert_ne!(part.vectors_sha256, three_rows(Dtype::F32).vectors_sha256);
}

#[test]
fn the_file_says_what_it_is() {
    let reader = SerializedFileReader::new(Bytes::from(three_rows(Dtype::F32).bytes)).unwrap();
    let file = reader.metadata().file_metadata();
    assert_eq!(file.created_by(), Some("vecmill"));
    let pairs: Vec<_> = file.key_value_metadata().unwrap().iter().map(|kv| (&*kv.key, kv.value.as_deref())).collect();
    assert!(pairs.contains(&("model", Some("m"))) && pairs.contains(&("chunk", Some("7"))), "{pairs:?}");
    let embedding = reader.metadata().row_group(0).column(1);
    assert_eq!(embedding.column_path().string(), "embedding.list.element");
    assert_eq!(embedding.compression(), parquet::basic::Compression::UNCOMPRESSED);
    assert!(embedding.statistics().is_none() && embedding.dictionary_page_offset().is_none());
}

#[test]
fn what_does_not_fit_is_refused() {
    let ids = ["a", "b"].map(str::to_owned);
    let vectors = [vec![1.0, 2.0], vec![1.0]];
    let encode = |vectors: &[Vec<f32>], dtype| super::encode(&ids, vectors, &[1, 1], &[false; 2], 2, dtype, &[]);
    assert!(matches!(
        encode(&vectors[..1], Dtype::F32),
        Err(PartError::Rows { ids: 2, vectors: 1, tokens: 2, truncated: 2 })
    ));
    assert!(matches!(encode(&vectors, Dtype::F32), Err(PartError::Dimensions { row: 1, found: 1, expected: 2 })));
    let nan = [vec![1.0, 2.0], vec![f32::NAN, 1.0]];
    assert!(matches!(encode(&nan, Dtype::F32), Err(PartError::NotFinite { row: 1 })));
    // Finite in 32 bits, infinite in 16.
    let large = [vec![70_000.0, 2.0], vec![1.0, 1.0]];
    assert!(encode(&large, Dtype::F32).is_ok());
    assert!(matches!(encode(&large, Dtype::F16), Err(PartError::NotFinite { row: 0 })));
}

#[test]
fn what_is_not_a_part_is_refused() {
    assert!(matches!(decode(Bytes::from_static(b"PAR1 no")), Err(part::PartError::Parquet(_))));
    let mut cut = three_rows(Dtype::F32).bytes;
    cut.truncate(cut.len() / 2);
    assert!(matches!(decode(cut.into()), Err(part::PartError::Parquet(_))));
}

#[test]
fn many_parts_are_one_file() {
    let parts =
        [three_rows(Dtype::F16), encode(&[], &[], &[], &[], 3, Dtype::F16, &[]).unwrap(), three_rows(Dtype::F16)];
    let mut bytes = Vec::new();
    let mut file = OneFile::new(&mut bytes);
    for part in &parts {
        file.append(&Bytes::copy_from_slice(&part.bytes)).unwrap();
    }
    assert!(file.finish().unwrap());
    let one = decode(three_rows(Dtype::F16).bytes.into()).unwrap();
    assert_eq!(decode(Bytes::from(bytes)).unwrap(), [one.clone(), one].concat());

    // The file speaks for all its parts: of what they differ in it names each, and it is no chunk.
    let of = |path: &str, chunk: &str| {
        let said = [("vecmill.compute", path), (part::CHUNK, chunk), ("vecmill.job", "j")];
        let said = said.map(|(name, value)| (name.to_owned(), value.to_owned()));
        encode(&["a".to_owned()], &[vec![1.0; 3]], &[1], &[false], 3, Dtype::F16, &said).unwrap()
    };
    let mut bytes = Vec::new();
    let mut file = OneFile::new(&mut bytes);
    for part in [of("candle-f32", "0"), of("avx512-bf16", "1"), of("candle-f32", "2")] {
        file.append(&Bytes::from(part.bytes)).unwrap();
    }
    assert!(file.finish().unwrap());
    let reader = SerializedFileReader::new(Bytes::from(bytes)).unwrap();
    let said = reader.metadata().file_metadata().key_value_metadata().unwrap();
    let said: Vec<_> = said.iter().map(|entry| (&*entry.key, entry.value.as_deref().unwrap_or_default())).collect();
    assert!(said.contains(&("vecmill.compute", "avx512-bf16, candle-f32")), "{said:?}");
    assert!(said.contains(&("vecmill.job", "j")), "{said:?}");
    assert!(!said.iter().any(|(name, _)| *name == part::CHUNK), "{said:?}");

    let mut file = OneFile::new(Vec::new());
    file.append(&Bytes::from(three_rows(Dtype::F16).bytes)).unwrap();
    assert!(file.append(&Bytes::from(three_rows(Dtype::F32).bytes)).is_err(), "another schema");
    assert!(!OneFile::new(Vec::new()).finish().unwrap(), "a file of no part is none");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_rows_come_back(
        dimensions in 1_usize..70,
        rows in 0_usize..3_000,
        seed in any::<f32>().prop_filter("finite", |seed| seed.is_finite()),
    ) {
        let ids: Vec<String> = (0..rows).map(|row| format!("id {row}")).collect();
        let number = |row: usize, column: usize| seed / (1 + row + column) as f32;
        let vectors: Vec<Vec<f32>> =
            (0..rows).map(|row| (0..dimensions).map(|column| number(row, column)).collect()).collect();
        let tokens: Vec<u32> = (0..rows as u32).collect();
        let part = encode(&ids, &vectors, &tokens, &vec![false; rows], dimensions, Dtype::F32, &metadata()).unwrap();
        let back = decode(part.bytes.into()).unwrap();
        let expected: Vec<_> = ids.into_iter().zip(vectors).zip(tokens).map(|((i, v), t)| (i, v, t)).collect();
        prop_assert_eq!(back, expected);
    }
}
