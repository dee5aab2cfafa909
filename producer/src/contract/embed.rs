//! The synchronous path: a few texts to a worker and their vectors back, through the broker and past every bulk job.

use serde::{Deserialize, Serialize};

use super::{
    CONTRACT_VERSION, EmbedInput, inputs,
    spec::{INSTRUCTION_BYTES_MAX, MODEL_BYTES_MAX},
};

/// Most inputs of a request: OpenAI's own bound, which its clients know.
pub const EMBED_INPUTS_MAX: usize = 2048;
/// Most tokens of a request, all inputs together: OpenAI's own bound.
pub const EMBED_TOKENS_MAX: u64 = 300_000;
/// Most bytes of a request's message: 300,000 tokens are below 2 MiB of most texts; JSON escapes and long words get room.
/// RabbitMQ takes 16 MiB.
pub const EMBED_REQUEST_BYTES_MAX: usize = 8 << 20;
/// Most bytes of a request's id: the gateway's have 32.
const ID_BYTES_MAX: usize = 64;
/// Most bytes of an answer's header; the vectors come behind it.
const HEADER_BYTES_MAX: usize = 64 << 10;

/// Texts to embed at once, as they lie on the synchronous queue.
///
/// Unlike a chunk's message it holds the texts: it lives for seconds, and a detour over S3 would take as long as the model.
/// The tenant is not in it: only the embed token names the tenant.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbedRequest {
    /// [`CONTRACT_VERSION`].
    pub version: u32,
    /// The request's id: what it is found by in logs and audit.
    pub id: String,
    /// An embed token: it says for whom, and opens nothing but this queue, for this model, for seconds. An access token, which
    /// opens all that its holder may do, is never sent.
    pub token: String,
    /// The model that the vectors shall come from.
    pub model: String,
    /// What to embed.
    #[serde(deserialize_with = "inputs::checked")]
    pub inputs: Vec<EmbedInput>,
    /// Length of each vector; the model's own if there is none.
    pub dimensions: Option<u32>,
    /// The task of Qwen3's query prompt.
    pub instruction: Option<String>,
    /// From this moment on nobody waits for the answer, Unix milliseconds.
    pub deadline_ms: u64,
}

/// Without the token and the texts, which must not reach a log.
impl std::fmt::Debug for EmbedRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbedRequest").field("id", &self.id).field("inputs", &self.inputs.len()).finish_non_exhaustive()
    }
}

/// Why a request or an answer can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EmbedError {
    /// Over [`EMBED_REQUEST_BYTES_MAX`].
    #[error("the request has {0} bytes; it may have {EMBED_REQUEST_BYTES_MAX}")]
    TooLong(usize),
    /// Not of this shape. Says nothing of the content.
    #[error("the message is not a synchronous request or its answer")]
    Malformed,
    /// Another version.
    #[error("the message has version {0}; this program reads version {CONTRACT_VERSION}")]
    Version(u32),
}

impl EmbedRequest {
    /// The message's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads a message; nothing in it is trusted yet.
    pub fn parse(bytes: &[u8]) -> Result<Self, EmbedError> {
        if bytes.len() > EMBED_REQUEST_BYTES_MAX {
            return Err(EmbedError::TooLong(bytes.len()));
        }
        let request: Self = serde_json::from_slice(bytes).map_err(|_| EmbedError::Malformed)?;
        if request.version != CONTRACT_VERSION {
            return Err(EmbedError::Version(request.version));
        }
        let fits = request.id.len() <= ID_BYTES_MAX
            && request.model.len() <= MODEL_BYTES_MAX
            && request.instruction.as_ref().is_none_or(|text| text.len() <= INSTRUCTION_BYTES_MAX);
        if fits { Ok(request) } else { Err(EmbedError::Malformed) }
    }
}

/// A worker's answer.
#[derive(Clone, Debug, PartialEq)]
pub enum EmbedAnswer {
    /// The vectors.
    Embedded {
        /// Exact tokens of each input.
        tokens: Vec<u32>,
        /// Length of each vector.
        dimensions: u32,
        /// The vectors one after the other, each value a little-endian f32.
        vectors: Vec<u8>,
    },
    /// None.
    Refused(EmbedRefusal),
}

/// Why there are no vectors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbedRefusal {
    /// What kind of no it is.
    pub kind: RefusalKind,
    /// A stable word for programs.
    pub code: String,
    /// A sentence for people.
    pub message: String,
    /// The input at fault, counted from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<u32>,
    /// When to ask again, milliseconds from now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

