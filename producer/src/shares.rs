//! Something of which there is only so much, places or bytes, shared out among tenants.
//!
//! **The rule.** Who holds nothing gets what is free. Who holds something gets more as long as no less stays free than it then
//! holds itself.
//!
//! **What that promises.** One holder alone has half at most; of `n` that all want everything, each has `1 / (n + 1)`, and as
//! much again stays free for whoever comes next. So nobody's hunger keeps another from the first it asks for, as long as that
//! fits in what `n` have left; and what nobody else wants is not kept idle beyond half.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// So much, and who holds what of it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Shares(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    total: u64,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    used: u64,
    /// Only who holds something. Bounded by what there is.
    by: HashMap<Arc<str>, u64>,
}

/// What somebody holds, until it is dropped.
#[derive(Debug)]
pub struct Share {
    of: Shares,
    holder: Arc<str>,
    amount: u64,
}

impl Shares {
    /// So much of it.
    pub fn new(total: u64) -> Self {
        Self(Arc::new(Inner { total, held: Mutex::default() }))
    }

    /// Takes some for a holder, if it may have it now.
    pub fn take(&self, holder: &str, amount: u64) -> Option<Share> {
        let mut held = self.held();
        let before = held.by.get(holder).copied().unwrap_or_default();
        let free = self.0.total.checked_sub(held.used)?.checked_sub(amount)?;
        if before > 0 && before + amount > free {
            return None;
        }
        held.used += amount;
        let holder = match held.by.get_key_value(holder) {
            Some((holder, _)) => Arc::clone(holder),
            None => holder.into(),
        };
        held.by.insert(Arc::clone(&holder), before + amount);
        Some(Share { of: self.clone(), holder, amount })
    }

    /// How much of it is held.
    pub fn used(&self) -> u64 {
        self.held().used
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.of.held();
        held.used -= self.amount;
        if let Some(of) = held.by.get_mut(&self.holder) {
            *of -= self.amount;
            if *of == 0 {
                held.by.remove(&self.holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(shares: &Shares, holder: &str) -> Vec<Share> {
        std::iter::from_fn(|| shares.take(holder, 1)).collect()
    }

    #[test]
    fn one_has_half_and_many_have_equal_parts_and_a_newcomer_always_finds_some() {
        let shares = Shares::new(512);
        let one = all(&shares, "a");
        assert_eq!(one.len(), 256);
        drop(one);
        assert_eq!(shares.used(), 0);
        // All at once, in turns, as requests come.
        let holders: Vec<_> = (0..7).map(|number| number.to_string()).collect();
        let mut held: Vec<Vec<Share>> = (0..7).map(|_| Vec::new()).collect();
        for _ in 0..512 {
            for (holder, held) in holders.iter().zip(&mut held) {
                held.extend(shares.take(holder, 1));
            }
        }
        assert!(
            held.iter().all(|held| held.len().abs_diff(64) <= 1),
            "{:?}",
            held.iter().map(Vec::len).collect::<Vec<_>>()
        );
        assert!(!all(&shares, "new").is_empty());
    }

    #[test]
    fn who_came_first_with_everything_does_not_keep_others_out() {
        let shares = Shares::new(512);
        let _greedy = all(&shares, "a");
        let second = all(&shares, "b");
        assert_eq!(second.len(), 128, "half of what was left");
        assert!(shares.take("c", 100).is_some(), "who holds nothing gets what is free");
    }

    #[test]
    fn one_of_one_is_had_by_one() {
        let shares = Shares::new(1);
        let first = shares.take("a", 1);
        assert!(first.is_some() && shares.take("a", 1).is_none() && shares.take("b", 1).is_none());
        drop(first);
        assert!(shares.take("b", 1).is_some() && shares.take("c", 2).is_none() && shares.take("c", u64::MAX).is_none());
        assert!(shares.held().by.is_empty(), "what is over is forgotten");
    }
}
