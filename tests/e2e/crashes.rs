//! Workers that die: at every named point, from outside in mid-job, again and again on one chunk, and on request.

use std::{
    os::unix::process::ExitStatusExt,
    time::{Duration, Instant},
};

use vecmill_producer::contract::{DeadChunk, JobKeys};
use vecmill_signer::claims::JobId;
use vecmill_tests::{
    Cluster, Tenant, WorkerOptions, corpus, eventually,
    results::{check_completed, count_tokens, done_chunks, in_mid_job},
};
use vecmill_worker::kill_point;

/// Small chunks: many borders to die at.
const CHUNK_ROWS: &[&str] = &["--chunk-rows", "5"];
const LIMIT: Duration = Duration::from_secs(60);
/// Of a job whose middle must be seen, also by a test that gets little of the machine.
const TEXTS: usize = 900;
const CHUNKS: usize = TEXTS / 5;
/// How a process ends that aborts.
const SIGABRT: i32 = 6;

/// A tenant's job on a cluster.
struct Submitted {
    cluster: Cluster,
    tenant: Tenant,
    job: JobId,
    keys: JobKeys,
    texts: Vec<(String, String)>,
}

impl Submitted {
    /// A job whose tokens are all that its tenant has for the day: a chunk charged twice would not fit.
    async fn with_nothing_to_spare(seed: u64, texts: usize) -> Self {
        let cluster = Cluster::shared().await;
        let texts = corpus::texts(seed, texts);
        let tokens: u64 = count_tokens(&cluster.model_dir(), &texts).into_iter().map(u64::from).sum();
        let tenant = cluster.tenant("a", &["--tokens-per-day", &tokens.to_string()]);
        let file = corpus::write_jsonl(cluster.dir.path(), "corpus.jsonl", &texts);
        let job = cluster.submit(&tenant, &file, CHUNK_ROWS);
        let keys = cluster.keys(&tenant, &job);
        Self { cluster, tenant, job, keys, texts }
    }

    /// Waits for the job's end and checks what it left.
    async fn completes(&self) {
        let Self { cluster, tenant, job, keys, texts } = self;
        cluster.reaches(tenant, job, "completed", LIMIT).await;
        check_completed(&cluster.store().await, keys, tenant, &cluster.model_dir(), texts).await;
        assert!(cluster.dead_letters().await.is_empty(), "dead letters of a job that completed");
    }
}

/// A worker dies at `point`, a healthy one follows; nothing is lost, doubled or charged twice.
async fn survives(point: &str) {
    let submitted = Submitted::with_nothing_to_spare(11, 40).await;
    let cluster = &submitted.cluster;
    let env = vec![(kill_point::VARIABLE, point.to_owned())];
    let mut doomed = cluster.worker_unready(WorkerOptions { env });
    let end = eventually("the worker has died", LIMIT, || std::future::ready(doomed.end())).await;
    assert_eq!(end.signal(), Some(SIGABRT), "the worker did not die of its kill point: {}", doomed.logged());
    let complete = cluster.store().await.exists(&submitted.keys.success()).await.unwrap();
    assert!(!complete, "the worker died too late for this test");

    let healthy = cluster.worker(WorkerOptions::default()).await;
    submitted.completes().await;

    // Charged twice, the job would not have completed today. Charged less than once, this would.
    assert_eq!(healthy.settled("Later").await, 0);
    let more = corpus::write_jsonl(cluster.dir.path(), "more.jsonl", &[("1".to_owned(), "one more".to_owned())]);
    let more = cluster.submit(&submitted.tenant, &more, &[]);
    eventually("the day's tokens are spent", LIMIT, || async { (healthy.settled("Later").await > 0).then_some(()) })
        .await;
    assert_eq!(cluster.status(&submitted.tenant, &more)["chunks_done"], 0);
}

/// Each at a passage in mid-job, the last three where there is only one.
mod killed {
    use super::survives;

    #[tokio::test]
    async fn before_embedding() {
        survives("before-embed:3").await;
    }

    #[tokio::test]
    async fn before_the_part() {
        survives("before-part:3").await;
    }

    #[tokio::test]
    async fn between_part_and_audit() {
        survives("after-part:3").await;
    }

    #[tokio::test]
    async fn between_audit_and_record() {
        survives("after-audit:3").await;
    }

    #[tokio::test]
    async fn before_the_acknowledgement() {
        survives("before-settle:3").await;
    }

    #[tokio::test]
    async fn before_the_summary() {
        survives("before-summary").await;
    }

    #[tokio::test]
    async fn between_summary_and_end() {
        survives("before-end").await;
    }

    #[tokio::test]
    async fn between_end_and_success() {
        survives("before-success").await;
    }
}

