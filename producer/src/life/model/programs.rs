//! The programs, step by step.

use super::store::after;
use super::*;

/// The programs, a step at a time.
impl World {
    /// One step of a survey; whether it is complete.
    pub(super) fn survey(&self, setup: &Setup, survey: &mut Survey) -> bool {
        let at = survey.entry.at();
        let inherits = survey.entry.run.as_ref().is_some_and(|run| run.inherited.is_some());
        if survey.view.is_none() {
            survey.view = Some(self.view(&survey.entry));
            if inherits {
                return false;
            }
        }
        let Some(view) = &survey.view else { return false };
        if survey.marked.is_none() && (survey.ended.is_some() || setup.flaw == Flaw::DeadBeforeEnded) {
            survey.marked = Some(self.list_dead(at));
        } else if survey.ended.is_none() {
            survey.ended = Some(self.list_ended(view));
        } else if let Some(chunk) = survey.marked.as_mut().and_then(Vec::pop)
            && self.outcome(view.key(chunk)) == Some(None)
        {
            survey.dead.push(chunk);
        }
        if let (Some(ended), Some(marked)) = (&survey.ended, &mut survey.marked) {
            marked.retain(|chunk| ended.contains(chunk));
        }
        survey.ended.is_some() && survey.marked.as_ref().is_some_and(Vec::is_empty)
    }

    pub(super) fn submit(&mut self, setup: &Setup, submitter: &mut Submitter) {
        let Submitter { holder, life, step } = submitter;
        let head = self.head.clone();
        *step = match std::mem::replace(step, Submit::Gone(None)) {
            Submit::Wait | Submit::Prepare => match head.filter(|head| !head.deleted) {
                Some(head) => {
                    *life = head.life;
                    Submit::Known
                }
                None if holder.is_none() => Submit::Gone(None),
                None => Submit::Open,
            },
            Submit::Known if self.store.contains_key(&Key::Manifest(*life)) => Submit::Enter,
            Submit::Known => Submit::Open,
            Submit::Open => match self.append(setup, |_| Ok(Event::Open)) {
                Ok(job) | Err((_, Some(job))) => {
                    *life = job.life;
                    Submit::Cut
                }
                Err((_, None)) => Submit::Gone(None),
            },
            Submit::Cut => {
                self.put_new(Key::Manifest(*life), Object::Plain);
                Submit::Enter
            }
            Submit::Enter => match (head, *holder) {
                (None, _) => Submit::Gone(None),
                (Some(head), Some(_)) => self.plan(setup, *holder, *life, head),
                (Some(head), None) if head.deleted => Submit::Gone(None),
                (Some(head), None) => {
                    *life = head.life;
                    Submit::Repair(head)
                }
            },
            Submit::Repair(entry) if self.store.contains_key(&Key::Manifest(*life)) => {
                self.plan(setup, *holder, *life, entry)
            }
            Submit::Repair(_) => Submit::Gone(None),
            Submit::Join(again) => {
                let joined = self.append(setup, |head| match (head.map(|head| head.plan(*life, again)), *holder) {
                    (Some(Plan::Join), Some(holder)) => Ok(Event::Join(holder.to_owned())),
                    _ => Err(Moot::Superseded),
                });
                match joined {
                    Ok(job) | Err((Moot::Already, Some(job))) => Submit::Done(job.at()),
                    Err(_) => Submit::Enter,
                }
            }
            Submit::Survey(new, mut survey) => {
                if !self.survey(setup, &mut survey) {
                    Submit::Survey(new, survey)
                } else {
                    let View { at, mut inherited } = survey.view.unwrap_or_else(|| self.view(&survey.entry));
                    let ended = survey.ended.unwrap_or_default();
                    inherited.extend(
                        ended.iter().filter(|chunk| !survey.dead.contains(chunk)).map(|&chunk| (chunk, at.run)),
                    );
                    let missing = (0..setup.chunks).filter(|chunk| !inherited.contains_key(chunk)).collect();
                    match inherited.is_empty() {
                        true => Submit::Begin(new, missing, None),
                        false => Submit::Bequeath(new, inherited, missing),
                    }
                }
            }
            Submit::Bequeath(new, inherited, missing) => {
                let digest = Digest::of(format!("{inherited:?}").as_bytes());
                self.put(Key::Inherited(*life, digest), Object::Inherited(inherited));
                Submit::Begin(NewRun { inherited: Some(digest), ..new }, missing, None)
            }
            Submit::Begin(new, missing, None) if setup.flaw == Flaw::BeginUnconditional => {
                Submit::Begin(new, missing, head)
            }
            Submit::Begin(new, missing, read) => {
                let follows = |head: &Job| head.next() == new.at && head.life == *life && !head.deleted;
                let begin = |head: Option<&Job>| match head {
                    Some(head) if follows(head) => Ok(Event::Begin(new.clone())),
                    _ => Err(Moot::Superseded),
                };
                let begun = match read {
                    Some(head) => begin(Some(&head))
                        .and_then(|event| after(setup, Some(&head), &event, self.now(setup)))
                        .map(|job| self.write(job))
                        .map_err(|moot| (moot, None)),
                    None => self.append(setup, begin),
                };
                match begun {
                    Ok(entry) if missing.is_empty() => {
                        let at = entry.at();
                        Submit::Look(Look::at(entry), Some(at))
                    }
                    Ok(entry) => Submit::Publish(entry.at(), missing),
                    Err(_) => Submit::Enter,
                }
            }
            Submit::Publish(at, mut missing) => {
                self.queue.insert(Message { at, chunk: missing.remove(0) });
                if missing.is_empty() { Submit::Published(at) } else { Submit::Publish(at, missing) }
            }
            Submit::Published(at) => {
                _ = self.append(setup, |_| Ok(Event::Publish(at.run)));
                Submit::Done(at)
            }
            Submit::Look(mut look, own) => match self.look(setup, &mut look, false) {
                None => Submit::Look(look, own),
                Some(_) => own.map_or(Submit::Enter, Submit::Done),
            },
            step @ (Submit::Done(_) | Submit::Gone(_)) => step,
        };
    }

