//! RabbitMQ's side of the synchronous path: requests from a queue that all workers share, answers to whoever asked.
//!
//! A request is acknowledged when it is answered, so a worker takes a bounded number and one that dies hands them back. One
//! that comes a second time is answered with "ask again" and not computed: it may be what killed the worker before.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Connection, Consumer,
    message::Delivery as Message,
    options::{
        BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
        QueueBindOptions, QueueDeclareOptions,
    },
    types::FieldTable,
};
use tokio::{
    sync::{oneshot, watch},
    task::JoinSet,
};
use tracing::{debug, warn};
use vecmill_producer::{
    contract::{EmbedAnswer, EmbedRefusal, RefusalKind},
    publish::connect,
    topology::TopologyError,
};
use vecmill_signer::edge;

use crate::{
    broker::Consume,
    delivery::stopped,
    metrics::{Answered, Metrics},
    pipeline::Pipeline,
};

/// Requests that a worker works on at once. Their rows share batches; with more, the last would wait longer here than at a
/// worker that is idle. With the longest of messages they are 256 MiB, and gateways send less than a second's work at once.
const AT_ONCE: u16 = 32;
/// What RabbitMQ makes of a direct reply-to: the one place that an answer is sent to. Any other name would have this worker write
/// to a queue for who may not.
const REPLY_PREFIX: &str = "amq.rabbitmq.reply-to.";
/// Between two attempts to connect.
const RECONNECT_AFTER: Duration = Duration::from_secs(1);
/// Time for the connection, the queues and the consumers.
const OPEN_WITHIN: Duration = Duration::from_secs(30);

