//! A tenant over its quota waits outside, and nobody waits with it.

use std::time::{Duration, Instant};

use vecmill_tests::{
    Cluster, WorkerOptions, corpus, eventually,
    results::{check_completed, count_tokens},
};

const CHUNK_ROWS: &[&str] = &["--chunk-rows", "5"];
const LIMIT: Duration = Duration::from_secs(120);
/// How long the quota holds the first tenant's job back: long enough for the second's on a busy machine.
const HELD_BACK_S: u64 = 30;

#[tokio::test]
async fn a_tenant_over_quota_waits_while_another_goes_on() {
    let cluster = Cluster::shared().await;
    let store = cluster.store().await;
    let texts = [corpus::texts(31, 60), corpus::texts(32, 30)];
    let tokens: u64 = count_tokens(&cluster.model_dir(), &texts[0]).into_iter().map(u64::from).sum();
    // Half at once, the other half over the time.
    let (burst, rate) = (tokens / 2, (tokens - tokens / 2) * 60 / HELD_BACK_S);
    let limits = ["--tokens-per-minute", &rate.to_string(), "--tokens-burst", &burst.to_string()];
    let tenants = [cluster.tenant("slow", &limits), cluster.tenant("quick", &[])];
    let files = [0, 1].map(|n| corpus::write_jsonl(cluster.dir.path(), &format!("{n}.jsonl"), &texts[n]));
    let worker = cluster.worker(WorkerOptions::default()).await;

    let begun = Instant::now();
    let slow = cluster.submit(&tenants[0], &files[0], CHUNK_ROWS);
    eventually("chunks wait for quota", LIMIT, || async { (worker.settled("Later").await > 0).then_some(()) }).await;
    let quick = cluster.submit(&tenants[1], &files[1], CHUNK_ROWS);
    cluster.reaches(&tenants[1], &quick, "completed", LIMIT).await;
    let status = cluster.status(&tenants[0], &slow);
    assert_eq!(status["state"], "running", "the tenant over quota has some chunks done and others waiting: {status}");
    assert_eq!(status["chunks_dead"], 0);

    cluster.reaches(&tenants[0], &slow, "completed", LIMIT).await;
    // The burst and what came back since the beginning: no more can have been admitted.
    let took = begun.elapsed();
    println!("held back for {took:?}");
    assert!(took >= Duration::from_secs(HELD_BACK_S), "{tokens} tokens in {took:?}: the quota did not hold");
    for (n, job) in [&slow, &quick].into_iter().enumerate() {
        let keys = cluster.keys(&tenants[n], job);
        check_completed(&store, &keys, &tenants[n], &cluster.model_dir(), &texts[n]).await;
    }
    assert_eq!(worker.settled("Retry").await, 0, "waiting for quota must spend no attempt");
    assert!(cluster.dead_letters().await.is_empty());
}
