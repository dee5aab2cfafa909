//! The model's thread: it owns the model and the scheduler, packs rows of all tenants into batches, and answers each
//! request when its last row is computed. Everyone else sends messages.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{
    mpsc::{self, error::TryRecvError},
    oneshot,
};
use tracing::{error, warn};

use crate::{
    engine::{EngineError, Launched, Model, ModelInfo},
    metrics::Metrics,
    schedule::{Class, Item, Scheduler},
};

/// Requests waiting for the model's thread to look. It looks between batches; what bounds the rows in memory is the
/// number of deliveries in flight.
const REQUESTS_MAX: usize = 256;
/// Between two looks for a request while a GPU computes the last batch there is: little against a batch's time.
const LOOK_EVERY: Duration = Duration::from_micros(500);

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
    Embed { tenant: String, class: Class, rows: Vec<Vec<u32>>, reply: oneshot::Sender<Result<Hiddens, NotComputed>> },
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
            landed: Instant::now(),
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
    /// share the batches; the values do not depend on them. Dropped before it resolves, its rows are not computed any more.
    pub async fn embed(&self, tenant: &str, class: Class, rows: Vec<Vec<u32>>) -> Result<Hiddens, NotComputed> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let (reply, answer) = oneshot::channel();
        let ask = Ask::Embed { tenant: tenant.to_owned(), class, rows, reply };
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

/// A batch that the model is computing.
struct Flight {
    batch: Vec<Item<Tag>>,
    begun: Instant,
    launched: Launched,
}

struct ModelThread {
    model: Model,
    scheduler: Scheduler<Tag>,
    pending: HashMap<u64, Pending>,
    metrics: Arc<Metrics>,
    /// When the last batch was done.
    landed: Instant,
    draining: bool,
}

impl ModelThread {
    fn run(mut self, mut asks: mpsc::Receiver<Ask>) {
        let mut next_request = 0;
        let mut flight: Option<Flight> = None;
        loop {
            if let Some(computed) = flight.take_if(|flight| flight.launched.is_computed()) {
                self.land(computed);
            }
            if self.scheduler.is_empty() {
                let ask = match (&flight, asks.try_recv()) {
                    (_, Ok(ask)) => Some(ask),
                    // Whatever comes first: a request, which the GPU then goes over to, or the end of the batch.
                    (Some(_), Err(TryRecvError::Empty)) => {
                        std::thread::sleep(LOOK_EVERY);
                        continue;
                    }
                    (Some(_), Err(TryRecvError::Disconnected)) => None,
                    (None, Err(_)) => asks.blocking_recv(),
                };
                match ask {
                    Some(ask) => self.take(ask, &mut next_request),
                    None => return flight.into_iter().for_each(|last| self.land(last)),
                }
            }
            while let Ok(ask) = asks.try_recv() {
                self.take(ask, &mut next_request);
            }
            let mut batch = self.scheduler.next_batch();
            // Rows of a request that was given back, or that nobody waits for any more.
            let pending = &self.pending;
            batch.retain(|item| pending.get(&item.tag.request).is_some_and(|request| !request.reply.is_closed()));
            if batch.is_empty() {
                continue;
            }
            // A GPU goes over to this batch without a pause, and only then is the last one handed out.
            let next = self.launch(batch);
            if let Some(last) = std::mem::replace(&mut flight, next) {
                self.land(last);
            }
        }
    }

    fn take(&mut self, ask: Ask, next_request: &mut u64) {
        match ask {
            Ask::Embed { reply, .. } if self.draining => {
                let _ = reply.send(Err(NotComputed::Draining));
            }
            Ask::Embed { tenant, class, rows, reply } => {
                let request = *next_request;
                *next_request += 1;
                let pending = Pending { outputs: vec![None; rows.len()], missing: rows.len(), reply };
                self.pending.insert(request, pending);
                for (row, tokens) in rows.into_iter().enumerate() {
                    self.scheduler.push(&tenant, class, Item { tag: Tag { request, row }, tokens });
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

    fn launch(&mut self, batch: Vec<Item<Tag>>) -> Option<Flight> {
        let begun = Instant::now();
        match attempt(|| self.model.launch(&texts(&batch))) {
            Ok(launched) => Some(Flight { batch, begun, launched }),
            Err(reason) => {
                let outputs = halve(&self.model, &batch, &reason);
                self.hand_out(&batch, outputs, begun);
                None
            }
        }
    }

    fn land(&mut self, flight: Flight) {
        let Flight { batch, begun, launched } = flight;
        let outputs = match attempt(|| launched.rows()) {
            Ok(outputs) => outputs.into_iter().map(Ok).collect(),
            Err(reason) => halve(&self.model, &batch, &reason),
        };
        self.hand_out(&batch, outputs, begun);
    }

    fn hand_out(&mut self, batch: &[Item<Tag>], outputs: Vec<Result<Vec<f32>, RowFailure>>, begun: Instant) {
        let tokens: usize = batch.iter().map(|item| item.tokens.len()).sum();
        let now = Instant::now();
        // A batch that was launched behind another began when that was done.
        self.metrics.model_busy.inc_by(now.duration_since(begun.max(self.landed)).as_secs_f64());
        self.landed = now;
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

fn texts(batch: &[Item<Tag>]) -> Vec<&[u32]> {
    batch.iter().map(|item| item.tokens.as_slice()).collect()
}

/// Turns a panic into a reason, too.
fn attempt<T>(run: impl FnOnce() -> Result<T, EngineError>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("a panic".to_owned()),
    }
}

/// Computes what failed as one batch (memory, a row that makes the engine panic) in halves, until the rows at fault stand
/// alone, so that one bad row fails that row and nothing else.
fn halve(model: &Model, batch: &[Item<Tag>], reason: &str) -> Vec<Result<Vec<f32>, RowFailure>> {
    if batch.len() == 1 {
        error!(%reason, tokens = batch[0].tokens.len(), "a row fails alone");
        return vec![Err(RowFailure::Engine)];
    }
    warn!(%reason, rows = batch.len(), "a batch failed; halving it");
    let (left, right) = batch.split_at(batch.len() / 2);
    let half = |half| match attempt(|| model.forward(&texts(half))) {
        Ok(outputs) => outputs.into_iter().map(Ok).collect(),
        Err(reason) => halve(model, half, &reason),
    };
    [half(left), half(right)].concat()
}
