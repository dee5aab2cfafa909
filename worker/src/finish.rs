//! Completing jobs: whoever ends the last chunk writes the summary and then `_SUCCESS`.
//!
//! A chunk's delivery is acknowledged only after a look at S3 that began after its record was written. So the worker
//! that ends the last chunk, whichever it is, sees all of them, and if it dies before it has written `_SUCCESS`, its
//! delivery comes back and someone looks again. No counter is needed that could be lost. The looks of chunks that end
//! together are one look, as databases commit in groups; and as chunks end nearly in order, a look lists little more
//! than what is new.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tracing::info;
use vecmill_producer::{
    contract::{CONTRACT_VERSION, ChunkResult, DeadChunk, FinalManifest, JobKeys, Manifest, PartEntry, chunk_of_key},
    store::{Store, StoreError},
};
use vecmill_signer::claims::Digest;

use crate::kill_point::kill_point;

/// Ended chunks waiting for a look; what bounds them is the number of deliveries in flight.
const ASKS_MAX: usize = 256;
/// Chunk records read at once for a summary.
const READS_MAX: usize = 32;
/// A chunk's record is this long at most.
const RECORD_BYTES_MAX: usize = 64 << 10;

/// The job of an ended chunk.
#[derive(Clone, Debug)]
pub struct EndedJob {
    /// Where its objects lie.
    pub keys: JobKeys,
    /// Its manifest.
    pub manifest: Arc<Manifest>,
    /// The manifest's digest.
    pub manifest_sha256: Digest,
}

type Reply = oneshot::Sender<Result<(), Arc<StoreError>>>;

struct Ask {
    job: EndedJob,
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
    Store(#[from] Arc<StoreError>),
    /// The finisher's task is gone.
    #[error("the finisher has ended")]
    Gone,
}

impl Finisher {
    /// Starts the finisher's task; it ends when the last clone is gone.
    pub fn start(store: Store) -> Self {
        let (asks, received) = mpsc::channel(ASKS_MAX);
        tokio::spawn(run(store, received));
        Self { asks }
    }

    /// Returns after a look at the job that began after this call, with the job's end written if this was its last
    /// chunk.
    pub async fn chunk_ended(&self, job: EndedJob) -> Result<(), FinishError> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(Ask { job, reply }).await.map_err(|_| FinishError::Gone)?;
        Ok(answer.await.map_err(|_| FinishError::Gone)??)
    }
}

#[derive(Default)]
struct JobLooks {
    /// All chunks below are done: a look lists what comes after.
    done_below: u32,
    looking: bool,
    /// Wait for a look that has not begun.
    waiting: Vec<Ask>,
}

async fn run(store: Store, mut asks: mpsc::Receiver<Ask>) {
    let mut jobs: HashMap<String, JobLooks> = HashMap::new();
    let mut looks = JoinSet::new();
    let mut open = true;
    while open || !looks.is_empty() {
        tokio::select! {
            ask = asks.recv(), if open => match ask {
                Some(ask) => {
                    let prefix = ask.job.keys.prefix().to_owned();
                    let job = jobs.entry(prefix.clone()).or_default();
                    job.waiting.push(ask);
                    if !job.looking {
                        start_look(&store, &mut looks, prefix, job);
                    }
                }
                None => open = false,
            },
            Some(looked) = looks.join_next() => {
                let (prefix, outcome) = match looked {
                    Ok(looked) => looked,
                    Err(panic) => std::panic::resume_unwind(panic.into_panic()),
                };
                let Some(job) = jobs.get_mut(&prefix) else { continue };
                job.looking = false;
                if let Some(done_below) = outcome {
                    job.done_below = done_below;
                }
                if job.waiting.is_empty() {
                    // Kept only while chunks of the job are at hand: the map has no other bound. The next look
                    // of a job that comes back lists from its start.
                    if outcome.is_none() || jobs.len() > ASKS_MAX {
                        jobs.remove(&prefix);
                    }
                } else {
                    start_look(&store, &mut looks, prefix, job);
                }
            }
        }
    }
}

type Looked = (String, Option<u32>);

fn start_look(store: &Store, looks: &mut JoinSet<Looked>, prefix: String, job: &mut JobLooks) {
    job.looking = true;
    let asks = std::mem::take(&mut job.waiting);
    let (store, done_below) = (store.clone(), job.done_below);
    looks.spawn(async move {
        let Some(job) = asks.first().map(|ask| ask.job.clone()) else { return (prefix, None) };
        let looked = look(&store, &job, done_below).await.map_err(Arc::new);
        let done_below = looked.as_ref().ok().copied().flatten();
        for ask in asks {
            // A chunk whose task is gone needs no answer.
            let _ = ask.reply.send(looked.as_ref().map(drop).map_err(Arc::clone));
        }
        (prefix, done_below)
    });
}

