//! `POST /v1/embeddings`: gateway, queue, worker and back, and what is said when any of it is not there.

mod clients;
mod credentials;

use std::time::{Duration, Instant};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use vecmill_tests::{
    Cluster, WorkerOptions,
    cluster::{MODEL, Process},
    corpus, eventually,
    results::{check_completed, count_tokens, in_mid_job},
};

const LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: reqwest::header::HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }

    /// The vectors, from either encoding.
    fn vectors(&self) -> Vec<Vec<f32>> {
        let vector = |entry: &Value| match &entry["embedding"] {
            Value::String(text) => {
                let bytes = STANDARD.decode(text).unwrap();
                bytes.chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().unwrap())).collect()
            }
            list => serde_json::from_value(list.clone()).unwrap(),
        };
        self.body["data"].as_array().unwrap_or_else(|| panic!("no vectors: {}", self.body)).iter().map(vector).collect()
    }
}

async fn ask(gateway: &Process, credential: &str, body: &Value) -> Answer {
    ask_text(gateway, credential, body.to_string()).await
}

/// The same with a body that need not be JSON.
pub(crate) async fn ask_text(gateway: &Process, credential: &str, body: String) -> Answer {
    let client = reqwest::Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
    let request = client.post(format!("{}/v1/embeddings", gateway.url)).bearer_auth(credential);
    let answer = request.header("content-type", "application/json").body(body).send().await.unwrap();
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    assert!(headers.contains_key("x-request-id"), "every answer has an id");
    let body: Value = answer.json().await.unwrap();
    if status >= 400 {
        let keys: Vec<_> = body["error"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["code", "message", "param", "type"], "OpenAI's envelope");
    }
    Answer { status, headers, body }
}

pub(crate) fn body(input: impl Into<Value>) -> Value {
    json!({"model": MODEL, "input": input.into()})
}

/// Texts that keep a worker busy for some seconds: as many tokens as a request may have. Each begins in its own way, for what
/// several begin with is computed once.
fn much(cluster: &Cluster) -> Value {
    let texts: Vec<_> =
        (0..2000).map(|number| format!("{number} {}", "tide river copper lamp queue ".repeat(60))).collect();
    let counted: Vec<_> = texts.iter().take(1).map(|text| (String::new(), text.clone())).collect();
    // A few more for the longer numbers.
    let each = count_tokens(&cluster.model_dir(), &counted)[0] + 3;
    json!(texts[..(300_000 / each) as usize])
}

