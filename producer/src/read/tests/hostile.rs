//! Inputs that are small where they come in and large where they are read.

use std::{
    io::{self, Read},
    sync::mpsc,
    thread,
    time::Duration,
};

use flate2::{Compression, write::GzEncoder};

use super::{
    forge::{Forged, Out, page},
    *,
};
use crate::read::{
    Budget, StopOnDrop,
    budget::Allowance,
    csv, json,
    lines::{self, LineRows},
    stoppable, text,
};

/// As usual, with less that is free: so that tests need not decode much.
const LITTLE: Allowance = Allowance { bytes_free: 1 << 20, bytes_times: 100, rows_free: 10_000, rows_times: 2 };

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

pub(super) fn zstd(bytes: &[u8]) -> Vec<u8> {
    ::zstd::encode_all(bytes, 3).expect("memory")
}

/// Reads with little that is free: how many rows came, and what ended it.
fn end(bytes: &[u8], format: InputFormat) -> (usize, Option<ReadError>) {
    let budget = Budget::new(LITTLE, Stop::default());
    let rows = match crate::read::open_within(file(bytes).path(), format, &ReadOptions::default(), budget) {
        Ok(rows) => rows,
        Err(error) => return (0, Some(error)),
    };
    let mut count = 0;
    for row in rows {
        match row {
            Ok(_) => count += 1,
            Err(error) => return (count, Some(error)),
        }
    }
    (count, None)
}

fn too_much(what: &str, (_, end): (usize, Option<ReadError>)) {
    assert!(matches!(end, Some(ReadError::TooMuch(_))), "{what}: {end:?}");
}

#[test]
fn what_grows_out_of_all_proportion_is_refused() {
    let blank = vec![b'\n'; 20 << 20];
    let long = vec![b'x'; 20 << 20];
    let bad = b"{}\n".repeat(4 << 20);
    let good = b"\"good\"\n".repeat(4 << 20);
    for format in [InputFormat::Jsonl, InputFormat::Lines, InputFormat::Csv] {
        for (what, text) in [("blank lines", &blank), ("a long line", &long), ("bad rows", &bad), ("good rows", &good)]
        {
            // CSV wants a header first.
            let text = [b"id,text\n", &text[..]].concat();
            for packed in [gzip(&text), zstd(&text)] {
                assert!(packed.len() < 100_000, "{}", packed.len());
                too_much(&format!("{format:?}, {what}"), end(&packed, format));
            }
        }
    }
}

#[test]
fn rows_are_bounded_where_bytes_are_not_yet() {
    for text in [&b"\n"[..], b"x\n"] {
        // Under a mebibyte, and more rows than bytes of the file by far.
        let packed = gzip(&text.repeat(400_000 / text.len()));
        for format in [InputFormat::Jsonl, InputFormat::Lines] {
            too_much(&format!("{format:?}"), end(&packed, format));
        }
    }
    let packed = gzip(&[b"id,text\n", &b"\n".repeat(400_000)[..]].concat());
    too_much("csv", end(&packed, InputFormat::Csv));
}

#[test]
fn what_is_not_compressed_is_never_too_much() {
    for text in [&b"\n"[..], b"x\n", b"\"good\"\n", b"{}\n"] {
        let (rows, ended) = end(&text.repeat((4 << 20) / text.len()), InputFormat::Jsonl);
        assert!(ended.is_none(), "{ended:?} after {rows}");
    }
    // Nor is text that compresses as well as text does.
    let text: String =
        (0..200_000).map(|row| format!("{{\"id\":\"{row}\",\"text\":\"a text like many others\"}}\n")).collect();
    assert_eq!(end(&gzip(text.as_bytes()), InputFormat::Jsonl).0, 200_000);
}

#[test]
fn frames_and_members_without_anything_in_them_are_passed() {
    let text = b"\"good\"\n";
    let gzips = [gzip(b"").repeat(50_000), gzip(text)].concat();
    let zstds = [zstd(b"").repeat(50_000), b"\x50\x2a\x4d\x18\0\0\0\0".repeat(50_000), zstd(text)].concat();
    for packed in [gzips, zstds] {
        let (rows, ended) = end(&packed, InputFormat::Jsonl);
        assert!(rows == 1 && ended.is_none(), "{rows} {ended:?}");
    }
}

/// An input without end, read by `rows` in a thread of its own, which must end once it is told to.
fn stops(rows: impl FnOnce(Budget) -> Rows + Send + 'static) {
    let told = StopOnDrop::default();
    let stop = told.stop();
    let (ended, when_ended) = mpsc::sync_channel(1);
    let (begun, when_begun) = mpsc::sync_channel(1);
    let reader = thread::spawn(move || {
        let endless = Allowance { bytes_times: u64::MAX, rows_times: u64::MAX, ..Allowance::USUAL };
        let rows = rows(Budget::new(endless, stop));
        begun.send(()).expect("the test");
        let last = rows.filter_map(Result::err).next();
        ended.send(last).expect("the test");
    });
    when_begun.recv().expect("the reader");
    assert!(when_ended.recv_timeout(Duration::from_millis(20)).is_err(), "it has no end");
    drop(told);
    let last = when_ended.recv_timeout(Duration::from_secs(60)).expect("an end");
    assert!(matches!(last, Some(ReadError::Stopped)), "{last:?}");
    reader.join().expect("the reader");
}

