//! Corpora that are small where they come in and large where they are read.

use std::time::Duration;

use serde_json::json;
use vecmill_tests::{
    Cluster, WorkerOptions,
    bombs::{deep_schema, gzip, gzip_of, pages},
    corpus,
    program::json_of,
};

use crate::batches::{Caller, jsonl};

const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_corpus_that_grows_fails_alone() {
    let cluster = Cluster::shared().await;
    let (attacker, bystander) = (cluster.admin("grows", &[]), cluster.admin("beside", &[]));
    let _worker = cluster.worker(WorkerOptions::default()).await;
    let mut gateway = cluster.gateway(&[]).await;
    let files = [
        ("deep.parquet", deep_schema(5001), "nested too deep"),
        ("pages.parquet", pages(4, 48 << 20), "decodes to more than"),
        ("blank.jsonl.gz", gzip_of(b"\n", 200 << 20), "it may not"),
        ("long.txt.gz", gzip_of(b"x", 200 << 20), "decodes to more than"),
    ];
    {
        let caller = Caller::new(&gateway, &attacker);
        let mut batches = Vec::new();
        for (name, bytes, sentence) in files {
            assert!(bytes.len() < 300_000, "{name}: {}", bytes.len());
            let file = caller.upload(name, bytes.clone()).await;
            batches.push((name, caller.batch(&file, json!({})).await, sentence));
            // As on the machine of whoever submits by command.
            let path = cluster.dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let output = cluster.vecmill(&attacker, &["submit", path.to_str().unwrap()]);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(4), "{name}: {stderr}");
            assert!(stderr.contains(sentence), "{name}: {stderr}");
        }
        for (name, batch, sentence) in batches {
            let failed = caller.reaches(&batch, "failed").await;
            let error = &failed["errors"]["data"][0];
            assert_eq!(error["code"], "unreadable_file", "{name}: {failed}");
            assert!(error["message"].as_str().unwrap().contains(sentence), "{name}: {failed}");
        }
        let beside = Caller::new(&gateway, &bystander);
        let file = beside.upload("good.jsonl", jsonl(&corpus::texts(3, 5))).await;
        let batch = beside.batch(&file, json!({})).await;
        beside.reaches(&batch, "completed").await;
    }
    assert!(!gateway.has_ended());
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_rows_are_not_stored_as_many_times_their_size() {
    let cluster = Cluster::shared().await;
    let (tenant, store) = (cluster.tenant("bad-rows", &[]), cluster.store().await);
    // 650 bytes or so, which once made 37 MB.
    let corpus = gzip(&[&b"x\n".repeat(300_000)[..], b"\"good\"\n"].concat());
    assert!(corpus.len() < 2000, "{}", corpus.len());
    let path = cluster.dir.path().join("bad-rows.jsonl.gz");
    std::fs::write(&path, corpus).unwrap();
    let output = cluster.vecmill(&tenant, &["submit", path.to_str().unwrap(), "--json"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{}", stderr.lines().last().unwrap_or_default());
    let submitted = json_of(&output);
    assert_eq!((&submitted["rows"], &submitted["rejected"]), (&json!(1), &json!(300_000)));
    assert!(stderr.contains("are counted and not listed one by one"));
    assert!(stderr.lines().count() < 100_010);
    let rejected = store.list(&format!("{}/", tenant.id), None).await.unwrap();
    let rejected = rejected.iter().filter(|object| object.key.contains("/rejected-"));
    let bytes: u64 = rejected.map(|object| object.bytes).sum();
    assert!((1..(1 << 20) + 4096).contains(&bytes), "{bytes}");
    let job = submitted["job"].as_str().unwrap().parse().unwrap();
    let _worker = cluster.worker(WorkerOptions::default()).await;
    assert_eq!(cluster.reaches(&tenant, &job, "completed", LIMIT).await["rejected"], json!(300_000));
}