#[tokio::test]
async fn the_numbers_are_those_of_a_job() {
    let cluster = Cluster::shared().await;
    let (store, tenant, texts) = (cluster.store().await, cluster.tenant("a", &[]), corpus::texts(61, 40));
    let worker = cluster.worker(WorkerOptions::default()).await;
    let gateway = cluster.gateway(&[]).await;
    let file = corpus::write_jsonl(cluster.dir.path(), "corpus.jsonl", &texts);
    let job = cluster.submit(&tenant, &file, &["--dimensions", "64"]);
    cluster.reaches(&tenant, &job, "completed", LIMIT).await;
    let rows = check_completed(&store, &cluster.keys(&tenant, &job), &tenant, &cluster.model_dir(), &texts).await;

    let inputs: Vec<&str> = texts.iter().map(|(_, text)| text.as_str()).collect();
    let mut asked = body(json!(inputs));
    asked["dimensions"] = json!(64);
    for encoding in ["float", "base64"] {
        asked["encoding_format"] = json!(encoding);
        let answer = ask(&gateway, &tenant.api_key, &asked).await;
        assert_eq!(
            (answer.status, &answer.body["object"], &answer.body["model"]),
            (200, &json!("list"), &json!(MODEL))
        );
        for ((row, vector), index) in rows.iter().zip(answer.vectors()).zip(0..) {
            assert_eq!(row.vector, vector, "row {index}, {encoding}");
            assert_eq!(answer.body["data"][index]["index"], index);
        }
        let tokens: u64 = rows.iter().map(|row| u64::from(row.tokens)).sum();
        assert_eq!(answer.body["usage"], json!({"prompt_tokens": tokens, "total_tokens": tokens}));
    }

    // One text, its token ids, and several of either, are the same vector; the instruction makes another.
    let tokenizer = vecmill_worker::engine::Tokenizer::load(&cluster.model_dir()).unwrap();
    let ids: Vec<u32> = tokenizer.encode(inputs[0], None).unwrap();
    let full = ask(&gateway, &tenant.api_key, &body(inputs[0])).await.vectors();
    assert_eq!(ask(&gateway, &tenant.api_key, &body(json!(ids))).await.vectors(), full);
    assert_eq!(
        ask(&gateway, &tenant.api_key, &body(json!([ids, inputs[0]]))).await.vectors(),
        [full[0].clone(), full[0].clone()]
    );
    let mut told = body(inputs[0]);
    told["instruction"] = json!("find the passage");
    told["user"] = json!("someone");
    assert_ne!(ask(&gateway, &tenant.api_key, &told).await.vectors(), full);

    // An access token does as well as a key.
    let client =
        vecmill_signer::client::SignerClient::new(&cluster.env["VECMILL_SIGNER_URL"], tenant.api_key.parse().unwrap());
    let token = client.unwrap().access_token(&[vecmill_signer::claims::Scope::Embed]).await.unwrap();
    assert_eq!(ask(&gateway, &token.token, &body(inputs[0])).await.vectors(), full);

    // Every request is in the audit, under the id that its answer had, within seconds.
    let answer = ask(&gateway, &tenant.api_key, &body(inputs[0])).await;
    let id = answer.headers["x-request-id"].to_str().unwrap().to_owned();
    let record = eventually("the request is in the audit on S3", LIMIT, || async {
        let objects = store.list(&format!("audit/{}/embeddings/", tenant.id), None).await.unwrap();
        for object in objects {
            let lines = store.get(&object.key, 1 << 20).await.unwrap().unwrap_or_default();
            let records =
                lines.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Value>(line).ok());
            if let Some(record) = records.into_iter().find(|record| record["request"] == id.as_str()) {
                return Some(record);
            }
        }
        None
    })
    .await;
    assert_eq!(
        (&record["endpoint"], &record["decision"], &record["rows"]),
        (&json!("embeddings"), &json!("embedded"), &json!(1))
    );
    assert_eq!(
        (&record["key_id"], &record["tokens"]),
        (&json!(tenant.key_id()), &answer.body["usage"]["total_tokens"])
    );
    let path = record["compute"].as_str().expect("what computed it");
    assert!(path.ends_with(record["precision"].as_str().unwrap()), "{record}");
    let logged = worker.logged() + &gateway.logged();
    assert!(logged.contains(&id) && !logged.contains(inputs[0]) && !logged.contains(&tenant.api_key));

    for (path, status) in
        [("/v1/models", 200), (&format!("/v1/models/{MODEL}"), 200), ("/v1/models/other", 404), ("/v1/nothing", 404)]
    {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = client.get(format!("{}{path}", gateway.url)).bearer_auth(&tenant.api_key).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{path}");
    }
}

