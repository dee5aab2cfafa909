use std::io::{self, BufReader, Read};

use flate2::{Compression, write::GzEncoder};

use super::*;
use crate::read::{
    json,
    lines::{Line, LineRows, LineSplitter},
    streaming, text,
};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(bytes).expect("bytes");
    gzip.finish().expect("bytes")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut zstd = ::zstd::Encoder::new(Vec::new(), 1).expect("an encoder");
    // As the command line tool does: without it damage may pass for text.
    zstd.include_checksum(true).expect("a setting");
    zstd.write_all(bytes).expect("bytes");
    zstd.finish().expect("bytes")
}

#[test]
fn plain_lines() {
    let (good, bad) = read(b"\xef\xbb\xbfone\r\n\n \xc2\xa0 \n \"two\" \n\xff\nfive", InputFormat::Lines);
    assert_eq!(good, [row(1, "1", "one"), row(4, "4", " \"two\" "), row(6, "6", "five")]);
    assert_eq!(codes(&bad), [(5, "not_utf8")]);
    for empty in ["", "\n", "\u{feff}", "\r\n\r\n"] {
        assert_eq!(read(empty.as_bytes(), InputFormat::Lines), (vec![], vec![]), "{empty:?}");
    }
}

#[test]
fn compression_is_seen_through_in_every_text_format() {
    let cases: [(InputFormat, &[u8], u64); 3] = [
        (InputFormat::Lines, b"\xef\xbb\xbfone\n", 1),
        (InputFormat::Jsonl, b"\xef\xbb\xbf\"one\"\n", 1),
        (InputFormat::Csv, b"\xef\xbb\xbftext\none\n", 2),
    ];
    for (format, plain, line) in cases {
        // Two gzip members or zstd frames are one text; a skippable frame is none of it.
        let (begin, end) = plain.split_at(5);
        let members = [gzip(begin), gzip(end)].concat();
        let frames = [b"\x50\x2a\x4d\x18\x02\x00\x00\x00xx".to_vec(), zstd(begin), zstd(end)].concat();
        for bytes in [plain.to_vec(), gzip(plain), zstd(plain), members, frames] {
            assert_eq!(read(&bytes, format), (vec![row(line, &line.to_string(), "one")], vec![]), "{format:?}");
        }
    }
}

#[test]
fn compressed_data_that_is_cut_off_or_damaged_is_an_error_after_the_good_rows() {
    let lines: String = (0..200_000).map(|line| format!("line {line} {}\n", line * 7919 % 104_729)).collect();
    for whole in [gzip(lines.as_bytes()), zstd(lines.as_bytes())] {
        for bytes in [&whole[..whole.len() / 2], &whole[..whole.len() - 1]] {
            let file = file(bytes);
            let rows: Vec<_> = open(file.path(), InputFormat::Lines, &options()).expect("an input").collect();
            let (last, before) = rows.split_last().expect("items");
            assert!(before.len() > 1_000 && before.iter().all(|row| matches!(row, Ok(Ok(_)))));
            let Err(ReadError::Corrupt { line, position, .. }) = last else { panic!("{last:?}") };
            assert_eq!(*line as usize, before.len());
            assert!((1..=bytes.len() as u64).contains(position));
        }
        let mut damaged = whole.clone();
        damaged[whole.len() / 2..][..100].fill(0xff);
        let last = open(file(&damaged).path(), InputFormat::Lines, &options()).expect("an input").last();
        assert!(matches!(last, Some(Err(ReadError::Corrupt { .. }))), "{last:?}");
    }
}

#[test]
fn what_can_not_be_opened_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    for path in [folder.path().join("absent"), folder.path().to_owned()] {
        for format in [InputFormat::Lines, InputFormat::Parquet] {
            assert!(open(&path, format, &options()).is_err());
        }
    }
    for text in [&b"\xff\xfeo\0"[..], b"\xfe\xff\0o"] {
        assert!(matches!(refusal(text, InputFormat::Lines, &options()), ReadError::Utf16));
    }
}

/// Gives what it has, then fails as a disk does.
struct Failing(&'static [u8]);

impl Read for Failing {
    fn read(&mut self, block: &mut [u8]) -> io::Result<usize> {
        match self.0.read(block)? {
            0 => Err(io::Error::from_raw_os_error(5)),
            bytes => Ok(bytes),
        }
    }
}

#[test]
fn a_disk_that_fails_ends_the_rows_with_the_line() {
    let opened = text::from_reader(Failing(b"\"one\"\n\"two\"\n\"thr"), streaming()).expect("an input");
    let mut rows = LineRows::new(opened, options(), json::row);
    assert!(matches!(rows.next(), Some(Ok(Ok(_)))));
    assert!(matches!(rows.next(), Some(Ok(Ok(_)))));
    let error = rows.next();
    assert!(matches!(error, Some(Err(ReadError::Io { line: 2, .. }))), "{error:?}");
    assert!(rows.next().is_none());
}

#[test]
fn a_line_of_200_mb_flows_by_in_flat_memory() {
    const BOUND: usize = 1 << 20;
    let input = io::repeat(b'x').take(200 << 20).chain(&b"\nshort\n"[..]);
    let mut lines = LineSplitter::new(BufReader::new(input), BOUND);
    assert_eq!(lines.next_line().expect("a line"), Some(Line::TooLong));
    assert_eq!(lines.next_line().expect("a line"), Some(Line::Whole(b"short")));
    assert_eq!(lines.next_line().expect("the end"), None);
    assert!(lines.buffer_bytes() <= 2 * BOUND + 2, "{}", lines.buffer_bytes());
}

#[test]
fn a_bomb_is_a_line_that_is_too_long() {
    let mut bomb = ::zstd::Encoder::new(Vec::new(), 1).expect("an encoder");
    io::copy(&mut io::repeat(b' ').take(60 << 20), &mut bomb).expect("bytes");
    bomb.write_all(b"\n\"good\"\n").expect("bytes");
    let bomb = bomb.finish().expect("bytes");
    assert!(bomb.len() < 1 << 20, "{}", bomb.len());
    let (good, bad) = read(&bomb, InputFormat::Jsonl);
    assert_eq!((good, codes(&bad)), (vec![row(2, "2", "good")], vec![(1, "line_too_long")]));
}

#[test]
fn names_say_the_format() {
    for (name, format) in [
        ("a/corpus.jsonl", Some(InputFormat::Jsonl)),
        ("corpus.JSONL.gz", Some(InputFormat::Jsonl)),
        ("corpus.ndjson.zst", Some(InputFormat::Jsonl)),
        ("s3://b/x.parquet", Some(InputFormat::Parquet)),
        ("t.tsv.zst", Some(InputFormat::Csv)),
        ("notes.txt", Some(InputFormat::Lines)),
        ("corpus", None),
        ("corpus.gz", None),
        ("folder.csv/corpus", None),
        ("corpus.docx", None),
    ] {
        assert_eq!(InputFormat::from_name(name), format, "{name}");
    }
}
