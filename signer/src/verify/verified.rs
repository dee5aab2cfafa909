//! Tokens that passed: what they say, for whoever acts on them. Only the judgement in [`super`] makes them.

use std::net::IpAddr;
use std::sync::Arc;

use crate::claims::{
    AccessClaims, Digest, EmbedClaims, GrantClaims, JobId, Limits, RunId, SUBMISSION_AUDIENCE, Scope, TenantId,
};
use crate::refusal::Refusal;
use crate::revocations::{Name, Subject};

/// An access token that passed every check.
#[derive(Debug, Clone)]
pub struct VerifiedAccess {
    pub(super) kid: String,
    pub(super) claims: Arc<AccessClaims>,
}

impl VerifiedAccess {
    pub(super) fn subject(&self) -> Subject<'_> {
        Subject {
            kid: &self.kid,
            tenant: &self.claims.sub,
            key_id: &self.claims.client_id,
            epoch: self.claims.epoch,
            issued_at: self.claims.iat,
            is_submission: self.is_submission(),
            name: Name::Token { id: &self.claims.jti, parent: self.claims.parent.as_deref() },
        }
    }

    /// The tenant.
    pub fn tenant(&self) -> &TenantId {
        &self.claims.sub
    }

    /// The API key behind the token.
    pub fn key_id(&self) -> &str {
        &self.claims.client_id
    }

    /// Address of the socket that asked for the token.
    pub fn client_addr(&self) -> Option<&str> {
        self.claims.client_addr.as_deref()
    }

    /// Whether the token carries `scope`.
    pub fn has_scope(&self, scope: Scope) -> bool {
        self.claims.scope.split(' ').any(|name| name == scope.as_str())
    }

    /// The scopes it carries, space-separated.
    pub fn scope(&self) -> &str {
        &self.claims.scope
    }

    /// Whether the token may be shown by a socket of this address.
    pub fn may_come_from(&self, address: IpAddr) -> bool {
        self.claims.sources.is_empty() || self.claims.sources.iter().any(|source| source.contains(address))
    }

    /// Quota of the tenant.
    pub fn limits(&self) -> Limits {
        self.claims.limits
    }

    /// Revocation epoch of the tenant at minting.
    pub fn epoch(&self) -> u64 {
        self.claims.epoch
    }

    /// The token's own id.
    pub fn token_id(&self) -> &str {
        &self.claims.jti
    }

    /// The token that it was made with, if it was made with one: then it is a submission token.
    pub(crate) fn parent(&self) -> Option<&str> {
        self.claims.parent.as_deref()
    }

    /// Whether it is a submission token's.
    pub(crate) fn is_submission(&self) -> bool {
        self.claims.aud == SUBMISSION_AUDIENCE
    }

    /// When it was issued, Unix seconds.
    pub fn issued_at(&self) -> u64 {
        self.claims.iat
    }

    /// When it expires, Unix seconds.
    pub fn expires_at(&self) -> u64 {
        self.claims.exp
    }
}

/// A submission token that passed every check: it may ask for grants, and for nothing else.
#[derive(Debug, Clone)]
pub struct VerifiedSubmission(pub(super) VerifiedAccess);

impl VerifiedSubmission {
    /// Who may ask, with `jobs:submit` for its one scope.
    pub(crate) fn into_access(self) -> VerifiedAccess {
        self.0
    }
}

/// An embed token that passed every check: it may have texts computed at once, and nothing else.
#[derive(Debug, Clone)]
pub struct VerifiedEmbed {
    pub(super) kid: String,
    pub(super) claims: Arc<EmbedClaims>,
}

