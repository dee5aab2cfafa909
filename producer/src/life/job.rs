//! The life cycle of a job: what can happen to it, and what becomes of it then. Pure: no clock, no I/O.
//!
//! Where a job stands is one value, [`Job`]; each [`Event`] makes the next of it or is moot. The values lie on S3 one after the
//! other, each under a number that only one writer can take (the ledger): whoever comes second looks again and decides anew. So
//! no two events pass each other unseen, whichever programs they come from, and what was decided stays.
//!
//! A **run** is a submission that takes a job up. What chunks come to is recorded under the run, so that nothing that is left
//! of an earlier one (a message, a slow worker, a mark) has an effect on it. A **life** begins when a job is submitted for the
//! first time, or again after it was deleted; lives share no object.
//!
//! A **holder** is who wants a job kept: a batch, by its id, or [`DIRECT`]. A job is deleted with its last holder, and a run
//! cancelled with the last who wants it.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use vecmill_signer::claims::{Digest, RunId};

/// The holder of jobs that were submitted by command, or with a library: nothing lets go of them but their deletion.
pub const DIRECT: &str = "direct";
/// The holder of jobs from before holders were recorded.
pub const UNRECORDED: &str = "unrecorded";
/// Most holders of a job. Each is some 40 bytes of every entry of its ledger.
pub const HOLDERS_MAX: usize = 1_000;
/// Seconds from a cancellation until the run is over. Workers stop within two of them; what is in their hands and ends in time
/// still counts.
pub const CANCELLING_S: i64 = 5;

/// Where a job stands, as far as anybody has decided something about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Job {
    /// The life that it is in, or was in last. 0 is a job from before there were lives.
    pub life: u32,
    /// Runs so far, in all lives.
    pub runs: u32,
    /// Whether it is deleted.
    pub deleted: bool,
    /// Who wants it kept.
    pub holders: BTreeSet<String>,
    /// The run that counts: the last, once there is one in this life.
    pub run: Option<Run>,
}

/// A run of a job.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Run {
    /// Its number among all runs of the job.
    pub number: u32,
    /// When it began.
    pub submitted_at: Timestamp,
    /// When its grant expires: chunks that are not done by then are not computed.
    pub expires_at: Timestamp,
    /// What the submitter called the input.
    pub name: String,
    /// The lane that its messages go to, as the grant numbers it.
    pub lane: Option<u32>,
    /// Whether every chunk's message was confirmed by the broker.
    pub published: bool,
    /// Which of the holders want it to go on.
    pub wanted_by: BTreeSet<String>,
    /// The document that says which chunks were done in earlier runs; none where none was.
    pub inherited: Option<Digest>,
    /// Since when the tenant holds it up.
    pub paused_at: Option<Timestamp>,
    /// Since when it is to stop.
    pub cancelling_at: Option<Timestamp>,
    /// What it came to. Once it is there, it stays.
    pub end: Option<End>,
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct End {
    /// In which way it ended.
    pub state: EndState,
    /// When.
    pub at: Timestamp,
    /// Texts with a vector.
    pub rows: u64,
    /// Texts that failed, in chunks that are done.
    pub failed: u64,
    /// Texts whose end was cut off.
    pub truncated: u64,
    /// Exact tokens of the chunks that are done.
    pub tokens: u64,
    /// Chunks that are done.
    pub chunks_done: u32,
    /// Chunks that were given up.
    pub chunks_dead: u32,
    /// Texts in chunks that were given up.
    pub rows_dead: u64,
    /// The summary: it names every part that counts.
    pub summary: Digest,
}

/// Ways for a run to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndState {
    /// Every chunk is done.
    Completed,
    /// Every chunk has ended, and some were given up.
    Failed,
    /// Its window was over first.
    Expired,
    /// Nobody wanted it any more.
    Cancelled,
}

/// A run that is about to begin.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NewRun {
    /// Which one it must be: the next.
    pub at: RunId,
    /// Who wants it; none where it goes on for whoever holds the job.
    pub holder: Option<String>,
    /// When its grant expires.
    pub expires_at: Timestamp,
    /// What the submitter calls the input.
    pub name: String,
    /// The lane that the grant names.
    pub lane: Option<u32>,
    /// Which chunks were done before.
    pub inherited: Option<Digest>,
}

/// What happens to a job.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Somebody is about to cut its corpus: a life begins unless there is one.
    Open,
    /// Its corpus turned out to be unusable: the life ends before it has a run.
    Abandon,
    /// Somebody takes it up.
    Begin(NewRun),
    /// Somebody wants what runs already, or is complete.
    Join(String),
    /// Every message of a run is with the broker.
    Publish(u32),
    /// The tenant holds it up.
    Pause,
    /// The tenant lets it go on.
    Resume,
    /// The tenant wants no more of it, whoever else holds it.
    Cancel,
    /// A holder wants no more of it computed.
    Leave(String),
    /// A run has come to something.
    End(u32, Box<End>),
    /// A holder needs it no longer. With the last one it is deleted.
    Release(String),
}

