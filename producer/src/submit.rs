//! Submitting: prepare, have it signed, publish one small message a chunk. Idempotent at every step.

use std::time::Duration;

use vecmill_signer::{
    claims::{Digest, JobId, RunId, Scope, TenantId},
    client::{ClientError, GrantRequest, JobGrant, SignerClient},
};

use crate::{
    contract::{CONTRACT_VERSION, ChunkMessage, JobSpec, MANIFEST_BYTES_MAX, Manifest, SpecError},
    life::{
        Appended, DIRECT, Entry, Event as LifeEvent, Job, Ledger, LedgerError, Moot, NewRun, Plan, RunView, conclude,
    },
    prepare::{Corpus, Event, PrepareError, Prepared, prepare_spooled},
    publish::{PublishError, Publisher, connect},
    status::{JobState, JobStatus, StatusError},
    store::{Store, StoreError},
    topology::BrokerSettings,
};

/// Looks at a job that others change meanwhile. Each further one is somebody else's success.
const LOOKS_MAX: u32 = 50;
/// A run is joined that has all but this share of the time that is asked for, and superseded otherwise.
const WINDOW_SHARE: u64 = 10;
/// Times that a corpus is cut because its job was deleted meanwhile.
const CUTS_MAX: u32 = 5;

/// What a submission came to.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Submitted {
    /// The job.
    pub job: JobId,
    /// The tenant that it belongs to.
    pub tenant: TenantId,
    /// The life of the job that counts.
    #[serde(default)]
    pub life: u32,
    /// The run that counts: this submission's own, or the one that it joined.
    #[serde(default)]
    pub run: u32,
    /// The ledger's entry from which on this submission has a part in the job.
    #[serde(default)]
    pub entry: u32,
    /// Texts in the job.
    pub rows: u64,
    /// Input rows that could not be used.
    pub rejected: u64,
    /// Chunks in the job.
    pub chunks: u32,
    /// Messages published just now: all chunks of a new job, those not done of one taken up again, none of one
    /// that runs or is complete.
    pub published: u32,
    /// The job's state before: a new job is `validating`.
    pub was: JobState,
}

/// Why a job was not submitted.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The parameters are out of range.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The corpus could not be prepared.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// The signer refused or can't be reached.
    #[error(transparent)]
    Signer(#[from] ClientError),
    /// The broker failed. What was confirmed is there; submit the same corpus again to send the rest.
    #[error("{0} (submit the same corpus again: what is there already is not sent or computed twice)")]
    Publish(#[from] PublishError),
    /// S3 failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The job's ledger can't be read or written.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The job's state can't be read.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// The job was deleted after its corpus had been cut.
    #[error("the job was deleted while it was being submitted: submit the same corpus again")]
    Deleted,
    /// Too many want the same job.
    #[error(
        "{} batches have this job already: delete the output of one that is not needed any more",
        crate::life::HOLDERS_MAX
    )]
    TooManyHolders,
}

/// How to submit.
#[derive(Clone, Debug)]
pub struct Submit {
    /// The job's parameters.
    pub spec: JobSpec,
    /// What to embed.
    pub corpus: Corpus,
    /// Seconds within which the job must be done; its grant lives as long.
    pub window_s: u64,
    /// Send the messages of a running job again, for a broker that lost its queues.
    pub republish: bool,
}

/// Submits a job, or takes it up again where it was.
pub async fn submit(
    store: &Store,
    signer: &SignerClient,
    broker: &BrokerSettings,
    what: Submit,
    report: impl Fn(Event) + Send + Clone + 'static,
) -> Result<Submitted, SubmitError> {
    what.spec.check()?;
    let access = signer.access_token(&[Scope::JobsSubmit]).await?;
    let spooled = what.corpus.source.spool(store).await.map_err(PrepareError::from)?;
    report(Event::Hashed(spooled.bytes));
    let mut cut = 1;
    loop {
        let prepared =
            prepare_spooled(store, &access.tenant, &what.spec, &what.corpus, &spooled, report.clone()).await?;
        let entered = enter(signer, broker, &prepared, DIRECT, what.window_s, what.republish, report.clone()).await;
        match entered {
            Err(SubmitError::Deleted) if cut < CUTS_MAX => cut += 1,
            entered => return entered,
        }
    }
}