#[tokio::test]
async fn what_can_not_be_asked_is_refused_with_a_reason() {
    let cluster = Cluster::shared().await;
    let tenant = cluster.tenant("a", &[]);
    let reader = cluster.api_key(&tenant.id, "reader");
    let elsewhere = cluster.tenant("elsewhere", &["--sources", "192.0.2.0/24"]);
    let _worker = cluster.worker(WorkerOptions::default()).await;
    let gateway = cluster.gateway(&[]).await;
    let with = |name: &str, value: Value| {
        let mut body = body("a text");
        body[name] = value;
        body
    };
    for (asked, status, code, param) in [
        (json!({"model": MODEL}), 400, "invalid_body", "input"),
        (json!([]), 400, "invalid_body", ""),
        (with("dimension", json!(64)), 400, "invalid_body", "dimension"),
        (with("encoding_format", json!("hex")), 400, "invalid_body", ""),
        (with("model", json!("other")), 404, "model_not_found", ""),
        (body(""), 400, "invalid_input", "input.0"),
        (body(json!([])), 400, "invalid_input", "input"),
        (body(json!(["a", 7])), 400, "invalid_input", "input.1"),
        (body(json!(["a", [4_000_000_000_u64]])), 400, "unknown_token", "input.1"),
        (body(json!(["a", "b ".repeat(50_000)])), 400, "too_long", "input.1"),
        (with("dimensions", json!(8)), 400, "invalid_dimensions", ""),
        (with("dimensions", json!(100_000)), 400, "invalid_dimensions", ""),
    ] {
        let answer = ask(&gateway, &tenant.api_key, &asked).await;
        assert_eq!((answer.status, answer.code()), (status, code), "{}", answer.body);
        assert_eq!(answer.body["error"]["param"].as_str().unwrap_or_default(), param, "{}", answer.body);
        assert_eq!(answer.body["error"]["type"], "invalid_request_error");
    }
    let huge = ask(&gateway, &tenant.api_key, &body("x".repeat(8 << 20))).await;
    assert_eq!((huge.status, huge.code()), (413, "request_too_large"));

    let other = Cluster::shared().await;
    let stranger = other.tenant("b", &[]);
    for (credential, status, code) in [
        ("", 401, "invalid_api_key"),
        ("nonsense", 401, "invalid_api_key"),
        (stranger.api_key.as_str(), 401, "invalid_api_key"),
        (reader.as_str(), 403, "insufficient_scope"),
        (elsewhere.api_key.as_str(), 403, "access_denied"),
    ] {
        let answer = ask(&gateway, credential, &body("a text")).await;
        assert_eq!((answer.status, answer.code()), (status, code), "{}", answer.body);
        assert_eq!(answer.headers.contains_key("www-authenticate"), status == 401);
    }
    assert_eq!(ask(&gateway, &tenant.api_key, &body("a text")).await.status, 200, "nothing of that has hurt");
}

#[tokio::test]
async fn over_quota_is_an_answer_with_a_time() {
    let cluster = Cluster::shared().await;
    let text = "tide river copper lamp queue lane grant chunk";
    let tokens = u64::from(count_tokens(&cluster.model_dir(), &[(String::new(), text.to_owned())])[0]);
    let minute = cluster.tenant(
        "minute",
        &["--tokens-per-minute", &(tokens * 6).to_string(), "--tokens-burst", &(tokens * 2).to_string()],
    );
    let day = cluster.tenant("day", &["--tokens-per-day", &tokens.to_string()]);
    let _worker = cluster.worker(WorkerOptions::default()).await;
    let gateway = cluster.gateway(&[]).await;
    for (tenant, fits, code) in [(&minute, 2, "tokens_per_minute"), (&day, 1, "tokens_per_day")] {
        let (begun, mut let_through) = (Instant::now(), 0);
        let over = loop {
            let answer = ask(&gateway, &tenant.api_key, &body(text)).await;
            if answer.status != 200 {
                break answer;
            }
            let_through += 1;
            // On a slow machine one comes back meanwhile, every ten seconds.
            let came_back = if code == "tokens_per_minute" { begun.elapsed().as_secs() / 10 } else { 0 };
            assert!(let_through <= fits + came_back, "{let_through} in {:?}", begun.elapsed());
        };
        assert!(let_through >= fits, "{let_through}: {}", over.body);
        assert_eq!(
            (over.status, over.code(), &over.body["error"]["type"]),
            (429, code, &json!("rate_limit_error")),
            "{}",
            over.body
        );
        let wait_ms: u64 = over.headers["retry-after-ms"].to_str().unwrap().parse().unwrap();
        let wait_s: u64 = over.headers["retry-after"].to_str().unwrap().parse().unwrap();
        assert_eq!(wait_s, wait_ms.div_ceil(1000));
        // A minute's bucket is back within ten seconds; a day is nothing for a client to wait for by itself.
        assert_eq!(over.headers.contains_key("x-should-retry"), code == "tokens_per_day");
        if code == "tokens_per_minute" {
            assert!(wait_ms <= 10_000, "{wait_ms}");
            tokio::time::sleep(Duration::from_millis(wait_ms + 100)).await;
            assert_eq!(ask(&gateway, &tenant.api_key, &body(text)).await.status, 200, "the time was right");
        }
    }
}

