//! Chunks that may kill their workers.
//!
//! The broker counts how often a delivery was lost. But a worker that dies loses all that it held: the chunk that
//! killed it and its innocent neighbours, which come back beside that chunk and are lost again. So the broker's count
//! only makes a chunk suspect. A suspect is computed alone in its worker, and only what it does alone counts.

use serde::{Deserialize, Serialize};
use tokio::sync::{RwLockReadGuard, RwLockWriteGuard};
use tracing::{info, warn};

use super::{
    Pipeline,
    admit::{Claim, Stop},
};
use crate::delivery::Incoming;

/// Lost deliveries that prove nothing: broker restarts and killed pods lose deliveries, too.
const LOST_INNOCENTLY_MAX: u32 = 2;
/// Times that a suspect is begun alone and no worker lives to tell. With the deaths that made it suspect, a chunk costs
/// five workers; the broker's own limit on deliveries is far above.
const TRIALS_MAX: u32 = 3;
/// The record is a number.
const RECORD_BYTES_MAX: usize = 1 << 10;

/// Leave to compute a chunk, beside others or alone.
pub(super) enum Turn<'a> {
    Together(#[expect(dead_code, reason = "held, never read")] RwLockReadGuard<'a, ()>),
    Alone(#[expect(dead_code, reason = "held, never read")] RwLockWriteGuard<'a, ()>),
}

/// `trials/chunk-….json`: how often a suspect was begun alone since a worker last survived it.
#[derive(Default, Serialize, Deserialize)]
struct Trials {
    begun: u32,
}

impl Pipeline {
    /// Waits for a chunk's turn. A chunk that has killed its workers alone too often gets none.
    pub(super) async fn turn(&self, delivery: &Incoming, claim: &Claim) -> Result<Turn<'_>, Stop> {
        if delivery.lost_deliveries < LOST_INNOCENTLY_MAX {
            return Ok(Turn::Together(self.turns.read().await));
        }
        let turn = Turn::Alone(self.turns.write().await);
        let (store, key) = (&self.parts.store, claim.keys.trials(claim.chunk));
        let Trials { begun } = store.get_json(&key, RECORD_BYTES_MAX).await?.unwrap_or_default();
        if begun >= TRIALS_MAX {
            let reason = format!("{begun} workers died over it while they computed nothing else");
            return Err(Stop::Dead { code: "poison", reason });
        }
        info!(job = %claim.grant.job(), chunk = claim.chunk, lost = delivery.lost_deliveries, begun, "computing a suspect alone");
        store.put_json(&key, &Trials { begun: begun + 1 }).await?;
        Ok(turn)
    }

    /// Ends a chunk's turn, which its worker has survived.
    pub(super) async fn survived(&self, turn: Turn<'_>, claim: &Claim) {
        if let Turn::Alone(_) = turn
            && let Err(error) = self.parts.store.delete(&claim.keys.trials(claim.chunk)).await
        {
            // It counts as a death, of which it takes several.
            warn!(%error, "a suspect's acquittal can't be recorded");
        }
    }
}
