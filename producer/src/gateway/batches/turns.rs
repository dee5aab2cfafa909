//! Whose batch is prepared next: a few at once, and one of each tenant, so that who has a thousand waits behind itself and not
//! others behind it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use vecmill_signer::claims::TenantId;

/// Batches of a tenant that wait at a gateway: each is some KiB. The next ones wait on S3.
pub(super) const WAITING_MAX: usize = 100;

/// The turns of all tenants.
#[derive(Debug)]
pub(in super::super) struct Turns {
    at_once: Arc<Semaphore>,
    /// Those that have batches here.
    tenants: Mutex<HashMap<TenantId, Arc<Tenant>>>,
}

#[derive(Debug)]
struct Tenant {
    /// The ids of those that are here.
    waiting: Mutex<HashSet<String>>,
    turn: Arc<Semaphore>,
}

/// A batch's place, from when it is taken on until it is done with.
#[derive(Debug)]
pub(super) struct Place {
    tenant: Arc<Tenant>,
    id: String,
}

impl Place {
    /// The batch.
    pub(super) fn id(&self) -> &str {
        &self.id
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.tenant.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

impl Turns {
    /// As many at once as `at_once`.
    pub(in super::super) fn new(at_once: usize) -> Self {
        Self { at_once: Arc::new(Semaphore::new(at_once)), tenants: Mutex::default() }
    }

    /// A place for a batch of the tenant, if it has none yet and the tenant not too many here.
    pub(super) fn place(&self, tenant: &TenantId, id: &str) -> Option<Place> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever has none here any more is nobody's but the map's.
        tenants.retain(|_, tenant| Arc::strong_count(tenant) > 1);
        let of = tenants
            .entry(tenant.clone())
            .or_insert_with(|| Arc::new(Tenant { waiting: Mutex::default(), turn: Arc::new(Semaphore::new(1)) }));
        let mut waiting = of.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = waiting.len() < WAITING_MAX && waiting.insert(id.to_owned());
        taken.then(|| Place { tenant: Arc::clone(of), id: id.to_owned() })
    }

    /// Waits until it is the batch's turn; it is for as long as what is given is held.
    pub(super) async fn turn(&self, place: &Place) -> Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        // First among its tenant's, then among all that are first: those are served as they come.
        let first = Arc::clone(&place.tenant.turn).acquire_owned().await.ok()?;
        let now = Arc::clone(&self.at_once).acquire_owned().await.ok()?;
        Some((first, now))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_tenant_with_many_waits_behind_itself() {
        let turns = Turns::new(2);
        let [many, few]: [TenantId; 2] = ["many", "few"].map(|name| name.parse().expect("a tenant"));
        let places: Vec<_> = (0..WAITING_MAX).map(|id| turns.place(&many, &id.to_string()).expect("room")).collect();
        assert!(turns.place(&many, "one more").is_none(), "enough");
        let held = turns.turn(&places[0]).now_or_never().expect("it is the first").expect("open");
        assert!(turns.turn(&places[1]).now_or_never().is_none(), "one at a time");
        let place = turns.place(&few, "a").expect("room");
        assert!(turns.place(&few, "a").is_none(), "it is here");
        assert!(turns.turn(&place).now_or_never().is_some(), "another tenant goes on");
        drop(held);
        assert!(turns.turn(&places[1]).now_or_never().is_some());
        drop((places, place));
        turns.place(&few, "a").expect("room");
        assert_eq!(turns.tenants.lock().expect("no panic").len(), 1, "who has none is forgotten");
    }
}
