//! Looking at a job, once or again and again.

use std::collections::BTreeMap;

use vecmill_signer::claims::{Digest, JobId, TenantId};

use super::budget::{ManifestBudget, Room};
use super::{JobState, JobStatus, StatusError, WaitReason, Waiting};
use crate::{
    contract::{ChunkResult, FinalManifest, JobKeys, MANIFEST_BYTES_MAX, Manifest, Outcome, PartEntry, chunk_of_key},
    life::{End, EndState, Entry, Ledger, LedgerError, Run, RunView, conclude, read_summary},
    store::{Object, Store, StoreError},
};

/// Chunk results read in one go. A status of a huge job must answer in seconds; a watch reads on at each look.
const RESULTS_PER_LOOK_MAX: usize = 2_000;
/// The rate is taken over the chunks finished in this time, and nothing is said of a job of which none was finished in it.
const RATE_WINDOW_S: f64 = 60.0;
/// Dead chunks named in a status; their number is always exact.
const DEAD_NAMED_MAX: usize = 100;

/// Looks at a job again and again, reading each record once.
pub struct Watch {
    ledger: Ledger,
    tenant: TenantId,
    job: JobId,
    /// The manifest of a life, and its digest.
    manifest: Option<(u32, Manifest, Digest)>,
    /// What chunks of the run that counts came to.
    seen: Option<Seen>,
    /// Where manifests may not take what they like, and what this one takes.
    budget: Option<ManifestBudget>,
    room: Option<Room>,
}

/// What a watch has seen of a run.
struct Seen {
    view: RunView,
    results: BTreeMap<u32, ChunkResult>,
}

impl Watch {
    /// A watch that has seen nothing yet.
    pub fn new(store: Store, tenant: &TenantId, job: &JobId) -> Self {
        Self {
            ledger: Ledger::new(store, tenant, job),
            tenant: tenant.clone(),
            job: job.clone(),
            manifest: None,
            seen: None,
            budget: None,
            room: None,
        }
    }

    /// The same within what a program lets manifests take.
    pub fn within(self, budget: &ManifestBudget) -> Self {
        Self { budget: Some(budget.clone()), ..self }
    }

    /// The job.
    pub fn job(&self) -> &JobId {
        &self.job
    }

    /// The job's ledger.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Whether the job is there: its corpus was cut once, and it is not deleted.
    pub async fn exists(&self) -> Result<bool, LedgerError> {
        let Some(entry) = self.newest().await? else { return Ok(false) };
        let manifest = self.ledger.keys_of(entry.job.at()).manifest();
        Ok(entry.job.run.is_some() || self.ledger.store().exists(&manifest).await?)
    }

    async fn newest(&self) -> Result<Option<Entry>, LedgerError> {
        Ok(self.ledger.head().await?.filter(|entry| !entry.job.deleted))
    }

