//! Fair order between tenants, and batches filled to a budget of tokens. No clock, no thread, no runtime: rows in,
//! batches out.
//!
//! **Deficit round robin, counted in tokens.** Tenants with waiting texts stand in a ring. A turn credits a tenant with
//! one quantum; it spends its credit on texts, in their order, until the next one costs more than is left. What is left
//! stays for its next turn, as long as it has texts waiting; a tenant without any leaves the ring and its credit lapses,
//! so nobody saves up. Counting texts instead would give a tenant of long texts many times the work of one of short ones.
//!
//! **What that promises.** Over any run of batches in which two tenants both have texts waiting, what they get differs by
//! at most one quantum and two of the longest texts; by one quantum and one text when both came at the same time. A
//! newcomer waits for at most one turn of each other tenant, however much they have waiting.
//!
//! **Two classes.** Texts that somebody waits for ([`Class::Synchronous`]) stand in a ring of their own, which is emptied
//! before the other gets a token: bulk work takes what room they leave. But of `BULK_EVERY` batches one begins with bulk work,
//! while any waits: whoever keeps the synchronous ring full slows jobs down and stops none.
//!
//! **Batches.** A turn may span batches. When the text whose turn it is does not fit the room left, the batch is closed,
//! and its tenant opens the next one with the credit it has. Looking for a shorter text of someone else would fill the
//! room, but let it overtake; and a batch a few texts short of its budget is shorter work too, since nothing is padded.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Tenants that share one batch when all have much waiting: the quantum is this part of the budget. More would cut the
/// turns so short that the long texts of most corpora need several to be paid for; fewer would make a newcomer wait longer.
const TURNS_IN_BATCH: usize = 16;

/// Of so many batches one begins with bulk work: a job gets an eighth of the model at least, and a request waits for one batch
/// more in eight.
const BULK_EVERY: u32 = 8;

/// What a text is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A request whose caller waits.
    Synchronous,
    /// A job.
    Bulk,
}

/// One text to embed.
#[derive(Debug)]
pub struct Item<T> {
    /// Whatever the caller needs to know the row again.
    pub tag: T,
    /// The text's tokens.
    pub tokens: Vec<u32>,
}

impl<T> Item<T> {
    /// What the text costs: its tokens, and at least one, so that a batch's rows are bounded by its budget too.
    fn cost(&self) -> usize {
        self.tokens.len().max(1)
    }
}

/// The texts of all tenants that wait for the model.
///
/// Holds what it is given: the caller bounds what it pushes, by [`Scheduler::waiting_tokens`].
#[derive(Debug)]
pub struct Scheduler<T> {
    budget_tokens: usize,
    synchronous: Ring<T>,
    bulk: Ring<T>,
    /// Batches since the last with bulk work in it, while some waits.
    without_bulk: u32,
}

/// The texts of one class.
#[derive(Debug)]
struct Ring<T> {
    quantum_tokens: usize,
    /// The tenants with texts waiting, and only those.
    lanes: HashMap<Arc<str>, Lane<T>>,
    /// Their order. The one in front has the turn.
    ring: VecDeque<Arc<str>>,
    waiting_tokens: u64,
}

#[derive(Debug)]
struct Lane<T> {
    items: VecDeque<Item<T>>,
    waiting_tokens: u64,
    /// Tokens it may still spend.
    deficit_tokens: usize,
    /// Whether this turn's quantum is credited: a turn that spans batches gets it once.
    credited: bool,
}

/// How a tenant's turn, or its part in this batch, ended.
enum Turn {
    /// Nothing of the tenant waits any more.
    Emptied,
    /// The next text costs more than the credit left.
    Spent,
    /// The next text is paid for, but the batch has no room for it.
    NoRoom,
}

impl<T> Scheduler<T> {
    /// Batches of at most `budget_tokens` tokens (zero counts as one). A single longer text is a batch of its own.
    pub fn new(budget_tokens: usize) -> Self {
        let budget_tokens = budget_tokens.max(1);
        let quantum_tokens = (budget_tokens / TURNS_IN_BATCH).max(1);
        Self { budget_tokens, synchronous: Ring::new(quantum_tokens), bulk: Ring::new(quantum_tokens), without_bulk: 0 }
    }

    /// Adds a text behind the tenant's others of its class.
    pub fn push(&mut self, tenant: &str, class: Class, row: Item<T>) {
        match class {
            Class::Synchronous => self.synchronous.push(tenant, row),
            Class::Bulk => self.bulk.push(tenant, row),
        }
    }

