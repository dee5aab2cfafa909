//! Asking the workers: a request to the synchronous queue, the answer by RabbitMQ's direct reply-to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Connection, PublisherConfirm};
use tokio::sync::{oneshot, watch};
use vecmill_signer::edge;

use crate::contract::EmbedAnswer;
use crate::publish::connect;
use crate::topology::{BrokerSettings, EMBED_KEY, Topology, TopologyError};

/// RabbitMQ's pseudo-queue: an answer to it goes straight to the channel that asked.
const REPLY_TO: &str = "amq.rabbitmq.reply-to";
/// Between two attempts to connect.
const RECONNECT_AFTER: Duration = Duration::from_secs(1);
/// Time for the connection and the queues.
const OPEN_WITHIN: Duration = Duration::from_secs(30);

/// When RabbitMQ's word that it has a request is looked at, where no answer has come by then: most have, and say more. A
/// refusal by a full queue is heard of this much later.
const CONFIRM_AFTER: Duration = Duration::from_millis(10);

/// A request as it goes to the workers.
pub(super) struct Question {
    pub(super) id: String,
    /// Until when its answer is waited for, Unix milliseconds.
    pub(super) deadline_ms: u64,
    /// The message.
    pub(super) bytes: Vec<u8>,
}

/// Time until a question's deadline.
pub(super) fn left(deadline_ms: u64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Duration::from_millis(deadline_ms).saturating_sub(now)
}

/// Why no worker answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum AskError {
    /// No connection to RabbitMQ.
    #[error("the queue to the workers is away; ask again")]
    Away,
    /// The synchronous queue is full.
    #[error("more requests wait than the workers can answer in time; ask again")]
    Full,
    /// Nobody answered in time.
    #[error("no worker answered in time: all are busy, or none runs; ask again")]
    Late,
    /// An answer that makes no sense.
    #[error("a worker's answer could not be read")]
    Garbled,
}

/// The way to the workers. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Workers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    topology: Topology,
    session: watch::Receiver<Option<Session>>,
    /// Who waits for which answer. Bounded by the requests in flight.
    waiting: Arc<Mutex<Waiting>>,
}

/// The connection, and the channel of requests and answers on it.
#[derive(Clone, Debug)]
struct Session {
    connection: Arc<Connection>,
    channel: Channel,
}

type Waiting = HashMap<String, oneshot::Sender<Vec<u8>>>;

impl Workers {
    /// Connects, and again whenever the connection is lost.
    pub(super) fn connect(broker: BrokerSettings) -> Self {
        let (session, sessions) = watch::channel(None);
        let waiting: Arc<Mutex<Waiting>> = Arc::default();
        let topology = broker.topology();
        tokio::spawn(follow(broker, session, Arc::clone(&waiting)));
        Self(Arc::new(Shared { topology, session: sessions, waiting }))
    }

    /// Whether RabbitMQ is there.
    pub(super) fn ready(&self) -> bool {
        self.0.session.borrow().is_some()
    }

    /// A channel for a question of its own: one that is refused closes the channel, and must not close that of requests.
    pub(super) async fn channel(&self) -> Option<Channel> {
        let session = self.0.session.borrow().clone()?;
        session.connection.create_channel().await.ok()
    }

    /// Asks a worker and waits for its answer, until the request's deadline. Dropped before it resolves, the workers are told
    /// that nobody waits.
    pub(super) async fn ask(&self, question: Question) -> Result<EmbedAnswer, AskError> {
        let Question { id, deadline_ms, bytes } = question;
        let left = left(deadline_ms);
        let Session { channel, .. } = self.0.session.borrow().clone().ok_or(AskError::Away)?;
        let (answer, mut answered) = oneshot::channel();
        let mut place =
            Place { shared: &self.0, channel: channel.clone(), id: id.clone(), confirm: None, answered: false };
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), answer);
        let asking = async {
            let properties = BasicProperties::default()
                .with_reply_to(REPLY_TO.into())
                .with_correlation_id(id.as_str().into())
                .with_expiration(left.as_millis().to_string().into());
            let (options, exchange) =
                (BasicPublishOptions { mandatory: true, ..Default::default() }, self.0.topology.embed_exchange());
            let publishing =
                channel.basic_publish(exchange.as_str().into(), EMBED_KEY.into(), options, &bytes, properties);
            place.confirm = Some(publishing.await.map_err(|_| AskError::Away)?);
            // On its way: an answer takes the room that it had.
            drop(bytes);
            let early = tokio::time::timeout(CONFIRM_AFTER, &mut answered).await;
            place.confirmed().await?;
            let answer = match early {
                Ok(answer) => answer,
                Err(_) => answered.await,
            };
            // The sender goes when the connection does.
            answer.map_err(|_| AskError::Away)
        };
        let body = tokio::time::timeout(left, asking).await.map_err(|_| AskError::Late)??;
        place.answered = true;
        EmbedAnswer::parse(body).map_err(|_| AskError::Garbled)
    }
}

