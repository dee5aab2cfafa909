//! The seam between transport and work: a delivery comes over a channel and is settled once.
//!
//! RabbitMQ fills the channel in production ([`crate::broker`]), a loop over a folder in local mode. Nothing behind
//! the channel knows which.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};

/// One chunk's message as it came.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// The message, untrusted.
    pub body: Bytes,
    /// How often the chunk has failed in a way that may pass.
    pub attempt: u32,
    /// How often the message was delivered before without being settled: workers that died, connections that broke.
    pub lost_deliveries: u32,
}

/// A message and the right to settle it, once.
#[derive(Debug)]
pub struct Delivery {
    /// The message.
    pub incoming: Incoming,
    /// Where the settlement goes. Dropped without a word, it counts as [`Settle::Retry`].
    pub settle: oneshot::Sender<Settle>,
}

/// Returns once `stop` says so, or when whoever could say so is gone.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone: the same.
    let _ = stop.wait_for(|&stop| stop).await;
}

/// What becomes of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settle {
    /// The chunk needs nothing more: its result is durable, or it was cancelled.
    Done,
    /// Not now: over quota, or something needed for admission is away. Spends no attempt.
    Later {
        /// At least this long from now.
        wait: Duration,
    },
    /// It failed in a way that may pass. Spends an attempt.
    Retry {
        /// Why, for the operator.
        reason: String,
    },
    /// It can never succeed, or has failed too often.
    Dead {
        /// A stable word.
        code: String,
        /// Why, for the operator.
        reason: String,
    },
    /// This worker is going away and has not begun it.
    HandBack,
}
