//! A job from corpus to `_SUCCESS` in this process, and what its deliveries come to.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};
use vecmill_producer::{
    contract::JobSpec,
    life::{DIRECT, Plan},
    prepare::{Corpus, Event, Prepared, prepare},
    store::Store,
    submit::{Begun, SubmitError, begin_run, concluded, message, under_way},
};
use vecmill_signer::{
    claims::{Limits, RunId, TenantId},
    client::ClientError,
    keys::SigningKey,
    mint::{Grantee, Minter},
    verify::{Keys, Verifier},
    wire::{GrantRequest, JobGrant},
};

use super::s3;
use crate::{
    delivery::{Delivery, Incoming, Settle},
    embedder::Embedder,
    engine::Tokenizer,
    health::Health,
    metrics::Metrics,
    model_source::ModelSource,
    pipeline::{Parts, Pipeline},
    quota,
    request_audit::RequestAudit,
    settings::CHUNK_MEMORY_BYTES,
};

/// The only tenant there is.
const TENANT: &str = "local";
const ISSUER: &str = "vecmill-local";
/// Seconds that a job may take: a laptop may be closed for the night.
const WINDOW_S: u64 = 7 * 24 * 3600;
/// Deliveries at once: one is computed, others are read, tokenized and written meanwhile.
const IN_FLIGHT_MAX: usize = 4;
/// Tokens in a batch on a CPU: enough to fill two cores' caches, little enough that progress moves.
const BATCH_TOKENS: usize = 2048;

/// What every local job shares.
pub(super) struct Local {
    pub(super) store: Store,
    pub(super) tenant: TenantId,
    pub(super) embedder: Embedder,
    pub(super) tokenizer: Tokenizer,
    minter: Minter,
    deliveries: mpsc::Sender<Delivery>,
    // Dropping it would read as giving up.
    _give_up: watch::Sender<bool>,
}

/// A chunk that was given up.
pub(super) struct GivenUp {
    pub(super) chunk: u32,
    pub(super) reason: String,
}

impl Local {
    /// Starts the S3 server over `root`, the model and the pipeline.
    pub(super) async fn start(root: &Path, source: ModelSource) -> anyhow::Result<Self> {
        let store = s3::start(root).await?;
        let model = source.model.clone();
        let (loaded, tokenizer) = tokio::task::spawn_blocking(move || source.load()).await??;
        let metrics = Arc::new(Metrics::default());
        let batch_tokens = loaded.info().batch_tokens.unwrap_or(BATCH_TOKENS);
        let embedder = Embedder::start(loaded, batch_tokens, metrics.clone())?;
        let minter = Minter::new(ISSUER.to_owned(), SigningKey::generate()?);
        let (quota, asks) = mpsc::channel(IN_FLIGHT_MAX);
        tokio::spawn(quota::memory::serve(quota::memory::MemoryQuota::new(), asks));
        let worker = "vecmill-local".to_owned();
        let (request_audit, _) = RequestAudit::start(store.clone(), worker.clone());
        let pipeline = Pipeline::new(Parts {
            store: store.clone(),
            verifier: Verifier::new(ISSUER.to_owned(), Keys::Fixed(minter.public_keys())),
            quota,
            embedder: embedder.clone(),
            tokenizer: tokenizer.clone(),
            model,
            worker,
            audit: store.clone(),
            request_audit,
            health: Arc::new(Health::default()),
            metrics,
            tokenizers: std::thread::available_parallelism().map_or(1, usize::from),
            chunk_memory_bytes: CHUNK_MEMORY_BYTES,
        });
        let (deliveries, received) = mpsc::channel(1);
        let (give_up, given_up) = watch::channel(false);
        tokio::spawn(pipeline.serve(received, given_up));
        let tenant = TENANT.parse()?;
        Ok(Self { store, tenant, embedder, tokenizer, minter, deliveries, _give_up: give_up })
    }

    /// Cuts the corpus, unless that was done before.
    pub(super) async fn prepare(
        &self,
        spec: &JobSpec,
        corpus: &Corpus,
        report: impl Fn(Event) + Send + Clone + 'static,
    ) -> anyhow::Result<Prepared> {
        Ok(prepare(&self.store, &self.tenant, spec, corpus, report).await?)
    }