#[tokio::test]
async fn requests_a_minute_are_exact_over_two_gateways() {
    let cluster = Cluster::private().await;
    let tenant = cluster.tenant("a", &["--requests-per-minute", "60"]);
    let other = cluster.tenant("other", &[]);
    let _worker = cluster.worker(WorkerOptions::default()).await;
    let gateways = [cluster.gateway(&[]).await, cluster.gateway(&[]).await];
    let first = ask(&gateways[0], &tenant.api_key, &body("a text")).await;
    let header = |answer: &Answer, name: &str| answer.headers[name].to_str().unwrap().to_owned();
    assert_eq!(
        (header(&first, "x-ratelimit-limit-requests"), header(&first, "x-ratelimit-remaining-requests")),
        ("60".into(), "59".into())
    );
    assert_eq!(header(&first, "x-ratelimit-limit-tokens"), "60000000");
    for name in ["x-ratelimit-reset-requests", "x-ratelimit-reset-tokens"] {
        assert!(header(&first, name).ends_with('s'), "{}", header(&first, name));
    }

    // Many at once on both: what is let through is the bucket, and what came back meanwhile, to the request.
    let begun = Instant::now();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let asking: Vec<_> = (0..200)
        .map(|number| {
            let url = format!("{}/v1/embeddings", gateways[number % 2].url);
            let request = client.post(url).bearer_auth(&tenant.api_key).json(&body("a text"));
            tokio::spawn(async move { request.send().await.unwrap() })
        })
        .collect();
    let mut let_through = 0;
    for answer in asking {
        let answer = answer.await.unwrap();
        match answer.status().as_u16() {
            200 => let_through += 1,
            429 => {
                let wait_ms: u64 = answer.headers()["retry-after-ms"].to_str().unwrap().parse().unwrap();
                assert!((1..=1000).contains(&wait_ms), "one comes back each second: {wait_ms}");
                assert_eq!(answer.headers()["x-ratelimit-remaining-requests"], "0");
            }
            status => panic!("{status}"),
        }
    }
    // One that came back since the last of them is let through.
    let over = loop {
        let answer = ask(&gateways[1], &tenant.api_key, &body("a text")).await;
        if answer.status != 200 {
            break answer;
        }
        let_through += 1;
        assert!(begun.elapsed() < LIMIT, "none is refused");
    };
    let came_back = begun.elapsed().as_secs_f64().ceil() as u32 + 1;
    assert!((59..=59 + came_back).contains(&let_through), "{let_through} were let through in {:?}", begun.elapsed());
    assert_eq!((over.status, over.code()), (429, "requests_per_minute"), "{}", over.body);
    assert_eq!(ask(&gateways[1], &other.api_key, &body("a text")).await.status, 200, "another tenant's are its own");

    // Without Redis the answer is no, soon, and passes.
    cluster.servers.control("kill", &["redis"]);
    let begun = Instant::now();
    let closed = ask(&gateways[0], &other.api_key, &body("a text")).await;
    assert_eq!((closed.status, closed.code()), (503, "quota_unavailable"));
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    cluster.servers.control("start", &["redis"]);
    eventually("it goes on by itself", LIMIT, || async {
        (ask(&gateways[0], &other.api_key, &body("a text")).await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn it_goes_ahead_of_a_job_and_costs_it_nothing() {
    let cluster = Cluster::shared().await;
    let (store, tenant, texts) = (cluster.store().await, cluster.tenant("a", &[]), corpus::texts(62, 1_500));
    let gateway = cluster.gateway(&[]).await;
    let file = corpus::write_jsonl(cluster.dir.path(), "corpus.jsonl", &texts);
    let job = cluster.submit(&tenant, &file, &["--chunk-rows", "5"]);
    let keys = cluster.keys(&tenant, &job);
    let _worker = cluster.worker(WorkerOptions::default()).await;
    in_mid_job(&store, &keys).await;
    let mut took = Vec::new();
    for _ in 0..20 {
        let begun = Instant::now();
        assert_eq!(ask(&gateway, &tenant.api_key, &body("tide river")).await.status, 200);
        took.push(begun.elapsed());
    }
    assert_ne!(cluster.status(&tenant, &job)["state"], "completed", "the job was over before the test could look");
    println!("beside a job: {took:?}");
    cluster.reaches(&tenant, &job, "completed", LIMIT).await;
    check_completed(&store, &keys, &tenant, &cluster.model_dir(), &texts).await;
}

#[tokio::test]
async fn without_a_worker_the_answer_comes_in_time_and_says_so() {
    let cluster = Cluster::shared().await;
    let tenant = cluster.tenant("a", &[]);
    let gateway = cluster.gateway(&[("VECMILL_GATEWAY_ANSWER_WITHIN_S", "2".to_owned())]).await;
    let begun = Instant::now();
    let late = ask(&gateway, &tenant.api_key, &body("a text")).await;
    assert_eq!((late.status, late.code()), (503, "timeout"), "{}", late.body);
    assert!(late.headers.contains_key("retry-after") && late.headers.contains_key("retry-after-ms"));
    // By default it would be 30; the rest is room for a busy machine.
    assert!((2.0..15.0).contains(&begun.elapsed().as_secs_f64()), "{:?}", begun.elapsed());

    // What nobody waits for any more is not computed when a worker comes.
    let worker = cluster.worker(WorkerOptions::default()).await;
    assert_eq!(ask(&gateway, &tenant.api_key, &body("a text")).await.status, 200);
    assert_eq!(worker.counter("vecmill_worker_requests_total{answer=\"Embedded\"}").await, 1);

    // A worker that dies with a request in its hands: whoever gets it next says so at once.
    drop(worker);
    let mortal = WorkerOptions { env: vec![("VECMILL_TEST_KILL_POINT", "before-synchronous-embed".to_owned())] };
    let mut mortal = cluster.worker(mortal).await;
    let dying = ask(&gateway, &tenant.api_key, &body("a text")).await;
    assert_eq!(dying.status, 503, "{}", dying.body);
    eventually("the worker is dead", LIMIT, || std::future::ready(mortal.has_ended().then_some(()))).await;
    let _heir = cluster.worker(WorkerOptions::default()).await;
    assert_eq!(ask(&gateway, &tenant.api_key, &body("a text")).await.status, 200);
}

#[tokio::test]
async fn more_than_it_can_do_is_told_to_come_back() {
    let cluster = Cluster::shared().await;
    let tenant = cluster.tenant("a", &[]);
    let worker = cluster.worker(WorkerOptions::default()).await;
    // Half of them are one tenant's.
    let gateway = cluster.gateway(&[("VECMILL_GATEWAY_IN_FLIGHT", "4".to_owned())]).await;
    let much = body(much(&cluster));
    let (long, key) = (much.clone(), tenant.api_key.clone());
    // Over and over, for the request that looks whether both places are taken may have taken one itself.
    let occupy = || {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = client.post(format!("{}/v1/embeddings", gateway.url)).bearer_auth(&key).json(&long);
        tokio::spawn(async move {
            loop {
                let answer = request.try_clone().unwrap().send().await.unwrap();
                if answer.status() != 200 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        })
    };
    let (first, second) = (occupy(), occupy());
    eventually("both places are taken", LIMIT, || async {
        let begun = Instant::now();
        let refused = ask(&gateway, &tenant.api_key, &body("a text")).await;
        (refused.status == 503 && refused.code() == "overloaded" && begun.elapsed() < Duration::from_secs(1))
            .then_some(())
    })
    .await;
    // The other of them waits at the gateway: it is more than the workers do in half a second.
    eventually("the worker has one", LIMIT, || async {
        (worker.counter("vecmill_worker_requests_in_flight").await == 1).then_some(())
    })
    .await;
    // Callers that go away free the gateway's place and the worker's.
    first.abort();
    second.abort();
    eventually("a place is free", LIMIT, || async {
        (ask(&gateway, &tenant.api_key, &body("a text")).await.status == 200).then_some(())
    })
    .await;
    eventually("the worker has left them", LIMIT, || async {
        let abandoned = worker.counter("vecmill_worker_requests_total{answer=\"Abandoned\"}").await;
        let in_flight = worker.counter("vecmill_worker_requests_in_flight").await;
        (abandoned > 0 && in_flight == 0).then_some(())
    })
    .await;
}
