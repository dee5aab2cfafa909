//! How much each tenant has on S3: its files, chunks, vectors, records, all that lies under its name.
//!
//! S3 is the record, and Redis holds the count between two listings: what comes and goes through a gateway is added and taken
//! off at once; what workers write is reserved by an estimate before the job begins, and taken for written when it ends. A
//! listing puts both right: one tenant after the other in the background, and always before anybody is refused. So the count
//! may be over what is there (by the estimates of jobs under way, and by their chunks, which a listing sees beside the
//! reservation), and hardly under it: by the records of chunks, some hundred bytes each, and by what `vecmill submit` has
//! uploaded past the gateways since the last listing.

use std::time::Duration;

use deadpool_redis::redis::{AsyncTypedCommands as _, Script, cmd};
use vecmill_signer::claims::{JobId, TenantId};

use super::error::ApiError;
use super::shared::{Over, Shared};
use super::{App, ids, storage};
use crate::contract::{Dtype, Manifest};
use crate::redis::Redis;
use crate::store::Store;

/// Most files of a tenant: a list of all is a hundred requests to S3, and their records are 50 MB.
pub(super) const FILES_MAX: u64 = 100_000;
/// Most batches of a tenant, for the same reason; the oldest that nothing is left of make room by themselves.
pub(super) const BATCHES_MAX: u64 = 100_000;
/// A count is made anew in the background when it is this old: what goes past the gateways is seen within it.
const COUNTED_AGAIN_S: u64 = 6 * 3600;
/// Between two looks for tenants whose count is old. Tenants are counted one after the other, by one gateway of all.
const LOOK_EVERY: Duration = Duration::from_secs(300);
/// A count that is so young is not made anew before a refusal: who asks again and again has S3 listed every three seconds, one
/// listing at a time.
const FRESH_MS: u64 = 3_000;
/// Longest wait of a request for a count. That of a tenant with a million objects takes longer and goes on without it.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// Bytes of a row of a part beside its vector: its id, its tokens, their share of the file.
const ROW_BYTES: u64 = 64;
/// Room that an upload holds lapses so long after it was last asked for: a part to S3 takes minutes at the least rate.
const UPLOAD_S: u64 = 3600;
/// The name of the lease of who counts in the background.
const LEASE: &str = "stored";

/// The counts of all tenants. Cheap to clone.
#[derive(Clone)]
pub(super) struct Stored {
    redis: Redis,
    script: Script,
}

/// What is to be stored.
#[derive(Clone, Copy)]
pub(super) struct Room<'a> {
    /// What it is called: asked for again, it is held once.
    pub(super) name: &'a str,
    pub(super) bytes: u64,
    /// When the room lapses, in Unix seconds.
    pub(super) until: u64,
    /// Files and batches more.
    pub(super) files: u64,
    pub(super) batches: u64,
}

/// What a tenant has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) bytes: u64,
    /// Held for what is being stored.
    pub(super) reserved: u64,
    pub(super) files: u64,
    pub(super) batches: u64,
    /// When it was counted, in Unix seconds.
    pub(super) counted_at: u64,
}

/// What the script says.
type Answer = (String, u64, u64, String);

impl Stored {
    pub(super) fn new(redis: Redis) -> Self {
        Self { redis, script: Script::new(include_str!("stored.lua")) }
    }

    async fn ask(&self, tenant: &TenantId, arguments: &[&str]) -> Result<Answer, ApiError> {
        let mut invocation = self.script.prepare_invoke();
        invocation.key(stored_key(tenant)).key(storing_key(tenant));
        for argument in arguments {
            invocation.arg(*argument);
        }
        let invocation = &invocation;
        Ok(self.redis.ask(|mut line| async move { invocation.invoke_async::<Answer>(&mut line).await }).await?)
    }