#[test]
fn reading_ends_when_nobody_waits() {
    let options = ReadOptions::default;
    for byte in [b'\n', b'x'] {
        stops(move |budget| {
            let input = text::from_reader(io::repeat(byte), budget).expect("text");
            Box::new(LineRows::new(input, options(), lines::row))
        });
        stops(move |budget| {
            let input = text::from_reader(io::repeat(byte), budget).expect("text");
            Box::new(LineRows::new(input, options(), json::row))
        });
        stops(move |budget| {
            let input = (&b"text\n"[..]).chain(io::repeat(byte));
            Box::new(
                csv::CsvRows::new(text::from_reader(input, budget).expect("text"), options(), None).expect("a header"),
            )
        });
    }
    // Bad rows, and members of gzip that are empty.
    stops(|budget| {
        let input = text::from_reader(Again { bytes: b"{}\n".repeat(999), at: 0 }, budget).expect("text");
        Box::new(LineRows::new(input, ReadOptions::default(), json::row))
    });
    let empty = [gzip(b"\"good\"\n"), gzip(b"").repeat(999)].concat();
    stops(|budget| {
        let input = text::from_reader(Again { bytes: empty, at: 0 }, budget).expect("text");
        Box::new(LineRows::new(input, ReadOptions::default(), json::row))
    });
}

#[tokio::test]
async fn blocking_work_hears_that_its_future_was_dropped() {
    let (ended, when_ended) = mpsc::sync_channel(1);
    let work = stoppable(move |stop| {
        while !stop.is_told() {
            thread::yield_now();
        }
        ended.send(()).expect("the test");
    });
    assert!(tokio::time::timeout(Duration::from_millis(20), work).await.is_err());
    tokio::task::spawn_blocking(move || when_ended.recv_timeout(Duration::from_secs(60)))
        .await
        .expect("no panic")
        .expect("an end");
}

/// The same bytes over and over.
struct Again {
    bytes: Vec<u8>,
    at: usize,
}

impl Read for Again {
    fn read(&mut self, block: &mut [u8]) -> io::Result<usize> {
        let bytes = (&self.bytes[self.at..]).read(block)?;
        self.at = (self.at + bytes) % self.bytes.len();
        Ok(bytes)
    }
}

fn refused(bytes: &[u8], reason: &str) {
    let (rows, error) = end(bytes, InputFormat::Parquet);
    let error = error.expect("a refusal").to_string();
    assert!(error.contains(reason), "after {rows} rows: {error}");
}

#[test]
fn a_schema_as_deep_as_the_stack_is_refused() {
    let mut schema = vec![Out::group("root", 1)];
    schema.extend((0..5000).map(|_| Out::group("g", 1)));
    schema.push(Out::leaf("text"));
    let bytes = Forged { schema, ..Forged::default() }.bytes();
    assert!(bytes.len() < 100_000, "{}", bytes.len());
    refused(&bytes, "nested too deep");
    // Within fields that are not known, too.
    let mut deep = Out::default();
    (0..5000).for_each(|_| deep.head(20, 12));
    let bytes = Forged { more: deep.0, ..Forged::default() }.bytes();
    refused(&bytes, "nested too deep");
}

#[test]
fn a_footer_is_not_believed() {
    let good = Forged::default().bytes();
    let tail = good.len() - 8;
    for (length, reason) in [(u32::MAX, "may have"), (16 << 20, "cut off"), (3, "version is missing")] {
        let mut bytes = good.clone();
        bytes[tail..tail + 4].copy_from_slice(&length.to_le_bytes());
        refused(&bytes, reason);
    }
    // A group that says it has more children than the schema has elements: as many would be reserved.
    let schema = vec![Out::group("root", i32::MAX), Out::leaf("text")];
    refused(&Forged { schema, ..Forged::default() }.bytes(), "fewer columns");
    let schema = (0..20_000).map(|_| Out::leaf("text")).collect();
    refused(&Forged { schema, ..Forged::default() }.bytes(), "too many columns");
    // Each column has a copy of the names above it.
    let mut schema = vec![Out::group("root", 1), Out::group(&"n".repeat(1 << 20), 1000)];
    schema.extend((0..1000).map(|_| Out::leaf("text")));
    refused(&Forged { schema, ..Forged::default() }.bytes(), "names of its columns");
    refused(&Forged { groups: 60_000, ..Forged::default() }.bytes(), "too many row groups");
    let mut more = Out::default();
    more.list(5, 12, 100_000);
    more.0.extend([0; 100_000]);
    refused(&Forged { more: more.0, ..Forged::default() }.bytes(), "keys and values");
    // A list where another type is expected is what the crate would take for one.
    let mut more = Out::default();
    more.number(7, 5, 1);
    refused(&Forged { more: more.0, ..Forged::default() }.bytes(), "another type");
}

