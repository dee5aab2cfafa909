//! Names and digests that are checked once, where they enter, and trusted by type from then on.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Longest tenant name: a tenant is one label of a host name, so it fits queue names, key prefixes and bucket names.
const TENANT_LEN_MAX: usize = 63;
/// Bytes of a job id before hex coding. 128 bits: ids made from digests don't collide by chance.
const JOB_ID_BYTES: usize = 16;

/// Why a name or digest was refused. The offending text is not repeated: it may be a tenant's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not a tenant name.
    #[error("a tenant name is 1 to 63 characters of a-z, 0-9 and '-', and does not start with '-'")]
    Tenant,
    /// Not a job id.
    #[error("a job id is exactly 32 characters of 0-9 and a-f")]
    Job,
    /// Not a name in a statement of revocations.
    #[error("a revoked name is exactly 22 characters of base64url")]
    RevokedName,
    /// Not a SHA-256 digest.
    #[error("a SHA-256 digest is exactly 64 characters of 0-9 and a-f")]
    Digest,
}

/// A tenant's name: `[a-z0-9][a-z0-9-]{0,62}`. Safe as it stands in an object key, a queue name and a Redis key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantId(String);

/// A job's id: 32 lowercase hex characters. It is also the grant's `jti`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(String);

/// A SHA-256 digest, written as 64 lowercase hex characters.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

/// Which run of a job: each submission that takes a job up is one, counted from 1 over all of the job's lives. A life begins
/// when a job is submitted for the first time, or again after it was deleted, and no two lives share an object.
///
/// The zeroes of [`RunId::default`] are a job from before there were runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunId {
    /// The life, counted from 1.
    pub life: u32,
    /// The run, counted from 1.
    pub run: u32,
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.life, self.run)
    }
}

/// What a statement of revocations calls something: 128 bits of a SHA-256 over its kind and name, in base64url. An API key's id,
/// a token's and a job's can't be guessed; a tenant's name can, and who guesses it learns that its tokens were voided lately.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RevokedName([u8; 16]);

impl RevokedName {
    /// Its characters.
    pub(crate) const LEN: usize = 22;

    /// Of an API key.
    pub fn of_key(id: &str) -> Self {
        Self::of("key", &[id])
    }

    /// Of an access, submission or embed token, by its `jti`.
    pub fn of_token(id: &str) -> Self {
        Self::of("token", &[id])
    }

    /// Of a job. Job ids are chosen by clients, so the tenant belongs to the name.
    pub fn of_job(tenant: &TenantId, job: &JobId) -> Self {
        Self::of("job", &[tenant.as_str(), job.as_str()])
    }

    /// Of a tenant.
    pub fn of_tenant(tenant: &TenantId) -> Self {
        Self::of("tenant", &[tenant.as_str()])
    }

    /// No part holds a zero byte, so two lists of parts are never one text.
    fn of(kind: &str, parts: &[&str]) -> Self {
        let mut hash = Sha256::new_with_prefix("vecmill revocation\0");
        hash.update(kind);
        for part in parts {
            hash.update("\0");
            hash.update(part);
        }
        let digest: [u8; 32] = hash.finalize().into();
        let mut name = [0; 16];
        name.copy_from_slice(&digest[..16]);
        Self(name)
    }
}

impl TryFrom<String> for RevokedName {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| IdError::RevokedName)?;
        bytes.try_into().map(Self).map_err(|_| IdError::RevokedName)
    }
}

impl From<RevokedName> for String {
    fn from(name: RevokedName) -> Self {
        URL_SAFE_NO_PAD.encode(name.0)
    }
}

impl TenantId {
    /// Names that no tenant may have: each begins a key on S3 or in Redis, with or without something before it, or could be taken for
    /// one of the service's own in logs and audits. Whoever is given rights to `{tenant}/` on S3 must not be given `audit/` by that.
    /// A name with `_` in front, as S3 has more, is no tenant's anyway.
    pub const RESERVED: [&str; 8] =
        ["audit", "conditional-writes", "gateways", "preparing", "refused", "vecmill", "webhooks", "workers"];