impl VerifiedEmbed {
    pub(super) fn subject(&self) -> Subject<'_> {
        Subject {
            kid: &self.kid,
            tenant: &self.claims.sub,
            key_id: &self.claims.client_id,
            epoch: self.claims.epoch,
            issued_at: self.claims.iat,
            is_submission: false,
            name: Name::Token { id: &self.claims.jti, parent: Some(&self.claims.parent) },
        }
    }

    /// The tenant.
    pub fn tenant(&self) -> &TenantId {
        &self.claims.sub
    }

    /// The API key behind the token.
    pub fn key_id(&self) -> &str {
        &self.claims.client_id
    }

    /// Address of the socket that asked for the token.
    pub fn client_addr(&self) -> Option<&str> {
        self.claims.client_addr.as_deref()
    }

    /// The one model that may be used.
    pub fn model(&self) -> &str {
        &self.claims.model
    }

    /// Longest vectors that the tenant may have.
    pub fn dimensions_max(&self) -> u32 {
        self.claims.dimensions_max
    }

    /// Quota of the tenant.
    pub fn limits(&self) -> Limits {
        self.claims.limits
    }

    /// Revocation epoch of the tenant at minting.
    pub fn epoch(&self) -> u64 {
        self.claims.epoch
    }

    /// The token's own id.
    pub fn token_id(&self) -> &str {
        &self.claims.jti
    }

    /// The access token that it was made with, by its `jti`.
    pub(crate) fn parent(&self) -> &str {
        &self.claims.parent
    }

    /// When it was issued, Unix seconds.
    pub fn issued_at(&self) -> u64 {
        self.claims.iat
    }

    /// When it expires, Unix seconds.
    pub fn expires_at(&self) -> u64 {
        self.claims.exp
    }
}

/// A job grant that the signer did give and has revoked since: good for telling its job so, and for nothing else.
#[derive(Debug, Clone)]
pub struct RevokedGrant {
    /// What it was.
    pub grant: VerifiedGrant,
    /// Why it is no longer.
    pub refusal: Refusal,
}

/// A job grant that passed every check a token can be put to by itself.
#[derive(Debug, Clone)]
pub struct VerifiedGrant {
    pub(super) kid: String,
    pub(super) claims: GrantClaims,
}

impl VerifiedGrant {
    pub(super) fn subject(&self) -> Subject<'_> {
        Subject {
            kid: &self.kid,
            tenant: &self.claims.sub,
            key_id: &self.claims.key_id,
            epoch: self.claims.epoch,
            issued_at: self.claims.iat,
            is_submission: false,
            name: Name::Job(&self.claims.jti),
        }
    }

    /// The tenant.
    pub fn tenant(&self) -> &TenantId {
        &self.claims.sub
    }

    /// The job, which is also the grant's own id.
    pub fn job(&self) -> &JobId {
        &self.claims.jti
    }

    /// The API key that asked.
    pub fn key_id(&self) -> &str {
        &self.claims.key_id
    }

    /// Address of the socket that asked.
    pub fn client_addr(&self) -> Option<&str> {
        self.claims.client_addr.as_deref()
    }

    /// SHA-256 of the manifest's raw bytes.
    pub fn manifest_sha256(&self) -> Digest {
        self.claims.manifest_sha256
    }

    /// The model.
    pub fn model(&self) -> &str {
        &self.claims.model
    }

    /// Length of each vector.
    pub fn dimensions(&self) -> u32 {
        self.claims.dimensions
    }

    /// Ceiling on the job's rows.
    pub fn rows(&self) -> u64 {
        self.claims.rows
    }

    /// Queue lane of the tenant.
    pub fn lane(&self) -> u32 {
        self.claims.lane
    }

    /// The run of the job that it is for.
    pub fn run(&self) -> RunId {
        RunId { life: self.claims.life.unwrap_or_default(), run: self.claims.run.unwrap_or_default() }
    }

    /// Token quota of the tenant.
    pub fn limits(&self) -> Limits {
        self.claims.limits
    }

    /// Revocation epoch of the tenant at minting.
    pub fn epoch(&self) -> u64 {
        self.claims.epoch
    }

    /// When it was issued, Unix seconds.
    pub fn issued_at(&self) -> u64 {
        self.claims.iat
    }

    /// When it expires, Unix seconds.
    pub fn expires_at(&self) -> u64 {
        self.claims.exp
    }
}
