//! Completing jobs: whoever ends the last chunk of a run sees to it that the run's end is written.
//!
//! A chunk's delivery is acknowledged only after a look at S3 that began after its record was written. So the worker
//! that ends the last chunk, whichever it is, sees all of them, and if it dies before the end is written, its
//! delivery comes back and someone looks again. No counter is needed that could be lost. The looks of chunks that end
//! together are one look, as databases commit in groups; and as chunks end nearly in order, a look lists little more
//! than what is new. What is remembered is of a run: no two lives of a job share its name.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tracing::info;
use vecmill_producer::{
    contract::{JobKeys, Manifest},
    life::{Concluded, Ledger, LedgerError, RunView, Standing, chunks_of, conclude},
};
use vecmill_signer::claims::Digest;

use crate::kill_point::kill_point;

/// Ended chunks waiting for a look; what bounds them is the number of deliveries in flight.
const ASKS_MAX: usize = 256;

/// The job of an ended chunk.
#[derive(Clone, Debug)]
pub struct EndedJob {
    /// The keys of its run.
    pub keys: JobKeys,
    /// Its ledger.
    pub ledger: Ledger,
    /// Its manifest.
    pub manifest: Arc<Manifest>,
    /// The manifest's digest.
    pub manifest_sha256: Digest,
}

type Reply = oneshot::Sender<Result<(), Arc<LedgerError>>>;

struct Ask {
    job: EndedJob,
    /// Whether the run may have ended though chunks of it have not.
    may_be_over: bool,
    reply: Reply,
}

/// Asks for looks. Cheap to clone.
#[derive(Clone)]
pub struct Finisher {
    asks: mpsc::Sender<Ask>,
}

/// Why the look after a chunk failed: its delivery must not be acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum FinishError {
    /// S3 failed.
    #[error(transparent)]
    Ledger(#[from] Arc<LedgerError>),
    /// The finisher's task is gone.
    #[error("the finisher has ended")]
    Gone,
}

impl Finisher {
    /// Starts the finisher's task; it ends when the last clone is gone.
    pub fn start() -> Self {
        let (asks, received) = mpsc::channel(ASKS_MAX);
        tokio::spawn(run(received));
        Self { asks }
    }

    /// Returns after a look at the job that began after this call, with the job's end written if this was its last
    /// chunk.
    pub async fn chunk_ended(&self, job: EndedJob) -> Result<(), FinishError> {
        self.ask(job, false).await
    }

    /// The same for a run that is to stop, or has ended: with its end written, if that is to be now, and what follows from it done.
    pub async fn run_stops(&self, job: EndedJob) -> Result<(), FinishError> {
        self.ask(job, true).await
    }

    async fn ask(&self, job: EndedJob, may_be_over: bool) -> Result<(), FinishError> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(Ask { job, may_be_over, reply }).await.map_err(|_| FinishError::Gone)?;
        Ok(answer.await.map_err(|_| FinishError::Gone)??)
    }
}

#[derive(Default)]
struct RunLooks {
    seen: Option<Seen>,
    looking: bool,
    /// Wait for a look that has not begun.
    waiting: Vec<Ask>,
}

/// What looks at a run have seen.
#[derive(Clone)]
struct Seen {
    view: RunView,
    /// All chunks below have ended: a look lists what comes after.
    ended_below: u32,
}

async fn run(mut asks: mpsc::Receiver<Ask>) {
    let mut runs: HashMap<String, RunLooks> = HashMap::new();
    let mut looks = JoinSet::new();
    let mut open = true;
    while open || !looks.is_empty() {
        tokio::select! {
            ask = asks.recv(), if open => match ask {
                Some(ask) => {
                    let prefix = ask.job.keys.run_prefix().to_owned();
                    let run = runs.entry(prefix.clone()).or_default();
                    run.waiting.push(ask);
                    if !run.looking {
                        start_look(&mut looks, prefix, run);
                    }
                }
                None => open = false,
            },
            Some(looked) = looks.join_next() => {
                let (prefix, seen) = match looked {
                    Ok(looked) => looked,
                    Err(panic) => std::panic::resume_unwind(panic.into_panic()),
                };
                let Some(run) = runs.get_mut(&prefix) else { continue };
                run.looking = false;
                run.seen = seen;
                if run.waiting.is_empty() {
                    // Kept only while chunks of the run are at hand: the map has no other bound. The next look
                    // at a run that comes back lists from its start.
                    if run.seen.is_none() || runs.len() > ASKS_MAX {
                        runs.remove(&prefix);
                    }
                } else {
                    start_look(&mut looks, prefix, run);
                }
            }
        }
    }
}

type Looked = (String, Option<Seen>);

fn start_look(looks: &mut JoinSet<Looked>, prefix: String, run: &mut RunLooks) {
    run.looking = true;
    let asks = std::mem::take(&mut run.waiting);
    let seen = run.seen.take();
    looks.spawn(async move {
        let Some(job) = asks.first().map(|ask| ask.job.clone()) else { return (prefix, None) };
        let may_be_over = asks.iter().any(|ask| ask.may_be_over);
        let looked = look(&job, seen, may_be_over).await.map_err(Arc::new);
        for ask in asks {
            // A chunk whose task is gone needs no answer.
            let _ = ask.reply.send(looked.as_ref().map(drop).map_err(Arc::clone));
        }
        (prefix, looked.ok().flatten())
    });
}

/// One look. Gives what it saw, or `None` once the run is over.
async fn look(job: &EndedJob, seen: Option<Seen>, may_be_over: bool) -> Result<Option<Seen>, LedgerError> {
    let chunks = job.manifest.chunk_count();
    let store = job.ledger.store();
    let mut seen = match seen {
        Some(seen) => seen,
        None => {
            let Some(head) = job.ledger.head().await? else { return Ok(None) };
            let run = head.job.run.as_ref().filter(|_| head.job.standing(job.keys.at()) != Standing::Over);
            let Some(run) = run else { return Ok(None) };
            Seen { view: RunView::open(store, &job.keys, run, chunks).await?, ended_below: 0 }
        }
    };
    let ended = seen.view.ended(store, seen.ended_below.checked_sub(1)).await?;
    let ended: HashSet<u32> = chunks_of(&ended).collect();
    let has_ended = |chunk: &u32| ended.contains(chunk) || seen.view.inherited().run_of(*chunk).is_some();
    let ended_below = (seen.ended_below..chunks).find(|chunk| !has_ended(chunk)).unwrap_or(chunks);
    let all = (ended_below..chunks).all(|chunk| has_ended(&chunk));
    seen.ended_below = ended_below;
    if !all && !may_be_over {
        return Ok(Some(seen));
    }
    let Some(head) = job.ledger.head().await? else { return Ok(None) };
    if head.job.standing(job.keys.at()) == Standing::Over {
        return Ok(None);
    }
    match conclude(&job.ledger, head, &job.manifest, job.manifest_sha256, true, kill_point).await? {
        Concluded::NotYet(_) => Ok(Some(seen)),
        Concluded::Over(entry) => {
            if let Some(end) = entry.job.run.and_then(|run| run.end) {
                info!(job = %job.manifest.job, rows = end.rows, tokens = end.tokens, dead = end.chunks_dead, state = ?end.state, "run ended");
            }
            Ok(None)
        }
    }
}
