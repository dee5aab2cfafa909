//! Ids of files and batches: made of their time, so that S3, which lists in the order of keys, lists the newest first.

use std::time::{SystemTime, UNIX_EPOCH};

use vecmill_signer::claims::Digest;
use vecmill_signer::edge;

/// base32hex in lower case: its characters are in the order of their values.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
/// 48 bits of time, then 80 at random, five to a character.
const LEN: usize = 26;
const MS_MAX: u64 = (1 << 48) - 1;

/// A new id, which nobody can guess.
pub(super) fn new(prefix: &str) -> String {
    let mut random = [0; 10];
    // The one source of randomness that TLS has too; without it there would be no connection.
    let _ = edge::provider().secure_random.fill(&mut random);
    format!("{prefix}{}", coded(unix_ms(), random))
}

/// The id of what belongs to something else and came to be at `ms`: whoever makes it, it is the same.
pub(super) fn derived(prefix: &str, ms: u64, seed: &str) -> String {
    let mut random = [0; 10];
    random.copy_from_slice(&Digest::of(seed.as_bytes()).as_bytes()[..10]);
    format!("{prefix}{}", coded(ms, random))
}

/// Whether `id` is one that [`new`] or [`derived`] makes: only such a one becomes part of a key.
pub(super) fn is_good(prefix: &str, id: &str) -> bool {
    id.strip_prefix(prefix).is_some_and(|rest| rest.len() == LEN && rest.bytes().all(|byte| ALPHABET.contains(&byte)))
}

/// Milliseconds since 1970.
pub(super) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// Seconds since 1970, as OpenAI's objects have all times.
pub(super) fn unix_s() -> u64 {
    unix_ms() / 1000
}

fn coded(ms: u64, random: [u8; 10]) -> String {
    // Counted down, so that later is less.
    let time = MS_MAX - ms.min(MS_MAX);
    let bits = random.iter().fold(u128::from(time), |bits, byte| bits << 8 | u128::from(*byte));
    (0..LEN).rev().map(|place| char::from(ALPHABET[(bits >> (5 * place) & 31) as usize])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_ids_sort_first() {
        let ids = [1, 2, 1_000, 1_800_000_000_000].map(|ms| derived("x-", ms, "seed"));
        assert!(ids.is_sorted_by(|a, b| a > b), "{ids:?}");
        assert_ne!(derived("x-", 5, "a"), derived("x-", 5, "b"));
    }

    #[test]
    fn only_ids_are_ids() {
        assert!(is_good("file-", &new("file-")) && is_good("batch_", &new("batch_")));
        let good = new("file-");
        for bad in ["", "file-", "../../etc/passwd", &good[1..], &good.to_uppercase(), &format!("{good}0")] {
            assert!(!is_good("file-", bad), "{bad}");
        }
        assert!(!is_good("batch_", &good));
    }
}
