//! The floor under the synchronous path: a message to a queue and its answer by direct reply-to, with nothing done in between.

use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::StreamExt as _;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel};
use vecmill_producer::publish::connect;
use vecmill_tests::Cluster;

const REPLY_TO: &str = "amq.rabbitmq.reply-to";
/// About as long as a request and its answer.
const BYTES: usize = 1024;

/// How long each round trip takes: two connections, each a program's own, as gateway and worker have.
pub(super) async fn round_trips(cluster: &Cluster, count: usize) -> anyhow::Result<Vec<Duration>> {
    let url = &cluster.env["VECMILL_AMQP_URL"];
    let (asking, answering) =
        (connect(url, "asks", &<_>::default()).await?, connect(url, "answers", &<_>::default()).await?);
    let (asker, answerer) = (asking.create_channel().await?, answering.create_channel().await?);
    let queue = format!("{}.echo", cluster.unique());
    let exclusive = QueueDeclareOptions { auto_delete: true, ..Default::default() };
    answerer.queue_declare(queue.as_str().into(), exclusive, FieldTable::default()).await?;
    let no_ack = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let mut asked = answerer.basic_consume(queue.as_str().into(), "echo".into(), no_ack, FieldTable::default()).await?;
    let echo = tokio::spawn(async move {
        while let Some(Ok(delivery)) = asked.next().await {
            let Some(to) = delivery.properties.reply_to().clone() else { continue };
            publish(&answerer, to.as_str(), BasicProperties::default(), &delivery.data).await?;
        }
        anyhow::Ok(())
    });
    let mut answers = asker.basic_consume(REPLY_TO.into(), "replies".into(), no_ack, FieldTable::default()).await?;
    let mut took = Vec::with_capacity(count);
    for _ in 0..count {
        let begun = Instant::now();
        publish(&asker, &queue, BasicProperties::default().with_reply_to(REPLY_TO.into()), &[0; BYTES]).await?;
        answers.next().await.context("the channel is gone")??;
        took.push(begun.elapsed());
    }
    echo.abort();
    Ok(took)
}

async fn publish(channel: &Channel, queue: &str, properties: BasicProperties, bytes: &[u8]) -> anyhow::Result<()> {
    let options = BasicPublishOptions::default();
    channel.basic_publish("".into(), queue.into(), options, bytes, properties).await?;
    Ok(())
}
