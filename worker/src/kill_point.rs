//! Named places at which a test may have the process die as by `kill -9`.
//!
//! `VECMILL_TEST_KILL_POINT=after-part:2` kills it at the second passage, `before-embed@JOB` at the first by a chunk of
//! that job. A worker told so says so at start.

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, Ordering},
};

/// The environment variable that names a point.
pub const VARIABLE: &str = "VECMILL_TEST_KILL_POINT";

static WANTED: OnceLock<Option<(String, u32)>> = OnceLock::new();
static PASSED: AtomicU32 = AtomicU32::new(0);

/// The point that the environment names, and at which passage.
pub fn wanted() -> Option<&'static (String, u32)> {
    let read = || {
        let value = std::env::var(VARIABLE).ok()?;
        let (name, passage) = value.split_once(':').unwrap_or((&value, "1"));
        Some((name.to_owned(), passage.parse().ok()?))
    };
    WANTED.get_or_init(read).as_ref()
}

/// The same, for a place that a test may name for one job alone.
pub fn kill_point_of(name: &str, job: &str) {
    if wanted().is_some() {
        kill_point(name);
        kill_point(&format!("{name}@{job}"));
    }
}

/// Dies here, without unwinding or flushing, if a test asked for it.
pub fn kill_point(name: &str) {
    if let Some((wanted, passage)) = wanted()
        && wanted == name
        && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *passage
    {
        std::process::abort();
    }
}