/// Answers requests until `stop` says so, connecting again whenever the connection is lost. Returns when what was begun is
/// answered. Whether RabbitMQ is there is for the lanes' connection to say.
pub async fn serve(settings: Consume, pipeline: Arc<Pipeline>, metrics: Arc<Metrics>, mut stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        if let Err(error) = session(&settings, &pipeline, &metrics, stop.clone()).await {
            warn!(error = edge::explain(&error), "the synchronous path is away; connecting again");
            tokio::select! {
                () = tokio::time::sleep(RECONNECT_AFTER) => {}
                () = stopped(&mut stop) => {}
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("RabbitMQ failed")]
    Broker(#[from] lapin::Error),
    #[error(transparent)]
    Topology(#[from] TopologyError),
    #[error("RabbitMQ did not set up the synchronous queue in {} s", OPEN_WITHIN.as_secs())]
    Late,
    #[error("the broker cancelled a consumer: was its queue deleted?")]
    Cancelled,
}

struct Open {
    connection: Connection,
    channel: Channel,
    requests: Consumer,
    abandoned: Consumer,
}

async fn open(settings: &Consume) -> Result<Open, SessionError> {
    let connection = connect(&settings.url, &settings.worker, &settings.tls).await?;
    settings.topology.check(&connection).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(AT_ONCE, BasicQosOptions::default()).await?;
    let tag = format!("{}-embed", settings.worker);
    let queue = settings.topology.embed_queue();
    let (options, table) = (BasicConsumeOptions::default(), FieldTable::default());
    let requests = channel.basic_consume(queue.as_str().into(), tag.as_str().into(), options, table.clone()).await?;
    // A queue of this connection's own, gone with it.
    let own = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    let own = channel.queue_declare("".into(), own, table.clone()).await?;
    let exchange = settings.topology.abandoned();
    channel
        .queue_bind(own.name().clone(), exchange.as_str().into(), "".into(), QueueBindOptions::default(), table.clone())
        .await?;
    let unacknowledged = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let tag = format!("{}-abandoned", settings.worker);
    let abandoned = channel.basic_consume(own.name().clone(), tag.as_str().into(), unacknowledged, table).await?;
    Ok(Open { connection, channel, requests, abandoned })
}

async fn session(
    settings: &Consume,
    pipeline: &Arc<Pipeline>,
    metrics: &Arc<Metrics>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), SessionError> {
    let opening = tokio::time::timeout(OPEN_WITHIN, open(settings));
    let Open { connection, channel, mut requests, mut abandoned } = opening.await.map_err(|_| SessionError::Late)??;
    let mut answering = JoinSet::new();
    // Who may be told that nobody waits any more, as many as are answered at once. By delivery tag, for ids are others' to choose
    // and may come twice.
    let mut waiting: HashMap<u64, (Arc<str>, oneshot::Sender<()>)> = HashMap::new();
    loop {
        tokio::select! {
            message = requests.next() => {
                let message = message.ok_or(SessionError::Cancelled)??;
                let id: Arc<str> = message.properties.correlation_id().as_ref().map_or("", |id| id.as_str()).into();
                let (leave, left) = oneshot::channel();
                let tag = message.delivery_tag;
                waiting.insert(tag, (Arc::clone(&id), leave));
                let answer = answer(channel.clone(), pipeline.clone(), metrics.clone(), message, left, id);
                answering.spawn(async move {
                    answer.await;
                    tag
                });
            }
            message = abandoned.next() => {
                let message = message.ok_or(SessionError::Cancelled)??;
                for (_, (_, leave)) in waiting.extract_if(|_, (id, _)| id.as_bytes() == message.data) {
                    // Answered in this moment: as good.
                    let _ = leave.send(());
                }
            }
            Some(answered) = answering.join_next() => {
                if let Ok(tag) = answered {
                    waiting.remove(&tag);
                }
            }
            () = stopped(&mut stop) => break,
        }
    }
    channel.basic_cancel(requests.tag(), BasicCancelOptions::default()).await?;
    while answering.join_next().await.is_some() {}
    connection.close(200, "drained".into()).await?;
    Ok(())
}

async fn answer(
    channel: Channel,
    pipeline: Arc<Pipeline>,
    metrics: Arc<Metrics>,
    mut message: Message,
    left: oneshot::Receiver<()>,
    id: Arc<str>,
) {
    let Some(reply_to) = message.properties.reply_to().clone().filter(|to| to.as_str().starts_with(REPLY_PREFIX))
    else {
        warn!(request = shown(&id), "a synchronous request that no gateway waits for is refused");
        metrics.answered(Answered::Refused);
        acknowledge(&message).await;
        return;
    };
    let begun = std::time::Instant::now();
    let _in_flight = InFlight::begin(&metrics);
    let answer = if message.redelivered {
        Some(EmbedAnswer::Refused(EmbedRefusal {
            kind: RefusalKind::Unavailable,
            code: "worker_lost".to_owned(),
            message: "the worker that had this request is gone; ask again".to_owned(),
            input: None,
            retry_after_ms: Some(1_000),
        }))
    } else {
        tokio::select! {
            answer = pipeline.answer(std::mem::take(&mut message.data)) => answer,
            // A sender is dropped with its session, and this task with it.
            Ok(()) = left => {
                metrics.answered(Answered::Abandoned);
                acknowledge(&message).await;
                return;
            }
        }
    };
    match &answer {
        Some(EmbedAnswer::Embedded { .. }) => {
            metrics.answered(Answered::Embedded);
            metrics.request_seconds.observe(begun.elapsed().as_secs_f64());
        }
        Some(EmbedAnswer::Refused(refusal)) => {
            debug!(request = shown(&id), code = refusal.code, "synchronous request refused");
            metrics.answered(Answered::Refused);
        }
        None => metrics.answered(Answered::Late),
    }
    if let Some(answer) = answer {
        let properties = BasicProperties::default().with_correlation_id((&*id).into());
        let (options, bytes) = (BasicPublishOptions::default(), answer.to_bytes());
        // Both at once, the answer first: they leave in one write.
        let sending = channel.basic_publish("".into(), reply_to, options, &bytes, properties);
        let (sent, ()) = tokio::join!(sending, acknowledge(&message));
        if let Err(error) = sent {
            warn!(request = shown(&id), error = edge::explain(&error), "an answer could not be sent");
        }
    } else {
        acknowledge(&message).await;
    }
}

/// A request's id for the log: of a bounded length, and no commands to a terminal, for anybody may have written it.
fn shown(id: &str) -> String {
    id.chars().filter(|c| c.is_ascii_graphic()).take(64).collect()
}

/// Counts a request as being worked on, however that ends.
struct InFlight(Arc<Metrics>);

impl InFlight {
    fn begin(metrics: &Arc<Metrics>) -> Self {
        metrics.requests_in_flight.inc();
        Self(metrics.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.requests_in_flight.dec();
    }
}

async fn acknowledge(message: &Message) {
    if let Err(error) = message.acker.ack(BasicAckOptions::default()).await {
        debug!(error = edge::explain(&error), "a synchronous request could not be acknowledged");
    }
}
