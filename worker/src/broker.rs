//! RabbitMQ's side of the channel: consuming the lanes, and settling what the pipeline decides.
//!
//! A message is never requeued to wait: requeueing counts towards the delivery limit on some versions and returns the
//! message to the head. It is published to a wait queue or back to its lane, the broker confirms, and only then is the
//! original acknowledged. A crash in between costs a duplicate, which finds the chunk's result there.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use lapin::{
    BasicProperties, Channel, Connection, Consumer,
    message::Delivery as Message,
    options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};
use tracing::{info, warn};
use vecmill_producer::{
    contract::{ATTEMPT_HEADER, Precision, REASON_HEADER, RUNG_HEADER},
    publish::{PublishError, Publisher, connect, number},
    topology::{Topology, TopologyError},
};
use vecmill_signer::edge::{self, ClientTls};

use crate::{
    delivery::{Delivery, Incoming, Settle, stopped},
    health::{Health, Need},
};

/// Between two attempts to connect: within the 5 seconds in which a worker must be back.
const RECONNECT_AFTER: Duration = Duration::from_secs(2);
/// Time for a session's connection, queues and consumers. A start of the broker takes part of it; one that accepts and
/// then never answers (a queue without a leader does that) must be heard of.
const OPEN_WITHIN: Duration = Duration::from_secs(30);
/// Between the tries to send a message on that a queue has no room for.
const SEND_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// Attempts and rungs that a header may say. Whoever may publish may write any number there; beyond what a chunk is given up
/// after, all are the same.
const HEADER_MAX: u32 = 1_000;
/// A dead letter's reason, as a header, is at most this long.
const REASON_BYTES_MAX: usize = 512;

/// How to consume.
#[derive(Clone, Debug)]
pub struct Consume {
    /// RabbitMQ's URL.
    pub url: String,
    /// Whom to trust, where that is `amqps://`.
    pub tls: ClientTls,
    /// The names on it.
    pub topology: Topology,
    /// Unsettled chunks of one lane that this worker holds. Two keep the model fed while one is written.
    pub prefetch: u16,
    /// What this worker computes in, for who counts the workers that do.
    pub precision: Precision,
    /// The connection's name on the broker.
    pub worker: String,
}

