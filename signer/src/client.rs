//! Asking the signer for tokens: what the producer does.

use std::fmt;
use std::time::Duration;

use reqwest::{Client, RequestBuilder, StatusCode, Url};
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

pub use crate::api_key::{ApiKey, ApiKeyError};
use crate::claims::{Scope, TenantId};
use crate::edge::{self, ClientTls};
use crate::http;
pub use crate::http::AddressError;
use crate::time::unix_now;
use crate::wire::{EmbedOrder, EmbedTokenResponse, ErrorBody, Submission, TokenResponse};
pub use crate::wire::{GrantRequest, JobGrant};

/// Tries of one request in all. A signer that restarts is back within them; a signer that is down is soon reported.
const TRIES: u32 = 3;
/// Pause before the second try; it doubles from there.
const BACKOFF: Duration = Duration::from_millis(200);

/// An access token, fresh from the signer. `Debug` hides it, and it is wiped when dropped.
#[derive(Clone)]
pub struct AccessToken {
    /// The token itself, for an `Authorization` header. Secret.
    pub token: Zeroizing<String>,
    /// The tenant it is for.
    pub tenant: TenantId,
    /// What it allows.
    pub scopes: Vec<Scope>,
    /// When it expires, Unix seconds by this machine's clock.
    pub expires_at: u64,
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessToken")
            .field("token", &"[redacted]")
            .field("tenant", &self.tenant)
            .field("scopes", &self.scopes)
            .field("expires_at", &self.expires_at)
            .finish()
    }
}

/// An embed token, fresh from the signer: what a synchronous request carries to a worker. `Debug` hides it, and it is wiped
/// when dropped.
#[derive(Clone)]
pub struct EmbedToken {
    /// The token itself. Secret.
    pub token: Zeroizing<String>,
    /// When it expires, Unix seconds by the signer's clock.
    pub expires_at: u64,
    /// Longest vectors that the tenant may have.
    pub dimensions_max: u32,
}

impl fmt::Debug for EmbedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbedToken")
            .field("token", &"[redacted]")
            .field("expires_at", &self.expires_at)
            .field("dimensions_max", &self.dimensions_max)
            .finish()
    }
}

/// Why the signer gave no token.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No answer, after three tries. Worth trying again later.
    #[error("the signer at {url} can't be reached: {reason}")]
    Unreachable {
        /// The signer's address.
        url: String,
        /// What the last try failed with, for people.
        reason: String,
        /// What the last try failed with.
        source: reqwest::Error,
    },
    /// The signer said no.
    #[error("the signer refused ({status} {error}): {description}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// OAuth error code, such as `invalid_client`.
        error: String,
        /// A sentence for the person who asked.
        description: String,
    },
    /// The answer is not one of the signer's.
    #[error("the signer's answer makes no sense: {0}")]
    Protocol(&'static str),
}

impl ClientError {
    /// Whether the same request may succeed later with nothing changed.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => *status >= 500 || *status == 429,
            Self::Protocol(_) => false,
        }
    }
}

/// A client of one signer with one API key, or one access token. Clones share connections.
#[derive(Debug, Clone)]
pub struct SignerClient {
    http: Client,
    base: Url,
    credential: Credential,
}

#[derive(Debug, Clone)]
enum Credential {
    Key(ApiKey),
    Token(AccessToken),
}

impl SignerClient {
    /// A client of the signer at `base_url`. Connects at first use, straight to it: proxies are not used and redirects not
    /// followed, for the API key goes along.
    pub fn new(base_url: &str, key: ApiKey) -> Result<Self, AddressError> {
        Self::with_tls(base_url, key, &ClientTls::default())
    }

    /// The same, trusting and showing what `tls` says.
    pub fn with_tls(base_url: &str, key: ApiKey, tls: &ClientTls) -> Result<Self, AddressError> {
        Self::with(base_url, Credential::Key(key), tls)
    }

    /// The same for somebody who has an access token, or a submission token, and no key: once it has expired, the signer refuses
    /// what it is shown for.
    pub fn with_access_token(base_url: &str, token: AccessToken, tls: &ClientTls) -> Result<Self, AddressError> {
        Self::with(base_url, Credential::Token(token), tls)
    }

    fn with(base_url: &str, credential: Credential, tls: &ClientTls) -> Result<Self, AddressError> {
        Ok(Self { base: http::base_url(base_url, tls)?, http: http::client(tls)?, credential })
    }

