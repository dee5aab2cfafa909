//! What the programs do to S3 and the ledger: one step each.

use super::*;

impl View {
    pub(super) fn key(&self, chunk: u32) -> Key {
        let run = self.inherited.get(&chunk).copied().unwrap_or(self.at.run);
        Key::Ended(RunId { run, ..self.at }, chunk)
    }

    pub(super) fn all(&self, own: &[u32]) -> Vec<u32> {
        let all: BTreeSet<u32> = own.iter().chain(self.inherited.keys()).copied().collect();
        all.into_iter().collect()
    }
}

impl Survey {
    pub(super) fn of(entry: Arc<Job>, looked: bool) -> Self {
        Self { entry, view: None, ended: None, marked: None, dead: Vec::new(), looked }
    }
}

impl Look {
    pub(super) fn at(entry: Arc<Job>) -> Self {
        let step = match &entry.run {
            Some(Run { end: Some(End { state: EndState::Completed, .. }), .. }) if !entry.deleted => Conclude::Exists,
            Some(Run { end: None, inherited: Some(_), .. }) if !entry.deleted => Conclude::Open,
            Some(Run { end: None, .. }) if !entry.deleted => {
                Conclude::List(View { at: entry.at(), inherited: BTreeMap::new() })
            }
            _ => Conclude::Over,
        };
        Self { entry, step }
    }
}

/// What becomes of a job at an event.
pub(super) fn after(setup: &Setup, before: Option<&Job>, event: &Event, now: Timestamp) -> Result<Job, Moot> {
    let mut before = before.cloned();
    match (setup.flaw, event, before.as_mut().and_then(|job| job.run.as_mut())) {
        (Flaw::MarkIgnored, Event::End(..), Some(run)) => run.cancelling_at = None,
        (Flaw::EndReplaced, Event::End(..), Some(run)) => run.end = None,
        _ => {}
    }
    let mut job = Job::after(before.as_ref(), event, now)?;
    job.deleted |= setup.flaw == Flaw::HoldersUnasked && matches!(event, Event::Release(_));
    Ok(job)
}

/// S3 and its clock.
impl World {
    pub(super) fn now(&self, setup: &Setup) -> Timestamp {
        Timestamp::constant(setup.times[self.time], 0)
    }

    pub(super) fn in_first_window(&self, setup: &Setup) -> bool {
        setup.times[self.time] < EXPIRY_S
    }

    pub(super) fn put(&mut self, key: Key, object: Object) {
        Arc::make_mut(&mut self.store).insert(key, object);
    }

    pub(super) fn put_new(&mut self, key: Key, object: Object) {
        if !self.store.contains_key(&key) {
            self.put(key, object);
        }
    }

    pub(super) fn outcome(&self, key: Key) -> Option<Option<Part>> {
        match self.store.get(&key) {
            Some(Object::Outcome(outcome)) => Some(*outcome),
            _ => None,
        }
    }

    pub(super) fn summary(&self, life: u32, digest: Digest) -> Option<&Summary> {
        match self.store.get(&Key::Summary(life, digest)) {
            Some(Object::Summary(summary)) => Some(summary),
            _ => None,
        }
    }

    pub(super) fn view(&self, entry: &Job) -> View {
        let digest = entry.run.as_ref().and_then(|run| run.inherited);
        let document = digest.and_then(|digest| self.store.get(&Key::Inherited(entry.life, digest)));
        let inherited = match document {
            Some(Object::Inherited(inherited)) => inherited.clone(),
            _ => BTreeMap::new(),
        };
        View { at: entry.at(), inherited }
    }

    pub(super) fn list_ended(&self, view: &View) -> Vec<u32> {
        let ended = self.store.keys().filter_map(|key| match key {
            Key::Ended(at, chunk) if *at == view.at && !view.inherited.contains_key(chunk) => Some(*chunk),
            _ => None,
        });
        ended.collect()
    }

    pub(super) fn list_dead(&self, at: RunId) -> Vec<u32> {
        let dead = self.store.keys().filter_map(|key| match key {
            Key::Dead(of, chunk) if *of == at => Some(*chunk),
            _ => None,
        });
        dead.collect()
    }

    /// An append. That it reads first is no step of its own: one that others come in between of changes nothing and
    /// reads again, so that one that succeeds might as well have read just before.
    pub(super) fn append(
        &mut self,
        setup: &Setup,
        event: impl FnOnce(Option<&Job>) -> Result<Event, Moot>,
    ) -> Appended {
        let head = self.head.clone();
        match event(head.as_deref()).and_then(|event| after(setup, head.as_deref(), &event, self.now(setup))) {
            Ok(job) => Ok(self.write(job)),
            Err(moot) => Err((moot, head)),
        }
    }

    pub(super) fn write(&mut self, job: Job) -> Arc<Job> {
        let job = Arc::new(job);
        self.judge(&job);
        self.head = Some(job.clone());
        job
    }

