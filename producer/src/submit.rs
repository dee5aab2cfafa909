//! Submitting: prepare, have it signed, publish one small message a chunk. Idempotent at every step.

use std::collections::HashSet;

use vecmill_signer::{
    claims::{Digest, JobId, Scope, TenantId},
    client::{ClientError, GrantRequest, SignerClient},
};

use crate::{
    contract::{CONTRACT_VERSION, ChunkMessage, JobKeys, JobSpec, MANIFEST_BYTES_MAX, Manifest, SpecError, Submission},
    prepare::{Corpus, Event, PrepareError, Prepared, prepare},
    publish::{PublishError, Publisher, connect},
    status::{JobState, JobStatus, StatusError},
    store::{Store, StoreError},
    topology::BrokerSettings,
};

/// What a submission came to.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Submitted {
    /// The job.
    pub job: JobId,
    /// The tenant that it belongs to.
    pub tenant: TenantId,
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
    /// The job's state can't be read.
    #[error(transparent)]
    Status(#[from] StatusError),
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
    let prepared = prepare(store, &access.tenant, &what.spec, &what.corpus, report.clone()).await?;
    enter(store, signer, broker, &access.tenant, &prepared, what.window_s, what.republish, report).await
}

/// Submits a job whose corpus lies on S3 in chunks, or takes it up again where it was.
#[expect(clippy::too_many_arguments, reason = "the servers, the job, and how: none of them belongs to another")]
pub async fn enter(
    store: &Store,
    signer: &SignerClient,
    broker: &BrokerSettings,
    tenant: &TenantId,
    prepared: &Prepared,
    window_s: u64,
    republish: bool,
    report: impl Fn(Event),
) -> Result<Submitted, SubmitError> {
    let status = JobStatus::read(store, tenant, &prepared.job).await?;
    let mut submitted = Submitted {
        job: prepared.job.clone(),
        tenant: tenant.clone(),
        rows: prepared.manifest.rows,
        rejected: prepared.manifest.rejected,
        chunks: prepared.manifest.chunk_count(),
        published: 0,
        was: status.state,
    };
    let takes_up = match status.state {
        JobState::Completed => false,
        JobState::Queued | JobState::Running | JobState::Finalizing => republish,
        JobState::Validating | JobState::Failed | JobState::Expired | JobState::Cancelled => true,
    };
    if !takes_up {
        return Ok(submitted);
    }
    submitted.published = take_up(store, signer, broker, prepared, window_s, report).await?;
    Ok(submitted)
}

/// Takes a job up again from what is on S3, without its corpus: for a broker that lost its queues, or after a failure,
/// an expiry or a cancellation. `None` where there is no such job.
pub async fn repair(
    store: &Store,
    signer: &SignerClient,
    broker: &BrokerSettings,
    job: &JobId,
    window_s: u64,
    report: impl Fn(Event),
) -> Result<Option<Submitted>, SubmitError> {
    let tenant = signer.access_token(&[Scope::JobsSubmit]).await?.tenant;
    let keys = JobKeys::new(&tenant, job);
    let Some(bytes) = store.get(&keys.manifest(), MANIFEST_BYTES_MAX).await? else { return Ok(None) };
    let manifest = Manifest::parse(&bytes).map_err(StatusError::from)?;
    let was = JobStatus::read(store, &tenant, job).await?;
    let name = was.name.unwrap_or_default();
    let prepared =
        Prepared { job: job.clone(), keys, name, manifest, manifest_sha256: Digest::of(&bytes), known: true };
    let published = match was.state {
        JobState::Completed => 0,
        _ => take_up(store, signer, broker, &prepared, window_s, report).await?,
    };
    Ok(Some(Submitted {
        job: prepared.job,
        tenant,
        rows: prepared.manifest.rows,
        rejected: prepared.manifest.rejected,
        chunks: prepared.manifest.chunk_count(),
        published,
        was: was.state,
    }))
}