/// Why an event changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Moot {
    /// It is so already.
    Already,
    /// There is no run that it could concern.
    NoRun,
    /// It was deleted.
    Deleted,
    /// It concerns an earlier run, or another has begun first.
    Superseded,
    /// The run has ended.
    Ended,
    /// The run is being cancelled: it ends before another begins, and in no other way.
    Cancelling,
    /// [`HOLDERS_MAX`].
    TooManyHolders,
}

/// How a run stands to what the ledger says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    /// Chunks of it are to be computed.
    Goes,
    /// Chunks of it wait.
    Paused,
    /// It is to stop, and somebody must write that it has.
    Cancelling,
    /// It has ended.
    Ended,
    /// A later run counts, or the job was deleted: nothing of it has an effect.
    Over,
}

/// What a submission has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Plan {
    /// Begin a run.
    Begin,
    /// Join the run that goes on, or what it came to.
    Join,
    /// See the run to its end first.
    Conclude,
    /// Cut the corpus again: the life that it was cut for is over.
    Reopen,
}

impl Job {
    /// The run that counts.
    pub fn at(&self) -> RunId {
        RunId { life: self.life, run: self.run.as_ref().map_or(0, |run| run.number) }
    }

    /// The run that counts, as long as it has not ended and the job is not deleted.
    pub fn unfinished(&self) -> Option<&Run> {
        self.run.as_ref().filter(|run| !self.deleted && run.end.is_none())
    }

    /// The run that would be the next.
    pub fn next(&self) -> RunId {
        RunId { life: self.life, run: self.runs + 1 }
    }

    /// How a run stands.
    pub fn standing(&self, at: RunId) -> Standing {
        let Some(run) = self.run.as_ref().filter(|_| !self.deleted && self.at() == at) else { return Standing::Over };
        match run {
            Run { end: Some(_), .. } => Standing::Ended,
            Run { cancelling_at: Some(_), .. } => Standing::Cancelling,
            Run { paused_at: Some(_), .. } => Standing::Paused,
            _ => Standing::Goes,
        }
    }

    /// What a submission has to do whose corpus was cut for `life`. `again` where messages of a run that goes on are to be
    /// published once more.
    pub fn plan(&self, life: u32, again: bool) -> Plan {
        if self.deleted || self.life != life {
            return Plan::Reopen;
        }
        match &self.run {
            None => Plan::Begin,
            Some(Run { end: Some(End { state: EndState::Completed, .. }), .. }) => Plan::Join,
            Some(Run { end: Some(_), .. }) => Plan::Begin,
            Some(Run { cancelling_at: Some(_), .. }) => Plan::Conclude,
            // Whoever was publishing may have died over it.
            Some(Run { published: false, .. }) => Plan::Begin,
            Some(_) if again => Plan::Begin,
            Some(_) => Plan::Join,
        }
    }

    /// What becomes of a job at an event. `None` is a job that nobody has heard of.
    pub fn after(before: Option<&Self>, event: &Event, now: Timestamp) -> Result<Self, Moot> {
        let mut job = match before {
            Some(job) => job.clone(),
            None if *event == Event::Open => Self::default(),
            None => return Err(Moot::NoRun),
        };
        if job.deleted && *event != Event::Open {
            return Err(Moot::Deleted);
        }
        match event {
            Event::Open if before.is_some() && !job.deleted => return Err(Moot::Already),
            Event::Open => {
                job = Self { life: job.life + 1, runs: job.runs, ..Self::default() };
            }
            Event::Abandon if job.run.is_some() => return Err(Moot::Already),
            Event::Abandon => job.deleted = true,
            Event::Begin(new) => job.begin(new, now)?,
            Event::Join(holder) => job.join(holder)?,
            Event::Publish(number) => {
                let run = job.open_run(*number)?;
                if std::mem::replace(&mut run.published, true) {
                    return Err(Moot::Already);
                }
            }
            Event::Pause => match &mut job.going()?.paused_at {
                Some(_) => return Err(Moot::Already),
                at => *at = Some(now),
            },
            Event::Resume => match &mut job.going()?.paused_at {
                None => return Err(Moot::Already),
                at => *at = None,
            },
            Event::Cancel => job.going()?.cancelling_at = Some(now),
            Event::Leave(holder) => {
                let run = job.going()?;
                if !run.wanted_by.remove(holder) {
                    return Err(Moot::Already);
                }
                if run.wanted_by.is_empty() {
                    run.cancelling_at = Some(now);
                }
            }
            Event::End(number, end) => {
                let run = job.open_run(*number)?;
                if run.cancelling_at.is_some() && end.state != EndState::Cancelled {
                    return Err(Moot::Cancelling);
                }
                run.end = Some((**end).clone());
            }
            Event::Release(holder) => {
                if !job.holders.remove(holder) {
                    return Err(Moot::Already);
                }
                if let Some(run) = &mut job.run {
                    run.wanted_by.remove(holder);
                    if run.end.is_none() && run.wanted_by.is_empty() {
                        run.cancelling_at = run.cancelling_at.or(Some(now));
                    }
                }
                job.deleted = job.holders.is_empty();
            }
        }
        Ok(job)
    }

