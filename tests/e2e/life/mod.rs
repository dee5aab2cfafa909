//! Orders of submit, cancel, repair, delete and look that must not be able to break a job, provoked on real servers; each is tried
//! as often as it would have shown.

mod batches;
mod jobs;

use std::{process::Command, time::Duration};

use vecmill_producer::{
    contract::{FinalManifest, MANIFEST_BYTES_MAX},
    life::{EndState, Ledger},
    store::Store,
};
use vecmill_signer::claims::{Digest, JobId};
use vecmill_tests::{Cluster, Tenant, WorkerOptions, results::document};

use crate::batches::Caller;

const LIMIT: Duration = Duration::from_secs(90);
/// Texts, of a chunk each, of a job whose middle must be seen.
const MIDDLE: usize = 500;

/// Milliseconds from a seed that is printed, so that what was found can be tried again.
struct Delays(u64);

impl Delays {
    fn new(test: &str) -> Self {
        let seed = std::env::var("VECMILL_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
        println!("{test}: VECMILL_TEST_SEED={seed}");
        Self(seed)
    }

    /// The next, below `below_ms`: xorshift64.
    async fn wait(&mut self, below_ms: u64) {
        self.0 = self.0.max(1);
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        tokio::time::sleep(Duration::from_millis(self.0 % below_ms)).await;
    }
}

fn signal(process: &vecmill_tests::cluster::Process, name: &str) {
    let pid = process.id().to_string();
    assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
}

/// The parts that a complete job's summary names are there, and are what it says.
async fn is_whole(store: &Store, tenant: &Tenant, job: &JobId) -> FinalManifest {
    let ledger = Ledger::new(store.clone(), &tenant.id, job);
    let entry = ledger.head().await.unwrap().expect("a ledger");
    let keys = ledger.keys_of(entry.job.at());
    let end = entry.job.run.and_then(|run| run.end).expect("an end");
    let summary: FinalManifest = document(store, &keys.summary(&end.summary)).await;
    for part in &summary.parts {
        let bytes = store.get(&keys.object(&part.path), MANIFEST_BYTES_MAX).await.unwrap();
        let bytes = bytes.unwrap_or_else(|| panic!("{} is not there", part.path));
        assert_eq!(Digest::of(&bytes), part.sha256, "{}", part.path);
    }
    if end.state == EndState::Completed {
        assert_eq!(summary.parts.len() as u32, summary.chunks, "a complete job has all its parts");
        assert!(store.exists(&keys.success()).await.unwrap());
    }
    summary
}

/// A tenant, a gateway, and a file of rows.
struct Scene {
    cluster: Cluster,
    store: Store,
    tenant: Tenant,
    gateway: vecmill_tests::cluster::Process,
}

impl Scene {
    async fn new() -> Self {
        let cluster = Cluster::shared().await;
        let (store, tenant) = (cluster.store().await, cluster.admin("a", &[]));
        let gateway = cluster.gateway(&[]).await;
        Self { cluster, store, tenant, gateway }
    }

    fn caller(&self) -> Caller<'_> {
        Caller::new(&self.gateway, &self.tenant)
    }

    async fn worker(&self) -> vecmill_tests::cluster::Process {
        self.cluster.worker(WorkerOptions::default()).await
    }

    /// A worker that has little at once and so is slow.
    async fn slow_worker(&self) -> vecmill_tests::cluster::Process {
        let env = vec![("VECMILL_PREFETCH", "1".to_owned()), ("VECMILL_BATCH_TOKENS", "64".to_owned())];
        self.cluster.worker(WorkerOptions { env }).await
    }
}

fn job_of(batch: &serde_json::Value) -> JobId {
    batch["job"].as_str().expect("a job").parse().expect("a job's id")
}
