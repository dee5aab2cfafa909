//! What tokens say: the claims of each kind, and the types of the values in them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::cidr::Cidr;
pub use crate::ids::{Digest, IdError, JobId, RevokedName, RunId, TenantId};

/// Audience of an access token: the gateway and the signer.
pub const ACCESS_AUDIENCE: &str = "vecmill-api";
/// Audience of a submission token: the signer alone.
pub const SUBMISSION_AUDIENCE: &str = "vecmill-signer";
/// Audience of an embed token: the worker's synchronous path, and nobody else.
pub const EMBED_AUDIENCE: &str = "vecmill-embed";
/// Audience of a job grant: the workers.
pub const GRANT_AUDIENCE: &str = "vecmill-workers";
/// `typ` of an access token (RFC 9068). Keeping the two types apart keeps one from being used as the other.
pub const ACCESS_TYPE: &str = "at+jwt";
/// `typ` of a submission token.
pub const SUBMISSION_TYPE: &str = "submission+jwt";
/// `typ` of an embed token.
pub const EMBED_TYPE: &str = "embed+jwt";
/// `typ` of a job grant.
pub const GRANT_TYPE: &str = "job-grant+jwt";
/// Audience of the statement of revocations: whoever verifies tokens.
pub const REVOCATIONS_AUDIENCE: &str = "vecmill-verifiers";
/// `typ` of the statement of revocations.
pub const REVOCATIONS_TYPE: &str = "revocations-2+jwt";
/// `typ` of the statement as it was before names in it became digests.
pub const OLD_REVOCATIONS_TYPE: &str = "revocations+jwt";

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

/// A tenant's quota. Tokens carry it, so that workers and gateways hold a tenant to it without a policy database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Requests to the gateway a minute.
    pub requests_per_minute: u64,
    /// Tokens that come back each minute.
    pub tokens_per_minute: u64,
    /// Tokens that may be spent at once after a quiet time.
    pub tokens_burst: u64,
    /// Tokens in one UTC day.
    pub tokens_per_day: u64,
    /// Tokens that may wait in the queue, of all jobs together.
    pub queued_tokens: u64,
    /// Jobs under way at once.
    pub concurrent_jobs: u64,
    /// Bytes that may lie on S3; none is no limit. Left out then: programs of before limits had it read such a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_bytes: Option<u64>,
}

/// The claims of an access token: minutes long, for one tenant, with scopes. And of a submission token, which lives for a day
/// and is good for nothing but to ask the signer for grants in the name of the API key behind it.
///
/// Unknown and repeated claims are refused: two readers of one token must not see two meanings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessClaims {
    /// The signer's issuer name.
    pub iss: String,
    /// The tenant.
    pub sub: TenantId,
    /// [`ACCESS_AUDIENCE`], or [`SUBMISSION_AUDIENCE`].
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
    /// Id of the API key that asked, by the name that RFC 9068 gives it. Not a secret.
    pub client_id: String,
    /// Address of the socket that asked, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_addr: Option<String>,
    /// The tenant's quota when the token was minted.
    #[serde(deserialize_with = "object")]
    pub limits: Limits,
    /// Where the token may be shown from, by the address of the socket; anywhere if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Cidr>,
    /// Of a submission token, the `jti` of the access token that it was made with: void with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// The tenant's revocation epoch when the token was minted. A token of an earlier epoch than the tenant's is void.
    pub epoch: u64,
}

/// The claims of an embed token: it has the texts of one model computed at once, for a minute and a half, and opens nothing
/// else. It lies in the queue of synchronous requests, so whoever reads that queue can do this much and no more.
///
/// Unknown and repeated claims are refused, as in [`AccessClaims`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbedClaims {
    /// The signer's issuer name.
    pub iss: String,
    /// The tenant.
    pub sub: TenantId,
    /// Always [`EMBED_AUDIENCE`].
    pub aud: String,
    /// This token's own id: 32 lowercase hex characters.
    pub jti: String,
    /// Issued at, Unix seconds.
    pub iat: u64,
    /// Not valid before, Unix seconds.
    pub nbf: u64,
    /// Not valid from this moment on, Unix seconds.
    pub exp: u64,
    /// The one model that may be used.
    pub model: String,
    /// Longest vectors that the tenant may have.
    pub dimensions_max: u32,
    /// Id of the API key that asked. Not a secret.
    pub client_id: String,
    /// Address of the socket that asked, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_addr: Option<String>,
    /// The `jti` of the access token that it was made with: void with it.
    pub parent: String,
    /// The tenant's quota when the token was minted.
    #[serde(deserialize_with = "object")]
    pub limits: Limits,
    /// The tenant's revocation epoch when the token was minted. A token of an earlier epoch than the tenant's is void.
    pub epoch: u64,
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
    /// Which life of the job it is for; absent in grants from before jobs had runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub life: Option<u32>,
    /// Which run of the job it is for; absent in grants from before jobs had runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<u32>,
    /// The tenant's quota when the grant was minted.
    #[serde(deserialize_with = "object")]
    pub limits: Limits,
    /// The tenant's revocation epoch when the grant was minted. A grant of an earlier epoch than the tenant's is void.
    pub epoch: u64,
}

