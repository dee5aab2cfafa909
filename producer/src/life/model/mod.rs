//! A job's life cycle, with everything that can come in between, explored to the end.
//!
//! The programs that have a part in a job (submitters, workers, readers and who cancels, leaves, repairs or deletes)
//! are told here step by step: every list, read and put on S3 is one step, and between any two of them anybody else may
//! do any number of theirs, die, or be taken for dead. What they decide, they decide with the functions of
//! [`super::job`]; only the order of their steps is told again. A search then visits every state that any order leads
//! to, for a few small [`Setup`]s, and holds each against what is promised.
//!
//! S3 is as good as its word and no better: a put is there at once, whole; of two conditional puts one wins; a listing
//! is of one moment, and what is read after it is of a later one. An append to the ledger is a read of its head and a
//! conditional put.
//!
//! That a search which finds nothing would find something is shown by [`Flaw`]s: mistakes that are easily made, each of
//! which must be found by the promise that it breaks.

mod programs;
mod promises;
mod setups;
mod store;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use stateright::{Checker, HasDiscoveries, Model, Property};
use vecmill_signer::claims::{Digest, RunId};

use super::job::{CANCELLING_S, End, EndState, Event, Job, Moot, NewRun, Plan, Run, Standing};

/// Looks at what a life has left, until there is nothing or its remover gives up.
const REMOVALS: u8 = 3;
/// When the grants of the first runs expire.
const EXPIRY_S: i64 = 3600;

const WHOLE: &str = "an end tells of every chunk once";
const FINAL: &str = "what is final stays";
const OBEYED: &str = "a cancelled run ends as cancelled";
const COUNTS: &str = "no count that was told goes back";
const SETTLED: &str = "nothing is waited for for ever";
const CHARGED: &str = "a chunk is charged once in a life";
const APART: &str = "nothing of one run or life has an effect on another";
const HELD: &str = "what somebody holds is there";

/// Mistakes, each of which a promise must be broken by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Flaw {
    #[default]
    None,
    /// Whoever looks takes it that all chunks have ended.
    CountsUnchecked,
    /// An end replaces the end that is there.
    EndReplaced,
    /// `_SUCCESS` before the end is in the ledger.
    SuccessEarly,
    /// A run is begun over whatever was written since the ledger was read.
    BeginUnconditional,
    /// An end is written without regard to the cancellation.
    MarkIgnored,
    /// Readers list the chunks that may be dead before those that have ended.
    DeadBeforeEnded,
    /// A chunk's mark as one that may be dead comes after its record.
    MarkerLate,
    /// A delivery is acknowledged before the look.
    AckEarly,
    /// What has ended is not looked at again, though who ended it may have died before `_SUCCESS`.
    EndedDropped,
    /// Every computation is charged.
    ChargeAgain,
    /// A chunk's record replaces the one that is there.
    OutcomeReplaced,
    /// A chunk's record comes before its part.
    OutcomeEarly,
    /// What chunks of the first run came to is remembered under the name of the life, and taken for a later run's.
    RunRemembered,
    /// A job is deleted with the first of its holders.
    HoldersUnasked,
    /// Who has released a job removes the life that is there now.
    LifeUnasked,
}

/// Who takes part, and how often what may go wrong does.
#[derive(Clone, Debug)]
struct Setup {
    chunks: u32,
    actors: Vec<Actor>,
    /// Workers and submitters that die between two steps; a worker comes back without memory, and its delivery to
    /// anybody.
    crashes: u8,
    /// Workers that are taken for dead: the delivery comes again to another while they go on.
    losses: u8,
    /// Chunks that are given up.
    deaths: u8,
    /// What the clock shows, one time after the other.
    times: &'static [i64],
    flaw: Flaw,
}

/// One moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    /// Of the setup's times.
    time: usize,
    /// The newest entry of the ledger.
    head: Option<Arc<Job>>,
    store: Arc<BTreeMap<Key, Object>>,
    queue: BTreeSet<Message>,
    charges: BTreeMap<(u32, u32), u8>,
    actors: Vec<Actor>,
    crashes: u8,
    losses: u8,
    deaths: u8,
    /// Promises that a step has broken.
    broken: BTreeSet<&'static str>,
}

/// Objects. All but the ledger's lie under a life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Key {
    Manifest(u32),
    Ended(RunId, u32),
    Dead(RunId, u32),
    Part(Part),
    Inherited(u32, Digest),
    Summary(u32, Digest),
    FinalManifest(u32),
    Success(u32),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Object {
    Plain,
    /// What a chunk came to: its part, or none where it was given up.
    Outcome(Option<Part>),
    Inherited(BTreeMap<u32, u32>),
    Summary(Summary),
}

