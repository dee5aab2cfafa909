#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod faults;
mod memory;
mod redis;
mod same;
mod server;

use super::{Charge, Limits, Work};

/// A charge to the tenant "acme" for the first chunks of a job.
fn charge(chunk: u32, tokens: u64, limits: Limits) -> Charge {
    Charge {
        work: Work { tenant: "acme".to_owned(), of: "job".to_owned(), piece: chunk.to_string() },
        tokens,
        limits,
        usage: "job key".to_owned(),
        keep_s: 3_600,
    }
}

/// Limits in tokens a minute, burst and tokens a day.
fn limits(tokens_per_minute: u64, tokens_burst: u64, tokens_per_day: u64) -> Limits {
    Limits { tokens_per_minute, tokens_burst, tokens_per_day }
}