    /// Holds room, or says in a sentence which limit it is over; gives what was held under that name before. `limit` is the
    /// tenant's `stored_bytes`.
    pub(super) async fn take(
        &self,
        shared: &Shared,
        store: &Store,
        tenant: &TenantId,
        limit: Option<u64>,
        room: Room<'_>,
    ) -> Result<String, Result<Over, ApiError>> {
        let mut counted_anew = false;
        loop {
            let limit_text = limit.map(|limit| limit.to_string()).unwrap_or_default();
            let [bytes, until, files, files_max, batches, batches_max] =
                [room.bytes, room.until, room.files, FILES_MAX, room.batches, BATCHES_MAX].map(|n| n.to_string());
            let arguments =
                ["take", room.name, &bytes, &until, &limit_text, &files, &files_max, &batches, &batches_max];
            let (word, has, counted_ms, before) = self.ask(tenant, &arguments).await.map_err(Err)?;
            match word.as_str() {
                "taken" => return Ok(before),
                // Nobody waits for a count that no limit needs; the bound of files and batches holds once it is there.
                "uncounted_taken" => {
                    self.count_beside(shared, store, tenant);
                    return Ok(before);
                }
                _ => {}
            }
            let fresh = counted_ms + FRESH_MS >= ids::unix_ms();
            if !counted_anew && (word == "uncounted" || !fresh) {
                counted_anew = true;
                // Jobs that have ended hold room that they filled or left: what they filled is listed next.
                shared.count_anew(store, tenant).await.map_err(Err)?;
                if self.counted_anew(shared, store, tenant, counted_ms).await {
                    continue;
                }
            }
            return Err(match word.as_str() {
                "bytes" => Ok(Over::new(
                    "stored_bytes",
                    format!(
                        "the tenant has {has} bytes stored or reserved, this takes about {} more, and it may have {} \
                         (stored_bytes): delete files and outputs that are not needed",
                        room.bytes,
                        limit.unwrap_or_default()
                    ),
                )),
                "files" => Ok(Over::new(
                    "files",
                    format!("the tenant has {has} files and may have {FILES_MAX}: delete some that are not needed"),
                )),
                "batches" => Ok(Over::new(
                    "batches",
                    format!(
                        "the tenant has {has} batches and may have {BATCHES_MAX}: delete the output and error files of \
                         old ones, and their records go with them"
                    ),
                )),
                _ => Err(ApiError::unavailable(
                    "being_counted",
                    "what the tenant has stored is being counted, and nothing more is taken before that: ask again",
                )
                .after(WAIT_MAX)),
            });
        }
    }

    /// Settles what room was taken for: it came to `bytes`, or to what was taken where that is not known.
    pub(super) async fn settle(&self, tenant: &TenantId, name: &str, bytes: Option<u64>, files: i64, batches: i64) {
        let bytes = bytes.map_or_else(|| "all".to_owned(), |bytes| bytes.to_string());
        // Where that fails, the room lapses, or a count puts it right.
        _ = self.ask(tenant, &["settle", name, &bytes, &files.to_string(), &batches.to_string()]).await;
    }

    /// Takes off what was deleted.
    pub(super) async fn removed(&self, tenant: &TenantId, bytes: u64, files: i64, batches: i64) {
        let bytes = format!("-{bytes}");
        _ = self.ask(tenant, &["settle", "", &bytes, &(-files).to_string(), &(-batches).to_string()]).await;
    }

    /// Puts back what was held under a name before [`Self::take`].
    pub(super) async fn put_back(&self, tenant: &TenantId, name: &str, before: &str) {
        let key = &storing_key(tenant);
        _ = self
            .redis
            .ask(|mut line| async move {
                match before {
                    "" => line.hdel(key, name).await.map(drop),
                    before => line.hset(key, name, before).await.map(drop),
                }
            })
            .await;
    }

    /// What a tenant has, as far as it was counted.
    pub(super) async fn amount(&self, tenant: &TenantId) -> Result<Option<Amount>, ApiError> {
        let (stored, storing) = (&stored_key(tenant), &storing_key(tenant));
        let asked = self.redis.ask(|mut line| async move {
            let fields = ["bytes", "files", "batches", "counted_ms"];
            let counted: Vec<Option<i64>> = cmd("HMGET").arg(stored).arg(&fields).query_async(&mut line).await?;
            let storing: Vec<String> = cmd("HVALS").arg(storing).query_async(&mut line).await?;
            Ok((counted, storing))
        });
        let (counted, storing) = asked.await?;
        let now = ids::unix_s();
        let held = storing.iter().filter_map(|entry| {
            let (bytes, until) = entry.split_once(' ')?;
            (until.parse::<u64>().ok()? > now).then(|| bytes.parse::<u64>().ok()).flatten()
        });
        let reserved = held.sum();
        let [Some(bytes), Some(files), Some(batches), Some(counted_ms)] = counted[..] else { return Ok(None) };
        let [bytes, files, batches, counted_ms] =
            [bytes, files, batches, counted_ms].map(|n| u64::try_from(n).unwrap_or_default());
        Ok(Some(Amount { bytes, reserved, files, batches, counted_at: counted_ms / 1000 }))
    }

