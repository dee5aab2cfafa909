//! How many tokens the chunks have that wait for quota: counted once, so that a chunk which waits costs a question and no fetch.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vecmill_signer::claims::Digest;

/// Chunks of which that is remembered, at some 100 bytes each; the oldest is forgotten, and counted anew when it comes.
const KEPT_MAX: usize = 65_536;

/// A manifest's digest, which says how texts become tokens, and a chunk's number in it.
type Of = (Digest, u32);

/// The counts.
#[derive(Debug, Default)]
pub(super) struct Counts(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    tokens: HashMap<Of, u64>,
    order: VecDeque<Of>,
}

impl Counts {
    /// The tokens of a chunk that waited before.
    pub(super) fn get(&self, of: Of) -> Option<u64> {
        self.kept().tokens.get(&of).copied()
    }

    /// Remembers the tokens of a chunk that is to wait.
    pub(super) fn keep(&self, of: Of, tokens: u64) {
        let mut kept = self.kept();
        if kept.tokens.insert(of, tokens).is_none() {
            kept.order.push_back(of);
        }
        if kept.order.len() > KEPT_MAX
            && let Some(oldest) = kept.order.pop_front()
        {
            kept.tokens.remove(&oldest);
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten() {
        let (counts, digest) = (Counts::default(), Digest::of(b"manifest"));
        for chunk in 0..KEPT_MAX as u32 + 10 {
            counts.keep((digest, chunk), u64::from(chunk));
            counts.keep((digest, chunk), u64::from(chunk) + 1);
        }
        assert_eq!(counts.get((digest, 9)), None);
        assert_eq!(counts.get((digest, 10)), Some(11));
        assert_eq!(counts.kept().tokens.len(), KEPT_MAX);
    }
}
