//! The attacks. Each goes on until a moment and says in a sentence what it came to.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use lapin::types::FieldTable;
use reqwest::Client;
use serde_json::{Value, json};
use vecmill_producer::publish::{Publisher, connect, number};
use vecmill_tests::{
    Role, bombs,
    cluster::MODEL,
    form::{FORM_TYPE, form, form_head},
};

use crate::{Target, raw};

type Run = for<'a> fn(&'a Target, Instant) -> Pin<Box<dyn Future<Output = anyhow::Result<String>> + 'a>>;

/// One attack.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    pub(crate) run: Run,
}

/// Strangers first, then a tenant with an API key that may do everything, then one with a producer's rights on the broker.
pub(crate) const ATTACKS: &[Attack] = &[
    Attack { name: "heads that never end", run: |target, until| Box::pin(heads(target, until)) },
    Attack { name: "bodies that never end, signer", run: |target, until| Box::pin(signer_bodies(target, until)) },
    Attack { name: "answers nobody reads, signer", run: |target, until| Box::pin(unread_signer(target, until)) },
    Attack { name: "answers nobody reads, gateway", run: |target, until| Box::pin(unread_gateway(target, until)) },
    Attack { name: "guessed keys", run: |target, until| Box::pin(guessed_keys(target, until)) },
    Attack { name: "bodies that never end, gateway", run: |target, until| Box::pin(gateway_bodies(target, until)) },
    Attack { name: "uploads of a byte at a time", run: |target, until| Box::pin(uploads(target, until)) },
    Attack { name: "a form's header without end", run: |target, until| Box::pin(form_headers(target, until)) },
    Attack { name: "a body that is a tree", run: |target, until| Box::pin(trees(target, until)) },
    Attack { name: "brackets", run: |target, until| Box::pin(brackets(target, until)) },
    Attack { name: "many large requests", run: |target, until| Box::pin(large_requests(target, until)) },
    Attack { name: "requests of too many tokens", run: |target, until| Box::pin(too_many_tokens(target, until)) },
    Attack { name: "keys made and revoked", run: |target, until| Box::pin(keys(target, until)) },
    Attack { name: "a deep Parquet schema", run: |target, until| Box::pin(deep_schemas(target, until)) },
    Attack { name: "large Parquet pages", run: |target, until| Box::pin(large_pages(target, until)) },
    Attack { name: "bad lines, compressed", run: |target, until| Box::pin(bad_lines(target, until)) },
    Attack { name: "blank lines, compressed", run: |target, until| Box::pin(blank_lines(target, until)) },
    Attack { name: "webhooks that nobody answers", run: |target, until| Box::pin(tarpits(target, until)) },
    Attack { name: "messages that are none", run: |target, until| Box::pin(messages(target, until)) },
];

/// As many connections as a program takes in all.
const CONNECTIONS: usize = 1024;
/// What an attacker waits for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

fn post(path: &str, target: &Target, more: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: vecmill\r\nAuthorization: Bearer {}\r\n{more}\r\n", target.attacker.api_key)
}

async fn heads(target: &Target, until: Instant) -> anyhow::Result<String> {
    let begin = b"GET /healthz HTTP/1.1\r\nHost: vecmill\r\n".to_vec();
    let drip = b"X-A: b\r\n";
    let (signer, gateway) = tokio::join!(
        raw::hold(target.signer_url(), CONNECTIONS, begin.clone(), drip, Duration::from_secs(2), until),
        raw::hold(&target.gateway.url, CONNECTIONS, begin, drip, Duration::from_secs(2), until),
    );
    Ok(format!("signer, {}; gateway, {}", signer?, gateway?))
}

async fn signer_bodies(target: &Target, until: Instant) -> anyhow::Result<String> {
    let begin = b"POST /oauth/token HTTP/1.1\r\nHost: vecmill\r\nContent-Length: 100\r\n\
        Content-Type: application/x-www-form-urlencoded\r\n\r\ng";
    raw::hold(target.signer_url(), 256, begin.to_vec(), b"", Duration::from_millis(500), until).await
}