/// Has a prepared job signed and publishes what is not done of it; gives the number of messages.
async fn take_up(
    store: &Store,
    signer: &SignerClient,
    broker: &BrokerSettings,
    prepared: &Prepared,
    window_s: u64,
    report: impl Fn(Event),
) -> Result<u32, SubmitError> {
    // Splitting may have outlived an earlier token.
    let access = signer.access_token(&[Scope::JobsSubmit]).await?;
    let manifest = &prepared.manifest;
    let request = GrantRequest {
        job: prepared.job.clone(),
        manifest_sha256: prepared.manifest_sha256,
        model: manifest.spec.model.clone(),
        dimensions: manifest.spec.dimensions,
        rows: manifest.rows,
        window_s,
    };
    let grant = signer.job_grant(&access, &request).await?;
    let mut missing = clear_the_way(store, prepared).await?;
    if missing.is_empty() {
        // Every chunk is done and the job's end is not written: any chunk's delivery has a worker look.
        missing.push(manifest.chunk_count() - 1);
    }
    let mut submission = Submission {
        version: CONTRACT_VERSION,
        submitted_at: jiff::Timestamp::now(),
        expires_at: jiff::Timestamp::from_second(grant.expires_at as i64).unwrap_or(jiff::Timestamp::MAX),
        published: false,
        name: prepared.name.clone(),
        lane: Some(grant.lane),
    };
    store.put_json(&prepared.keys.submission(), &submission).await?;

    let published = missing.len() as u32;
    report(Event::Publishing(published));
    let url = broker.amqp_url.as_deref().unwrap_or_default();
    let connection = connect(url, "vecmill submit", &broker.tls).await.map_err(PublishError::from)?;
    let publisher = Publisher::open(&connection).await.map_err(PublishError::from)?;
    let topology = broker.topology();
    publisher.declare(&topology).await.map_err(PublishError::from)?;
    if let Some(precision) = manifest.spec.precision
        && publisher.workers_in(&topology, precision).await.map_err(PublishError::from)? == 0
    {
        report(Event::NobodyComputes(precision));
    }
    let messages = missing.into_iter().map(|chunk| message(manifest, chunk, &grant.grant).to_bytes());
    let lane = topology.lane_key_of(grant.lane);
    publisher.publish_all(&topology.jobs_exchange(), &lane, messages, || report(Event::Published)).await?;
    submission.published = true;
    store.put_json(&prepared.keys.submission(), &submission).await?;
    Ok(published)
}

/// The message of one chunk.
pub fn message(manifest: &Manifest, chunk: u32, grant: &str) -> ChunkMessage {
    ChunkMessage {
        version: CONTRACT_VERSION,
        job: manifest.job.to_string(),
        chunk,
        sha256: manifest.chunks[chunk as usize].sha256,
        grant: grant.to_owned(),
    }
}

/// Removes what ended an earlier run (the cancellation, the dead chunks' records and what led to them, the summary that
/// names them) and gives the chunks that are not done.
pub async fn clear_the_way(store: &Store, prepared: &Prepared) -> Result<Vec<u32>, StoreError> {
    let keys = &prepared.keys;
    let dead = store.list(&keys.dead_prefix(), None).await?;
    let trials = store.list(&keys.trials_prefix(), None).await?;
    for object in dead.iter().chain(&trials) {
        store.delete(&object.key).await?;
    }
    if !dead.is_empty() {
        store.delete(&keys.final_manifest()).await?;
    }
    store.delete(&keys.cancelled()).await?;
    store.delete(&keys.paused()).await?;
    let done = store.list(&keys.done_prefix(), None).await?;
    let done: HashSet<u32> = done.iter().filter_map(|object| crate::contract::chunk_of_key(&object.key)).collect();
    Ok((0..prepared.manifest.chunk_count()).filter(|chunk| !done.contains(chunk)).collect())
}
