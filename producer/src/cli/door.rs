//! The two ways to a job: straight to the cluster's servers, or through a gateway. Commands do not care which.

use std::path::Path;

use vecmill_signer::claims::{JobId, Scope, TenantId};
use vecmill_signer::client::SignerClient;

use super::output::Failure;
use crate::{
    client::{Events, GatewayClient},
    control,
    fetch::{Fetched, fetch, fetch_from_gateway},
    status::{JobStatus, Watch, list_jobs},
    store::Store,
    submit::{Submitted, repair},
    topology::BrokerSettings,
};

/// Jobs looked at once for a list; each is a handful of S3 requests.
const LOOKS_MAX: usize = 8;

/// A way to the tenant's jobs.
#[expect(clippy::large_enum_variant, reason = "a process has one")]
pub(super) enum Door {
    /// Inside the cluster.
    Cluster { store: Store, signer: SignerClient, broker: Option<BrokerSettings> },
    /// From outside.
    Gateway(GatewayClient),
}

/// What can be said to a job that is under way.
#[derive(Clone, Copy)]
pub(super) enum Word {
    Cancel,
    Pause,
    Resume,
}

/// A job that is looked at again and again.
#[expect(clippy::large_enum_variant, reason = "a process has one")]
pub(super) enum Watching {
    Cluster(Watch),
    Gateway { client: GatewayClient, job: JobId, events: Option<Events> },
}

/// The failure for a job that is not there (or is another tenant's: the same).
fn no_such_job(job: &JobId) -> Failure {
    Failure::Input(format!("there is no job {job} for this API key's tenant; `vecmill list` shows those there are"))
}

async fn tenant(signer: &SignerClient, scope: Scope) -> Result<TenantId, Failure> {
    Ok(signer.access_token(&[scope]).await?.tenant)
}

impl Door {
    /// Every job, the newest last, and the tenant where it is known.
    pub(super) async fn list(&self) -> Result<Vec<JobStatus>, Failure> {
        use futures_util::{StreamExt as _, TryStreamExt as _, stream};
        let (store, tenant) = match self {
            Self::Gateway(client) => return Ok(client.jobs().await?),
            Self::Cluster { store, signer, .. } => (store, tenant(signer, Scope::JobsRead).await?),
        };
        let jobs = list_jobs(store, &tenant).await?;
        let looks = stream::iter(&jobs).map(|job| JobStatus::read(store, &tenant, job)).buffered(LOOKS_MAX);
        let mut statuses: Vec<JobStatus> = looks.try_collect().await?;
        // What `status` would call unknown is not listed either.
        statuses.retain(JobStatus::is_known);
        statuses.sort_by_key(|status| status.submitted_at);
        Ok(statuses)
    }

    /// A job to look at, if it is there.
    pub(super) async fn watch(&self, job: &JobId) -> Result<Watching, Failure> {
        match self {
            Self::Cluster { store, signer, .. } => {
                let watch = Watch::new(store.clone(), &tenant(signer, Scope::JobsRead).await?, job);
                if watch.exists().await? { Ok(Watching::Cluster(watch)) } else { Err(no_such_job(job)) }
            }
            Self::Gateway(client) => {
                let watching = Watching::Gateway { client: client.clone(), job: job.clone(), events: None };
                client.job(job).await?.map(|_| watching).ok_or_else(|| no_such_job(job))
            }
        }
    }

    /// Says something to a job; gives where it stands then. One that has ended hears nothing.
    pub(super) async fn say(&self, job: &JobId, word: Word) -> Result<JobStatus, Failure> {
        let (store, tenant) = match self {
            Self::Gateway(client) => {
                let word = match word {
                    Word::Cancel => "cancel",
                    Word::Pause => "pause",
                    Word::Resume => "resume",
                };
                return client.say(job, word).await?.ok_or_else(|| no_such_job(job));
            }
            Self::Cluster { store, signer, .. } => (store, tenant(signer, Scope::JobsCancel).await?),
        };
        let mut watch = Watch::new(store.clone(), &tenant, job);
        if !watch.exists().await? {
            return Err(no_such_job(job));
        }
        if !watch.look().await?.state.is_final() {
            match word {
                Word::Cancel => control::cancel(watch.ledger()).await?,
                Word::Pause => control::pause(watch.ledger()).await?,
                Word::Resume => control::resume(watch.ledger()).await?,
            };
        }
        Ok(watch.look().await?)
    }

    /// Publishes again what is not done of a job. `progress` hears of (messages published, messages in all); a gateway tells
    /// nothing of them.
    pub(super) async fn repair(
        &self,
        job: &JobId,
        window_hours: u64,
        progress: impl Fn(crate::prepare::Event),
    ) -> Result<Submitted, Failure> {
        let repaired = match self {
            Self::Gateway(client) => client.retry(job, window_hours).await?,
            Self::Cluster { store, signer, broker } => {
                let broker = broker.as_ref().ok_or_else(|| Failure::Settings(vec!["no broker".to_owned()]))?;
                repair(store, signer, broker, job, window_hours * 3600, progress).await?
            }
        };
        repaired.ok_or_else(|| no_such_job(job))
    }

    /// Fetches what is finished of a job.
    pub(super) async fn fetch(
        &self,
        job: &JobId,
        dir: &Path,
        progress: impl Fn(usize, usize),
    ) -> Result<Fetched, Failure> {
        let (store, tenant) = match self {
            Self::Gateway(client) => {
                let fetched = fetch_from_gateway(client, job, dir, progress).await?;
                return fetched.ok_or_else(|| no_such_job(job));
            }
            Self::Cluster { store, signer, .. } => (store, tenant(signer, Scope::VectorsRead).await?),
        };
        let watch = Watch::new(store.clone(), &tenant, job);
        if !watch.exists().await? {
            return Err(no_such_job(job));
        }
        fetch(store, &watch, dir, progress).await?.ok_or_else(|| no_such_job(job))
    }
}

impl Watching {
    /// Where the job stands now.
    pub(super) async fn look(&mut self) -> Result<JobStatus, Failure> {
        match self {
            Self::Cluster(watch) => Ok(watch.look().await?),
            Self::Gateway { client, job, .. } => client.job(job).await?.ok_or_else(|| no_such_job(job)),
        }
    }

    /// Where it stands once that has changed, or after `LOOK_EVERY` where nobody tells.
    pub(super) async fn next(&mut self) -> Result<JobStatus, Failure> {
        let Self::Gateway { client, job, events } = self else {
            tokio::time::sleep(super::status::LOOK_EVERY).await;
            return self.look().await;
        };
        if events.is_none() {
            *events = Some(client.watch(job).await?);
        }
        let next = match events {
            Some(events) => events.next().await,
            None => Ok(None),
        };
        if !matches!(next, Ok(Some(_))) {
            // The connection is gone: the next look opens another.
            *events = None;
        }
        match next? {
            Some(status) => Ok(status),
            None => self.look().await,
        }
    }
}
