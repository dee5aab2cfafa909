//! What gateways share in Redis beside the counts of requests: who prepares which batch, which batch was asked for twice, and
//! how much each tenant has queued. Redis may be flushed: a batch may then be prepared twice, which comes to the same, and
//! what is queued is counted anew.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::redis::{AsyncTypedCommands as _, ExistenceCheck, RedisError, Script, SetExpiry, SetOptions, cmd};
use vecmill_signer::claims::{JobId, Limits, TenantId};

use super::error::ApiError;
use super::ids;
use super::stored::{Room, Stored, chunks_of, name_of_job, vectors_about};
use crate::contract::Manifest;
use crate::prepare::Prepared;
use crate::redis::Redis;
use crate::status::JobStatus;
use crate::store::Store;

/// How long a gateway that has died is waited for.
const HELD_S: u64 = 15;
/// How often one that lives says so.
const HOLD_AGAIN: Duration = Duration::from_secs(4);
/// Bytes of a text that stand for a token until it is counted: fewer than most languages have, so that too much is reserved.
const BYTES_PER_TOKEN: u64 = 4;

/// Milliseconds after which who is over a limit of what is queued may ask again: jobs end in minutes.
const AGAIN_MS: u64 = 60_000;
/// Objects that were found unreadable and are not looked at again: each some hundred bytes. With more, all are looked at, and
/// logged, once more.
const UNREADABLE_MAX: usize = 10_000;

/// Redis, for all of that. Cheap to clone.
#[derive(Clone)]
pub(super) struct Shared {
    redis: Redis,
    /// Whose gateways share work: those of one bucket.
    bucket: String,
    reserve: Script,
    stored: Stored,
    /// The keys of objects that can't be read, so that each is logged once and costs no further look.
    unreadable: Arc<Mutex<HashSet<String>>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

/// Work that is this gateway's for as long as it says so.
pub(super) struct Held {
    redis: Redis,
    key: String,
    /// Random: whoever finds another's there has lost it, as after a flush.
    holder: String,
}

/// What a job is to be given of its tenant's limits.
pub(super) struct Reservation<'a> {
    pub(super) job: &'a JobId,
    pub(super) tokens: u64,
    pub(super) bytes: u64,
    /// When it ends at the latest, in Unix seconds.
    pub(super) expires_at: u64,
}

/// That a tenant is over a limit.
#[derive(Debug)]
pub(super) struct Over {
    /// The limit's name.
    pub(super) limit: &'static str,
    /// For people.
    pub(super) sentence: String,
}

impl Over {
    pub(super) fn new(limit: &'static str, sentence: String) -> Self {
        Self { limit, sentence }
    }
}

/// 429: who waits, or deletes, may ask again.
impl From<Over> for ApiError {
    fn from(over: Over) -> Self {
        Self::limited(over.limit, over.sentence, AGAIN_MS)
    }
}

/// Either kind of no.
pub(super) fn refusal(no: Result<Over, ApiError>) -> ApiError {
    no.map_or_else(|error| error, ApiError::from)
}

impl<'a> Reservation<'a> {
    /// For the whole of a job whose corpus was cut.
    pub(super) fn of(prepared: &'a Prepared, expires_at: u64) -> Self {
        let manifest = &prepared.manifest;
        Self {
            job: &prepared.job,
            tokens: manifest.text_bytes().div_ceil(BYTES_PER_TOKEN),
            bytes: chunks_of(manifest) + vectors_about(manifest, manifest.rows),
            expires_at,
        }
    }

    /// For what is left of a job: of its rows, those that wait.
    pub(super) fn of_rest(job: &'a JobId, manifest: &Manifest, status: &JobStatus, expires_at: u64) -> Self {
        let tokens = manifest.text_bytes().div_ceil(BYTES_PER_TOKEN);
        // Of a run that ended, rows of chunks that were given up wait for nobody, and are computed again.
        let rows = manifest.rows.saturating_sub(status.rows_done);
        let left = (tokens as f64 * rows as f64 / manifest.rows.max(1) as f64).ceil() as u64;
        Self { job, tokens: left, bytes: vectors_about(manifest, rows), expires_at }
    }
}