#[test]
fn a_forged_file_is_one_that_can_be_read() {
    let (good, bad) =
        sort(open(file(&Forged::default().bytes()).path(), InputFormat::Parquet, &options()).expect("Parquet"));
    assert_eq!((good, bad), (vec![row(1, "1", "hello")], vec![]));
}

#[test]
fn a_page_is_not_believed() {
    let text = [5_u8.to_le_bytes().as_slice(), &[0; 3], b"hello"].concat();
    let forged = |pages: Vec<u8>, codec| Forged { pages, codec, ..Forged::default() }.bytes();
    const PLAIN: i32 = 0;
    const DICTIONARY: i32 = 8;
    let data =
        |values, bytes, encoding, body: &[u8]| page(0, bytes, body, &[(1, values), (2, encoding), (3, 3), (4, 3)]);

    // gzip, zstd and snappy that are longer than they say, or shorter.
    let zeros = vec![0; 10 << 20];
    let snappy = ::snap::raw::Encoder::new().compress_vec(&zeros).expect("memory");
    for (codec, body) in [(2, gzip(&zeros)), (6, zstd(&zeros)), (1, snappy)] {
        refused(&forged(data(1, 9, PLAIN, &body), codec), "does not decompress to what it says");
        refused(&forged(data(1, 1 << 20, PLAIN, &gzip(b"x")), 2), "does not decompress to what it says");
        // Snappy does not compress enough to be too much.
        if codec != 1 {
            too_much("what it says", end(&forged(data(1, 10 << 20, PLAIN, &body), codec), InputFormat::Parquet));
        }
        too_much("as much as can be said", end(&forged(data(1, i32::MAX, PLAIN, &body), codec), InputFormat::Parquet));
    }
    // Values that are reserved for before one is read.
    refused(&forged(data(i32::MAX, 9, PLAIN, &text), 0), "too many values");
    let dictionary = |values| page(2, 9, &text, &[(1, values), (2, PLAIN)]);
    refused(&forged(dictionary(i32::MAX), 0), "too many values");
    let delta = |count: u64| {
        let mut out = Out::default();
        [128, 4, count, 0].into_iter().for_each(|number| out.varint(number));
        out.0
    };
    for encoding in [6, 7] {
        refused(&forged(data(1, 9, encoding, &delta(1 << 40)), 0), "lengths can't be read");
        refused(&forged(data(1, 9, encoding, &delta(1 << 31)), 0), "lengths can't be read");
    }
    // Lengths of what is as before, and then those of what is not.
    refused(&forged(data(1, 9, 7, &[delta(1), delta(1 << 40)].concat()), 0), "lengths can't be read");
    refused(&forged(data(-1, 9, PLAIN, &text), 0), "negative");
    refused(&forged(page(0, -1, &text, &[(1, 1), (2, 0), (3, 3), (4, 3)]), 0), "negative");
    // Levels that are longer than the page.
    let levels = [(1, 1), (2, 0), (3, 1), (4, PLAIN), (5, i32::MAX), (6, i32::MAX)];
    refused(&forged(page(3, 9, &text, &levels), 6), "levels are longer");

    // A run of one long text of the dictionary: a few bytes a page, and text without end.
    let long = [&100_000_u32.to_le_bytes()[..], &b"x".repeat(100_000)].concat();
    let mut run = vec![0];
    let mut out = Out::default();
    out.varint(1_000_000 << 1);
    run.extend(out.0);
    let pages =
        [page(2, long.len() as i32, &long, &[(1, 1), (2, PLAIN)]), data(1_000_000, 4, DICTIONARY, &run)].concat();
    let bytes = Forged { pages, rows: 1_000_000, dictionary: true, ..Forged::default() }.bytes();
    too_much("a run of long texts", end(&bytes, InputFormat::Parquet));
    // Rows that are null without end.
    let mut nulls = Out::default();
    nulls.varint(1_000_000 << 1);
    nulls.0.push(0);
    let body = [&(nulls.0.len() as u32).to_le_bytes()[..], &nulls.0].concat();
    let bytes = Forged {
        schema: vec![Out::group("root", 1), Out::optional("text")],
        pages: data(1_000_000, body.len() as i32, PLAIN, &body),
        rows: 1_000_000,
        ..Forged::default()
    };
    too_much("a run of nulls", end(&bytes.bytes(), InputFormat::Parquet));
    // Many row groups that all lie at the same pages.
    let page = data(1, 100_000, PLAIN, &gzip(&long[..100_000]));
    let bytes = Forged { pages: page, codec: 2, groups: 2000, ..Forged::default() }.bytes();
    assert!(matches!(end(&bytes, InputFormat::Parquet).1, Some(ReadError::Parquet { .. } | ReadError::TooMuch(_))));
    let groups = Forged { groups: 40_000, rows: 0, ..Forged::default() }.bytes();
    assert!(end(&groups, InputFormat::Parquet).1.is_none());
}
