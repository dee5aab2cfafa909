//! Bodies of the signer's HTTP API, shared by its server and its client.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::claims::{Digest, JobId, TenantId};

/// Asks for a job grant: `POST /v1/grants`. The tenant is not in it: only the access token names the tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantRequest {
    /// The job; becomes the grant's `jti`.
    pub job: JobId,
    /// SHA-256 of the manifest's raw bytes.
    pub manifest_sha256: Digest,
    /// Model the vectors shall come from.
    pub model: String,
    /// Length of each vector, 32 to the model's own length.
    pub dimensions: u32,
    /// Rows in the manifest.
    pub rows: u64,
    /// Completion window in seconds: how long the grant shall live.
    pub window_s: u64,
    /// Which life of the job the grant is for; left out by clients from before jobs had runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub life: Option<u32>,
    /// Which run of the job the grant is for; left out by clients from before jobs had runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<u32>,
}

/// A job grant and what the producer needs to know of it, so that nobody has to look into an unverified token.
#[derive(Clone, Serialize, Deserialize)]
pub struct JobGrant {
    /// The signed grant.
    pub grant: String,
    /// The tenant it is for.
    pub tenant: TenantId,
    /// The queue lane the tenant's chunks go to.
    pub lane: u32,
    /// When it expires, Unix seconds.
    pub expires_at: u64,
}

impl fmt::Debug for JobGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobGrant")
            .field("grant", &"[redacted]")
            .field("tenant", &self.tenant)
            .field("lane", &self.lane)
            .field("expires_at", &self.expires_at)
            .finish()
    }
}

/// What `POST /v1/submissions` answers: a token to ask for grants with, for a day.
#[derive(Serialize, Deserialize)]
pub(crate) struct Submission {
    pub(crate) submission: String,
    pub(crate) tenant: TenantId,
    /// Unix seconds.
    pub(crate) expires_at: u64,
}

/// Asks for an embed token: `POST /v1/embed-tokens`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EmbedOrder {
    pub(crate) model: String,
}

/// What `POST /v1/embed-tokens` answers.
#[derive(Serialize, Deserialize)]
pub(crate) struct EmbedTokenResponse {
    pub(crate) embed_token: String,
    pub(crate) tenant: TenantId,
    /// Unix seconds.
    pub(crate) expires_at: u64,
    pub(crate) dimensions_max: u32,
}

/// What `POST /oauth/token` answers (RFC 6749, 5.1), with the tenant added.
#[derive(Serialize, Deserialize)]
pub(crate) struct TokenResponse {
    pub(crate) access_token: String,
    pub(crate) token_type: String,
    /// Seconds.
    pub(crate) expires_in: u64,
    pub(crate) scope: String,
    pub(crate) tenant: TenantId,
}

/// Every refusal's body (RFC 6749, 5.2).
#[derive(Serialize, Deserialize)]
pub(crate) struct ErrorBody {
    pub(crate) error: String,
    #[serde(default)]
    pub(crate) error_description: String,
}
