//! Where a job's objects lie. Keys are made from verified claims only: no message, path or query names a tenant.

use vecmill_signer::claims::{JobId, TenantId};

/// The keys of one job's objects, all under `{tenant}/jobs/{job}/`, and of its audit records, under `audit/`.
///
/// Chunk numbers are padded to six digits so that S3's listing order is the chunks' order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobKeys {
    prefix: String,
    audit: String,
}

impl JobKeys {
    /// The keys of `job` of `tenant`.
    pub fn new(tenant: &TenantId, job: &JobId) -> Self {
        Self { prefix: format!("{tenant}/jobs/{job}/"), audit: format!("audit/{tenant}/jobs/{job}/") }
    }

    /// The prefix under which all of the job's objects lie.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The prefix of everything that was cut from the input.
    pub fn input_prefix(&self) -> String {
        format!("{}input/", self.prefix)
    }

    /// A chunk's input: zstd-compressed JSON lines.
    pub fn chunk(&self, chunk: u32) -> String {
        format!("{}input/chunk-{chunk:06}.jsonl.zst", self.prefix)
    }

    /// Input lines that the producer could not use, in blocks.
    pub fn rejected(&self, block: u32) -> String {
        format!("{}input/rejected-{block:06}.jsonl", self.prefix)
    }

    /// The prefix of all [`Self::rejected`] blocks.
    pub fn rejected_prefix(&self) -> String {
        format!("{}input/rejected-", self.prefix)
    }

    /// The manifest whose digest the job's grant carries.
    pub fn manifest(&self) -> String {
        format!("{}manifest.json", self.prefix)
    }

    /// When and by whom the job was handed in.
    pub fn submission(&self) -> String {
        format!("{}submission.json", self.prefix)
    }

    /// Present once the tenant has cancelled the job.
    pub fn cancelled(&self) -> String {
        format!("{}cancelled.json", self.prefix)
    }

    /// Present while the tenant holds the job up.
    pub fn paused(&self) -> String {
        format!("{}paused.json", self.prefix)
    }

    /// A chunk's vectors.
    pub fn part(&self, chunk: u32) -> String {
        format!("{}vectors/part-{chunk:06}.parquet", self.prefix)
    }

    /// The prefix of all [`Self::part`]s.
    pub fn parts_prefix(&self) -> String {
        format!("{}vectors/", self.prefix)
    }

    /// A chunk's failed rows, as JSON lines; absent when none failed.
    pub fn errors(&self, chunk: u32) -> String {
        format!("{}errors/part-{chunk:06}.jsonl", self.prefix)
    }

    /// The prefix of all [`Self::errors`].
    pub fn errors_prefix(&self) -> String {
        format!("{}errors/", self.prefix)
    }

    /// A finished chunk's counts and digests; written after its part and its audit record.
    pub fn done(&self, chunk: u32) -> String {
        format!("{}done/chunk-{chunk:06}.json", self.prefix)
    }

    /// The prefix of all [`Self::done`] records.
    pub fn done_prefix(&self) -> String {
        format!("{}done/", self.prefix)
    }

    /// Why a chunk was given up.
    pub fn dead(&self, chunk: u32) -> String {
        format!("{}dead/chunk-{chunk:06}.json", self.prefix)
    }

    /// The prefix of all [`Self::dead`] records.
    pub fn dead_prefix(&self) -> String {
        format!("{}dead/", self.prefix)
    }

    /// How often a chunk that is suspected of killing workers was begun alone.
    pub fn trials(&self, chunk: u32) -> String {
        format!("{}trials/chunk-{chunk:06}.json", self.prefix)
    }

    /// The prefix of all [`Self::trials`] records.
    pub fn trials_prefix(&self) -> String {
        format!("{}trials/", self.prefix)
    }

    /// The job's result: every part with its rows and digests.
    pub fn final_manifest(&self) -> String {
        format!("{}_manifest.json", self.prefix)
    }

    /// Written last, when everything else is in place.
    pub fn success(&self) -> String {
        format!("{}_SUCCESS", self.prefix)
    }

    /// A chunk's audit record: one JSON line under a key that (job, chunk) alone determines, so that a
    /// chunk that ran twice still has one record.
    pub fn audit(&self, chunk: u32) -> String {
        format!("{}chunk-{chunk:06}.jsonl", self.audit)
    }

    /// The prefix of the job's audit records.
    pub fn audit_prefix(&self) -> &str {
        &self.audit
    }
}

/// The prefix under which a tenant's jobs lie.
pub fn tenant_jobs_prefix(tenant: &TenantId) -> String {
    format!("{tenant}/jobs/")
}

/// The job that a key or a common prefix under [`tenant_jobs_prefix`] belongs to.
pub fn job_of_key(tenant: &TenantId, key: &str) -> Option<JobId> {
    key.strip_prefix(&tenant_jobs_prefix(tenant))?.split('/').next()?.parse().ok()
}

/// Where a refused message is recorded. Nothing in an unverified message may choose the key: the day, the
/// writer and the message's own digest do, so a redelivered message has one record and not two.
pub fn refusal_key(day: &str, message_sha256: &str) -> String {
    format!("audit/_refused/{day}/{message_sha256}.jsonl")
}

/// The chunk number at the end of a `done/`, `dead/`, `errors/` or `vectors/` key.
pub fn chunk_of_key(key: &str) -> Option<u32> {
    let name = key.rsplit('/').next()?;
    name.split_once('-')?.1.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_lie_under_the_tenant_and_give_their_chunk_back() {
        let tenant: TenantId = "acme".parse().expect("a tenant id");
        let job = JobId::from_digest(&[7; 32]);
        let keys = JobKeys::new(&tenant, &job);
        for key in [keys.part(42), keys.done(42), keys.dead(42), keys.errors(42)] {
            assert_eq!(chunk_of_key(&key), Some(42), "{key}");
            assert_eq!(job_of_key(&tenant, &key), Some(job.clone()), "{key}");
        }
        assert_eq!(chunk_of_key(&keys.success()), None);
        let other: TenantId = "acm".parse().expect("a tenant id");
        assert_eq!(job_of_key(&other, &keys.part(1)), None, "a tenant whose name is a prefix sees nothing");
    }
}
