//! From a corpus to a manifest on S3: the part of submitting that needs no broker.

use serde::Serialize;
use vecmill_signer::claims::{Digest, JobId, TenantId};

use crate::{
    contract::{
        CONTRACT_VERSION, Input, JobKeys, JobSpec, MANIFEST_BYTES_MAX, Manifest, ManifestError, Precision, RunId,
    },
    life::{Appended, Entry, Event as LifeEvent, Job, Ledger, LedgerError},
    read::{self, BadRow, InputFormat, ReadError, ReadOptions, Stop, StopOnDrop, stoppable},
    source::{Source, SourceError, Spooled},
    split::{Cut, Listing, SplitError, split},
    store::{Store, StoreError},
};

/// What to embed and how to read it.
#[derive(Clone, Debug)]
pub struct Corpus {
    /// Where it is.
    pub source: Source,
    /// How to read it.
    pub format: InputFormat,
    /// Which fields to read.
    pub options: ReadOptions,
    /// Where to cut it.
    pub cut: Cut,
    /// Refuse the whole job when any row is bad.
    pub strict: bool,
}

/// A step of the work, for progress and reports.
#[derive(Clone, Debug)]
pub enum Event {
    /// The corpus has been read once; its size in bytes.
    Hashed(u64),
    /// A row that can't be used; the last may stand for many that are not told one by one.
    Rejected(BadRow),
    /// A chunk has reached S3; its rows.
    Uploaded(u32),
    /// This many messages are about to be published.
    Publishing(u32),
    /// The broker has confirmed one.
    Published,
    /// No worker runs that computes in the precision that the job asks for: it waits for one.
    NobodyComputes(Precision),
}

/// A corpus that lies on S3 in chunks, with the manifest to sign.
#[derive(Debug)]
pub struct Prepared {
    /// The job.
    pub job: JobId,
    /// Whose it is.
    pub tenant: TenantId,
    /// The life of the job that the corpus was cut for.
    pub life: u32,
    /// The job's ledger.
    pub ledger: Ledger,
    /// What the input is called.
    pub name: String,
    /// The manifest.
    pub manifest: Manifest,
    /// SHA-256 of the manifest's bytes on S3.
    pub manifest_sha256: Digest,
}

impl Prepared {
    /// The keys of what was cut.
    pub fn keys(&self) -> JobKeys {
        self.ledger.keys_of(RunId { life: self.life, run: 0 })
    }
}

/// Why no manifest was written.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The corpus can't be had.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The corpus can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The corpus can't be cut.
    #[error(transparent)]
    Split(#[from] SplitError),
    /// S3 failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The job's ledger can't be read or written.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The manifest on S3 is not one.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Its bytes are no longer those that name the job.
    #[error("{name} has changed while it was read: nothing was submitted; submit it again once nobody writes to it")]
    Changed {
        /// The corpus.
        name: String,
    },
    /// `strict`, and there are bad rows; all have been reported.
    #[error("{name} has {bad} bad rows and --strict was given: nothing was submitted; mend them or leave --strict out")]
    Strict {
        /// The corpus.
        name: String,
        /// How many.
        bad: u64,
    },
    /// Not one good row.
    #[error("{name} has no row that can be embedded ({bad} bad rows): nothing was submitted")]
    Empty {
        /// The corpus.
        name: String,
        /// How many rows are bad.
        bad: u64,
    },
}

/// The job's identity. The same corpus, read and cut the same way with the same parameters by the same tenant,
/// is the same job, however often and from wherever it is handed in.
pub fn job_id(tenant: &TenantId, spec: &JobSpec, input: &Input, options: &ReadOptions, cut: Cut) -> JobId {
    #[derive(Serialize)]
    struct Identity<'a> {
        version: u32,
        tenant: &'a TenantId,
        spec: &'a JobSpec,
        input: &'a Input,
        id_field: &'a str,
        text_field: &'a str,
        chunk_rows: u32,
        chunk_bytes: u32,
        // Left out where it is not so: what jobs were called before must stay.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        dimensions_in_every_line: bool,
    }
    let identity = Identity {
        version: CONTRACT_VERSION,
        tenant,
        spec,
        input,
        id_field: &options.id_field,
        text_field: &options.text_field,
        chunk_rows: cut.chunk_rows,
        chunk_bytes: cut.chunk_bytes,
        dimensions_in_every_line: options.dimensions_in_every_line,
    };
    let bytes = serde_json::to_vec(&identity).unwrap_or_default();
    JobId::from_digest(Digest::of(&bytes).as_bytes())
}

/// Brings a corpus to S3 as chunks and a manifest, unless that has been done before.
pub async fn prepare(
    store: &Store,
    tenant: &TenantId,
    spec: &JobSpec,
    corpus: &Corpus,
    report: impl Fn(Event) + Send + Clone + 'static,
) -> Result<Prepared, PrepareError> {
    let spooled = corpus.source.spool(store).await?;
    report(Event::Hashed(spooled.bytes));
    prepare_spooled(store, tenant, spec, corpus, &spooled, report).await
}

