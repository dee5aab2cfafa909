//! What tokens say. The two sets of claims, and the types of the values in them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use crate::ids::{Digest, IdError, JobId, TenantId};

/// Audience of an access token: the gateway, the signer, and the worker's synchronous path.
pub const ACCESS_AUDIENCE: &str = "vecmill-api";
/// Audience of a job grant: the workers.
pub const GRANT_AUDIENCE: &str = "vecmill-workers";
/// `typ` of an access token (RFC 9068). Keeping the two types apart keeps one from being used as the other.
pub const ACCESS_TYPE: &str = "at+jwt";
/// `typ` of a job grant.
pub const GRANT_TYPE: &str = "job-grant+jwt";

/// One thing a holder of an access token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Scope {
    /// Ask for a job grant and submit the job.
    #[serde(rename = "jobs:submit")]
    JobsSubmit,
    /// See the state of jobs.
    #[serde(rename = "jobs:read")]
    JobsRead,
    /// Read finished vectors.
    #[serde(rename = "vectors:read")]
    VectorsRead,
    /// Cancel a job.
    #[serde(rename = "jobs:cancel")]
    JobsCancel,
    /// Delete a job and its data.
    #[serde(rename = "jobs:delete")]
    JobsDelete,
    /// Call the synchronous embeddings endpoint.
    #[serde(rename = "embed")]
    Embed,
    /// Administer the service.
    #[serde(rename = "admin")]
    Admin,
}

/// Not the name of a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a scope is one of jobs:submit, jobs:read, vectors:read, jobs:cancel, jobs:delete, embed, admin")]
pub struct UnknownScope;

impl Scope {
    /// Every scope there is.
    pub const ALL: [Self; 7] = [
        Self::JobsSubmit,
        Self::JobsRead,
        Self::VectorsRead,
        Self::JobsCancel,
        Self::JobsDelete,
        Self::Embed,
        Self::Admin,
    ];

    /// The name on the wire, such as `jobs:submit`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::JobsSubmit => "jobs:submit",
            Self::JobsRead => "jobs:read",
            Self::VectorsRead => "vectors:read",
            Self::JobsCancel => "jobs:cancel",
            Self::JobsDelete => "jobs:delete",
            Self::Embed => "embed",
            Self::Admin => "admin",
        }
    }

    /// Space-separated names, as OAuth writes a set of scopes.
    pub fn join(scopes: &[Self]) -> String {
        scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(" ")
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(name: &str) -> Result<Self, UnknownScope> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == name).ok_or(UnknownScope)
    }
}

/// A tenant's token quota. The grant carries it, so that workers charge a tenant without a policy database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Tokens that come back each minute.
    pub tokens_per_minute: u64,
    /// Tokens that may be spent at once after a quiet time.
    pub tokens_burst: u64,
    /// Tokens in one UTC day.
    pub tokens_per_day: u64,
}

/// The claims of an access token: minutes long, for one tenant, with scopes.
///
/// Unknown and repeated claims are refused: two readers of one token must not see two meanings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessClaims {
    /// The signer's issuer name.
    pub iss: String,
    /// The tenant.
    pub sub: TenantId,
    /// Always [`ACCESS_AUDIENCE`].
    pub aud: String,
    /// This token's own id: 32 lowercase hex characters.
    pub jti: String,
    /// Issued at, Unix seconds.
    pub iat: u64,
    /// Not valid before, Unix seconds.
    pub nbf: u64,
    /// Not valid from this moment on, Unix seconds.
    pub exp: u64,
    /// Space-separated scope names.
    pub scope: String,
    /// Id of the API key that asked. Not a secret.
    pub key_id: String,
    /// Address of the socket that asked, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_addr: Option<String>,
}

/// The claims of a job grant: it authorises one manifest, once, for as long as the job may take.
///
/// Unknown and repeated claims are refused, as in [`AccessClaims`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantClaims {
    /// The signer's issuer name.
    pub iss: String,
    /// The tenant.
    pub sub: TenantId,
    /// Always [`GRANT_AUDIENCE`].
    pub aud: String,
    /// The job.
    pub jti: JobId,
    /// Issued at, Unix seconds.
    pub iat: u64,
    /// Not valid before, Unix seconds.
    pub nbf: u64,
    /// Not valid from this moment on, Unix seconds.
    pub exp: u64,
    /// SHA-256 of the manifest's raw bytes.
    pub manifest_sha256: Digest,
    /// Model that the vectors come from, such as `Qwen/Qwen3-Embedding-4B`.
    pub model: String,
    /// Length of each vector.
    pub dimensions: u32,
    /// Rows in the manifest: a ceiling, not a promise.
    pub rows: u64,
    /// Id of the API key that asked. Not a secret.
    pub key_id: String,
    /// Address of the socket that asked, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_addr: Option<String>,
    /// Queue lane of the tenant.
    pub lane: u32,
    /// The tenant's quota when the grant was minted.
    pub limits: Limits,
    /// The tenant's revocation epoch when the grant was minted. A grant of an earlier epoch than the tenant's is void.
    pub epoch: u64,
}

/// The issuer name where none is configured, so that a signer and its verifiers agree out of the box.
pub const DEFAULT_ISSUER: &str = "vecmill-signer";
/// Lanes where no number is configured. The signer and the queue topology must use the same number.
pub const DEFAULT_LANES: u32 = 16;
