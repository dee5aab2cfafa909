//! Making a chunk's result durable: part, errors, audit, record, in this order. Part and errors lie under their own digests, so
//! that nothing is overwritten by other bytes; the record is put once in a run and says which of them count.

use std::time::Instant;

use vecmill_producer::{
    contract::{CONTRACT_VERSION, ChunkResult, JobKeys, Outcome, short},
    part::CHUNK,
    store::StoreError,
};
use vecmill_signer::claims::Digest;

use super::{
    Pipeline,
    admit::{Admitted, Claim, Stop},
    embed::Embedded,
};
use crate::{
    audit::{AuditRecord, Decision},
    kill_point::kill_point,
    part::{self, Part},
};

/// A chunk's objects, encoded.
pub(super) struct Encoded {
    part: Part,
    part_sha256: Digest,
    errors: Vec<u8>,
    failed: u32,
    truncated: u32,
    tokens: u64,
}

impl Pipeline {
    /// Encodes the part and the errors, on a blocking thread.
    pub(super) async fn encode(&self, claim: &Claim, admitted: &Admitted, embedded: Embedded) -> Result<Encoded, Stop> {
        let spec = admitted.manifest.spec.clone();
        let info = self.parts.embedder.info();
        let mut metadata = part::metadata(&spec.model, info, spec.dimensions as usize);
        metadata.push(("vecmill.job".to_owned(), claim.grant.job().to_string()));
        metadata.push((CHUNK.to_owned(), claim.chunk.to_string()));
        let encoding = tokio::task::spawn_blocking(move || {
            let Embedded { ids, vectors, tokens, truncated, failed } = embedded;
            let part =
                part::encode(&ids, &vectors, &tokens, &truncated, spec.dimensions as usize, spec.dtype, &metadata)
                    .map_err(|error| Stop::Dead { code: "unwritable", reason: error.to_string() })?;
            let mut errors = Vec::new();
            for failure in &failed {
                errors.extend(serde_json::to_vec(failure).unwrap_or_default());
                errors.push(b'\n');
            }
            Ok(Encoded {
                part_sha256: Digest::of(&part.bytes),
                part,
                errors,
                failed: failed.len() as u32,
                truncated: truncated.iter().filter(|&&truncated| truncated).count() as u32,
                tokens: tokens.iter().map(|&tokens| u64::from(tokens)).sum(),
            })
        });
        encoding.await.unwrap_or_else(|_| Err(Stop::Transient { reason: "encoding the part ended early".to_owned() }))
    }

    /// Writes everything. What fails in the middle is written again, whole.
    pub(super) async fn write(
        &self,
        claim: &Claim,
        admitted: &Admitted,
        encoded: &Encoded,
        begun: Instant,
    ) -> Result<(), StoreError> {
        let (store, keys, chunk) = (&self.parts.store, &claim.keys, claim.chunk);
        let info = self.parts.embedder.info();
        let vectors_sha256 = Digest::from_bytes(encoded.part.vectors_sha256);
        let rows = encoded.part.rows as u32;
        kill_point("before-part");
        let part = JobKeys::part_path(chunk, &encoded.part_sha256);
        store.put(&keys.object(&part), encoded.part.bytes.clone(), "application/vnd.apache.parquet").await?;
        let errors = (!encoded.errors.is_empty()).then(|| JobKeys::errors_path(chunk, &Digest::of(&encoded.errors)));
        if let Some(errors) = &errors {
            store.put(&keys.object(errors), encoded.errors.clone(), "application/x-ndjson").await?;
        }
        kill_point("after-part");
        let mut audit = AuditRecord::of_chunk(&self.parts.worker, Decision::Embedded, &claim.grant, chunk);
        audit.revision = Some(info.revision.clone());
        audit.precision = Some(info.precision);
        audit.compute = Some(info.path);
        audit.commit = info.commit.clone();
        audit.rows = rows;
        audit.failed = encoded.failed;
        audit.truncated = encoded.truncated;
        audit.tokens = encoded.tokens;
        audit.input_sha256 = Some(admitted.entry.sha256);
        audit.output_sha256 = Some(vectors_sha256);
        audit.latency_ms = begun.elapsed().as_millis() as u64;
        audit.write_for(&self.parts.audit, keys, chunk, &short(&encoded.part_sha256)).await?;
        kill_point("after-audit");
        let result = ChunkResult {
            version: CONTRACT_VERSION,
            chunk,
            rows,
            failed: encoded.failed,
            truncated: encoded.truncated,
            tokens: encoded.tokens,
            part_bytes: encoded.part.bytes.len() as u64,
            part_sha256: encoded.part_sha256,
            part: Some(part),
            errors,
            vectors_sha256,
            revision: info.revision.clone(),
            commit: info.commit.clone(),
            compute: Some(info.path.to_string()),
        };
        let outcome = Outcome::Done(Box::new(result));
        let bytes = serde_json::to_vec(&outcome).unwrap_or_default();
        // Where another was first, its record counts, and a part of other bits is named by none. It is left: a computation of
        // another run may have come to the same, and name it.
        store.put_new(&keys.ended(chunk), bytes, "application/json").await?;
        self.parts.metrics.rows.inc_by(u64::from(rows));
        self.parts.metrics.rows_failed.inc_by(u64::from(encoded.failed));
        self.parts.metrics.rows_truncated.inc_by(u64::from(encoded.truncated));
        Ok(())
    }
}
