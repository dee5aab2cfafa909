//! The queues: lanes, the wait ladder, and the dead letters.
//!
//! ```text
//!           {ns}.x.jobs (direct)                 {ns}.x.wait.5s (fanout)
//! producer ──key 03──▶ {ns}.q.lane.03 ──▶ worker ──key 03──▶ {ns}.q.wait.5s ──TTL──▶ {ns}.x.jobs ──key 03──▶ ...
//!                            │ delivery limit     └──▶ {ns}.x.dead (fanout) ──▶ {ns}.q.dead
//!                            └──────────────────────▶
//! gateway ──▶ {ns}.x.embed (direct) ──▶ {ns}.q.embed ──▶ worker          gateway ──▶ {ns}.x.abandoned (fanout) ──▶ each worker
//! ```
//! An exchange is `x`, a queue `q`: RabbitMQ's rights are patterns of names whatever has the name, and who may publish to an
//! exchange must not thereby have a right to a queue. Who has the right to declare is an operator's matter (`vecmill topology
//! declare`): all other programs only look whether what they need is there.
//!
//! A wait queue has one fixed TTL and hands its messages back under the routing key they came with, so one
//! ladder serves all lanes. Per-message TTLs would only expire at the queue's head.

mod take_over;

use std::time::Duration;

use futures_util::future::try_join_all;
use lapin::{
    Channel, Connection, ErrorKind, ExchangeKind, Queue,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    protocol::AMQPSoftError,
    types::{AMQPValue, FieldTable},
};
use vecmill_signer::{
    claims::DEFAULT_LANES,
    edge::{self, ClientTls},
};

use crate::contract::Precision;

/// Most lanes. Each is a quorum queue; RabbitMQ asks for a topology review above 5,000.
pub const LANES_MAX: u16 = 256;

/// Most messages in one queue: at about 1.2 KiB each, 1.2 GiB on the broker's disk. A full lane refuses the
/// publisher, which waits and says so.
const QUEUE_MESSAGES_MAX: i64 = 1_000_000;

/// Synchronous requests that may wait: more than a fleet answers within their deadline.
const EMBED_MESSAGES_MAX: i64 = 4096;
/// Bytes of them: what a broker may hold in memory for it.
const EMBED_BYTES_MAX: i64 = 256 << 20;
/// No gateway waits longer for an answer.
const EMBED_TTL_MS: i64 = 120_000;

/// Under which synchronous requests are published: there is one queue for them.
pub const EMBED_KEY: &str = "embed";

/// The broker's own bound on redeliveries. The worker gives a chunk up before, with a reason that status can
/// show; this catches a chunk that no worker lives long enough to count.
const DELIVERY_LIMIT: i64 = 20;

/// The broker and the names on it.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct BrokerSettings {
    /// URL of RabbitMQ with user and password, from VECMILL_AMQP_URL or the file VECMILL_AMQP_URL_FILE names: a
    /// secret has no flag.
    #[arg(skip = vecmill_signer::secret::secret("VECMILL_AMQP_URL"))]
    pub amqp_url: Option<String>,
    /// Whom an `amqps://` connection trusts and what it shows; from the flags that all connections share.
    #[arg(skip)]
    pub tls: ClientTls,
    /// First word of all queue and exchange names
    #[arg(long, env = "VECMILL_AMQP_NAMESPACE", value_name = "NAME", default_value = "vecmill")]
    pub amqp_namespace: String,
    /// Number of lanes; a tenant has one of its own while there are no more tenants than lanes
    #[arg(long, env = "VECMILL_LANES", value_name = "N", default_value_t = DEFAULT_LANES as u16)]
    pub lanes: u16,
    /// Waiting times of the retry ladder, in seconds
    #[arg(
        long,
        env = "VECMILL_WAIT_LADDER",
        value_name = "S,S,..",
        value_delimiter = ',',
        default_value = "5,30,120,600"
    )]
    pub wait_ladder: Vec<u32>,
}

