//! Signing tokens. Only the signer, local mode and tests construct a [`Minter`].

use aws_lc_rs::rand;
use jsonwebtoken::{Algorithm, Header, encode};
use serde::Serialize;

use crate::cidr::Cidr;
use crate::claims::{
    ACCESS_AUDIENCE, ACCESS_TYPE, AccessClaims, EMBED_AUDIENCE, EMBED_TYPE, EmbedClaims, GRANT_AUDIENCE, GRANT_TYPE,
    GrantClaims, JobId, Limits, OLD_REVOCATIONS_TYPE, OldRevocationClaims, REVOCATIONS_AUDIENCE, REVOCATIONS_TYPE,
    RevocationClaims, SUBMISSION_AUDIENCE, SUBMISSION_TYPE, Scope, TenantId,
};
pub use crate::keys::{KeyError, KeySet, SigningKey};
use crate::time::unix_now;
pub use crate::wire::GrantRequest;

/// How long an access token lives: long enough for one exchange of calls, short enough that a stolen one is soon worthless.
pub const ACCESS_LIFETIME_S: u64 = 300;

/// How long a submission token lives: corpora take minutes to be cut into chunks, and a service that can't be mended in a day
/// has told so long before.
pub const SUBMISSION_LIFETIME_S: u64 = 24 * 3600;

/// How long an embed token lives: a request for embeddings is answered within 30 s, and one that is made again for the same
/// caller need not ask the signer again.
pub const EMBED_LIFETIME_S: u64 = 90;

/// Whom an access token is for.
#[derive(Debug, Clone)]
pub struct AccessRequest {
    /// The tenant.
    pub tenant: TenantId,
    /// What the holder may do.
    pub scopes: Vec<Scope>,
    /// The API key that asks.
    pub key_id: String,
    /// Address of the socket that asks.
    pub client_addr: Option<String>,
    /// Quota of the tenant.
    pub limits: Limits,
    /// Where the tenant's requests may come from; empty for anywhere.
    pub sources: Vec<Cidr>,
    /// The access token that a submission token is made with, by its `jti`.
    pub parent: Option<String>,
    /// Revocation epoch of the tenant.
    pub epoch: u64,
}

/// Whom an embed token is for.
#[derive(Debug, Clone)]
pub struct EmbedRequest {
    /// The tenant, from a verified access token.
    pub tenant: TenantId,
    /// The one model that may be used.
    pub model: String,
    /// Longest vectors that the tenant may have.
    pub dimensions_max: u32,
    /// The API key behind that access token.
    pub key_id: String,
    /// Address of the socket that asks.
    pub client_addr: Option<String>,
    /// That access token, by its `jti`.
    pub parent: String,
    /// Quota of the tenant.
    pub limits: Limits,
    /// Revocation epoch of the tenant.
    pub epoch: u64,
}

/// What the signer adds to a [`GrantRequest`]: everything that the caller must not be able to choose.
#[derive(Debug, Clone)]
pub struct Grantee {
    /// The tenant, from a verified access token.
    pub tenant: TenantId,
    /// The API key behind that access token.
    pub key_id: String,
    /// Address of the socket that asks.
    pub client_addr: Option<String>,
    /// Queue lane of the tenant.
    pub lane: u32,
    /// Quota of the tenant.
    pub limits: Limits,
    /// Revocation epoch of the tenant.
    pub epoch: u64,
}

/// A token could not be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the token could not be signed")]
pub struct MintError;

/// Signs tokens with one private key under one issuer name. It does not judge: policy is checked before.
#[derive(Debug)]
pub struct Minter {
    issuer: String,
    key: SigningKey,
}

impl Minter {
    /// A minter for `issuer`. Verifiers must be told the same name.
    pub fn new(issuer: String, key: SigningKey) -> Self {
        install_crypto();
        Self { issuer, key }
    }

    /// The issuer name.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The public half of the key that signs.
    pub fn public_keys(&self) -> KeySet {
        let mut keys = KeySet::default();
        keys.insert(*self.key.public());
        keys
    }

    /// Signs an access token that lives [`ACCESS_LIFETIME_S`].
    pub fn mint_access(&self, request: AccessRequest) -> Result<(String, AccessClaims), MintError> {
        self.mint_access_at(request, unix_now())
    }

    /// The same, issued at a stated time: that from before the database was asked. So what is revoked after it was asked was
    /// issued before.
    pub(crate) fn mint_access_at(&self, request: AccessRequest, now: u64) -> Result<(String, AccessClaims), MintError> {
        let claims = self.access_claims(request, ACCESS_AUDIENCE, ACCESS_LIFETIME_S, now)?;
        Ok((self.sign(ACCESS_TYPE, &claims)?, claims))
    }

