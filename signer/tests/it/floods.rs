//! What a stranger can hold with sockets alone, and what the others notice of it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use reqwest::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;
use vecmill_signer::edge::{self, Bounds};
use vecmill_signer::store::TenantSettings;

use crate::support::Signer;

/// Far longer than anything here takes that goes well.
const LONG: Duration = Duration::from_secs(30);
/// More than the kernel keeps of a connection that nobody reads.
const MUCH: usize = 64 << 20;

fn address(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, last))
}

async fn connect(from: u8, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind((address(from), 0).into()).expect("an address of this machine");
    socket.connect(to).await.expect("the server listens")
}

/// A client from another address that gives up.
fn client(from: u8) -> reqwest::Client {
    let client = reqwest::Client::builder().local_address(address(from)).timeout(Duration::from_secs(10)).no_proxy();
    client.build().expect("a client")
}

/// A server with little patience: one route says much, one reads all.
async fn impatient(bounds: Bounds) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let much = Bytes::from(vec![b'x'; MUCH]);
    let routes = Router::new()
        .route("/much", get(move || std::future::ready(much.clone())))
        .route("/little", get(async || "x".repeat(1000)))
        .route("/", post(async |body: Bytes| body.len().to_string()))
        .layer(DefaultBodyLimit::disable());
    let served = edge::serve(listener, None, routes, bounds, std::future::pending(), Duration::ZERO);
    tokio::spawn(async move { served.await.expect("served") });
    address
}

fn hasty() -> Bounds {
    let patience = Duration::from_secs(1);
    Bounds { body_patience: patience, answer_patience: patience, ..Bounds::default() }
}

/// What comes until the server closes.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    // A connection that is reset has ended as well.
    let _ = timeout(LONG, stream.read_to_end(&mut all)).await.expect("it ends");
    all
}

#[tokio::test]
async fn unfinished_bodies_hold_no_place() {
    let signer = Signer::start(TenantSettings::default()).await;
    let mut open = Vec::new();
    // More than there are places, of two addresses.
    for number in 0..400_u32 {
        let mut stream = connect(if number % 2 == 0 { 2 } else { 3 }, signer.address).await;
        let head = "POST /oauth/token HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n\
                    Content-Length: 100\r\n\r\ng";
        stream.write_all(head.as_bytes()).await.expect("sent");
        open.push(stream);
    }
    let client = client(1);
    for path in ["v1/revocations/2", ".well-known/jwks.json", "healthz", "readyz"] {
        let answer = client.get(format!("{}/{path}", signer.url())).send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
    }
    signer.token(&signer.keys.writer).await;
    // And they are not waited for for long.
    let answer = String::from_utf8_lossy(&rest(&mut open[0]).await).into_owned();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[tokio::test]
async fn a_thousand_connections_of_one_address_keep_nobody_else_out() {
    let signer = Signer::start(TenantSettings::default()).await;
    let pipelined = "GET /.well-known/oauth-authorization-server HTTP/1.1\r\nHost: x\r\n\r\n".repeat(200);
    let mut open = Vec::new();
    for _ in 0..1024 {
        let mut stream = connect(2, signer.address).await;
        // One that was closed at once takes nothing.
        let _ = timeout(Duration::from_millis(20), stream.write_all(pipelined.as_bytes())).await;
        open.push(stream);
    }
    let answer = client(3).get(format!("{}/readyz", signer.url())).send().await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
    let refused = open.iter().filter(|stream| stream.try_read(&mut [0; 1]).is_ok_and(|read| read == 0)).count();
    println!("{refused} of 1024 were closed at once");
}

#[tokio::test]
async fn where_all_places_are_taken_the_address_with_the_most_gives_one() {
    let server = impatient(Bounds { connections: 8, connections_per_address: 8, ..Bounds::default() }).await;
    let mut open = Vec::new();
    for _ in 0..8 {
        open.push(connect(2, server).await);
    }
    let answer = client(3).get(format!("http://{server}/little")).send().await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
    // The youngest went; the oldest still works.
    assert!(rest(open.last_mut().expect("eight")).await.is_empty());
    open[0].write_all(b"GET /little HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.expect("sent");
    assert!(rest(&mut open[0]).await.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test]
async fn who_reads_nothing_is_cut_and_who_reads_slowly_is_not() {
    let server = impatient(hasty()).await;
    let mut stalled = connect(1, server).await;
    stalled.write_all(b"GET /much HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.expect("sent");
    let mut pipelining = connect(1, server).await;
    let requests = b"GET /little HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
    let begun = Instant::now();
    let mut sent = 0;
    // Until it is cut: then writing fails. As long as it is held it blocks at some time, and stays so.
    while timeout(LONG, pipelining.write_all(&requests)).await.expect("not held for ever").is_ok() {
        sent += 1;
        assert!(begun.elapsed() < LONG, "{sent} times a thousand requests were taken whose answers nobody reads");
    }
    let mut slow = connect(1, server).await;
    slow.write_all(b"GET /much HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.expect("sent");
    let mut read = 0;
    let mut piece = vec![0; 256 << 10];
    for _ in 0..30 {
        // Three times the patience, at a rate far above the least.
        tokio::time::sleep(Duration::from_millis(100)).await;
        read += slow.read(&mut piece).await.expect("it goes on");
    }
    read += rest(&mut slow).await.len();
    assert!(read > MUCH, "the whole answer, however slowly: {read}");
    let got = rest(&mut stalled).await.len();
    assert!(got < MUCH, "who read nothing for {:?} was cut: {got}", begun.elapsed());
}

#[tokio::test]
async fn a_trickled_body_is_cut_and_a_slow_one_is_not() {
    let server = impatient(hasty()).await;
    let head =
        |length: usize| format!("POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    let mut trickling = connect(1, server).await;
    trickling.write_all(head(1_000_000).as_bytes()).await.expect("sent");
    let begun = Instant::now();
    while trickling.write_all(b"x").await.is_ok() {
        assert!(begun.elapsed() < LONG, "a byte now and then holds the connection");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    let mut slow = connect(1, server).await;
    let body = vec![b'x'; 40 * (16 << 10)];
    slow.write_all(head(body.len()).as_bytes()).await.expect("sent");
    for piece in body.chunks(16 << 10) {
        slow.write_all(piece).await.expect("taken");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let answer = String::from_utf8_lossy(&rest(&mut slow).await).into_owned();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(&body.len().to_string()), "{answer}");
}
