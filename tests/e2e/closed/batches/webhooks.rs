//! What is told to whoever listens, and folders with things in them that can't be read.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::{Router, extract::Path, extract::State, http::StatusCode, routing::post};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use vecmill_tests::{
    Cluster, WorkerOptions, corpus, eventually,
    receivers::{served, tarpit, webhook_settings},
};

use super::{LIMIT, document};
use crate::batches::{Caller, jsonl};

/// A record that is longer than any reader takes.
const TOO_LONG: usize = (1 << 20) + 1;

/// Receivers: `/hear/NAME` remembers that it was told, and there is one that never answers.
struct Receivers {
    heard: Arc<Mutex<Vec<String>>>,
    url: String,
    tarpit: String,
    /// Of a gateway that may tell them.
    settings: [(&'static str, String); 2],
}

async fn receivers() -> Receivers {
    async fn hear(State(heard): State<Arc<Mutex<Vec<String>>>>, Path(name): Path<String>) -> StatusCode {
        heard.lock().unwrap().push(name);
        StatusCode::NO_CONTENT
    }
    let heard = Arc::<Mutex<Vec<String>>>::default();
    let address = served(Router::new().route("/hear/{name}", post(hear)).with_state(Arc::clone(&heard))).await;
    let pit = tarpit().await;
    Receivers {
        heard,
        url: format!("http://{address}/hear"),
        tarpit: format!("http://{pit}/"),
        settings: webhook_settings(&[address, pit]),
    }
}

impl Receivers {
    async fn hear(&self, name: &str, limit: Duration) {
        let was_told = || self.heard.lock().unwrap().iter().any(|heard| heard == name);
        eventually(&format!("{name} is told"), limit, || async { was_told().then_some(()) }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_never_answers_delays_its_own_webhooks_alone() {
    let cluster = Cluster::shared().await;
    let store = cluster.store().await;
    let (a, b) = (cluster.admin("a", &[]), cluster.admin("b", &[]));
    let receivers = receivers().await;
    let _worker = cluster.worker(WorkerOptions::default()).await;
    let gateway = cluster.gateway(&receivers.settings).await;
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
    let (store, tenant) = (cluster.store().await, cluster.admin("a", &[]));
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
    let gateway = cluster.gateway(&receivers.settings).await;
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
