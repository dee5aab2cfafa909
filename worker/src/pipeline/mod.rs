//! One chunk from delivery to settlement. Each delivery is a task; the steps read from top to bottom.

mod admit;
mod counts;
mod embed;
mod settle;
mod suspect;
mod synchronous;
mod write;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{
    sync::{RwLock, mpsc, watch},
    task::JoinSet,
};
use vecmill_producer::{
    life::{LedgerError, Standing},
    shares::Shares,
    store::Store,
};
use vecmill_signer::{claims::RunId, verify::Verifier};

use self::{admit::Claim, counts::Counts};
use crate::{
    delivery::Delivery,
    embedder::Embedder,
    engine::Tokenizer,
    finish::Finisher,
    health::{Health, Need},
    manifests::Manifests,
    metrics::Metrics,
    quota,
    request_audit::RequestAudit,
    turnstile::Turnstile,
};

/// How long something that is away is waited for with the chunk at hand, before the chunk goes to a wait queue. A
/// server that restarts is back by then, and waiting here costs nobody an attempt.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two tries in that time.
const TRY_EVERY: Duration = Duration::from_millis(500);
/// How long a run is known to go. A cancellation or a pause takes effect within this time.
const GOES_FOR: Duration = Duration::from_secs(2);
/// Runs of which that is remembered.
const GOING_MAX: usize = 1024;

/// What the pipeline is made of.
pub struct Parts {
    /// S3.
    pub store: Store,
    /// Verifies grants.
    pub verifier: Verifier,
    /// Where quota is asked for.
    pub quota: mpsc::Sender<quota::Ask>,
    /// The model's thread.
    pub embedder: Embedder,
    /// Text to token ids.
    pub tokenizer: Tokenizer,
    /// The model's name in grants.
    pub model: String,
    /// This worker's name in audit records.
    pub worker: String,
    /// What is lacking.
    pub health: Arc<Health>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The bucket of audit records.
    pub audit: Store,
    /// Where synchronous requests leave their audit records.
    pub request_audit: RequestAudit,
    /// Pieces of text tokenized at once: the machine's cores.
    pub tokenizers: usize,
    /// Memory for the chunks in hand.
    pub chunk_memory_bytes: u64,
}

/// The steps and what they share.
pub struct Pipeline {
    parts: Parts,
    manifests: Manifests,
    finisher: Finisher,
    turnstile: Turnstile,
    /// Memory for chunks, by tenant.
    memory: Shares,
    /// Tokens of chunks that wait for quota.
    counts: Counts,
    /// Read by chunks that are computed together, written by one that must be alone.
    turns: RwLock<()>,
    /// When each run's ledger was last looked at and let it go on.
    going: Mutex<HashMap<String, Instant>>,
}

impl Pipeline {
    /// Sets the pipeline up. Must be called within a tokio runtime.
    pub fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            manifests: Manifests::new(parts.store.clone()),
            finisher: Finisher::start(),
            turnstile: Turnstile::new(parts.tokenizers),
            memory: Shares::new(parts.chunk_memory_bytes),
            counts: Counts::default(),
            turns: RwLock::default(),
            going: Mutex::default(),
            parts,
        })
    }

    /// Works on what comes until the channel closes and everything is settled. Once `give_up` says so, what is still
    /// unfinished is handed back.
    pub async fn serve(self: Arc<Self>, mut deliveries: mpsc::Receiver<Delivery>, give_up: watch::Receiver<bool>) {
        let mut chunks = JoinSet::new();
        loop {
            tokio::select! {
                delivery = deliveries.recv() => match delivery {
                    // The number of tasks is bounded by the transport's prefetch.
                    Some(delivery) => drop(chunks.spawn(self.clone().handle(delivery, give_up.clone()))),
                    None => break,
                },
                Some(_) = chunks.join_next() => {}
            }
        }
        while chunks.join_next().await.is_some() {}
    }

    /// Tries `action` until it works, for as long as patience lasts; tells health what is away meanwhile.
    async fn patiently<T, E, F>(&self, need: Need, action: impl Fn() -> F) -> Result<T, E>
    where
        E: std::fmt::Display,
        F: Future<Output = Result<T, E>>,
    {
        let begun = Instant::now();
        loop {
            match action().await {
                Ok(value) => {
                    self.parts.health.has(need);
                    return Ok(value);
                }
                Err(error) => {
                    self.parts.health.lacks(need, &error.to_string());
                    if begun.elapsed() > PATIENCE {
                        return Err(error);
                    }
                }
            }
            tokio::time::sleep(TRY_EVERY).await;
        }
    }

    /// How a chunk's run stands. Only that it goes is remembered: what was held up, or is over, is looked at anew.
    async fn standing(&self, claim: &Claim) -> Result<Standing, LedgerError> {
        let known = self.going().get(claim.keys.run_prefix()).copied();
        if known.is_some_and(|asked| asked.elapsed() < GOES_FOR) {
            return Ok(Standing::Goes);
        }
        let asked = Instant::now();
        let at = claim.keys.at();
        let standing = match claim.ledger.head().await? {
            // A grant for a job of which nothing is there: what is missing will be said of its chunks.
            None => Standing::Goes,
            // From before there were runs, and not handed in yet: its grant is all there is.
            Some(entry) if at == RunId::default() && entry.number == 0 && entry.job.run.is_none() => Standing::Goes,
            Some(entry) => entry.job.standing(at),
        };
        let mut going = self.going();
        if standing == Standing::Goes {
            if going.len() >= GOING_MAX {
                going.clear();
            }
            going.insert(claim.keys.run_prefix().to_owned(), asked);
        } else {
            going.remove(claim.keys.run_prefix());
        }
        Ok(standing)
    }

    fn going(&self) -> std::sync::MutexGuard<'_, HashMap<String, Instant>> {
        self.going.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
