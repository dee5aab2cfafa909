//! The queues themselves: a yes is a yes, and what waits comes back to where it was.

use std::time::{Duration, Instant};

use lapin::{
    Channel,
    message::BasicGetMessage,
    options::{BasicAckOptions, BasicGetOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable},
};
use vecmill_producer::{
    contract::ATTEMPT_HEADER,
    publish::{PublishError, number},
};
use vecmill_tests::{Cluster, Servers, eventually};

const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn a_message_for_a_missing_lane_is_an_error() {
    let cluster = Cluster::without_signer(Servers::shared());
    let (connection, publisher) = cluster.publisher().await;
    let topology = cluster.topology();
    let exchange = topology.jobs_exchange();

    let nowhere = publisher.publish(&exchange, "04", b"lost?", FieldTable::default()).await;
    assert!(matches!(&nowhere, Err(PublishError::Unroutable { key, .. }) if key == "04"), "{nowhere:?}");

    // A lane that was there and is deleted, in the middle of many messages.
    publisher.publish(&exchange, "03", b"kept", FieldTable::default()).await.expect("lane 03 is there");
    let channel = connection.create_channel().await.expect("a channel");
    channel.queue_delete(topology.lane_queue("03").as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    let bodies = (0..100_u32).map(|number| number.to_le_bytes().to_vec());
    let mut confirmed = 0;
    let lost = publisher.publish_all(&exchange, "03", bodies, || confirmed += 1).await;
    assert!(matches!(lost, Err(PublishError::Unroutable { .. })), "{lost:?}");
    assert_eq!(confirmed, 0, "nothing is counted that is nowhere");

    // The channel has survived the refusals, and declaring again brings the lane back.
    publisher.declare(&topology).await.expect("a declaration");
    publisher.publish(&exchange, "03", b"found", FieldTable::default()).await.expect("lane 03 is back");
    assert_eq!(next(&channel, &topology.lane_queue("03")).await.expect("a message").data, b"found");

    let elsewhere = publisher.publish("no-such-exchange", "00", b"lost?", FieldTable::default()).await;
    assert!(matches!(elsewhere, Err(PublishError::Broker(_))), "{elsewhere:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_comes_back_to_its_own_lane_and_declaring_again_changes_nothing() {
    let cluster = Cluster::without_signer(Servers::shared());
    let (connection, publisher) = cluster.publisher().await;
    let topology = cluster.topology();
    let channel = connection.create_channel().await.expect("a channel");
    let keys: Vec<String> = topology.lane_keys().collect();
    assert_eq!(keys.len(), 4);

    // One message of each lane through each rung: the longest first, so that they come back in another order.
    let rungs = [(2, 3_u64), (1, 2), (0, 1)];
    let begun = Instant::now();
    for (rung, _) in rungs {
        for key in &keys {
            let mut headers = FieldTable::default();
            headers.insert(ATTEMPT_HEADER.into(), number(rung + 40));
            let body = format!("{key}/{rung}");
            publisher.publish(&topology.rung(rung), key, body.as_bytes(), headers).await.expect("a rung");
        }
    }
    publisher.declare(&topology).await.expect("a second declaration");
    publisher.declare(&topology).await.expect("a third declaration");

    for key in &keys {
        let queue = topology.lane_queue(key);
        for (rung, least_s) in rungs.iter().rev() {
            let message =
                eventually(&format!("lane {key}'s message of rung {rung}"), LIMIT, || next(&channel, &queue)).await;
            assert_eq!(String::from_utf8_lossy(&message.data), format!("{key}/{rung}"));
            assert!(begun.elapsed() >= Duration::from_secs(*least_s), "rung {rung} lasts {least_s} s");
            assert_eq!(message.delivery.routing_key.as_str(), key.as_str(), "the lane is known for the next rung");
            let headers = message.properties.headers().clone().expect("headers");
            let attempt = headers.inner().get(ATTEMPT_HEADER).expect("the attempt");
            assert_eq!(attempt, &AMQPValue::LongUInt(rung + 40), "the ladder keeps the count of attempts");
            message.acker.ack(BasicAckOptions::default()).await.unwrap();
        }
        assert!(next(&channel, &queue).await.is_none(), "lane {key} has its own messages only, each once");
    }
    assert_eq!(cluster.dead_letters().await, []);
}

async fn next(channel: &Channel, queue: &str) -> Option<BasicGetMessage> {
    channel.basic_get(queue.into(), BasicGetOptions::default()).await.expect("the queue is there")
}