    /// Where the job stands now. An end that has come and that nobody has written down is written down: what is told stays so.
    pub async fn look(&mut self) -> Result<JobStatus, StatusError> {
        let mut status = JobStatus::unknown(&self.job);
        let Some(entry) = self.newest().await? else {
            status.note = Some("nobody has submitted it".to_owned());
            return Ok(status);
        };
        self.read_manifest(&entry).await?;
        let Some((_, manifest, manifest_sha256)) = &self.manifest else {
            status.note = Some("the corpus is still being uploaded".to_owned());
            return Ok(status);
        };
        status.model = Some(manifest.spec.model.clone());
        status.dimensions = Some(manifest.spec.dimensions);
        status.precision = manifest.spec.precision;
        status.rows = manifest.rows;
        status.rejected = manifest.rejected;
        status.chunks = manifest.chunk_count();
        status.rows_waiting = manifest.rows;
        let Some(run) = &entry.job.run else {
            status.note = note(&status, None);
            return Ok(status);
        };
        let (store, keys) = (self.ledger.store(), self.ledger.keys_of(entry.job.at()));
        // Of a run that has ended, its end says all.
        let open = match run.end {
            Some(_) => None,
            None => {
                let seen = Seen::of(&mut self.seen, store, &keys, run, status.chunks).await?;
                let ended = seen.view.ended(store, None).await?;
                Some((seen, ended))
            }
        };
        let over = open.as_ref().is_none_or(|(seen, ended)| {
            let count = seen.view.inherited().count() + ended.len() as u32;
            run.ending(status.chunks, count, 0, jiff::Timestamp::now(), true).is_some()
        });
        let newest = match over {
            true => conclude(&self.ledger, entry.clone(), manifest, *manifest_sha256, true, |_| {}).await?.entry(),
            false => entry.clone(),
        };
        let same = newest.job.at() == entry.job.at() && !newest.job.deleted;
        match (newest.job.run.as_ref().filter(|_| same), open) {
            (Some(run @ Run { end: Some(end), .. }), _) => {
                about(&mut status, run, &keys);
                ended_status(&mut status, end, store, &keys).await?;
                Ok(status)
            }
            (Some(run), Some((seen, ended))) => {
                about(&mut status, run, &keys);
                seen.tell(store, &mut status, manifest, run, &ended).await?;
                Ok(status)
            }
            // Another run has begun since: there is more to tell of that.
            _ => Box::pin(self.look()).await,
        }
    }

    /// What of the job's results is there: of a run that has ended, what its end names. `None` where there is no such job.
    pub async fn results(&self) -> Result<Option<Results>, StatusError> {
        let Some(entry) = self.newest().await? else { return Ok(None) };
        let (store, keys) = (self.ledger.store(), self.ledger.keys_of(entry.job.at()));
        let (mut parts, mut summary, mut complete) = (Vec::new(), None, false);
        match &entry.job.run {
            None => {}
            Some(Run { end: Some(end), .. }) => {
                summary = read_summary(store, &keys, &end.summary).await?;
                parts = summary.as_ref().map(|summary: &FinalManifest| summary.parts.clone()).unwrap_or_default();
                complete = end.state == EndState::Completed;
            }
            Some(run) => {
                if let Some(bytes) = store.get(&keys.manifest(), MANIFEST_BYTES_MAX).await? {
                    let view = RunView::open(store, &keys, run, Manifest::parse(&bytes)?.chunk_count()).await?;
                    parts = view.results(store).await?.into_iter().map(PartEntry::from).collect();
                }
            }
        }
        Ok(Some(Results { keys, parts, summary, complete }))
    }

    /// The key of one part, if it is finished.
    pub async fn part(&self, chunk: u32) -> Result<Option<String>, StatusError> {
        let Some(entry) = self.newest().await? else { return Ok(None) };
        let Some(run) = &entry.job.run else { return Ok(None) };
        let (store, keys) = (self.ledger.store(), self.ledger.keys_of(entry.job.at()));
        let view = RunView::open(store, &keys, run, u32::MAX).await?;
        Ok(match view.outcome(store, chunk).await? {
            Some(Outcome::Done(result)) => Some(keys.object(&result.part_path())),
            Some(Outcome::Dead(_)) | None => None,
        })
    }

    async fn read_manifest(&mut self, entry: &Entry) -> Result<(), StatusError> {
        let life = entry.job.life;
        if self.manifest.as_ref().is_some_and(|(of, ..)| *of == life) {
            return Ok(());
        }
        let key = self.ledger.keys_of(entry.job.at()).manifest();
        (self.manifest, self.room) = (None, None);
        if let Some(budget) = &self.budget {
            let Some(bytes) = self.ledger.store().bytes(&key).await? else { return Ok(()) };
            self.room = Some(budget.room(&self.tenant, bytes).await.ok_or(StatusError::Busy)?);
        }
        self.manifest = match self.ledger.store().get(&key, MANIFEST_BYTES_MAX).await? {
            Some(bytes) => Some((life, Manifest::parse(&bytes)?, Digest::of(&bytes))),
            None => None,
        };
        if let Some(room) = &mut self.room {
            room.read();
        }
        Ok(())
    }
}

