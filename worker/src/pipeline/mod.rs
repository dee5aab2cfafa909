//! One chunk from delivery to settlement. Each delivery is a task; the steps read from top to bottom.

mod admit;
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
    sync::{RwLock, Semaphore, mpsc, watch},
    task::JoinSet,
};
use vecmill_producer::{contract::JobKeys, store::Store};
use vecmill_signer::verify::Verifier;

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
};

/// How long something that is away is waited for with the chunk at hand, before the chunk goes to a wait queue. A
/// server that restarts is back by then, and waiting here costs nobody an attempt.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two tries in that time.
const TRY_EVERY: Duration = Duration::from_millis(500);
/// How long a job is known to be wanted. A cancellation or a pause takes effect within this time.
const WANTED_FOR: Duration = Duration::from_secs(2);
/// Jobs of which that is remembered.
const WANTED_MAX: usize = 1024;

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
    /// Where synchronous requests leave their audit records.
    pub request_audit: RequestAudit,
    /// Chunks tokenized at once: the machine's cores.
    pub tokenizers: usize,
}

/// The steps and what they share.
pub struct Pipeline {
    parts: Parts,
    manifests: Manifests,
    finisher: Finisher,
    tokenizing: Arc<Semaphore>,
    /// Read by chunks that are computed together, written by one that must be alone.
    turns: RwLock<()>,
    /// When each job was last asked about and wanted.
    wanted: Mutex<HashMap<String, Instant>>,
}

/// What a tenant has said of a job that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Go,
    Wait,
    Stop,
}

impl Pipeline {
    /// Sets the pipeline up. Must be called within a tokio runtime.
    pub fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            manifests: Manifests::new(parts.store.clone()),
            finisher: Finisher::start(parts.store.clone()),
            tokenizing: Arc::new(Semaphore::new(parts.tokenizers)),
            turns: RwLock::default(),
            wanted: Mutex::default(),
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

    /// Whether the tenant has cancelled the job or holds it up. Only that it wants it is remembered: a job that is cancelled
    /// and submitted again at once must not have its new messages dropped.
    async fn tenants_word(&self, keys: &JobKeys) -> Result<Word, vecmill_producer::store::StoreError> {
        let known = self.wanted().get(keys.prefix()).copied();
        if known.is_some_and(|asked| asked.elapsed() < WANTED_FOR) {
            return Ok(Word::Go);
        }
        let asked = Instant::now();
        let (cancelled, paused) = (keys.cancelled(), keys.paused());
        let (cancelled, paused) = tokio::join!(self.parts.store.exists(&cancelled), self.parts.store.exists(&paused));
        let word = match (cancelled?, paused?) {
            (true, _) => Word::Stop,
            (false, true) => Word::Wait,
            (false, false) => Word::Go,
        };
        let mut wanted = self.wanted();
        if word == Word::Go {
            if wanted.len() >= WANTED_MAX {
                wanted.clear();
            }
            wanted.insert(keys.prefix().to_owned(), asked);
        } else {
            wanted.remove(keys.prefix());
        }
        Ok(word)
    }

    fn wanted(&self) -> std::sync::MutexGuard<'_, HashMap<String, Instant>> {
        self.wanted.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