async fn gateway_bodies(target: &Target, until: Instant) -> anyhow::Result<String> {
    let mut begin = post("/v1/embeddings", target, "Content-Length: 100\r\nContent-Type: application/json\r\n");
    begin.push('{');
    raw::hold(&target.gateway.url, 512, begin.into_bytes(), b"", Duration::from_millis(500), until).await
}

/// Requests in a row on each connection, whose answers nobody reads.
async fn unread(url: &str, path: &str, until: Instant) -> anyhow::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: vecmill\r\n\r\n");
    raw::hold(url, CONNECTIONS, request.repeat(500).into_bytes(), b"", Duration::from_millis(500), until).await
}

async fn unread_signer(target: &Target, until: Instant) -> anyhow::Result<String> {
    unread(target.signer_url(), "/v1/revocations/2", until).await
}

async fn unread_gateway(target: &Target, until: Instant) -> anyhow::Result<String> {
    unread(&target.gateway.url, "/openapi.json", until).await
}

/// Well-formed keys that are none, from the bystander's own address, as behind one proxy.
async fn guessed_keys(target: &Target, until: Instant) -> anyhow::Result<String> {
    let key = &target.attacker.api_key;
    let (id, secret) = key.rsplit_once('_').context("an API key")?;
    let wrong = format!("{id}_{}", secret.chars().rev().collect::<String>());
    let client = client()?;
    repeat(8, until, || async {
        let body = json!({"model": MODEL, "input": "word"});
        let asked = client.post(format!("{}/v1/embeddings", target.gateway.url)).bearer_auth(&wrong).json(&body).send();
        let form = [("grant_type", "client_credentials"), ("client_secret", wrong.as_str())];
        let logged_in = client.post(format!("{}/oauth/token", target.signer_url())).form(&form).send();
        let (asked, logged_in) = tokio::join!(asked, logged_in);
        _ = logged_in;
        status_of(asked)
    })
    .await
}

async fn uploads(target: &Target, until: Instant) -> anyhow::Result<String> {
    let more = format!("Content-Length: 1000000\r\nContent-Type: {FORM_TYPE}\r\n");
    let begin = post("/v1/files", target, &more) + &form_head("corpus.jsonl");
    raw::hold(&target.gateway.url, 64, begin.into_bytes(), b"x", Duration::from_secs(2), until).await
}

async fn form_headers(target: &Target, until: Instant) -> anyhow::Result<String> {
    let mut body = b"--a-boundary\r\nContent-Disposition: form-data; name=\"".to_vec();
    body.extend(vec![b'a'; 64 << 20]);
    let more = format!("Content-Length: {}\r\nContent-Type: {FORM_TYPE}\r\n", body.len());
    let head = post("/v1/files", target, &more);
    repeat(4, until, || raw::ask(&target.gateway.url, &head, &body, PATIENCE)).await
}

async fn json_body(target: &Target, until: Instant, at_once: usize, body: Vec<u8>) -> anyhow::Result<String> {
    let more = format!("Content-Length: {}\r\nContent-Type: application/json\r\n", body.len());
    let head = post("/v1/embeddings", target, &more);
    repeat(at_once, until, || raw::ask(&target.gateway.url, &head, &body, PATIENCE)).await
}

async fn trees(target: &Target, until: Instant) -> anyhow::Result<String> {
    let body = format!("{{\"model\":\"{MODEL}\",\"input\":[{}1]}}", "{\"\":0},".repeat(1_000_000));
    json_body(target, until, 4, body.into_bytes()).await
}

async fn brackets(target: &Target, until: Instant) -> anyhow::Result<String> {
    let body = format!("{{\"model\":\"{MODEL}\",\"input\":{}", "[".repeat(7_000_000));
    json_body(target, until, 4, body.into_bytes()).await
}