impl BrokerSettings {
    /// What is wrong with the settings, a sentence each.
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        match &self.amqp_url {
            None => mistakes.push(
                "VECMILL_AMQP_URL is not set: give RabbitMQ's URL, for example amqp://user:password@127.0.0.1:5672/%2f"
                    .to_owned(),
            ),
            Some(url) if !(url.starts_with("amqp://") || url.starts_with("amqps://")) => {
                mistakes.push("VECMILL_AMQP_URL must begin with amqp:// or amqps://".to_owned());
            }
            Some(_) => {}
        }
        if !(1..=LANES_MAX).contains(&self.lanes) {
            mistakes.push(format!("--lanes (VECMILL_LANES) is {}: it must be 1 to {LANES_MAX}", self.lanes));
        }
        let rising = self.wait_ladder.windows(2).all(|pair| pair[0] < pair[1]);
        if self.wait_ladder.is_empty() || self.wait_ladder.contains(&0) || !rising || self.wait_ladder.len() > 8 {
            mistakes.push("--wait-ladder (VECMILL_WAIT_LADDER) must be 1 to 8 rising numbers of seconds, for example 5,30,120,600".to_owned());
        }
        if !self.amqp_namespace.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
            || self.amqp_namespace.is_empty()
        {
            mistakes
                .push("--amqp-namespace (VECMILL_AMQP_NAMESPACE) must be letters, digits, '.', '_' or '-'".to_owned());
        }
        mistakes
    }

    /// The names on the broker.
    pub fn topology(&self) -> Topology {
        Topology { namespace: self.amqp_namespace.clone(), lanes: self.lanes, ladder_s: self.wait_ladder.clone() }
    }
}

/// Why the queues can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// Something is not there.
    #[error(
        "RabbitMQ lacks {name}: have an operator run `vecmill topology declare`, with the namespace, lanes and wait \
         ladder that are set here"
    )]
    Missing {
        /// What.
        name: String,
    },
    /// The broker can't be asked.
    #[error("RabbitMQ can't be reached: {}", edge::explain(.0))]
    Broker(#[from] lapin::Error),
}

/// The names of exchanges and queues.
#[derive(Clone, Debug)]
pub struct Topology {
    namespace: String,
    lanes: u16,
    ladder_s: Vec<u32>,
}

