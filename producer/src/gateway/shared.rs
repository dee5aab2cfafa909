//! What gateways share in Redis beside the counts of requests: who prepares which batch, which batch was asked for twice, and
//! how much each tenant has queued. Redis may be flushed: a batch may then be prepared twice, which comes to the same, and
//! what is queued is counted anew.

use std::time::Duration;

use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{AsyncTypedCommands as _, ExistenceCheck, RedisError, Script, SetExpiry, SetOptions, cmd};
use vecmill_signer::claims::{JobId, Limits, TenantId};

use super::error::ApiError;
use crate::prepare::Prepared;
use crate::read::InputFormat;
use crate::redis::Redis;
use crate::status::JobStatus;
use crate::store::Store;

/// How long a gateway that has died is waited for.
const HELD_S: u64 = 15;
/// How often one that lives says so.
const HOLD_AGAIN: Duration = Duration::from_secs(4);
/// Bytes of a text that stand for a token until it is counted: fewer than most languages have, so that too much is reserved.
const BYTES_PER_TOKEN: u64 = 4;

/// Redis, for all of that.
pub(super) struct Shared {
    redis: Redis,
    reserve: Script,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

/// A batch that this gateway prepares.
pub(super) struct Held<'a> {
    shared: &'a Shared,
    key: String,
}

impl Shared {
    pub(super) fn new(redis: Redis) -> Self {
        Self { redis, reserve: Script::new(include_str!("reserve.lua")) }
    }

    /// Remembers `value` under `name`, or gives what is remembered already.
    pub(super) async fn remember(
        &self,
        tenant: &TenantId,
        name: &str,
        value: &str,
        kept_s: u64,
    ) -> Result<Option<String>, ApiError> {
        let key = format!("vecmill:{{{tenant}}}:once:{name}");
        let key = &key;
        let asked = self.redis.ask(|mut line| async move {
            if set_new(&mut line, key, value, kept_s).await? { Ok(None) } else { line.get(key).await.map(Some) }
        });
        Ok(asked.await?.map(Option::unwrap_or_default))
    }

    /// Undoes [`Self::remember`]; where that fails, it is forgotten in time.
    pub(super) async fn forget(&self, tenant: &TenantId, name: &str) {
        let key = format!("vecmill:{{{tenant}}}:once:{name}");
        let key = &key;
        _ = self.redis.ask(|mut line| async move { line.del(key).await }).await;
    }

