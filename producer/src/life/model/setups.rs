//! Who takes part in what is explored, and what must be found.

use super::*;

fn submitter(holder: &'static str) -> Actor {
    Actor::Submitter(Submitter { holder: Some(holder), life: 0, step: Submit::Prepare })
}

/// Who submits once the first run has come to something.
fn resubmitter(holder: &'static str) -> Actor {
    Actor::Submitter(Submitter { holder: Some(holder), life: 0, step: Submit::Wait })
}

fn repairer() -> Actor {
    Actor::Submitter(Submitter { holder: None, life: 0, step: Submit::Enter })
}

fn worker() -> Actor {
    Actor::Worker(Worker::default())
}

fn reader() -> Actor {
    Actor::Reader(Reader { told: None, step: Read::Head })
}

fn control(event: Event) -> Actor {
    Actor::Control(Control { event, step: Say::Append })
}

fn leave(holder: &str) -> Actor {
    control(Event::Leave(holder.to_owned()))
}

fn release(holder: &str) -> Actor {
    control(Event::Release(holder.to_owned()))
}

impl Setup {
    fn of(chunks: u32, actors: impl Into<Vec<Actor>>) -> Self {
        let actors = actors.into();
        Self { chunks, actors, crashes: 0, losses: 0, deaths: 0, times: &[0], flaw: Flaw::None }
    }

    /// Visits every state, and finds that nothing is broken in any.
    fn holds(self) {
        let begun = std::time::Instant::now();
        let checker = self.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        println!("{} states in {:.1} s", checker.unique_state_count(), begun.elapsed().as_secs_f64());
        checker.assert_properties();
    }

    /// Finds that with a flaw this is broken.
    fn breaks(self, flaw: Flaw, promise: &'static str) {
        let begun = std::time::Instant::now();
        let broken = HasDiscoveries::AllOf([promise].into());
        let checker = Self { flaw, ..self }.checker().finish_when(broken).spawn_bfs().join();
        println!("{flaw:?}: {} states in {:.1} s", checker.unique_state_count(), begun.elapsed().as_secs_f64());
        assert!(checker.discovery(promise).is_some(), "{flaw:?} breaks no promise that {promise}");
    }
}

const WINDOW: &[i64] = &[0, EXPIRY_S];
const PATIENCE: &[i64] = &[0, CANCELLING_S];

/// A chunk that is computed, given up, computed again by others, by two at once.
fn one_chunk() -> Setup {
    Setup { crashes: 1, losses: 1, deaths: 1, ..Setup::of(1, [submitter("a"), worker(), worker(), reader()]) }
}

/// Two workers, each of which may be the one that sees the end.
fn two_chunks() -> Setup {
    Setup { crashes: 1, deaths: 1, ..Setup::of(2, [submitter("a"), worker(), worker(), reader()]) }
}

/// Two who submit the same at once, and a tenant who wants none of it.
fn two_submitters() -> Setup {
    let actors = [submitter("a"), submitter("b"), worker(), control(Event::Cancel)];
    Setup { crashes: 1, times: PATIENCE, ..Setup::of(1, actors) }
}

/// Cancelled half-way, and submitted again.
fn cancelled() -> Setup {
    let actors = [submitter("a"), resubmitter("b"), worker(), control(Event::Cancel), reader()];
    Setup { times: PATIENCE, ..Setup::of(2, actors) }
}

/// A repair against those who are at work, or looking.
fn repaired() -> Setup {
    Setup { crashes: 1, ..Setup::of(1, [submitter("a"), repairer(), worker(), reader()]) }
}

/// Deleted and submitted again, with workers that are slow to hear of it.
fn deleted() -> Setup {
    Setup { crashes: 1, ..Setup::of(1, [submitter("a"), resubmitter("b"), worker(), worker(), release("a")]) }
}

/// Two batches of one job: one wants no more of it, and lets go of it.
fn shared() -> Setup {
    Setup::of(1, [submitter("a"), submitter("b"), worker(), leave("a"), release("a")])
}

/// A window that ends at any time, and a second one.
fn expired() -> Setup {
    Setup { times: WINDOW, ..Setup::of(2, [submitter("a"), resubmitter("b"), worker(), reader()]) }
}

/// Two who submit the same, the second of them when the first one's window may be over.
fn outlived() -> Setup {
    Setup { crashes: 1, times: WINDOW, ..Setup::of(1, [submitter("a"), submitter("b"), worker()]) }
}

/// Held up and let go on, in a window that ends.
fn paused() -> Setup {
    let actors = [submitter("a"), worker(), control(Event::Pause), control(Event::Resume), reader()];
    Setup { crashes: 1, times: WINDOW, ..Setup::of(1, actors) }
}

/// Given up in part, and submitted again, with a worker that is taken for dead.
fn failed() -> Setup {
    Setup { deaths: 1, losses: 1, ..Setup::of(2, [submitter("a"), resubmitter("b"), worker(), worker()]) }
}

/// The same, watched.
fn failed_and_watched() -> Setup {
    Setup { deaths: 1, ..Setup::of(2, [submitter("a"), resubmitter("b"), worker(), reader()]) }
}

macro_rules! hold {
    ($($setup:ident)*) => { mod hold { $(#[test] fn $setup() { super::$setup().holds(); })* } };
}

hold! {
    one_chunk two_chunks two_submitters cancelled repaired deleted shared expired outlived paused failed
    failed_and_watched
}

#[test]
fn every_flaw_is_found() {
    two_chunks().breaks(Flaw::CountsUnchecked, WHOLE);
    expired().breaks(Flaw::EndReplaced, FINAL);
    two_submitters().breaks(Flaw::SuccessEarly, FINAL);
    two_submitters().breaks(Flaw::BeginUnconditional, OBEYED);
    cancelled().breaks(Flaw::MarkIgnored, OBEYED);
    failed_and_watched().breaks(Flaw::DeadBeforeEnded, COUNTS);
    two_chunks().breaks(Flaw::MarkerLate, COUNTS);
    one_chunk().breaks(Flaw::AckEarly, SETTLED);
    one_chunk().breaks(Flaw::EndedDropped, SETTLED);
    one_chunk().breaks(Flaw::ChargeAgain, CHARGED);
    one_chunk().breaks(Flaw::OutcomeReplaced, APART);
    one_chunk().breaks(Flaw::OutcomeEarly, APART);
    failed_and_watched().breaks(Flaw::RunRemembered, APART);
    shared().breaks(Flaw::HoldersUnasked, HELD);
    deleted().breaks(Flaw::LifeUnasked, HELD);
}
