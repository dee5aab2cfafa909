//! What comes in by forms and in bodies: each part of it has a bound, and what stalls holds nobody up.

use std::time::Duration;

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use vecmill_tests::{Cluster, eventually, receivers::webhook_settings};

use super::{LIMIT, ask, upload};
use crate::batches::{Caller, batch_of};

/// What an upload says is to come.
const LENGTH: usize = 100_000_000;

#[tokio::test]
async fn every_field_of_a_batch_has_a_bound() {
    let cluster = Cluster::shared().await;
    let tenant = cluster.admin("a", &[]);
    let gateway = cluster.gateway(&webhook_settings(&[([127, 0, 0, 1], 9).into()])).await;
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
        let (status, refused) = ask(&caller, "POST", "/v1/batches", batch_of(&file, more)).await;
        assert_eq!(status, 400, "{param}: {refused}");
        assert!(param.is_empty() || refused["error"]["param"] == param, "{param}: {refused}");
    }
    let body = batch_of(&file, json!({"instruction": "x".repeat(1 << 20)}));
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
    let tenant = cluster.admin("a", &[]);
    let gateway = cluster.gateway(&[]).await;
    for begun in ["", "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\nX: "] {
        let mut stream = Caller::new(&gateway, &tenant).begin_upload(LENGTH, begun).await;
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
    let mut stream = Caller::new(&gateway, &tenant).begin_upload(LENGTH, &parts).await;
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
    let (a, b) = (cluster.admin("a", &[]), cluster.admin("b", &[]));
    // Eight places of sixteen are one tenant's.
    let gateway = cluster.gateway(&[("VECMILL_GATEWAY_TRANSFERS", "16".to_owned())]).await;
    let begun = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\nx";
    let mut stalled = Vec::new();
    for _ in 0..16 {
        stalled.push(Caller::new(&gateway, &a).begin_upload(LENGTH, begun).await);
    }
    // Half of them are refused. Only then is another tried: it would take a place itself for a moment.
    let answers = stalled.iter_mut().map(first_answer).collect::<FuturesUnordered<_>>().take(8).collect::<Vec<_>>();
    for answer in tokio::time::timeout(Duration::from_secs(20), answers).await.expect("A has its share") {
        assert!(answer.contains("overloaded"), "those that don't hold a place are refused: {answer}");
    }
    let (status, answer) = upload(&gateway, &a, b"\"a\"\n").await;
    assert_eq!((status, &answer["error"]["code"]), (503, &json!("overloaded")), "{answer}");
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

async fn first_answer(stream: &mut TcpStream) -> String {
    let mut answer = vec![0; 4096];
    let read = stream.read(&mut answer).await.unwrap_or_default();
    String::from_utf8_lossy(&answer[..read]).into_owned()
}