/// Consumes all lanes until `stop` says so, connecting again whenever the connection is lost. Returns when everything
/// delivered has been settled.
pub async fn consume(
    settings: Consume,
    deliveries: mpsc::Sender<Delivery>,
    health: Arc<Health>,
    mut stop: watch::Receiver<bool>,
) {
    while !*stop.borrow() {
        match session(&settings, &deliveries, &health, stop.clone()).await {
            Ok(()) => {}
            Err(error) => {
                health.lacks(Need::Broker, &error.to_string());
                warn!(%error, "RabbitMQ is away; connecting again");
                tokio::select! {
                    () = tokio::time::sleep(RECONNECT_AFTER) => {}
                    () = stopped(&mut stop) => {}
                }
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("{}", edge::explain(.0))]
    Broker(#[from] lapin::Error),
    #[error(transparent)]
    Topology(#[from] TopologyError),
    #[error("the broker cancelled the consumer of {0}: was its queue deleted?")]
    Cancelled(String),
    #[error("RabbitMQ did not set up the queues and consumers in {} s: has each queue a leader?", OPEN_WITHIN.as_secs())]
    Late,
}

/// What settling needs of a session.
struct Desk {
    publisher: Publisher,
    topology: Topology,
}

async fn session(
    settings: &Consume,
    deliveries: &mpsc::Sender<Delivery>,
    health: &Health,
    mut stop: watch::Receiver<bool>,
) -> Result<(), SessionError> {
    let opening = tokio::time::timeout(OPEN_WITHIN, open(settings));
    let Open { connection, publisher, channel, lanes, mut counted } =
        opening.await.map_err(|_| SessionError::Late)??;
    let tags: Vec<_> = lanes.iter().chain([&counted]).map(Consumer::tag).collect();
    // A consumer's stream that ends is an event here, not silence.
    let streams = lanes.into_iter().map(|consumer| {
        let queue = consumer.queue().to_string();
        consumer.map(Some).chain(stream::iter([None])).map(move |message| (queue.clone(), message)).boxed()
    });
    let mut messages = stream::select_all(streams);
    let desk = Arc::new(Desk { publisher, topology: settings.topology.clone() });
    let mut unsettled = JoinSet::new();
    health.has(Need::Broker);
    info!(lanes = tags.len() - 1, prefetch = settings.prefetch, "consuming");

    let ended = loop {
        tokio::select! {
            message = messages.next() => match message {
                Some((_, Some(Ok(message)))) => {
                    let (settle, settled) = oneshot::channel();
                    let delivery = receive(&message, settle);
                    unsettled.spawn(settle_message(desk.clone(), message, settled));
                    if deliveries.send(delivery).await.is_err() {
                        break Ok(());
                    }
                }
                Some((_, Some(Err(error)))) => break Err(error.into()),
                Some((queue, None)) => break Err(SessionError::Cancelled(queue)),
                None => break Ok(()),
            },
            none = counted.next() => match none {
                // The queue takes no message, so there is none.
                Some(Ok(_)) => {}
                Some(Err(error)) => break Err(error.into()),
                None => break Err(SessionError::Cancelled(counted.queue().to_string())),
            },
            Some(_) = unsettled.join_next() => {}
            () = stopped(&mut stop) => break Ok(()),
        }
    };
    if ended.is_ok() {
        for tag in tags {
            channel.basic_cancel(tag, BasicCancelOptions::default()).await?;
        }
        while unsettled.join_next().await.is_some() {}
        connection.close(200, "drained".into()).await?;
    }
    // After a broken session, what is still in the pipeline settles into nothing and is delivered again.
    ended
}

/// What a session is made of.
struct Open {
    connection: Connection,
    publisher: Publisher,
    /// The consumers' own.
    channel: Channel,
    lanes: Vec<Consumer>,
    /// By which this worker is counted among those of its precision. Nothing comes by it.
    counted: Consumer,
}

async fn open(settings: &Consume) -> Result<Open, SessionError> {
    let connection = connect(&settings.url, &settings.worker, &settings.tls).await?;
    let publisher = Publisher::open(&connection).await?;
    settings.topology.check(&connection).await?;
    let channel = connection.create_channel().await?;
    // Not global: the bound is each consumer's own, so that one lane's backlog takes no other lane's places.
    channel.basic_qos(settings.prefetch, BasicQosOptions::default()).await?;
    let mut lanes = Vec::new();
    for key in settings.topology.lane_keys() {
        let queue = settings.topology.lane_queue(&key);
        let tag = format!("{}-{key}", settings.worker);
        lanes.push(consume_queue(&channel, &queue, &tag, BasicConsumeOptions::default()).await?);
    }
    // After the lanes: who is counted takes chunks.
    let queue = settings.topology.computes_queue(settings.precision);
    let tag = format!("{}-{}", settings.worker, settings.precision);
    let unacknowledged = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let counted = consume_queue(&channel, &queue, &tag, unacknowledged).await?;
    Ok(Open { connection, publisher, channel, lanes, counted })
}

async fn consume_queue(
    channel: &Channel,
    queue: &str,
    tag: &str,
    options: BasicConsumeOptions,
) -> Result<Consumer, lapin::Error> {
    channel.basic_consume(queue.into(), tag.into(), options, FieldTable::default()).await
}

fn receive(message: &Message, settle: oneshot::Sender<Settle>) -> Delivery {
    let incoming = Incoming {
        body: message.data.clone().into(),
        attempt: header(&message.properties, ATTEMPT_HEADER),
        // The broker counts from the second delivery on and says so. On a first one the header is its publisher's, who would
        // make its chunk a suspect that others have to wait for.
        lost_deliveries: if message.redelivered { header(&message.properties, "x-delivery-count") } else { 0 },
    };
    Delivery { incoming, settle }
}

fn header(properties: &BasicProperties, name: &str) -> u32 {
    let value = properties.headers().as_ref().and_then(|headers| headers.inner().get(name));
    let number = match value {
        Some(AMQPValue::LongUInt(value)) => *value,
        Some(AMQPValue::LongInt(value)) => (*value).try_into().unwrap_or(0),
        Some(AMQPValue::LongLongInt(value)) => (*value).try_into().unwrap_or(0),
        Some(AMQPValue::ShortInt(value)) => (*value).try_into().unwrap_or(0),
        Some(AMQPValue::ShortShortInt(value)) => (*value).try_into().unwrap_or(0),
        _ => 0,
    };
    number.min(HEADER_MAX)
}

async fn settle_message(desk: Arc<Desk>, message: Message, settled: oneshot::Receiver<Settle>) {
    // The pipeline's task died without a word: a fault of ours, which may pass.
    let settle = settled.await.unwrap_or_else(|_| Settle::Retry { reason: "the chunk's task ended early".to_owned() });
    let moved = match &settle {
        Settle::Done => Ok(()),
        other => desk.send_on(&message, other).await,
    };
    let moved = match moved {
        // No room. A message keeps one of its lane's few places while it can't be sent on, so it is not tried for ever.
        Err(PublishError::Refused { .. } | PublishError::Unroutable { .. }) => desk.put_aside(&message, &settle).await,
        moved => moved,
    };
    if let Err(error) = moved {
        warn!(%error, "a chunk could not be sent on; the broker will deliver it again");
        // At the lane's head again, after its place has been another's. Where the channel is gone, so is the delivery.
        let options = BasicNackOptions { requeue: true, ..Default::default() };
        if let Err(error) = message.acker.nack(options).await {
            warn!(%error, "nor be handed back");
        }
        return;
    }
    match message.acker.ack(BasicAckOptions::default()).await {
        Ok(true) => {}
        // The channel is gone, and with it the right to acknowledge: the redelivery finds the result there.
        Ok(false) => warn!("an acknowledgement came too late; the chunk will be delivered again"),
        Err(error) => warn!(%error, "an acknowledgement failed; the chunk will be delivered again"),
    }
}

impl Desk {
    /// What becomes of a message whose next queue has no room: its place is free after [`SEND_AGAIN_AFTER`] twice at most.
    async fn put_aside(&self, message: &Message, settle: &Settle) -> Result<(), PublishError> {
        if let Settle::Dead { code, .. } = settle {
            // What it comes to is on S3; the letter only tells an operator.
            warn!(code, "a dead letter is dropped: the queue of dead letters has no room");
            return Ok(());
        }
        // Behind the others of its lane, as if it had waited.
        tokio::time::sleep(SEND_AGAIN_AFTER).await;
        if self.send_on(message, settle).await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(SEND_AGAIN_AFTER).await;
        self.send_on(message, &Settle::HandBack).await
    }

    /// Publishes the message to where it goes next and waits for the confirm.
    async fn send_on(&self, message: &Message, settle: &Settle) -> Result<(), PublishError> {
        let lane = message.routing_key.as_str();
        let attempt = header(&message.properties, ATTEMPT_HEADER);
        let rung = header(&message.properties, RUNG_HEADER);
        let (exchange, headers) = match settle {
            Settle::Done | Settle::HandBack => {
                (self.topology.jobs_exchange(), [(ATTEMPT_HEADER, number(attempt)), (RUNG_HEADER, number(rung))])
            }
            Settle::Later { wait } => {
                (self.topology.rung_for(*wait), [(ATTEMPT_HEADER, number(attempt)), (RUNG_HEADER, number(rung + 1))])
            }
            Settle::Retry { .. } => {
                (self.topology.rung(attempt), [(ATTEMPT_HEADER, number(attempt + 1)), (RUNG_HEADER, number(rung))])
            }
            Settle::Dead { code, reason } => {
                let mut reason = format!("{code}: {reason}");
                reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
                (
                    self.topology.dead_exchange(),
                    [(ATTEMPT_HEADER, number(attempt)), (REASON_HEADER, AMQPValue::LongString(reason.into()))],
                )
            }
        };
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert(name.into(), value);
        }
        self.publisher.publish(&exchange, lane, &message.data, table).await
    }
}
