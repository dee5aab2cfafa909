//! Credentials and revocations across programs.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;
use vecmill_tests::{Cluster, WorkerOptions, connect_from, corpus};

const LIMIT: Duration = Duration::from_secs(120);
/// More than the places that the signer has, and than the connections.
const CONNECTIONS: usize = 600;

/// Strangers take all that they can get of the signer with sockets alone: requests that never end, and answers that are never
/// read. Tenants log in, workers hear of revocations, and a job goes through.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_goes_through_while_strangers_hold_what_they_can_of_the_signer() {
    let cluster = Cluster::private().await;
    let signer: SocketAddr = cluster.env["VECMILL_SIGNER_LISTEN"].parse().unwrap();
    let tenant = cluster.tenant("calm", &[]);
    let file = corpus::write_jsonl(cluster.dir.path(), "calm.jsonl", &corpus::texts(3, 40));

    let unfinished = "POST /oauth/token HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n\
                      Content-Length: 100\r\n\r\ng";
    let unread = "GET /.well-known/oauth-authorization-server HTTP/1.1\r\nHost: x\r\n\r\n".repeat(500);
    let flood = tokio::spawn(async move {
        // Again and again: what is cut is opened anew.
        let mut open = Vec::new();
        for number in 0.. {
            let (from, text) = if number % 2 == 0 { (2, unfinished) } else { (3, unread.as_str()) };
            let mut stream = connect_from(Ipv4Addr::new(127, 0, 0, from), signer).await.unwrap();
            let _ = timeout(Duration::from_millis(5), stream.write_all(text.as_bytes())).await;
            if open.len() < CONNECTIONS * 2 {
                open.push(stream);
            } else {
                open[number % (CONNECTIONS * 2)] = stream;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    tokio::time::sleep(Duration::from_secs(5)).await;

    let worker = cluster.worker(WorkerOptions::default()).await;
    let job = cluster.submit(&tenant, &file, &["--chunk-rows", "10"]);
    cluster.reaches(&tenant, &job, "completed", LIMIT).await;
    let (status, lacking) = worker.get("/readyz").await.unwrap();
    assert_eq!(status, 200, "{lacking}");
    assert!(!flood.is_finished(), "the flood went on to the end");
    flood.abort();
}
