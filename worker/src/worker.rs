//! The worker put together: config, model, connections, then deliveries until it is told to stop.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use futures_util::future::try_join_all;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};
use vecmill_producer::store::Store;
use vecmill_signer::{edge::explain, verify::Verifier};

use crate::{
    broker::{self, Consume},
    delivery::stopped,
    embedder::Embedder,
    engine::{Model, ModelInfo, Tokenizer},
    health::{self, Health, Need},
    kill_point,
    metrics::Metrics,
    model_source::ModelSource,
    pipeline::{Parts, Pipeline},
    quota::{self, RedisQuota},
    request_audit::RequestAudit,
    settings::Config,
    synchronous,
};

/// Between two looks at what the worker needs, for `/readyz`.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// Tokens in a batch on a CPU, if nothing else is asked for: products of that height read the weights rarely.
const BATCH_TOKENS: usize = 4096;
/// For synchronous requests that are under way when everything else is done.
const LAST_ANSWERS: Duration = Duration::from_secs(10);
/// For the audit records that are not on S3 yet.
const LAST_AUDIT: Duration = Duration::from_secs(15);
/// Quota questions on the way to Redis; each holds a chunk's place, of which there are few.
const ASKS_MAX: usize = 256;

/// Runs until `stop` says so and everything begun is settled.
pub async fn run(config: Config, stop: watch::Receiver<bool>) -> anyhow::Result<()> {
    if let Some((point, passage)) = kill_point::wanted() {
        warn!(point, passage, "this worker will kill itself: {} is set", kill_point::VARIABLE);
    }
    let (health, metrics) = (Arc::new(Health::default()), Arc::new(Metrics::default()));
    let listen = config.listen;
    // First, so that /healthz answers while the model loads.
    let served = tokio::spawn(health::serve(
        listen,
        config.listen_tls.clone(),
        config.bounds,
        health.clone(),
        metrics.clone(),
        stop.clone(),
    ));

    let source = config.model.clone();
    let mut stopping = stop.clone();
    let (model, tokenizer) = tokio::select! {
        loaded = load(source) => loaded?,
        // A download may take hours. What there is of it stays.
        () = stopped(&mut stopping) => return Ok(()),
    };
    let ModelInfo { revision, commit, precision, path, passed_over, hidden, batch_tokens, .. } = model.info();
    let precision = *precision;
    let batch_tokens = config.batch_tokens.or(*batch_tokens).unwrap_or(BATCH_TOKENS);
    info!(model = config.model.model, revision, commit, %precision, compute = %path, hidden, batch_tokens, "model loaded");
    for passed_over in passed_over {
        info!(compute = %path, "{passed_over}");
    }
    metrics.computes(*path, passed_over);
    let embedder = Embedder::start(model, batch_tokens, metrics.clone())?;
    let store = Store::connect(&config.store).await;
    let own_audit = config.audit_bucket.as_deref().map(|bucket| store.of_bucket(bucket));
    let audit = own_audit.clone().unwrap_or_else(|| store.clone());
    let buckets: Vec<Store> = std::iter::once(store.clone()).chain(own_audit).collect();
    let (charges, probe) = config.quota;
    let (quota, asks) = mpsc::channel(ASKS_MAX);
    tokio::spawn(quota::serve(charges, asks));
    let probing = tokio::spawn(watch_needs(health.clone(), buckets, probe, config.verifier.clone()));

    let (request_audit, auditing) = RequestAudit::start(audit.clone(), config.name.clone());
    let pipeline = Pipeline::new(Parts {
        store,
        verifier: config.verifier,
        quota,
        embedder: embedder.clone(),
        tokenizer,
        model: config.model.model,
        worker: config.name.clone(),
        health: health.clone(),
        metrics: metrics.clone(),
        audit,
        request_audit,
        tokenizers: std::thread::available_parallelism().map_or(1, usize::from),
        chunk_memory_bytes: config.chunk_memory_bytes,
    });
    let consume = Consume {
        url: config.broker.amqp_url.clone().unwrap_or_default(),
        tls: config.broker.tls.clone(),
        topology: config.broker.topology(),
        prefetch: config.prefetch,
        precision,
        worker: config.name,
    };
    // What is delivered is bounded by the prefetch; the channel only hands over.
    let (deliveries, received) = mpsc::channel(1);
    let (give_up, given_up) = watch::channel(false);
    let answering = tokio::spawn(synchronous::serve(consume.clone(), pipeline.clone(), metrics, stop.clone()));
    let working = tokio::spawn(pipeline.serve(received, given_up));
    let consuming = tokio::spawn(broker::consume(consume, deliveries, health, stop.clone()));
    drain_on_stop(stop, embedder, give_up, config.drain, consuming).await?;
    working.await?;
    // Its requests live for seconds; what is cut off here nobody waits for.
    if tokio::time::timeout(LAST_ANSWERS, answering).await.is_err() {
        warn!("some synchronous requests were not answered");
    }
    if tokio::time::timeout(LAST_AUDIT, auditing).await.is_err() {
        warn!("the last audit records of synchronous requests stand in the log only");
    }
    probing.abort();
    served.await?.with_context(|| format!("--listen (VECMILL_WORKER_LISTEN) {listen} can't be served"))?;
    info!("drained");
    Ok(())
}

/// Loads the model on a thread that nobody waits for when the worker stops: the end of the process ends it.
async fn load(source: ModelSource) -> anyhow::Result<(Model, Tokenizer)> {
    let (done, loaded) = oneshot::channel();
    // Without a receiver, the worker is stopping.
    std::thread::Builder::new().name("load".to_owned()).spawn(move || drop(done.send(source.load())))?;
    Ok(loaded.await.context("loading the model ended early")??)
}

/// Waits for the stop, then for what has begun, up to the drain's end.
async fn drain_on_stop(
    mut stop: watch::Receiver<bool>,
    embedder: Embedder,
    give_up: watch::Sender<bool>,
    drain: Duration,
    consuming: tokio::task::JoinHandle<()>,
) -> anyhow::Result<()> {
    stopped(&mut stop).await;
    info!(drain_s = drain.as_secs(), "stopping: finishing what has begun, handing back the rest");
    embedder.drain().await;
    drop(embedder);
    let mut consuming = consuming;
    if tokio::time::timeout(drain, &mut consuming).await.is_err() {
        warn!("the drain's time is over: handing back what is unfinished");
        give_up.send_replace(true);
        consuming.await?;
    }
    Ok(())
}

/// Keeps `/readyz` true when no chunk comes by.
async fn watch_needs(health: Arc<Health>, buckets: Vec<Store>, quota: RedisQuota, verifier: Verifier) {
    loop {
        // Nothing is served unaudited.
        match try_join_all(buckets.iter().map(Store::ping)).await {
            Ok(_) => health.has(Need::Store),
            Err(error) => health.lacks(Need::Store, &error.to_string()),
        }
        match quota.ping().await {
            Ok(()) => health.has(Need::Quota),
            Err(error) => health.lacks(Need::Quota, &explain(&error)),
        }
        match verifier.ready().await {
            Ok(()) => health.has(Need::Keys),
            Err(refusal) => health.lacks(Need::Keys, &refusal.to_string()),
        }
        tokio::time::sleep(PROBE_EVERY).await;
    }
}