    /// Makes a batch this gateway's to prepare, unless another is at it.
    pub(super) async fn hold(&self, tenant: &TenantId, batch: &str) -> Option<Held<'_>> {
        let key = format!("vecmill:{{{tenant}}}:preparing:{batch}");
        let of = &key;
        let held = self.redis.ask(|mut line| async move { set_new(&mut line, of, "1", HELD_S).await }).await;
        // Without Redis nobody can be asked; the same work done twice does no harm, but it waits for the next request.
        held.unwrap_or(false).then_some(Held { shared: self, key })
    }

    /// The same for work that is no tenant's.
    pub(super) async fn hold_globally(&self, name: &str) -> Option<Held<'_>> {
        let key = format!("vecmill:gateways:{name}");
        let of = &key;
        let held = self.redis.ask(|mut line| async move { set_new(&mut line, of, "1", HELD_S).await }).await;
        held.unwrap_or(false).then_some(Held { shared: self, key })
    }

    /// Reserves a job's tokens, as far as its size tells them, and its place among the tenant's jobs. The inner refusal is
    /// that it is over a limit, in a sentence.
    pub(super) async fn reserve(
        &self,
        store: &Store,
        tenant: &TenantId,
        limits: Limits,
        prepared: &Prepared,
        expires_at: u64,
    ) -> Result<(), Result<String, ApiError>> {
        let tokens = tokens_about(prepared);
        let sentence = match self.ask(tenant, limits, &prepared.job, tokens, expires_at).await.map_err(Err)? {
            None => return Ok(()),
            Some(_) => {
                // What has ended since is on S3, which nobody told Redis.
                self.count_anew(store, tenant).await.map_err(Err)?;
                self.ask(tenant, limits, &prepared.job, tokens, expires_at).await.map_err(Err)?
            }
        };
        match sentence {
            None => Ok(()),
            Some(sentence) => Err(Ok(sentence)),
        }
    }

    async fn ask(
        &self,
        tenant: &TenantId,
        limits: Limits,
        job: &JobId,
        tokens: u64,
        expires_at: u64,
    ) -> Result<Option<String>, ApiError> {
        let mut invocation = self.reserve.prepare_invoke();
        invocation.key(queued_key(tenant)).arg(job.as_str()).arg(tokens).arg(expires_at);
        invocation.arg(limits.concurrent_jobs).arg(limits.queued_tokens);
        let invocation = &invocation;
        let asked = self.redis.ask(|mut line| async move { invocation.invoke_async::<(String, u64)>(&mut line).await });
        let (over, queued) = asked.await?;
        Ok(match over.as_str() {
            "jobs" => Some(format!(
                "the tenant has {queued} jobs under way and may have {} (concurrent_jobs): wait for one to end",
                limits.concurrent_jobs
            )),
            "tokens" => Some(format!(
                "the tenant has about {queued} tokens queued and this job about {tokens}; it may have {} \
                 (queued_tokens): wait for some to be done, or submit less at once",
                limits.queued_tokens
            )),
            _ => None,
        })
    }

    /// Gives back what jobs have reserved that have ended, and of those that run what is done.
    async fn count_anew(&self, store: &Store, tenant: &TenantId) -> Result<(), ApiError> {
        for (job, tokens, expires_at) in self.queued(tenant).await? {
            let Ok(job) = JobId::try_from(job) else { continue };
            let status = JobStatus::read(store, tenant, &job).await?;
            let left = tokens_left(&status, tokens);
            if status.state.is_final() || !status.is_known() {
                self.give_back(tenant, &job).await;
            } else if left < tokens {
                let entry = format!("{left} {expires_at}");
                let (job, entry) = (&job, &entry);
                let asked = self
                    .redis
                    .ask(|mut line| async move { line.hset(queued_key(tenant), job.as_str(), entry.as_str()).await });
                asked.await?;
            }
        }
        Ok(())
    }

    /// What each of a tenant's jobs has reserved: the job, tokens, and when it ends at the latest, in Unix seconds.
    pub(super) async fn queued(&self, tenant: &TenantId) -> Result<Vec<(String, u64, u64)>, ApiError> {
        let asked = self.redis.ask(|mut line| async move {
            cmd("HGETALL").arg(queued_key(tenant)).query_async::<Vec<(String, String)>>(&mut line).await
        });
        let entries = asked.await?;
        let parsed = entries.into_iter().filter_map(|(job, entry)| {
            let (tokens, expires_at) = entry.split_once(' ')?;
            Some((job, tokens.parse().ok()?, expires_at.parse().ok()?))
        });
        Ok(parsed.collect())
    }

    /// Gives back what a job has reserved; where that fails, whoever next finds no room does.
    pub(super) async fn give_back(&self, tenant: &TenantId, job: &JobId) {
        _ = self.redis.ask(|mut line| async move { line.hdel(queued_key(tenant), job.as_str()).await }).await;
    }

    /// Redis itself, for a question of the caller's own.
    pub(super) fn redis(&self) -> &Redis {
        &self.redis
    }
}

impl Held<'_> {
    /// Says again and again that the batch is at work; never ends.
    pub(super) async fn keep(&self) {
        loop {
            tokio::time::sleep(HOLD_AGAIN).await;
            let key = &self.key;
            let asked =
                self.shared.redis.ask(|mut line| async move { line.set_options(key, "1", options(HELD_S)).await });
            _ = asked.await;
        }
    }

    /// Lets others have it.
    pub(super) async fn release(self) {
        let key = &self.key;
        _ = self.shared.redis.ask(|mut line| async move { line.del(key).await }).await;
    }
}

/// A job's tokens before anybody has counted them.
fn tokens_about(prepared: &Prepared) -> u64 {
    let input = &prepared.manifest.input;
    match input.format {
        // Compressed inside, three or four times.
        InputFormat::Parquet => input.bytes,
        InputFormat::Jsonl | InputFormat::Csv | InputFormat::Lines => input.bytes.div_ceil(BYTES_PER_TOKEN),
    }
}

/// Of a job's reserved tokens, those of the rows that wait.
fn tokens_left(status: &JobStatus, reserved: u64) -> u64 {
    (reserved as f64 * status.rows_waiting as f64 / status.rows.max(1) as f64).ceil() as u64
}

fn queued_key(tenant: &TenantId) -> String {
    format!("vecmill:{{{tenant}}}:queued")
}

fn options(kept_s: u64) -> SetOptions {
    SetOptions::default().with_expiration(SetExpiry::EX(kept_s))
}

/// Whether the key is new.
async fn set_new(line: &mut MultiplexedConnection, key: &str, value: &str, kept_s: u64) -> Result<bool, RedisError> {
    let options = options(kept_s).conditional_set(ExistenceCheck::NX);
    Ok(line.set_options(key, value, options).await?.is_some())
}