/// Submits a job whose corpus lies on S3 in chunks for a holder, or takes it up again where it was.
pub async fn enter(
    signer: &SignerClient,
    broker: &BrokerSettings,
    prepared: &Prepared,
    holder: &str,
    window_s: u64,
    republish: bool,
    report: impl Fn(Event),
) -> Result<Submitted, SubmitError> {
    let was = JobStatus::read(prepared.ledger.store(), &prepared.tenant, &prepared.job).await?.state;
    for _ in 0..LOOKS_MAX {
        let Some(entry) = prepared.ledger.head().await? else { return Err(SubmitError::Deleted) };
        let again = republish || is_short(&entry.job, window_s);
        match entry.job.plan(prepared.life, again) {
            Plan::Reopen => return Err(SubmitError::Deleted),
            Plan::Conclude => drop(concluded(prepared, entry).await?),
            Plan::Join => match prepared.ledger.append(|head| joining(head, prepared, again, holder)).await? {
                Appended::Written(entry) | Appended::Moot(Moot::Already, Some(entry)) => {
                    return Ok(submitted(prepared, &entry, 0, was));
                }
                Appended::Moot(Moot::TooManyHolders, _) => return Err(SubmitError::TooManyHolders),
                Appended::Moot(..) => {}
            },
            Plan::Begin => {
                let begun = begin(signer, broker, prepared, entry, Some(holder), window_s, &report).await?;
                if let Some((entry, published)) = begun {
                    return Ok(submitted(prepared, &entry, published, was));
                }
            }
        }
    }
    Err(LedgerError::Contended.into())
}

/// Whether the run that goes on has much less time left than is asked for: it would expire under who joins it.
fn is_short(job: &Job, window_s: u64) -> bool {
    let enough = Duration::from_secs(window_s.saturating_sub(window_s / WINDOW_SHARE));
    let until = jiff::Timestamp::now() + enough;
    job.unfinished().is_some_and(|run| run.expires_at < until)
}

/// To join, as long as that is still what is to be done.
fn joining(head: Option<&Entry>, prepared: &Prepared, again: bool, holder: &str) -> Result<LifeEvent, Moot> {
    match head.map(|head| head.job.plan(prepared.life, again)) {
        Some(Plan::Join) => Ok(LifeEvent::Join(holder.to_owned())),
        _ => Err(Moot::Superseded),
    }
}

/// Takes a job up again from what is on S3, without its corpus: for a broker that lost its queues, or after a failure,
/// an expiry or a cancellation. It goes on for those who hold it. `None` where there is no such job.
pub async fn repair(
    store: &Store,
    signer: &SignerClient,
    broker: &BrokerSettings,
    job: &JobId,
    window_s: u64,
    report: impl Fn(Event),
) -> Result<Option<Submitted>, SubmitError> {
    let tenant = signer.access_token(&[Scope::JobsSubmit]).await?.tenant;
    let was = JobStatus::read(store, &tenant, job).await?;
    let ledger = Ledger::new(store.clone(), &tenant, job);
    for _ in 0..LOOKS_MAX {
        let Some(entry) = ledger.head().await?.filter(|entry| !entry.job.deleted) else { return Ok(None) };
        let life = entry.job.life;
        let key = ledger.keys_of(entry.job.at()).manifest();
        let Some(bytes) = store.get(&key, MANIFEST_BYTES_MAX).await? else { return Ok(None) };
        let manifest = Manifest::parse(&bytes).map_err(StatusError::from)?;
        let (job, tenant, ledger) = (job.clone(), tenant.clone(), ledger.clone());
        let (name, manifest_sha256) = (was.name.clone().unwrap_or_default(), Digest::of(&bytes));
        let prepared = Prepared { job, tenant, life, ledger, name, manifest, manifest_sha256 };
        match entry.job.plan(life, true) {
            Plan::Reopen => return Ok(None),
            Plan::Conclude => drop(concluded(&prepared, entry).await?),
            Plan::Join => return Ok(Some(submitted(&prepared, &entry, 0, was.state))),
            Plan::Begin => {
                let holder = entry.job.holders.is_empty().then_some(DIRECT);
                let begun = begin(signer, broker, &prepared, entry, holder, window_s, &report).await?;
                if let Some((entry, published)) = begun {
                    return Ok(Some(submitted(&prepared, &entry, published, was.state)));
                }
            }
        }
    }
    Err(LedgerError::Contended.into())
}

fn submitted(prepared: &Prepared, entry: &Entry, published: u32, was: JobState) -> Submitted {
    let RunId { life, run } = entry.job.at();
    Submitted {
        job: prepared.job.clone(),
        tenant: prepared.tenant.clone(),
        life,
        run,
        entry: entry.number,
        rows: prepared.manifest.rows,
        rejected: prepared.manifest.rejected,
        chunks: prepared.manifest.chunk_count(),
        published,
        was,
    }
}

/// Sees the run that counts to its end, if that has come; nobody is waited for.
pub async fn concluded(prepared: &Prepared, entry: Entry) -> Result<Entry, LedgerError> {
    let Prepared { ledger, manifest, manifest_sha256, .. } = prepared;
    Ok(conclude(ledger, entry, manifest, *manifest_sha256, false, |_| {}).await?.entry())
}