/// One look. Gives the number below which all chunks are done, or `None` once the job has ended.
async fn look(store: &Store, job: &EndedJob, done_below: u32) -> Result<Option<u32>, StoreError> {
    let after = done_below.checked_sub(1).map(|last| job.keys.done(last));
    let done = store.list(&job.keys.done_prefix(), after.as_deref()).await?;
    let done: HashSet<u32> = done.iter().filter_map(|object| chunk_of_key(&object.key)).collect();
    let below = (done_below..).find(|chunk| !done.contains(chunk)).unwrap_or(done_below);
    let missing = job.manifest.chunk_count().saturating_sub(done_below + done.len() as u32);
    if missing == 0 {
        finalize(store, job, Vec::new()).await?;
        return Ok(None);
    }
    // A chunk that was given up once and done later counts as done.
    let mut dead = store.list(&job.keys.dead_prefix(), None).await?;
    dead.retain(|object| chunk_of_key(&object.key).is_some_and(|chunk| chunk >= below && !done.contains(&chunk)));
    if dead.len() as u32 == missing {
        let dead = read_all(store, dead.into_iter().map(|object| object.key)).await?;
        finalize(store, job, dead).await?;
        return Ok(None);
    }
    Ok(Some(below))
}

/// Writes the summary, then `_SUCCESS` unless chunks were given up. Two workers that both see the end write the same.
async fn finalize(store: &Store, job: &EndedJob, dead: Vec<DeadChunk>) -> Result<(), StoreError> {
    if store.exists(&job.keys.success()).await? {
        return Ok(());
    }
    let gone: Vec<u32> = dead.iter().map(|dead| dead.chunk).collect();
    let done = (0..job.manifest.chunk_count()).filter(|chunk| !gone.contains(chunk)).map(|chunk| job.keys.done(chunk));
    let results: Vec<ChunkResult> = read_all(store, done).await?;
    // Sorted, so that two workers that both see the end write the same.
    let revisions: BTreeSet<&String> = results.iter().map(|result| &result.revision).collect();
    let compute: BTreeSet<&String> = results.iter().filter_map(|result| result.compute.as_ref()).collect();
    let summary = FinalManifest {
        version: CONTRACT_VERSION,
        job: job.manifest.job.clone(),
        spec: job.manifest.spec.clone(),
        revisions: revisions.into_iter().cloned().collect(),
        compute: compute.into_iter().cloned().collect(),
        manifest_sha256: job.manifest_sha256,
        rows: results.iter().map(|result| u64::from(result.rows)).sum(),
        failed: results.iter().map(|result| u64::from(result.failed)).sum(),
        truncated: results.iter().map(|result| u64::from(result.truncated)).sum(),
        rejected: job.manifest.rejected,
        tokens: results.iter().map(|result| result.tokens).sum(),
        parts: results.iter().map(|result| part_entry(&job.keys, result)).collect(),
        dead,
    };
    kill_point("before-summary");
    store.put_json(&job.keys.final_manifest(), &summary).await?;
    kill_point("before-success");
    if summary.dead.is_empty() {
        store.put(&job.keys.success(), Vec::new(), "text/plain").await?;
    }
    info!(job = %summary.job, rows = summary.rows, tokens = summary.tokens, dead = summary.dead.len(), "job ended");
    Ok(())
}

fn part_entry(keys: &JobKeys, result: &ChunkResult) -> PartEntry {
    let path = keys.part(result.chunk);
    PartEntry {
        path: path.strip_prefix(keys.prefix()).unwrap_or(&path).to_owned(),
        chunk: result.chunk,
        rows: result.rows,
        failed: result.failed,
        truncated: result.truncated,
        tokens: result.tokens,
        bytes: result.part_bytes,
        sha256: result.part_sha256,
        compute: result.compute.clone(),
    }
}

async fn read_all<T: serde::de::DeserializeOwned>(
    store: &Store,
    keys: impl Iterator<Item = String>,
) -> Result<Vec<T>, StoreError> {
    let read: Vec<Option<T>> = stream::iter(keys)
        .map(|key| async move { store.get_json(&key, RECORD_BYTES_MAX).await })
        .buffered(READS_MAX)
        .try_collect()
        .await?;
    Ok(read.into_iter().flatten().collect())
}
