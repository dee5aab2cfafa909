//! What the chunks of a run came to: its own records, and those of earlier runs that it goes on from.

use std::{collections::HashSet, sync::Arc};

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use vecmill_signer::claims::{Digest, RunId};

use super::Run;
use crate::{
    contract::{CONTRACT_VERSION, ChunkResult, DeadChunk, JobKeys, Outcome, chunk_of_key},
    store::{Object, Store, StoreError},
};

/// Records read at once.
pub(super) const READS_MAX: usize = 32;
/// A chunk's record is this long at most.
const RECORD_BYTES_MAX: usize = 64 << 10;
/// A line of at most 30 bytes for each of the chunks that a job may have.
const INHERITED_BYTES_MAX: usize = 32 << 20;
/// A chunk that is not inherited.
const NOT: u32 = u32::MAX;

/// Which chunks were done in earlier runs, and in which: settled when a run begins, so that what its chunks came to is known from
/// it and the run's own records alone.
#[derive(Clone, Debug, Default)]
pub struct Inherited {
    /// The run of each chunk, or [`NOT`]; chunks beyond the end are not inherited.
    runs: Vec<u32>,
    count: u32,
}

/// As it is stored: neighbours of one run are one line.
#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    /// First chunk, number of chunks, run.
    ranges: Vec<(u32, u32, u32)>,
}

impl Inherited {
    /// How many chunks they are.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The run that a chunk was done in, if it was.
    pub fn run_of(&self, chunk: u32) -> Option<u32> {
        self.runs.get(chunk as usize).copied().filter(|&run| run != NOT)
    }

    fn set(&mut self, chunk: u32, run: u32) {
        let needed = chunk as usize + 1;
        if self.runs.len() < needed {
            self.runs.resize(needed, NOT);
        }
        if std::mem::replace(&mut self.runs[chunk as usize], run) == NOT {
            self.count += 1;
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut ranges: Vec<(u32, u32, u32)> = Vec::new();
        for (chunk, &run) in (0..).zip(&self.runs).filter(|&(_, &run)| run != NOT) {
            match ranges.last_mut() {
                Some((first, count, of)) if *first + *count == chunk && *of == run => *count += 1,
                _ => ranges.push((chunk, 1, run)),
            }
        }
        serde_json::to_vec(&Document { version: CONTRACT_VERSION, ranges }).unwrap_or_default()
    }

    fn of(document: &Document, chunks: u32) -> Self {
        let mut inherited = Self::default();
        for &(first, count, run) in &document.ranges {
            // Nothing beyond the job's own chunks: what a document says must not decide how much memory it takes.
            for chunk in first..first.saturating_add(count).min(chunks) {
                inherited.set(chunk, run);
            }
        }
        inherited
    }
}

/// A run and what its chunks came to.
#[derive(Clone, Debug)]
pub struct RunView {
    keys: JobKeys,
    chunks: u32,
    inherited: Arc<Inherited>,
}

impl RunView {
    /// A view of a run of a job of so many chunks.
    pub async fn open(store: &Store, keys: &JobKeys, run: &Run, chunks: u32) -> Result<Self, StoreError> {
        let keys = keys.of_run(RunId { life: keys.at().life, run: run.number });
        let inherited = match &run.inherited {
            None => Inherited::default(),
            Some(sha256) => {
                let key = keys.inherited(sha256);
                let document: Option<Document> = store.get_json(&key, INHERITED_BYTES_MAX).await?;
                // The entry that names it was written after it: only the job's deletion removes it.
                document.map(|document| Inherited::of(&document, chunks)).unwrap_or_default()
            }
        };
        Ok(Self { keys, chunks, inherited: Arc::new(inherited) })
    }

    /// The run's keys.
    pub fn keys(&self) -> &JobKeys {
        &self.keys
    }

    /// Chunks of the job.
    pub fn chunks(&self) -> u32 {
        self.chunks
    }

    /// What it goes on from.
    pub fn inherited(&self) -> &Inherited {
        &self.inherited
    }

    /// The records of this run's own chunks that have ended, in their order; those after a chunk where one is given.
    pub async fn ended(&self, store: &Store, after: Option<u32>) -> Result<Vec<Object>, StoreError> {
        let start_after = after.map(|chunk| self.keys.ended(chunk));
        let mut ended = store.list(&self.keys.ended_prefix(), start_after.as_deref()).await?;
        if self.keys.at().run == 0 {
            // Before there were runs, a chunk that was given up had no record but that.
            let done: HashSet<_> = ended.iter().map(|object| chunk_of_key(&object.key)).collect();
            let start_after = after.map(|chunk| self.keys.dead(chunk));
            let mut dead = store.list(&self.keys.dead_prefix(), start_after.as_deref()).await?;
            dead.retain(|object| !done.contains(&chunk_of_key(&object.key)));
            ended.extend(dead);
            ended.sort_by_key(|object| chunk_of_key(&object.key));
        }
        ended.retain(|object| {
            chunk_of_key(&object.key).is_some_and(|chunk| chunk < self.chunks && self.inherited.run_of(chunk).is_none())
        });
        Ok(ended)
    }