/// Begins a run and publishes what is not done of the job; gives the entry with which it began and the number of messages. `None` where
/// another was faster.
async fn begin(
    signer: &SignerClient,
    broker: &BrokerSettings,
    prepared: &Prepared,
    entry: Entry,
    holder: Option<&str>,
    window_s: u64,
    report: &impl Fn(Event),
) -> Result<Option<(Entry, u32)>, SubmitError> {
    let manifest = &prepared.manifest;
    let grant = async |at: RunId| {
        // Splitting may have outlived an earlier token.
        let access = signer.access_token(&[Scope::JobsSubmit]).await?;
        let request = GrantRequest {
            job: prepared.job.clone(),
            manifest_sha256: prepared.manifest_sha256,
            model: manifest.spec.model.clone(),
            dimensions: manifest.spec.dimensions,
            rows: manifest.rows,
            window_s,
            life: Some(at.life),
            run: Some(at.run),
        };
        signer.job_grant(&access, &request).await
    };
    let Some(Begun { entry, missing, grant }) = begin_run(prepared, entry, holder, grant).await? else {
        return Ok(None);
    };
    let run = entry.job.at().run;
    let published = missing.len() as u32;
    if published > 0 {
        report(Event::Publishing(published));
        let url = broker.amqp_url.as_deref().unwrap_or_default();
        let connection = connect(url, "vecmill submit", &broker.tls).await.map_err(PublishError::from)?;
        let publisher = Publisher::open(&connection).await.map_err(PublishError::from)?;
        let topology = broker.topology();
        let lane = topology.lane_key_of(grant.lane);
        topology.check_lane(&connection, &lane).await.map_err(PublishError::from)?;
        if let Some(precision) = manifest.spec.precision
            && publisher.workers_in(&topology, precision).await.map_err(PublishError::from)? == 0
        {
            report(Event::NobodyComputes(precision));
        }
        let messages = missing.into_iter().map(|chunk| message(manifest, run, chunk, &grant.grant).to_bytes());
        publisher.publish_all(&topology.jobs_exchange(), &lane, messages, || report(Event::Published)).await?;
    }
    under_way(prepared, &entry, published).await?;
    Ok(Some((entry, published)))
}

/// Writes that all messages of a run that began with `entry` are there; or its end, where it has none because every chunk was done
/// before: nobody else has a reason to look then. Until either is written, the run is one that a submission takes up.
pub async fn under_way(prepared: &Prepared, entry: &Entry, messages: u32) -> Result<(), LedgerError> {
    if messages == 0 {
        concluded(prepared, entry.clone()).await?;
    } else {
        let run = entry.job.at().run;
        prepared.ledger.append(|_| Ok(LifeEvent::Publish(run))).await?;
    }
    Ok(())
}

/// A run that has begun.
#[derive(Debug)]
pub struct Begun {
    /// The entry with which it began.
    pub entry: Entry,
    /// The chunks that are to be computed.
    pub missing: Vec<u32>,
    /// Its grant.
    pub grant: JobGrant,
}

/// Begins the next run of a job that stands as `entry` says, with a grant for it. `None` where another was faster: then the grant is
/// for a run of somebody else's, and goes nowhere.
pub async fn begin_run<E>(
    prepared: &Prepared,
    entry: Entry,
    holder: Option<&str>,
    grant: impl AsyncFnOnce(RunId) -> Result<JobGrant, E>,
) -> Result<Option<Begun>, SubmitError>
where
    SubmitError: From<E>,
{
    let at = entry.job.next();
    let chunks = prepared.manifest.chunk_count();
    let grant = grant(at).await?;
    let (inherited, missing) = match &entry.job.run {
        None => (None, (0..chunks).collect()),
        Some(run) => {
            let store = prepared.ledger.store();
            RunView::open(store, &prepared.keys(), run, chunks).await?.bequeath(store).await?
        }
    };
    let new = NewRun {
        at,
        holder: holder.map(str::to_owned),
        expires_at: jiff::Timestamp::from_second(grant.expires_at as i64).unwrap_or(jiff::Timestamp::MAX),
        name: prepared.name.clone(),
        lane: Some(grant.lane),
        inherited,
    };
    // What was inherited is of the run before: it must be that one which the new one follows, and of the life that was cut.
    let follows = |job: &Job| job.next() == at && job.life == prepared.life && !job.deleted;
    let appended = prepared.ledger.append(|head| match head {
        Some(head) if follows(&head.job) => Ok(LifeEvent::Begin(new.clone())),
        _ => Err(Moot::Superseded),
    });
    match appended.await? {
        Appended::Written(entry) => Ok(Some(Begun { entry, missing, grant })),
        Appended::Moot(Moot::TooManyHolders, _) => Err(SubmitError::TooManyHolders),
        Appended::Moot(..) => Ok(None),
    }
}

/// The message of one chunk.
pub fn message(manifest: &Manifest, run: u32, chunk: u32, grant: &str) -> ChunkMessage {
    ChunkMessage {
        version: CONTRACT_VERSION,
        job: manifest.job.to_string(),
        run,
        chunk,
        sha256: manifest.chunks[chunk as usize].sha256,
        grant: grant.to_owned(),
    }
}
