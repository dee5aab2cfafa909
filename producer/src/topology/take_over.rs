//! What waits in queues of before: they shared their names with exchanges, and no pattern told the two apart.

use lapin::{
    Channel, Connection,
    options::{BasicAckOptions, BasicGetOptions, ExchangeDeleteOptions, QueueDeleteOptions},
};

use super::{Precision, Topology, TopologyError, look_at, missing};
use crate::publish::{PublishError, Publisher};

impl Topology {
    /// Moves what waits in the queues of before to where it goes today, and removes those queues and their exchanges; gives how many
    /// messages it moved. Each is acknowledged once the broker has it in its new place: what is cut short in between is there
    /// twice, which costs nothing. A program of before that still runs loses its queues.
    pub async fn take_over(&self, connection: &Connection) -> Result<u64, PublishError> {
        let publisher = Publisher::open(connection).await?;
        publisher.declare(self).await?;
        let old = |name: String| format!("{}.{name}", self.namespace);
        let mut moved = 0;
        // Lanes first: what comes out of a wait queue of before goes to them.
        let lanes = self.lane_keys().map(|key| (old(format!("lane.{key}")), self.jobs_exchange()));
        let waits = self.ladder_s.iter().map(|&rung_s| (old(format!("wait.{rung_s}s")), self.wait_exchange(rung_s)));
        let dead = (old("dead".to_owned()), self.dead_exchange());
        for (queue, exchange) in waits.chain(lanes).chain([dead]) {
            moved += empty(connection, &publisher, &queue, &exchange).await?;
        }
        // Of these nothing is to be kept: requests whose callers are gone, and what was there to be counted.
        let computed = Precision::ALL.into_iter().map(|precision| old(format!("computes.{precision}")));
        let channel = connection.create_channel().await?;
        for queue in computed.chain([old("embed".to_owned())]) {
            channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await?;
        }
        let waits = self.ladder_s.iter().map(|rung_s| old(format!("wait.{rung_s}s")));
        let others = ["jobs", "dead", "abandoned"].map(|name| old(name.to_owned()));
        for exchange in waits.chain(others) {
            channel.exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default()).await?;
        }
        Ok(moved)
    }
}

/// Moves all messages of a queue, each under the key that it has, and removes the queue; gives how many there were. One that is not
/// there is empty.
async fn empty(
    connection: &Connection,
    publisher: &Publisher,
    queue: &str,
    exchange: &str,
) -> Result<u64, PublishError> {
    // Of its own: where the queue is not there, the answer closes it.
    let channel = connection.create_channel().await?;
    if !is_there(&channel, queue).await? {
        return Ok(0);
    }
    let mut moved = 0;
    while let Some(message) = channel.basic_get(queue.into(), BasicGetOptions::default()).await? {
        let headers = message.properties.headers().clone().unwrap_or_default();
        publisher.publish(exchange, message.routing_key.as_str(), &message.data, headers).await?;
        message.acker.ack(BasicAckOptions::default()).await?;
        moved += 1;
    }
    let if_empty = QueueDeleteOptions { if_empty: true, ..Default::default() };
    channel.queue_delete(queue.into(), if_empty).await?;
    Ok(moved)
}

async fn is_there(channel: &Channel, queue: &str) -> Result<bool, TopologyError> {
    match look_at(channel, queue).await.map_err(|error| missing("the queue", queue, error)) {
        Ok(_) => Ok(true),
        Err(TopologyError::Missing { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
