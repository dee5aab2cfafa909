//! Synchronous requests as whoever may write to their queue puts them there, past every gateway.

use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::{
    BasicProperties, Channel, Connection, Consumer,
    options::{BasicConsumeOptions, BasicPublishOptions},
    types::FieldTable,
};
use vecmill_producer::contract::{EmbedAnswer, EmbedRequest};

use crate::Cluster;

/// What stands for the asker's own channel.
const REPLY_TO: &str = "amq.rabbitmq.reply-to";
/// A word takes milliseconds.
const LIMIT: Duration = Duration::from_secs(60);

/// Asks workers, one request after the other.
pub struct Asker {
    channel: Channel,
    answers: Consumer,
    queue: String,
    asked: u64,
}

impl Asker {
    /// On a channel of its own.
    ///
    /// # Panics
    /// When there is none to be had.
    pub async fn new(cluster: &Cluster, connection: &Connection) -> Self {
        let channel = connection.create_channel().await.expect("a channel");
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let answers = channel.basic_consume(REPLY_TO.into(), "answers".into(), options, FieldTable::default());
        let answers = answers.await.expect("answers come");
        Self { channel, answers, queue: cluster.topology().embed_queue(), asked: 0 }
    }

    /// What a worker answers.
    ///
    /// # Panics
    /// When none does in time.
    pub async fn ask(&mut self, request: &EmbedRequest) -> EmbedAnswer {
        self.asked += 1;
        let id = format!("asked-{}", self.asked);
        let properties =
            BasicProperties::default().with_reply_to(REPLY_TO.into()).with_correlation_id(id.as_str().into());
        let (queue, body) = (self.queue.as_str().into(), request.to_bytes());
        let sent = self.channel.basic_publish("".into(), queue, BasicPublishOptions::default(), &body, properties);
        sent.await.expect("a request is sent");
        let answer = tokio::time::timeout(LIMIT, self.answers.next()).await.expect("an answer in time");
        let answer = answer.expect("a channel").expect("an answer");
        assert_eq!(
            answer.properties.correlation_id().as_ref().map(|id| id.as_str()),
            Some(id.as_str()),
            "of this request"
        );
        EmbedAnswer::parse(answer.data).expect("an answer that can be read")
    }
}
