//! How many requests of one tenant are worked on at once, so that one with many machines leaves places to others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::ApiError;
use crate::claims::TenantId;

/// A quarter of all places. Each request takes milliseconds, so a tenant is answered thousands of times a second by these; and what is
/// written, one after the other, makes others wait for so many writes of each tenant at most.
const AT_ONCE_MAX: usize = 64;

/// The tenants that have requests under way.
#[derive(Debug, Default)]
pub(super) struct Tenants(Arc<Mutex<HashMap<TenantId, usize>>>);

/// A tenant's place, until it is dropped.
#[derive(Debug)]
pub(super) struct TenantPlace {
    tenants: Arc<Mutex<HashMap<TenantId, usize>>>,
    tenant: TenantId,
}

impl Tenants {
    pub(super) fn take(&self, tenant: &TenantId) -> Result<TenantPlace, ApiError> {
        let mut tenants = lock(&self.0);
        let taken = tenants.entry(tenant.clone()).or_default();
        if *taken >= AT_ONCE_MAX {
            return Err(ApiError::slow_down("this tenant has as many requests under way as it may; ask again", 1));
        }
        *taken += 1;
        Ok(TenantPlace { tenants: Arc::clone(&self.0), tenant: tenant.clone() })
    }
}

impl Drop for TenantPlace {
    fn drop(&mut self) {
        let mut tenants = lock(&self.tenants);
        if let Some(taken) = tenants.get_mut(&self.tenant) {
            *taken -= 1;
            if *taken == 0 {
                tenants.remove(&self.tenant);
            }
        }
    }
}

fn lock(tenants: &Mutex<HashMap<TenantId, usize>>) -> MutexGuard<'_, HashMap<TenantId, usize>> {
    tenants.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_tenant_leaves_places_and_gives_back() {
        let (tenants, name) = (Tenants::default(), |name: &str| name.parse::<TenantId>().expect("a name"));
        let taken: Vec<_> = (0..AT_ONCE_MAX).map(|_| tenants.take(&name("acme")).expect("a place")).collect();
        assert!(tenants.take(&name("acme")).is_err());
        assert!(tenants.take(&name("globex")).is_ok());
        drop(taken);
        assert!(lock(&tenants.0).is_empty());
    }
}
