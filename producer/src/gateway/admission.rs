//! Which requests for embeddings go to the workers, and when: so much at once as they do in half a second, shared out by tenant.
//!
//! Workers take requests in the order in which they came to the queue. What lies there delays whoever comes next, so little lies
//! there: the rest waits here, where it is known whose it is. Without a bound on it, more requests than can be done all wait
//! until their time is nearly over, and then a worker begins on each too late: twice the load comes to no answer at all.
//!
//! **The cost** of a request is about its tokens, from its bytes: forty requests of six hundred texts are not forty words.
//!
//! **The window** is what the workers have done in half a second, measured while something waits here: at other times what is done
//! says nothing of what could be. A gateway counts only its own.
//!
//! **What is promised.** (1) A tenant with nothing under way gets its next request in at once, whatever others have sent. (2) So
//! does one whose share would stay below an equal part of the window. (3) Of the rest goes first who has least under way. So
//! tenants that want more than there is have as much under way as each other, to a request; and under way are never more than two
//! windows and a request of each tenant. (4) A tenant is refused for its own backlog alone: when that would take longer than a
//! quarter of the time that a request has, at the tenant's part of what is done.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// How much is under way: what the workers do in this time. Long beside the way there and back, short for who waits behind it.
const WINDOW_S: f64 = 0.5;
/// Least that is under way, in tokens, whatever has been measured: batches enough to see what a worker can do.
const WINDOW_LEAST: u64 = 16_384;
/// Time over which what is done is measured: long beside a request, short beside a load that changes.
const MEASURED_OVER_S: f64 = 5.0;
/// Longest time that a refusal tells to stay away.
const WAIT_MAX_S: f64 = 60.0;

/// What is under way and what waits.
#[derive(Debug)]
pub(super) struct Admission {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Time that a tenant's backlog may take before its next request is refused.
    target_s: f64,
    under_way: u64,
    /// Only tenants with something under way or waiting: bounded by the places that a gateway has.
    tenants: HashMap<Arc<str>, Tenant>,
    next_number: u64,
    /// When something last came or went.
    last: Instant,
    /// Tokens done, and seconds, while something waited; both fade, so that their ratio is of the last seconds.
    done: f64,
    busy_s: f64,
}

#[derive(Debug, Default)]
struct Tenant {
    /// Requests under way, and their tokens.
    requests: usize,
    under_way: u64,
    waiting: VecDeque<Waiting>,
    waits: u64,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    cost: u64,
    go: oneshot::Sender<()>,
}

/// A request that waits or is under way, until it is dropped.
#[derive(Debug)]
pub(super) struct Entered<'a> {
    admission: &'a Admission,
    tenant: Arc<str>,
    number: u64,
    cost: u64,
    answered: bool,
}

impl Admission {
    /// For requests that are to be answered within `answer_within`.
    pub(super) fn new(answer_within: Duration) -> Self {
        Self { state: Mutex::new(State::new(answer_within.as_secs_f64() / 4.0, Instant::now())) }
    }

    /// Returns when a tenant's request may go to the workers; or says for how long it can't.
    pub(super) async fn enter(&self, tenant: &str, cost: u64) -> Result<Entered<'_>, Duration> {
        let (entered, gone) = {
            let mut state = self.state();
            let (tenant, number, gone) = state.arrive(tenant, cost, Instant::now())?;
            (Entered { admission: self, tenant, number, cost, answered: false }, gone)
        };
        // The sender is dropped only with what waits, which is this.
        _ = gone.await;
        Ok(entered)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entered<'_> {
    /// A worker has answered.
    pub(super) fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let done = if self.answered { self.cost } else { 0 };
        self.admission.state().leave(&self.tenant, self.number, self.cost, done, Instant::now());
    }
}

impl State {
    fn new(target_s: f64, now: Instant) -> Self {
        let (done, busy_s) = (0.0, 0.0);
        Self { target_s, under_way: 0, tenants: HashMap::new(), next_number: 0, last: now, done, busy_s }
    }

    /// Takes a request in, to wait or to go at once.
    fn arrive(
        &mut self,
        tenant: &str,
        cost: u64,
        now: Instant,
    ) -> Result<(Arc<str>, u64, oneshot::Receiver<()>), Duration> {
        self.pass(now);
        let others = self.tenants.len() - usize::from(self.tenants.contains_key(tenant));
        if let (Some(rate), Some(own)) = (self.rate(), self.tenants.get(tenant)) {
            let part = rate / (others + 1) as f64;
            let takes_s = (own.under_way + own.waits + cost) as f64 / part;
            if !own.waiting.is_empty() && takes_s > self.target_s {
                return Err(Duration::from_secs_f64((takes_s - self.target_s).clamp(1.0, WAIT_MAX_S)));
            }
        }
        let name = match self.tenants.get_key_value(tenant) {
            Some((name, _)) => Arc::clone(name),
            None => Arc::from(tenant),
        };
        let number = self.next_number;
        self.next_number += 1;
        let (go, gone) = oneshot::channel();
        let own = self.tenants.entry(Arc::clone(&name)).or_default();
        own.waiting.push_back(Waiting { number, cost, go });
        own.waits += cost;
        self.dispatch();
        Ok((name, number, gone))
    }

