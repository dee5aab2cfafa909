//! `vecmill repair`: what RabbitMQ has lost is published again from S3, without the corpus.

use std::time::Duration;

use lapin::options::QueuePurgeOptions;
use serde_json::json;
use vecmill_tests::{
    Cluster, WorkerOptions,
    corpus::{texts, write_jsonl},
    program::json_of,
};

const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_messages_the_broker_lost_goes_on() {
    let cluster = Cluster::shared().await;
    let tenant = cluster.tenant("repair", &[]);
    let corpus = write_jsonl(cluster.dir.path(), "corpus.jsonl", &texts(41, 30));
    let job = cluster.submit(&tenant, &corpus, &["--chunk-rows", "10"]);
    std::fs::remove_file(corpus).unwrap();

    let (connection, _publisher) = cluster.publisher().await;
    let channel = connection.create_channel().await.unwrap();
    let topology = cluster.topology();
    let mut lost = 0;
    for lane in topology.lane_keys() {
        let queue = topology.lane_queue(&lane);
        lost += channel.queue_purge(queue.as_str().into(), QueuePurgeOptions::default()).await.unwrap();
    }
    assert_eq!(lost, 3, "every chunk's message was on its lane");

    let repair = || json_of(&cluster.vecmill(&tenant, &["repair", job.as_str(), "--json"]));
    let repaired = repair();
    assert_eq!((&repaired["published"], &repaired["was"]), (&json!(3), &json!("queued")));
    let _worker = cluster.worker(WorkerOptions::default()).await;
    let status = cluster.reaches(&tenant, &job, "completed", LIMIT).await;
    assert_eq!((&status["rows_done"], &status["rows_failed"]), (&json!(30), &json!(0)));
    let again = repair();
    assert_eq!((&again["published"], &again["was"]), (&json!(0), &json!("completed")));

    let unknown = cluster.vecmill(&tenant, &["repair", &"0".repeat(32)]);
    assert_eq!(unknown.status.code(), Some(4), "{}", String::from_utf8_lossy(&unknown.stderr));
}
