//! `POST /oauth/introspect` (RFC 7662) and `POST /oauth/revoke` (RFC 7009), for tokens of every kind.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::FormRejection;
use axum::extract::{ConnectInfo, Form, State};
use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::error::ApiError;
use super::tenants::TenantPlace;
use super::token::filled;
use super::{App, auth};
use crate::claims::{
    ACCESS_AUDIENCE, ACCESS_TYPE, EMBED_AUDIENCE, EMBED_TYPE, GRANT_AUDIENCE, GRANT_TYPE, SUBMISSION_AUDIENCE,
    SUBMISSION_TYPE, Scope, TenantId,
};
use crate::store::{Revoked, StoreError, StoredKey};
use crate::verify::{VerifiedAccess, VerifiedEmbed, VerifiedGrant};

/// The form of both. `token_type_hint` is a hint only, and all kinds are told apart by their `typ`.
#[derive(Deserialize)]
pub(super) struct TokenForm {
    token: Option<Zeroizing<String>>,
    client_id: Option<String>,
    client_secret: Option<Zeroizing<String>>,
}

/// A token that is what it says.
enum Shown {
    /// An access token, or a submission token.
    Access(VerifiedAccess),
    Embed(VerifiedEmbed),
    Grant(Box<VerifiedGrant>),
}

impl Shown {
    /// The one that `token` is, whether it was revoked or not; none if it is no token of ours, or over.
    async fn read(app: &App, token: &str) -> Option<Self> {
        let live = app.current.live();
        let verifier = live.verifier();
        // Its type says which it is; a token of one type is read as no other.
        if let Ok(access) = verifier.access(token).await {
            return Some(Self::Access(access));
        }
        if let Ok(submission) = verifier.submission(token).await {
            return Some(Self::Access(submission.into_access()));
        }
        if let Ok(embed) = verifier.embed(token).await {
            return Some(Self::Embed(embed));
        }
        verifier.grant(token).await.ok().map(|grant| Self::Grant(Box::new(grant)))
    }

    fn key_id(&self) -> &str {
        match self {
            Self::Access(access) => access.key_id(),
            Self::Embed(embed) => embed.key_id(),
            Self::Grant(grant) => grant.key_id(),
        }
    }

    fn tenant(&self) -> &TenantId {
        match self {
            Self::Access(access) => access.tenant(),
            Self::Embed(embed) => embed.tenant(),
            Self::Grant(grant) => grant.tenant(),
        }
    }

    /// Whether `key` may ask about it: its own tenant's, and an operator's admin any.
    fn is_for(&self, key: &StoredKey) -> bool {
        self.tenant() == &key.info.tenant || (key.operator && key.scopes.contains(&Scope::Admin))
    }

    /// Whether nothing that it rests on was revoked.
    async fn is_active(&self, app: &App) -> Result<bool, ApiError> {
        match self {
            Self::Access(access) => Ok(app.store.standing(access).await?.is_ok()),
            Self::Embed(embed) => {
                let Some(key) = self.unrevoked_key(app).await? else { return Ok(false) };
                Ok(embed.epoch() >= key.epoch
                    && embed.issued_at() > key.tokens_void_until_s
                    && !app.store.is_token_revoked(embed.tenant(), [embed.token_id(), embed.parent()]).await?)
            }
            Self::Grant(grant) => {
                let Some(key) = self.unrevoked_key(app).await? else { return Ok(false) };
                let revoked = app.store.job_revoked(grant.tenant(), grant.job()).await?;
                Ok(grant.epoch() >= key.epoch && revoked.is_none_or(|at| grant.issued_at() > at))
            }
        }
    }

    /// The key behind it, unless that was revoked. A grant and an embed token outlive their key's end, not its revocation: what they
    /// are for was asked in time.
    async fn unrevoked_key(&self, app: &App) -> Result<Option<StoredKey>, ApiError> {
        let key = app.store.find_key(self.key_id()).await?;
        Ok(key.filter(|key| key.info.revoked_s.is_none() && key.tenant_active))
    }