/// What kind of no a refusal is; the gateway makes an HTTP status of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// The access token is not good.
    Unauthorized,
    /// The access token is good, but not for this.
    Forbidden,
    /// The request can never work.
    Invalid,
    /// The tenant is over its quota.
    OverQuota,
    /// Not now.
    Unavailable,
    /// The model failed on an input.
    Failed,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case", deny_unknown_fields)]
enum Header {
    Embedded { version: u32, tokens: Vec<u32>, dimensions: u32 },
    Refused { version: u32, refusal: EmbedRefusal },
}

impl EmbedAnswer {
    /// The message's bytes: a line of JSON, then the vectors as they are.
    pub fn to_bytes(&self) -> Vec<u8> {
        let version = CONTRACT_VERSION;
        let (header, vectors): (_, &[u8]) = match self {
            Self::Embedded { tokens, dimensions, vectors } => {
                (Header::Embedded { version, tokens: tokens.clone(), dimensions: *dimensions }, vectors)
            }
            Self::Refused(refusal) => (Header::Refused { version, refusal: refusal.clone() }, &[]),
        };
        let mut bytes = serde_json::to_vec(&header).unwrap_or_default();
        bytes.push(b'\n');
        bytes.extend_from_slice(vectors);
        bytes
    }

    /// Reads an answer. The vectors stay where they are: they are most of it.
    pub fn parse(mut bytes: Vec<u8>) -> Result<Self, EmbedError> {
        let end = bytes.iter().take(HEADER_BYTES_MAX).position(|&byte| byte == b'\n').ok_or(EmbedError::Malformed)?;
        let header = serde_json::from_slice(&bytes[..end]).map_err(|_| EmbedError::Malformed)?;
        let (version, answer) = match header {
            Header::Embedded { version, tokens, dimensions } => {
                bytes.drain(..=end);
                let vectors = bytes;
                if vectors.len() != tokens.len() * 4 * dimensions as usize {
                    return Err(EmbedError::Malformed);
                }
                (version, Self::Embedded { tokens, dimensions, vectors })
            }
            Header::Refused { version, refusal } => (version, Self::Refused(refusal)),
        };
        if version == CONTRACT_VERSION { Ok(answer) } else { Err(EmbedError::Version(version)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> EmbedRequest {
        EmbedRequest {
            version: CONTRACT_VERSION,
            id: "r1".to_owned(),
            token: "secret-token".to_owned(),
            model: "m".to_owned(),
            inputs: vec![EmbedInput::Text("secret text".to_owned()), EmbedInput::Tokens(vec![1, 2])],
            dimensions: Some(64),
            instruction: None,
            deadline_ms: 1,
        }
    }

    #[test]
    fn requests_survive_the_queue_and_show_nothing() {
        let bytes = request().to_bytes();
        assert_eq!(EmbedRequest::parse(&bytes), Ok(request()));
        assert!(!format!("{:?}", request()).contains("secret"));
        let mut text: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
        text["tenant"] = "acme".into();
        assert_eq!(
            EmbedRequest::parse(text.to_string().as_bytes()),
            Err(EmbedError::Malformed),
            "nobody but the token"
        );
        let other = EmbedRequest { version: 9, ..request() };
        assert_eq!(EmbedRequest::parse(&other.to_bytes()), Err(EmbedError::Version(9)));
        let long = vec![b' '; EMBED_REQUEST_BYTES_MAX + 1];
        assert_eq!(EmbedRequest::parse(&long), Err(EmbedError::TooLong(long.len())));
    }

    #[test]
    fn answers_survive_the_queue_to_the_bit() {
        let values = [1.0_f32, -0.0, f32::MIN_POSITIVE, 0.1];
        let vectors: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        // A line break among the vectors' bytes is none.
        assert!(EmbedAnswer::parse(b"\n".to_vec()).is_err());
        let answer = EmbedAnswer::Embedded { tokens: vec![3, 10], dimensions: 2, vectors };
        assert_eq!(EmbedAnswer::parse(answer.to_bytes()), Ok(answer.clone()));
        let mut short = answer.to_bytes();
        short.pop();
        assert_eq!(EmbedAnswer::parse(short), Err(EmbedError::Malformed));
        let refusal = EmbedRefusal {
            kind: RefusalKind::OverQuota,
            code: "over_quota".to_owned(),
            message: "later".to_owned(),
            input: None,
            retry_after_ms: Some(7),
        };
        let refused = EmbedAnswer::Refused(refusal);
        assert_eq!(EmbedAnswer::parse(refused.to_bytes()), Ok(refused));
    }
}
