//! Telling tenants that a batch has ended: signed as Standard Webhooks are (standardwebhooks.com), in OpenAI's words, so that
//! `client.webhooks.unwrap` of its SDKs verifies and reads them.
//!
//! What is to be told lies on S3 until it has been told, in a folder for each tenant, listed as it is due. One gateway tells, by a
//! lease in Redis; a message that is told twice, because that gateway died, has the same id.
//!
//! What it promises: each tenant's are looked at on their own, [`EACH_MAX`] at once, all of them however many. What one tenant has
//! costs the others one listing of a hundred keys at each look, be they a hundred thousand. [`AT_ONCE_MAX`] tries are under way in all, and tenants take turns at
//! them, so that a receiver that takes a connection and never answers keeps its own tenant's others waiting for [`TRY_MAX`] a
//! try, and other tenants not at all, unless sixteen tenants have such at once: then each waits for a share of that time.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt as _;
use futures_util::stream;
use reqwest::{Client, Url};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::{Id, JoinSet};
use utoipa::ToSchema;
use vecmill_signer::claims::TenantId;
use vecmill_signer::edge;
use zeroize::Zeroizing;

use super::batches::{self, BatchRecord};
use super::error::ApiError;
use super::outside::{Allowed, Outside, is_listed, may_be_asked, ports};
use super::{App, ids, storage};
use crate::contract::CONTRACT_VERSION;

/// Between two looks at what is to be told.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Tries and looks under way at once: each is a connection, or a handful of requests to S3.
const AT_ONCE_MAX: usize = 32;
/// Of these, one tenant's.
const EACH_MAX: usize = 2;
/// What is due of a tenant and listed in one go; with more, it is listed again at the next look.
const LISTED_MAX: usize = 100;
/// Time for one try, from the name to the answer.
const TRY_MAX: Duration = Duration::from_secs(10);
/// Seconds from one try to the next: about a day in all.
const AGAIN_S: [u64; 9] = [5, 30, 120, 600, 1_800, 3_600, 10_800, 21_600, 43_200];
/// A batch that runs is looked at again after a share of the time that it has run, in bounds: soon after a short one's end,
/// seldom while a long one runs.
const SHARE: u64 = 20;
const NEXT_LOOK_S: std::ops::RangeInclusive<u64> = 2..=60;
/// Longest address.
const URL_BYTES_MAX: usize = 2_048;
/// The name under which the lease is held; no tenant has it.
const LEASE: &str = "webhooks";

/// How webhooks are signed and where they may go.
pub(super) struct Webhooks {
    key: hmac::Key,
    allowed: Arc<[Allowed]>,
    /// For ports at which more is allowed than the public Internet.
    listed: HashMap<u16, Client>,
    http: Client,
}

impl std::fmt::Debug for Webhooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Webhooks")
    }
}

/// What is to be told, on S3.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Pending {
    /// None is of before it was written.
    #[serde(default)]
    version: u32,
    tenant: TenantId,
    batch: String,
    url: String,
    created_at: u64,
    /// When to look, or try, next.
    next_at: u64,
    tries: usize,
}

/// A tenant's secret.
#[derive(Serialize, ToSchema)]
pub(super) struct Secret {
    /// `webhook.secret`.
    object: &'static str,
    /// Verifies what comes: `client.webhooks.unwrap(body, headers, secret=..)`.
    secret: String,
}