/// A part, named by what it was computed for and by its bytes: those of two who compute at the same time differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Part {
    message: Message,
    copy: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Message {
    at: RunId,
    chunk: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Summary {
    run: u32,
    parts: Vec<Part>,
    dead: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Actor {
    Submitter(Submitter),
    Worker(Worker),
    Reader(Reader),
    Control(Control),
}

/// Who submits a corpus for a holder, or, where there is none, repairs what is there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Submitter {
    holder: Option<&'static str>,
    life: u32,
    step: Submit,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Submit {
    /// Until the first run has come to something.
    Wait,
    Prepare,
    Known,
    Open,
    Cut,
    Enter,
    Repair(Arc<Job>),
    Join(bool),
    Survey(NewRun, Survey),
    Bequeath(NewRun, BTreeMap<u32, u32>, Vec<u32>),
    /// With what the ledger was, where it was read long before.
    Begin(NewRun, Vec<u32>, Option<Arc<Job>>),
    Publish(RunId, Vec<u32>),
    Published(RunId),
    /// A look: at a run that is being cancelled, or at its own of which nothing was left to do.
    Look(Look, Option<RunId>),
    /// Where it has a part in a run.
    Done(RunId),
    /// It has died, or has nothing to do; with the run that it alone had a reason to look at.
    Gone(Option<RunId>),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Worker {
    /// What it was given, until it is acknowledged; and whether somebody else has it by now.
    message: Option<Message>,
    lost: bool,
    /// Whether another was at work on it when it came.
    copy: bool,
    step: Work,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
enum Work {
    #[default]
    Idle,
    Head,
    Outcome,
    Charge,
    Again,
    /// What goes before the record: the part, or that the chunk may be dead.
    Before(Option<Part>),
    Record(Option<Part>),
    /// Whether all chunks have ended: the head, the list, and the head again for a look.
    Ended,
    Tally(Arc<Job>),
    All,
    Look(Look),
    Ack,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Reader {
    told: Option<Told>,
    step: Read,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Told {
    at: RunId,
    done: u32,
    dead: u32,
    end: Option<EndState>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Read {
    Head,
    Survey(Survey),
    /// A look, and what was listed before it.
    Look(Look, Option<Survey>),
}

/// Who says one thing. What is deleted with that, it removes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Control {
    event: Event,
    step: Say,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Say {
    Append,
    List(u32, u8),
    Remove(u32, u8, Vec<Key>),
    Done,
}

/// What the chunks of a run came to, as far as listings tell: for readers, and for the run that follows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Survey {
    entry: Arc<Job>,
    view: Option<View>,
    ended: Option<Vec<u32>>,
    /// May be dead; those that are read are taken out.
    marked: Option<Vec<u32>>,
    dead: Vec<u32>,
    /// Whether there was a look meanwhile, which found no end, or none is needed.
    looked: bool,
}

/// A run and which chunks it goes on from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct View {
    at: RunId,
    inherited: BTreeMap<u32, u32>,
}

/// A look for the end of the run that counts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Look {
    entry: Arc<Job>,
    step: Conclude,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Conclude {
    Over,
    Open,
    List(View),
    Decide(View, Vec<u32>),
    Read(View, Vec<u32>, Summary),
    Write(Summary, EndState),
    End(End),
    /// What follows a complete end: what is there of it, `_manifest.json`, and `_SUCCESS`.
    Exists,
    FinalManifest(Summary),
    Success,
}

/// Where a job stands after an append, or why that was moot.
type Appended = Result<Arc<Job>, (Moot, Option<Arc<Job>>)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// An actor's next step.
    Step(usize),
    /// The same, where the chunk turns out to be one that can't be computed.
    GiveUp(usize),
    Take(usize, Message),
    Crash(usize),
    Lose(usize),
    Tick,
}

impl Key {
    fn life(self) -> u32 {
        match self {
            Self::Manifest(life) | Self::FinalManifest(life) | Self::Success(life) => life,
            Self::Inherited(life, _) | Self::Summary(life, _) => life,
            Self::Ended(at, _) | Self::Dead(at, _) | Self::Part(Part { message: Message { at, .. }, .. }) => at.life,
        }
    }
}

impl Model for Setup {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            time: 0,
            head: None,
            store: Arc::default(),
            queue: BTreeSet::new(),
            charges: BTreeMap::new(),
            actors: self.actors.clone(),
            crashes: self.crashes,
            losses: self.losses,
            deaths: self.deaths,
            broken: BTreeSet::new(),
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        let mut free = true;
        for (index, actor) in world.actors.iter().enumerate() {
            match actor {
                Actor::Submitter(Submitter { step: Submit::Done(_) | Submit::Gone(_), .. }) => continue,
                Actor::Submitter(Submitter { step: Submit::Wait, .. }) if !world.is_over() => continue,
                Actor::Control(Control { step: Say::Done, .. }) => continue,
                Actor::Worker(Worker { step: Work::Idle, .. }) => {
                    // Which of those that are idle makes no difference.
                    if std::mem::replace(&mut free, false) {
                        actions.extend(world.queue.iter().map(|&message| Action::Take(index, message)));
                    }
                    continue;
                }
                Actor::Submitter(_) if world.crashes > 0 => actions.push(Action::Crash(index)),
                Actor::Worker(worker) => {
                    // One that dies before it has done anything might as well not have begun.
                    if world.crashes > 0 && !matches!(worker.step, Work::Head | Work::Outcome | Work::Charge) {
                        actions.push(Action::Crash(index));
                    }
                    if world.losses > 0 && !worker.lost {
                        actions.push(Action::Lose(index));
                    }
                    if world.deaths > 0 && worker.step == Work::Again {
                        actions.push(Action::GiveUp(index));
                    }
                }
                Actor::Submitter(_) | Actor::Reader(_) | Actor::Control(_) => {}
            }
            actions.push(Action::Step(index));
        }
        if world.time + 1 < self.times.len() {
            actions.push(Action::Tick);
        }
    }

    fn next_state(&self, before: &World, action: Action) -> Option<World> {
        let mut world = before.clone();
        match action {
            Action::Tick => world.time += 1,
            Action::Step(index) | Action::GiveUp(index) => {
                let mut actor = world.actors[index].clone();
                let give_up = matches!(action, Action::GiveUp(_));
                world.deaths -= u8::from(give_up);
                match &mut actor {
                    Actor::Submitter(submitter) => world.submit(self, submitter),
                    Actor::Worker(worker) => world.work(self, worker, give_up),
                    Actor::Reader(reader) => world.read(self, reader),
                    Actor::Control(control) => world.say(self, control),
                }
                world.actors[index] = actor;
            }
            Action::Take(index, message) => {
                world.queue.remove(&message);
                let at_it = |actor: &Actor| matches!(actor, Actor::Worker(worker) if worker.message == Some(message));
                let copy = world.actors.iter().any(at_it);
                world.actors[index] =
                    Actor::Worker(Worker { message: Some(message), lost: false, copy, step: Work::Head });
            }
            Action::Crash(index) | Action::Lose(index) => {
                let lost = matches!(action, Action::Lose(_));
                match &mut world.actors[index] {
                    Actor::Submitter(submitter) => {
                        submitter.step = Submit::Gone(match submitter.step {
                            Submit::Look(_, Some(at)) => Some(at),
                            _ => None,
                        });
                    }
                    Actor::Worker(worker) => {
                        world.queue.extend(worker.message.filter(|_| !worker.lost));
                        worker.lost = true;
                        if !lost {
                            *worker = Worker::default();
                        }
                    }
                    Actor::Reader(_) | Actor::Control(_) => {}
                }
                if lost { world.losses -= 1 } else { world.crashes -= 1 }
            }
        }
        // Which worker has which message makes no difference.
        world.actors.sort_by_key(|actor| match actor {
            Actor::Worker(worker) => (1, worker.message, worker.copy),
            Actor::Submitter(_) => (0, None, false),
            Actor::Reader(_) | Actor::Control(_) => (2, None, false),
        });
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(WHOLE, |setup: &Self, world: &World| world.whole(setup)),
            Property::always(FINAL, |_, world: &World| !world.broken.contains(FINAL) && world.successful()),
            Property::always(OBEYED, |_, world: &World| !world.broken.contains(OBEYED)),
            Property::always(COUNTS, |_, world: &World| !world.broken.contains(COUNTS)),
            Property::always(SETTLED, |setup: &Self, world: &World| world.settled(setup)),
            Property::always(CHARGED, |_, world: &World| world.charges.values().all(|&charges| charges <= 1)),
            Property::always(APART, |_, world: &World| !world.broken.contains(APART) && world.apart()),
            Property::always(HELD, |setup: &Self, world: &World| !world.broken.contains(HELD) && world.held(setup)),
        ]
    }
}
