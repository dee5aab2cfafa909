//! Fair order between tenants, and batches filled to a budget of tokens. No clock, no thread, no runtime: rows in,
//! batches out.
//!
//! **Deficit round robin, counted in tokens.** Tenants with waiting texts stand in a ring. A turn credits a tenant with
//! one quantum; it spends its credit on texts, in their order, until the next one costs more than is left. What is left
//! stays for its next turn, as long as it has texts waiting; a tenant without any leaves the ring and its credit lapses,
//! so nobody saves up. Counting texts instead would give a tenant of long texts many times the work of one of short ones.
//!
//! **What that promises.** Two tenants who both have texts waiting from some moment on never differ, since that moment, by
//! more than one quantum and one longest text. A newcomer waits for at most one turn of each other tenant.
//!
//! **Batches.** A turn may span batches. When the text whose turn it is does not fit the room left in the batch, its
//! tenant keeps turn and credit and opens the next batch, and the tenants after it may fill the room, each with the one
//! turn that this round owes them. So a long text is never overtaken for more than a batch.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Tenants that share one batch when all have much waiting: the quantum is this part of the budget. More would cut the
/// turns so short that the long texts of most corpora need several to be paid for; fewer would make a newcomer wait longer.
const TURNS_IN_BATCH: usize = 16;

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

/// How a turn in a batch ended.
enum Turn {
    /// Nothing of the tenant waits any more.
    Emptied,
    /// The next text costs more than the credit left.
    Spent,
    /// The next text is paid for, but the batch has no room for it.
    NoRoom,
}
