//! The end of a run: who sees it writes it down, whichever program that is.

use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use vecmill_signer::claims::Digest;

use super::outcomes::READS_MAX;
use super::{End, EndState, Entry, Event, Job, Ledger, LedgerError, Moot, Run, RunView};
use crate::{
    contract::{CONTRACT_VERSION, ChunkResult, FinalManifest, JobKeys, MANIFEST_BYTES_MAX, Manifest, Outcome},
    store::{Store, StoreError},
};

/// A part's entry is about twice a chunk's in the manifest.
const SUMMARY_BYTES_MAX: usize = 2 * MANIFEST_BYTES_MAX;

/// What came of a look for a run's end.
#[derive(Clone, Debug)]
pub enum Concluded {
    /// It has ended, was superseded, or was deleted: the ledger's newest entry says which.
    Over(Entry),
    /// It goes on.
    NotYet(Entry),
}

impl Concluded {
    /// The ledger's newest entry.
    pub fn entry(self) -> Entry {
        match self {
            Self::Over(entry) | Self::NotYet(entry) => entry,
        }
    }
}

/// Writes the end of the run that counts, if it has come, with the summary of what its chunks came to; gives where the job then
/// stands. Of many who see the end at once one writes it, and each sees to it that what follows is done: `_manifest.json` and
/// `_SUCCESS` of a complete job.
///
/// `entry` is the newest one as far as the caller knows. With `patiently`, those who are at work on a cancelled run have their time.
/// `passed` hears of each step before it is done.
pub async fn conclude(
    ledger: &Ledger,
    mut entry: Entry,
    manifest: &Manifest,
    manifest_sha256: Digest,
    patiently: bool,
    passed: impl Fn(&'static str),
) -> Result<Concluded, LedgerError> {
    let store = ledger.store();
    loop {
        let Job { deleted: false, run: Some(run), .. } = &entry.job else { return Ok(Concluded::Over(entry)) };
        let keys = ledger.keys_of(entry.job.at());
        if let Some(end) = &run.end {
            publish(store, &keys, end, &passed).await?;
            return Ok(Concluded::Over(entry));
        }
        let view = RunView::open(store, &keys, run, manifest.chunk_count()).await?;
        let Some(end) = ending(store, &view, run, manifest, manifest_sha256, patiently, &passed).await? else {
            return Ok(Concluded::NotYet(entry));
        };
        passed("before-end");
        let at = entry.job.at();
        let appended = ledger.append(|head| match head {
            Some(head) if head.job.at() == at => Ok(Event::End(at.run, Box::new(end.clone()))),
            _ => Err(Moot::Superseded),
        });
        // Cancelled meanwhile, it ends in that way; ended by another, it has ended so.
        match appended.await?.entry() {
            Some(newest) => entry = newest,
            None => return Ok(Concluded::Over(entry)),
        }
    }
}

/// The end, if it has come, with its summary written.
async fn ending(
    store: &Store,
    view: &RunView,
    run: &Run,
    manifest: &Manifest,
    manifest_sha256: Digest,
    patiently: bool,
    passed: &impl Fn(&'static str),
) -> Result<Option<End>, LedgerError> {
    let ended = view.all_ended(&view.ended(store, None).await?);
    let count = ended.len() as u32;
    // Whether any was given up is known once all are read.
    if run.ending(view.chunks(), count, 0, Timestamp::now(), patiently).is_none() {
        return Ok(None);
    }
    let summary = summarize(store, view, ended, manifest, manifest_sha256).await?;
    let chunks_dead = summary.dead.len() as u32;
    let chunks_done = summary.parts.len() as u32;
    let Some(state) = run.ending(view.chunks(), chunks_done + chunks_dead, chunks_dead, Timestamp::now(), patiently)
    else {
        // A record that was listed could not be read: whatever that is, no end is written over it.
        return Ok(None);
    };
    passed("before-summary");
    let sha256 = write_summary(store, view.keys(), &summary).await?;
    Ok(Some(End {
        state,
        at: ended_at(store, view.keys(), state).await?,
        rows: summary.rows,
        failed: summary.failed,
        truncated: summary.truncated,
        tokens: summary.tokens,
        chunks_done,
        chunks_dead,
        rows_dead: summary.dead.iter().map(|dead| manifest.rows_of(dead.chunk)).sum(),
        summary: sha256,
    }))
}

/// Now; or, of a job from before there were runs, when it was complete.
async fn ended_at(store: &Store, keys: &JobKeys, state: EndState) -> Result<Timestamp, StoreError> {
    if keys.at().run == 0
        && state == EndState::Completed
        && let Some(at_s) = store.modified_s(&keys.success()).await?
        && let Ok(at) = Timestamp::from_millisecond((at_s * 1000.0) as i64)
    {
        return Ok(at);
    }
    Ok(Timestamp::now())
}

/// What these chunks of a run came to. Whoever sums up the same chunks writes the same.
pub async fn summarize(
    store: &Store,
    view: &RunView,
    ended: Vec<u32>,
    manifest: &Manifest,
    manifest_sha256: Digest,
) -> Result<FinalManifest, StoreError> {
    let mut summary = FinalManifest {
        version: CONTRACT_VERSION,
        job: manifest.job.clone(),
        run: view.keys().at().run,
        chunks: view.chunks(),
        spec: manifest.spec.clone(),
        revisions: Vec::new(),
        compute: Vec::new(),
        manifest_sha256,
        rows: 0,
        failed: 0,
        truncated: 0,
        rejected: manifest.rejected,
        tokens: 0,
        parts: Vec::with_capacity(ended.len()),
        dead: Vec::new(),
    };
    let mut outcomes = stream::iter(ended).map(|chunk| view.outcome(store, chunk)).buffered(READS_MAX);
    while let Some(outcome) = outcomes.next().await {
        match outcome? {
            Some(Outcome::Done(result)) => add(&mut summary, *result),
            Some(Outcome::Dead(dead)) => summary.dead.push(dead),
            None => {}
        }
    }
    summary.revisions.sort();
    summary.compute.sort();
    Ok(summary)
}

fn add(summary: &mut FinalManifest, result: ChunkResult) {
    summary.rows += u64::from(result.rows);
    summary.failed += u64::from(result.failed);
    summary.truncated += u64::from(result.truncated);
    summary.tokens += result.tokens;
    if !summary.revisions.contains(&result.revision) {
        summary.revisions.push(result.revision.clone());
    }
    if let Some(compute) = result.compute.as_ref().filter(|compute| !summary.compute.contains(compute)) {
        summary.compute.push(compute.clone());
    }
    summary.parts.push(result.into());
}

/// Writes a summary under its digest, which names it.
pub async fn write_summary(store: &Store, keys: &JobKeys, summary: &FinalManifest) -> Result<Digest, StoreError> {
    let bytes = serde_json::to_vec(summary).unwrap_or_default();
    let sha256 = Digest::of(&bytes);
    store.put(&keys.summary(&sha256), bytes, "application/json").await?;
    Ok(sha256)
}

/// A summary by its digest; `None` where its job was deleted.
pub async fn read_summary(store: &Store, keys: &JobKeys, sha256: &Digest) -> Result<Option<FinalManifest>, StoreError> {
    store.get_json(&keys.summary(sha256), SUMMARY_BYTES_MAX).await
}

/// What a complete job leaves for whoever reads S3 alone. Done again it changes nothing.
async fn publish(store: &Store, keys: &JobKeys, end: &End, passed: &impl Fn(&'static str)) -> Result<(), StoreError> {
    if end.state != EndState::Completed || store.exists(&keys.success()).await? {
        return Ok(());
    }
    let Some(summary) = store.get(&keys.summary(&end.summary), SUMMARY_BYTES_MAX).await? else {
        // The job was deleted.
        return Ok(());
    };
    if keys.at().life == 0 {
        // What lies there may be that of a failure from before there were runs.
        store.put(&keys.final_manifest(), summary, "application/json").await?;
    } else {
        store.put_new(&keys.final_manifest(), summary, "application/json").await?;
    }
    passed("before-success");
    store.put_new(&keys.success(), Vec::new(), "text/plain").await?;
    Ok(())
}
