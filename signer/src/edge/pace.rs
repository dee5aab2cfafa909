//! Lines of the log that strangers can cause, at a bounded rate.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines: a person who reads along sees that it goes on, and a day of it is some megabytes.
const EVERY: Duration = Duration::from_secs(1);

/// One kind of line.
#[derive(Debug, Default)]
pub struct Pace(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    unsaid: u64,
}

impl Pace {
    /// Whether the line may be written now; with how many were not since the last.
    pub fn line(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some_and(|last| now.saturating_duration_since(last) < EVERY) {
            state.unsaid += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_line_a_second_with_its_count() {
        let (pace, now) = (Pace::default(), Instant::now());
        assert_eq!(pace.line(now), Some(0));
        assert_eq!(pace.line(now), None);
        assert_eq!(pace.line(now + EVERY / 2), None);
        assert_eq!(pace.line(now + EVERY), Some(2));
        assert_eq!(pace.line(now + EVERY * 5), Some(0));
    }
}