    pub(super) fn plan(&self, setup: &Setup, holder: Option<&'static str>, life: u32, entry: Arc<Job>) -> Submit {
        // Of a run that goes on hardly any time is left.
        let short = |run: &Run| run.end.is_none() && self.now(setup) >= run.expires_at;
        let again = holder.is_none() || entry.run.as_ref().is_some_and(short);
        match entry.plan(life, again) {
            Plan::Reopen if holder.is_none() => Submit::Gone(None),
            Plan::Reopen => Submit::Prepare,
            Plan::Conclude => Submit::Look(Look::at(entry), None),
            Plan::Join if holder.is_none() => Submit::Done(entry.at()),
            Plan::Join => Submit::Join(again),
            Plan::Begin => {
                let holder = match holder {
                    None if entry.holders.is_empty() => Some("direct"),
                    holder => holder,
                };
                let new = NewRun {
                    at: entry.next(),
                    holder: holder.map(str::to_owned),
                    expires_at: Timestamp::constant(
                        if self.in_first_window(setup) { EXPIRY_S } else { 2 * EXPIRY_S },
                        0,
                    ),
                    name: String::new(),
                    lane: None,
                    inherited: None,
                };
                match entry.run {
                    None => Submit::Begin(new, (0..setup.chunks).collect(), None),
                    Some(_) => Submit::Survey(new, Survey::of(entry, true)),
                }
            }
        }
    }

    pub(super) fn work(&mut self, setup: &Setup, worker: &mut Worker, give_up: bool) {
        let Some(message) = worker.message else { return };
        let Message { at, chunk } = message;
        let head = self.head.clone();
        let late = |outcome: &Option<Part>| match outcome {
            Some(_) => setup.flaw == Flaw::OutcomeEarly,
            None => setup.flaw == Flaw::MarkerLate,
        };
        let standing = head.as_ref().map_or(Standing::Over, |head| head.standing(at));
        worker.step = match (std::mem::replace(&mut worker.step, Work::Idle), head) {
            (Work::Head, Some(head)) => match standing {
                Standing::Over => Work::Ack,
                // The signature on its grant counts no longer.
                _ if head.run.as_ref().is_some_and(|run| self.now(setup) >= run.expires_at) => Work::Ack,
                Standing::Ended if setup.flaw == Flaw::EndedDropped => Work::Ack,
                Standing::Ended | Standing::Cancelling => Work::Look(Look::at(head)),
                Standing::Paused => {
                    if !worker.lost {
                        self.queue.insert(message);
                    }
                    (worker.message, worker.lost, worker.copy) = (None, false, false);
                    Work::Idle
                }
                Standing::Goes => Work::Outcome,
            },
            (Work::Outcome, _) if self.store.contains_key(&Key::Ended(at, chunk)) => Work::Ended,
            (Work::Outcome, _) => Work::Charge,
            (Work::Charge, _) => {
                let charges = self.charges.entry((at.life, chunk)).or_default();
                if *charges == 0 || setup.flaw == Flaw::ChargeAgain {
                    *charges += 1;
                }
                Work::Again
            }
            (Work::Again, _) if standing == Standing::Over => Work::Ack,
            (Work::Again, _) => {
                let outcome = (!give_up).then_some(Part { message, copy: worker.copy });
                if late(&outcome) { Work::Record(outcome) } else { Work::Before(outcome) }
            }
            (Work::Before(outcome), _) => {
                self.put(outcome.map_or(Key::Dead(at, chunk), Key::Part), Object::Plain);
                if late(&outcome) { Work::Ended } else { Work::Record(outcome) }
            }
            (Work::Record(outcome), _) => {
                let key = Key::Ended(at, chunk);
                if setup.flaw == Flaw::OutcomeReplaced && self.outcome(key).is_some_and(|there| there != outcome) {
                    self.broken.insert(APART);
                }
                self.put_new(key, Object::Outcome(outcome));
                worker.lost |= setup.flaw == Flaw::AckEarly;
                if late(&outcome) { Work::Before(outcome) } else { Work::Ended }
            }
            (Work::Ended, Some(head)) if standing != Standing::Over => Work::Tally(head),
            (Work::Tally(entry), _) => {
                let view = self.view(&entry);
                let all = view.all(&self.list_ended(&view)).len() as u32 >= setup.chunks;
                if all || setup.flaw == Flaw::CountsUnchecked { Work::All } else { Work::Ack }
            }
            (Work::All, Some(head)) if standing != Standing::Over => Work::Look(Look::at(head)),
            (Work::Look(mut look), _) => match self.look(setup, &mut look, true) {
                None => Work::Look(look),
                Some(_) => Work::Ack,
            },
            (Work::Head | Work::Ended | Work::All, _) => Work::Ack,
            (Work::Ack | Work::Idle, _) => {
                (worker.message, worker.lost, worker.copy) = (None, false, false);
                Work::Idle
            }
        };
    }

