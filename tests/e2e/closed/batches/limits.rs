//! What a tenant may have: every limit at every door, and what counts towards each.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use vecmill_signer::claims::Limits;
use vecmill_tests::{Cluster, bombs::gzip, eventually};

use super::{LIMIT, ask, upload};
use crate::batches::{Caller, jsonl};

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_stores_what_it_may_and_deleting_makes_room() {
    let cluster = Cluster::shared().await;
    let tenant = cluster.admin("a", &["--stored-bytes", "1000000"]);
    let gateway = cluster.gateway(&[]).await;
    let caller = Caller::new(&gateway, &tenant);
    let line = |byte: u8| [&[b'"'][..], &[byte; 600_000], b"\"\n"].concat();
    let (status, first) = upload(&gateway, &tenant, &line(b'a')).await;
    assert_eq!(status, 200, "{first}");
    let over = async || {
        let (status, refused) = upload(&gateway, &tenant, &line(b'b')).await;
        assert_eq!((status, &refused["error"]["code"]), (429, &json!("stored_bytes")), "{refused}");
    };
    over().await;
    // S3 is the record: without Redis' count it is the same.
    let key = format!("vecmill:{{{}}}:stored", tenant.id);
    cluster.redis(&["DEL", &key]);
    over().await;
    let limits = caller.get("/v1/limits").await;
    let stored = limits["data"].as_array().unwrap().iter().find(|limit| limit["limit"] == "stored_bytes").unwrap();
    assert_eq!(stored["most"], 1_000_000);
    let left = stored["remaining"].as_u64().unwrap();
    assert!((390_000..400_000).contains(&left), "{stored}");
    let usage = caller.get("/v1/usage").await;
    let bytes = usage["stored"]["bytes"].as_u64().unwrap();
    assert!((600_000..610_000).contains(&bytes) && usage["stored"]["files"] == 1, "{usage}");

    let (status, _) =
        ask(&caller, "DELETE", &format!("/v1/files/{}", first["id"].as_str().unwrap()), json!(null)).await;
    assert_eq!(status, 200);
    let (status, second) = upload(&gateway, &tenant, &line(b'b')).await;
    assert_eq!(status, 200, "{second}");
    ask(&caller, "DELETE", &format!("/v1/files/{}", second["id"].as_str().unwrap()), json!(null)).await;

    // A small file with many vectors: 5,000 of 64 numbers are more than there is room for.
    let texts: Vec<_> = (0..5_000).map(|n| (n.to_string(), "a".to_owned())).collect();
    let file = caller.upload("corpus.jsonl", jsonl(&texts)).await;
    let batch = caller.batch(&file, json!({"output": {"dimensions": 64}})).await;
    let failed = caller.reaches(&batch, "failed").await;
    assert_eq!(failed["errors"]["data"][0]["code"], "storage_limit_exceeded", "{failed}");
    let batch = caller.batch(&file, json!({"output": {"dimensions": 32, "dtype": "f16"}})).await;
    caller.reaches(&batch, "in_progress").await;
}

#[tokio::test]
async fn compressed_text_is_queued_as_what_it_is() {
    let cluster = Cluster::shared().await;
    let tenant = cluster.admin("a", &["--queued-tokens", "20000"]);
    let gateway = cluster.gateway(&[]).await;
    let caller = Caller::new(&gateway, &tenant);
    let plain: Vec<u8> = (0..2_000)
        .flat_map(|n| format!("{{\"id\":\"{n}\",\"text\":\"{}\"}}\n", "word ".repeat(200)).into_bytes())
        .collect();
    let gzip = gzip(&plain);
    assert!(gzip.len() < 40_000, "by its own length it would be 10,000 tokens: {}", gzip.len());
    for (name, bytes) in [("plain.jsonl", plain), ("small.jsonl.gz", gzip)] {
        let file = caller.upload(name, bytes).await;
        let batch = caller.batch(&file, json!({})).await;
        let failed = caller.reaches(&batch, "failed").await;
        let first = &failed["errors"]["data"][0];
        assert_eq!(first["code"], "token_limit_exceeded", "{name}: {failed}");
        assert!(first["message"].as_str().unwrap().contains("queued_tokens"), "{name}: {failed}");
    }
}

