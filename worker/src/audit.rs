//! Audit records: who had what computed when, in counts and digests, never in text.

use serde::{Deserialize, Serialize};
use vecmill_producer::{
    contract::{JobKeys, refusal_key},
    store::{Store, StoreError},
};
use vecmill_signer::{
    claims::{Digest, JobId, TenantId},
    verify::{VerifiedEmbed, VerifiedGrant},
};

use crate::engine::{ComputePath, Precision};

/// The version of the records.
const AUDIT_VERSION: u32 = 1;

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// Computed and stored.
    Embedded,
    /// Not computed: the job is cancelled.
    Cancelled,
    /// Not computed: given up.
    Dead,
    /// Not computed: the message proves no right to be.
    Refused,
}

/// One record. What a refused message claims is not in it: it is not known to be true.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// The version of the record.
    pub version: u32,
    /// When, as RFC 3339 in UTC.
    pub time: jiff::Timestamp,
    /// What was decided.
    pub decision: Decision,
    /// The way in: `jobs`, or `embeddings` for the synchronous path.
    pub endpoint: String,
    /// The worker that decided.
    pub worker: String,
    /// The tenant, from the verified grant.
    pub tenant: Option<TenantId>,
    /// The API key that the job was submitted with.
    pub key_id: Option<String>,
    /// The client's address as the signer saw it.
    pub client_addr: Option<String>,
    /// The job.
    pub job: Option<JobId>,
    /// The chunk's number.
    pub chunk: Option<u32>,
    /// The run of the job, with its life before a dot; 0.0 of jobs from before there were runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// The grant: its id, which is the job's, and the second it was issued.
    pub grant: Option<String>,
    /// The model's name.
    pub model: Option<String>,
    /// The model's revision.
    pub revision: Option<String>,
    /// The commit of the model's repository, where it came from the Hugging Face hub.
    #[serde(default)]
    pub commit: Option<String>,
    /// The synchronous request's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// Precision of the model's matrix products.
    pub precision: Option<Precision>,
    /// What computed them; absent in records from before it was named.
    #[serde(default)]
    pub compute: Option<ComputePath>,
    /// Rows with a vector.
    pub rows: u32,
    /// Rows that failed.
    pub failed: u32,
    /// Rows whose text was cut off.
    #[serde(default)]
    pub truncated: u32,
    /// Exact tokens.
    pub tokens: u64,
    /// Length of each vector.
    pub dimensions: Option<u32>,
    /// SHA-256 of the chunk's object, or of the refused message.
    pub input_sha256: Option<Digest>,
    /// SHA-256 of the vectors' bytes.
    pub output_sha256: Option<Digest>,
    /// Milliseconds from receipt to this record.
    pub latency_ms: u64,
    /// A stable word for the reason, where the decision has one.
    pub code: Option<String>,
    /// The reason as a sentence.
    pub reason: Option<String>,
}

impl AuditRecord {
    /// A record of a decision about a message that proves nothing.
    pub fn refused(worker: &str, message_sha256: Digest, code: &str, reason: &str) -> Self {
        Self {
            input_sha256: Some(message_sha256),
            code: Some(code.to_owned()),
            reason: Some(reason.to_owned()),
            ..Self::blank(worker, Decision::Refused, "jobs")
        }
    }

    /// A record of a decision about a synchronous request whose token is verified. No digest of a text is in it: that
    /// of a short one can be guessed.
    pub fn of_request(worker: &str, decision: Decision, access: &VerifiedEmbed, request: &str) -> Self {
        Self {
            tenant: Some(access.tenant().clone()),
            key_id: Some(access.key_id().to_owned()),
            client_addr: access.client_addr().map(str::to_owned),
            request: Some(request.to_owned()),
            ..Self::blank(worker, decision, "embeddings")
        }
    }

    /// A record of a decision about a chunk whose grant is verified.
    pub fn of_chunk(worker: &str, decision: Decision, grant: &VerifiedGrant, chunk: u32) -> Self {
        Self {
            tenant: Some(grant.tenant().clone()),
            key_id: Some(grant.key_id().to_owned()),
            client_addr: grant.client_addr().map(str::to_owned),
            job: Some(grant.job().clone()),
            chunk: Some(chunk),
            run: Some(grant.run().to_string()),
            grant: Some(format!("{}@{}", grant.job(), grant.issued_at())),
            model: Some(grant.model().to_owned()),
            dimensions: Some(grant.dimensions()),
            ..Self::blank(worker, decision, "jobs")
        }
    }

    fn blank(worker: &str, decision: Decision, endpoint: &str) -> Self {
        Self {
            version: AUDIT_VERSION,
            time: jiff::Timestamp::now(),
            decision,
            endpoint: endpoint.to_owned(),
            worker: worker.to_owned(),
            tenant: None,
            key_id: None,
            client_addr: None,
            job: None,
            chunk: None,
            run: None,
            grant: None,
            model: None,
            revision: None,
            commit: None,
            request: None,
            precision: None,
            compute: None,
            rows: 0,
            failed: 0,
            truncated: 0,
            tokens: 0,
            dimensions: None,
            input_sha256: None,
            output_sha256: None,
            latency_ms: 0,
            code: None,
            reason: None,
        }
    }

    /// Writes the record of a chunk under its job, and as an event. Unaudited means unserved: an error here must
    /// keep the delivery from being acknowledged.
    /// `what` tells the records of one chunk apart: the part that was computed, or what was decided.
    pub async fn write_for(&self, audit: &Store, keys: &JobKeys, chunk: u32, what: &str) -> Result<(), StoreError> {
        self.write(audit, &keys.audit(chunk, what)).await
    }

    /// Writes the record of a refused message, under the day and the message's digest.
    pub async fn write_refusal(&self, audit: &Store) -> Result<(), StoreError> {
        let day = self.time.strftime("%Y-%m-%d").to_string();
        let message = self.input_sha256.map(|digest| digest.to_string()).unwrap_or_default();
        self.write(audit, &refusal_key(&day, &message)).await
    }

    /// The record as a line.
    pub(crate) fn line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }

    /// The record as an event.
    pub(crate) fn log(&self) {
        let record = serde_json::to_string(self).unwrap_or_default();
        tracing::info!(target: "vecmill::audit", %record, "audit");
    }

    /// What is there stays: a record of the same key is of the same decision, made before a crash.
    async fn write(&self, audit: &Store, key: &str) -> Result<(), StoreError> {
        self.log();
        audit.put_new(key, self.line(), "application/x-ndjson").await.map(drop)
    }
}