    pub(super) fn read(&mut self, setup: &Setup, reader: &mut Reader) {
        reader.step = match std::mem::replace(&mut reader.step, Read::Head) {
            Read::Head => match self.head.clone().filter(|head| !head.deleted && head.run.is_some()) {
                Some(head) if head.run.as_ref().is_some_and(|run| run.end.is_some()) => {
                    Read::Look(Look::at(head), None)
                }
                Some(head) => Read::Survey(Survey::of(head, false)),
                None => Read::Head,
            },
            Read::Survey(mut survey) => {
                if let (Some(view), Some(ended), Some(run), false) =
                    (&survey.view, &survey.ended, &survey.entry.run, survey.looked)
                {
                    survey.looked = true;
                    let ended = view.all(ended).len() as u32;
                    if run.ending(setup.chunks, ended, 0, self.now(setup), true).is_some() {
                        reader.step = Read::Look(Look::at(survey.entry.clone()), Some(survey));
                        return;
                    }
                }
                if self.survey(setup, &mut survey) && survey.looked {
                    let view = survey.view.unwrap_or_else(|| self.view(&survey.entry));
                    let ended = view.all(&survey.ended.unwrap_or_default()).len() as u32;
                    let dead = survey.dead.len() as u32;
                    self.tell(setup, reader, Told { at: view.at, done: ended - dead, dead, end: None });
                    Read::Head
                } else {
                    Read::Survey(survey)
                }
            }
            Read::Look(mut look, survey) => {
                let at = look.entry.at();
                match (self.look(setup, &mut look, true), survey) {
                    (None, survey) => Read::Look(look, survey),
                    (Some(newest), survey) if newest.at() == at && !newest.deleted => {
                        match (newest.run.as_ref().and_then(|run| run.end.as_ref()), survey) {
                            (Some(&End { chunks_done: done, chunks_dead: dead, state, .. }), _) => {
                                self.tell(setup, reader, Told { at, done, dead, end: Some(state) });
                                Read::Head
                            }
                            (None, Some(survey)) => Read::Survey(survey),
                            (None, None) => Read::Head,
                        }
                    }
                    // Another run has begun since, or there is none.
                    (Some(_), _) => Read::Head,
                }
            }
        };
    }

    /// What a reader says, against what it said before. The end of a cancelled run may leave out what workers recorded
    /// while they were stopping; and whoever reads a job that is being deleted may find anything.
    pub(super) fn tell(&mut self, setup: &Setup, reader: &mut Reader, told: Told) {
        let less = |was: Told| match (was.end, told.end) {
            (Some(_), _) => was != told,
            (None, Some(EndState::Cancelled)) => false,
            (None, _) => told.done < was.done || told.dead < was.dead,
        };
        let goes_back = reader.told.is_some_and(|was| was.at == told.at && less(was));
        let deleted = self.head.as_ref().is_some_and(|head| head.deleted);
        if goes_back && !deleted || told.done + told.dead > setup.chunks {
            self.broken.insert(COUNTS);
        }
        reader.told = Some(told);
    }

    pub(super) fn say(&mut self, setup: &Setup, control: &mut Control) {
        control.step = match std::mem::replace(&mut control.step, Say::Done) {
            Say::Append => match self.append(setup, |_| Ok(control.event.clone())) {
                Ok(job) if job.deleted => Say::List(job.life, 0),
                _ => Say::Done,
            },
            Say::List(life, rounds) => {
                let of = match &self.head {
                    Some(head) if setup.flaw == Flaw::LifeUnasked => head.life,
                    _ => life,
                };
                let keys: Vec<Key> = self.store.keys().copied().filter(|key| key.life() == of).collect();
                if keys.is_empty() || rounds == REMOVALS { Say::Done } else { Say::Remove(life, rounds + 1, keys) }
            }
            Say::Remove(life, rounds, mut keys) => {
                if let Some(key) = keys.pop() {
                    Arc::make_mut(&mut self.store).remove(&key);
                    if self.head.as_ref().is_some_and(|head| head.life == key.life() && !head.deleted) {
                        self.broken.insert(HELD);
                    }
                }
                if keys.is_empty() { Say::List(life, rounds) } else { Say::Remove(life, rounds, keys) }
            }
            Say::Done => Say::Done,
        };
    }
}
