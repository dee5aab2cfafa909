//! Why a job waits, from the servers beside S3: the tenant's quota in Redis, its lane in RabbitMQ.

use std::time::Duration;

use super::super::App;
use super::super::auth::Caller;
use crate::contract::Precision;
use crate::status::{JobState, JobStatus, WaitReason, Waiting};
use crate::topology::look_at;

/// Why a job that could run does not, or not faster. What can't be asked at the moment is passed over: the status itself is
/// from S3.
pub(super) async fn waiting(app: &App, caller: &Caller, status: &JobStatus) -> Option<Waiting> {
    let tenant = caller.access.tenant();
    // Said before what is true of every job: a worker of another precision would not help.
    if let Some(precision) = status.precision
        && workers_in(app, precision).await == Some(0)
    {
        let message = format!(
            "it asks to be computed in {precision}, and no worker that runs does: it goes on when one starts with \
             --dtype {precision} (VECMILL_COMPUTE_DTYPE={precision}); nothing is lost meanwhile"
        );
        return Some(Waiting { reason: WaitReason::NoWorkerInPrecision, until: None, message });
    }
    let lane = match status.lane {
        Some(lane) => lane_of(app, lane).await,
        None => None,
    };
    if let Some(Lane { workers: 0, .. }) = lane {
        let message = "no worker takes chunks from its lane: it goes on when one starts".to_owned();
        return Some(Waiting { reason: WaitReason::NoWorker, until: None, message });
    }
    let each = match (status.tokens, status.chunks_done) {
        (Some(tokens), done @ 1..) => tokens / u64::from(done),
        _ => 1,
    };
    if let Some((reason, limit, wait_ms)) = app.limits.wait(tenant, caller.access.limits(), each).await {
        let until = jiff::Timestamp::now() + Duration::from_millis(wait_ms);
        let message = format!("the tenant is over its quota ({limit}) until {until:.0}; nothing is lost meanwhile");
        return Some(Waiting { reason, until: Some(until), message });
    }
    let lane = lane?;
    let message = format!(
        "{} chunks wait in its lane, its own {} among them; workers that take them in turn: {}",
        lane.chunks, status.chunks, lane.workers
    );
    (status.state == JobState::Queued && lane.chunks > 0).then_some(Waiting {
        reason: WaitReason::Backlog,
        until: None,
        message,
    })
}

async fn workers_in(app: &App, precision: Precision) -> Option<u32> {
    let channel = app.workers.channel().await?;
    app.broker.topology().workers_in(&channel, precision).await.ok()
}

/// A lane as RabbitMQ sees it.
struct Lane {
    chunks: u32,
    workers: u32,
}

async fn lane_of(app: &App, lane: u32) -> Option<Lane> {
    let topology = app.broker.topology();
    let channel = app.workers.channel().await?;
    let queue = look_at(&channel, &topology.lane_queue(&topology.lane_key_of(lane))).await.ok()?;
    Some(Lane { chunks: queue.message_count(), workers: queue.consumer_count() })
}
