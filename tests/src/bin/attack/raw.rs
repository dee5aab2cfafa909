//! What no honest client would send: connections by hand, from an address of the attacker's own.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::Context;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};
use vecmill_tests::connect_from;

/// Where the attacks come from: not where the bystander is.
pub(crate) const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 66);

/// A connection to where `url` leads.
pub(crate) async fn connect(url: &str) -> anyhow::Result<TcpStream> {
    let address: SocketAddr = url.strip_prefix("http://").context("an http:// URL")?.parse()?;
    Ok(connect_from(ATTACKER, address).await?)
}

/// How a connection that was held ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    /// The attacker let go.
    ToTheEnd,
    /// The server cut it, or answered.
    Cut,
    /// It never came about.
    Refused,
}

/// Holds `count` connections until `until`: on each `begin` is sent and then `drip` every `drip_every`, and nothing is read. One that
/// is cut is opened again.
pub(crate) async fn hold(
    url: &str,
    count: usize,
    begin: Vec<u8>,
    drip: &'static [u8],
    drip_every: Duration,
    until: Instant,
) -> anyhow::Result<String> {
    let mut holding = JoinSet::new();
    for _ in 0..count {
        let (url, begin) = (url.to_owned(), begin.clone());
        holding.spawn(async move {
            let mut ends = Vec::new();
            while Instant::now() < until {
                let end = hold_one(&url, &begin, drip, drip_every, until).await;
                ends.push(end);
                if end != Held::ToTheEnd {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
            ends
        });
    }
    let ends: Vec<Held> = holding.join_all().await.into_iter().flatten().collect();
    let of = |kind| ends.iter().filter(|&&end| end == kind).count();
    Ok(format!(
        "{count} at once: {} held to the end, {} cut or answered, {} refused",
        of(Held::ToTheEnd),
        of(Held::Cut),
        of(Held::Refused)
    ))
}

async fn hold_one(url: &str, begin: &[u8], drip: &[u8], drip_every: Duration, until: Instant) -> Held {
    let Ok(mut stream) = connect(url).await else { return Held::Refused };
    let left = || until.saturating_duration_since(Instant::now());
    match tokio::time::timeout(left(), stream.write_all(begin)).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => return Held::Cut,
        // Nobody takes what is sent.
        Err(_) => return Held::ToTheEnd,
    }
    while !left().is_zero() {
        tokio::time::sleep(drip_every.min(left())).await;
        if drip.is_empty() {
            // A peer that has closed has something to say, or nothing more.
            let mut byte = [0];
            if let Ok(Ok(0) | Err(_)) = tokio::time::timeout(Duration::from_millis(1), stream.peek(&mut byte)).await {
                return Held::Cut;
            }
        } else if stream.write_all(drip).await.is_err() {
            return Held::Cut;
        }
    }
    Held::ToTheEnd
}

/// Sends a request whole and reads its answer; gives the status, or 0 where there is none.
pub(crate) async fn ask(url: &str, head: &str, body: &[u8], within: Duration) -> u16 {
    let asking = async {
        let mut stream = connect(url).await.ok()?;
        stream.write_all(head.as_bytes()).await.ok()?;
        // An answer may come before the body has gone: then the rest is not taken.
        _ = stream.write_all(body).await;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.ok()?;
        std::str::from_utf8(&answer[9..]).ok()?.parse().ok()
    };
    tokio::time::timeout(within, asking).await.ok().flatten().unwrap_or(0)
}
