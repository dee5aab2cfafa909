//! A job's ledger on S3: numbered entries, each of which says where the job stands after one event. An entry is written under a
//! number that was free (`If-None-Match: *`), so that there is one order of events for everybody, and never again.

use std::time::Duration;

use aws_lc_rs::rand;
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use vecmill_signer::claims::{JobId, RunId, TenantId};

use super::{Event, Job, Moot, legacy};
use crate::{
    contract::{CONTRACT_VERSION, JobKeys, entry_of_key},
    store::{Store, StoreError},
};

/// An entry is this long at most: [`super::HOLDERS_MAX`] names, twice, and a corpus' name.
const ENTRY_BYTES_MAX: usize = 1 << 20;
/// Tries of an append that others come in between of. Each failure is somebody else's success.
const APPENDS_MAX: u32 = 50;
/// Longest pause between two of them.
const AGAIN_MAX_MS: u64 = 200;
/// Looks at what a life that is over has left.
const REMOVALS_MAX: u32 = 3;
/// Objects deleted at once.
const DELETIONS_MAX: usize = 16;

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// [`CONTRACT_VERSION`].
    pub version: u32,
    /// Its number, from 1. 0 is what a job from before there were ledgers amounts to, and is not written.
    pub number: u32,
    /// When it was written, by its writer's clock.
    pub at: Timestamp,
    /// What had happened, for people.
    pub event: String,
    /// Random: a writer whose answer got lost knows its own entry by it.
    pub writer: String,
    /// Where the job stands since.
    pub job: Job,
}

/// What came of an event.
#[derive(Clone, Debug)]
pub enum Appended {
    /// It is written; this is the entry.
    Written(Entry),
    /// It changes nothing, for the reason given, as the job stands.
    Moot(Moot, Option<Entry>),
}

impl Appended {
    /// Where the job stands, whether the event changed it or not.
    pub fn entry(self) -> Option<Entry> {
        match self {
            Self::Written(entry) => Some(entry),
            Self::Moot(_, entry) => entry,
        }
    }
}

/// Why a ledger can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// S3 failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Others were always first.
    #[error(
        "the job's ledger is written to by so many at once that there was no place in {APPENDS_MAX} tries; ask again"
    )]
    Contended,
    /// A later version has written it.
    #[error("the job's ledger has an entry of version {0}; this program reads version {CONTRACT_VERSION}")]
    Version(u32),
}

/// A job's ledger.
#[derive(Clone, Debug)]
pub struct Ledger {
    store: Store,
    keys: JobKeys,
}

impl Ledger {
    /// The ledger of `job` of `tenant`.
    pub fn new(store: Store, tenant: &TenantId, job: &JobId) -> Self {
        Self { store, keys: JobKeys::new(tenant, job, RunId::default()) }
    }

    /// The keys of a run.
    pub fn keys_of(&self, at: RunId) -> JobKeys {
        self.keys.of_run(at)
    }

    /// The bucket that it lies in.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The newest entry; `None` where nobody has heard of the job.
    pub async fn head(&self) -> Result<Option<Entry>, LedgerError> {
        let newest = self.store.list_some(&self.keys.ledger_prefix(), None, 1).await?;
        match newest.first().and_then(|object| entry_of_key(&object.key)) {
            // Entries are never removed: one that was listed is there.
            Some(number) => self.entry(number).await,
            None => Ok(legacy::entry(&self.store, &self.keys).await?),
        }
    }

    /// An entry by its number.
    pub async fn entry(&self, number: u32) -> Result<Option<Entry>, LedgerError> {
        if number == 0 {
            return Ok(legacy::entry(&self.store, &self.keys).await?);
        }
        let entry: Option<Entry> = self.store.get_json(&self.keys.ledger(number), ENTRY_BYTES_MAX).await?;
        match entry {
            Some(entry) if entry.version != CONTRACT_VERSION => Err(LedgerError::Version(entry.version)),
            entry => Ok(entry),
        }
    }

    /// The first end of a run that was decided at entry `since` or after it, with the entry; or, where there is none, the newest entry.
    /// `run` is the one that counted at `since`: while it does, the newest entry is enough.
    pub async fn first_end_since(&self, since: u32, run: u32) -> Result<Option<Entry>, LedgerError> {
        let Some(head) = self.head().await? else { return Ok(None) };
        if head.job.at().run == run && !head.job.deleted {
            return Ok(Some(head));
        }
        let over = |entry: &Entry| entry.job.deleted || entry.job.run.as_ref().is_some_and(|run| run.end.is_some());
        for number in since..head.number {
            if let Some(entry) = self.entry(number).await?
                && over(&entry)
            {
                return Ok(Some(entry));
            }
        }
        Ok(Some(head))
    }

