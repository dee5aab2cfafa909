//! The quota in memory, for local mode: the rules of `charge.lua`, step by step, for one process.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc;

use super::{Ask, Charge, DAY_MS, Over, TOKENS_MAX, UNITS_PER_TOKEN, Verdict, Work, keep_ms};

/// Quotas of all tenants, in this process only: gone when it ends, unknown to any other.
#[derive(Debug, Default)]
pub struct MemoryQuota {
    tenants: HashMap<String, Usage>,
    /// When each charge that is not spent, by tenant and work and then by piece, may be forgotten.
    unspent: HashMap<(String, String), HashMap<String, u64>>,
}

/// What a tenant has used. Absent is the same as a full bucket on a fresh day.
#[derive(Debug)]
struct Usage {
    /// Units in the bucket at `at_ms`; negative is debt.
    level: i128,
    at_ms: u64,
    /// The UTC day, since 1970, that `day_tokens` counts.
    day: u64,
    day_tokens: u64,
    /// When the bucket is full and the day is over.
    until_ms: u64,
}

impl MemoryQuota {
    /// Nothing used yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Charges tokens, once until they are spent. `now_ms` is Unix time in milliseconds.
    pub fn charge(&mut self, charge: &Charge, now_ms: u64) -> Verdict {
        let limits = charge.limits.clamped();
        let tokens = charge.tokens.min(TOKENS_MAX);
        let Work { tenant, of, piece } = &charge.work;
        let work = (tenant.clone(), of.clone());
        let charged_until_ms = self.unspent.get(&work).and_then(|pieces| pieces.get(piece));
        if charged_until_ms.is_some_and(|until_ms| *until_ms > now_ms) {
            return Verdict::AlreadyCharged;
        }
        // Zero is closed. Only a change of the limits helps, so look again in a day.
        if limits.tokens_per_minute == 0 || limits.tokens_burst == 0 {
            return Verdict::Later { wait_ms: DAY_MS, over: Over::Minute };
        }
        if limits.tokens_per_day == 0 {
            return Verdict::Later { wait_ms: DAY_MS, over: Over::Day };
        }

        let today = now_ms / DAY_MS;
        let midnight_ms = DAY_MS - now_ms % DAY_MS;
        // 128 bits: no product below can overflow.
        let rate = i128::from(limits.tokens_per_minute);
        let full = units(limits.tokens_burst);
        let (level, day_tokens) = match self.tenants.get(tenant) {
            Some(usage) => {
                // A clock that went back refills nothing, and begins no day.
                let elapsed_ms = now_ms.saturating_sub(usage.at_ms);
                let level = (usage.level.min(full) + i128::from(elapsed_ms) * rate).min(full);
                (level, if usage.day >= today { usage.day_tokens } else { 0 })
            }
            None => (full, 0),
        };

        // A chunk larger than the burst needs a full bucket, one larger than the day needs a fresh day.
        let minute_wait_ms = millis(units(tokens.min(limits.tokens_burst)) - level, rate);
        let over_day = day_tokens + tokens.min(limits.tokens_per_day) > limits.tokens_per_day;
        let day_wait_ms = if over_day { midnight_ms } else { 0 };
        if day_wait_ms > minute_wait_ms {
            return Verdict::Later { wait_ms: day_wait_ms, over: Over::Day };
        }
        if minute_wait_ms > 0 {
            return Verdict::Later { wait_ms: minute_wait_ms, over: Over::Minute };
        }

        if !self.unspent.contains_key(&work) {
            self.forget(now_ms);
        }
        let level = level - units(tokens);
        let until_ms = now_ms + millis(full - level, rate).max(midnight_ms);
        let usage = Usage { level, at_ms: now_ms, day: today, day_tokens: day_tokens + tokens, until_ms };
        self.tenants.insert(tenant.clone(), usage);
        self.unspent.entry(work).or_default().insert(piece.clone(), now_ms + keep_ms(charge.keep_s));
        Verdict::Charged
    }

    /// Forgets a charge whose work is done.
    pub fn spent(&mut self, work: &Work) {
        let of = (work.tenant.clone(), work.of.clone());
        if let Some(pieces) = self.unspent.get_mut(&of) {
            pieces.remove(&work.piece);
            if pieces.is_empty() {
                self.unspent.remove(&of);
            }
        }
    }

    /// Tenants and works held in memory.
    #[cfg(test)]
    pub(super) fn holds(&self) -> usize {
        self.tenants.len() + self.unspent.len()
    }

    /// Drops what no longer changes a verdict. Called once a work, so that memory follows those that still go on.
    fn forget(&mut self, now_ms: u64) {
        self.tenants.retain(|_, usage| usage.until_ms > now_ms);
        self.unspent.retain(|_, pieces| pieces.values().any(|until_ms| *until_ms > now_ms));
    }
}

/// Answers asks until all senders are gone. Each takes microseconds, so one at a time.
pub async fn serve(mut quota: MemoryQuota, mut asks: mpsc::Receiver<Ask>) {
    while let Some(ask) = asks.recv().await {
        match ask {
            Ask::Charge { charge, reply } => {
                // A clock before 1970 is one that went back: nothing refills.
                let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
                let verdict = quota.charge(&charge, now_ms);
                // The asker may have gone. The charge stands; whoever takes the chunk next hears `AlreadyCharged`.
                drop(reply.send(Ok(verdict)));
            }
            Ask::Spent(work) => quota.spent(&work),
        }
    }
}

/// A bucket's units for tokens.
fn units(tokens: u64) -> i128 {
    i128::from(tokens) * i128::from(UNITS_PER_TOKEN)
}

/// Whole milliseconds until `missing` units have come in, at `rate` units a millisecond.
fn millis(missing: i128, rate: i128) -> u64 {
    let missing = missing.max(0);
    u64::try_from((missing + rate - 1) / rate).unwrap_or(u64::MAX)
}