impl Topology {
    /// The lanes' routing keys.
    pub fn lane_keys(&self) -> impl Iterator<Item = String> + '_ {
        (0..self.lanes).map(lane_key)
    }

    /// The routing key of the lane that serves a tenant with this lane number (from its grant).
    pub fn lane_key_of(&self, lane: u32) -> String {
        lane_key((lane % u32::from(self.lanes)) as u16)
    }

    /// The queue of a lane.
    pub fn lane_queue(&self, key: &str) -> String {
        format!("{}.q.lane.{key}", self.namespace)
    }

    /// The exchange to which chunks are published under their lane's key.
    pub fn jobs_exchange(&self) -> String {
        format!("{}.x.jobs", self.namespace)
    }

    /// The exchange to which synchronous requests are published.
    pub fn embed_exchange(&self) -> String {
        format!("{}.x.embed", self.namespace)
    }

    /// The queue of the synchronous path.
    pub fn embed_queue(&self) -> String {
        format!("{}.q.embed", self.namespace)
    }

    /// The queue whose consumers are the workers that compute in a precision. Nothing is ever sent to it: it is there to be
    /// counted, so that who asks for a precision that nobody has can be told.
    pub fn computes_queue(&self, precision: Precision) -> String {
        format!("{}.q.computes.{precision}", self.namespace)
    }

    /// How many workers compute in a precision. Where the topology is not declared, the channel is closed by the question.
    pub async fn workers_in(&self, channel: &Channel, precision: Precision) -> Result<u32, lapin::Error> {
        Ok(look_at(channel, &self.computes_queue(precision)).await?.consumer_count())
    }

    /// The exchange on which gateways say that nobody waits for a synchronous request any more.
    pub fn abandoned(&self) -> String {
        format!("{}.x.abandoned", self.namespace)
    }

    /// The exchange to which dead letters are published.
    pub fn dead_exchange(&self) -> String {
        format!("{}.x.dead", self.namespace)
    }

    /// The queue of the dead letters.
    pub fn dead_queue(&self) -> String {
        format!("{}.q.dead", self.namespace)
    }

    /// The exchange of the shortest rung that lasts at least `wait`, else of the longest.
    pub fn rung_for(&self, wait: Duration) -> String {
        let wanted = self.ladder_s.iter().find(|&&rung_s| Duration::from_secs(rung_s.into()) >= wait);
        self.wait_exchange(*wanted.or(self.ladder_s.last()).unwrap_or(&5))
    }

    /// The exchange of the rung for the given number of earlier tries: the first at 0, and the last from then on.
    pub fn rung(&self, tries: u32) -> String {
        let index = (tries as usize).min(self.ladder_s.len().saturating_sub(1));
        self.wait_exchange(self.ladder_s.get(index).copied().unwrap_or(5))
    }

    fn wait_exchange(&self, rung_s: u32) -> String {
        format!("{}.x.wait.{rung_s}s", self.namespace)
    }

    fn wait_queue(&self, rung_s: u32) -> String {
        format!("{}.q.wait.{rung_s}s", self.namespace)
    }

    /// Looks whether everything is there; declares nothing. To look takes no right on the broker.
    pub async fn check(&self, connection: &Connection) -> Result<(), TopologyError> {
        let waits = self.ladder_s.iter().map(|&rung_s| self.wait_exchange(rung_s));
        let exchanges = [self.jobs_exchange(), self.dead_exchange(), self.embed_exchange(), self.abandoned()];
        let waiting = self.ladder_s.iter().map(|&rung_s| self.wait_queue(rung_s));
        let lanes = self.lane_keys().map(|key| self.lane_queue(&key));
        let computing = Precision::ALL.into_iter().map(|precision| self.computes_queue(precision));
        let queues = [self.dead_queue(), self.embed_queue()].into_iter().chain(lanes).chain(waiting).chain(computing);
        let (exchanges, queues) = (exchanges.into_iter().chain(waits).collect(), queues.collect());
        check(connection, exchanges, queues).await
    }

    /// Looks whether what is needed to publish to one lane is there.
    pub async fn check_lane(&self, connection: &Connection, key: &str) -> Result<(), TopologyError> {
        check(connection, vec![self.jobs_exchange()], vec![self.lane_queue(key)]).await
    }

    /// Declares everything. Harmless when it is there already with the same arguments.
    pub async fn declare(&self, channel: &Channel) -> Result<(), lapin::Error> {
        self.exchange(channel, &self.jobs_exchange(), ExchangeKind::Direct).await?;
        self.exchange(channel, &self.dead_exchange(), ExchangeKind::Fanout).await?;
        self.queue(channel, &self.dead_queue(), quorum()).await?;
        self.bind(channel, &self.dead_queue(), &self.dead_exchange(), "").await?;
        for rung_s in &self.ladder_s {
            let (exchange, queue) = (self.wait_exchange(*rung_s), self.wait_queue(*rung_s));
            let mut arguments = dead_lettering(self.jobs_exchange());
            arguments.insert("x-message-ttl".into(), AMQPValue::LongLongInt(i64::from(*rung_s) * 1000));
            self.exchange(channel, &exchange, ExchangeKind::Fanout).await?;
            self.queue(channel, &queue, arguments).await?;
            self.bind(channel, &queue, &exchange, "").await?;
        }
        self.exchange(channel, &self.abandoned(), ExchangeKind::Fanout).await?;
        self.exchange(channel, &self.embed_exchange(), ExchangeKind::Direct).await?;
        self.queue(channel, &self.embed_queue(), short_lived()).await?;
        self.bind(channel, &self.embed_queue(), &self.embed_exchange(), EMBED_KEY).await?;
        for precision in Precision::ALL {
            self.queue(channel, &self.computes_queue(precision), of_nothing()).await?;
        }
        for key in self.lane_keys() {
            let name = self.lane_queue(&key);
            let mut arguments = dead_lettering(self.dead_exchange());
            arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(DELIVERY_LIMIT));
            self.queue(channel, &name, arguments).await?;
            self.bind(channel, &name, &self.jobs_exchange(), &key).await?;
        }
        Ok(())
    }

    async fn exchange(&self, channel: &Channel, name: &str, kind: ExchangeKind) -> Result<(), lapin::Error> {
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        channel.exchange_declare(name.into(), kind, options, FieldTable::default()).await
    }

    async fn queue(&self, channel: &Channel, name: &str, arguments: FieldTable) -> Result<(), lapin::Error> {
        channel.queue_declare(name.into(), QueueDeclareOptions::durable(), arguments).await.map(drop)
    }

    async fn bind(&self, channel: &Channel, queue: &str, exchange: &str, key: &str) -> Result<(), lapin::Error> {
        channel
            .queue_bind(queue.into(), exchange.into(), key.into(), QueueBindOptions::default(), FieldTable::default())
            .await
    }
}

