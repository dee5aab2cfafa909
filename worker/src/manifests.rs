//! Manifests of the jobs at hand, verified against their grants, each read from S3 once.

use std::sync::{Arc, Mutex};

use tokio::sync::{OnceCell, Semaphore};
use vecmill_producer::{
    contract::{JobKeys, MANIFEST_BYTES_MAX, Manifest, ManifestError, RunId},
    store::{Store, StoreError},
};
use vecmill_signer::{
    claims::{Digest, JobId, TenantId},
    verify::VerifiedGrant,
};

/// Jobs whose manifests are kept. At 20 to 60 MiB for the largest, a worker that serves many tenants holds at most
/// two GiB of them; usual ones are a few KiB.
const JOBS_MAX: usize = 32;

/// Manifests that are read at once: a largest one takes 80 MiB while it is read, and half a second.
const READING_MAX: usize = 4;

/// Why a job's manifest can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestTrouble {
    /// S3 failed; it may pass.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is not there. S3 shows what was written at once and it is written before any message: it was deleted.
    #[error("the job's manifest is not on S3: it was deleted")]
    Missing,
    /// It is not the one that the grant vouches for.
    #[error(transparent)]
    Refused(#[from] ManifestError),
    /// It is for something else than the grant.
    #[error("the manifest's {0} is not the grant's")]
    Disagrees(&'static str),
}

type Identity = (TenantId, JobId, RunId, Digest);
type Cell = Arc<OnceCell<Arc<Manifest>>>;

/// A bounded cache; concurrent chunks of one job read its manifest once.
#[derive(Debug)]
pub struct Manifests {
    store: Store,
    /// The most recently used at the end.
    kept: Mutex<Vec<(Identity, Cell)>>,
    reading: Semaphore,
}

impl Manifests {
    /// An empty cache over `store`.
    pub fn new(store: Store) -> Self {
        Self { store, kept: Mutex::default(), reading: Semaphore::new(READING_MAX) }
    }

    /// The manifest that `grant` vouches for.
    pub async fn of(&self, grant: &VerifiedGrant) -> Result<Arc<Manifest>, ManifestTrouble> {
        let cell = self.cell((grant.tenant().clone(), grant.job().clone(), grant.run(), grant.manifest_sha256()));
        // A failed reading leaves the cell empty: the next chunk asks again.
        cell.get_or_try_init(|| self.read(grant)).await.cloned()
    }

    fn cell(&self, identity: Identity) -> Cell {
        let mut kept = self.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let found = kept.iter().position(|(kept, _)| *kept == identity);
        let entry = match found {
            Some(place) => kept.remove(place),
            None => (identity, Cell::default()),
        };
        if kept.len() == JOBS_MAX {
            kept.remove(0);
        }
        let cell = entry.1.clone();
        kept.push(entry);
        cell
    }

    async fn read(&self, grant: &VerifiedGrant) -> Result<Arc<Manifest>, ManifestTrouble> {
        let keys = JobKeys::new(grant.tenant(), grant.job(), grant.run());
        // Never closed.
        let _place = self.reading.acquire().await;
        let bytes = self.store.get(&keys.manifest(), MANIFEST_BYTES_MAX).await?.ok_or(ManifestTrouble::Missing)?;
        let granted = grant.manifest_sha256();
        let parsed = tokio::task::spawn_blocking(move || Manifest::verify(&bytes, granted)).await;
        let manifest = parsed.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        let same = [
            ("job", manifest.job == *grant.job()),
            ("model", manifest.spec.model == grant.model()),
            ("dimensions", manifest.spec.dimensions == grant.dimensions()),
            ("rows", manifest.rows <= grant.rows()),
        ];
        match same.into_iter().find(|(_, same)| !same) {
            Some((field, _)) => Err(ManifestTrouble::Disagrees(field)),
            None => Ok(Arc::new(manifest)),
        }
    }
}