/// A waiting caller. Gone without an answer, the workers need not go on.
struct Place<'a> {
    shared: &'a Shared,
    channel: Channel,
    id: String,
    /// RabbitMQ's word that it has the request, until it is heard. Dropped unheard, the library would keep it for ever.
    confirm: Option<PublisherConfirm>,
    answered: bool,
}

impl Place<'_> {
    /// Returns once RabbitMQ has the request, or has refused it.
    async fn confirmed(&mut self) -> Result<(), AskError> {
        let Some(confirm) = &mut self.confirm else { return Ok(()) };
        let confirmed = confirm.await;
        self.confirm = None;
        match confirmed.map_err(|_| AskError::Away)? {
            Confirmation::Ack(None) => Ok(()),
            Confirmation::Ack(Some(_)) => Err(AskError::Away),
            Confirmation::Nack(_) | Confirmation::NotRequested => Err(AskError::Full),
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        if self.answered {
            return;
        }
        let (channel, exchange, id) =
            (self.channel.clone(), self.shared.topology.abandoned(), std::mem::take(&mut self.id));
        let confirm = self.confirm.take();
        // Out of a runtime nobody is left to tell.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
                // A worker that does not hear of it stops at the deadline.
                let told = channel
                    .basic_publish(exchange.as_str().into(), "".into(), options, id.as_bytes(), properties)
                    .await;
                if let Ok(told) = told {
                    _ = told.await;
                }
                if let Some(confirm) = confirm {
                    _ = confirm.await;
                }
            });
        }
    }
}

async fn follow(broker: BrokerSettings, sessions: watch::Sender<Option<Session>>, waiting: Arc<Mutex<Waiting>>) {
    while !sessions.is_closed() {
        let ended = session(&broker, &sessions, &waiting).await;
        sessions.send_replace(None);
        // Their answers went to a channel that is gone.
        waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
        if let Err(error) = ended {
            tracing::warn!(error = edge::explain(&error), "RabbitMQ is away; connecting again");
        }
        tokio::time::sleep(RECONNECT_AFTER).await;
    }
}

async fn session(
    broker: &BrokerSettings,
    sessions: &watch::Sender<Option<Session>>,
    waiting: &Mutex<Waiting>,
) -> Result<(), TopologyError> {
    let opening = async {
        let url = broker.amqp_url.as_deref().unwrap_or_default();
        let connection = connect(url, "vecmill-gateway", &broker.tls).await?;
        broker.topology().check(&connection).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let answers = channel.basic_consume(REPLY_TO.into(), "answers".into(), options, FieldTable::default()).await?;
        Ok::<_, TopologyError>((connection, channel, answers))
    };
    let Ok(opened) = tokio::time::timeout(OPEN_WITHIN, opening).await else {
        tracing::warn!("RabbitMQ did not set up the queues in {} s", OPEN_WITHIN.as_secs());
        return Ok(());
    };
    let (connection, channel, mut answers) = opened?;
    sessions.send_replace(Some(Session { connection: Arc::new(connection), channel }));
    tracing::info!("connected to RabbitMQ");
    while let Some(answer) = answers.next().await {
        let answer = answer?;
        let id = answer.properties.correlation_id().as_ref().map(|id| id.as_str().to_owned()).unwrap_or_default();
        let waits = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        if let Some(waits) = waits {
            // Gone in this moment: as good.
            let _ = waits.send(answer.data.clone());
        }
    }
    Ok(())
}
