//! What manifests may take of a program's memory that looks at many jobs for many tenants: one of half a million chunks has 80 MiB
//! as it is read and a quarter of that afterwards.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use vecmill_signer::claims::TenantId;

/// KiB for the manifests of all tenants.
const ALL_KIB: u32 = 512 << 10;
/// Of these, one tenant's: enough for the largest manifest there may be, and no more than a quarter.
const EACH_KIB: u32 = 128 << 10;
/// Longest wait for room: a manifest is read in a second or so.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// The room for manifests. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ManifestBudget(Arc<Budget>);

#[derive(Debug)]
struct Budget {
    all: Arc<Semaphore>,
    tenants: Mutex<HashMap<TenantId, Arc<Semaphore>>>,
}

/// Room that one manifest takes.
#[derive(Debug)]
pub(super) struct Room {
    all: OwnedSemaphorePermit,
    each: OwnedSemaphorePermit,
}

impl Default for ManifestBudget {
    fn default() -> Self {
        Self(Arc::new(Budget { all: Arc::new(Semaphore::new(ALL_KIB as usize)), tenants: Mutex::default() }))
    }
}

impl ManifestBudget {
    /// Room to read a manifest of so many bytes; `None` where there was none for too long.
    pub(super) async fn room(&self, tenant: &TenantId, bytes: u64) -> Option<Room> {
        let kib = u32::try_from((bytes + bytes / 4) >> 10).unwrap_or(u32::MAX).clamp(1, EACH_KIB);
        let own = {
            let mut tenants = self.0.tenants.lock().unwrap_or_else(PoisonError::into_inner);
            // Who has none here any more is nobody's but the map's.
            tenants.retain(|_, own| Arc::strong_count(own) > 1);
            Arc::clone(tenants.entry(tenant.clone()).or_insert_with(|| Arc::new(Semaphore::new(EACH_KIB as usize))))
        };
        let waiting = async {
            // First among its tenant's: who waits for its own holds nothing of the others'.
            let each = own.acquire_many_owned(kib).await.ok()?;
            let all = Arc::clone(&self.0.all).acquire_many_owned(kib).await.ok()?;
            Some(Room { all, each })
        };
        tokio::time::timeout(WAIT_MAX, waiting).await.ok().flatten()
    }
}

impl Room {
    /// It has been read: what is kept of it is a quarter.
    pub(super) fn read(&mut self) {
        for permit in [&mut self.all, &mut self.each] {
            let kept = permit.num_permits().div_ceil(5);
            drop(permit.split(permit.num_permits() - kept));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_tenant_waits_for_its_own_manifests_and_others_do_not() {
        let budget = ManifestBudget::default();
        let tenants: Vec<TenantId> = (0..6).map(|n| format!("t{n}").parse().expect("a tenant")).collect();
        let largest = 80 << 20;
        let mut first = budget.room(&tenants[0], largest).await.expect("room");
        assert!(budget.room(&tenants[0], largest).now_or_never().is_none(), "its second waits");
        let others = tenants[1..].iter().filter_map(|tenant| budget.room(tenant, largest).now_or_never().flatten());
        assert_eq!(others.count(), 5, "one after the other");
        first.read();
        assert!(budget.room(&tenants[0], largest).now_or_never().flatten().is_some(), "the first has been read");
    }
}