    /// Signs a submission token that lives [`SUBMISSION_LIFETIME_S`]; its one scope is `jobs:submit`, whatever is asked for.
    pub(crate) fn mint_submission_at(
        &self,
        request: AccessRequest,
        now: u64,
    ) -> Result<(String, AccessClaims), MintError> {
        let request = AccessRequest { scopes: vec![Scope::JobsSubmit], ..request };
        let claims = self.access_claims(request, SUBMISSION_AUDIENCE, SUBMISSION_LIFETIME_S, now)?;
        Ok((self.sign(SUBMISSION_TYPE, &claims)?, claims))
    }

    fn access_claims(
        &self,
        request: AccessRequest,
        audience: &str,
        lives_s: u64,
        now: u64,
    ) -> Result<AccessClaims, MintError> {
        Ok(AccessClaims {
            iss: self.issuer.clone(),
            sub: request.tenant,
            aud: audience.to_owned(),
            jti: token_id()?,
            iat: now,
            nbf: now,
            exp: now + lives_s,
            scope: Scope::join(&request.scopes),
            client_id: request.key_id,
            client_addr: request.client_addr,
            limits: request.limits,
            sources: request.sources,
            parent: request.parent,
            epoch: request.epoch,
        })
    }

    /// Signs an embed token that lives [`EMBED_LIFETIME_S`].
    pub(crate) fn mint_embed_at(&self, request: EmbedRequest, now: u64) -> Result<(String, EmbedClaims), MintError> {
        let claims = EmbedClaims {
            iss: self.issuer.clone(),
            sub: request.tenant,
            aud: EMBED_AUDIENCE.to_owned(),
            jti: token_id()?,
            iat: now,
            nbf: now,
            exp: now + EMBED_LIFETIME_S,
            model: request.model,
            dimensions_max: request.dimensions_max,
            client_id: request.key_id,
            client_addr: request.client_addr,
            parent: request.parent,
            limits: request.limits,
            epoch: request.epoch,
        };
        Ok((self.sign(EMBED_TYPE, &claims)?, claims))
    }

    /// Signs a grant for the job in `request` that lives `window_s`.
    pub fn mint_grant(&self, grantee: Grantee, request: GrantRequest) -> Result<(String, GrantClaims), MintError> {
        self.mint_grant_at(grantee, request, unix_now())
    }

    /// The same, issued at a stated time: that at which the policy database recorded it.
    pub(crate) fn mint_grant_at(
        &self,
        grantee: Grantee,
        request: GrantRequest,
        now: u64,
    ) -> Result<(String, GrantClaims), MintError> {
        let claims = GrantClaims {
            iss: self.issuer.clone(),
            sub: grantee.tenant,
            aud: GRANT_AUDIENCE.to_owned(),
            jti: request.job,
            iat: now,
            nbf: now,
            exp: now.saturating_add(request.window_s),
            manifest_sha256: request.manifest_sha256,
            model: request.model,
            dimensions: request.dimensions,
            rows: request.rows,
            key_id: grantee.key_id,
            client_addr: grantee.client_addr,
            lane: grantee.lane,
            life: request.life,
            run: request.run,
            limits: grantee.limits,
            epoch: grantee.epoch,
        };
        Ok((self.sign(GRANT_TYPE, &claims)?, claims))
    }

    /// Signs a statement of revocations; issuer, audience and time of `claims` are replaced by this minter's.
    pub fn mint_revocations(&self, claims: RevocationClaims) -> Result<String, MintError> {
        let ours = RevocationClaims {
            iss: self.issuer.clone(),
            aud: REVOCATIONS_AUDIENCE.to_owned(),
            iat: unix_now(),
            ..claims
        };
        self.sign(REVOCATIONS_TYPE, &ours)
    }

    /// The same for verifiers of before.
    pub(crate) fn mint_old_revocations(&self, claims: OldRevocationClaims) -> Result<String, MintError> {
        let ours = OldRevocationClaims {
            iss: self.issuer.clone(),
            aud: REVOCATIONS_AUDIENCE.to_owned(),
            iat: unix_now(),
            ..claims
        };
        self.sign(OLD_REVOCATIONS_TYPE, &ours)
    }

    fn sign(&self, typ: &str, claims: &impl Serialize) -> Result<String, MintError> {
        let mut header = Header::new(Algorithm::EdDSA);
        header.typ = Some(typ.to_owned());
        header.kid = Some(self.key.kid().to_owned());
        encode(&header, claims, self.key.encoding()).map_err(|_| MintError)
    }
}

/// A token's own id, of the same shape as a job's: 128 random bits in hex.
fn token_id() -> Result<String, MintError> {
    let mut id = [0; 32];
    rand::fill(&mut id).map_err(|_| MintError)?;
    Ok(JobId::from_digest(&id).into())
}

/// Chooses jsonwebtoken's crypto by name. Left to itself it guesses from cargo features, and panics at first use once any
/// crate in the build turns on a second one.
pub(crate) fn install_crypto() {
    // An error means that a provider is installed already, which is what we want.
    let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
}