    /// Whether it is one of [`TenantId::RESERVED`].
    pub fn is_reserved(&self) -> bool {
        Self::RESERVED.contains(&self.as_str())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for TenantId {
    type Error = IdError;

    fn try_from(name: String) -> Result<Self, IdError> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let good = (1..=TENANT_LEN_MAX).contains(&name.len()) && !name.starts_with('-') && name.bytes().all(allowed);
        if good { Ok(Self(name)) } else { Err(IdError::Tenant) }
    }
}

impl JobId {
    /// The id that a digest names: its first 16 bytes.
    pub fn from_digest(digest: &[u8; 32]) -> Self {
        Self(hex(&digest[..JOB_ID_BYTES]))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for JobId {
    type Error = IdError;

    fn try_from(id: String) -> Result<Self, IdError> {
        if id.len() == 2 * JOB_ID_BYTES && id.bytes().all(is_lower_hex) { Ok(Self(id)) } else { Err(IdError::Job) }
    }
}

impl Digest {
    /// The SHA-256 of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// A digest computed elsewhere, for input that is hashed as it streams.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl TryFrom<String> for Digest {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl FromStr for Digest {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.bytes().all(is_lower_hex) {
            return Err(IdError::Digest);
        }
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = hex_value(pair[0]) << 4 | hex_value(pair[1]);
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

macro_rules! text_traits {
    ($name:ident) => {
        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::try_from(text.to_owned())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }
    };
}

text_traits!(TenantId);
text_traits!(JobId);

fn is_lower_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// The value of one hex digit that [`is_lower_hex`] has passed.
fn hex_value(digit: u8) -> u8 {
    if digit.is_ascii_digit() { digit - b'0' } else { digit - b'a' + 10 }
}

/// Lowercase hex of any bytes.
fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|nibble| char::from(DIGITS[usize::from(nibble)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenant_names_are_one_host_label() {
        for good in ["a", "acme", "0-9", &"a".repeat(63)] {
            assert_eq!(good.parse::<TenantId>().expect("valid name").as_str(), good);
        }
        for bad in ["", "-a", "A", "a/b", "a.b", "a b", "é", &"a".repeat(64)] {
            assert_eq!(bad.parse::<TenantId>(), Err(IdError::Tenant), "{bad:?}");
        }
    }

    #[test]
    fn job_ids_are_32_lower_hex() {
        assert_eq!(JobId::from_digest(&[0xab; 32]).as_str(), "ab".repeat(16));
        for bad in ["", "ab", &"AB".repeat(16), &"g0".repeat(16), &"ab".repeat(17)] {
            assert_eq!(bad.parse::<JobId>(), Err(IdError::Job), "{bad:?}");
        }
    }

    #[test]
    fn a_revoked_name_tells_kinds_and_tenants_apart() {
        let tenant = |name: &str| name.parse::<TenantId>().expect("a name");
        let (job, id) = (JobId::from_digest(&[7; 32]), "07".repeat(16));
        let names = [
            RevokedName::of_key(&id),
            RevokedName::of_token(&id),
            RevokedName::of_job(&tenant("a"), &job),
            RevokedName::of_job(&tenant("b"), &job),
            RevokedName::of_tenant(&tenant("a")),
            RevokedName::of_tenant(&tenant("b")),
        ];
        let different: std::collections::HashSet<_> = names.iter().collect();
        assert_eq!(different.len(), names.len());
        let text = String::from(names[0]);
        assert_eq!((text.len(), RevokedName::try_from(text.clone())), (RevokedName::LEN, Ok(names[0])));
        for bad in ["", &text[1..], &format!("{text}A"), &"+".repeat(22)] {
            assert!(RevokedName::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }

    #[test]
    fn digest_text_is_its_bytes() {
        // The SHA-256 of the empty string, FIPS 180-4's well-known value.
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), empty);
        assert_eq!(empty.parse(), Ok(Digest::of(b"")));
        assert_eq!(empty.to_uppercase().parse::<Digest>(), Err(IdError::Digest));
        let json = serde_json::to_string(&Digest::of(b"")).expect("serializes");
        assert_eq!(json, format!("\"{empty}\""));
        assert!(serde_json::from_str::<Digest>("\"00\"").is_err());
    }
}
