//! A tenant's quota: so many tokens a minute with a burst, and so many a day, charged once each time that
//! something is computed.
//!
//! Rules, the same in Redis ([`RedisQuota`]) and in memory ([`memory::MemoryQuota`]):
//! - **Minute.** A bucket of `tokens_burst` tokens refills at `tokens_per_minute`. A chunk is admitted when the bucket
//!   holds it. A chunk larger than the whole bucket would wait for ever, so it is admitted when the bucket is full and
//!   leaves it in debt: the tenant's rate over time stays the same.
//! - **Day.** A count per UTC day, with the same rule for a chunk larger than a day: it is admitted on a fresh day, and
//!   is then the day's last.
//! - A limit of zero is closed, not unlimited.
//! - A charge writes all or nothing. A refused one writes nothing, so asking again costs nothing.
//! - A charge is remembered by what it is for, to the digest of what is computed, until that is **spent**: computed, and the
//!   result recorded. Until then a retry answers [`Verdict::AlreadyCharged`], so that what a worker dies over is not paid for
//!   twice; after it the same is charged again, for then it is computed again. A charge that is never spent is forgotten after
//!   `keep_s`. Nothing of the name that it goes by is worth choosing: other work under an old name is other work.

pub mod memory;
mod redis;
#[cfg(test)]
mod tests;

pub use redis::{RedisQuota, SetupError, serve};
use tokio::sync::oneshot;

/// Tokens a limit, or one charge, can name: larger numbers count as this one.
///
/// The bucket is kept in 1/60,000 token, so that a millisecond refills a whole number of units. Lua's numbers hold
/// integers up to 2^53; a full bucket and the deepest debt together (2 * 7e10 * 60,000 = 8.4e15) stay below that. At
/// this rate 10,000 of the fastest GPUs would not reach their limit.
const TOKENS_MAX: u64 = 70_000_000_000;

/// Units of the bucket in a token: a rate in tokens a minute is the same number in units a millisecond.
const UNITS_PER_TOKEN: u64 = 60_000;

/// Milliseconds in a UTC day (Unix time has no leap seconds).
const DAY_MS: u64 = 86_400_000;

/// The longest a charge is remembered: a year, far beyond the longest completion window; Redis refuses absurd expiries.
const KEEP_S_MAX: u64 = 366 * 86_400;

/// How long a charge is remembered, in milliseconds. At least a second: zero would forget it at once.
fn keep_ms(keep_s: u64) -> u64 {
    keep_s.clamp(1, KEEP_S_MAX) * 1_000
}

/// What a tenant may use. Zero in any field means nothing at all.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Sustained rate, in tokens a minute.
    pub tokens_per_minute: u64,
    /// Most tokens that a tenant who was idle can use at once.
    pub tokens_burst: u64,
    /// Most tokens in a UTC day.
    pub tokens_per_day: u64,
}

impl From<vecmill_signer::claims::Limits> for Limits {
    fn from(limits: vecmill_signer::claims::Limits) -> Self {
        Self {
            tokens_per_minute: limits.tokens_per_minute,
            tokens_burst: limits.tokens_burst,
            tokens_per_day: limits.tokens_per_day,
        }
    }
}

impl Limits {
    /// The same limits, each within what the bucket's arithmetic holds exactly.
    fn clamped(self) -> Self {
        Self {
            tokens_per_minute: self.tokens_per_minute.min(TOKENS_MAX),
            tokens_burst: self.tokens_burst.min(TOKENS_MAX),
            tokens_per_day: self.tokens_per_day.min(TOKENS_MAX),
        }
    }
}

/// What is paid for: one piece of some work, by what it is and not only by what it is called.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Work {
    /// The tenant, from verified claims.
    pub tenant: String,
    /// What it is part of: a run of a job.
    pub of: String,
    /// Which part: a chunk's number and digest.
    pub piece: String,
}

/// Exact tokens, to be charged to a tenant.
#[derive(Clone, Debug)]
pub struct Charge {
    /// What for.
    pub work: Work,
    /// The exact tokens, as the model counts them.
    pub tokens: u64,
    /// The tenant's limits now.
    pub limits: Limits,
    /// Under what the tokens are counted for the tenant to see: [`vecmill_producer::contract::usage_field`].
    pub usage: String,
    /// Seconds for which the charge must be remembered, unless it is spent: until the grant expires.
    pub keep_s: u64,
}

/// The answer to a [`Charge`]. Being over quota is an outcome, not an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The tokens are charged: compute the chunk.
    Charged,
    /// This was charged before and not spent yet, nothing is charged now: compute it.
    AlreadyCharged,
    /// Nothing is charged: hold the chunk and ask again.
    Later {
        /// Milliseconds until this charge would be admitted if the tenant charged nothing else meanwhile.
        wait_ms: u64,
        /// The limit that asks for the wait (the longer one, when both do).
        over: Over,
    },
}

/// The limit that a charge is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// `tokens_per_minute` and `tokens_burst`.
    Minute,
    /// `tokens_per_day`.
    Day,
}

/// Why there is no verdict.
#[derive(thiserror::Error, Debug)]
pub enum QuotaError {
    /// Redis can't be asked. The worker pauses: a missing quota store means no, never yes. The charge may have been
    /// written; asking again is harmless.
    #[error("the quota store can't be asked")]
    Unavailable(#[source] Cause),
}

/// What stood between the worker and Redis.
#[derive(thiserror::Error, Debug)]
pub enum Cause {
    /// No answer.
    #[error(transparent)]
    Redis(#[from] vecmill_producer::redis::AskError),
    /// The answer is not one of the script's.
    #[error("an answer from Redis that the quota script never gives")]
    Answer,
}

/// What is asked of whoever keeps the quota.
///
/// This is the seam between the pipeline and the store: the pipeline holds a channel of asks, and does not know whether
/// [`serve`] or [`memory::serve`] stands at its other end.
#[derive(Debug)]
pub enum Ask {
    /// To charge.
    Charge {
        /// What.
        charge: Charge,
        /// Where the verdict goes.
        reply: oneshot::Sender<Result<Verdict, QuotaError>>,
    },
    /// To forget a charge whose work is done. Nobody waits for it: where it is lost, the same may be computed once more for
    /// nothing.
    Spent(Work),
}