async fn large_requests(target: &Target, until: Instant) -> anyhow::Result<String> {
    let texts: Vec<_> = (0..600).map(|number| format!("{number} {}", "tide river copper lamp ".repeat(6))).collect();
    let body = json!({"model": MODEL, "input": texts, "encoding_format": "base64"});
    json_body(target, until, 40, body.to_string().into_bytes()).await
}

async fn too_many_tokens(target: &Target, until: Instant) -> anyhow::Result<String> {
    let body = json!({"model": MODEL, "input": vec!["q x ".repeat(800); 2048]});
    json_body(target, until, 6, body.to_string().into_bytes()).await
}

/// As fast as they go: each leaves something that every verifier has to know.
async fn keys(target: &Target, until: Instant) -> anyhow::Result<String> {
    let client = client()?;
    let (signer, attacker) = (target.signer_url(), &target.turner);
    let form = [
        ("grant_type", "client_credentials"),
        ("client_id", attacker.key_id()),
        ("client_secret", attacker.api_key.as_str()),
    ];
    let token: Value = client.post(format!("{signer}/oauth/token")).form(&form).send().await?.json().await?;
    let token = token["access_token"].as_str().with_context(|| format!("no token: {token}"))?.to_owned();
    let told = repeat(8, until, || async {
        let keys = format!("{signer}/v1/admin/tenants/{}/keys", attacker.id);
        let made = client.post(&keys).bearer_auth(&token).json(&json!({"role": "writer"}));
        let Ok(made) = made.send().await else { return 0 };
        let status = made.status().as_u16();
        let made: Value = made.json().await.unwrap_or_default();
        if let Some(id) = made["id"].as_str() {
            _ = client.post(format!("{keys}/{id}/revoke")).bearer_auth(&token).send().await;
        }
        status
    })
    .await?;
    let statement = client.get(format!("{signer}/v1/revocations/2")).send().await?.bytes().await?;
    Ok(format!("{told}; the statement of revocations has {} bytes", statement.len()))
}

async fn deep_schemas(target: &Target, until: Instant) -> anyhow::Result<String> {
    batches(target, until, "deep.parquet", bombs::deep_schema(5_000)).await
}

async fn large_pages(target: &Target, until: Instant) -> anyhow::Result<String> {
    let file = tokio::task::spawn_blocking(|| bombs::pages(8, 128 << 20)).await?;
    batches(target, until, "pages.parquet", file).await
}

async fn bad_lines(target: &Target, until: Instant) -> anyhow::Result<String> {
    let file = tokio::task::spawn_blocking(|| bombs::gzip_of(b"x\n", 600 << 20)).await?;
    batches(target, until, "lines.jsonl.gz", file).await
}

async fn blank_lines(target: &Target, until: Instant) -> anyhow::Result<String> {
    let file = tokio::task::spawn_blocking(|| bombs::gzip_of(b"\n", 2 << 30)).await?;
    batches(target, until, "blank.jsonl.gz", file).await
}