impl Webhooks {
    /// Signs with what is derived from `key`; posts to public addresses, and to those in `allowed`.
    pub(super) fn new(key: &Zeroizing<String>, allowed: Vec<Allowed>) -> Result<Self, reqwest::Error> {
        // The library takes the process's crypto provider.
        edge::provider();
        let allowed: Arc<[Allowed]> = allowed.into();
        let client = |allowed: &Arc<[Allowed]>, port| {
            Client::builder()
                .timeout(TRY_MAX)
                // An address is checked when it is given and when it is connected to; a redirection would be neither.
                .redirect(reqwest::redirect::Policy::none())
                .no_proxy()
                // Each try is its own connection, and none is kept for a receiver that may never be asked again.
                .pool_max_idle_per_host(0)
                .dns_resolver(Arc::new(Outside { allowed: Arc::clone(allowed), port }))
                .user_agent(concat!("vecmill/", env!("CARGO_PKG_VERSION")))
                .build()
        };
        let listed = ports(&allowed).into_iter().map(|port| Ok((port, client(&allowed, port)?)));
        let listed = listed.collect::<Result<_, reqwest::Error>>()?;
        let http = client(&Arc::from([]), 0)?;
        Ok(Self { key: hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()), allowed, listed, http })
    }

    /// The secret that a tenant's webhooks are signed with: the same at every gateway, and nobody else's.
    fn secret(&self, tenant: &TenantId) -> hmac::Tag {
        hmac::sign(&self.key, format!("webhook secret of {tenant}").as_bytes())
    }

    /// What is wrong with an address, if anything.
    pub(super) fn check(&self, url: &str) -> Result<(), ApiError> {
        let wrong = |sentence: &str| Err(ApiError::invalid("invalid_body", Some("webhook_url"), sentence));
        let parsed = Url::parse(url).ok().filter(|_| url.len() <= URL_BYTES_MAX);
        let Some(parsed) = parsed.filter(|url| url.username().is_empty() && url.password().is_none()) else {
            return wrong("webhook_url must be an address of at most 2,048 bytes, without a user");
        };
        let literal = parsed.host_str().and_then(|host| host.trim_matches(['[', ']']).parse::<IpAddr>().ok());
        let port = parsed.port_or_known_default().unwrap_or_default();
        let listed = literal.is_some_and(|address| is_listed(address, port, &self.allowed));
        if parsed.scheme() != "https" && !(parsed.scheme() == "http" && listed) {
            return wrong("webhook_url must be https://: what it tells is nobody else's to read");
        }
        if literal.is_some_and(|address| !may_be_asked(address, port, &self.allowed)) {
            return wrong("webhook_url must be a public address");
        }
        Ok(())
    }

    /// One try.
    async fn post(&self, pending: &Pending, kind: &str, ended_at: u64) -> Result<(), String> {
        // A name is checked as it is resolved; a number is not resolved.
        self.check(&pending.url).map_err(|error| error.to_string())?;
        let id = format!("evt_{}", pending.batch);
        let body = json!({
            "id": id, "object": "event", "created_at": ended_at, "type": kind, "data": {"id": pending.batch},
        })
        .to_string();
        let now = ids::unix_s();
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.secret(&pending.tenant).as_ref());
        let signature = STANDARD.encode(hmac::sign(&key, format!("{id}.{now}.{body}").as_bytes()));
        let port = Url::parse(&pending.url).ok().and_then(|url| url.port_or_known_default());
        let http = port.and_then(|port| self.listed.get(&port)).unwrap_or(&self.http);
        let posting = http
            .post(&pending.url)
            .header("content-type", "application/json")
            .header("webhook-id", &id)
            .header("webhook-timestamp", now)
            .header("webhook-signature", format!("v1,{signature}"))
            .body(body);
        match posting.send().await {
            Ok(answer) if answer.status().is_success() => Ok(()),
            Ok(answer) => Err(format!("it answered {}", answer.status().as_u16())),
            Err(error) => Err(edge::explain(&error.without_url())),
        }
    }
}

/// Remembers that a batch's end is to be told.
pub(super) async fn register(app: &App, tenant: &TenantId, batch: &BatchRecord, url: &str) -> Result<(), ApiError> {
    let created_at = ids::unix_s();
    let (tenant, batch, url) = (tenant.clone(), batch.id().to_owned(), url.to_owned());
    let version = CONTRACT_VERSION;
    let pending = Pending { version, tenant, batch, url, created_at, next_at: created_at + 1, tries: 0 };
    Ok(app.store.put_json(&pending.key(), &pending).await?)
}

impl Pending {
    fn key(&self) -> String {
        storage::webhook(&self.tenant, self.next_at, &self.batch)
    }

    /// Moves it to another time. Written before it is deleted where it was: who dies in between has it told twice.
    async fn put_off(&mut self, app: &App, key: &str, seconds: u64) -> Result<String, ApiError> {
        self.next_at = ids::unix_s() + seconds;
        let next = self.key();
        app.store.put_json(&next, self).await?;
        if next != key {
            app.store.delete(key).await?;
        }
        Ok(next)
    }
}

