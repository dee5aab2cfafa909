//! The doors of files, batches, jobs and webhooks: what a tenant sends through them must not stop, slow or outspend another.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::{Router, extract::Path, extract::State, http::StatusCode, routing::post};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use vecmill_producer::store::Store;
use vecmill_signer::claims::Limits;
use vecmill_tests::{Cluster, Tenant, WorkerOptions, cluster::Process, corpus, eventually};

use crate::batches::{Caller, admin, jsonl};

const LIMIT: Duration = Duration::from_secs(90);
/// A record that is longer than any reader takes.
const TOO_LONG: usize = (1 << 20) + 1;

/// A corpus that takes long to cut: each line makes a chunk of its own.
fn slow_corpus(tenant: &Tenant) -> Vec<u8> {
    (0..60_000).flat_map(|n| format!("{{\"id\":\"{n}\",\"text\":\"{} {n}\"}}\n", tenant.id).into_bytes()).collect()
}

/// What lies at a key, as JSON.
async fn document(store: &Store, key: &str) -> Option<Value> {
    store.get_json(key, 1 << 20).await.unwrap()
}

/// The status and the body of a request that may be refused.
async fn ask(caller: &Caller<'_>, method: &str, path: &str, body: Value) -> (u16, Value) {
    let body = (method == "POST").then_some(body);
    caller.ask(method.parse().unwrap(), path, body).await
}

fn batch_of(file: &str) -> Value {
    json!({"input_file_id": file, "endpoint": "/v1/embeddings", "completion_window": "24h"})
}