    /// A request is over, or nobody waits for it any more.
    fn leave(&mut self, tenant: &Arc<str>, number: u64, cost: u64, done: u64, now: Instant) {
        self.pass(now);
        if self.waits() {
            self.done += done as f64;
        }
        if let Some(own) = self.tenants.get_mut(tenant) {
            match own.waiting.iter().position(|waiting| waiting.number == number) {
                Some(place) => {
                    own.waiting.remove(place);
                    own.waits -= cost;
                }
                None => {
                    own.requests -= 1;
                    own.under_way -= cost;
                    self.under_way -= cost;
                }
            }
            if own.requests == 0 && own.waiting.is_empty() {
                self.tenants.remove(tenant);
            }
        }
        self.dispatch();
    }

    /// Lets go what may.
    fn dispatch(&mut self) {
        let window = self.window();
        while let Some(tenant) = self.next(window) {
            let Some(own) = self.tenants.get_mut(&tenant) else { return };
            let Some(Waiting { cost, go, .. }) = own.waiting.pop_front() else { return };
            own.requests += 1;
            own.under_way += cost;
            own.waits -= cost;
            self.under_way += cost;
            // Gone in this moment: it leaves as one that was under way.
            _ = go.send(());
        }
    }

    /// The tenant whose next request may go.
    fn next(&self, window: u64) -> Option<Arc<str>> {
        let part = window / self.tenants.len().max(1) as u64;
        // Who has least under way first; of those, who has waited longest.
        let waiting = self.tenants.iter().filter_map(|(tenant, own)| {
            let front = own.waiting.front()?;
            Some((own.under_way, front.number, front.cost, own.requests, tenant))
        });
        let mut waiting: Vec<_> = waiting.collect();
        waiting.sort_unstable_by_key(|&(under_way, number, ..)| (under_way, number));
        // What room there is is the first's. Others pass it only where it takes nothing from anybody: within their parts.
        let first = waiting.first().map(|&(_, number, ..)| number);
        let may = waiting.into_iter().find(|&(under_way, number, cost, requests, _)| {
            requests == 0 || under_way + cost <= part || (Some(number) == first && self.under_way + cost <= window)
        });
        may.map(|(.., tenant)| Arc::clone(tenant))
    }

    /// Time has passed.
    fn pass(&mut self, now: Instant) {
        let elapsed_s = now.saturating_duration_since(self.last).as_secs_f64();
        self.last = now;
        if self.waits() {
            let fade = (-elapsed_s / MEASURED_OVER_S).exp();
            self.done *= fade;
            self.busy_s = self.busy_s * fade + elapsed_s;
        }
    }

    fn waits(&self) -> bool {
        self.tenants.values().any(|own| !own.waiting.is_empty())
    }

    /// Tokens a second that the workers do, if that is known.
    fn rate(&self) -> Option<f64> {
        (self.done > 0.0).then(|| self.done / self.busy_s.max(0.001))
    }

