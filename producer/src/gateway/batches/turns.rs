//! Whose batch is prepared next: a few at once, and one of each tenant, so that who has a thousand waits behind itself and not
//! others behind it. Large files have half of the places at most, so that small ones are not behind them either.
//!
//! What it promises: a preparation takes [`long_enough`] at most, which a tenant pays for with the size of its file. So with four
//! places and tenants that do their worst, a small batch is begun when those before it have had their minutes, two at a time.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use vecmill_signer::claims::TenantId;

/// Batches of a tenant that wait at a gateway: each is some KiB. The next ones wait on S3.
pub(super) const WAITING_MAX: usize = 100;
/// Files from this size on are large: what is smaller is prepared in a minute or so.
const LARGE_BYTES: u64 = 256 << 20;
/// What any preparation may take, on a machine that is busy with others.
const LONG_ENOUGH: Duration = Duration::from_secs(180);
/// Beyond that, bytes of the file a second: a tenth of what a core hashes, reads and compresses.
const BYTES_PER_S: u64 = 4 << 20;
/// Longest wait at shutdown for preparations to put down that they were not to blame.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// How long a file of so many bytes may be prepared.
pub(super) fn long_enough(bytes: u64) -> Duration {
    LONG_ENOUGH + Duration::from_secs(bytes / BYTES_PER_S)
}

/// The turns of all tenants.
#[derive(Debug)]
pub(in super::super) struct Turns {
    at_once: Arc<Semaphore>,
    large: Arc<Semaphore>,
    /// One at a time of those that gateways have died over, so that of two only one can be to blame the next time.
    suspects: Arc<Semaphore>,
    /// Those that have batches here.
    tenants: Mutex<HashMap<TenantId, Arc<Tenant>>>,
    /// Whether the gateway shuts down. Who prepares holds a receiver.
    closing: watch::Sender<bool>,
}

#[derive(Debug)]
struct Tenant {
    /// The ids of those that are here.
    waiting: Mutex<HashSet<String>>,
    turn: Arc<Semaphore>,
}

/// A batch's turn, for as long as it is held.
#[derive(Debug)]
pub(super) struct Turn {
    _now: OwnedSemaphorePermit,
    _large: Option<OwnedSemaphorePermit>,
    _suspect: Option<OwnedSemaphorePermit>,
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
        Self {
            at_once: Arc::new(Semaphore::new(at_once)),
            large: Arc::new(Semaphore::new((at_once / 2).max(1))),
            suspects: Arc::new(Semaphore::new(1)),
            tenants: Mutex::default(),
            closing: watch::channel(false).0,
        }
    }

    /// Ends what is prepared, and waits until it has put down that nobody died of it.
    pub(in super::super) async fn close(&self) {
        self.closing.send_replace(true);
        _ = tokio::time::timeout(CLOSE_MAX, self.closing.closed()).await;
    }

    /// Tells of the shutdown; what it is asked of is waited for.
    pub(super) fn closing(&self) -> watch::Receiver<bool> {
        self.closing.subscribe()
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

    /// Waits until the batch is the first of its tenant's.
    pub(super) async fn first(&self, place: &Place) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&place.tenant.turn).acquire_owned().await.ok()
    }

    /// Waits for the turn of one that is its tenant's first: those are served as they come.
    pub(super) async fn turn(&self, bytes: u64, suspect: bool) -> Option<Turn> {
        let of = async |places: &Arc<Semaphore>, wanted: bool| match wanted {
            true => Arc::clone(places).acquire_owned().await.ok().map(Some),
            false => Some(None),
        };
        // The place last: who waits for the others holds none.
        let suspect = of(&self.suspects, suspect).await?;
        let large = of(&self.large, bytes >= LARGE_BYTES).await?;
        let now = Arc::clone(&self.at_once).acquire_owned().await.ok()?;
        Some(Turn { _now: now, _large: large, _suspect: suspect })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_tenant_with_many_waits_behind_itself() {
        let turns = Turns::new(2);
        let [many, few]: [TenantId; 2] = ["many", "few"].map(|name| name.parse().expect("a tenant"));
        let places: Vec<_> = (0..WAITING_MAX).map(|id| turns.place(&many, &id.to_string()).expect("room")).collect();
        assert!(turns.place(&many, "one more").is_none(), "enough");
        let held = turns.first(&places[0]).now_or_never().expect("it is the first").expect("open");
        assert!(turns.first(&places[1]).now_or_never().is_none(), "one at a time");
        let place = turns.place(&few, "a").expect("room");
        assert!(turns.place(&few, "a").is_none(), "it is here");
        assert!(turns.first(&place).now_or_never().is_some(), "another tenant goes on");
        drop(held);
        assert!(turns.first(&places[1]).now_or_never().is_some());
        drop((places, place));
        turns.place(&few, "a").expect("room");
        assert_eq!(turns.tenants.lock().expect("no panic").len(), 1, "who has none is forgotten");
    }

    #[test]
    fn large_files_leave_places_and_suspects_come_one_by_one() {
        let turns = Turns::new(4);
        let turn = |bytes, suspect| turns.turn(bytes, suspect).now_or_never().flatten();
        let large = [turn(LARGE_BYTES, false), turn(LARGE_BYTES, false)];
        assert!(large.iter().all(Option::is_some) && turn(LARGE_BYTES, false).is_none(), "half of the places");
        assert!(turn(1, false).is_some(), "a small one finds one");
        drop(large);
        let suspect = turn(1, true).expect("a place");
        assert!(turn(1, true).is_none(), "one suspect at a time");
        drop(suspect);
        assert!(turn(1, true).is_some());
    }
}