/// How a queue stands, without declaring it. To look takes no right on the broker; of one that is not there the answer closes the channel.
pub async fn look_at(channel: &Channel, queue: &str) -> Result<Queue, lapin::Error> {
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    channel.queue_declare(queue.into(), options, FieldTable::default()).await
}

/// Asks for names without declaring them, all at once, on a channel of its own: a no closes it.
async fn check(connection: &Connection, exchanges: Vec<String>, queues: Vec<String>) -> Result<(), TopologyError> {
    let channel = connection.create_channel().await?;
    let exchanges = try_join_all(exchanges.iter().map(|name| {
        let options = ExchangeDeclareOptions { passive: true, ..Default::default() };
        // The kind of one that is there is not looked at.
        let asked =
            channel.exchange_declare(name.as_str().into(), ExchangeKind::Direct, options, FieldTable::default());
        async move { asked.await.map_err(|error| missing("the exchange", name, error)) }
    }));
    exchanges.await?;
    let queues = try_join_all(queues.iter().map(|name| {
        let asked = look_at(&channel, name);
        async move { asked.await.map_err(|error| missing("the queue", name, error)) }
    }));
    queues.await?;
    // Its end is nothing to wait for.
    let _ = channel.close(200, "checked".into()).await;
    Ok(())
}

fn missing(what: &str, name: &str, error: lapin::Error) -> TopologyError {
    match error.kind() {
        ErrorKind::ProtocolError(error) if error.get_id() == AMQPSoftError::NOTFOUND.get_id() => {
            TopologyError::Missing { name: format!("{what} {name}") }
        }
        _ => error.into(),
    }
}

fn lane_key(lane: u16) -> String {
    format!("{lane:02}")
}

/// A quorum queue that refuses what it can't hold.
fn quorum() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(QUEUE_MESSAGES_MAX));
    // Also what at-least-once dead-lettering requires: with drop-head it silently is at-most-once.
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    arguments
}

/// A classic queue for what is worth nothing a minute later: not replicated, nothing of it written to disk on purpose, and
/// refusing what no worker could answer in time.
fn short_lived() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("classic".into()));
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(EMBED_MESSAGES_MAX));
    arguments.insert("x-max-length-bytes".into(), AMQPValue::LongLongInt(EMBED_BYTES_MAX));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    // Each message has a shorter one of its own; this is for one that has none.
    arguments.insert("x-message-ttl".into(), AMQPValue::LongLongInt(EMBED_TTL_MS));
    arguments
}

/// A classic queue that takes no message, for its consumers to be counted.
fn of_nothing() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("classic".into()));
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(0));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    arguments
}

/// A quorum queue whose expired or undeliverable messages go to `exchange`, none of them lost.
fn dead_lettering(exchange: String) -> FieldTable {
    let mut arguments = quorum();
    arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString(exchange.into()));
    arguments.insert("x-dead-letter-strategy".into(), AMQPValue::LongString("at-least-once".into()));
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology() -> Topology {
        Topology { namespace: "v".into(), lanes: 4, ladder_s: vec![5, 30, 120] }
    }

    #[test]
    fn rungs_fit_the_wait_and_end_at_the_last() {
        let topology = topology();
        assert_eq!(topology.rung_for(Duration::from_millis(1)), "v.x.wait.5s");
        assert_eq!(topology.rung_for(Duration::from_secs(5)), "v.x.wait.5s");
        assert_eq!(topology.rung_for(Duration::from_millis(5_001)), "v.x.wait.30s");
        assert_eq!(topology.rung_for(Duration::from_secs(86_400)), "v.x.wait.120s");
        assert_eq!(
            [0, 1, 2, 3, 99].map(|tries| topology.rung(tries)),
            ["v.x.wait.5s", "v.x.wait.30s", "v.x.wait.120s", "v.x.wait.120s", "v.x.wait.120s"]
        );
    }

    #[test]
    fn each_tenant_has_its_own_lane_until_they_run_out() {
        let topology = topology();
        assert_eq!([0, 1, 3, 4, 5].map(|lane| topology.lane_key_of(lane)), ["00", "01", "03", "00", "01"]);
        assert_eq!(topology.lane_keys().collect::<Vec<_>>(), ["00", "01", "02", "03"]);
    }
}
