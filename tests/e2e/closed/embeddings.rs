//! The synchronous door: what one tenant sends keeps no other from being answered, and is paid for by who sends it.

use std::time::{Duration, Instant};

use lapin::{
    BasicProperties, Channel,
    message::BasicGetMessage,
    options::{BasicGetOptions, BasicNackOptions, BasicPublishOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use vecmill_producer::contract::{
    ATTEMPT_HEADER, EMBED_TOKENS_MAX, EmbedAnswer, EmbedRequest, RUNG_HEADER, RefusalKind,
};
use vecmill_tests::{
    Cluster, Tenant, WorkerOptions,
    cluster::{MODEL, Process},
    corpus, eventually,
    requests::Asker,
    results::check_completed,
};

use crate::embeddings::{self, ask_text};

const LIMIT: Duration = Duration::from_secs(60);
/// As long as a body may be.
const BODY_BYTES: usize = 7 << 20;

async fn post(gateway: &Process, key: &str, body: String) -> (u16, Value) {
    let answer = ask_text(gateway, key, body).await;
    (answer.status, answer.body)
}

fn body(input: impl Into<Value>) -> String {
    embeddings::body(input).to_string()
}

/// A request of one word, which must be answered.
async fn word(gateway: &Process, tenant: &Tenant) -> Duration {
    let begun = Instant::now();
    let (status, answer) = post(gateway, &tenant.api_key, body("tide")).await;
    assert_eq!(status, 200, "{answer}");
    begun.elapsed()
}

fn charged(cluster: &Cluster, tenant: &Tenant) -> u64 {
    match cluster.redis(&["HGET", &format!("vecmill:{{{}}}:quota", tenant.id), "day_tokens"]) {
        vecmill_tests::redis::Reply::Text(tokens) => tokens.parse().unwrap(),
        _ => 0,
    }
}

#[tokio::test]
async fn bodies_that_never_come_hold_no_place() {
    let cluster = Cluster::shared().await;
    let [a, b] = ["a", "b"].map(|name| cluster.tenant(name, &[]));
    let _worker = cluster.worker(WorkerOptions::default()).await;
    // All of them come from one address here, which has its own bound.
    let gateway = cluster.gateway(&[("VECMILL_CONNECTIONS_PER_ADDRESS", "1000".to_owned())]).await;
    word(&gateway, &a).await;
    let address = gateway.url.strip_prefix("http://").unwrap();
    let mut open = Vec::new();
    for _ in 0..512 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "POST /v1/embeddings HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\nContent-Length: 100\r\n\r\n{{",
            a.api_key
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        open.push(stream);
    }
    // Half of them are refused: when one is, the others have been taken in.
    let refused = tokio::time::timeout(LIMIT, async {
        let mut answer = [0; 12];
        open.last_mut().unwrap().read_exact(&mut answer).await.map(|_| answer)
    });
    assert_eq!(&refused.await.expect("an answer").unwrap(), b"HTTP/1.1 503");
    for _ in 0..10 {
        word(&gateway, &b).await;
    }
    assert!(gateway.answers("/healthz").await && gateway.answers("/readyz").await);
    drop(open);
    eventually("their places are free", LIMIT, || async {
        (post(&gateway, &a.api_key, body("tide")).await.0 == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_requests_of_one_do_not_keep_another_out() {
    let cluster = Cluster::shared().await;
    let [a, b] = ["a", "b"].map(|name| cluster.tenant(name, &[]));
    let _worker = cluster.worker(WorkerOptions::default()).await;
    let gateway = std::sync::Arc::new(cluster.gateway(&[]).await);
    word(&gateway, &b).await;
    let texts: Vec<String> =
        (0..600).map(|number| format!("{number} {}", "tide river copper lamp ".repeat(5))).collect();
    let large = body(json!(texts));
    let asking: Vec<_> = (0..40)
        .map(|_| {
            let (gateway, key, large) = (gateway.clone(), a.api_key.clone(), large.clone());
            tokio::spawn(async move { post(&gateway, &key, large).await })
        })
        .collect();
    let mut took = Vec::new();
    while took.len() < 8 || !asking.iter().all(|asked| asked.is_finished()) && took.len() < 100 {
        took.push(word(&gateway, &b).await);
    }
    println!("beside forty large requests: {took:?}");
    let mut answered = 0;
    for asked in asking {
        let (status, answer) = asked.await.unwrap();
        match status {
            200 => answered += 1,
            // Over what the workers do in a part of its time, or in all of it.
            503 => assert!(["overloaded", "timeout"].contains(&answer["error"]["code"].as_str().unwrap()), "{answer}"),
            _ => panic!("{status}: {answer}"),
        }
    }
    assert!(answered > 0, "who asks for much gets what there is");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_cheap_and_paid_for() {
    let cluster = Cluster::shared().await;
    let [a, b] = ["a", "b"].map(|name| cluster.tenant(name, &[]));
    let _worker = cluster.worker(WorkerOptions::default()).await;
    let gateway = std::sync::Arc::new(cluster.gateway(&[]).await);
    word(&gateway, &b).await;
    // Of other texts each: nothing that was found out about one helps with the next.
    let large = |number: usize| {
        let text = |index: usize| format!("{number} {index} {}", "a b c d ".repeat(420));
        let body = body(json!((0..2000).map(text).collect::<Vec<_>>()));
        assert!(body.len() < BODY_BYTES && body.len() > BODY_BYTES * 9 / 10, "{}", body.len());
        body
    };
    let asking: Vec<_> = (0..4)
        .map(|number| {
            let (gateway, key, large) = (gateway.clone(), a.api_key.clone(), large(number));
            tokio::spawn(async move { post(&gateway, &key, large).await })
        })
        .collect();
    let mut took = Vec::new();
    while !asking.iter().all(|asked| asked.is_finished()) {
        took.push(word(&gateway, &b).await);
    }
    println!("beside bodies that are refused: {took:?}");
    let mut refused = 0;
    for asked in asking {
        let (status, answer) = asked.await.unwrap();
        match (status, answer["error"]["code"].as_str().unwrap()) {
            (400, "too_many_tokens") => refused += 1,
            // They stand in the way of each other, and of nobody else.
            (503, "overloaded") => {}
            _ => panic!("{status}: {answer}"),
        }
    }
    let paid = charged(&cluster, &a);
    assert!(refused > 0);
    let range = refused * EMBED_TOKENS_MAX..refused * (EMBED_TOKENS_MAX + 70_000);
    assert!(range.contains(&paid), "{refused} times to the limit and no further: {paid}");

    // One text that is far too long is known by its beginning, and the refusal is the same.
    let (status, answer) = post(&gateway, &a.api_key, body(json!(["a", "b c ".repeat(100_000)]))).await;
    assert_eq!((status, answer["error"]["code"].as_str()), (400, Some("too_long")), "{answer}");
    assert_eq!(answer["error"]["param"], "input.1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_takes_a_small_multiple_of_its_length() {
    let cluster = Cluster::shared().await;
    let [a, b] = ["a", "b"].map(|name| cluster.tenant(name, &[]));
    let _worker = cluster.worker(WorkerOptions::default()).await;
    let gateway = std::sync::Arc::new(cluster.gateway(&[]).await);
    word(&gateway, &b).await;
    let before = gateway.peak_memory_mib().unwrap();
    let many = |entry: &str| {
        let list = vec![entry; BODY_BYTES / (entry.len() + 1) - 20].join(",");
        format!("{{\"model\":\"{MODEL}\",\"input\":[{list}]}}")
    };
    let deep = format!("{{\"model\":\"{MODEL}\",\"input\":{}}}", "[".repeat(BODY_BYTES - 100));
    let cases = [
        (many("{\"\":0}"), "invalid_input"),
        (many("[[]]"), "invalid_input"),
        (many("\"a\""), "invalid_input"),
        (many("7"), "too_many_tokens"),
        (many("[7]"), "invalid_input"),
        (deep, "invalid_body"),
        (format!("{{\"{}\":1}}", "x".repeat(BODY_BYTES - 100)), "invalid_body"),
    ];
    for (body, code) in cases {
        let asking: Vec<_> = (0..4)
            .map(|_| {
                let (gateway, key, body) = (gateway.clone(), a.api_key.clone(), body.clone());
                tokio::spawn(async move { post(&gateway, &key, body).await })
            })
            .collect();
        word(&gateway, &b).await;
        for asked in asking {
            let (status, answer) = asked.await.unwrap();
            assert_eq!((status, answer["error"]["code"].as_str()), (400, Some(code)), "{}", &body[..60]);
            assert!(answer.to_string().len() < 1000);
        }
    }
    let grown = gateway.peak_memory_mib().unwrap() - before;
    println!("28 bodies of 7 MiB, four at once: {before} MiB and {grown} more");
    // Three times what is reserved for them, as the gateway states, and what the allocator keeps in the places where it has had
    // such blocks before.
    assert!(grown < 3 * 4 * 7 + 64, "{grown} MiB");
}

#[tokio::test]
async fn what_a_tenant_may_use_holds_at_this_door_too() {
    let cluster = Cluster::shared().await;
    let short = cluster.tenant("short", &["--dimensions-max", "32"]);
    let none = cluster.tenant("none", &["--models", "another/model"]);
    let _worker = cluster.worker(WorkerOptions::default()).await;
    let gateway = cluster.gateway(&[]).await;
    let asked = |dimensions: u32| json!({"model": MODEL, "input": "tide", "dimensions": dimensions}).to_string();
    assert_eq!(post(&gateway, &short.api_key, asked(32)).await.0, 200);
    for body in [asked(33), asked(64), body("tide")] {
        let (status, answer) = post(&gateway, &short.api_key, body).await;
        assert_eq!((status, answer["error"]["code"].as_str()), (403, Some("access_denied")), "{answer}");
    }
    let (status, answer) = post(&gateway, &none.api_key, body("tide")).await;
    assert_eq!((status, answer["error"]["code"].as_str()), (403, Some("access_denied")), "{answer}");
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for (tenant, models) in [(&short, 1), (&none, 0)] {
        let request = client.get(format!("{}/v1/models", gateway.url)).bearer_auth(&tenant.api_key);
        let listed: Value = request.send().await.unwrap().json().await.unwrap();
        assert_eq!(listed["data"].as_array().unwrap().len(), models, "{listed}");
    }
}

#[tokio::test]
async fn it_goes_on_for_a_while_without_the_signer() {
    let mut cluster = Cluster::shared().await;
    let tenant = cluster.tenant("a", &[]);
    let worker = cluster.worker(WorkerOptions::default()).await;
    let gateway = cluster.gateway(&[]).await;
    word(&gateway, &tenant).await;
    cluster.stop_signer();
    for _ in 0..5 {
        word(&gateway, &tenant).await;
    }
    assert_eq!(worker.counter("vecmill_worker_requests_total{answer=\"Embedded\"}").await, 6);
}

/// Takes a message from the queue of requests, as whoever may read it would.
async fn taken(cluster: &Cluster, channel: &Channel) -> BasicGetMessage {
    let queue = cluster.topology().embed_queue();
    eventually("a request lies in the queue", LIMIT, || async {
        channel.basic_get(queue.as_str().into(), BasicGetOptions { no_ack: true }).await.unwrap()
    })
    .await
}

#[tokio::test]
async fn what_lies_in_the_queue_opens_nothing_else_and_is_paid_for_each_time() {
    let cluster = Cluster::shared().await;
    let tenant = cluster.tenant("a", &[]);
    let gateway = cluster.gateway(&[("VECMILL_GATEWAY_ANSWER_WITHIN_S", "2".to_owned())]).await;
    let (connection, _publisher) = cluster.publisher().await;
    let channel = connection.create_channel().await.unwrap();
    let (late, message) = tokio::join!(post(&gateway, &tenant.api_key, body("tide river")), taken(&cluster, &channel));
    assert_eq!(late.0, 503, "there is no worker");
    let request = EmbedRequest::parse(&message.delivery.data).unwrap();

    // The token of the message, at the other doors.
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let signer = &cluster.env["VECMILL_SIGNER_URL"];
    for url in [
        format!("{}/v1/models", gateway.url),
        format!("{}/v1/jobs", gateway.url),
        format!("{signer}/v1/keys"),
        format!("{signer}/v1/grants"),
    ] {
        let answer = client.get(&url).bearer_auth(&request.token).send().await.unwrap();
        assert!([401, 404, 405].contains(&answer.status().as_u16()), "{url}: {}", answer.status());
    }

    // Played again, it is computed again, and charged again; an access token in its place is refused.
    let _worker = cluster.worker(WorkerOptions::default()).await;
    let deadline_ms = request.deadline_ms + 60_000;
    let again = EmbedRequest { deadline_ms, ..request.clone() };
    let other =
        EmbedRequest { inputs: vec![vecmill_producer::contract::EmbedInput::Text("x ".repeat(50))], ..again.clone() };
    let mut asker = Asker::new(&cluster, &connection).await;
    let mut tokens_of_all = 0;
    for request in [&again, &again, &other] {
        let answer = asker.ask(request).await;
        let EmbedAnswer::Embedded { tokens, .. } = answer else { panic!("{answer:?}") };
        tokens_of_all += tokens.iter().map(|&tokens| u64::from(tokens)).sum::<u64>();
    }
    assert_eq!(charged(&cluster, &tenant), tokens_of_all);

    let key = vecmill_signer::client::SignerClient::new(signer, tenant.api_key.parse().unwrap()).unwrap();
    let access = key.access_token(&[]).await.unwrap().token.to_string();
    let with_access = EmbedRequest { token: access, ..again.clone() };
    let other_model = EmbedRequest { model: "another/model".to_owned(), ..again };
    for (request, kind, code) in [
        (with_access, RefusalKind::Unauthorized, "invalid_token"),
        (other_model, RefusalKind::Invalid, "model_not_found"),
    ] {
        let answer = asker.ask(&request).await;
        let EmbedAnswer::Refused(refusal) = answer else { panic!("{answer:?}") };
        assert_eq!((refusal.kind, refusal.code.as_str()), (kind, code));
    }
    assert_eq!(charged(&cluster, &tenant), tokens_of_all);
}

#[tokio::test]
async fn an_answer_goes_to_whoever_asked_and_into_no_queue() {
    let cluster = Cluster::shared().await;
    let tenant = cluster.tenant("a", &[]);
    let gateway = cluster.gateway(&[]).await;
    let (connection, _publisher) = cluster.publisher().await;
    let channel = connection.create_channel().await.unwrap();
    let asking = tokio::spawn({
        let (url, key) = (gateway.url.clone(), tenant.api_key.clone());
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        async move { client.post(format!("{url}/v1/embeddings")).bearer_auth(key).body(body("tide")).send().await }
    });
    let message = taken(&cluster, &channel).await;
    asking.abort();
    let queue = format!("{}.somebody", cluster.unique());
    let options = QueueDeclareOptions { auto_delete: true, ..Default::default() };
    channel.queue_declare(queue.as_str().into(), options, FieldTable::default()).await.unwrap();
    let worker = cluster.worker(WorkerOptions::default()).await;
    let lane = cluster.topology().lane_queue("00");
    for reply_to in [queue.as_str(), lane.as_str(), "amq.rabbitmq.reply-tosomething", ""] {
        let properties = BasicProperties::default().with_reply_to(reply_to.into());
        let (options, embed) = (BasicPublishOptions::default(), cluster.topology().embed_queue());
        channel
            .basic_publish("".into(), embed.as_str().into(), options, &message.delivery.data, properties)
            .await
            .unwrap();
    }
    eventually("all are refused", LIMIT, || async {
        (worker.counter("vecmill_worker_requests_total{answer=\"Refused\"}").await == 4).then_some(())
    })
    .await;
    assert_eq!(worker.counter("vecmill_worker_rows_total").await, 0);
    assert_eq!(charged(&cluster, &tenant), 0);
    let left = channel.basic_get(queue.as_str().into(), BasicGetOptions { no_ack: true }).await.unwrap();
    assert!(left.is_none(), "somebody's queue was written to");
}

#[tokio::test]
async fn what_a_publisher_writes_into_headers_costs_nobody() {
    let cluster = Cluster::shared().await;
    let (store, tenant, texts) = (cluster.store().await, cluster.tenant("a", &[]), corpus::texts(71, 12));
    let file = corpus::write_jsonl(cluster.dir.path(), "corpus.jsonl", &texts);
    let job = cluster.submit(&tenant, &file, &["--chunk-rows", "3"]);
    let (connection, _publisher) = cluster.publisher().await;
    let channel = connection.create_channel().await.unwrap();
    let lanes: Vec<_> = cluster.topology().lane_keys().collect();
    let mut messages = Vec::new();
    for lane in &lanes {
        let queue = cluster.topology().lane_queue(lane);
        while let Some(message) =
            channel.basic_get(queue.as_str().into(), BasicGetOptions { no_ack: true }).await.unwrap()
        {
            messages.push((lane.clone(), message.delivery.data));
        }
    }
    assert_eq!(messages.len(), 4);
    let mut forged = FieldTable::default();
    for name in ["x-delivery-count", "x-acquired-count", "x-death", "x-opt-delivery-count"] {
        forged.insert(name.into(), AMQPValue::LongLongInt(19));
    }
    forged.insert(ATTEMPT_HEADER.into(), AMQPValue::LongLongInt(-5));
    forged.insert(RUNG_HEADER.into(), AMQPValue::LongUInt(u32::MAX));
    let properties = BasicProperties::default().with_headers(forged).with_priority(255).with_delivery_mode(2);
    let exchange = cluster.topology().jobs_exchange();
    for (lane, body) in &messages {
        let options = BasicPublishOptions::default();
        channel
            .basic_publish(exchange.as_str().into(), lane.as_str().into(), options, body, properties.clone())
            .await
            .unwrap();
    }
    // What the broker says of a message that was delivered before, beside what its publisher said.
    let queue = cluster.topology().lane_queue(&messages[0].0);
    for _ in 0..2 {
        let look = eventually("a message is there", LIMIT, || async {
            channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await.unwrap()
        })
        .await;
        let headers = look.delivery.properties.headers().clone().unwrap_or_default();
        println!("redelivered {}: {:?}", look.delivery.redelivered, headers.inner());
        look.delivery.acker.nack(BasicNackOptions { requeue: true, ..Default::default() }).await.unwrap();
    }
    let worker = cluster.worker(WorkerOptions::default()).await;
    cluster.reaches(&tenant, &job, "completed", LIMIT).await;
    check_completed(&store, &cluster.keys(&tenant, &job), &tenant, &cluster.model_dir(), &texts).await;
    let suspects = worker.logged().matches("computing a suspect alone").count();
    // Of the two that the test has handed back, the broker says so itself.
    assert!(suspects <= 2, "{suspects} of 4 are suspect by what their publisher wrote");
}

#[tokio::test]
async fn a_chunk_that_waits_for_quota_is_not_fetched_again() {
    let cluster = Cluster::shared().await;
    let (store, texts) = (cluster.store().await, corpus::texts(72, 20));
    let tenant = cluster.tenant("a", &["--tokens-per-day", "30"]);
    let file = corpus::write_jsonl(cluster.dir.path(), "corpus.jsonl", &texts);
    let job = cluster.submit(&tenant, &file, &["--chunk-rows", "10"]);
    let worker = cluster.worker(WorkerOptions::default()).await;
    eventually("one is done, on a fresh day, and the other waits", LIMIT, || async {
        (worker.settled("Embedded").await == 1 && worker.settled("Later").await > 0).then_some(())
    })
    .await;
    for object in store.list(cluster.keys(&tenant, &job).prefix(), None).await.unwrap() {
        if object.key.contains("/input/chunk-") {
            store.delete(&object.key).await.unwrap();
        }
    }
    let waited = worker.settled("Later").await;
    eventually("it comes back and waits again", LIMIT, || async {
        (worker.settled("Later").await > waited + 2).then_some(())
    })
    .await;
    // Fetched, it would be found missing.
    assert_eq!(worker.settled("Dead").await, 0);
}