impl Shared {
    pub(super) fn new(redis: Redis, bucket: String) -> Self {
        let (reserve, stored) = (Script::new(include_str!("reserve.lua")), Stored::new(redis.clone()));
        Self { redis, bucket, reserve, stored, unreadable: Arc::default() }
    }

    /// How much each tenant has on S3.
    pub(super) fn stored(&self) -> &Stored {
        &self.stored
    }

    /// Whether an object was found unreadable before.
    pub(super) fn is_unreadable(&self, key: &str) -> bool {
        self.unreadable.lock().unwrap_or_else(PoisonError::into_inner).contains(key)
    }

    /// Remembers that an object can't be read, and logs it the first time: by its name, and nothing of what is in it.
    pub(super) fn set_aside(&self, key: &str) {
        let mut unreadable = self.unreadable.lock().unwrap_or_else(PoisonError::into_inner);
        if unreadable.len() >= UNREADABLE_MAX {
            unreadable.clear();
        }
        if unreadable.insert(key.to_owned()) {
            tracing::error!(
                key,
                "an object on S3 can't be read (too long, not JSON, or of a later version) and is passed over: look at it, \
                 and delete it if nobody needs it"
            );
        }
    }

    /// Keys of the next objects under a prefix, and behind which key to go on; nothing more where that is `None`. Those that are set
    /// aside are left out, so that they do not fill the share of what a look is for: it goes on until it has found enough.
    pub(super) async fn list_readable(
        &self,
        store: &Store,
        prefix: &str,
        after: Option<&str>,
        most: usize,
    ) -> Result<(Vec<String>, Option<String>), ApiError> {
        let objects = store.list_some(prefix, after, most).await?;
        // Fewer than were asked for are the last.
        let next = objects.last().filter(|_| objects.len() >= most).map(|last| last.key.clone());
        let keys = objects.into_iter().map(|object| object.key);
        Ok((keys.filter(|key| !self.is_unreadable(key)).collect(), next))
    }

