//! A bad row is named by its place and reason, and the rows beside it go on; a bad corpus is refused with a sentence.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use serde_json::{Value, json};
use vecmill_producer::part;
use vecmill_signer::claims::JobId;
use vecmill_tests::{Cluster, Tenant, WorkerOptions, bombs::gzip, program::json_of};

const LIMIT: Duration = Duration::from_secs(60);

/// A corpus with bad rows, and what must become of it.
struct Case {
    name: &'static str,
    bytes: Vec<u8>,
    arguments: &'static [&'static str],
    /// Lines that can't be used, each with its code.
    bad: Vec<(u64, &'static str)>,
    /// Lines that the model can't take.
    failed: Vec<(u64, &'static str)>,
    /// Ids of the others.
    good: Vec<&'static str>,
}

const JSONL: &[u8] = b"\xef\xbb\xbf{\"id\":\"first\",\"text\":\"after a byte-order mark\"}\r
{\"id\":\"second\",\"text\":\"ends in CRLF\"}\r
\r
{\"id\":\"open\",\"text\":\"no end
not JSON at all
{\"id\":\"nothing\"}
{\"id\":\"null\",\"text\":null}
{\"id\":\"number\",\"text\":7}
{\"id\":\"empty\",\"text\":\"\"}
{\"id\":\"blank\",\"text\":\" \\n\\t \"}
{\"id\":\"surrogate\",\"text\":\"\\ud800\"}
{\"id\":\"bytes\",\"text\":\"\xff\xfe\"}
{\"id\":\"\",\"text\":\"no id\"}
{\"id\":\"two\",\"text\":\"one\"} {\"id\":\"three\"}
[\"a\",\"list\"]
{\"id\":\"nul\",\"text\":\"a NUL \\u0000 in the middle\"}
{\"id\":17,\"text\":\"a number as id\"}
{\"text\":\"no id: its line is its id\"}
{\"id\":\"special\",\"text\":\"<|endoftext|>\"}
{\"id\":\"last\",\"text\":\"no line break at the end\"}";

const BATCH: &str = r#"{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{"input":"one text","model":"vecmill/mini"}}
{"custom_id":"b","method":"GET","url":"/v1/embeddings","body":{"input":"wrong method"}}
{"custom_id":"c","method":"POST","url":"/v1/chat/completions","body":{"input":"wrong url"}}
{"custom_id":"d","method":"POST","url":"/v1/embeddings","body":{"input":["one","two"]}}
{"custom_id":"e","method":"POST","url":"/v1/embeddings","body":{"input":[1,2,3]}}
{"custom_id":"f","method":"POST","url":"/v1/embeddings","body":{"input":"wide","dimensions":64}}
{"custom_id":"g","method":"POST","url":"/v1/embeddings","body":{"input":"foreign","model":"text-embedding-3-small"}}
{"custom_id":"h","method":"POST","url":"/v1/embeddings","body":{"input":["one in a list"],"dimensions":32}}
{"custom_id":"i","method":"POST","url":"/v1/embeddings"}
"#;

fn cases() -> Vec<Case> {
    let jsonl_bad = vec![
        (4, "bad_json"),
        (5, "bad_json"),
        (6, "no_text"),
        (7, "bad_json"),
        (8, "bad_json"),
        (9, "empty_text"),
        (10, "empty_text"),
        (11, "bad_json"),
        (12, "not_utf8"),
        (13, "bad_id"),
        (14, "bad_json"),
        (15, "bad_json"),
    ];
    let jsonl_good = vec!["first", "second", "nul", "17", "18", "special", "last"];
    let case = |name, bytes, bad, good| Case { name, bytes, arguments: &[], bad, failed: Vec::new(), good };
    let csv = b"id,text,more\na,one,1\nb,\"two\nlines\",2\nc,,3\nd,too,many,4\ne\nf,\xff,5\n,no id,6\ng,seven,7\n";
    let tsv = b"body\tkey\nfirst\tx\n\ty\nthird\tz\n";
    vec![
        case("rows.jsonl", JSONL.to_vec(), jsonl_bad.clone(), jsonl_good.clone()),
        case("rows.jsonl.gz", gzip(JSONL), jsonl_bad.clone(), jsonl_good.clone()),
        case("rows.jsonl.zst", zstd::encode_all(JSONL, 3).unwrap(), jsonl_bad, jsonl_good),
        case(
            "batch.jsonl",
            BATCH.as_bytes().to_vec(),
            vec![
                (2, "wrong_method"),
                (3, "wrong_url"),
                (4, "several_inputs"),
                (6, "wrong_dimensions"),
                (7, "wrong_model"),
                (9, "no_text"),
            ],
            vec!["a", "e", "h"],
        ),
        case("strings.ndjson", b"\"one\"\n\"\"\n\"three\"\n".to_vec(), vec![(2, "empty_text")], vec!["1", "3"]),
        case(
            "rows.csv",
            csv.to_vec(),
            vec![(5, "empty_text"), (6, "wrong_fields"), (7, "wrong_fields"), (8, "not_utf8"), (9, "bad_id")],
            vec!["a", "b", "g"],
        ),
        Case {
            arguments: &["--text-field", "body", "--id-field", "key"],
            ..case("rows.tsv", tsv.to_vec(), vec![(3, "empty_text")], vec!["x", "z"])
        },
        case("rows.parquet", parquet(), vec![(2, "no_text"), (3, "empty_text"), (5, "bad_id")], vec!["1", "4", "6"]),
        case("lines.txt", b"one\n\n\xff\xff\nfour\n".to_vec(), vec![(3, "not_utf8")], vec!["1", "4"]),
        Case {
            // The tests' model takes 4,096 tokens, each a byte here, and the end token is one of them.
            failed: vec![(2, "too_long"), (4, "too_long")],
            ..case(
                "long.txt",
                format!("short\n{}\n{}\n{}\n", "a".repeat(4096), "b".repeat(4095), "c".repeat(1 << 18)).into_bytes(),
                Vec::new(),
                vec!["1", "3"],
            )
        },
    ]
}

fn parquet() -> Vec<u8> {
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), Some(2), Some(3), Some(4), None, Some(6)]));
    let texts: ArrayRef =
        Arc::new(StringArray::from(vec![Some("one"), None, Some(""), Some("four"), Some("five"), Some("six")]));
    let batch = RecordBatch::try_from_iter([("id", ids), ("text", texts)]).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

fn write(cluster: &Cluster, name: &str, bytes: &[u8]) -> String {
    let path = cluster.dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

/// The bad rows that standard error names, `NAME:LINE: reason [code]`, in the order in which they come.
fn named(corpus: &str, stderr: &[u8]) -> RowErrors {
    let stderr = std::str::from_utf8(stderr).unwrap();
    let rows = stderr.lines().filter_map(|line| line.strip_prefix(&format!("{corpus}:")));
    rows.map(|row| {
        let (line, reason) = row.split_once(": ").unwrap_or_else(|| panic!("{row}"));
        let (reason, code) = reason.strip_suffix(']').and_then(|row| row.rsplit_once(" [")).unwrap();
        assert!(reason.len() > 10, "a sentence: {row}");
        (line.parse().unwrap(), code.to_owned())
    })
    .collect()
}

fn owned(rows: &[(u64, &str)]) -> RowErrors {
    rows.iter().map(|(line, code)| (*line, (*code).to_owned())).collect()
}

/// Rows that have no vector: each line with its code.
type RowErrors = Vec<(u64, String)>;

/// What `vecmill get` brings: the ids with a vector and their tokens, and the rows in `errors.jsonl`.
fn fetched(cluster: &Cluster, tenant: &Tenant, job: &JobId) -> (Vec<(String, u32)>, RowErrors) {
    let dir = cluster.dir.path().join(job.as_str());
    let output = cluster.vecmill(tenant, &["get", job.as_str(), "--out", dir.to_str().unwrap(), "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut rows = Vec::new();
    let mut parts: Vec<PathBuf> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    parts.retain(|path| path.extension().is_some_and(|extension| extension == "parquet"));
    parts.sort();
    for part in parts {
        let decoded = part::decode(std::fs::read(part).unwrap().into()).unwrap();
        rows.extend(decoded.into_iter().map(|(id, _, tokens)| (id, tokens)));
    }
    (rows, errors(&dir.join("errors.jsonl")))
}

fn errors(path: &Path) -> RowErrors {
    let Ok(lines) = std::fs::read_to_string(path) else { return Vec::new() };
    let error = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        assert!(row["message"].as_str().unwrap().len() > 10, "a sentence: {row}");
        (row["line"].as_u64().unwrap(), row["code"].as_str().unwrap().to_owned())
    };
    lines.lines().map(error).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_rows_are_named_and_the_good_ones_done() {
    let cluster = Cluster::shared().await;
    let tenant = cluster.tenant("rows", &[]);
    let _worker = cluster.worker(WorkerOptions::default()).await;
    let cases = cases();
    let mut jobs = Vec::new();
    for case in &cases {
        let corpus = write(&cluster, case.name, &case.bytes);
        let output = cluster.vecmill(&tenant, &[&["submit", &corpus, "--json"], case.arguments].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{}: {stderr}", case.name);
        assert_eq!(named(&corpus, &output.stderr), owned(&case.bad), "{}: {stderr}", case.name);
        let submitted = json_of(&output);
        assert_eq!(submitted["rows"], case.good.len() + case.failed.len(), "{}", case.name);
        assert_eq!(submitted["rejected"], case.bad.len(), "{}", case.name);
        jobs.push(submitted["job"].as_str().unwrap().parse::<JobId>().unwrap());
    }
    assert_eq!(jobs.iter().collect::<BTreeSet<_>>().len(), cases.len(), "each corpus is a job of its own");
    for (case, job) in cases.iter().zip(&jobs) {
        let status = cluster.reaches(&tenant, job, "completed", LIMIT).await;
        assert_eq!(status["rows_failed"], case.failed.len(), "{}", case.name);
        let (rows, errors) = fetched(&cluster, &tenant, job);
        assert_eq!(rows.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), case.good, "{}", case.name);
        assert_eq!(errors, owned(&[&case.bad[..], &case.failed].concat()), "{}", case.name);
        if let Some((_, tokens)) = rows.iter().find(|(id, _)| id == "special") {
            // 13 letters and the end token: a text that spells a control token is not one.
            assert_eq!(*tokens, 14, "{}", case.name);
        }
        if case.name == "long.txt" {
            assert_eq!(rows[1].1, 4096, "the longest text there may be is taken whole");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_refuses_the_whole_and_leaves_nothing() {
    let cluster = Cluster::shared().await;
    let (tenant, store) = (cluster.tenant("strict", &[]), cluster.store().await);
    for case in cases().iter().filter(|case| !case.bad.is_empty()) {
        let corpus = write(&cluster, case.name, &case.bytes);
        let output = cluster.vecmill(&tenant, &[&["submit", &corpus, "--strict", "--json"], case.arguments].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{}: {stderr}", case.name);
        assert_eq!(named(&corpus, &output.stderr), owned(&case.bad), "{}", case.name);
        assert!(stderr.contains(&format!("{} bad rows", case.bad.len())), "{}: {stderr}", case.name);
        assert!(output.stdout.is_empty(), "{}", case.name);
    }
    let objects = store.list(&format!("{}/", tenant.id), None).await.unwrap();
    assert!(objects.is_empty(), "{objects:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corpus_that_is_none_is_refused_with_a_sentence() {
    let cluster = Cluster::shared().await;
    let (tenant, store) = (cluster.tenant("none", &[]), cluster.store().await);
    let gzipped = gzip(JSONL);
    let write = |name, bytes: &[u8]| write(&cluster, name, bytes);
    let folder = cluster.dir.path().to_str().unwrap().to_owned();
    let refused: [(Vec<String>, i32, &str); 14] = [
        (vec![write("empty.jsonl", b"")], 4, "no row that can be embedded (0 bad rows)"),
        (vec![write("blank.txt", b"\n\r\n  \n")], 4, "no row that can be embedded (0 bad rows)"),
        (vec![write("header.csv", b"id,text\n")], 4, "no row that can be embedded (0 bad rows)"),
        (vec![write("empty.csv", b"")], 4, "there is no column \"text\""),
        (vec![write("columns.csv", b"a,b\n1,2\n")], 4, "there are: a, b"),
        (vec![write("bad.jsonl", b"{}\n{}\n{}\n")], 4, "no row that can be embedded (3 bad rows)"),
        (vec![write("text.parquet", b"this is no Parquet")], 4, "Parquet"),
        (vec![write("cut.jsonl.gz", &gzipped[..gzipped.len() / 2])], 4, "is the file cut off?"),
        (vec![format!("{folder}/absent.jsonl")], 4, "absent.jsonl can't be read"),
        (vec![folder.clone(), "--format".into(), "jsonl".into()], 4, "it is a folder"),
        (vec![write("rows.unknown", JSONL)], 2, "--format"),
        (vec!["s3://bucket-only".into()], 2, "s3://bucket/key"),
        (vec!["s3://vecmill/no/such/object.jsonl".into()], 4, "no/such/object.jsonl"),
        (vec![write("good.jsonl", JSONL), "--dimensions".into(), "31".into()], 2, "dimensions is 31"),
    ];
    for (arguments, code, sentence) in refused {
        let arguments: Vec<&str> = ["submit"].into_iter().chain(arguments.iter().map(String::as_str)).collect();
        let output = cluster.vecmill(&tenant, &arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(sentence), "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert!(!stderr.contains("panicked"), "{arguments:?}: {stderr}");
    }
    let objects = store.list(&format!("{}/", tenant.id), None).await.unwrap();
    let left: Vec<_> = objects.iter().filter(|object| !object.key.contains("/ledger/")).collect();
    assert!(left.is_empty(), "a refused corpus leaves nothing but that it was refused: {left:?}");
    let list = cluster.vecmill(&tenant, &["list", "--json"]);
    assert!(list.status.success() && list.stdout.is_empty(), "{}", String::from_utf8_lossy(&list.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_input_and_s3_are_read_like_a_file() {
    let cluster = Cluster::shared().await;
    let (tenant, store) = (cluster.tenant("sources", &[]), cluster.store().await);
    let file = cluster.submit(&tenant, Path::new(&write(&cluster, "rows.jsonl", JSONL)), &[]);
    let key = format!("{}/corpora/rows.jsonl", cluster.unique());
    store.put(&key, JSONL, "application/x-ndjson").await.unwrap();
    let object = format!("s3://{}/{key}", cluster.env["VECMILL_S3_BUCKET"]);

    // The same bytes are the same job, wherever they come from.
    let output = cluster.vecmill_with_input(&tenant, &["submit", "-", "--json"], JSONL);
    let from_input = json_of(&output);
    assert_eq!((&from_input["job"], &from_input["published"]), (&json!(file), &json!(0)));
    // Who submits from S3 needs a right to read it there, beside a producer's: here an operator's.
    let reader = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].map(|name| (name, cluster.env[name].as_str()));
    let output = cluster.vecmill_with_env(&tenant, &["submit", &object, "--json"], &reader);
    let from_s3 = json_of(&output);
    assert_eq!((&from_s3["job"], &from_s3["published"]), (&json!(file), &json!(0)));

    // Read otherwise they are another, and the bad rows are named after where they stand.
    let output = cluster.vecmill_with_input(&tenant, &["submit", "-", "--json", "--format", "lines"], JSONL);
    assert_eq!(named("standard input", &output.stderr), owned(&[(12, "not_utf8")]));
    let as_lines = json_of(&output);
    assert_ne!(as_lines["job"], json!(file));
    let output = cluster.vecmill_with_env(&tenant, &["submit", &object, "--json", "--id-field", "key"], &reader);
    assert_eq!(named(&object, &output.stderr).len(), 11, "{}", String::from_utf8_lossy(&output.stderr));
}
