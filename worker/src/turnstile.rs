//! Who may use a core next: turns for work on the CPU that is cut into pieces, tokenizing above all.
//!
//! **What is promised.** At most so many turns are taken at once, as there are cores. When one is free it goes to the tenants
//! that wait in a circle, one piece each: a newcomer waits until one of the pieces under way ends and for one of each other
//! tenant, however much they have waiting. Whose caller waits goes before jobs, but of `JOBS_EVERY` turns one is a job's.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::schedule::Class;

/// Of so many turns one is a job's while both wait: a flood of requests slows jobs down, and stops none.
const JOBS_EVERY: u32 = 8;

/// Hands out turns. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Turnstile(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    synchronous: Circle,
    bulk: Circle,
    /// Turns of requests since the last of a job.
    since_job: u32,
}

/// Tenants that wait, in a circle. As many as there are pieces: each belongs to a delivery in hand, which are bounded.
#[derive(Debug, Default)]
struct Circle {
    waiting: HashMap<Arc<str>, VecDeque<oneshot::Sender<Turn>>>,
    order: VecDeque<Arc<str>>,
}

/// Leave to use a core, until it is dropped.
#[derive(Debug)]
pub struct Turn(Turnstile);

impl Turnstile {
    /// For so many cores.
    pub fn new(cores: usize) -> Self {
        let (synchronous, bulk) = (Circle::default(), Circle::default());
        Self(Arc::new(Mutex::new(State { free: cores.max(1), synchronous, bulk, since_job: 0 })))
    }

    /// Waits for a tenant's turn. Dropped before it resolves, it has none.
    pub async fn turn(&self, tenant: &str, class: Class) -> Turn {
        let (go, mut gone) = oneshot::channel();
        self.state().circle(class).push(tenant, go);
        self.dispatch();
        match (&mut gone).await {
            Ok(turn) => turn,
            // It is kept until it is handed its turn.
            Err(_) => std::future::pending().await,
        }
    }

    fn dispatch(&self) {
        loop {
            let mut state = self.state();
            if state.free == 0 {
                return;
            }
            let Some(go) = state.next() else { return };
            state.free -= 1;
            drop(state);
            // Where nobody waits any more, the turn comes back, is dropped here, and the next has it.
            drop(go.send(Turn(self.clone())));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.state().free += 1;
        self.0.dispatch();
    }
}

impl State {
    fn circle(&mut self, class: Class) -> &mut Circle {
        match class {
            Class::Synchronous => &mut self.synchronous,
            Class::Bulk => &mut self.bulk,
        }
    }

    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        let jobs_first = self.since_job + 1 >= JOBS_EVERY && !self.bulk.order.is_empty();
        if !jobs_first && let Some(go) = self.synchronous.next() {
            self.since_job += 1;
            return Some(go);
        }
        self.since_job = 0;
        self.bulk.next().or_else(|| self.synchronous.next())
    }
}

impl Circle {
    fn push(&mut self, tenant: &str, go: oneshot::Sender<Turn>) {
        if let Some(waiting) = self.waiting.get_mut(tenant) {
            return waiting.push_back(go);
        }
        let tenant: Arc<str> = tenant.into();
        self.waiting.insert(Arc::clone(&tenant), VecDeque::from([go]));
        self.order.push_back(tenant);
    }

    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        while let Some(tenant) = self.order.pop_front() {
            let Some(waiting) = self.waiting.get_mut(&tenant) else { continue };
            // Whoever went away has no turn, and takes none of its tenant's.
            let next = std::iter::from_fn(|| waiting.pop_front()).find(|go| !go.is_closed());
            if waiting.is_empty() {
                self.waiting.remove(&tenant);
            } else {
                self.order.push_back(tenant);
            }
            if next.is_some() {
                return next;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who waits, in the order in which they come; gives the order in which they had their turns, on one core.
    async fn order(waiting: &[(&'static str, Class)]) -> Vec<&'static str> {
        let turnstile = Turnstile::new(1);
        let first = turnstile.turn("first", Class::Bulk).await;
        let (had, mut order) = tokio::sync::mpsc::channel(100);
        for &(tenant, class) in waiting {
            let (turnstile, had) = (turnstile.clone(), had.clone());
            let mut turn = Box::pin(async move {
                let _turn = turnstile.turn(tenant, class).await;
                had.send(tenant).await.expect("the test listens");
            });
            // It stands in line from here on.
            assert!(futures_util::poll!(&mut turn).is_pending());
            tokio::spawn(turn);
        }
        drop((first, had));
        let mut tenants = Vec::new();
        while let Some(tenant) = order.recv().await {
            tenants.push(tenant);
        }
        tenants
    }

    #[tokio::test]
    async fn a_newcomer_waits_for_one_piece_of_each_other() {
        let mut waiting = vec![("a", Class::Synchronous); 50];
        waiting.extend([("b", Class::Synchronous), ("c", Class::Synchronous), ("b", Class::Synchronous)]);
        let order = order(&waiting).await;
        assert_eq!(order[..6], ["a", "b", "c", "a", "b", "a"]);
        assert_eq!(order.len(), 53);
    }

    #[tokio::test]
    async fn whose_caller_waits_goes_first_and_stops_no_job() {
        let mut waiting = vec![("job", Class::Bulk); 3];
        waiting.extend(vec![("a", Class::Synchronous); 20]);
        let order = order(&waiting).await;
        let jobs: Vec<_> = (0..order.len()).filter(|&place| order[place] == "job").collect();
        assert_eq!(jobs, [7, 15, 22], "one of eight, and the last when nothing else waits");
    }

    #[tokio::test]
    async fn who_goes_away_takes_no_turn_and_leaves_none_behind() {
        let turnstile = Turnstile::new(2);
        let held = [turnstile.turn("a", Class::Bulk).await, turnstile.turn("a", Class::Bulk).await];
        let mut gone = Box::pin(turnstile.turn("a", Class::Bulk));
        let mut stays = Box::pin(turnstile.turn("a", Class::Bulk));
        assert!(futures_util::poll!(&mut gone).is_pending() && futures_util::poll!(&mut stays).is_pending());
        drop(gone);
        drop(held);
        drop(stays.await);
        let state = turnstile.state();
        assert!(state.free == 2 && state.bulk.waiting.is_empty() && state.bulk.order.is_empty());
    }
}
