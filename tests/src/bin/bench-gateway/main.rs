//! What a synchronous request costs beyond the model: gateway, verification, quota, queue and back, beside the bare engine on
//! the same text, in turns; how many a second go through, beside FastAPI and Nginx with Lua before the same engine; and what
//! twice as many as can be done come to.
//!
//! Run it by `infra/bench/gateway` and `infra/bench/overload`. The model is tiny, so that what is seen is the rest.

mod broker;
mod overload;
mod peers;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use serde_json::json;
use vecmill_tests::{Cluster, Servers, WorkerOptions, cluster::MODEL};
use vecmill_worker::{
    embedder::Embedder,
    engine::{Compute, Model, Tokenizer, finish},
    metrics::Metrics,
    schedule::Class,
};

const TEXT: &str = "how do tides work, and why are there two of them a day?";
const BATCH_TOKENS: usize = 4096;

fn setting(name: &str, default: usize) -> anyhow::Result<usize> {
    std::env::var(name).map_or(Ok(default), |value| value.parse().with_context(|| format!("{name} must be a number")))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (requests, turns, seconds, connections) = (
        setting("BENCH_REQUESTS", 2000)?,
        setting("BENCH_TURNS", 3)?,
        setting("BENCH_SECONDS", 5)?,
        setting("BENCH_CONNECTIONS", 32)?,
    );
    if std::env::args().nth(1).as_deref() == Some("overload") {
        return overload::run(setting("BENCH_SECONDS", 600)?).await;
    }
    let cluster = Cluster::on(Servers::shared()).await;
    let open = "1000000000";
    let limits =
        ["--requests-per-minute", open, "--tokens-per-minute", "60000000000", "--tokens-per-day", "60000000000"];
    let tenant = cluster.tenant("bench", &limits);
    let worker = cluster.worker(WorkerOptions::default()).await;
    let gateway = cluster.gateway(&[("VECMILL_GATEWAY_LOG", "warn".to_owned())]).await;
    let dir = cluster.model_dir();
    let tokenizer = Tokenizer::load(&dir)?;
    let model = Model::load(&dir, &Compute::default())?;
    let embedder = Embedder::start(model, BATCH_TOKENS, Arc::new(Metrics::default()))?;

    let [p50, p99] = percentiles(broker::round_trips(&cluster, requests).await?);
    println!("the floor: a round trip through RabbitMQ alone, p50 {p50:.3} ms, p99 {p99:.3} ms");
    println!("latency of one text at a time, {requests} requests a turn, in ms");
    println!("          engine alone      through the gateway     added");
    println!("            p50     p99        p50     p99        p50     p99");
    let mut added = Vec::new();
    for turn in 0..turns {
        let alone = percentiles(engine(&embedder, &tokenizer, requests).await?);
        let whole = percentiles(through(&gateway.url, &tenant.api_key, requests).await?);
        let more = [whole[0] - alone[0], whole[1] - alone[1]];
        println!(
            "turn {turn}  {:7.3} {:7.3}    {:7.3} {:7.3}    {:7.3} {:7.3}",
            alone[0], alone[1], whole[0], whole[1], more[0], more[1]
        );
        added.push(more);
    }
    for (index, name) in ["p50", "p99"].into_iter().enumerate() {
        let mut values: Vec<f64> = added.iter().map(|more| more[index]).collect();
        values.sort_by(f64::total_cmp);
        println!("added, {name}: {:.3} ms (median of the turns)", values[values.len() / 2]);
    }
    let metrics = worker.get("/metrics").await.context("the worker's metrics")?.1;
    let metric = |name: &str| -> anyhow::Result<f64> {
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.context("a metric of the worker's")?.parse().context("a number")
    };
    let (sum, count) = (metric("vecmill_worker_request_seconds_sum")?, metric("vecmill_worker_request_seconds_count")?);
    println!("of a request's time in the worker, model included: {:.3} ms (mean)", sum / count * 1000.0);
    drop(embedder);
    peers::compare(&cluster, &gateway, &tenant, turns, Duration::from_secs(seconds as u64), connections).await
}

/// The 50th and the 99th, in milliseconds.
fn percentiles(mut took: Vec<Duration>) -> [f64; 2] {
    took.sort();
    [took.len() / 2, took.len() * 99 / 100].map(|place| took[place].as_secs_f64() * 1000.0)
}

/// From a text in memory to a vector in memory.
async fn engine(embedder: &Embedder, tokenizer: &Tokenizer, requests: usize) -> anyhow::Result<Vec<Duration>> {
    let mut took = Vec::with_capacity(requests);
    for _ in 0..requests {
        let begun = Instant::now();
        let rows = vec![tokenizer.encode(TEXT, None)?];
        let hidden = embedder.embed("bench", Class::Synchronous, rows).await?.remove(0)?;
        finish(&hidden, 64)?;
        took.push(begun.elapsed());
    }
    Ok(took)
}

fn request(client: &reqwest::Client, url: &str, key: &str) -> reqwest::RequestBuilder {
    let body = json!({"model": MODEL, "input": TEXT, "encoding_format": "base64"});
    client.post(format!("{url}/v1/embeddings")).bearer_auth(key).json(&body)
}

/// One after the other on one connection, as a client that waits for each answer. The client has one thread, so that it adds
/// no changes of thread of its own.
async fn through(url: &str, key: &str, requests: usize) -> anyhow::Result<Vec<Duration>> {
    let (url, key) = (url.to_owned(), key.to_owned());
    let asking = async move {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let mut took = Vec::with_capacity(requests);
        for _ in 0..requests {
            let begun = Instant::now();
            let answer = request(&client, &url, &key).send().await?;
            ensure!(answer.status().is_success(), "refused: {}", answer.text().await?);
            answer.bytes().await?;
            took.push(begun.elapsed());
        }
        Ok(took)
    };
    tokio::task::spawn_blocking(|| tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(asking))
        .await?
}

/// Answers a second when many ask at once.
async fn throughput(url: &str, key: &str, time: Duration, connections: usize) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let tasks: Vec<_> = (0..connections)
        .map(|_| {
            let client = reqwest::Client::builder().no_proxy().build()?;
            let template = request(&client, url, key);
            Ok(tokio::spawn(async move {
                let mut answered = 0_u64;
                while begun.elapsed() < time {
                    let request = template.try_clone().context("a body in memory can be sent again")?;
                    let answer = request.send().await?;
                    ensure!(answer.status().is_success(), "refused: {}", answer.text().await?);
                    answer.bytes().await?;
                    answered += 1;
                }
                Ok::<_, anyhow::Error>(answered)
            }))
        })
        .collect::<anyhow::Result<_>>()?;
    let mut answered = 0;
    for task in tasks {
        answered += task.await??;
    }
    Ok(answered as f64 / begun.elapsed().as_secs_f64())
}