/// What is there of a job's results.
#[derive(Debug)]
pub struct Results {
    /// The keys of the run that they are of.
    pub keys: JobKeys,
    /// The parts, in input order.
    pub parts: Vec<PartEntry>,
    /// The summary, once the run has ended.
    pub summary: Option<FinalManifest>,
    /// Whether these are all.
    pub complete: bool,
}

fn about(status: &mut JobStatus, run: &Run, keys: &JobKeys) {
    status.run = run.number;
    status.prefix = Some(keys.prefix().to_owned());
    status.lane = run.lane;
    status.name = Some(run.name.clone());
    status.submitted_at = Some(run.submitted_at);
    status.expires_at = Some(run.expires_at);
}

/// A run that has ended is what its end says, whatever was written since.
async fn ended_status(status: &mut JobStatus, end: &End, store: &Store, keys: &JobKeys) -> Result<(), StatusError> {
    status.state = match end.state {
        EndState::Completed => JobState::Completed,
        EndState::Failed => JobState::Failed,
        EndState::Expired => JobState::Expired,
        EndState::Cancelled => JobState::Cancelled,
    };
    status.ended_at = Some(end.at);
    status.chunks_done = end.chunks_done;
    status.chunks_dead = end.chunks_dead;
    status.rows_done = end.rows + end.failed;
    status.rows_failed = Some(end.failed);
    status.rows_truncated = Some(end.truncated);
    status.rows_waiting = status.rows.saturating_sub(status.rows_done + end.rows_dead);
    status.tokens = Some(end.tokens);
    if end.chunks_dead > 0 {
        let summary = read_summary(store, keys, &end.summary).await?;
        status.dead = summary.map(|summary| summary.dead).unwrap_or_default();
        status.dead.truncate(DEAD_NAMED_MAX);
    }
    expect_tokens(status);
    status.note = note(status, None);
    Ok(())
}

impl Seen {
    /// What was seen of a run, or nothing yet where that was another.
    async fn of<'a>(
        seen: &'a mut Option<Self>,
        store: &Store,
        keys: &JobKeys,
        run: &Run,
        chunks: u32,
    ) -> Result<&'a mut Self, StoreError> {
        let kept = seen.take().filter(|seen| seen.view.keys() == keys);
        let kept = match kept {
            Some(kept) => kept,
            None => Self { view: RunView::open(store, keys, run, chunks).await?, results: BTreeMap::new() },
        };
        Ok(seen.insert(kept))
    }

    /// A run that goes on.
    async fn tell(
        &mut self,
        store: &Store,
        status: &mut JobStatus,
        manifest: &Manifest,
        run: &Run,
        ended: &[Object],
    ) -> Result<(), StatusError> {
        let all = self.view.all_ended(ended);
        let dead = self.view.dead(store, ended).await?;
        let rows_dead: u64 = dead.iter().map(|dead| manifest.rows_of(dead.chunk)).sum();
        status.chunks_dead = dead.len() as u32;
        status.chunks_done = all.len() as u32 - status.chunks_dead;
        status.rows_done = all.iter().map(|&chunk| manifest.rows_of(chunk)).sum::<u64>() - rows_dead;
        status.rows_waiting = status.rows.saturating_sub(status.rows_done + rows_dead);
        rate(status, manifest, ended);
        self.count(store, status, &all, dead.len()).await?;
        status.dead = dead;
        status.dead.truncate(DEAD_NAMED_MAX);
        expect_tokens(status);
        status.state = match run {
            Run { cancelling_at: Some(_), .. } => JobState::Cancelling,
            _ if all.len() as u32 >= status.chunks => JobState::Finalizing,
            Run { published: false, .. } => JobState::Validating,
            _ if status.chunks_done == 0 => JobState::Queued,
            _ => JobState::Running,
        };
        if let (JobState::Queued | JobState::Running, Some(at)) = (status.state, run.paused_at) {
            status.waiting = Some(Waiting {
                reason: WaitReason::Paused,
                until: None,
                message: format!("its tenant has held it up since {at:.0}: resume it to go on"),
            });
        }
        if status.state != JobState::Running || status.waiting.is_some() {
            status.eta_s = None;
        }
        status.note = match &status.waiting {
            Some(waiting) => Some(waiting.message.clone()),
            None => note(status, Some(run)),
        };
        Ok(())
    }

    /// Tokens, failed and truncated rows, from the chunks' records, where not too many have to be read.
    async fn count(
        &mut self,
        store: &Store,
        status: &mut JobStatus,
        all: &[u32],
        dead: usize,
    ) -> Result<(), StoreError> {
        let unread = all.iter().copied().filter(|chunk| !self.results.contains_key(chunk));
        let unread: Vec<u32> = unread.take(RESULTS_PER_LOOK_MAX).collect();
        for outcome in self.view.outcomes(store, unread).await? {
            if let Outcome::Done(result) = outcome {
                self.results.insert(result.chunk, *result);
            }
        }
        if self.results.len() + dead >= all.len() {
            status.tokens = Some(self.results.values().map(|result| result.tokens).sum());
            status.rows_failed = Some(self.results.values().map(|result| u64::from(result.failed)).sum());
            status.rows_truncated = Some(self.results.values().map(|result| u64::from(result.truncated)).sum());
        }
        Ok(())
    }
}

