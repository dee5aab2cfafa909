//! Failed logins, limited per address and per API key.
//!
//! Nobody guesses 256 random bits; what a flood of guesses costs is the database's time and the log's room. Each address
//! and each key id has so many failures at once and so many more a minute; beyond them the answer is 429 without a look
//! at the database.
//!
//! A flood must not lock out who shares its address, or whose key's id it names, which is no secret. So a key that has worked
//! is known by a digest of its whole: shown again, from wherever, it does not wait. A flood costs others this much: where
//! its address is theirs, or it names their key, a key that has not worked since this program started waits until the
//! flood ends. And it costs us a SHA-256 or two a guess that names such a key.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use super::network;
use crate::api_key::ApiKey;

/// Entries of each kind. Where there are more, the ones longest without a failure go first, and the keys longest without a login.
const ENTRIES_MAX: usize = 10_000;
const MINUTE: Duration = Duration::from_secs(60);

/// The counters.
#[derive(Debug)]
pub struct FailedLogins {
    per_minute: u32,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    addresses: HashMap<IpAddr, Bucket>,
    keys: HashMap<String, Bucket>,
    /// Keys that have worked, by their ids.
    established: HashMap<String, Established>,
}

/// The digest of a key that has worked, and when it last did. Of 256 random bits a digest gives nothing away.
#[derive(Debug, Clone, Copy)]
struct Established {
    print: [u8; 32],
    at: Instant,
}

/// Failures that have not been forgotten yet: `per_minute` of them are, each minute.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    failures: f64,
    at: Instant,
}

impl Counts {
    /// Whether this key, all of it, has worked.
    fn knows(&self, key: &ApiKey) -> bool {
        self.established.get(key.id()).is_some_and(|known| known.print == print(key))
    }
}

fn print(key: &ApiKey) -> [u8; 32] {
    Sha256::digest(key.expose()).into()
}

impl FailedLogins {
    /// `per_minute` failures a minute, and as many at once.
    pub fn new(per_minute: u32) -> Self {
        Self { per_minute, counts: Mutex::default() }
    }

    /// Seconds to wait before `key`, or something that is no key, may be tried from this address; `None` for none.
    pub fn wait_s(&self, address: IpAddr, key: Option<&ApiKey>, now: Instant) -> Option<u64> {
        let counts = self.counts();
        // Nobody but who has the key can show what is known: there is no secret to find out by the time this takes.
        if key.is_some_and(|key| counts.knows(key)) {
            return None;
        }
        let of_address = counts.addresses.get(&network(address)).map_or(0, |bucket| self.wait_of(bucket, now));
        let of_key = key.and_then(|key| counts.keys.get(key.id())).map_or(0, |bucket| self.wait_of(bucket, now));
        Some(of_address.max(of_key)).filter(|&wait_s| wait_s > 0)
    }

    /// Counts a failure. A key that has worked and does no longer, for it was revoked, is one like any other from now on.
    pub fn failed(&self, address: IpAddr, key: Option<&ApiKey>, now: Instant) {
        let mut counts = self.counts();
        self.count(&mut counts.addresses, network(address), now);
        if let Some(key) = key {
            self.count(&mut counts.keys, key.id().to_owned(), now);
            if counts.knows(key) {
                counts.established.remove(key.id());
            }
        }
    }