/// An upload that may be refused.
async fn upload(gateway: &Process, tenant: &Tenant, bytes: &[u8]) -> (u16, Value) {
    let form = [
        b"--b\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--b\r\nContent-Disposition: form-data; \
          name=\"file\"; filename=\"f.jsonl\"\r\n\r\n",
        bytes,
        b"\r\n--b--\r\n",
    ]
    .concat();
    let client = reqwest::Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
    let request = client.post(format!("{}/v1/files", gateway.url)).bearer_auth(&tenant.api_key);
    let answer = request.header("content-type", "multipart/form-data; boundary=b").body(form).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// A connection with the head of an upload and the beginning of its form sent.
async fn upload_begun(gateway: &Process, tenant: &Tenant, form: &str) -> TcpStream {
    let address = gateway.url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /v1/files HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\nContent-Length: 100000000\r\n\
         Content-Type: multipart/form-data; boundary=b\r\n\r\n{form}",
        tenant.api_key
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_gateways_die_of_is_failed_and_others_are_not() {
    let cluster = Cluster::shared().await;
    let (store, tenant, other) = (cluster.store().await, admin(&cluster, "a", &[]), admin(&cluster, "b", &[]));
    let begun = async |key: &str, count: u64| {
        let what = format!("the preparation has begun {count} times and not come back");
        eventually(&what, LIMIT, || async {
            (document(&store, key).await.is_some_and(|pending| pending["begun"] == count)).then_some(())
        })
        .await;
    };
    let mut gateway = cluster.gateway(&[]).await;
    let (key, batch) = {
        let caller = Caller::new(&gateway, &tenant);
        let file = caller.upload("corpus.jsonl", slow_corpus(&tenant)).await;
        let batch = caller.batch(&file, json!({"chunk_rows": 1})).await;
        (format!("_preparing/{}/{batch}.json", tenant.id), batch)
    };
    begun(&key, 1).await;
    // One that is told to stop has not died of it.
    assert!(gateway.terminate().await);
    begun(&key, 0).await;
    for death in 1..=3 {
        gateway = cluster.gateway(&[]).await;
        begun(&key, death).await;
        gateway.kill();
    }
    gateway = cluster.gateway(&[]).await;
    let caller = Caller::new(&gateway, &tenant);
    let failed = caller.reaches(&batch, "failed").await;
    let first = &failed["errors"]["data"][0];
    assert_eq!(first["code"], "preparation_failed", "{failed}");
    assert!(first["message"].as_str().unwrap().contains("died"), "{failed}");
    assert!(!store.exists(&key).await.unwrap(), "nobody takes it up again");

    // Another's goes on, and so does the tenant's next.
    for (tenant, seed) in [(&other, 901), (&tenant, 902)] {
        let caller = Caller::new(&gateway, tenant);
        let file = caller.upload("corpus.jsonl", jsonl(&corpus::texts(seed, 10))).await;
        let batch = caller.batch(&file, json!({})).await;
        caller.reaches(&batch, "in_progress").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_batch_stops_in_the_middle_of_its_preparation() {
    let cluster = Cluster::shared().await;
    let (store, tenant) = (cluster.store().await, admin(&cluster, "a", &[]));
    let gateway = cluster.gateway(&[("VECMILL_GATEWAY_PREPARING", "1".to_owned())]).await;
    let caller = Caller::new(&gateway, &tenant);
    let file = caller.upload("corpus.jsonl", slow_corpus(&tenant)).await;
    let slow = caller.batch(&file, json!({"chunk_rows": 1})).await;
    let waiting = caller.batch(&file, json!({"chunk_rows": 2})).await;
    let jobs = format!("{}/jobs/", tenant.id);
    eventually("it is being cut", LIMIT, || async {
        (store.list_some(&jobs, None, 100).await.unwrap().len() == 100).then_some(())
    })
    .await;
    let asked = Instant::now();
    // One that has not had its turn does not wait for it either.
    for batch in [&waiting, &slow] {
        caller.post(&format!("/v1/batches/{batch}/cancel"), json!({})).await;
        caller.reaches(batch, "cancelled").await;
    }
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(20), "cutting it to its end would have taken longer: {took:?}");
    eventually("what was cut of it is gone", LIMIT, || async {
        let left = store.list(&jobs, None).await.unwrap();
        left.iter().all(|object| object.key.contains("/ledger/")).then_some(())
    })
    .await;
    // Its place is another's.
    let other = admin(&cluster, "b", &[]);
    let caller = Caller::new(&gateway, &other);
    let file = caller.upload("corpus.jsonl", jsonl(&corpus::texts(903, 10))).await;
    let batch = caller.batch(&file, json!({})).await;
    caller.reaches(&batch, "in_progress").await;
}

/// Receivers: `/hear/NAME` remembers that it was told, and there is one that never answers.
struct Receivers {
    heard: Arc<Mutex<Vec<String>>>,
    url: String,
    tarpit: String,
    allow: String,
}

async fn receivers() -> Receivers {
    async fn hear(State(heard): State<Arc<Mutex<Vec<String>>>>, Path(name): Path<String>) -> StatusCode {
        heard.lock().unwrap().push(name);
        StatusCode::NO_CONTENT
    }
    let heard = Arc::<Mutex<Vec<String>>>::default();
    let (listener, pit) =
        (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let (address, pit_address) = (listener.local_addr().unwrap(), pit.local_addr().unwrap());
    let routes = Router::new().route("/hear/{name}", post(hear)).with_state(Arc::clone(&heard));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((connection, _)) = pit.accept().await {
            held.push(connection);
        }
    });
    Receivers {
        heard,
        url: format!("http://{address}/hear"),
        tarpit: format!("http://{pit_address}/"),
        allow: format!("{address},{pit_address}"),
    }
}

impl Receivers {
    async fn hear(&self, name: &str, limit: Duration) {
        let was_told = || self.heard.lock().unwrap().iter().any(|heard| heard == name);
        eventually(&format!("{name} is told"), limit, || async { was_told().then_some(()) }).await;
    }

    fn settings(&self) -> [(&'static str, String); 2] {
        [
            ("VECMILL_WEBHOOK_KEY", "0123456789abcdef0123456789abcdef".to_owned()),
            ("VECMILL_GATEWAY_WEBHOOK_ALLOW", self.allow.clone()),
        ]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_never_answers_delays_its_own_webhooks_alone() {
    let cluster = Cluster::shared().await;
    let store = cluster.store().await;
    let (a, b) = (admin(&cluster, "a", &[]), admin(&cluster, "b", &[]));
    let receivers = receivers().await;
    let _worker = cluster.worker(WorkerOptions::default()).await;
    let gateway = cluster.gateway(&receivers.settings()).await;
    let caller = Caller::new(&gateway, &a);
    let file = caller.upload("corpus.jsonl", jsonl(&corpus::texts(904, 5))).await;
    let batch = caller.batch(&file, json!({})).await;
    caller.reaches(&batch, "completed").await;
    // All due long ago, and first of all listed, in the folder of today and where gateways of before put them.
    let pending = |key: String, url: String| {
        let (store, batch, tenant) = (&store, &batch, &a.id);
        async move {
            let pending =
                json!({"tenant": tenant, "batch": batch, "url": url, "created_at": 1, "next_at": 1, "tries": 0});
            store.put_json(&key, &pending).await.unwrap();
        }
    };
    let tarpits = (1..=1_500).map(|at| format!("_webhooks/{}/{at:012}-{batch}.json", a.id));
    stream::iter(tarpits).for_each_concurrent(32, |key| pending(key, receivers.tarpit.clone())).await;
    pending(format!("_webhooks/{batch}.json"), receivers.tarpit.clone()).await;

    let caller = Caller::new(&gateway, &b);
    let file = caller.upload("corpus.jsonl", jsonl(&corpus::texts(905, 5))).await;
    let batch = caller.batch(&file, json!({"webhook_url": format!("{}/b", receivers.url)})).await;
    caller.reaches(&batch, "completed").await;
    // Three receivers that do not answer would take longer, one after the other.
    receivers.hear("b", Duration::from_secs(25)).await;
    let left = store.list("_webhooks/", None).await.unwrap();
    assert!(left.len() > 1_400, "A's still wait: {}", left.len());
    assert!(left.iter().all(|object| object.key.matches('/').count() == 2), "each in its tenant's folder");
}

#[tokio::test]
async fn a_range_without_a_port_is_refused_at_start() {
    let cluster = Cluster::shared().await;
    let refused = cluster.run("vecmill-gateway", &["serve", "--webhook-allow", "127.0.0.0/8"]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{told}");
    assert!(told.contains("10.0.0.0/8:443"), "it says how to write it: {told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_t_be_read_is_passed_over() {
    let cluster = Cluster::shared().await;
    let (store, tenant) = (cluster.store().await, admin(&cluster, "a", &[]));
    let receivers = receivers().await;
    let id = |prefix: &str, n: usize| format!("{prefix}{}{n:02}", "0".repeat(24));
    let later = serde_json::to_vec(&json!({"version": 99, "id": "x"})).unwrap();
    let poisons = [vec![b' '; TOO_LONG], b"a tenant's text, and no JSON".to_vec(), later];
    // In every folder that something looks through by itself, or lists: first of all, and more than any look takes.
    let mut keys = Vec::new();
    for n in 0..40 {
        let (batch, file) = (id("batch_", n), id("file-", n));
        keys.extend([
            format!("_webhooks/{batch}.json"),
            format!("_webhooks/{}/{n:012}-{batch}.json", tenant.id),
            format!("_preparing/{}/{batch}.json", tenant.id),
            format!("{}/batches/{batch}.json", tenant.id),
            format!("{}/files/{file}.json", tenant.id),
            format!("{}/files-expiring/{n:012}-{file}.json", tenant.id),
            format!("{}/jobs/{n:032x}/ledger/{:010}.json", tenant.id, u32::MAX - 1),
        ]);
    }
    // As some server may have it: a name that is none of ours.
    keys.extend([format!("{}/files-expiring/x.json", tenant.id), "_preparing/x.json".to_owned()]);
    stream::iter(keys.into_iter().enumerate())
        .for_each_concurrent(16, |(n, key)| {
            let (store, poison) = (&store, poisons[n % 3].clone());
            async move { store.put(&key, poison, "application/json").await.unwrap() }
        })
        .await;

    let _worker = cluster.worker(WorkerOptions::default()).await;
    let gateway = cluster.gateway(&receivers.settings()).await;
    let caller = Caller::new(&gateway, &tenant);
    let file = caller.upload("corpus.jsonl", jsonl(&corpus::texts(906, 5))).await;
    // A file whose time is over, behind forty that can't be removed.
    let gone = caller.upload("corpus.jsonl", b"\"a\"\n".to_vec()).await;
    let (record, past) = (format!("{}/files/{gone}.json", tenant.id), 1_700_000_000_u64);
    let mut expiring = document(&store, &record).await.unwrap();
    expiring["expires_at"] = json!(past);
    store.put_json(&record, &expiring).await.unwrap();
    store.put(&format!("{}/files-expiring/{past:012}-{gone}.json", tenant.id), Vec::new(), "text/plain").await.unwrap();

    // What an older gateway left is told as well.
    let old = caller.batch(&file, json!({"chunk_rows": 2})).await;
    caller.reaches(&old, "completed").await;
    let left = json!({"tenant": tenant.id, "batch": old, "url": format!("{}/old", receivers.url), "created_at": 1, "next_at": 1, "tries": 0});
    store.put_json(&format!("_webhooks/{old}.json"), &left).await.unwrap();
    let batch = caller.batch(&file, json!({"webhook_url": format!("{}/new", receivers.url)})).await;
    let done = caller.reaches(&batch, "completed").await;
    receivers.hear("new", LIMIT).await;
    receivers.hear("old", LIMIT).await;

    let ids = |list: &Value, name: &str| -> BTreeSet<String> {
        list["data"].as_array().unwrap().iter().map(|entry| entry[name].as_str().unwrap().to_owned()).collect()
    };
    eventually("the file whose time is over is removed", LIMIT, || async {
        (!ids(&caller.get("/v1/files").await, "id").contains(&gone)).then_some(())
    })
    .await;
    assert!(!store.exists(&format!("{}/file-content/{gone}", tenant.id)).await.unwrap());
    assert!(ids(&caller.get("/v1/files").await, "id").contains(&file));
    // A page that is full of them says what comes behind it.
    let (mut seen, mut after) = (BTreeSet::new(), String::new());
    loop {
        let page = caller.get(&format!("/v1/batches?limit=7{after}")).await;
        seen.extend(ids(&page, "id"));
        if page["has_more"] == false {
            break;
        }
        after = format!("&after={}", page["last_id"].as_str().unwrap());
    }
    assert_eq!(seen, BTreeSet::from([old.clone(), batch.clone()]));
    assert!(ids(&caller.get("/v1/jobs").await, "job").contains(done["job"].as_str().unwrap()));
    let named = [format!("_webhooks/{}/{:012}", tenant.id, 7), format!("_preparing/{}/{}", tenant.id, id("batch_", 7))];
    let told = |key: &String| {
        let log = gateway.logged();
        log.lines().filter(|line| line.contains("is passed over") && line.contains(key.as_str())).count()
    };
    eventually("each is told of", LIMIT, || async { named.iter().all(|key| told(key) > 0).then_some(()) }).await;
    // Two more looks at either.
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(named.iter().map(told).collect::<Vec<_>>(), [1, 1], "once");
    assert!(!gateway.logged().contains("tenant's text"), "by its name, and nothing of what is in it");
}

#[tokio::test]
async fn every_field_of_a_batch_has_a_bound() {
    let cluster = Cluster::shared().await;
    let tenant = admin(&cluster, "a", &[]);
    let gateway = cluster.gateway(&receivers().await.settings()).await;
    let caller = Caller::new(&gateway, &tenant);
    let file = caller.upload("corpus.jsonl", b"\"a\"\n".to_vec()).await;
    let long = "x".repeat(5_000);
    let many: serde_json::Map<_, _> = (0..5_000).map(|n| (n.to_string(), json!("x"))).collect();
    for (more, param) in [
        (json!({"instruction": long}), "instruction"),
        (json!({"model": long}), "model"),
        (json!({"input": {"id_field": long}}), "input.id_field"),
        (json!({"input": {"text_field": long}}), "input.text_field"),
        (json!({"metadata": {"a": long}}), "metadata"),
        (json!({"metadata": {long.clone(): "a"}}), "metadata"),
        (json!({"metadata": many}), ""),
        (json!({"webhook_url": format!("https://example.com/{long}")}), "webhook_url"),
        (json!({"completion_window": long}), "completion_window"),
        (json!({"input_file_id": long}), "input_file_id"),
    ] {
        let mut body = batch_of(&file);
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, refused) = ask(&caller, "POST", "/v1/batches", body).await;
        assert_eq!(status, 400, "{param}: {refused}");
        assert!(param.is_empty() || refused["error"]["param"] == param, "{param}: {refused}");
    }
    let mut body = batch_of(&file);
    body["instruction"] = json!("x".repeat(1 << 20));
    assert_eq!(ask(&caller, "POST", "/v1/batches", body).await.0, 413, "not even read as JSON");
    // Over another connection: that one was closed on a body that was not read.
    let caller = Caller::new(&gateway, &tenant);
    let (status, _) =
        ask(&caller, "POST", &format!("/v1/jobs/{}/retry", "0".repeat(32)), json!({"completion_window": long})).await;
    assert!(status == 404 || status == 413, "{status}");
    assert_eq!(caller.get("/v1/batches").await["data"], json!([]), "none was made");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_s_header_ends_or_the_form_does() {
    let cluster = Cluster::shared().await;
    let tenant = admin(&cluster, "a", &[]);
    let gateway = cluster.gateway(&[]).await;
    for begun in ["", "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\nX: "] {
        let mut stream = upload_begun(&gateway, &tenant, begun).await;
        let mut sent = 0;
        let mut answer = Vec::new();
        // Eight MiB of header, a little at a time: each little is looked at before the next is sent.
        while sent < 8 << 20 {
            if stream.write_all(&[b'x'; 4 << 10]).await.is_err() {
                break;
            }
            sent += 4 << 10;
            let mut piece = [0; 4096];
            if let Ok(Ok(read)) = tokio::time::timeout(Duration::from_millis(300), stream.read(&mut piece)).await {
                answer.extend_from_slice(&piece[..read]);
                break;
            }
        }
        let told = String::from_utf8_lossy(&answer).into_owned();
        assert!(told.starts_with("HTTP/1.1 413") && told.contains("16 KiB"), "after {sent} bytes: {told}");
        assert!(sent <= 64 << 10, "refused after {sent} bytes");
    }
    // More parts than a form has.
    let parts = "--b\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n".repeat(100);
    let mut stream = upload_begun(&gateway, &tenant, &parts).await;
    let mut piece = [0; 4096];
    let read = tokio::time::timeout(LIMIT, stream.read(&mut piece)).await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&piece[..read]).starts_with("HTTP/1.1 400"));
    // And the gateway goes on.
    let (status, file) = upload(&gateway, &tenant, b"\"a\"\n").await;
    assert_eq!(status, 200, "{file}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_s_stalled_uploads_leave_others_their_places() {
    let cluster = Cluster::shared().await;
    let (a, b) = (admin(&cluster, "a", &[]), admin(&cluster, "b", &[]));
    // Eight places of sixteen are one tenant's.
    let gateway = cluster.gateway(&[("VECMILL_GATEWAY_TRANSFERS", "16".to_owned())]).await;
    let begun = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\nx";
    let mut stalled = Vec::new();
    for _ in 0..16 {
        stalled.push(upload_begun(&gateway, &a, begun).await);
    }
    eventually("A has its share", LIMIT, || async {
        let (status, refused) = upload(&gateway, &a, b"\"a\"\n").await;
        (status == 503 && refused["error"]["code"] == "overloaded").then_some(())
    })
    .await;
    for _ in 0..10 {
        let (status, file) = upload(&gateway, &b, b"\"b\"\n").await;
        assert_eq!(status, 200, "{file}");
    }
    drop(stalled);
    eventually("A's places are free again", LIMIT, || async {
        (upload(&gateway, &a, b"\"a\"\n").await.0 == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_stores_what_it_may_and_deleting_makes_room() {
    let cluster = Cluster::shared().await;
    let tenant = admin(&cluster, "a", &["--stored-bytes", "1000000"]);
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
    let tenant = admin(&cluster, "a", &["--queued-tokens", "20000"]);
    let gateway = cluster.gateway(&[]).await;
    let caller = Caller::new(&gateway, &tenant);
    let plain: Vec<u8> = (0..2_000)
        .flat_map(|n| format!("{{\"id\":\"{n}\",\"text\":\"{}\"}}\n", "word ".repeat(200)).into_bytes())
        .collect();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&plain).unwrap();
    let gzip = gzip.finish().unwrap();
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
        let tenant = admin(&cluster, &format!("{limit:?}").to_lowercase(), flags);
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
