//! Where a job's objects lie. Keys are made from verified claims only: no message, path or query names a tenant.

use vecmill_signer::claims::{Digest, JobId, RunId, TenantId};

/// The keys of one run of a job, all under `{tenant}/jobs/{job}/`, and of its audit records, under `audit/`.
///
/// What was cut and what was computed lies under the life (`000001/`), so that a job that was deleted and submitted again
/// shares no object with what it was. What a run decides about chunks lies under the run (`000001/runs/000002/`), so that
/// nothing of one run has an effect on another. Life 0 and run 0 are a job from before there were runs: its objects lie
/// directly under the job.
///
/// Chunk numbers are padded to six digits so that S3's listing order is the chunks' order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobKeys {
    at: RunId,
    root: String,
    life: String,
    run: String,
    audit: String,
}

impl JobKeys {
    /// The keys of a run of `job` of `tenant`.
    pub fn new(tenant: &TenantId, job: &JobId, at: RunId) -> Self {
        Self::under(format!("{tenant}/jobs/{job}/"), at)
    }

    /// The keys of another run of the same job.
    pub fn of_run(&self, at: RunId) -> Self {
        Self::under(self.root.clone(), at)
    }

    fn under(root: String, at: RunId) -> Self {
        let life = match at.life {
            0 => root.clone(),
            life => format!("{root}{life:06}/"),
        };
        let (run, audit) = match at.run {
            0 => (life.clone(), format!("audit/{root}")),
            run => (format!("{life}runs/{run:06}/"), format!("audit/{root}{run:06}/")),
        };
        Self { at, root, life, run, audit }
    }

    /// The run.
    pub fn at(&self) -> RunId {
        self.at
    }

    /// The prefix under which all lives of the job lie, and its ledger.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// The prefix under which everything that was cut and computed in this life of the job lies.
    pub fn prefix(&self) -> &str {
        &self.life
    }

    /// The prefix under which the run's own objects lie.
    pub fn run_prefix(&self) -> &str {
        &self.run
    }

    /// The prefix of the ledger's entries.
    pub fn ledger_prefix(&self) -> String {
        format!("{}ledger/", self.root)
    }

    /// An entry of the ledger. Numbers count down in keys, so that the newest is the first of a listing.
    pub fn ledger(&self, entry: u32) -> String {
        format!("{}ledger/{:010}.json", self.root, u32::MAX - entry)
    }

    /// The prefix of everything that was cut from the input.
    pub fn input_prefix(&self) -> String {
        format!("{}input/", self.life)
    }

    /// A chunk's input: zstd-compressed JSON lines. Named by its digest, too: two producers may compress differently.
    pub fn chunk(&self, chunk: u32, sha256: &Digest) -> String {
        match self.at.life {
            0 => format!("{}input/chunk-{chunk:06}.jsonl.zst", self.life),
            _ => format!("{}input/chunk-{chunk:06}.{}.jsonl.zst", self.life, short(sha256)),
        }
    }

    /// Input lines that the producer could not use, in blocks.
    pub fn rejected(&self, block: u32) -> String {
        format!("{}input/rejected-{block:06}.jsonl", self.life)
    }

    /// The prefix of all [`Self::rejected`] blocks.
    pub fn rejected_prefix(&self) -> String {
        format!("{}input/rejected-", self.life)
    }

    /// The manifest whose digest the job's grant carries. Put once in a life.
    pub fn manifest(&self) -> String {
        format!("{}manifest.json", self.life)
    }

    /// When and by whom a job from before there were runs was handed in.
    pub fn submission(&self) -> String {
        format!("{}submission.json", self.root)
    }

    /// Present once the tenant has cancelled a job from before there were runs.
    pub fn cancelled(&self) -> String {
        format!("{}cancelled.json", self.root)
    }

    /// Present while the tenant holds up a job from before there were runs.
    pub fn paused(&self) -> String {
        format!("{}paused.json", self.root)
    }

    /// An object of the life by its path, as records and summaries name it.
    pub fn object(&self, path: &str) -> String {
        format!("{}{path}", self.life)
    }

    /// The path of a chunk's vectors, by the digest of the Parquet file: the same bits lie in one place, however often they were
    /// computed, and others in another. A record names one of them.
    pub fn part_path(chunk: u32, sha256: &Digest) -> String {
        format!("vectors/part-{chunk:06}.{}.parquet", short(sha256))
    }

    /// The prefix of all parts.
    pub fn parts_prefix(&self) -> String {
        format!("{}vectors/", self.life)
    }

    /// The path of a chunk's failed rows, as JSON lines; there is none where none failed.
    pub fn errors_path(chunk: u32, sha256: &Digest) -> String {
        format!("errors/part-{chunk:06}.{}.jsonl", short(sha256))
    }

    /// The prefix of all errors.
    pub fn errors_prefix(&self) -> String {
        format!("{}errors/", self.life)
    }

    /// What a chunk came to in this run, an [`super::Outcome`]: put once, after the part and its audit record.
    pub fn ended(&self, chunk: u32) -> String {
        format!("{}chunk-{chunk:06}.json", self.ended_prefix())
    }