    fn begin(&mut self, new: &NewRun, now: Timestamp) -> Result<(), Moot> {
        if new.at != self.next() {
            return Err(Moot::Superseded);
        }
        let mut wanted_by: BTreeSet<String> = new.holder.iter().cloned().collect();
        match &self.run {
            Some(Run { end: Some(End { state: EndState::Completed, .. }), .. }) => return Err(Moot::Ended),
            Some(Run { end: None, cancelling_at: Some(_), .. }) => return Err(Moot::Cancelling),
            // Whoever wanted what is superseded wants what supersedes it.
            Some(run @ Run { end: None, .. }) => wanted_by.extend(run.wanted_by.iter().cloned()),
            Some(_) | None => {}
        }
        match &new.holder {
            Some(holder) => drop(self.hold(holder)?),
            None if wanted_by.is_empty() => wanted_by = self.holders.clone(),
            None => {}
        }
        self.runs = new.at.run;
        self.run = Some(Run {
            number: new.at.run,
            submitted_at: now,
            expires_at: new.expires_at,
            name: new.name.clone(),
            lane: new.lane,
            published: false,
            wanted_by,
            inherited: new.inherited,
            // A hold-up is the tenant's word on the run that it was said of.
            paused_at: None,
            cancelling_at: None,
            end: None,
        });
        Ok(())
    }

    fn join(&mut self, holder: &str) -> Result<(), Moot> {
        let news = self.hold(holder)?;
        let run = self.run.as_mut().ok_or(Moot::NoRun)?;
        let wants = match run {
            Run { end: None, cancelling_at: Some(_), .. } => return Err(Moot::Cancelling),
            Run { end: None, .. } => run.wanted_by.insert(holder.to_owned()),
            Run { end: Some(_), .. } => false,
        };
        if news || wants { Ok(()) } else { Err(Moot::Already) }
    }

    /// Whether it is a new holder.
    fn hold(&mut self, holder: &str) -> Result<bool, Moot> {
        if self.holders.contains(holder) {
            return Ok(false);
        }
        if self.holders.len() >= HOLDERS_MAX {
            return Err(Moot::TooManyHolders);
        }
        Ok(self.holders.insert(holder.to_owned()))
    }

    /// The run that counts, if it is this one and has not ended.
    fn open_run(&mut self, number: u32) -> Result<&mut Run, Moot> {
        let run = self.run.as_mut().ok_or(Moot::NoRun)?;
        match run {
            _ if run.number != number => Err(Moot::Superseded),
            Run { end: Some(_), .. } => Err(Moot::Ended),
            _ => Ok(run),
        }
    }

    /// The run that counts, if it neither has ended nor is to stop.
    fn going(&mut self) -> Result<&mut Run, Moot> {
        let run = self.run.as_mut().ok_or(Moot::NoRun)?;
        match run {
            Run { end: Some(_), .. } => Err(Moot::Ended),
            Run { cancelling_at: Some(_), .. } => Err(Moot::Cancelling),
            _ => Ok(run),
        }
    }
}

impl Run {
    /// Whether its end is to be written now, and which, given how many chunks the job has, how many of them have ended in this run or
    /// before it, and whether any was given up. `patiently` leaves those who are at work on a cancelled run their time.
    pub fn ending(&self, chunks: u32, ended: u32, dead: u32, now: Timestamp, patiently: bool) -> Option<EndState> {
        if self.end.is_some() {
            return None;
        }
        let all = ended >= chunks;
        match self.cancelling_at {
            Some(at) => {
                let over = all || !patiently || now.as_second() - at.as_second() >= CANCELLING_S;
                over.then_some(EndState::Cancelled)
            }
            None if all && dead == 0 => Some(EndState::Completed),
            None if all => Some(EndState::Failed),
            None if now >= self.expires_at => Some(EndState::Expired),
            None => None,
        }
    }
}