    fn window(&self) -> u64 {
        self.rate().map_or(WINDOW_LEAST, |rate| ((rate * WINDOW_S) as u64).max(WINDOW_LEAST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Gone = oneshot::Receiver<()>;

    /// A gateway's state and its clock.
    struct Scene {
        state: State,
        now: Instant,
        /// Tenant, number, cost and the word to go of each request, until it has left.
        open: Vec<(Arc<str>, u64, u64, Gone)>,
    }

    impl Scene {
        fn new() -> Self {
            let now = Instant::now();
            Self { state: State::new(7.5, now), now, open: Vec::new() }
        }

        /// As if so many tokens a second had been done, for long.
        fn measured(per_s: f64) -> Self {
            let mut scene = Self::new();
            (scene.state.done, scene.state.busy_s) = (per_s * MEASURED_OVER_S, MEASURED_OVER_S);
            scene
        }

        fn arrive(&mut self, tenant: &str, cost: u64) -> Result<bool, Duration> {
            let (name, number, gone) = self.state.arrive(tenant, cost, self.now)?;
            self.open.push((name, number, cost, gone));
            Ok(self.goes(self.open.len() - 1))
        }

        /// Whether one is under way. A word is heard once, so ask the state.
        fn goes(&self, place: usize) -> bool {
            let (tenant, number, ..) = &self.open[place];
            self.state.tenants[tenant].waiting.iter().all(|waiting| waiting.number != *number)
        }

        /// The first that is under way is answered.
        fn answer_one(&mut self) -> Arc<str> {
            let place = (0..self.open.len()).find(|&place| self.goes(place)).expect("something is under way");
            let (tenant, number, cost, _) = self.open.remove(place);
            self.now += Duration::from_millis(10);
            self.state.leave(&tenant, number, cost, cost, self.now);
            tenant
        }

        fn under_way(&self, tenant: &str) -> u64 {
            self.state.tenants.get(tenant).map_or(0, |own| own.under_way)
        }
    }

    #[test]
    fn a_word_goes_at_once_past_forty_large_requests() {
        let mut scene = Scene::new();
        let gone = (0..40).filter(|_| scene.arrive("a", 20_000).expect("nothing is known yet")).count();
        assert_eq!(gone, 1, "one is more than the least window");
        assert_eq!(scene.arrive("b", 40), Ok(true));
        assert_eq!(scene.arrive("b", 40), Ok(true), "and more of them, below an equal part");
        assert_eq!(scene.arrive("c", 300_000), Ok(true), "and anybody's first");
        assert_eq!(scene.arrive("c", 300_000), Ok(false));
        assert_eq!(scene.arrive("d", 40), Ok(true));
        assert_eq!(scene.arrive("d", 20_000), Ok(false), "more than its part");
        assert_eq!(scene.arrive("e", 40), Ok(true));
        assert_eq!(scene.arrive("e", 1_000), Ok(true), "which keeps nobody else from theirs");
    }

    #[test]
    fn one_tenant_has_the_window_and_the_rest_waits_in_order() {
        let mut scene = Scene::measured(100_000.0);
        let gone = (0..100).filter(|_| scene.arrive("a", 1_000) == Ok(true)).count();
        assert_eq!(gone, 50, "half a second's worth");
        for _ in 0..30 {
            scene.answer_one();
        }
        assert!(scene.under_way("a") >= 49_000, "as one goes another comes: {}", scene.under_way("a"));
        let waiting: Vec<_> = (0..scene.open.len()).map(|place| scene.goes(place)).collect();
        assert!(waiting.is_sorted_by(|before, after| before >= after), "the oldest first");
    }

    #[test]
    fn those_who_want_more_than_there_is_have_equal_parts() {
        let mut scene = Scene::measured(100_000.0);
        // One came first, with everything, in small requests; the others' are large.
        for _ in 0..500 {
            scene.arrive("a", 100).expect("not over its time");
        }
        for _ in 0..20 {
            scene.arrive("b", 10_000).expect("not over its time");
            scene.arrive("c", 1_000).expect("not over its time");
        }
        for _ in 0..520 {
            let a = scene.answer_one();
            // Whoever is served asks again.
            let cost = match &*a {
                "a" => 100,
                "b" => 10_000,
                _ => 1_000,
            };
            _ = scene.arrive(&a, cost);
        }
        let parts = ["a", "b", "c"].map(|tenant| scene.under_way(tenant));
        let (most, least) = (parts.iter().max().expect("three"), parts.iter().min().expect("three"));
        assert!(most - least <= 10_000, "to a request: {parts:?}");
        assert!(scene.state.under_way <= 2 * scene.state.window() + 3 * 10_000);
    }

    #[test]
    fn a_tenant_is_refused_for_its_own_backlog_and_told_how_long() {
        let mut scene = Scene::measured(10_000.0);
        let refused = loop {
            if let Err(wait) = scene.arrive("a", 1_000) {
                break wait;
            }
            assert!(scene.open.len() < 200, "it is never refused");
        };
        assert!((70..=80).contains(&scene.open.len()), "7.5 s of work: {}", scene.open.len());
        assert!((1.0..60.0).contains(&refused.as_secs_f64()), "{refused:?}");
        assert_eq!(scene.arrive("b", 1_000), Ok(true));
        for _ in 0..5 {
            scene.arrive("b", 1_000).expect("another's backlog is not its own");
        }
    }

    #[test]
    fn what_is_given_up_makes_room_and_counts_as_nothing_done() {
        let mut scene = Scene::measured(100_000.0);
        for _ in 0..60 {
            scene.arrive("a", 1_000).expect("not over its time");
        }
        let before = scene.state.done;
        // One that waits, and one that is under way.
        for place in [59, 0] {
            let (tenant, number, cost, _) = scene.open.remove(place);
            scene.state.leave(&tenant, number, cost, 0, scene.now);
        }
        assert!(scene.state.done <= before);
        assert_eq!((scene.under_way("a"), scene.state.tenants["a"].waits), (50_000, 8_000));
        while !scene.open.is_empty() {
            scene.answer_one();
        }
        assert!(scene.state.tenants.is_empty() && scene.state.under_way == 0, "nobody is remembered");
    }

    #[tokio::test]
    async fn one_that_waits_goes_when_there_is_room_and_not_when_it_is_dropped() {
        let admission = Admission::new(Duration::from_secs(30));
        let first = admission.enter("a", 20_000).await.expect("the first");
        let mut second = Box::pin(admission.enter("a", 20_000));
        let mut third = Box::pin(admission.enter("a", 20_000));
        let soon = Duration::from_millis(1);
        assert!(tokio::time::timeout(soon, &mut second).await.is_err());
        assert!(tokio::time::timeout(soon, &mut third).await.is_err());
        drop(second);
        first.answered();
        third.await.expect("its turn").answered();
        assert_eq!(admission.state().under_way, 0);
    }
}
