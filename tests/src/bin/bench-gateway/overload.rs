//! Twice as many requests as can be done, for minutes: how long each answer takes, and how much memory the programs.

use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::json;
use tokio::task::JoinSet;
use vecmill_tests::{
    Cluster, Servers, WorkerOptions,
    cluster::{MODEL, Process},
};

/// Texts of a request: so much work that sending twice what can be done costs this machine little.
const TEXTS: usize = 64;
/// Lines of the report.
const LINES: u64 = 10;
/// Longer than the gateway takes to say no.
const PATIENCE: Duration = Duration::from_secs(60);

/// How one request went.
#[derive(Clone, Copy)]
struct Answer {
    /// 0 where there was none.
    status: u16,
    took: Duration,
}

/// Finds out what can be done, then asks for twice that.
pub(super) async fn run(seconds: usize) -> anyhow::Result<()> {
    let cluster = Cluster::on(Servers::shared()).await;
    let open = "60000000000";
    let limits = ["--requests-per-minute", "1000000000", "--tokens-per-minute", open, "--tokens-per-day", open];
    let tenant = cluster.tenant("bench", &[&limits[..], &["--tokens-burst", open]].concat());
    let worker = cluster.worker(WorkerOptions::default()).await;
    let gateway = cluster.gateway(&[("VECMILL_GATEWAY_LOG", "error".to_owned())]).await;
    let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?;
    let texts: Vec<_> =
        (0..TEXTS).map(|number| format!("{number} {}", "tide river copper lamp queue ".repeat(40))).collect();
    let body = json!({"model": MODEL, "input": texts, "encoding_format": "base64"});
    let request = client.post(format!("{}/v1/embeddings", gateway.url)).bearer_auth(&tenant.api_key).json(&body);
    let ask = || {
        let request = request.try_clone();
        async move {
            let begun = Instant::now();
            let status = match request {
                Some(request) => request.send().await.map_or(0, |answer| answer.status().as_u16()),
                None => 0,
            };
            Answer { status, took: begun.elapsed() }
        }
    };

    let (begun, mut done) = (Instant::now(), 0_u32);
    let mut asking = JoinSet::new();
    (0..8).for_each(|_| drop(asking.spawn(ask())));
    while let Some(answer) = asking.join_next().await {
        anyhow::ensure!(answer?.status == 200, "refused while it had room");
        if begun.elapsed() < Duration::from_secs(10) {
            done += 1;
            asking.spawn(ask());
        }
    }
    let capacity = f64::from(done) / 10.0;
    println!(
        "capacity: {capacity:.1} requests a second of {TEXTS} texts each; asking for {:.1} for {seconds} s",
        2.0 * capacity
    );
    println!("   until    200    503  other   p50, p99 of 200s   p99 of 503s   longest   gateway   worker");
    let pause = Duration::from_secs_f64(1.0 / (2.0 * capacity));
    let mut ticks = tokio::time::interval(pause);
    let (begun, line_s) = (Instant::now(), (seconds as u64 / LINES).max(1));
    let mut answers = Vec::new();
    for line in 1..=seconds as u64 / line_s {
        let until = Duration::from_secs(line * line_s);
        while begun.elapsed() < until {
            tokio::select! {
                _ = ticks.tick() => drop(asking.spawn(ask())),
                Some(answer) = asking.join_next() => answers.push(answer?),
            }
        }
        report(until, &answers, memory(&gateway)?, memory(&worker)?);
        answers.clear();
    }
    while let Some(answer) = asking.join_next().await {
        answers.push(answer?);
    }
    report(begun.elapsed(), &answers, memory(&gateway)?, memory(&worker)?);
    Ok(())
}

fn report(until: Duration, answers: &[Answer], gateway_mib: f64, worker_mib: f64) {
    let of = |status: u16| -> Vec<f64> {
        let mut took: Vec<f64> =
            answers.iter().filter(|answer| answer.status == status).map(|answer| answer.took.as_secs_f64()).collect();
        took.sort_by(f64::total_cmp);
        took
    };
    let at = |took: &[f64], share: f64| took.get((took.len() as f64 * share) as usize).copied().unwrap_or_default();
    let (good, refused) = (of(200), of(503));
    let longest = answers.iter().map(|answer| answer.took.as_secs_f64()).fold(0.0, f64::max);
    println!(
        "{:6.0} s  {:5}  {:5}  {:5}   {:6.2} s {:6.2} s   {:8.3} s   {longest:5.2} s   {gateway_mib:4.0} MiB  {worker_mib:4.0} MiB",
        until.as_secs_f64(),
        good.len(),
        refused.len(),
        answers.len() - good.len() - refused.len(),
        at(&good, 0.5),
        at(&good, 0.99),
        at(&refused, 0.99),
    );
}

/// What a program holds in memory now.
fn memory(process: &Process) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a resident size")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<f64>()? / 1024.0)
}
