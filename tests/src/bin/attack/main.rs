//! Attacks on a cluster of its own, one after another, beside a bystander: a tenant who goes on asking for what it always asks. What is
//! printed is the worst that the bystander saw of each, and how much memory each program took. It fails where the bystander saw an
//! error, waited more than it should, or a program took more memory than it may.
//!
//! Run it by `infra/attack`. Attacks on correctness, where the bystander would see nothing, are tests (`tests/e2e/closed`).

mod attacks;
mod bystander;
mod memory;
mod raw;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context;
use vecmill_tests::{
    Cluster, Servers, Tenant, WorkerOptions,
    cluster::Process,
    receivers::{tarpit, webhook_settings},
};

use crate::{
    attacks::{ATTACKS, Attack},
    bystander::{Bystander, Receiver, Seen},
    memory::Memory,
};

/// How much slower than in quiet the bystander may find the slowest of a hundred requests.
const SLOWER_MAX: f64 = 3.0;
/// Requests of which the slowest of a hundred says something: of fewer it is the slowest but one or two, which is chance. Attacks that
/// are shorter are judged together.
const JUDGED_ALONE: usize = 300;
/// Errors that are named of each attack.
const NAMED: usize = 5;
/// A slowest that is below this is no news: two cores compute, attack and look on.
const NOTICED: Duration = Duration::from_millis(250);

/// What the attacks are run against.
pub(crate) struct Target {
    pub(crate) cluster: Cluster,
    pub(crate) gateway: Process,
    worker: Process,
    pub(crate) attacker: Tenant,
    /// One that has its own tokens voided by what it revokes.
    pub(crate) turner: Tenant,
    /// Where nobody ever answers.
    pub(crate) tarpit: String,
}

impl Target {
    /// The signer's address.
    pub(crate) fn signer_url(&self) -> &str {
        &self.cluster.env["VECMILL_SIGNER_URL"]
    }
}

fn setting(name: &str, default: u64) -> anyhow::Result<u64> {
    std::env::var(name).map_or(Ok(default), |value| value.parse().with_context(|| format!("{name} must be a number")))
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let seconds = Duration::from_secs(setting("ATTACK_SECONDS", 15)?);
    let only = std::env::var("ATTACK_ONLY").unwrap_or_default();
    let (target, bystander) = set_up().await?;
    // What is done first is slower: connections, tokens, pages.
    bystander.watch(async { tokio::time::sleep(Duration::from_secs(3)).await }).await?;
    let quiet = bystander.watch(async { tokio::time::sleep(seconds.max(Duration::from_secs(10))).await }).await?.0;
    anyhow::ensure!(
        quiet.errors().is_empty(),
        "nothing is attacked, and the bystander saw {}",
        quiet.errors().join(", ")
    );
    let quiet_p99 = quiet.p99();
    println!("{:34} {:>7} {:>6} {:>8} {:>8} {:>7}  memory, MiB", "", "asked", "errors", "p50 ms", "p99 ms", "worst");
    println!("{}", line("in quiet", &quiet, &Memory::default()));
    let bound = quiet_p99.mul_f64(SLOWER_MAX).max(NOTICED);
    let slow = |name: &str, seen: &Seen| {
        (seen.p99() > bound).then(|| format!("{name}: p99 {:?}, more than {bound:?}", seen.p99()))
    };
    let (mut wrong, mut short) = (Vec::new(), Seen::default());
    for Attack { name, run } in ATTACKS.iter().filter(|attack| attack.name.contains(&only)) {
        let memory = Memory::watch([
            ("signer", target.cluster.signer_process().context("the signer")?.id()),
            ("gateway", target.gateway.id()),
            ("worker", target.worker.id()),
        ]);
        let (seen, told) = bystander.watch(run(&target, Instant::now() + seconds)).await?;
        let told = told.with_context(|| format!("the attack \"{name}\" could not be run"))?;
        let memory = memory.end().await;
        println!("{}\n{:34} {told}", line(name, &seen, &memory), "");
        wrong.extend(seen.errors().iter().take(NAMED).map(|error| format!("{name}: the bystander saw {error}")));
        if seen.asked() >= JUDGED_ALONE {
            wrong.extend(slow(name, &seen));
        } else {
            short.add(seen);
        }
        wrong.extend(memory.over().map(|over| format!("{name}: {over}")));
        // What the attack has left behind is the next one's to meet, but not what it has under way.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    wrong.extend(slow("all the short ones", &short));
    for sentence in &wrong {
        println!("WRONG: {sentence}");
    }
    Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn line(name: &str, seen: &Seen, memory: &Memory) -> String {
    let ms = |took: Duration| took.as_secs_f64() * 1000.0;
    format!(
        "{name:34} {:7} {:6} {:8.1} {:8.1} {:7.0}  {memory}",
        seen.asked(),
        seen.errors().len(),
        ms(seen.p50()),
        ms(seen.p99()),
        ms(seen.worst()),
    )
}

async fn set_up() -> anyhow::Result<(Target, Bystander)> {
    let cluster = Cluster::on(Servers::shared()).await;
    let plenty = "60000000000";
    let limits = ["--requests-per-minute", "100000", "--tokens-per-minute", plenty, "--tokens-per-day", plenty];
    let limits = [&limits[..], &["--tokens-burst", plenty]].concat();
    let [attacker, turner] = ["attacker", "turner"].map(|name| cluster.admin(name, &limits));
    let bystander = cluster.tenant("bystander", &limits);
    let worker = cluster.worker(WorkerOptions::default()).await;
    let (receiver, tarpit) = (Receiver::start().await, tarpit().await);
    let mut settings = webhook_settings(&[receiver.address, tarpit]).to_vec();
    settings.push(("VECMILL_GATEWAY_LOG", "warn".to_owned()));
    let gateway = cluster.gateway(&settings).await;
    let bystander = Bystander::new(&gateway.url, &cluster.env["VECMILL_SIGNER_URL"], bystander, receiver)?;
    Ok((Target { cluster, gateway, worker, attacker, turner, tarpit: format!("http://{tarpit}/") }, bystander))
}