    /// Gets an access token with `scopes`, or with all that the key's role has if `scopes` is empty. A client that was made
    /// with a token gives that one.
    pub async fn access_token(&self, scopes: &[Scope]) -> Result<AccessToken, ClientError> {
        let key = match &self.credential {
            Credential::Key(key) => key,
            Credential::Token(token) => return Ok(token.clone()),
        };
        let scope = Scope::join(scopes);
        let mut form = vec![("grant_type", "client_credentials")];
        if !scope.is_empty() {
            form.push(("scope", scope.as_str()));
        }
        let asked_at = unix_now();
        let url = http::join(&self.base, "oauth/token");
        let request = || self.http.post(url.clone()).basic_auth(key.id(), Some(key.expose())).form(&form);
        let answer: TokenResponse = self.send(request).await?;
        if !answer.token_type.eq_ignore_ascii_case("bearer") {
            return Err(ClientError::Protocol("the token is not a bearer token"));
        }
        Ok(AccessToken {
            token: Zeroizing::new(answer.access_token),
            tenant: answer.tenant,
            scopes: answer.scope.split(' ').filter_map(|name| name.parse().ok()).collect(),
            // Counted from before the request: too early is safe, too late is not.
            expires_at: asked_at.saturating_add(answer.expires_in),
        })
    }

    /// Exchanges an access token with scope `jobs:submit` for a submission token: for work that outlasts the access token and
    /// ends in a grant.
    pub async fn submission(&self, access: &AccessToken) -> Result<AccessToken, ClientError> {
        let url = http::join(&self.base, "v1/submissions");
        let answer: Submission = self.send(|| self.http.post(url.clone()).bearer_auth(access.token.as_str())).await?;
        Ok(AccessToken {
            token: Zeroizing::new(answer.submission),
            tenant: answer.tenant,
            scopes: vec![Scope::JobsSubmit],
            expires_at: answer.expires_at,
        })
    }

    /// Exchanges an access token with scope `embed` for an embed token: what a synchronous request for vectors of `model`
    /// carries to a worker.
    pub async fn embed_token(&self, access: &AccessToken, model: &str) -> Result<EmbedToken, ClientError> {
        let url = http::join(&self.base, "v1/embed-tokens");
        let order = EmbedOrder { model: model.to_owned() };
        let request = || self.http.post(url.clone()).bearer_auth(access.token.as_str()).json(&order);
        let answer: EmbedTokenResponse = self.send(request).await?;
        Ok(EmbedToken {
            token: Zeroizing::new(answer.embed_token),
            expires_at: answer.expires_at,
            dimensions_max: answer.dimensions_max,
        })
    }

    /// Exchanges an access token with scope `jobs:submit`, or a submission token, for a grant of one job.
    pub async fn job_grant(&self, access: &AccessToken, request: &GrantRequest) -> Result<JobGrant, ClientError> {
        let url = http::join(&self.base, "v1/grants");
        self.send(|| self.http.post(url.clone()).bearer_auth(access.token.as_str()).json(request)).await
    }

    /// Sends until there is an answer. All requests may be repeated: a token that got lost on the way just expires.
    async fn send<T: DeserializeOwned>(&self, request: impl Fn() -> RequestBuilder) -> Result<T, ClientError> {
        let mut tried = 1;
        let (status, body) = loop {
            match exchange(request()).await {
                Ok(answer) => break answer,
                Err(_) if tried < TRIES => {
                    tokio::time::sleep(BACKOFF * 2_u32.pow(tried - 1)).await;
                    tried += 1;
                }
                Err(source) => {
                    let (url, source) = (self.base.to_string(), source.without_url());
                    return Err(ClientError::Unreachable { url, reason: edge::explain(&source), source });
                }
            }
        };
        let body = body.ok_or(ClientError::Protocol("it is too long"))?;
        if status == StatusCode::OK {
            return serde_json::from_slice(&body).map_err(|_| ClientError::Protocol("it is not the JSON expected"));
        }
        let refusal: ErrorBody =
            serde_json::from_slice(&body).map_err(|_| ClientError::Protocol("an error without its JSON body"))?;
        Err(ClientError::Refused {
            status: status.as_u16(),
            error: refusal.error,
            description: refusal.error_description,
        })
    }
}

async fn exchange(request: RequestBuilder) -> Result<(StatusCode, Option<Vec<u8>>), reqwest::Error> {
    let response = request.send().await?;
    Ok((response.status(), http::body(response, http::BODY_LEN_MAX).await?))
}
