//! Failed logins, limited per address and per API key.
//!
//! Nobody guesses 256 random bits; what a flood of guesses costs is the database's time and the log's room. Each address
//! and each key id has so many failures at once and so many more a minute; beyond them the answer is 429 without a look
//! at the database. A key that somebody else fails with still works from the address that it last worked from: knowing
//! its id, which is no secret, must not be enough to lock its owner out.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Entries of each kind. Where there are more, the ones longest without a failure go first.
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
    /// Where each key last worked from.
    homes: HashMap<String, IpAddr>,
}

/// Failures that have not been forgotten yet: `per_minute` of them are, each minute.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    failures: f64,
    at: Instant,
}

impl FailedLogins {
    /// `per_minute` failures a minute, and as many at once.
    pub fn new(per_minute: u32) -> Self {
        Self { per_minute, counts: Mutex::default() }
    }

    /// Seconds to wait before this address may try, or may try this key; `None` for none.
    pub fn wait_s(&self, address: IpAddr, key_id: &str, now: Instant) -> Option<u64> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let address = network(address);
        let at_home = counts.homes.get(key_id) == Some(&address);
        let of_address = counts.addresses.get(&address).map_or(0, |bucket| self.wait_of(bucket, now));
        let of_key = counts.keys.get(key_id).filter(|_| !at_home).map_or(0, |bucket| self.wait_of(bucket, now));
        Some(of_address.max(of_key)).filter(|&wait_s| wait_s > 0)
    }

    /// Counts a failure.
    pub fn failed(&self, address: IpAddr, key_id: &str, now: Instant) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        self.count(&mut counts.addresses, network(address), now);
        if !key_id.is_empty() {
            self.count(&mut counts.keys, key_id.to_owned(), now);
        }
    }

    /// Remembers where a key worked from. It forgives nobody: one good key must not buy an address more guesses.
    pub fn worked(&self, address: IpAddr, key_id: &str) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        // Only genuine keys come here, so what is forgotten costs a key's owner a wait at worst.
        if counts.homes.len() >= ENTRIES_MAX && !counts.homes.contains_key(key_id) {
            counts.homes.clear();
        }
        counts.homes.insert(key_id.to_owned(), network(address));
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

/// The address as one that somebody can have only one of: of IPv6, the /64 that a subscriber gets.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) & !u128::from(u64::MAX)).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    #[test]
    fn an_address_waits_after_its_failures_and_no_other_does() {
        let (logins, now) = (FailedLogins::new(10), Instant::now());
        for number in 0..10 {
            assert_eq!(logins.wait_s(HERE, "k", now), None, "{number}");
            logins.failed(HERE, &format!("k{number}"), now);
        }
        assert_eq!(logins.wait_s(HERE, "k", now), Some(6), "a tenth of a minute for one more");
        assert_eq!(logins.wait_s(THERE, "k", now), None);
        assert_eq!(logins.wait_s(HERE, "k", now + Duration::from_secs(6)), None);
        logins.failed(HERE, "k", now + Duration::from_secs(6));
        assert!(logins.wait_s(HERE, "k", now + Duration::from_secs(6)).is_some());
        assert_eq!(logins.wait_s(HERE, "k", now + Duration::from_secs(90)), None);
    }

    #[test]
    fn a_key_waits_everywhere_but_at_home() {
        let (logins, now) = (FailedLogins::new(10), Instant::now());
        for number in 0..10_u8 {
            logins.failed(IpAddr::from([198, 51, 100, number]), "k", now);
        }
        assert!(logins.wait_s(HERE, "k", now).is_some());
        assert_eq!(logins.wait_s(HERE, "other", now), None);
        logins.worked(HERE, "k");
        assert_eq!(logins.wait_s(HERE, "k", now), None, "its owner goes on");
        assert!(logins.wait_s(THERE, "k", now).is_some());
    }

    #[test]
    fn memory_is_bounded_and_one_subscriber_is_one_address() {
        let (logins, now) = (FailedLogins::new(1), Instant::now());
        for number in 0..(ENTRIES_MAX as u32 + 100) {
            logins.failed(IpAddr::from(number.to_be_bytes()), &format!("k{number}"), now);
        }
        let counts = logins.counts.lock().expect("not poisoned");
        assert!(counts.addresses.len() <= ENTRIES_MAX && counts.keys.len() <= ENTRIES_MAX);
        drop(counts);
        let of = |text: &str| network(text.parse().expect("an address"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), HERE);
    }
}