    /// Writes the event that `decide` makes of where the job stands, or nothing where it makes none. `decide` is asked again
    /// whenever another was faster.
    pub async fn append(
        &self,
        mut decide: impl FnMut(Option<&Entry>) -> Result<Event, Moot>,
    ) -> Result<Appended, LedgerError> {
        for tried in 0..APPENDS_MAX {
            if tried > 0 {
                tokio::time::sleep(Duration::from_millis(u64::from(random()) % AGAIN_MAX_MS)).await;
            }
            let head = self.head().await?;
            let now = Timestamp::now();
            let job = head.as_ref().map(|entry| &entry.job);
            let next = decide(head.as_ref()).and_then(|event| Ok((Job::after(job, &event, now)?, event)));
            let (job, event) = match next {
                Ok(next) => next,
                Err(moot) => return Ok(Appended::Moot(moot, head)),
            };
            let number = head.map_or(0, |head| head.number) + 1;
            let writer = format!("{:08x}{:08x}", random(), random());
            let entry = Entry { version: CONTRACT_VERSION, number, at: now, event: event.told(), writer, job };
            if self.write(&entry).await? {
                return Ok(Appended::Written(entry));
            }
        }
        Err(LedgerError::Contended)
    }

    /// Ends a life of whose corpus no job is made, as long as it is the one that counts, and removes what it was cut into. Whoever else
    /// cuts it for the same life sees that it is over.
    pub async fn abandon(&self, life: u32) -> Result<(), LedgerError> {
        let abandoned = self.append(|head| match head {
            Some(head) if head.job.life == life => Ok(Event::Abandon),
            _ => Err(Moot::Superseded),
        });
        if let Appended::Written(_) = abandoned.await? {
            self.remove(life).await?;
        }
        Ok(())
    }

    /// Removes what a life left, once the ledger says that it is over. Its entries stay: their numbers are taken. Looked for again,
    /// because a worker or a producer that has not heard of it may still be writing.
    pub async fn remove(&self, life: u32) -> Result<(), StoreError> {
        let keys = self.keys.of_run(RunId { life, run: 0 });
        for _ in 0..REMOVALS_MAX {
            let mut objects = self.store.list(keys.prefix(), None).await?;
            objects.retain(|object| keys.is_of_life(&object.key));
            if objects.is_empty() {
                return Ok(());
            }
            stream::iter(objects)
                .map(|object| async move { self.store.delete(&object.key).await })
                .buffer_unordered(DELETIONS_MAX)
                .try_collect::<()>()
                .await?;
        }
        Ok(())
    }

    /// Whether the entry is written: its number was free, or it was written by a try whose answer got lost.
    async fn write(&self, entry: &Entry) -> Result<bool, LedgerError> {
        let key = self.keys.ledger(entry.number);
        let bytes = serde_json::to_vec(entry).unwrap_or_default();
        if self.store.put_new(&key, bytes, "application/json").await? {
            return Ok(true);
        }
        Ok(self.entry(entry.number).await?.is_some_and(|there| there.writer == entry.writer))
    }
}

impl Event {
    /// What it is, in a few words.
    fn told(&self) -> String {
        match self {
            Self::Open => "opened".to_owned(),
            Self::Abandon => "abandoned".to_owned(),
            Self::Begin(new) => {
                format!("run {} begun by {}", new.at.run, new.holder.as_deref().unwrap_or("its holders"))
            }
            Self::Join(holder) => format!("joined by {holder}"),
            Self::Publish(run) => format!("run {run} published"),
            Self::Pause => "paused".to_owned(),
            Self::Resume => "resumed".to_owned(),
            Self::Cancel => "cancelled".to_owned(),
            Self::Leave(holder) => format!("left by {holder}"),
            Self::End(run, end) => format!("run {run} {:?}", end.state).to_lowercase(),
            Self::Release(holder) => format!("released by {holder}"),
        }
    }
}

fn random() -> u32 {
    let mut bytes = [0; 4];
    // Without a source of randomness no key could be made either; a writer then takes another's entry for its own only if
    // that one has none, too.
    let _ = rand::fill(&mut bytes);
    u32::from_le_bytes(bytes)
}