    /// What was read of an object; nothing where what is stored of it is at fault: it is set aside, and keeps nobody from seeing
    /// the others.
    pub(super) fn or_set_aside<T>(&self, key: &str, read: Result<Option<T>, ApiError>) -> Result<Option<T>, ApiError> {
        match read {
            Err(error) if error.is_of_a_record() => {
                self.set_aside(key);
                Ok(None)
            }
            read => read,
        }
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

    /// Makes a piece of work for a tenant this gateway's, such as a batch to prepare, unless another is at it.
    pub(super) async fn hold(&self, tenant: &TenantId, work: &str) -> Option<Held> {
        self.hold_key(format!("vecmill:{{{tenant}}}:preparing:{work}")).await
    }

    /// The same for work that is no tenant's.
    pub(super) async fn hold_globally(&self, name: &str) -> Option<Held> {
        self.hold_key(format!("vecmill:gateways:{}:{name}", self.bucket)).await
    }

    async fn hold_key(&self, key: String) -> Option<Held> {
        let (of, holder) = (&key, &ids::new(""));
        let held = self.redis.ask(|mut line| async move { set_new(&mut line, of, holder, HELD_S).await }).await;
        // Without Redis nobody can be asked; the same work done twice does no harm, but it waits for the next request.
        held.unwrap_or(false).then(|| Held { redis: self.redis.clone(), holder: holder.clone(), key })
    }

    /// Reserves a job's tokens, its place among the tenant's jobs, and room for its vectors: all or nothing. The inner refusal
    /// is that it is over a limit.
    pub(super) async fn reserve(
        &self,
        store: &Store,
        tenant: &TenantId,
        limits: Limits,
        wanted: Reservation<'_>,
    ) -> Result<(), Result<Over, ApiError>> {
        let Reservation { job, tokens, bytes, expires_at } = wanted;
        let name = name_of_job(job);
        let room = Room { name: &name, bytes, until: expires_at, files: 0, batches: 0 };
        let before = self.stored.take(self, store, tenant, limits.stored_bytes, room).await?;
        let mut asked = self.ask(tenant, limits, job, tokens, expires_at).await;
        if let Ok(Some(_)) = asked {
            // What has ended since is on S3, which nobody told Redis.
            asked = match self.count_anew(store, tenant).await {
                Ok(()) => self.ask(tenant, limits, job, tokens, expires_at).await,
                Err(away) => Err(away),
            };
        }
        let no = match asked {
            Ok(None) => return Ok(()),
            Ok(Some(over)) => Ok(over),
            Err(away) => Err(away),
        };
        self.stored.put_back(tenant, &name, &before).await;
        Err(no)
    }

    async fn ask(
        &self,
        tenant: &TenantId,
        limits: Limits,
        job: &JobId,
        tokens: u64,
        expires_at: u64,
    ) -> Result<Option<Over>, ApiError> {
        let mut invocation = self.reserve.prepare_invoke();
        invocation.key(queued_key(tenant)).arg(job.as_str()).arg(tokens).arg(expires_at);
        invocation.arg(limits.concurrent_jobs).arg(limits.queued_tokens);
        let invocation = &invocation;
        let asked = self.redis.ask(|mut line| async move { invocation.invoke_async::<(String, u64)>(&mut line).await });
        let (over, queued) = asked.await?;
        Ok(match over.as_str() {
            "jobs" => Some(Over::new(
                "concurrent_jobs",
                format!(
                    "the tenant has {queued} jobs under way and may have {} (concurrent_jobs): wait for one to end",
                    limits.concurrent_jobs
                ),
            )),
            "tokens" => Some(Over::new(
                "queued_tokens",
                format!(
                    "the tenant has about {queued} tokens queued and this job about {tokens}; it may have {} \
                     (queued_tokens): wait for some to be done, or submit less at once",
                    limits.queued_tokens
                ),
            )),
            _ => None,
        })
    }

    /// Gives back what jobs have reserved that have ended, and of those that run what is done.
    pub(super) async fn count_anew(&self, store: &Store, tenant: &TenantId) -> Result<(), ApiError> {
        for (job, tokens, expires_at) in self.queued(tenant).await? {
            let Ok(job) = JobId::try_from(job) else { continue };
            let status = match JobStatus::read(store, tenant, &job).await.map_err(ApiError::from) {
                Ok(status) => status,
                // It keeps its own place until its window is over, and no other's.
                Err(error) if error.is_of_a_record() => continue,
                Err(error) => return Err(error),
            };
            let left = tokens_left(&status, tokens);
            if status.state.is_final() || !status.is_known() {
                self.give_back(tenant, &job, status.is_known()).await;
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

    /// Gives back what a job has reserved; where that fails, whoever next finds no room does. Room for its vectors is taken
    /// for filled where it may have `written` some: the next count tells.
    pub(super) async fn give_back(&self, tenant: &TenantId, job: &JobId, written: bool) {
        self.stored.settle(tenant, &name_of_job(job), (!written).then_some(0), 0, 0).await;
        _ = self.redis.ask(|mut line| async move { line.hdel(queued_key(tenant), job.as_str()).await }).await;
    }

    /// Redis itself, for a question of the caller's own.
    pub(super) fn redis(&self) -> &Redis {
        &self.redis
    }
}

impl Held {
    /// Does the work for as long as it is this gateway's, and then lets others have it; `None` where it was given up because it is
    /// another's by now.
    pub(super) async fn during<T>(self, work: impl Future<Output = T>) -> Option<T> {
        let done = tokio::select! {
            done = work => Some(done),
            () = self.keep() => None,
        };
        self.release().await;
        done
    }

    /// Says again and again that the work is at hand; ends where it is another's by now.
    async fn keep(&self) {
        loop {
            tokio::time::sleep(HOLD_AGAIN).await;
            let (key, holder) = (&self.key, self.holder.as_str());
            let asked = self.redis.ask(|mut line| async move {
                let there = line.get(key).await?;
                if there.as_ref().is_none_or(|there| there == holder) {
                    line.set_options(key, holder, options(HELD_S)).await?;
                    return Ok(true);
                }
                Ok(false)
            });
            if let Ok(false) = asked.await {
                return;
            }
        }
    }

    /// Lets others have it.
    async fn release(self) {
        let (key, holder) = (&self.key, self.holder.as_str());
        let asked = self.redis.ask(|mut line| async move {
            if line.get(key).await?.is_some_and(|there| there == holder) {
                line.del(key).await?;
            }
            Ok(())
        });
        _ = asked.await;
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