/// Uploads a file and makes batches of it, each another than the ones before; half of them are cancelled at once.
async fn batches(target: &Target, until: Instant, name: &str, file: Vec<u8>) -> anyhow::Result<String> {
    let client = client()?;
    let bytes = file.len();
    let file = upload(&client, target, name, &file).await?;
    let made = AtomicUsize::new(0);
    let told = repeat(4, until, || async {
        let number = made.fetch_add(1, Ordering::Relaxed);
        let body = json!({
            "input_file_id": file, "endpoint": "/v1/embeddings", "completion_window": "24h", "model": MODEL,
            "metadata": {"number": number.to_string()},
        });
        let (status, batch) = made_batch(&client, target, body).await;
        if number.is_multiple_of(2)
            && let Some(batch) = batch
        {
            let cancel = format!("{}/v1/batches/{batch}/cancel", target.gateway.url);
            _ = client.post(cancel).bearer_auth(&target.attacker.api_key).send().await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        status
    })
    .await?;
    Ok(format!("{bytes} bytes; {told}"))
}

async fn tarpits(target: &Target, until: Instant) -> anyhow::Result<String> {
    let client = client()?;
    let file = upload(&client, target, "one.jsonl", b"{\"id\":\"1\",\"text\":\"a text\"}\n").await?;
    let made = AtomicUsize::new(0);
    repeat(4, until, || async {
        let number = made.fetch_add(1, Ordering::Relaxed);
        let body = json!({
            "input_file_id": file, "endpoint": "/v1/embeddings", "completion_window": "24h", "model": MODEL,
            "metadata": {"number": number.to_string()}, "webhook_url": target.tarpit,
        });
        made_batch(&client, target, body).await.0
    })
    .await
}

/// What who may publish chunks can put into lanes, with headers that say that they were tried before.
async fn messages(target: &Target, until: Instant) -> anyhow::Result<String> {
    let url = &target.cluster.env[&Role::Producer.variable("VECMILL_AMQP_URL")];
    let connection = connect(url, "an attacker", &<_>::default()).await?;
    let publisher = Publisher::open(&connection).await?;
    let topology = target.cluster.topology();
    let (exchange, keys) = (topology.jobs_exchange(), topology.lane_keys().collect::<Vec<_>>());
    let sent = AtomicUsize::new(0);
    repeat(8, until, || async {
        let number_of = sent.fetch_add(1, Ordering::Relaxed);
        let mut headers = FieldTable::default();
        headers.insert("x-delivery-count".into(), number(7));
        headers.insert("vecmill-attempt".into(), number(7));
        let key = &keys[number_of % keys.len()];
        let body = format!("{{\"version\":1,\"job\":\"{number_of:032x}\"}}");
        // A few hundred a second: more fill a disk, which is an operator's to bound.
        tokio::time::sleep(Duration::from_millis(20)).await;
        publisher.publish(&exchange, key, body.as_bytes(), headers).await.map_or(0, |()| 200)
    })
    .await
}

fn client() -> anyhow::Result<Client> {
    Ok(Client::builder().no_proxy().timeout(PATIENCE).local_address(std::net::IpAddr::from(raw::ATTACKER)).build()?)
}

async fn upload(client: &Client, target: &Target, name: &str, bytes: &[u8]) -> anyhow::Result<String> {
    let request = client.post(format!("{}/v1/files", target.gateway.url)).bearer_auth(&target.attacker.api_key);
    let answer = request.header("content-type", FORM_TYPE).body(form(name, bytes)).send().await?;
    let file: Value = answer.json().await?;
    Ok(file["id"].as_str().with_context(|| format!("no file: {file}"))?.to_owned())
}

async fn made_batch(client: &Client, target: &Target, body: Value) -> (u16, Option<String>) {
    let request = client.post(format!("{}/v1/batches", target.gateway.url)).bearer_auth(&target.attacker.api_key);
    let Ok(answer) = request.json(&body).send().await else { return (0, None) };
    let status = answer.status().as_u16();
    let batch: Value = answer.json().await.unwrap_or_default();
    (status, batch["id"].as_str().map(str::to_owned))
}

fn status_of(answer: reqwest::Result<reqwest::Response>) -> u16 {
    answer.map_or(0, |answer| answer.status().as_u16())
}

/// Does something again and again, so many at once; gives how often it was answered how.
async fn repeat(at_once: usize, until: Instant, ask: impl AsyncFn() -> u16) -> anyhow::Result<String> {
    let answers = Mutex::new(BTreeMap::<u16, usize>::new());
    let one = async || {
        while Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now()) + Duration::from_secs(1);
            // One that is not answered by then is left.
            let status = tokio::time::timeout(left, ask()).await.unwrap_or(0);
            *answers.lock().unwrap_or_else(PoisonError::into_inner).entry(status).or_default() += 1;
            if status == 0 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    };
    futures_util::future::join_all((0..at_once).map(|_| one())).await;
    let answers = answers.into_inner().unwrap_or_else(PoisonError::into_inner);
    let each = answers.iter().map(|(status, count)| match status {
        0 => format!("{count} without an answer"),
        status => format!("{count} answered {status}"),
    });
    Ok(each.collect::<Vec<_>>().join(", "))
}