/// The tenant's secret, to verify webhooks with.
#[utoipa::path(
    get,
    path = "/v1/webhooks/secret",
    responses(
        (status = 200, description = "The secret", body = Secret),
        (status = 400, response = super::error::ErrorEnvelope),
    ),
)]
pub(super) async fn secret(
    axum::extract::State(app): axum::extract::State<Arc<App>>,
    axum::Extension(caller): axum::Extension<super::auth::Caller>,
) -> Result<axum::Json<Secret>, ApiError> {
    let webhooks = app.webhooks()?;
    let secret = format!("whsec_{}", STANDARD.encode(webhooks.secret(caller.access.tenant())));
    Ok(axum::Json(Secret { object: "webhook.secret", secret }))
}

/// Looks again and again; never ends.
pub(super) async fn run(app: Arc<App>) {
    if app.webhooks().is_err() {
        return;
    }
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(held) = app.shared.hold_globally(LEASE).await else { continue };
        // What is under way is given up with it.
        _ = held.during(tell(&app)).await;
    }
}

/// Tells what is due, for as long as the lease is this gateway's; never ends.
async fn tell(app: &Arc<App>) {
    let places = Arc::new(Semaphore::new(AT_ONCE_MAX));
    // Whose webhooks are being told, by task. A tenant's are looked at again when all that were listed of it have been tried.
    let mut busy: HashMap<Id, TenantId> = HashMap::new();
    let mut tasks = JoinSet::new();
    loop {
        if let Err(error) = move_old(app).await {
            tracing::warn!(%error, "webhooks of before wait");
        }
        let folders = app.store.list_folders(&storage::webhooks()).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "webhooks wait");
            Vec::new()
        });
        let told: HashSet<TenantId> = busy.values().cloned().collect();
        let named = folders.iter().filter_map(|folder| storage::tenant_of_folder(folder));
        for tenant in named.filter(|tenant| !told.contains(tenant)) {
            let (of, app, places) = (tenant.clone(), Arc::clone(app), Arc::clone(&places));
            let task = tasks.spawn(async move {
                if let Err(error) = tell_tenant(&app, &of, &places).await {
                    tracing::warn!(tenant = %of, %error, "webhooks wait");
                }
            });
            busy.insert(task.id(), tenant);
        }
        tokio::time::sleep(LOOK_EVERY).await;
        while let Some(done) = tasks.try_join_next_with_id() {
            busy.remove(&done.map_or_else(|panic| panic.id(), |(id, ())| id));
        }
    }
}

/// Tries what is due of one tenant, the longest due first.
async fn tell_tenant(app: &App, tenant: &TenantId, places: &Semaphore) -> Result<(), ApiError> {
    let folder = format!("{}{tenant}/", storage::webhooks());
    let (mut due, mut after) = (Vec::new(), None);
    loop {
        let _place = places.acquire().await;
        let (keys, next) = app.shared.list_readable(&app.store, &folder, after.as_deref(), LISTED_MAX).await?;
        let now = ids::unix_s();
        let is_due = |key: &String| next_at(key).is_none_or(|at| at <= now);
        // They are listed in the order of their times.
        let end = keys.last().is_some_and(|last| !is_due(last));
        due.extend(keys.into_iter().filter(is_due));
        if end || next.is_none() || due.len() >= LISTED_MAX {
            break;
        }
        after = next;
    }
    stream::iter(due)
        .for_each_concurrent(EACH_MAX, async |key| {
            let _place = places.acquire().await;
            match tell_one(app, tenant, &key).await {
                Ok(()) => {}
                // What is stored of it, or of its batch: it keeps none of the others.
                Err(error) if error.is_of_a_record() => app.shared.set_aside(&key),
                Err(error) => tracing::warn!(%tenant, %error, "a webhook waits"),
            }
        })
        .await;
    Ok(())
}

/// When what lies at a key is to be looked at; `None` where the key does not say.
fn next_at(key: &str) -> Option<u64> {
    storage::id_of_key(key).split_once('-')?.0.parse().ok()
}