/// The limits of a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Limit {
    Requests,
    Tokens,
    QueuedTokens,
    ConcurrentJobs,
    StoredBytes,
}

/// All of them: a limit that is added does not compile here before it has a place in the table.
fn all_limits(limits: Limits) -> Vec<Limit> {
    let Limits {
        requests_per_minute: _,
        tokens_per_minute: _,
        tokens_burst: _,
        tokens_per_day: _,
        queued_tokens: _,
        concurrent_jobs: _,
        stored_bytes: _,
    } = limits;
    vec![Limit::Requests, Limit::Tokens, Limit::QueuedTokens, Limit::ConcurrentJobs, Limit::StoredBytes]
}

/// How a door stands to a limit.
#[derive(Debug)]
enum Cell {
    /// It refuses who is over it, with this code.
    Refuses(&'static str),
    /// It takes what is over it, and the batch fails with this code.
    Fails(&'static str),
    /// It does not apply, because of this.
    Free(&'static str),
}

fn cell(limit: Limit, method: &str, path: &str) -> Cell {
    use Cell::{Fails, Free, Refuses};
    let begins = match (method, path) {
        ("POST", "/v1/batches" | "/v1/jobs/{job}/retry" | "/v1/jobs/{job}/resume") => true,
        ("POST", "/v1/files" | "/v1/embeddings" | "/v1/batches/{batch_id}/cancel")
        | ("POST", "/v1/jobs/{job}/cancel" | "/v1/jobs/{job}/pause")
        | ("DELETE", "/v1/files/{file_id}")
        | ("GET", _) => false,
        door => panic!("a door that this table does not know: {door:?}"),
    };
    match (limit, path) {
        (Limit::Requests, _) => Refuses("requests_per_minute"),
        (Limit::Tokens, "/v1/embeddings") if method == "POST" => Refuses("tokens_per_day"),
        (Limit::Tokens, _) if begins => Free("over its rate a job is queued and waits: workers charge chunk by chunk"),
        (Limit::Tokens, _) => Free("nothing is computed"),
        (Limit::QueuedTokens, "/v1/batches") if begins => Fails("token_limit_exceeded"),
        (Limit::ConcurrentJobs, "/v1/batches") if begins => Fails("token_limit_exceeded"),
        (Limit::StoredBytes, "/v1/batches") if begins => Fails("storage_limit_exceeded"),
        (Limit::QueuedTokens, _) if begins => Refuses("queued_tokens"),
        (Limit::ConcurrentJobs, _) if begins => Refuses("concurrent_jobs"),
        (Limit::StoredBytes, _) if begins => Refuses("stored_bytes"),
        (Limit::StoredBytes, "/v1/files") if method == "POST" => Refuses("stored_bytes"),
        (Limit::QueuedTokens | Limit::ConcurrentJobs, _) => Free("no job is begun, and none goes on"),
        (Limit::StoredBytes, _) => Free("nothing is stored, or what was reserved for it before"),
    }
}

/// Every limit at every door, from the gateway's own table of doors: a new door is in here before anybody thinks of it.
#[tokio::test(flavor = "multi_thread")]
async fn every_limit_holds_at_every_door() {
    let cluster = Cluster::shared().await;
    let gateway = cluster.gateway(&[]).await;
    let (_, described) = gateway.get("/openapi.json").await.unwrap();
    let described: Value = serde_json::from_str(&described).unwrap();
    let doors: Vec<(String, String)> = described["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, methods)| {
            methods.as_object().unwrap().keys().map(|method| (method.to_uppercase(), path.clone()))
        })
        .collect();
    assert!(doors.len() > 20, "{doors:?}");
    let limits = all_limits(Limits {
        requests_per_minute: 0,
        tokens_per_minute: 0,
        tokens_burst: 0,
        tokens_per_day: 0,
        queued_tokens: 0,
        concurrent_jobs: 0,
        stored_bytes: None,
    });
    let texts =
        |seed: usize| jsonl(&(0..1_000).map(|n| (n.to_string(), format!("text {seed} {n}"))).collect::<Vec<_>>());
    let mut held = BTreeSet::new();
    for &limit in &limits {
        // Room for one job of a thousand short texts with 64 numbers each, and not for two.
        let flags: &[&str] = match limit {
            Limit::Requests => &["--requests-per-minute", "1"],
            Limit::Tokens => &["--tokens-per-day", "1", "--tokens-burst", "1"],
            Limit::QueuedTokens => &["--queued-tokens", "4000"],
            Limit::ConcurrentJobs => &["--concurrent-jobs", "1"],
            Limit::StoredBytes => &["--stored-bytes", "600000"],
        };
        let tenant = cluster.admin(&format!("{limit:?}").to_lowercase(), flags);
        let caller = Caller::new(&gateway, &tenant);
        // One job that was cancelled, one that is held up, and the place is taken by the third.
        let mut jobs = Vec::new();
        let mut file = String::new();
        if !matches!(limit, Limit::Requests | Limit::Tokens) {
            for seed in 0..3 {
                file = caller.upload("corpus.jsonl", texts(seed)).await;
                let batch = caller.batch(&file, json!({"output": {"dimensions": 64}})).await;
                let queued = caller.reaches(&batch, "in_progress").await;
                let job = queued["job"].as_str().unwrap().to_owned();
                match seed {
                    0 => drop(caller.post(&format!("/v1/jobs/{job}/cancel"), json!({})).await),
                    1 => {
                        caller.post(&format!("/v1/jobs/{job}/pause"), json!({})).await;
                        // As after Redis was emptied: nobody knows of it but S3.
                        for of in ["queued", "storing"] {
                            cluster.redis(&["DEL", &format!("vecmill:{{{}}}:{of}", tenant.id)]);
                        }
                    }
                    _ => {}
                }
                if seed == 0 {
                    eventually("it is cancelled", LIMIT, || async {
                        (caller.get(&format!("/v1/jobs/{job}")).await["state"] == "cancelled").then_some(())
                    })
                    .await;
                }
                jobs.push(job);
            }
        }
        for (method, path) in &doors {
            let what = format!("{limit:?} at {method} {path}");
            let code = match cell(limit, method, path) {
                Cell::Free(reason) => {
                    assert!(!reason.is_empty(), "{what}");
                    continue;
                }
                Cell::Refuses(code) | Cell::Fails(code) => code,
            };
            let job = match path.as_str() {
                "/v1/jobs/{job}/retry" => jobs.first(),
                _ => jobs.get(1),
            };
            let nobody = "0".repeat(32);
            let at = path
                .replace("{job}", job.unwrap_or(&nobody))
                .replace("{part}", "0")
                .replace("{model}", "m")
                .replace("{file_id}", "file-x")
                .replace("{batch_id}", "batch_x");
            let (status, refused) = match (method.as_str(), path.as_str()) {
                ("POST", "/v1/files") => {
                    let bytes = if limit == Limit::StoredBytes { 600_000 } else { 10 };
                    upload(&gateway, &tenant, &vec![b'x'; bytes]).await
                }
                ("POST", "/v1/batches") if !jobs.is_empty() => {
                    let batch = caller.batch(&file, json!({"output": {"dimensions": 63}})).await;
                    let failed = caller.reaches(&batch, "failed").await;
                    (429, json!({"error": failed["errors"]["data"][0]}))
                }
                ("POST", "/v1/embeddings") => {
                    let body =
                        json!({"model": vecmill_tests::cluster::MODEL, "input": "more than a single token of text"});
                    ask(&caller, method, &at, body).await
                }
                _ => ask(&caller, method, &at, json!({})).await,
            };
            if limit == Limit::Tokens {
                // A worker's to say: without one, nothing is computed.
                continue;
            }
            if limit == Limit::Requests && held.iter().all(|(of, _)| *of != limit) && status != 429 {
                // The one request of the minute.
                let (status, refused) = ask(&caller, method, &at, json!({})).await;
                assert_eq!((status, &refused["error"]["code"]), (429, &json!(code)), "{what}: {refused}");
            } else {
                assert_eq!((status, &refused["error"]["code"]), (429, &json!(code)), "{what}: {refused}");
            }
            held.insert((limit, format!("{method} {path}")));
        }
    }
    assert!(held.len() > doors.len() + 8, "{held:?}");
}
