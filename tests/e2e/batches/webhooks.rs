//! Webhooks: told once a batch has ended, told again until they are heard, and verified by OpenAI's own SDK.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, http::StatusCode, routing::post};
use serde_json::json;
use vecmill_tests::{
    Cluster, WorkerOptions, corpus, eventually,
    program::json_of,
    receivers::{served, webhook_settings},
};

use super::{Caller, LIMIT, batch_of, jsonl};
use crate::stock_clients::{PYTHON, installed};

/// What has come: headers and body.
type Heard = Arc<Mutex<Vec<(HeaderMap, Bytes)>>>;

/// Refuses the first message, takes the others.
async fn listen(heard: Heard) -> SocketAddr {
    async fn hear(State(heard): State<Heard>, headers: HeaderMap, body: Bytes) -> StatusCode {
        let mut heard = heard.lock().unwrap();
        heard.push((headers, body));
        if heard.len() == 1 { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::NO_CONTENT }
    }
    served(Router::new().route("/hook", post(hear)).with_state(heard)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_is_told_until_it_is_heard() {
    let cluster = Cluster::shared().await;
    let tenant = cluster.admin("a", &[]);
    let heard = Heard::default();
    let receiver = listen(Arc::clone(&heard)).await;
    let settings = webhook_settings(&[receiver]);
    // Two gateways, one of which tells.
    let gateways = [cluster.gateway(&settings).await, cluster.gateway(&settings).await];
    let _worker = cluster.worker(WorkerOptions::default()).await;
    let caller = Caller::new(&gateways[0], &tenant);
    let file = caller.upload("corpus.jsonl", jsonl(&corpus::texts(75, 20))).await;
    let batch = caller.batch(&file, json!({"webhook_url": format!("http://{receiver}/hook")})).await;
    eventually("it has been told twice", LIMIT, || async { (heard.lock().unwrap().len() >= 2).then_some(()) }).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    let heard = heard.lock().unwrap().clone();
    assert_eq!(heard.len(), 2, "told again after the refusal, and no more after that");
    assert_eq!(heard[0].0["webhook-id"], heard[1].0["webhook-id"], "the same message has the same id");

    // The stock SDK verifies and reads it, and refuses what was tampered with or is another tenant's.
    let stranger = cluster.admin("b", &[]);
    let secret = caller.get("/v1/webhooks/secret").await["secret"].clone();
    let other = Caller::new(&gateways[1], &tenant).get("/v1/webhooks/secret").await["secret"].clone();
    let strange = Caller::new(&gateways[0], &stranger).get("/v1/webhooks/secret").await["secret"].clone();
    assert_eq!(secret, other, "the same at every gateway");
    let (headers, body) = &heard[1];
    let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    let message = json!({"headers": headers, "body": std::str::from_utf8(body).unwrap(), "secrets": [secret, strange]});
    let script = "import json, sys, openai\n\
                  m = json.load(sys.stdin)\n\
                  c = openai.OpenAI(api_key='none')\n\
                  e = c.webhooks.unwrap(m['body'], dict(m['headers']), secret=m['secrets'][0])\n\
                  refused = 0\n\
                  for body, secret in [(m['body'] + ' ', m['secrets'][0]), (m['body'], m['secrets'][1])]:\n    \
                      try: c.webhooks.unwrap(body, dict(m['headers']), secret=secret)\n    \
                      except openai.InvalidWebhookSignatureError: refused += 1\n\
                  print(json.dumps({'type': e.type, 'batch': e.data.id, 'refused': refused}))";
    let mut child = std::process::Command::new(installed(PYTHON))
        .args(["-c", script])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // It is closed here, whether or not it was read to its end: the program's own words tell why.
    let _ = serde_json::to_writer(child.stdin.take().unwrap(), &message);
    let told = json_of(&child.wait_with_output().unwrap());
    assert_eq!(told, json!({"type": "batch.completed", "batch": batch, "refused": 2}));

    // It goes to the public Internet, and nowhere else that was not allowed.
    for inside in [
        "http://10.0.0.1/",
        "https://192.168.0.1/",
        "https://169.254.169.254/latest/meta-data",
        "http://a.example/",
        // Another port of the address that was allowed: S3 itself may listen there.
        "http://127.0.0.1:1/",
        cluster.env["VECMILL_S3_ENDPOINT"].as_str(),
    ] {
        let asked = batch_of(&file, json!({"webhook_url": inside}));
        let (status, body) = caller.ask(reqwest::Method::POST, "/v1/batches", Some(asked)).await;
        assert_eq!((status, &body["error"]["param"]), (400, &json!("webhook_url")), "{inside}: {body}");
    }
}