    fn describe(&self, app: &App) -> Value {
        match self {
            Self::Access(access) => {
                let (aud, typ) = if access.is_submission() {
                    (SUBMISSION_AUDIENCE, SUBMISSION_TYPE)
                } else {
                    (ACCESS_AUDIENCE, ACCESS_TYPE)
                };
                json!({
                    "active": true, "iss": app.issuer, "sub": access.tenant(), "aud": aud,
                    "client_id": access.key_id(), "scope": access.scope(), "jti": access.token_id(),
                    "iat": access.issued_at(), "nbf": access.issued_at(), "exp": access.expires_at(),
                    "token_type": "Bearer", "typ": typ,
                })
            }
            Self::Embed(embed) => json!({
                "active": true, "iss": app.issuer, "sub": embed.tenant(), "aud": EMBED_AUDIENCE,
                "client_id": embed.key_id(), "jti": embed.token_id(),
                "iat": embed.issued_at(), "nbf": embed.issued_at(), "exp": embed.expires_at(), "typ": EMBED_TYPE,
                "model": embed.model(), "dimensions_max": embed.dimensions_max(),
            }),
            Self::Grant(grant) => json!({
                "active": true, "iss": app.issuer, "sub": grant.tenant(), "aud": GRANT_AUDIENCE,
                "client_id": grant.key_id(), "jti": grant.job(),
                "iat": grant.issued_at(), "exp": grant.expires_at(), "typ": GRANT_TYPE,
                "manifest_sha256": grant.manifest_sha256(), "model": grant.model(),
                "dimensions": grant.dimensions(), "rows": grant.rows(),
            }),
        }
    }

    /// Revokes it, in the name of `actor`.
    async fn revoke(&self, app: &App, actor: &str) -> Result<(), StoreError> {
        let token = match self {
            Self::Access(access) => Revoked {
                tenant: access.tenant(),
                id: access.token_id(),
                has_children: !access.is_submission(),
                is_told: !access.is_submission(),
                expires_s: access.expires_at(),
            },
            Self::Embed(embed) => Revoked {
                tenant: embed.tenant(),
                id: embed.token_id(),
                has_children: false,
                is_told: true,
                expires_s: embed.expires_at(),
            },
            Self::Grant(grant) => return app.store.revoke_job(grant.tenant(), grant.job(), actor).await,
        };
        app.store.revoke_token(token, actor).await
    }
}

pub(super) async fn introspect(
    State(app): State<Arc<App>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    form: Result<Form<TokenForm>, FormRejection>,
) -> Result<impl IntoResponse, ApiError> {
    let (key, token, _place) = asked(&app, peer, &headers, form).await?;
    // A token of another tenant is as inactive as one that never was (RFC 7662, 2.2).
    let shown = Shown::read(&app, &token).await.filter(|shown| shown.is_for(&key));
    let answer = match shown {
        Some(shown) if shown.is_active(&app).await? => shown.describe(&app),
        _ => json!({"active": false}),
    };
    Ok(([(CACHE_CONTROL, "no-store")], Json(answer)))
}

pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    form: Result<Form<TokenForm>, FormRejection>,
) -> Result<impl IntoResponse, ApiError> {
    let (key, token, _place) = asked(&app, peer, &headers, form).await?;
    let done = Ok((StatusCode::OK, [(CACHE_CONTROL, "no-store")]));
    // One that is invalid already needs no revoking (RFC 7009, 2.2), and another tenant's is told no more of.
    let Some(shown) = Shown::read(&app, &token).await.filter(|shown| shown.is_for(&key)) else { return done };
    if shown.key_id() != key.info.id && !key.scopes.contains(&Scope::Admin) {
        let sentence = "the token was issued to another API key; only that key or an admin may revoke it";
        return Err(ApiError::access_denied(sentence));
    }
    shown.revoke(&app, &key.info.id).await?;
    app.current.refresh().await?;
    done
}

/// Who asks, and about which token.
async fn asked(
    app: &App,
    peer: SocketAddr,
    headers: &HeaderMap,
    form: Result<Form<TokenForm>, FormRejection>,
) -> Result<(StoredKey, Zeroizing<String>, TenantPlace), ApiError> {
    let Form(form) = form.map_err(|rejection| {
        ApiError::bad_body(rejection.status(), "the body must be a form of at most 16 KiB with no parameter twice")
    })?;
    let key = auth::client(app, headers, form.client_id, form.client_secret, peer).await?;
    let place = app.tenants.take(&key.info.tenant)?;
    match form.token {
        Some(token) if filled(Some(&token)).is_some() => Ok((key, token, place)),
        _ => Err(ApiError::bad_request("invalid_request", "token is missing")),
    }
}