    /// Begins a run of what is not done of the job; `None` where all of it is.
    pub(super) async fn take_up(&self, prepared: &Prepared) -> anyhow::Result<Option<Begun>> {
        let ledger = &prepared.ledger;
        loop {
            let entry = ledger.head().await?.context("the job was deleted meanwhile")?;
            match entry.job.plan(prepared.life, true) {
                Plan::Join => return Ok(None),
                Plan::Reopen => anyhow::bail!("the job was deleted meanwhile: start again"),
                Plan::Conclude => drop(concluded(prepared, entry).await?),
                Plan::Begin => {
                    let grant = async |at| self.grant(prepared, at);
                    if let Some(begun) = begin_run(prepared, entry, Some(DIRECT), grant).await? {
                        under_way(prepared, &begun.entry, begun.missing.len() as u32).await?;
                        return Ok(Some(begun));
                    }
                }
            }
        }
    }

    /// Takes the chunks of a run through the pipeline; `settled` is called with each that has ended. Gives those that
    /// were given up.
    pub(super) async fn embed(
        &self,
        prepared: &Prepared,
        begun: &Begun,
        settled: impl Fn(u32),
    ) -> anyhow::Result<Vec<GivenUp>> {
        let run = begun.entry.job.at().run;
        let mut given_up = Vec::new();
        let mut running: JoinSet<anyhow::Result<(u32, Option<GivenUp>)>> = JoinSet::new();
        let mut waiting = begun.missing.iter();
        loop {
            while running.len() < IN_FLIGHT_MAX
                && let Some(&chunk) = waiting.next()
            {
                let body = message(&prepared.manifest, run, chunk, &begun.grant.grant).to_bytes();
                running.spawn(deliver(self.deliveries.clone(), chunk, body));
            }
            match running.join_next().await {
                None => return Ok(given_up),
                Some(ended) => {
                    let (chunk, ended) = ended??;
                    settled(chunk);
                    given_up.extend(ended);
                }
            }
        }
    }

    fn grant(&self, prepared: &Prepared, at: RunId) -> Result<JobGrant, SubmitError> {
        let grantee = Grantee {
            tenant: self.tenant.clone(),
            key_id: "local".to_owned(),
            client_addr: None,
            lane: 0,
            limits: Limits {
                requests_per_minute: u64::MAX,
                tokens_per_minute: u64::MAX,
                tokens_burst: u64::MAX,
                tokens_per_day: u64::MAX,
                queued_tokens: u64::MAX,
                concurrent_jobs: u64::MAX,
                stored_bytes: None,
            },
            epoch: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        };
        let request = GrantRequest {
            job: prepared.job.clone(),
            manifest_sha256: prepared.manifest_sha256,
            model: prepared.manifest.spec.model.clone(),
            dimensions: prepared.manifest.spec.dimensions,
            rows: prepared.manifest.rows,
            window_s: WINDOW_S,
            life: Some(at.life),
            run: Some(at.run),
        };
        let unsigned = |_| ClientError::Protocol("the grant could not be signed");
        let (grant, claims) = self.minter.mint_grant(grantee, request).map_err(unsigned)?;
        Ok(JobGrant { grant, tenant: claims.sub, lane: claims.lane, expires_at: claims.exp })
    }
}

/// Hands a chunk in until it is settled for good: what RabbitMQ's wait ladder does, in memory.
async fn deliver(
    deliveries: mpsc::Sender<Delivery>,
    chunk: u32,
    body: Vec<u8>,
) -> anyhow::Result<(u32, Option<GivenUp>)> {
    let mut incoming = Incoming { body: body.into(), attempt: 0, lost_deliveries: 0 };
    loop {
        let (settle, settled) = oneshot::channel();
        let delivery = Delivery { incoming: incoming.clone(), settle };
        deliveries.send(delivery).await.context("the pipeline has ended")?;
        match settled.await.context("a chunk's task ended early")? {
            Settle::Done => return Ok((chunk, None)),
            Settle::Later { wait } => tokio::time::sleep(wait).await,
            Settle::Retry { .. } => {
                incoming.attempt += 1;
                tokio::time::sleep(Duration::from_secs(1 << incoming.attempt.min(5))).await;
            }
            Settle::Dead { code, reason } => {
                return Ok((chunk, Some(GivenUp { chunk, reason: format!("{reason} [{code}]") })));
            }
            Settle::HandBack => anyhow::bail!("the pipeline handed a chunk back"),
        }
    }
}