/// The same with a corpus that is on local disk.
pub async fn prepare_spooled(
    store: &Store,
    tenant: &TenantId,
    spec: &JobSpec,
    corpus: &Corpus,
    spooled: &Spooled,
    report: impl Fn(Event) + Send + Clone + 'static,
) -> Result<Prepared, PrepareError> {
    let input = Input { sha256: spooled.sha256, bytes: spooled.bytes, format: corpus.format };
    let job = job_id(tenant, spec, &input, &corpus.options, corpus.cut);
    let ledger = Ledger::new(store.clone(), tenant, &job);
    let name = spooled.name.clone();
    let prepared = |life: u32, bytes: &[u8]| {
        let (job, tenant, ledger, name) = (job.clone(), tenant.clone(), ledger.clone(), name.clone());
        let (manifest, manifest_sha256) = (Manifest::parse(bytes)?, Digest::of(bytes));
        Ok::<_, PrepareError>(Prepared { job, tenant, life, ledger, name, manifest, manifest_sha256 })
    };

    if let Some(entry) = ledger.head().await?.filter(|entry| !entry.job.deleted)
        && let keys = ledger.keys_of(entry.job.at())
        && let Some(bytes) = store.get(&keys.manifest(), MANIFEST_BYTES_MAX).await?
    {
        let known = prepared(entry.job.life, &bytes)?;
        if corpus.strict && known.manifest.rejected > 0 {
            // They are told again: who asks now may not be who asked then.
            refuse_bad_rows(spooled, corpus, report).await?;
        }
        return Ok(known);
    }
    if corpus.strict {
        refuse_bad_rows(spooled, corpus, report.clone()).await?;
    }
    // Dropped with this future, at which whoever reads rows stops.
    let reading = StopOnDrop::default();
    let rows = open(spooled, corpus, reading.stop()).await?;
    let opened = ledger.append(|_| Ok(LifeEvent::Open)).await?;
    if let Appended::Written(Entry { job: Job { life: life @ 2.., .. }, .. }) = &opened {
        // Whoever had not heard that the life before is over may have written for it since it was removed.
        ledger.remove(life - 1).await?;
    }
    let life = opened.entry().map_or(0, |entry| entry.job.life);
    let keys = ledger.keys_of(RunId { life, run: 0 });
    let rejecting = report.clone();
    let rejected = move |bad: &BadRow| rejecting(Event::Rejected(bad.clone()));
    let cut = match split(store, &keys, rows, spooled.bytes, corpus.cut, rejected, |rows| report(Event::Uploaded(rows)))
        .await
    {
        Ok(cut) if cut.rows > 0 => cut,
        Ok(cut) => {
            abandon(&ledger, life).await;
            return Err(PrepareError::Empty { name, bad: cut.rejected });
        }
        Err(error) => {
            // After a failure of S3 what is there stays: the same command goes on from it.
            if matches!(error, SplitError::Read(_) | SplitError::TooManyChunks) {
                abandon(&ledger, life).await;
            }
            return Err(error.into());
        }
    };
    if !spooled.is_unchanged().await? {
        abandon(&ledger, life).await;
        return Err(PrepareError::Changed { name });
    }
    let manifest = Manifest {
        version: CONTRACT_VERSION,
        job: job.clone(),
        spec: spec.clone(),
        input,
        rows: cut.rows,
        rejected: cut.rejected,
        text_bytes: Some(cut.text_bytes),
        chunks: cut.chunks,
    };
    let bytes = manifest.to_bytes();
    // Last, when every chunk is there: a manifest on S3 means that the corpus is complete.
    let bytes = match store.put_new(&keys.manifest(), bytes.clone(), "application/json").await? {
        true => bytes,
        // Cut by somebody else at the same time: one of the two counts, for both.
        false => store.get(&keys.manifest(), MANIFEST_BYTES_MAX).await?.map_or(bytes, Vec::from),
    };
    prepared(life, &bytes)
}

/// Ends the life of a corpus that was refused. The refusal is what matters: a failure here is for the log only.
async fn abandon(ledger: &Ledger, life: u32) {
    if let Err(error) = ledger.abandon(life).await {
        tracing::warn!(%error, "a refused corpus has left objects behind");
    }
}

async fn open(spooled: &Spooled, corpus: &Corpus, stop: Stop) -> Result<read::Rows, ReadError> {
    let (path, format, options) = (spooled.path.clone(), corpus.format, corpus.options.clone());
    let opened = tokio::task::spawn_blocking(move || read::open(&path, format, &options, stop)).await;
    opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// A pass over the whole corpus before anything is written, so that a refused job leaves nothing behind.
async fn refuse_bad_rows(
    spooled: &Spooled,
    corpus: &Corpus,
    report: impl Fn(Event) + Send + 'static,
) -> Result<(), PrepareError> {
    let (path, format, options) = (spooled.path.clone(), corpus.format, corpus.options.clone());
    let mut listing = Listing::new(spooled.bytes);
    let counted = stoppable(move |stop| {
        for row in read::open(&path, format, &options, stop)? {
            if let Err(row) = row?
                && listing.admits(&row)
            {
                report(Event::Rejected(row));
            }
        }
        if let Some(more) = listing.more() {
            report(Event::Rejected(more));
        }
        Ok::<u64, ReadError>(listing.rows())
    });
    let bad = counted.await?;
    match bad {
        0 => Ok(()),
        bad => Err(PrepareError::Strict { name: spooled.name.clone(), bad }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{Dtype, Precision, Truncate};

    #[test]
    fn a_precision_is_part_of_a_job_and_its_absence_is_not() {
        let tenant: TenantId = "acme".parse().expect("a tenant");
        let input = Input { sha256: Digest::of(b"x"), bytes: 1, format: InputFormat::Jsonl };
        let cut = Cut { chunk_rows: 1000, chunk_bytes: 256 << 10 };
        let job = |precision| {
            let spec = JobSpec {
                model: "m".to_owned(),
                dimensions: 32,
                dtype: Dtype::F32,
                instruction: None,
                truncate: Truncate::None,
                precision,
            };
            job_id(&tenant, &spec, &input, &ReadOptions::default(), cut).to_string()
        };
        // As it was called before there was a precision to ask for.
        assert_eq!(job(None), "16540bcd7a386565f0fabda607d2bdf1");
        let asked = Precision::ALL.map(|precision| job(Some(precision)));
        assert!(asked[0] != asked[1] && !asked.contains(&job(None)), "{asked:?}");
    }
}