    /// Holds an entry of the ledger against the one before it.
    pub(super) fn judge(&mut self, after: &Job) {
        let Some(before) = self.head.clone() else { return };
        if after.deleted && !before.deleted && !(after.holders.is_empty() && before.holders.len() <= 1) {
            self.broken.insert(HELD);
        }
        let Some(was) = before.run.as_ref().filter(|_| before.life == after.life) else { return };
        let is = after.run.as_ref().filter(|is| is.number == was.number);
        let ended = was.end.as_ref().map(|end| end.state);
        if ended.is_some() && is.is_some_and(|is| is.end != was.end)
            || ended == Some(EndState::Completed) && is.is_none()
        {
            self.broken.insert(FINAL);
        }
        let forgets = |next: &Run| next.number != was.number && !was.wanted_by.is_subset(&next.wanted_by);
        if ended.is_none() && after.run.as_ref().is_some_and(forgets) {
            self.broken.insert(HELD);
        }
        let obeys = |is: &Run| match &is.end {
            None => is.cancelling_at.is_some(),
            Some(end) => end.state == EndState::Cancelled,
        };
        if was.cancelling_at.is_some() && ended.is_none() && !is.is_some_and(obeys) {
            self.broken.insert(OBEYED);
        }
    }

    /// One step of a look; gives where the job stands once it is over.
    pub(super) fn look(&mut self, setup: &Setup, look: &mut Look, patiently: bool) -> Option<Arc<Job>> {
        let Some(run) = look.entry.run.clone() else { return Some(look.entry.clone()) };
        let (at, entry) = (look.entry.at(), look.entry.clone());
        let ending = |ended: usize, dead: usize, now, patiently| {
            let ended = if setup.flaw == Flaw::CountsUnchecked { setup.chunks } else { ended as u32 };
            let cancelling_at = run.cancelling_at.filter(|_| setup.flaw != Flaw::MarkIgnored);
            Run { cancelling_at, ..run.clone() }.ending(setup.chunks, ended, dead as u32, now, patiently)
        };
        look.step = match std::mem::replace(&mut look.step, Conclude::Over) {
            Conclude::Over => return Some(entry),
            Conclude::Open => Conclude::List(self.view(&entry)),
            Conclude::List(view) => {
                let first = View { at: RunId { run: 1, ..at }, inherited: BTreeMap::new() };
                let view = if setup.flaw == Flaw::RunRemembered { first } else { view };
                let all = view.all(&self.list_ended(&view));
                Conclude::Decide(view, all)
            }
            // The clock is read later than the list.
            Conclude::Decide(view, all) => match ending(all.len(), 0, self.now(setup), patiently) {
                None => return Some(entry),
                Some(_) if !all.is_empty() => {
                    look.step = Conclude::Read(view, all, Summary { run: at.run, ..Summary::default() });
                    return self.look(setup, look, patiently);
                }
                Some(state) => Conclude::Write(Summary { run: at.run, ..Summary::default() }, state),
            },
            Conclude::Read(view, mut left, mut summary) => {
                let chunk = left.remove(0);
                match self.outcome(view.key(chunk)) {
                    Some(Some(part)) => summary.parts.push(part),
                    Some(None) => summary.dead.push(chunk),
                    None => {}
                }
                if left.is_empty() {
                    let (done, dead) = (summary.parts.len(), summary.dead.len());
                    // Whose time was over before is still over.
                    let Some(state) = ending(done + dead, dead, self.now(setup), false) else { return Some(entry) };
                    Conclude::Write(summary, state)
                } else {
                    Conclude::Read(view, left, summary)
                }
            }
            Conclude::Write(summary, state) => {
                let digest = Digest::of(format!("{summary:?}").as_bytes());
                let end = End {
                    state,
                    at: self.now(setup),
                    rows: 0,
                    failed: 0,
                    truncated: 0,
                    tokens: 0,
                    chunks_done: summary.parts.len() as u32,
                    chunks_dead: summary.dead.len() as u32,
                    rows_dead: 0,
                    summary: digest,
                };
                self.put(Key::Summary(at.life, digest), Object::Summary(summary));
                if setup.flaw == Flaw::SuccessEarly && state == EndState::Completed {
                    self.put(Key::Success(at.life), Object::Plain);
                }
                Conclude::End(end)
            }
            Conclude::End(end) => {
                let appended = self.append(setup, |head| match head {
                    Some(head) if head.at() == at => Ok(Event::End(at.run, Box::new(end))),
                    _ => Err(Moot::Superseded),
                });
                *look = Look::at(appended.or_else(|(_, newest)| newest.ok_or(())).unwrap_or(entry));
                return (look.step == Conclude::Over).then(|| look.entry.clone());
            }
            Conclude::Exists if self.store.contains_key(&Key::Success(at.life)) => return Some(entry),
            Conclude::Exists => match run.end.as_ref().and_then(|end| self.summary(at.life, end.summary)) {
                Some(summary) => Conclude::FinalManifest(summary.clone()),
                None => return Some(entry),
            },
            Conclude::FinalManifest(summary) => {
                self.put_new(Key::FinalManifest(at.life), Object::Summary(summary));
                Conclude::Success
            }
            Conclude::Success => {
                self.put_new(Key::Success(at.life), Object::Plain);
                return Some(entry);
            }
        };
        None
    }
}
