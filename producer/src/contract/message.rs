//! The message on the queue: a claim check for one chunk, never the text itself.

use serde::{Deserialize, Serialize};
use vecmill_signer::claims::Digest;

use super::CONTRACT_VERSION;

/// Most bytes of a message. A grant has at most 8 KiB (the verifier's bound), the rest is far below 1 KiB.
pub const MESSAGE_BYTES_MAX: usize = 12 << 10;

/// Header: how many times the chunk has failed in a way that may pass. Not `x-...`: RabbitMQ 4 rewrites those.
pub const ATTEMPT_HEADER: &str = "vecmill-attempt";
/// Header: how many times the chunk has been sent to wait without having failed (over quota).
pub const RUNG_HEADER: &str = "vecmill-rung";
/// Header on a dead letter: why.
pub const REASON_HEADER: &str = "vecmill-reason";

/// One chunk to embed.
///
/// The object's key is not in it. The key starts with the tenant, and the tenant lives in the verified grant
/// alone: a worker derives the key from the grant's tenant and job and this chunk number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkMessage {
    /// [`CONTRACT_VERSION`].
    pub version: u32,
    /// The job's id; must be the grant's. Here so that an operator can read a queue.
    pub job: String,
    /// The run of the job; must be the grant's. 0 in messages from before there were runs.
    #[serde(default)]
    pub run: u32,
    /// The chunk's number.
    pub chunk: u32,
    /// SHA-256 of the chunk's object; must be the manifest's.
    pub sha256: Digest,
    /// The job grant, a JWT.
    pub grant: String,
}

/// Why a message can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Over [`MESSAGE_BYTES_MAX`].
    #[error("the message has {0} bytes; a chunk's message has at most {MESSAGE_BYTES_MAX}")]
    TooLong(usize),
    /// Not JSON of this shape. Says the place, not the content.
    #[error("the message is not a chunk message (line {line}, column {column})")]
    Malformed {
        /// Line of the JSON text.
        line: usize,
        /// Column of the JSON text.
        column: usize,
    },
    /// Another version.
    #[error("the message has version {0}; this worker reads version {CONTRACT_VERSION}")]
    Version(u32),
}

impl ChunkMessage {
    /// The message's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads a message; nothing in it is trusted yet.
    pub fn parse(bytes: &[u8]) -> Result<Self, MessageError> {
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(MessageError::TooLong(bytes.len()));
        }
        let message: Self = serde_json::from_slice(bytes)
            .map_err(|error| MessageError::Malformed { line: error.line(), column: error.column() })?;
        if message.version != CONTRACT_VERSION {
            return Err(MessageError::Version(message.version));
        }
        Ok(message)
    }
}
