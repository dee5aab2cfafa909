//! Who may have how many connections at once.
//!
//! One address has a bound of its own. Where all places are taken, a newcomer gets one of the address that has the most,
//! as long as that one has more than it would: so whoever comes with a few addresses, each full, takes the places of
//! nobody else. What is cut then is that address's youngest connection, for the old ones may be long downloads.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::network;

/// The places of one listener.
#[derive(Debug)]
pub(super) struct Places {
    all: usize,
    per_address: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    /// As many as there are connections: an address without one is not here.
    by_address: HashMap<IpAddr, Vec<Cut>>,
    count: usize,
}

/// What tells a connection that its place goes to another. It is its name here, too.
type Cut = Arc<Notify>;

/// A connection's place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    address: IpAddr,
    cut: Cut,
}

impl Places {
    pub(super) fn new(all: u32, per_address: u32) -> Arc<Self> {
        Arc::new(Self { all: all as usize, per_address: per_address as usize, taken: Mutex::default() })
    }

    /// A place for a connection from `address`, if there is one for it.
    pub(super) fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let address = network(address);
        let mut taken = self.taken();
        let own = taken.by_address.get(&address).map_or(0, Vec::len);
        if own >= self.per_address {
            return None;
        }
        if taken.count >= self.all {
            let most = taken.by_address.iter().max_by_key(|(_, held)| held.len());
            // To give one up it must have more than the newcomer has with it.
            let most = most.filter(|(_, held)| held.len() > own + 1).map(|(address, _)| *address)?;
            let youngest = taken.by_address.get_mut(&most).and_then(Vec::pop)?;
            youngest.notify_one();
            taken.count -= 1;
        }
        let cut = Cut::default();
        taken.count += 1;
        taken.by_address.entry(address).or_default().push(Arc::clone(&cut));
        Some(Place { places: Arc::clone(self), address, cut })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Resolves when another needs the place more.
    pub(super) async fn cut(&self) {
        self.cut.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        let Some(held) = taken.by_address.get_mut(&self.address) else { return };
        let before = held.len();
        held.retain(|cut| !Arc::ptr_eq(cut, &self.cut));
        let (gone, none) = (before - held.len(), held.is_empty());
        taken.count -= gone;
        if none {
            taken.by_address.remove(&self.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn an_address_has_its_bound_and_gives_back() {
        let places = Places::new(10, 2);
        let (one, two) = (places.take(address(1)), places.take(address(1)));
        assert!(one.is_some() && two.is_some());
        assert!(places.take(address(1)).is_none());
        assert!(places.take(address(2)).is_some(), "another address");
        drop(one);
        assert!(places.take(address(1)).is_some());
        drop(two);
        assert!(places.taken().by_address.is_empty() && places.taken().count == 0, "nothing is left behind");
        let subscriber = |host: u16| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, host]);
        let held = [places.take(subscriber(1)), places.take(subscriber(2))];
        assert!(places.take(subscriber(3)).is_none(), "a /64 is one address");
        drop(held);
    }

    #[tokio::test]
    async fn where_all_are_taken_whoever_has_the_most_gives_one_up() {
        let places = Places::new(8, 4);
        let mut crowd: Vec<Place> = (0..8).map(|n| places.take(address(n % 2)).expect("a place")).collect();
        let mut honest = Vec::new();
        // Two addresses are full. Others get places until all have as many.
        for n in 10..14 {
            honest.push(places.take(address(n)).expect("a place of the crowd's"));
        }
        assert_eq!(places.taken().count, 8);
        let mut cut = 0;
        for place in &crowd {
            cut += usize::from(tokio::time::timeout(std::time::Duration::ZERO, place.cut()).await.is_ok());
        }
        assert_eq!(cut, 4);
        for place in &honest {
            assert!(tokio::time::timeout(std::time::Duration::ZERO, place.cut()).await.is_err(), "they had one each");
        }
        assert!(places.take(address(0)).is_none(), "nobody has more than it would");
        crowd.clear();
        assert_eq!(places.taken().count, 4, "those that were cut were given up before");
    }
}