    /// What a chunk came to; `None` where it has not ended.
    pub async fn outcome(&self, store: &Store, chunk: u32) -> Result<Option<Outcome>, StoreError> {
        let run = self.inherited.run_of(chunk).unwrap_or(self.keys.at().run);
        let keys = self.keys.of_run(RunId { life: self.keys.at().life, run });
        let outcome = store.get_json(&keys.ended(chunk), RECORD_BYTES_MAX).await?;
        match outcome {
            None if run == 0 => Ok(store.get_json(&keys.dead(chunk), RECORD_BYTES_MAX).await?.map(Outcome::Dead)),
            outcome => Ok(outcome),
        }
    }

    /// What chunks came to, several read at once, in the order asked for.
    pub async fn outcomes(&self, store: &Store, chunks: Vec<u32>) -> Result<Vec<Outcome>, StoreError> {
        let read: Vec<Option<Outcome>> =
            stream::iter(chunks).map(|chunk| self.outcome(store, chunk)).buffered(READS_MAX).try_collect().await?;
        Ok(read.into_iter().flatten().collect())
    }

    /// Those of the ended chunks that were given up. A chunk is listed as about to be given up before it is: so the listing
    /// must be no older than the one that `ended` is from.
    pub async fn dead(&self, store: &Store, ended: &[Object]) -> Result<Vec<DeadChunk>, StoreError> {
        let ended: HashSet<u32> = chunks_of(ended).collect();
        let listed = store.list(&self.keys.dead_prefix(), None).await?;
        let listed = chunks_of(&listed).filter(|chunk| ended.contains(chunk)).collect();
        let outcomes = self.outcomes(store, listed).await?;
        let dead = outcomes.into_iter().filter_map(|outcome| match outcome {
            Outcome::Dead(dead) => Some(dead),
            Outcome::Done(_) => None,
        });
        Ok(dead.collect())
    }

    /// The results that there are, in the chunks' order.
    pub async fn results(&self, store: &Store) -> Result<Vec<ChunkResult>, StoreError> {
        let ended = self.ended(store, None).await?;
        let outcomes = self.outcomes(store, self.all_ended(&ended)).await?;
        let done = outcomes.into_iter().filter_map(|outcome| match outcome {
            Outcome::Done(result) => Some(*result),
            Outcome::Dead(_) => None,
        });
        Ok(done.collect())
    }

    /// The numbers of all ended chunks, inherited ones among them, in their order.
    pub fn all_ended(&self, ended: &[Object]) -> Vec<u32> {
        let inherited = (0..self.chunks).filter(|&chunk| self.inherited.run_of(chunk).is_some());
        let mut all: Vec<u32> = chunks_of(ended).chain(inherited).collect();
        all.sort_unstable();
        all
    }

    /// Writes down what the next run goes on from: what is done in this one, or was before it. Gives the document's digest, if
    /// there is anything, and the chunks that are left to do.
    pub async fn bequeath(&self, store: &Store) -> Result<(Option<Digest>, Vec<u32>), StoreError> {
        let ended = self.ended(store, None).await?;
        let dead = self.dead(store, &ended).await?;
        let mut inherited = (*self.inherited).clone();
        let dead: HashSet<u32> = dead.iter().map(|dead| dead.chunk).collect();
        for chunk in chunks_of(&ended).filter(|chunk| !dead.contains(chunk)) {
            inherited.set(chunk, self.keys.at().run);
        }
        let left = (0..self.chunks).filter(|&chunk| inherited.run_of(chunk).is_none()).collect();
        if inherited.count == 0 {
            return Ok((None, left));
        }
        let bytes = inherited.to_bytes();
        let sha256 = Digest::of(&bytes);
        store.put(&self.keys.inherited(&sha256), bytes, "application/json").await?;
        Ok((Some(sha256), left))
    }
}

/// The chunks' numbers in a listing.
pub fn chunks_of(objects: &[Object]) -> impl Iterator<Item = u32> {
    objects.iter().filter_map(|object| chunk_of_key(&object.key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_inherited_survives_its_document() {
        let mut inherited = Inherited::default();
        for (chunk, run) in [(1, 0), (2, 0), (3, 2), (7, 2), (8, 2), (9, 1)] {
            inherited.set(chunk, run);
        }
        let bytes = inherited.to_bytes();
        let document: Document = serde_json::from_slice(&bytes).expect("a document");
        assert_eq!(document.ranges, [(1, 2, 0), (3, 1, 2), (7, 2, 2), (9, 1, 1)]);
        let read = Inherited::of(&document, 10);
        assert_eq!((read.runs, read.count), (inherited.runs, 6));
        assert_eq!(Inherited::of(&document, 8).count(), 4, "no chunk that the job does not have");
    }
}
