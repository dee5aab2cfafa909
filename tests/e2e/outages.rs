//! Servers that die and come back in mid-job. Each test has servers of its own.

use std::time::Duration;

use vecmill_producer::{contract::JobKeys, store::Store};
use vecmill_signer::claims::JobId;
use vecmill_tests::{
    Cluster, Tenant, WorkerOptions,
    cluster::Process,
    corpus, eventually,
    results::{check_completed, count_tokens, done_chunks, in_mid_job, result},
};

const TEXTS: usize = 1_500;
const CHUNK_ROWS: &[&str] = &["--chunk-rows", "5"];
/// A broker takes up to 20 s to start on two busy cores.
const LIMIT: Duration = Duration::from_secs(120);
/// Chunks of a lane that a worker holds at once, by default.
const PREFETCH: usize = 2;

/// A job in its middle, on servers that may be killed.
struct MidJob {
    cluster: Cluster,
    store: Store,
    worker: Process,
    tenant: Tenant,
    job: JobId,
    keys: JobKeys,
    texts: Vec<(String, String)>,
}

impl MidJob {
    /// `limits` makes the tenant's flags from the job's tokens.
    async fn reach(seed: u64, limits: impl FnOnce(u64) -> Vec<String>) -> Self {
        let cluster = Cluster::private().await;
        Self::on(cluster, seed, limits).await
    }

    async fn on(cluster: Cluster, seed: u64, limits: impl FnOnce(u64) -> Vec<String>) -> Self {
        let store = cluster.store().await;
        let texts = corpus::texts(seed, TEXTS);
        let tokens = count_tokens(&cluster.model_dir(), &texts).into_iter().map(u64::from).sum();
        let limits = limits(tokens);
        let tenant = cluster.tenant("a", &limits.iter().map(String::as_str).collect::<Vec<_>>());
        let file = corpus::write_jsonl(cluster.dir.path(), "corpus.jsonl", &texts);
        let job = cluster.submit(&tenant, &file, CHUNK_ROWS);
        let keys = cluster.keys(&tenant, &job);
        let worker = cluster.worker_unready(WorkerOptions::default());
        in_mid_job(&store, &keys).await;
        Self { cluster, store, worker, tenant, job, keys, texts }
    }

    fn control(&self, action: &str, service: &str) {
        self.cluster.servers.control(action, &[service]);
    }

    /// Waits until the worker says that it lacks something.
    async fn lacks(&self, need: &str) {
        let need = format!("{need}: ");
        eventually(&format!("/readyz says {need}"), LIMIT, || async {
            let (status, lacking) = self.worker.get("/readyz").await?;
            (status == 503 && lacking.contains(&need)).then_some(())
        })
        .await;
    }

    async fn ready_again(&self) {
        eventually("the worker is ready again", LIMIT, || async { self.worker.answers("/readyz").await.then_some(()) })
            .await;
    }

    /// The end is as if nothing had happened.
    async fn completes(&self) {
        let Self { cluster, store, tenant, job, keys, texts, .. } = self;
        cluster.reaches(tenant, job, "completed", LIMIT).await;
        check_completed(store, keys, tenant, &cluster.model_dir(), texts).await;
        assert!(cluster.dead_letters().await.is_empty(), "dead letters of a job that completed");
    }

    async fn done(&self) -> usize {
        done_chunks(&self.store, &self.keys).await.len()
    }
}

#[tokio::test]
async fn a_broker_that_is_killed_in_mid_job_comes_back_and_nothing_is_lost() {
    let cluster = Cluster::private().await;
    // RabbitMQ writes down a new queue's name some seconds later (3.10: within 3 s). Killed before, it comes back with a
    // queue that has no leader and answers nobody, which no client can help. So the queues are there before.
    drop(cluster.publisher().await);
    cluster.servers.control("stop", &["rabbitmq"]);
    cluster.servers.control("start", &["rabbitmq"]);
    let mid = MidJob::on(cluster, 21, |_| Vec::new()).await;
    mid.control("kill", "rabbitmq");
    mid.lacks("Broker").await;
    assert!(mid.done().await < TEXTS / 5, "the broker was killed too late for this test");
    mid.control("start", "rabbitmq");
    mid.ready_again().await;
    mid.completes().await;
}

#[tokio::test]
async fn without_redis_no_chunk_is_admitted_and_none_is_lost() {
    let mid = MidJob::reach(22, |_| Vec::new()).await;
    mid.control("stop", "redis");
    let done = mid.done().await;
    mid.lacks("Quota").await;
    // Its patience is over, and the chunk goes to a wait queue.
    eventually("a chunk is put off", LIMIT, || async { (mid.worker.settled("Later").await > 0).then_some(()) }).await;
    let still = mid.done().await;
    // Those that were charged before: no more than the worker held.
    assert!(still <= done + PREFETCH, "{} chunks were done without a quota store", still - done);
    assert!(still < TEXTS / 5, "Redis was stopped too late for this test");
    mid.control("start", "redis");
    mid.ready_again().await;
    mid.completes().await;
    assert_eq!(mid.worker.settled("Retry").await, 0, "waiting for Redis must spend no attempt");
}

#[tokio::test]
async fn a_flushed_redis_forgets_charges_of_done_chunks_only() {
    // The day has room for the job once. What was done before the flush is forgotten; what comes after is charged.
    let mid = MidJob::reach(23, |tokens| vec!["--tokens-per-day".to_owned(), tokens.to_string()]).await;
    mid.control("kill", "redis");
    let mut forgotten = 0;
    let done = done_chunks(&mid.store, &mid.keys).await;
    assert!(done.len() < TEXTS / 5, "Redis was killed too late for this test");
    for &chunk in &done {
        forgotten += result(&mid.store, &mid.keys, chunk).await.tokens;
    }
    mid.control("start", "redis");
    mid.completes().await;

    // So the day has room for as much again as had been done: nothing that was done has been charged a second time.
    let texts = corpus::texts(24, TEXTS);
    let counts = count_tokens(&mid.cluster.model_dir(), &texts);
    let fit = counts.iter().scan(0, |sum, &tokens| {
        *sum += u64::from(tokens);
        (*sum <= forgotten).then_some(())
    });
    let texts = &texts[..fit.count()];
    assert!(!texts.is_empty());
    let file = corpus::write_jsonl(mid.cluster.dir.path(), "more.jsonl", texts);
    let job = mid.cluster.submit(&mid.tenant, &file, CHUNK_ROWS);
    mid.cluster.reaches(&mid.tenant, &job, "completed", LIMIT).await;
}

#[tokio::test]
async fn an_s3_that_is_killed_in_mid_job_comes_back_and_nothing_is_lost() {
    let mid = MidJob::reach(25, |_| Vec::new()).await;
    mid.control("kill", "s3");
    mid.lacks("Store").await;
    mid.control("start", "s3");
    assert!(mid.done().await < TEXTS / 5, "S3 was killed too late for this test");
    mid.ready_again().await;
    mid.completes().await;
}
