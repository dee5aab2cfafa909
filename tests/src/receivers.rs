//! Servers that a test plays itself: what webhooks are told to, and whatever else a program asks.

use std::net::SocketAddr;

use axum::Router;
use tokio::net::TcpListener;

/// Serves some routes until the test ends; gives where.
///
/// # Panics
/// When no port is free.
pub async fn served(routes: Router) -> SocketAddr {
    let (listener, address) = listening().await;
    tokio::spawn(async move { axum::serve(listener, routes).await });
    address
}

/// Takes connections and never answers; gives where.
///
/// # Panics
/// When no port is free.
pub async fn tarpit() -> SocketAddr {
    let (listener, address) = listening().await;
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((connection, _)) = listener.accept().await {
            held.push(connection);
        }
    });
    address
}

async fn listening() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}

/// Settings of a gateway whose webhooks may go to these addresses, too.
pub fn webhook_settings(allowed: &[SocketAddr]) -> [(&'static str, String); 2] {
    let allowed: Vec<_> = allowed.iter().map(SocketAddr::to_string).collect();
    [
        ("VECMILL_WEBHOOK_KEY", "0123456789abcdef0123456789abcdef".to_owned()),
        ("VECMILL_GATEWAY_WEBHOOK_ALLOW", allowed.join(",")),
    ]
}