    /// The next batch, empty when nothing waits. A tenant's texts of one class come in the order they were pushed.
    ///
    /// Takes time in proportion to the batch, and to the turns that tenants whose next text is longer than a quantum
    /// need to pay for it.
    pub fn next_batch(&mut self) -> Vec<Item<T>> {
        let mut batch = Vec::new();
        let mut room_tokens = self.budget_tokens;
        let bulk_tokens = self.bulk.waiting_tokens;
        let bulk_first = bulk_tokens > 0 && self.without_bulk + 1 >= BULK_EVERY;
        let (first, second) = match bulk_first {
            true => (&mut self.bulk, &mut self.synchronous),
            false => (&mut self.synchronous, &mut self.bulk),
        };
        first.fill(&mut room_tokens, &mut batch);
        // Of those who wait, one that did not fit any more opens the next batch.
        if first.ring.is_empty() {
            second.fill(&mut room_tokens, &mut batch);
        }
        // Also where its next text did not fit into what the other ring has left.
        let passed_over = bulk_tokens > 0 && self.bulk.waiting_tokens == bulk_tokens;
        self.without_bulk = if passed_over { self.without_bulk + 1 } else { 0 };
        batch
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.synchronous.lanes.is_empty() && self.bulk.lanes.is_empty()
    }

    /// Tokens of all texts that wait; one without tokens counts as one.
    pub fn waiting_tokens(&self) -> u64 {
        self.synchronous.waiting_tokens + self.bulk.waiting_tokens
    }

    /// Tokens of one tenant's texts that wait.
    pub fn waiting_tokens_of(&self, tenant: &str) -> u64 {
        let of = |ring: &Ring<T>| ring.lanes.get(tenant).map_or(0, |lane| lane.waiting_tokens);
        of(&self.synchronous) + of(&self.bulk)
    }
}

impl<T> Ring<T> {
    fn new(quantum_tokens: usize) -> Self {
        Self { quantum_tokens, lanes: HashMap::new(), ring: VecDeque::new(), waiting_tokens: 0 }
    }

    fn push(&mut self, tenant: &str, row: Item<T>) {
        let cost = row.cost() as u64;
        self.waiting_tokens += cost;
        if let Some(lane) = self.lanes.get_mut(tenant) {
            lane.waiting_tokens += cost;
            lane.items.push_back(row);
            return;
        }
        let name: Arc<str> = tenant.into();
        let items = VecDeque::from([row]);
        let lane = Lane { items, waiting_tokens: cost, deficit_tokens: 0, credited: false };
        self.lanes.insert(Arc::clone(&name), lane);
        self.ring.push_back(name);
    }

    /// Moves texts into the batch until the next one has no room or nothing waits.
    fn fill(&mut self, room_tokens: &mut usize, batch: &mut Vec<Item<T>>) {
        while let Some(name) = self.ring.pop_front() {
            let Some(lane) = self.lanes.get_mut(&name) else { continue };
            let before = lane.waiting_tokens;
            let end = lane.take_turn(self.quantum_tokens, room_tokens, batch);
            self.waiting_tokens -= before - lane.waiting_tokens;
            match end {
                Turn::Emptied => {
                    self.lanes.remove(&name);
                }
                Turn::Spent => self.ring.push_back(name),
                Turn::NoRoom => {
                    self.ring.push_front(name);
                    break;
                }
            }
        }
    }
}

impl<T> Lane<T> {
    /// Moves texts into the batch until credit, room or texts run out.
    fn take_turn(&mut self, quantum_tokens: usize, room_tokens: &mut usize, batch: &mut Vec<Item<T>>) -> Turn {
        if !self.credited {
            self.deficit_tokens += quantum_tokens;
            self.credited = true;
        }
        loop {
            let Some(cost) = self.items.front().map(Item::cost) else { return Turn::Emptied };
            if cost > self.deficit_tokens {
                self.credited = false;
                return Turn::Spent;
            }
            // A text longer than any batch goes alone, once it is its turn in an empty one.
            if cost > *room_tokens && !batch.is_empty() {
                return Turn::NoRoom;
            }
            self.deficit_tokens -= cost;
            self.waiting_tokens -= cost as u64;
            *room_tokens = room_tokens.saturating_sub(cost);
            batch.extend(self.items.pop_front());
        }
    }
}

#[cfg(test)]
mod tests;
