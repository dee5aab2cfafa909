//! What is promised of every state.

use super::*;

/// What is promised.
impl World {
    /// Whether the end of the run that counts tells of every chunk once, and of no more than has ended.
    pub(super) fn whole(&self, setup: &Setup) -> bool {
        let Some((job, end)) = self.end() else { return true };
        let Some(summary) = self.summary(job.life, end.summary) else { return false };
        let told: Vec<u32> =
            summary.parts.iter().map(|part| part.message.chunk).chain(summary.dead.iter().copied()).collect();
        let unique: BTreeSet<u32> = told.iter().copied().collect();
        let (done, dead) = (summary.parts.len(), summary.dead.len());
        let all = unique.len() == setup.chunks as usize;
        unique.len() == told.len()
            && (done, dead) == (end.chunks_done as usize, end.chunks_dead as usize)
            && match end.state {
                EndState::Completed => all && dead == 0,
                EndState::Failed => all && dead > 0,
                EndState::Expired | EndState::Cancelled => true,
            }
    }

    /// The end of the run that counts, of a job that is not deleted.
    pub(super) fn end(&self) -> Option<(&Job, &End)> {
        let job = self.head.as_deref().filter(|job| !job.deleted)?;
        Some((job, job.run.as_ref()?.end.as_ref()?))
    }

    pub(super) fn is_over(&self) -> bool {
        self.head.as_ref().is_some_and(|job| job.deleted || job.run.as_ref().is_some_and(|run| run.end.is_some()))
    }

    /// Whether `_SUCCESS` is there for nothing but a run that is complete, and with what it came to.
    pub(super) fn successful(&self) -> bool {
        let Some(job) = self.head.as_deref().filter(|job| !job.deleted) else { return true };
        !self.store.contains_key(&Key::Success(job.life))
            || self.end().is_some_and(|(_, end)| {
                let summary = self.summary(job.life, end.summary).cloned().map(Object::Summary);
                end.state == EndState::Completed
                    && summary.is_some()
                    && summary.as_ref() == self.store.get(&Key::FinalManifest(job.life))
            })
    }

    /// Whether what records, summaries and the run that counts name is there, and is of the run that it is said to be
    /// of.
    pub(super) fn apart(&self) -> bool {
        let Some(job) = self.head.as_deref().filter(|job| !job.deleted) else { return true };
        let there = |part: Part| self.store.contains_key(&Key::Part(part));
        let view = self.view(job);
        let recorded = self.store.iter().all(|(key, object)| match (key, object) {
            (Key::Ended(at, chunk), Object::Outcome(Some(part))) if at.life == job.life => {
                part.message == Message { at: *at, chunk: *chunk } && there(*part)
            }
            _ => true,
        });
        let document = job.run.as_ref().and_then(|run| run.inherited);
        let inherited = document.is_none_or(|digest| self.store.contains_key(&Key::Inherited(job.life, digest)))
            && view.inherited.keys().all(|&chunk| self.outcome(view.key(chunk)).flatten().is_some());
        let summary = self.end().and_then(|(_, end)| self.summary(job.life, end.summary));
        recorded
            && inherited
            && summary.is_none_or(|summary| {
                summary.parts.iter().all(|&part| self.outcome(view.key(part.message.chunk)) == Some(Some(part)))
                    && summary.dead.iter().all(|&chunk| self.outcome(view.key(chunk)) == Some(None))
            })
    }

    /// Whether who has submitted a job for a holder, and has not let go of it, finds it there, and its run not stopped
    /// by another.
    pub(super) fn held(&self, setup: &Setup) -> bool {
        let controls = || {
            setup.actors.iter().filter_map(|actor| match actor {
                Actor::Control(control) => Some(&control.event),
                _ => None,
            })
        };
        self.actors.iter().all(|actor| match actor {
            Actor::Submitter(Submitter { holder: Some(holder), step: Submit::Done(at), .. }) => {
                let lets_go = |event: &Event| matches!(event, Event::Release(of) | Event::Leave(of) if of == holder);
                let Some(job) = self.head.as_deref() else { return false };
                let kept = job.life == at.life && !job.deleted;
                let stopped = job.at() == *at && job.run.as_ref().is_some_and(|run| run.cancelling_at.is_some());
                controls().any(lets_go) || kept && (!stopped || controls().any(|event| *event == Event::Cancel))
            }
            _ => true,
        })
    }

    /// Nothing is waited for for ever. Where nobody but readers has a step left, the job has an end, with `_SUCCESS` if
    /// it is complete; or it is deleted; or a new submission would take it up, because there is no run or whoever
    /// published it has died; or the next look of any reader ends it, because its time is over; or its tenant holds it
    /// up, and there is a message for each chunk that is left.
    ///
    /// That is all that has to be asked: no program goes round in circles but when another has made a step (or the
    /// tenant holds the job up), so that fair ones come to such a state.
    pub(super) fn settled(&self, setup: &Setup) -> bool {
        let waits =
            |message: &Message| self.head.as_ref().map(|head| head.standing(message.at)) == Some(Standing::Paused);
        let idle = self.actors.iter().all(|actor| match actor {
            Actor::Submitter(submitter) => matches!(submitter.step, Submit::Done(_) | Submit::Gone(_) | Submit::Wait),
            Actor::Worker(worker) => worker.step == Work::Idle,
            Actor::Reader(_) => true,
            Actor::Control(control) => control.step == Say::Done,
        });
        let messages = self.queue.iter().all(waits) && (self.queue.is_empty() || self.in_first_window(setup));
        let Some(job) = self.head.as_deref().filter(|job| idle && messages && !job.deleted) else { return true };
        let (at, view) = (job.at(), self.view(job));
        let ended = view.all(&self.list_ended(&view));
        let owed = self.actors.iter().any(|actor| match actor {
            Actor::Submitter(Submitter { step: Submit::Gone(Some(owed)), .. }) => *owed == at,
            _ => false,
        });
        match &job.run {
            Some(run @ Run { end: Some(End { state: EndState::Completed, .. }), .. }) => {
                self.store.contains_key(&Key::Success(job.life)) || owed || self.now(setup) >= run.expires_at
            }
            Some(run) if run.ending(setup.chunks, 0, 0, self.now(setup), false).is_some() => true,
            Some(run) if run.paused_at.is_some() => {
                let comes = |chunk| ended.contains(&chunk) || self.queue.contains(&Message { at, chunk });
                run.end.is_some() || !run.published || (0..setup.chunks).all(comes)
            }
            _ => job.plan(job.life, false) == Plan::Begin,
        }
    }
}
