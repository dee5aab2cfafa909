//! Bodies as they come: paid for before they are read, and gone by a time.
//!
//! A body is read once its caller is known and within its requests a minute. It is read whole, before its request takes a place
//! among those that are worked on: who sends slowly, or never, holds nothing that others need but its own connection.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::CONTENT_LENGTH;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use tokio::time::timeout;

use super::error::{ApiError, cause};
use crate::shares::{Share, Shares};

/// Time for a body. The largest, at 2 Mbit/s.
const ARRIVES_WITHIN: Duration = Duration::from_secs(30);
/// Least that a body counts for: what else a request takes.
const LEAST_BYTES: u64 = 4 << 10;

/// How long a route's body may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyLen {
    /// There is none, and none is read.
    None,
    /// Parameters: metadata of 16 pairs, an instruction and some names.
    Parameters,
    /// Texts to embed.
    Texts,
    /// As long as its handler says, who reads it piece by piece.
    Streamed,
}

impl BodyLen {
    fn bytes_max(self) -> usize {
        match self {
            Self::None | Self::Streamed => 0,
            Self::Parameters => 64 << 10,
            Self::Texts => super::BODY_LEN_MAX,
        }
    }
}

/// What bodies, and answers that are as long, may take of memory.
///
/// Reserved are the bytes as they came, and those of an answer's vectors. Beside a body lie for moments what was read of it and
/// the message that is made of it, each no longer; beside vectors a piece of their text. So the process takes three times what
/// is reserved, at worst.
#[derive(Debug)]
pub(super) struct Bodies {
    memory: Shares,
    arriving: Shares,
}

impl Bodies {
    /// So many bytes in all, at a gateway with so many connections. Half of these may be bodies on their way, so that there are
    /// others, and of that half one tenant has half.
    pub(super) fn new(bytes_max: u64, connections: u32) -> Self {
        Self { memory: Shares::new(bytes_max), arriving: Shares::new(u64::from(connections / 2).max(1)) }
    }

    /// Memory for a tenant.
    pub(super) fn reserve(&self, tenant: &str, bytes: u64) -> Result<Share, ApiError> {
        self.memory.take(tenant, bytes.max(LEAST_BYTES)).ok_or_else(|| {
            let sentence = "the gateway holds all the bodies and answers of this tenant that it can at once; ask again";
            ApiError::unavailable("overloaded", sentence)
        })
    }

    /// The request with its body read, and the memory that it takes.
    pub(super) async fn read(
        &self,
        tenant: &str,
        request: Request,
        len: BodyLen,
    ) -> Result<(Request, Option<Share>), ApiError> {
        if matches!(len, BodyLen::None | BodyLen::Streamed) {
            return Ok((request, None));
        }
        let (parts, body) = request.into_parts();
        let most = len.bytes_max();
        let told = parts.headers.get(CONTENT_LENGTH).and_then(|told| told.to_str().ok()?.parse::<usize>().ok());
        // One that does not say counts for the longest.
        let bytes = told.unwrap_or(most);
        if bytes > most {
            return Err(too_large(most));
        }
        let memory = self.reserve(tenant, bytes as u64)?;
        let Some(_arriving) = self.arriving.take(tenant, 1) else {
            let sentence = "too many bodies of this tenant are on their way at once; ask again";
            return Err(ApiError::unavailable("overloaded", sentence));
        };
        let bytes = timeout(ARRIVES_WITHIN, whole(body, told.unwrap_or(0), most)).await.map_err(|_| late())??;
        Ok((Request::from_parts(parts, Body::from(bytes)), Some(memory)))
    }
}

/// Whether a body could not be read on because the edge waits no longer for who sends it (`vecmill_signer::edge`).
pub(super) fn came_too_slowly(error: &(dyn std::error::Error + 'static)) -> bool {
    cause::<std::io::Error>(error).is_some_and(|error| error.kind() == std::io::ErrorKind::TimedOut)
}

fn late() -> ApiError {
    ApiError::late(format!("the body did not come within {} s", ARRIVES_WITHIN.as_secs()))
}

fn too_large(most: usize) -> ApiError {
    ApiError::too_large(format!("the body may have {most} bytes"))
}

/// The whole of a body, unless it is longer. Of a told length, it has its room at once: one that grew would lie in memory twice
/// at each growth.
async fn whole(body: Body, told: usize, most: usize) -> Result<Bytes, ApiError> {
    let mut pieces = body.into_data_stream();
    let mut read = BytesMut::with_capacity(told);
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| match came_too_slowly(&error) {
            // The edge's patience ends no sooner than the time for a body; of one that stalls, in the same moment.
            true => late(),
            false => ApiError::invalid("invalid_body", None, "the body could not be read"),
        })?;
        if read.len() + piece.len() > most {
            return Err(too_large(most));
        }
        read.extend_from_slice(&piece);
    }
    Ok(read.freeze())
}
