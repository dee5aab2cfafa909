//! The model's thread: it owns the model and the scheduler, packs rows of all tenants into batches, and answers each
//! request when its last row is computed. Everyone else sends messages.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use tokio::sync::{mpsc, oneshot};
use tracing::{error, warn};

use crate::{
    engine::{Model, ModelInfo},
    metrics::Metrics,
    schedule::{Item, Scheduler},
};

/// Requests waiting for the model's thread to look. It looks between batches; what bounds the rows in memory is the
/// number of deliveries in flight.
const REQUESTS_MAX: usize = 256;

/// Why a row has no vector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowFailure {
    /// The engine failed on this row even alone.
    #[error("the model failed on this text")]
    Engine,
}

/// Why a request was not computed at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotComputed {
    /// The worker is going away and had not begun it.
    #[error("the worker is going away")]
    Draining,
    /// The model's thread is gone.
    #[error("the model's thread has ended")]
    Gone,
}

/// The rows' last-token hidden states, `[hidden]` each, in the request's order.
pub type Hiddens = Vec<Result<Vec<f32>, RowFailure>>;

enum Ask {
    Embed { tenant: String, rows: Vec<Vec<u32>>, reply: oneshot::Sender<Result<Hiddens, NotComputed>> },
    Drain,
}

/// Sends rows to the model's thread. Cheap to clone; when the last clone is gone, the thread ends.
#[derive(Clone, Debug)]
pub struct Embedder {
    asks: mpsc::Sender<Ask>,
    info: Arc<ModelInfo>,
}

impl std::fmt::Debug for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Embed { .. } => "Embed",
            Self::Drain => "Drain",
        })
    }
}

impl Embedder {
    /// Starts the model's thread. A batch has at most `budget_tokens` tokens, or is a single longer text.
    pub fn start(model: Model, budget_tokens: usize, metrics: Arc<Metrics>) -> std::io::Result<Self> {
        let (asks, received) = mpsc::channel(REQUESTS_MAX);
        let info = Arc::new(model.info().clone());
        let thread = ModelThread {
            model,
            scheduler: Scheduler::new(budget_tokens),
            pending: HashMap::new(),
            metrics,
            draining: false,
        };
        std::thread::Builder::new().name("model".to_owned()).spawn(move || thread.run(received))?;
        Ok(Self { asks, info })
    }

    /// What the model is.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Computes the hidden states of `rows` (token ids, each with its end token). Rows of other requests and tenants
    /// share the batches; the values do not depend on them.
    pub async fn embed(&self, tenant: &str, rows: Vec<Vec<u32>>) -> Result<Hiddens, NotComputed> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let (reply, answer) = oneshot::channel();
        let ask = Ask::Embed { tenant: tenant.to_owned(), rows, reply };
        self.asks.send(ask).await.map_err(|_| NotComputed::Gone)?;
        answer.await.map_err(|_| NotComputed::Gone)?
    }

    /// From now on requests of which no row has been computed are given back, and so are new ones.
    pub async fn drain(&self) {
        // A thread that is gone has nothing to drain.
        let _ = self.asks.send(Ask::Drain).await;
    }
}

/// A row's place: its request and its index there.
#[derive(Clone, Copy)]
struct Tag {
    request: u64,
    row: usize,
}

struct Pending {
    outputs: Vec<Option<Result<Vec<f32>, RowFailure>>>,
    missing: usize,
    reply: oneshot::Sender<Result<Hiddens, NotComputed>>,
}

struct ModelThread {
    model: Model,
    scheduler: Scheduler<Tag>,
    pending: HashMap<u64, Pending>,
    metrics: Arc<Metrics>,
    draining: bool,
}

impl ModelThread {
    fn run(mut self, mut asks: mpsc::Receiver<Ask>) {
        let mut next_request = 0;
        loop {
            if self.scheduler.is_empty() {
                match asks.blocking_recv() {
                    Some(ask) => self.take(ask, &mut next_request),
                    None => return,
                }
            }
            while let Ok(ask) = asks.try_recv() {
                self.take(ask, &mut next_request);
            }
            let mut batch = self.scheduler.next_batch();
            // Rows of a request that was given back, or that nobody waits for any more.
            let pending = &self.pending;
            batch.retain(|item| pending.get(&item.tag.request).is_some_and(|request| !request.reply.is_closed()));
            if !batch.is_empty() {
                self.compute(&batch);
            }
        }
    }

    fn take(&mut self, ask: Ask, next_request: &mut u64) {
        match ask {
            Ask::Embed { reply, .. } if self.draining => {
                let _ = reply.send(Err(NotComputed::Draining));
            }
            Ask::Embed { tenant, rows, reply } => {
                let request = *next_request;
                *next_request += 1;
                let pending = Pending { outputs: vec![None; rows.len()], missing: rows.len(), reply };
                self.pending.insert(request, pending);
                for (row, tokens) in rows.into_iter().enumerate() {
                    self.scheduler.push(&tenant, Item { tag: Tag { request, row }, tokens });
                }
            }
            Ask::Drain => {
                self.draining = true;
                let untouched: Vec<u64> = self
                    .pending
                    .iter()
                    .filter(|(_, request)| request.missing == request.outputs.len())
                    .map(|(&request, _)| request)
                    .collect();
                for request in untouched {
                    if let Some(request) = self.pending.remove(&request) {
                        let _ = request.reply.send(Err(NotComputed::Draining));
                    }
                }
            }
        }
    }

    fn compute(&mut self, batch: &[Item<Tag>]) {
        let tokens: usize = batch.iter().map(|item| item.tokens.len()).sum();
        let begun = Instant::now();
        let outputs = forward(&self.model, batch);
        self.metrics.model_busy.inc_by(begun.elapsed().as_secs_f64());
        self.metrics.batch_tokens.observe(tokens as f64);
        self.metrics.tokens.inc_by(tokens as u64);
        for (item, output) in batch.iter().zip(outputs) {
            let Some(request) = self.pending.get_mut(&item.tag.request) else { continue };
            request.outputs[item.tag.row] = Some(output);
            request.missing -= 1;
            if request.missing == 0
                && let Some(request) = self.pending.remove(&item.tag.request)
            {
                let outputs = request.outputs.into_iter().map(|output| output.unwrap_or(Err(RowFailure::Engine)));
                let _ = request.reply.send(Ok(outputs.collect()));
            }
        }
    }
}

/// Computes a batch. One that fails (memory, a row that makes the engine panic) is halved until the rows at fault
/// stand alone, so that one bad row fails that row and nothing else.
fn forward(model: &Model, batch: &[Item<Tag>]) -> Vec<Result<Vec<f32>, RowFailure>> {
    let texts: Vec<&[u32]> = batch.iter().map(|item| item.tokens.as_slice()).collect();
    match catch_unwind(AssertUnwindSafe(|| model.forward(&texts))) {
        Ok(Ok(outputs)) => outputs.into_iter().map(Ok).collect(),
        failed => {
            let reason = match failed {
                Ok(Err(error)) => error.to_string(),
                _ => "a panic".to_owned(),
            };
            if batch.len() == 1 {
                error!(%reason, tokens = batch[0].tokens.len(), "a row fails alone");
                return vec![Err(RowFailure::Engine)];
            }
            warn!(%reason, rows = batch.len(), "a batch failed; halving it");
            let (left, right) = batch.split_at(batch.len() / 2);
            let mut outputs = forward(model, left);
            outputs.extend(forward(model, right));
            outputs
        }
    }
}
