//! The audit of synchronous requests: records are gathered and written together, for a write to S3 before each answer would
//! take longer than the model.
//!
//! A request takes a place before it is worked on and gives it back when its record is on S3. With S3 away the places run out,
//! and with them what is served: unaudited means unserved. A worker that is killed loses what it has gathered in the last
//! seconds from S3, not from its log, where each record stands at once.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use vecmill_producer::store::Store;

use crate::audit::AuditRecord;

/// Records that are not on S3 yet, and requests under way: at some 600 bytes each, 6 MiB.
const PLACES: usize = 10_000;
/// Between two writes at most.
const WRITE_EVERY: Duration = Duration::from_secs(5);
/// Gathered records that are written at once: a worker that answers thousands a second must not run out of places while S3 is
/// well.
const WRITE_AT: usize = PLACES / 8;

/// Where requests leave their records. Clones write to the same audit; when all are gone, the last records are written.
#[derive(Clone, Debug)]
pub struct RequestAudit {
    places: Arc<Semaphore>,
    records: mpsc::Sender<(AuditRecord, OwnedSemaphorePermit)>,
}

/// The right to leave one record.
#[derive(Debug)]
pub struct Place {
    permit: OwnedSemaphorePermit,
    records: mpsc::Sender<(AuditRecord, OwnedSemaphorePermit)>,
}

impl RequestAudit {
    /// The audit of `worker`, and the task that writes it.
    pub fn start(audit: Store, worker: String) -> (Self, tokio::task::JoinHandle<()>) {
        let (records, gathered) = mpsc::channel(PLACES);
        let writing = tokio::spawn(write(audit, worker, gathered));
        (Self { places: Arc::new(Semaphore::new(PLACES)), records }, writing)
    }

    /// A place for one record, if there is one.
    pub fn place(&self) -> Option<Place> {
        let permit = Arc::clone(&self.places).try_acquire_owned().ok()?;
        Some(Place { permit, records: self.records.clone() })
    }
}

impl Place {
    /// Leaves the record, in the log at once and on S3 within seconds.
    pub fn write(self, record: AuditRecord) {
        record.log();
        // There are as many places as there is room; without a receiver the worker is gone.
        let _ = self.records.try_send((record, self.permit));
    }
}

async fn write(audit: Store, worker: String, mut gathered: mpsc::Receiver<(AuditRecord, OwnedSemaphorePermit)>) {
    let mut waiting: BTreeMap<String, Vec<(AuditRecord, OwnedSemaphorePermit)>> = BTreeMap::new();
    let mut open = true;
    let mut number = 0_u64;
    let mut failed = false;
    while open {
        let mut new = 0;
        let tick = tokio::time::sleep(WRITE_EVERY);
        tokio::pin!(tick);
        loop {
            tokio::select! {
                record = gathered.recv() => match record {
                    Some((record, place)) => {
                        let tenant = record.tenant.as_ref().map(ToString::to_string).unwrap_or_default();
                        waiting.entry(tenant).or_default().push((record, place));
                        new += 1;
                        // After a failure S3 is given its time.
                        if new >= WRITE_AT && !failed {
                            break;
                        }
                    }
                    None => {
                        open = false;
                        break;
                    }
                },
                () = &mut tick => break,
            }
        }
        let mut kept = BTreeMap::new();
        for (tenant, records) in std::mem::take(&mut waiting) {
            number += 1;
            let now = jiff::Timestamp::now();
            let key = format!(
                "audit/{tenant}/embeddings/{}/{worker}-{}-{number:06}.jsonl",
                now.strftime("%Y-%m-%d"),
                now.as_millisecond()
            );
            let lines: Vec<u8> = records.iter().flat_map(|(record, _)| record.line()).collect();
            let written = audit.put_new(&key, lines, "application/x-ndjson").await;
            if let Err(error) = &written {
                tracing::warn!(%error, records = records.len(), "the audit of requests can't be written; trying again");
            }
            // Where the name is taken, by another worker of this one's, nothing is overwritten: the next name is free.
            if !written.unwrap_or(false) {
                kept.insert(tenant, records);
            }
        }
        failed = !kept.is_empty();
        waiting = kept;
    }
}
