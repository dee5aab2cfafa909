//! Why a token was refused.

/// Why a token was refused. No variant carries any byte of the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Longer than any token we mint; refused before it is parsed.
    #[error("the token is longer than 8 KiB")]
    TooLong,
    /// Not three base64url parts, or the header is not the small JSON object it must be.
    #[error("the token is not a well-formed JWT")]
    Malformed,
    /// `alg` is not EdDSA.
    #[error("the token is not signed with EdDSA")]
    WrongAlgorithm,
    /// `typ` is that of another kind of token.
    #[error("the token is of another type than this place takes")]
    WrongType,
    /// The header has a field that would let the token choose how it is checked.
    #[error("the token's header has the forbidden field \"{0}\"")]
    ForbiddenHeader(&'static str),
    /// `kid` names no key of the signer.
    #[error("the token names a signing key that the signer does not publish")]
    UnknownKey,
    /// The signature does not match.
    #[error("the token's signature is wrong")]
    BadSignature,
    /// `exp` has passed.
    #[error("the token has expired")]
    Expired,
    /// `nbf` or `iat` lies in the future.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// `iss` is not our signer.
    #[error("the token was issued by somebody else")]
    WrongIssuer,
    /// `aud` is not this kind of service.
    #[error("the token is meant for another audience")]
    WrongAudience,
    /// It lives longer than its kind may.
    #[error("the token lives longer than its kind may")]
    LifetimeTooLong,
    /// A claim is missing, repeated, unknown or of the wrong type.
    #[error("the token's claims are not the ones this place takes")]
    BadClaims,
    /// The signing key was withdrawn: whoever has it may have made the token.
    #[error("the key that signed the token was withdrawn; ask the signer for a new token")]
    SigningKeyWithdrawn,
    /// The API key behind it was revoked.
    #[error("the API key behind the token was revoked")]
    KeyRevoked,
    /// The access token itself was revoked.
    #[error("the token was revoked")]
    TokenRevoked,
    /// The job was revoked.
    #[error("the job was revoked")]
    JobRevoked,
    /// The tenant was cut off, or its outstanding tokens were.
    #[error("the tenant was cut off after the token was issued")]
    TenantCutOff,
    /// It is not known what was revoked lately. Nothing is known about the token.
    #[error("the signer's statement of revocations is too old to go by: {0}")]
    RevocationsStale(String),
    /// The signer's public keys can't be had now. Nothing is known about the token.
    #[error("the signer's public keys are unavailable: {0}")]
    KeysUnavailable(String),
}

impl Refusal {
    /// A stable snake_case name, for audit records and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::WrongAlgorithm => "wrong_algorithm",
            Self::WrongType => "wrong_type",
            Self::ForbiddenHeader(_) => "forbidden_header",
            Self::UnknownKey => "unknown_key",
            Self::BadSignature => "bad_signature",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::WrongIssuer => "wrong_issuer",
            Self::WrongAudience => "wrong_audience",
            Self::LifetimeTooLong => "lifetime_too_long",
            Self::BadClaims => "bad_claims",
            Self::SigningKeyWithdrawn => "signing_key_withdrawn",
            Self::KeyRevoked => "key_revoked",
            Self::TokenRevoked => "token_revoked",
            Self::JobRevoked => "job_revoked",
            Self::TenantCutOff => "tenant_cut_off",
            Self::RevocationsStale(_) => "revocations_stale",
            Self::KeysUnavailable(_) => "keys_unavailable",
        }
    }

    /// Whether the same token may pass later, with nothing changed about it: the caller should wait, not reject.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::KeysUnavailable(_) | Self::RevocationsStale(_))
    }
}
