//! Clients that others made, and the service's own description of itself.

use serde_json::{Value, json};
use vecmill_tests::{Cluster, WorkerOptions, cluster::MODEL, results::count_tokens};

use super::{ask, body};
use crate::stock_clients::{LANGCHAIN, NODE, PYTHON, installed, steps};

#[tokio::test(flavor = "multi_thread")]
async fn the_stock_sdk_works_unchanged() {
    let cluster = Cluster::shared().await;
    let tenant = cluster.tenant("a", &[]);
    let tokens =
        u64::from(count_tokens(&cluster.model_dir(), &[(String::new(), "tide river copper lamp".to_owned())])[0]);
    // Two requests at once, and one more every four seconds.
    let (burst, rate) = ((2 * tokens).to_string(), (15 * tokens).to_string());
    let limited = cluster.tenant("limited", &["--tokens-per-minute", &rate, "--tokens-burst", &burst]);
    let stranger = Cluster::shared().await.tenant("b", &[]);
    let _worker = cluster.worker(WorkerOptions::default()).await;
    let gateway = cluster.gateway(&[]).await;
    let files = [("key", &tenant), ("bad", &stranger), ("limited", &limited)].map(|(name, tenant)| {
        let path = cluster.dir.path().join(name);
        std::fs::write(&path, &tenant.api_key).unwrap();
        path
    });
    let url = format!("{}/v1", gateway.url);
    let [key, bad, limited] = &files;
    let arguments = [url.as_ref(), key.as_os_str(), bad.as_os_str(), limited.as_os_str(), MODEL.as_ref()];
    let steps = steps(installed(PYTHON), "embeddings/stock_client.py", &arguments);
    let step =
        |name: &str| steps.iter().find(|step| step["step"] == name).unwrap_or_else(|| panic!("no {name}: {steps:?}"));

    let sync = step("sync");
    assert_eq!((&sync["same"], &sync["indexes"], &sync["model"]), (&json!(true), &json!([0, 1, 2]), &json!(MODEL)));
    assert_eq!(sync["tokens"][0], sync["tokens"][1]);
    let ours =
        ask(&gateway, &tenant.api_key, &body(json!(["tide river copper", "lamp queue lane", "été naïve 東京"]))).await;
    let theirs: Vec<Vec<f32>> = serde_json::from_value(sync["vectors"].clone()).unwrap();
    assert_eq!(ours.vectors(), theirs, "to the bit");
    assert_eq!(step("options")["lengths"], json!([32]));
    assert_eq!((&step("models")["ids"], &step("models")["one"]), (&json!([MODEL]), &json!(MODEL)));
    assert_eq!(step("async")["same"], true);
    let errors: Vec<_> = steps.iter().filter(|step| step["step"] == "error").collect();
    assert_eq!(errors.len(), 4);
    for error in errors {
        assert_eq!(error["right"], true, "{error}");
        assert_eq!(error["request"].as_str().map(str::len), Some(32), "{error}");
    }
    assert!(step("retries")["seconds"].as_f64().unwrap() > 2.0, "it must have waited: {}", step("retries"));
}

#[tokio::test(flavor = "multi_thread")]
async fn other_stock_clients_work_unchanged() {
    let cluster = Cluster::shared().await;
    let tenant = cluster.tenant("a", &[]);
    let _worker = cluster.worker(WorkerOptions::default()).await;
    let gateway = cluster.gateway(&[]).await;
    let key = cluster.dir.path().join("key");
    std::fs::write(&key, &tenant.api_key).unwrap();
    let url = format!("{}/v1", gateway.url);
    let node = installed(NODE);
    let arguments = [url.as_ref(), key.as_os_str(), MODEL.as_ref(), node.as_os_str()];
    let ours = ask(&gateway, &tenant.api_key, &body(json!(["tide river copper", "lamp queue lane"]))).await;
    let floats = |value: &Value| serde_json::from_value::<Vec<Vec<f32>>>(value.clone()).unwrap();

    let told = steps("node", "embeddings/stock_client.mjs", &arguments);
    assert_eq!(floats(&told[0]["vectors"]), ours.vectors(), "to the bit");
    assert_eq!(told[0]["tokens"], ours.body["usage"]["total_tokens"]);
    assert_eq!((&told[1]["status"], &told[1]["ids"]), (&json!("completed"), &json!(["c-0", "c-1"])));
    assert_eq!(floats(&told[1]["vectors"]), ours.vectors(), "to the bit");
    assert_eq!(told[2], json!({"step": "lists", "batches": 1, "mine": true}));
    assert_eq!(told[3], json!({"step": "error", "right": true, "code": "model_not_found"}));

    let told = steps(installed(LANGCHAIN), "embeddings/langchain_client.py", &arguments[..3]);
    assert_eq!(floats(&told[0]["documents"]), ours.vectors(), "to the bit");
    assert_eq!(floats(&json!([told[0]["query"]])), ours.vectors()[..1]);
}

/// Puts a service to the test of its own description; `infra/test` installs it and says where.
const SCHEMATHESIS: &str = "VECMILL_SCHEMATHESIS";

#[tokio::test(flavor = "multi_thread")]
async fn it_does_what_its_description_says_and_never_answers_500() {
    let schemathesis = std::env::var_os(SCHEMATHESIS).expect("VECMILL_SCHEMATHESIS names no program: run ./infra/test");
    let cluster = Cluster::shared().await;
    let tenant = cluster.admin("a", &["--requests-per-minute", "1000000"]);
    let worker = cluster.worker(WorkerOptions::default()).await;
    let gateway = cluster.gateway(&[]).await;
    let output = std::process::Command::new(schemathesis)
        .args(["run", &format!("{}/openapi.json", gateway.url)])
        .args(["--header", &format!("Authorization: Bearer {}", tenant.api_key)])
        // A text may be too long and a token id unknown, which no description can say.
        .args(["--checks", "all", "--exclude-checks", "positive_data_acceptance"])
        .args(["--max-examples", "100", "--seed", "1", "--no-color", "--suppress-health-check", "filter_too_much"])
        .env("NO_PROXY", "127.0.0.1")
        .current_dir(cluster.dir.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("Tested: 26"), "{told}");
    assert!(
        worker.counter("vecmill_worker_requests_total{answer=\"Embedded\"}").await > 20,
        "it got to the model: {told}"
    );
}