    /// Remembers that a key worked. It forgives nobody: one good key must not buy an address more guesses.
    pub fn worked(&self, key: &ApiKey, now: Instant) {
        let mut counts = self.counts();
        let established = &mut counts.established;
        if established.len() >= ENTRIES_MAX && !established.contains_key(key.id()) {
            let oldest = established.iter().min_by_key(|(_, known)| known.at).map(|(id, _)| id.clone());
            oldest.map(|id| established.remove(&id));
        }
        established.insert(key.id().to_owned(), Established { print: print(key), at: now });
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count<K: Hash + Eq + Clone>(&self, buckets: &mut HashMap<K, Bucket>, key: K, now: Instant) {
        if buckets.len() >= ENTRIES_MAX && !buckets.contains_key(&key) {
            // Forgotten by now, or else the longest without a failure.
            buckets.retain(|_, bucket| self.left(bucket, now) > 0.0);
            if buckets.len() >= ENTRIES_MAX {
                let oldest = buckets.iter().min_by_key(|(_, bucket)| bucket.at).map(|(key, _)| key.clone());
                oldest.map(|key| buckets.remove(&key));
            }
        }
        let bucket = buckets.entry(key).or_insert(Bucket { failures: 0.0, at: now });
        *bucket = Bucket { failures: self.left(bucket, now) + 1.0, at: now };
    }

    /// Failures of a bucket that still count.
    fn left(&self, bucket: &Bucket, now: Instant) -> f64 {
        let forgotten = now.saturating_duration_since(bucket.at).as_secs_f64() / MINUTE.as_secs_f64();
        (bucket.failures - forgotten * f64::from(self.per_minute)).max(0.0)
    }

    fn wait_of(&self, bucket: &Bucket, now: Instant) -> u64 {
        let over = self.left(bucket, now) - f64::from(self.per_minute) + 1.0;
        if over <= 0.0 { 0 } else { (over / f64::from(self.per_minute) * MINUTE.as_secs_f64()).ceil() as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn key() -> ApiKey {
        ApiKey::generate().expect("random source")
    }

    /// Another secret under the same id.
    fn guess(key: &ApiKey) -> ApiKey {
        ApiKey::with_id(key.id()).expect("random source")
    }

    #[test]
    fn an_address_waits_after_its_failures_and_no_other_does() {
        let (logins, now, new) = (FailedLogins::new(10), Instant::now(), key());
        for number in 0..10 {
            assert_eq!(logins.wait_s(HERE, Some(&new), now), None, "{number}");
            logins.failed(HERE, Some(&key()), now);
        }
        assert_eq!(logins.wait_s(HERE, Some(&new), now), Some(6), "a tenth of a minute for one more");
        assert_eq!(logins.wait_s(HERE, None, now), Some(6));
        assert_eq!(logins.wait_s(THERE, Some(&new), now), None);
        assert_eq!(logins.wait_s(HERE, Some(&new), now + Duration::from_secs(6)), None);
        logins.failed(HERE, None, now + Duration::from_secs(6));
        assert!(logins.wait_s(HERE, Some(&new), now + Duration::from_secs(6)).is_some());
        assert_eq!(logins.wait_s(HERE, Some(&new), now + Duration::from_secs(90)), None);
    }

    #[test]
    fn a_key_that_has_worked_goes_on_in_a_flood_and_no_guess_of_it_does() {
        let (logins, now, good) = (FailedLogins::new(10), Instant::now(), key());
        logins.worked(&good, now);
        for number in 0..10_u8 {
            logins.failed(HERE, Some(&guess(&good)), now);
            logins.failed(IpAddr::from([198, 51, 100, number]), Some(&guess(&good)), now);
        }
        for address in [HERE, THERE] {
            assert_eq!(logins.wait_s(address, Some(&good), now), None, "its owner goes on, from wherever");
            assert!(logins.wait_s(address, Some(&guess(&good)), now).is_some(), "its id is not enough");
        }
        assert!(logins.wait_s(HERE, Some(&key()), now).is_some(), "one that is new waits where the flood comes from");
        assert_eq!(logins.wait_s(THERE, Some(&key()), now), None);
        // Revoked, it is refused once, and is a guess from then on.
        logins.failed(THERE, Some(&good), now);
        assert!(logins.wait_s(HERE, Some(&good), now).is_some());
    }

    #[test]
    fn memory_is_bounded_and_one_subscriber_is_one_address() {
        let (logins, now) = (FailedLogins::new(1), Instant::now());
        for number in 0..(ENTRIES_MAX as u32 + 100) {
            let key = key();
            logins.failed(IpAddr::from(number.to_be_bytes()), Some(&key), now);
            logins.worked(&key, now + Duration::from_millis(number.into()));
        }
        let last = key();
        logins.worked(&last, now + MINUTE);
        let counts = logins.counts();
        assert!(counts.addresses.len() <= ENTRIES_MAX && counts.keys.len() <= ENTRIES_MAX);
        assert!(counts.established.len() == ENTRIES_MAX && counts.established.contains_key(last.id()));
        drop(counts);
        let of = |text: &str| network(text.parse().expect("an address"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), HERE);
    }
}