async fn tell_one(app: &App, tenant: &TenantId, key: &str) -> Result<(), ApiError> {
    let pending: Option<Pending> = app.store.get_json(key, storage::RECORD_BYTES_MAX).await?;
    let Some(mut pending) = pending else { return Ok(()) };
    storage::readable(pending.version)?;
    if pending.tenant != *tenant {
        return Err(ApiError::internal("unreadable_record", "a webhook lies in another tenant's folder"));
    }
    let (kind, ended_at) = match batches::end_of(app, tenant, &pending.batch, pending.created_at).await? {
        // Nothing is left to tell of.
        batches::Ended::Gone => return Ok(app.store.delete(key).await?),
        batches::Ended::NotYet => {
            let run_s = ids::unix_s().saturating_sub(pending.created_at);
            let look_s = (run_s / SHARE).clamp(*NEXT_LOOK_S.start(), *NEXT_LOOK_S.end());
            return pending.put_off(app, key, look_s).await.map(drop);
        }
        batches::Ended::At { kind, at } => (kind, at),
    };
    // Counted before it is tried: one that kills gateways is tried as often as any other.
    let Some(again_s) = AGAIN_S.get(pending.tries).copied().or((pending.tries == AGAIN_S.len()).then_some(0)) else {
        return Ok(app.store.delete(key).await?);
    };
    pending.tries += 1;
    // Not due again while it is tried.
    let next = pending.put_off(app, key, again_s.max(2 * TRY_MAX.as_secs())).await?;
    let last = pending.tries > AGAIN_S.len();
    match app.webhooks()?.post(&pending, kind, ended_at).await {
        Ok(()) => {
            tracing::info!(%tenant, batch = pending.batch, kind, "webhook told");
            app.store.delete(&next).await?;
        }
        Err(reason) => {
            tracing::info!(%tenant, batch = pending.batch, tries = pending.tries, reason, last, "webhook failed");
            match last {
                true => app.store.delete(&next).await?,
                false => drop(pending.put_off(app, &next, again_s).await?),
            }
        }
    }
    Ok(())
}

/// Brings what gateways of before have left to where it is looked for. There is no more of it once they are gone.
async fn move_old(app: &App) -> Result<(), ApiError> {
    for object in app.store.list(&storage::old_webhooks(), None).await? {
        let key = object.key;
        let is_old = key.strip_prefix(&storage::webhooks()).is_some_and(|rest| !rest.contains('/'));
        if !is_old || app.shared.is_unreadable(&key) {
            continue;
        }
        let pending: Result<Option<Pending>, _> = app.store.get_json(&key, storage::RECORD_BYTES_MAX).await;
        match pending {
            Ok(Some(pending)) => {
                app.store.put_json(&pending.key(), &pending).await?;
                app.store.delete(&key).await?;
            }
            Ok(None) => {}
            Err(error) if error.is_of_the_object() => app.shared.set_aside(&key),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhooks(allowed: &[&str]) -> Webhooks {
        let allowed = allowed.iter().map(|place| place.parse().expect("a place")).collect();
        Webhooks::new(&Zeroizing::new("a key".to_owned()), allowed).expect("a client")
    }

    #[test]
    fn addresses_are_https_and_public_or_allowed() {
        let closed = webhooks(&[]);
        for good in ["https://example.com/hook", "https://8.8.8.8/"] {
            assert!(closed.check(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "example.com",
            "ftp://example.com",
            "http://example.com",
            "https://127.0.0.1/",
            "https://[::1]/",
            "https://0x7f.1/",
            "https://2130706433/",
            "https://user:pass@example.com/",
            "https://169.254.169.254/latest",
        ] {
            assert!(closed.check(bad).is_err(), "{bad}");
        }
        let open = webhooks(&["127.0.0.0/8:8080"]);
        assert!(open.check("http://127.0.0.1:8080/hook").is_ok() && open.check("http://10.0.0.1/").is_err());
        for port in ["http://127.0.0.1:8081/hook", "https://127.0.0.1/", "http://127.0.0.1/"] {
            assert!(open.check(port).is_err(), "another port of the same address: {port}");
        }
    }

    #[test]
    fn tenants_have_secrets_of_their_own() {
        let (one, two) = (webhooks(&[]), webhooks(&[]));
        let tenants: Vec<TenantId> = ["a", "b"].map(|name| name.parse().expect("a tenant")).to_vec();
        assert_eq!(one.secret(&tenants[0]).as_ref(), two.secret(&tenants[0]).as_ref(), "the same at every gateway");
        assert_ne!(one.secret(&tenants[0]).as_ref(), one.secret(&tenants[1]).as_ref());
    }
}