    /// The prefix of all [`Self::ended`] records.
    pub fn ended_prefix(&self) -> String {
        match self.at.run {
            0 => format!("{}done/", self.run),
            _ => format!("{}ended/", self.run),
        }
    }

    /// That a chunk is about to be given up: a listing of these tells which of the ended may be dead.
    pub fn dead(&self, chunk: u32) -> String {
        format!("{}dead/chunk-{chunk:06}.json", self.run)
    }

    /// The prefix of all [`Self::dead`] records.
    pub fn dead_prefix(&self) -> String {
        format!("{}dead/", self.run)
    }

    /// How often a chunk that is suspected of killing workers was begun alone.
    pub fn trials(&self, chunk: u32) -> String {
        format!("{}trials/chunk-{chunk:06}.json", self.run)
    }

    /// Which chunks were done in earlier runs, and in which: named by its digest, as the ledger names it.
    pub fn inherited(&self, sha256: &Digest) -> String {
        format!("{}inherited/{sha256}.json", self.life)
    }

    /// What a run came to, an [`super::FinalManifest`]: named by its digest, as the ledger names it.
    pub fn summary(&self, sha256: &Digest) -> String {
        format!("{}summaries/{sha256}.json", self.life)
    }

    /// The result of a complete job: every part with its rows and digests.
    pub fn final_manifest(&self) -> String {
        format!("{}_manifest.json", self.life)
    }

    /// Written last, when everything else of a complete job is in place.
    pub fn success(&self) -> String {
        format!("{}_SUCCESS", self.life)
    }

    /// A chunk's audit record: one JSON line. `what` is what was decided, or the digest of the part that was computed: what
    /// was computed twice has two records.
    pub fn audit(&self, chunk: u32, what: &str) -> String {
        format!("{}chunk-{chunk:06}.{what}.jsonl", self.audit)
    }

    /// The prefix of the run's audit records.
    pub fn audit_prefix(&self) -> &str {
        &self.audit
    }

    /// Of keys under [`Self::root`], those of this life.
    pub fn is_of_life(&self, key: &str) -> bool {
        let Some(rest) = key.strip_prefix(&self.life) else { return false };
        // A job from before there were lives lies beside those that came later.
        self.at.life != 0 || !rest.starts_with("ledger/") && !is_life(rest)
    }
}

/// Whether a path begins with a life's folder.
fn is_life(path: &str) -> bool {
    path.split_once('/').is_some_and(|(first, _)| first.len() == 6 && first.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Enough of a digest to tell objects of one chunk apart.
pub fn short(sha256: &Digest) -> String {
    sha256.to_string()[..16].to_owned()
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

/// The chunk number in the name of an `ended/`, `dead/`, `errors/` or `vectors/` key.
pub fn chunk_of_key(key: &str) -> Option<u32> {
    let name = key.rsplit('/').next()?;
    name.split_once('-')?.1.split('.').next()?.parse().ok()
}

/// The number of a ledger's entry, from its key.
pub fn entry_of_key(key: &str) -> Option<u32> {
    let down: u32 = key.rsplit('/').next()?.strip_suffix(".json")?.parse().ok()?;
    Some(u32::MAX - down)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_lie_under_the_tenant_and_give_their_chunk_back() {
        let tenant: TenantId = "acme".parse().expect("a tenant id");
        let job = JobId::from_digest(&[7; 32]);
        let digest = Digest::from_bytes([1; 32]);
        for at in [RunId::default(), RunId { life: 0, run: 3 }, RunId { life: 2, run: 3 }] {
            let keys = JobKeys::new(&tenant, &job, at);
            let part = keys.object(&JobKeys::part_path(42, &digest));
            let errors = keys.object(&JobKeys::errors_path(42, &digest));
            for key in [part, errors, keys.ended(42), keys.dead(42), keys.chunk(42, &digest)] {
                assert_eq!(chunk_of_key(&key), Some(42), "{key}");
                assert_eq!(job_of_key(&tenant, &key), Some(job.clone()), "{key}");
                assert!(keys.is_of_life(&key), "{key}");
            }
            assert_eq!(chunk_of_key(&keys.success()), None);
            assert!(!keys.is_of_life(&keys.ledger(1)));
            assert_eq!(entry_of_key(&keys.ledger(17)), Some(17));
            assert_eq!(keys.of_run(RunId { life: 2, run: 3 }), JobKeys::new(&tenant, &job, RunId { life: 2, run: 3 }));
        }
        let (old, new) = (RunId::default(), RunId { life: 1, run: 1 });
        let [old, new] = [old, new].map(|at| JobKeys::new(&tenant, &job, at));
        assert!(!old.is_of_life(&new.ended(1)) && !new.is_of_life(&old.ended(1)), "lives share nothing");
        let other: TenantId = "acm".parse().expect("a tenant id");
        assert_eq!(job_of_key(&other, &new.ended(1)), None, "a tenant whose name is a prefix sees nothing");
    }

    #[test]
    fn the_newest_entry_is_listed_first() {
        let keys = JobKeys::new(&"acme".parse().expect("a tenant id"), &JobId::from_digest(&[7; 32]), RunId::default());
        assert!(keys.ledger(10) < keys.ledger(9) && keys.ledger(1000) < keys.ledger(999));
    }
}
