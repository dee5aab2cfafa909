//! Wall-clock time as tokens carry it.

/// Now, in whole seconds since the Unix epoch. A clock before 1970 reads as 0, at which every token is not yet valid.
pub(crate) fn unix_now() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0)
}