#[tokio::test]
async fn a_worker_killed_from_outside_in_mid_job_loses_nothing() {
    let submitted = Submitted::with_nothing_to_spare(12, TEXTS).await;
    let cluster = &submitted.cluster;
    let store = cluster.store().await;
    let mut doomed = cluster.worker_unready(WorkerOptions::default());
    in_mid_job(&store, &submitted.keys).await;
    doomed.kill();
    let done = done_chunks(&store, &submitted.keys).await.len();
    assert!(done < CHUNKS, "the worker was killed too late for this test");
    let _healthy = cluster.worker(WorkerOptions::default()).await;
    submitted.completes().await;
}

#[tokio::test]
async fn a_worker_told_to_stop_in_mid_job_settles_all_it_has() {
    const DRAIN: Duration = Duration::from_secs(20);
    let submitted = Submitted::with_nothing_to_spare(13, TEXTS).await;
    let cluster = &submitted.cluster;
    let store = cluster.store().await;
    let env = vec![("VECMILL_DRAIN_S", DRAIN.as_secs().to_string())];
    let mut stopping = cluster.worker_unready(WorkerOptions { env });
    in_mid_job(&store, &submitted.keys).await;
    let told = Instant::now();
    assert!(stopping.terminate().await, "it must exit with 0: {}", stopping.logged());
    assert!(told.elapsed() < DRAIN, "it took {:?} to stop", told.elapsed());
    let done = done_chunks(&store, &submitted.keys).await.len();
    assert!(done < CHUNKS, "the worker was told too late for this test");

    let next = cluster.worker(WorkerOptions::default()).await;
    submitted.completes().await;
    // Whatever the first worker had done it had acknowledged, and whatever it had not it had handed back whole.
    let left = (CHUNKS - done) as u64;
    eventually("the last chunk is settled", LIMIT, || async { (next.settled("Embedded").await >= left).then_some(()) })
        .await;
    assert_eq!((next.settled("Embedded").await, next.settled("AlreadyDone").await), (left, 0));
}

#[tokio::test]
async fn a_chunk_that_kills_its_workers_is_given_up_and_its_neighbours_go_on() {
    let cluster = Cluster::shared().await;
    let store = cluster.store().await;
    let tenants = [cluster.tenant("a", &[]), cluster.tenant("b", &[])];
    let write = |seed: u64, count: usize| {
        let texts = corpus::texts(seed, count);
        (corpus::write_jsonl(cluster.dir.path(), &format!("{seed}.jsonl"), &texts), texts)
    };
    // One poisonous chunk; behind it in the same lane, and in another tenant's lane, innocent ones.
    let poison = cluster.submit(&tenants[0], &write(14, 5).0, CHUNK_ROWS);
    let innocent = [(0, write(15, 30)), (1, write(16, 30))].map(|(tenant, (file, texts))| {
        let job = cluster.submit(&tenants[tenant], &file, CHUNK_ROWS);
        (&tenants[tenant], job, texts)
    });

    let mut deaths = 0;
    let kill = format!("before-embed@{poison}");
    let worker = || cluster.worker_unready(WorkerOptions { env: vec![(kill_point::VARIABLE, kill.clone())] });
    let _survivor = loop {
        let mut worker = worker();
        let given_up = cluster.keys(&tenants[0], &poison).ended(0);
        let died = eventually("the worker dies or gives the chunk up", LIMIT, || {
            let died = worker.end();
            let (given_up, store) = (given_up.clone(), &store);
            async move {
                match died {
                    Some(end) => Some(Some(end)),
                    None => store.exists(&given_up).await.expect("an answer").then_some(None),
                }
            }
        })
        .await;
        match died {
            Some(end) => assert_eq!(end.signal(), Some(SIGABRT), "{}", worker.logged()),
            None => break worker,
        }
        deaths += 1;
        assert!(deaths < 10, "the chunk has killed {deaths} workers and goes on");
    };
    println!("the chunk killed {deaths} workers before it was given up");
    assert!(deaths > 2, "{deaths} deaths prove nothing: a broker or a node may have failed");

    let status = cluster.reaches(&tenants[0], &poison, "failed", LIMIT).await;
    let dead: Vec<DeadChunk> = serde_json::from_value(status["dead"].clone()).expect("dead chunks");
    assert_eq!(dead.iter().map(|dead| (dead.chunk, dead.code.as_str())).collect::<Vec<_>>(), [(0, "poison")]);
    assert!(!dead[0].reason.is_empty());
    for (tenant, job, texts) in &innocent {
        cluster.reaches(tenant, job, "completed", LIMIT).await;
        check_completed(&store, &cluster.keys(tenant, job), tenant, &cluster.model_dir(), texts).await;
    }
    let letters = cluster.dead_letters().await;
    let reasons: Vec<&str> = letters.iter().map(|(_, reason)| reason.as_str()).collect();
    assert!(matches!(reasons[..], [reason] if reason.starts_with("poison: ")), "dead letters: {reasons:?}");
}