    /// Has S3 listed, unless somebody is at it, and waits a while; gives whether there is a newer count.
    async fn counted_anew(&self, shared: &Shared, store: &Store, tenant: &TenantId, counted_ms: u64) -> bool {
        self.count_beside(shared, store, tenant);
        let key = &stored_key(tenant);
        let newer = async {
            loop {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let asked = self.redis.ask(|mut line| async move { line.hget(key, "counted_ms").await });
                let seen = asked.await.ok().flatten().and_then(|ms| ms.parse::<u64>().ok());
                if seen.is_some_and(|seen| seen > counted_ms) {
                    return;
                }
            }
        };
        tokio::time::timeout(WAIT_MAX, newer).await.is_ok()
    }

    /// Counts without anybody's waiting. It goes on when the request that wanted it is over.
    fn count_beside(&self, shared: &Shared, store: &Store, tenant: &TenantId) {
        let (stored, shared, store, tenant) = (self.clone(), shared.clone(), store.clone(), tenant.clone());
        tokio::spawn(async move { stored.count_alone(&shared, &store, &tenant).await });
    }

    /// Counts, unless somebody is at it.
    async fn count_alone(&self, shared: &Shared, store: &Store, tenant: &TenantId) {
        let Some(held) = shared.hold(tenant, "counting what is stored").await else { return };
        if let Some(Err(error)) = held.during(self.count(store, tenant)).await {
            tracing::warn!(%tenant, %error, "what a tenant has stored could not be counted");
        }
    }

    /// Counts by listing, in flat memory.
    async fn count(&self, store: &Store, tenant: &TenantId) -> Result<(), ApiError> {
        let (_, begun_ms, ..) = self.ask(tenant, &["begin"]).await?;
        let (mut bytes, mut files, mut batches) = (0, 0, 0);
        let (of_files, of_batches) = (storage::files(tenant), storage::batches(tenant));
        store
            .each(&format!("{tenant}/"), |page| {
                for object in page {
                    bytes += object.bytes;
                    files += u64::from(object.key.starts_with(&of_files));
                    batches += u64::from(object.key.starts_with(&of_batches));
                }
            })
            .await?;
        let [bytes, files, batches, begun] = [bytes, files, batches, begun_ms].map(|n| n.to_string());
        self.ask(tenant, &["counted", &bytes, &files, &batches, &begun]).await?;
        Ok(())
    }
}

/// Counts anew what was counted long ago; never ends.
pub(super) async fn run(app: std::sync::Arc<App>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(held) = app.shared.hold_globally(LEASE).await else { continue };
        if let Some(Err(error)) = held.during(count_all(&app)).await {
            tracing::warn!(%error, "tenants' stored bytes wait to be counted");
        }
    }
}

async fn count_all(app: &App) -> Result<(), ApiError> {
    for folder in app.store.list_folders("").await? {
        // Audit records, and what else is no tenant's, are nobody's to delete, and nobody's count.
        let Some(tenant) = storage::tenant_of_folder(&folder).filter(|tenant| !tenant.is_reserved()) else { continue };
        let known = app.shared.stored().amount(&tenant).await?;
        if known.is_some_and(|known| known.counted_at + COUNTED_AGAIN_S > ids::unix_s()) {
            continue;
        }
        // One that can't be counted keeps nobody else from it.
        app.shared.stored().count_alone(&app.shared, &app.store, &tenant).await;
    }
    Ok(())
}

/// Bytes of an upload until now, as room.
pub(super) fn of_upload(name: &str, bytes: u64) -> Room<'_> {
    Room { name, bytes, until: ids::unix_s() + UPLOAD_S, files: 1, batches: 0 }
}

/// The name of a job's room.
pub(super) fn name_of_job(job: &JobId) -> String {
    format!("job:{job}")
}

/// Bytes that `rows` vectors of a job will be, and its failed rows: at most what its part files have, where none is compressed.
pub(super) fn vectors_about(manifest: &Manifest, rows: u64) -> u64 {
    let value = match manifest.spec.dtype {
        Dtype::F32 => 4,
        Dtype::F16 => 2,
    };
    rows.saturating_mul(u64::from(manifest.spec.dimensions) * value + ROW_BYTES)
}

/// Bytes of a job's chunks.
pub(super) fn chunks_of(manifest: &Manifest) -> u64 {
    manifest.chunks.iter().map(|chunk| u64::from(chunk.bytes)).sum()
}

fn stored_key(tenant: &TenantId) -> String {
    format!("vecmill:{{{tenant}}}:stored")
}

fn storing_key(tenant: &TenantId) -> String {
    format!("vecmill:{{{tenant}}}:storing")
}
