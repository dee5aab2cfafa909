//! Telling tenants that a batch has ended: signed as Standard Webhooks are (standardwebhooks.com), in OpenAI's words, so that
//! `client.webhooks.unwrap` of its SDKs verifies and reads them.
//!
//! What is to be told lies on S3 until it has been told. One gateway at a time looks, by a lease in Redis; a message that is
//! told twice, because that gateway died, has the same id.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, Url};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use vecmill_signer::cidr::Cidr;
use vecmill_signer::claims::TenantId;
use vecmill_signer::edge;
use zeroize::Zeroizing;

use super::batches::{self, BatchRecord};
use super::error::ApiError;
use super::{App, ids, storage};

/// Between two looks at what is to be told.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Most of it looked at in one go.
const LOOKS_MAX: usize = 500;
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
    allowed: Arc<[Cidr]>,
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
    pub(super) fn new(key: &Zeroizing<String>, allowed: Vec<Cidr>) -> Result<Self, reqwest::Error> {
        // The library takes the process's crypto provider.
        edge::provider();
        let allowed: Arc<[Cidr]> = allowed.into();
        let http = Client::builder()
            .timeout(TRY_MAX)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .dns_resolver(Arc::new(Public(Arc::clone(&allowed))))
            .user_agent(concat!("vecmill/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { key: hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()), allowed, http })
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
        let listed = literal.is_some_and(|address| self.allowed.iter().any(|cidr| cidr.contains(address)));
        if parsed.scheme() != "https" && !(parsed.scheme() == "http" && listed) {
            return wrong("webhook_url must be https://: what it tells is nobody else's to read");
        }
        if literal.is_some_and(|address| !may_be_asked(address, &self.allowed)) {
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
        let posting = self
            .http
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
    let pending = Pending { tenant, batch, url, created_at, next_at: created_at + 1, tries: 0 };
    Ok(app.store.put_json(&storage::webhook(&pending.batch), &pending).await?)
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
    let Ok(webhooks) = app.webhooks() else { return };
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(held) = app.shared.hold_globally(LEASE).await else { continue };
        tokio::select! {
            looked = look(&app, webhooks) => {
                if let Err(error) = looked {
                    tracing::warn!(%error, "webhooks wait");
                }
            }
            () = held.keep() => {}
        }
        held.release().await;
    }
}

async fn look(app: &App, webhooks: &Webhooks) -> Result<(), ApiError> {
    for object in app.store.list_some(&storage::webhooks(), None, LOOKS_MAX).await? {
        let pending: Option<Pending> = app.store.get_json(&object.key, storage::RECORD_BYTES_MAX).await?;
        let Some(mut pending) = pending else { continue };
        let now = ids::unix_s();
        if pending.next_at > now {
            continue;
        }
        match batches::end_of(app, &pending.tenant, &pending.batch, pending.created_at).await? {
            // Nothing is left to tell of.
            batches::Ended::Gone => app.store.delete(&object.key).await?,
            batches::Ended::NotYet => {
                let run_s = now.saturating_sub(pending.created_at);
                pending.next_at = now + (run_s / SHARE).clamp(*NEXT_LOOK_S.start(), *NEXT_LOOK_S.end());
                app.store.put_json(&object.key, &pending).await?;
            }
            batches::Ended::At { kind, at } => match webhooks.post(&pending, kind, at).await {
                Ok(()) => {
                    tracing::info!(tenant = %pending.tenant, batch = pending.batch, kind, "webhook told");
                    app.store.delete(&object.key).await?;
                }
                Err(reason) => {
                    let again_s = AGAIN_S.get(pending.tries);
                    tracing::info!(tenant = %pending.tenant, batch = pending.batch, tries = pending.tries + 1, reason, last = again_s.is_none(), "webhook failed");
                    match again_s {
                        Some(again_s) => {
                            pending.tries += 1;
                            pending.next_at = ids::unix_s() + again_s;
                            app.store.put_json(&object.key, &pending).await?;
                        }
                        None => app.store.delete(&object.key).await?,
                    }
                }
            },
        }
    }
    Ok(())
}

/// Resolves names to addresses that a tenant may have us ask: a name of a tenant's choice must not lead into the cluster.
struct Public(Arc<[Cidr]>);

impl Resolve for Public {
    fn resolve(&self, name: Name) -> Resolving {
        let allowed = Arc::clone(&self.0);
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<SocketAddr> = found.filter(|address| may_be_asked(address.ip(), &allowed)).collect();
            if public.is_empty() {
                return Err("the name leads to no public address".into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

/// Whether an address is of the public Internet, or one that was allowed by name.
fn may_be_asked(address: IpAddr, allowed: &[Cidr]) -> bool {
    allowed.iter().any(|cidr| cidr.contains(address)) || is_public(address)
}

/// Not one of IANA's special-purpose registries (RFC 6890 and its successors), as far as anything could listen there.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            !(v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.is_documentation()
                || a == 0
                || a >= 240
                // Carriers' (RFC 6598), protocol assignments (RFC 6890), benchmarks (RFC 2544).
                || a == 100 && (64..128).contains(&b)
                || [a, b, c] == [192, 0, 0]
                || a == 198 && (18..20).contains(&b))
        }
        IpAddr::V6(v6) => {
            let segments = v6.segments();
            // An IPv4 address in another dress, in any of the ways that stacks take.
            let embedded = v6.to_ipv4().or_else(|| {
                let bytes = v6.octets();
                match segments {
                    [0x64, 0xff9b, ..] => Some([bytes[12], bytes[13], bytes[14], bytes[15]].into()),
                    [0x2002, ..] => Some([bytes[2], bytes[3], bytes[4], bytes[5]].into()),
                    _ => None,
                }
            });
            // Global unicast is 2000::/3 (RFC 4291); documentation and Teredo lie in it.
            let global = segments[0] & 0xe000 == 0x2000 && !matches!(segments, [0x2001, 0 | 0xdb8, ..]);
            match embedded {
                Some(v4) => is_public(IpAddr::V4(v4)),
                None => global,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhooks(allowed: &[&str]) -> Webhooks {
        let allowed = allowed.iter().map(|cidr| cidr.parse().expect("a range")).collect();
        Webhooks::new(&Zeroizing::new("a key".to_owned()), allowed).expect("a client")
    }

    #[test]
    fn only_the_public_internet_is_asked() {
        for public in ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"] {
            assert!(is_public(public.parse().expect("an address")), "{public}");
        }
        for private in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "192.0.0.8",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::a00:1",
            "2002:a00:1::",
            "2001:db8::1",
            "2001:0:1::1",
            "ff02::1",
        ] {
            assert!(!is_public(private.parse().expect("an address")), "{private}");
        }
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
        let open = webhooks(&["127.0.0.0/8"]);
        assert!(open.check("http://127.0.0.1:8080/hook").is_ok() && open.check("http://10.0.0.1/").is_err());
    }

    #[test]
    fn tenants_have_secrets_of_their_own() {
        let (one, two) = (webhooks(&[]), webhooks(&[]));
        let tenants: Vec<TenantId> = ["a", "b"].map(|name| name.parse().expect("a tenant")).to_vec();
        assert_eq!(one.secret(&tenants[0]).as_ref(), two.secret(&tenants[0]).as_ref(), "the same at every gateway");
        assert_ne!(one.secret(&tenants[0]).as_ref(), one.secret(&tenants[1]).as_ref());
    }
}