fn expect_tokens(status: &mut JobStatus) {
    if let (Some(tokens), 1..) = (status.tokens, status.rows_done) {
        status.tokens_waiting = Some((tokens as f64 / status.rows_done as f64 * status.rows_waiting as f64) as u64);
    }
}

/// The rate needs no memory of earlier looks: the records carry the times at which they were written. Only the run's own count: what
/// it went on from was written at another time.
fn rate(status: &mut JobStatus, manifest: &Manifest, done: &[Object]) {
    let newest = done.iter().map(|object| object.modified_s).fold(0.0, f64::max);
    let oldest = done.iter().map(|object| object.modified_s).fold(f64::INFINITY, f64::min);
    let from = (newest - RATE_WINDOW_S).max(oldest);
    let stalled = jiff::Timestamp::now().as_second() as f64 - newest > RATE_WINDOW_S;
    // S3 keeps times to the second: less than two seconds is no measure.
    if newest - from < 2.0 || stalled {
        return;
    }
    let recent = done.iter().filter(|object| object.modified_s > from);
    let rows: u64 = recent.filter_map(|object| chunk_of_key(&object.key)).map(|chunk| manifest.rows_of(chunk)).sum();
    let rate = rows as f64 / (newest - from);
    status.rows_per_s = Some(rate);
    if rate > 0.0 {
        status.eta_s = Some((status.rows.saturating_sub(status.rows_done) as f64 / rate).ceil() as u64);
    }
}

fn note(status: &JobStatus, run: Option<&Run>) -> Option<String> {
    match status.state {
        JobState::Validating if run.is_some() => {
            Some("its messages are not all published; if no submit is running, submit the same corpus again".to_owned())
        }
        JobState::Validating => Some("the corpus is uploaded; if no submit is running, submit it again".to_owned()),
        JobState::Queued => Some(format!(
            "no chunk is done yet: it waits for a worker{}, or for the tenant's quota",
            status.precision.map(|precision| format!(" that computes in {precision}")).unwrap_or_default()
        )),
        JobState::Failed => Some(format!(
            "{} of {} chunks were given up; the others' vectors are there; submit the same corpus again to retry",
            status.chunks_dead, status.chunks
        )),
        JobState::Expired => Some("its completion window is over; submit the same corpus again to go on".to_owned()),
        JobState::Cancelling => Some("workers are stopping; what is finished stays".to_owned()),
        JobState::Cancelled => Some("submit the same corpus again to go on".to_owned()),
        _ => None,
    }
}