/// What is no longer good, signed, so that nobody on the way can add to it or take from it. It holds what can still
/// matter: an entry drops out once every token it concerns has expired. Anybody may read it, so what it names is named by
/// digest: who has a token can tell that it is meant, and nobody else whom the signer serves.
///
/// Unknown and repeated claims are refused, as in [`AccessClaims`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevocationClaims {
    /// The signer's issuer name.
    pub iss: String,
    /// Always [`REVOCATIONS_AUDIENCE`].
    pub aud: String,
    /// Issued at, Unix seconds. Verifiers count a statement's age from here, so that an old one can't be replayed for
    /// longer than they would keep it anyway.
    pub iat: u64,
    /// Grows with every change of policy; a verifier never goes back to a smaller one.
    pub seq: u64,
    /// The signing keys that are published: one that a verifier lacks is a reason to fetch them again.
    pub kids: Vec<String>,
    /// Signing keys that were withdrawn: whatever they signed, whenever, is void.
    pub withdrawn_kids: Vec<String>,
    /// API keys whose tokens and grants are void, and tokens that are void, with what was made with them.
    pub names: Vec<RevokedName>,
    /// Jobs whose grants issued at this second or before are void; the job may be submitted again.
    pub jobs: Vec<(RevokedName, u64)>,
    /// Tenants whose tokens and grants of an earlier epoch than the first number are void, and access and embed tokens issued
    /// at the second of the second number or before.
    pub tenants: BTreeMap<RevokedName, (u64, u64)>,
}

/// The statement as verifiers of before [`RevocationClaims`] read it, with names in it. Served to them during an upgrade, where it
/// is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct OldRevocationClaims {
    pub(crate) iss: String,
    pub(crate) aud: String,
    pub(crate) iat: u64,
    pub(crate) seq: u64,
    pub(crate) kids: Vec<String>,
    pub(crate) withdrawn_kids: Vec<String>,
    pub(crate) keys: Vec<String>,
    pub(crate) tokens: Vec<String>,
    pub(crate) jobs: Vec<OldRevokedJob>,
    pub(crate) tenants: BTreeMap<TenantId, u64>,
}

/// A job whose grants are void. Job ids are chosen by clients, so the tenant belongs to the name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct OldRevokedJob {
    pub(crate) tenant: TenantId,
    pub(crate) job: JobId,
    pub(crate) until: u64,
}

/// Limits from a JSON object only. serde would also read them from a list, by position: a second way to write the same
/// claim, in which a reader of names sees nothing.
fn object<'de, D: Deserializer<'de>>(limits: D) -> Result<Limits, D::Error> {
    struct Object;
    impl<'de> Visitor<'de> for Object {
        type Value = Limits;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<M: MapAccess<'de>>(self, members: M) -> Result<Limits, M::Error> {
            Limits::deserialize(MapAccessDeserializer::new(members)).map_err(M::Error::custom)
        }
    }
    limits.deserialize_map(Object)
}

/// The issuer name where none is configured, so that a signer and its verifiers agree out of the box.
pub const DEFAULT_ISSUER: &str = "vecmill-signer";
/// Lanes where no number is configured. The signer and the queue topology must use the same number.
pub const DEFAULT_LANES: u32 = 16;

