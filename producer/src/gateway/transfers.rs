//! Places for what takes longer than a request: uploads, downloads, watches. They are shared out by tenant, and paid for by
//! going on: who neither sends nor takes has its place taken away.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use vecmill_signer::claims::TenantId;

/// One tenant has this share of the places at most: seven others who do their worst leave the eighth its own.
const SHARE: usize = 8;
/// Bytes a second that a caller must send or take, over the time that it is waited for. A modem of the year 2000 is slower;
/// nobody who has a gigabyte to upload is.
const RATE_MIN: u64 = 16 << 10;
/// Time before that is asked for: a connection that stands still for a moment is not given up.
const GRACE: Duration = Duration::from_secs(30);

/// The places of all tenants.
#[derive(Debug)]
pub(super) struct Transfers {
    places: Arc<Semaphore>,
    each_max: usize,
    held: Arc<Mutex<HashMap<TenantId, usize>>>,
}

/// One place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    tenant: TenantId,
    held: Arc<Mutex<HashMap<TenantId, usize>>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.tenant) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.tenant);
            }
        }
    }
}

impl Transfers {
    pub(super) fn new(places: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(places)), each_max: (places / SHARE).max(1), held: Arc::default() }
    }

    /// A place, if there is one and the tenant has not its share already.
    pub(super) fn place(&self, tenant: &TenantId) -> Option<Place> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.get(tenant).copied().unwrap_or_default();
        let permit = Arc::clone(&self.places).try_acquire_owned().ok().filter(|_| count < self.each_max)?;
        held.insert(tenant.clone(), count + 1);
        Some(Place { _permit: permit, tenant: tenant.clone(), held: Arc::clone(&self.held) })
    }
}

/// How long a caller has been waited for, and what came of it.
#[derive(Debug, Default)]
pub(super) struct Pace {
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// `bytes` more after another wait; gives whether the place is still paid for.
    pub(super) fn goes_on(&mut self, waited: Duration, bytes: usize) -> bool {
        self.waited += waited;
        self.bytes += bytes as u64;
        let owed_s = self.waited.saturating_sub(GRACE).as_secs();
        self.bytes >= owed_s * RATE_MIN
    }
}

/// A body that holds its place until its end, and ends before it where the caller takes it too slowly. One that is not taken at
/// all is not asked for here, and cut off by the connection's own limit.
pub(super) fn paid<E>(pieces: impl Stream<Item = Result<Bytes, E>> + Send + 'static, place: Place) -> Body
where
    E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
{
    let state = (Box::pin(pieces), place, Pace::default(), None::<(Instant, usize)>);
    Body::from_stream(stream::unfold(Some(state), async |state| {
        let (mut pieces, place, mut pace, given) = state?;
        if let Some((at, bytes)) = given
            && !pace.goes_on(at.elapsed(), bytes)
        {
            return Some((Err("the reader takes less than 16 KiB a second".into()), None));
        }
        match pieces.next().await? {
            Ok(piece) => {
                let given = Some((Instant::now(), piece.len()));
                Some((Ok::<_, Box<dyn std::error::Error + Send + Sync>>(piece), Some((pieces, place, pace, given))))
            }
            Err(error) => Some((Err(error.into()), None)),
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_has_its_share_and_leaves_the_others_theirs() {
        let transfers = Transfers::new(64);
        let tenants: Vec<TenantId> = (0..8).map(|n| format!("t{n}").parse().expect("a tenant")).collect();
        let mut places: Vec<Place> = std::iter::from_fn(|| transfers.place(&tenants[0])).collect();
        assert_eq!(places.len(), 8);
        for tenant in &tenants[1..] {
            places.extend(std::iter::from_fn(|| transfers.place(tenant)));
        }
        assert_eq!(places.len(), 64);
        drop(places);
        assert!(transfers.place(&tenants[0]).is_some());
        assert!(transfers.held.lock().expect("no panic").is_empty(), "nobody is kept in mind");
        assert!(Transfers::new(1).place(&tenants[0]).is_some(), "one place is somebody's");
    }

    #[test]
    fn a_byte_now_and_then_does_not_pay() {
        let mut slow = Pace::default();
        let kept = (0..100).take_while(|_| slow.goes_on(Duration::from_secs(20), 1)).count();
        assert_eq!(kept, 1);
        let mut honest = Pace::default();
        assert!((0..1000).all(|_| honest.goes_on(Duration::from_secs(1), 20 << 10)));
    }
}