#[cfg(test)]
mod fuzz {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn grant() -> impl Strategy<Value = GrantClaims> {
        let limits = any::<[u64; 6]>();
        (
            any::<[u8; 32]>(),
            ".{0,20}",
            any::<u64>(),
            any::<u64>(),
            any::<u32>(),
            proptest::option::of(".{0,20}"),
            limits,
        )
            .prop_map(|(digest, text, iat, rows, lane, client_addr, limits)| GrantClaims {
                iss: text.clone(),
                sub: TenantId::try_from("acme".to_owned()).expect("a name"),
                aud: text.clone(),
                jti: JobId::from_digest(&digest),
                iat,
                nbf: iat,
                exp: rows,
                manifest_sha256: Digest::from_bytes(digest),
                model: text.clone(),
                dimensions: lane,
                rows,
                key_id: text,
                client_addr,
                lane,
                life: Some(lane),
                run: Some(lane),
                limits: Limits {
                    requests_per_minute: limits[0],
                    tokens_per_minute: limits[1],
                    tokens_burst: limits[2],
                    tokens_per_day: limits[3],
                    queued_tokens: limits[4],
                    concurrent_jobs: limits[5],
                    stored_bytes: limits[0].is_multiple_of(2).then_some(limits[5]),
                },
                epoch: iat,
            })
    }

    /// Any small JSON value.
    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 12, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map("[a-z]{0,4}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn claims_survive_the_wire(claims in grant()) {
            let text = serde_json::to_string(&claims).expect("JSON");
            prop_assert_eq!(serde_json::from_str::<GrantClaims>(&text).expect("claims"), claims);
        }

        /// What is read back out of changed claims is what they say: no claim is coerced, guessed or filled in.
        #[test]
        fn a_changed_claim_is_refused_or_meant(claims in grant(), at in any::<prop::sample::Index>(), value in json()) {
            let mut changed = serde_json::to_value(&claims).expect("JSON");
            let members = changed.as_object_mut().expect("an object");
            let name = members.keys().nth(at.index(members.len())).expect("a claim").clone();
            members.insert(name.clone(), value.clone());
            if let Ok(read) = serde_json::from_value::<GrantClaims>(changed.clone()) {
                let read = serde_json::to_value(read).expect("JSON");
                // `null` is how an absent address, life or run may be written.
                let absent = ["client_addr", "life", "run"].contains(&name.as_str()) && value.is_null();
                prop_assert!(absent || read == changed, "{name}: {value}");
            }
        }

        #[test]
        fn any_text_is_claims_or_not(text in prop_oneof![".{0,200}", json().prop_map(|value| value.to_string())]) {
            crate::fuzz::claims(text.as_bytes());
        }
    }

    proptest! {
        #[test]
        fn statements_survive_the_wire(seq: u64, iat: u64, names in prop::collection::vec(".{0,20}", 0..5), epoch: u64) {
            let digests = names.iter().map(|name| RevokedName::of_key(name));
            let claims = RevocationClaims {
                iss: names.concat(),
                aud: REVOCATIONS_AUDIENCE.to_owned(),
                iat,
                seq,
                kids: names.clone(),
                withdrawn_kids: names.clone(),
                names: digests.clone().collect(),
                jobs: digests.clone().map(|digest| (digest, iat)).collect(),
                tenants: digests.map(|digest| (digest, (epoch, iat))).collect(),
            };
            let text = serde_json::to_string(&claims).expect("JSON");
            prop_assert_eq!(serde_json::from_str::<RevocationClaims>(&text).expect("claims"), claims);
        }
    }

    #[test]
    fn limits_have_names() {
        let claims = json!({
            "iss": "", "sub": "acme", "aud": "", "jti": "ab".repeat(16), "iat": 0, "nbf": 0, "exp": 0,
            "manifest_sha256": "ab".repeat(32), "model": "", "dimensions": 0, "rows": 0, "key_id": "", "lane": 0,
            "epoch": 0,
            "limits": {
                "requests_per_minute": 1, "tokens_per_minute": 2, "tokens_burst": 3, "tokens_per_day": 4,
                "queued_tokens": 5, "concurrent_jobs": 6,
            },
        });
        let read = serde_json::from_value::<GrantClaims>(claims.clone()).expect("from before there was a limit on S3");
        assert_eq!(serde_json::to_value(read).expect("JSON"), claims, "without the limit nothing is said of it");
        let mut by_position = claims;
        by_position["limits"] = json!([1, 2, 3, 4, 5, 6, 7]);
        assert!(serde_json::from_value::<GrantClaims>(by_position).is_err());
    }
}
