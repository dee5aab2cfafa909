//! An HTTP server with limits on what a client may send before it is known, over TLS where a certificate is given.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::ConnectInfo;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request};
use clap::{Args, value_parser};
use hyper::body::{Bytes, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tower_service::Service as _;

use super::patience::{PatientBody, PatientStream};
use super::places::{Place, Places};
use super::{Pace, ServerTls};

/// Time for a TLS handshake: three round trips, and some for a busy machine.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Time for a request's head, and the longest that a connection may idle between two.
const HEAD_MAX: Duration = Duration::from_secs(15);
/// Bytes of a request's head: a token of 8 KiB and what proxies add.
const HEAD_LEN_MAX: usize = 16 * 1024;
/// Header fields of a request; browsers send 20.
const FIELDS_MAX: usize = 64;
/// How long, and how far, a body is read on that nobody wants: what a client sends before it has read the answer, and no more.
const LINGER_MAX: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: usize = 16 << 20;
/// After a failed `accept`: out of descriptors, which only time frees.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Headers of every answer, unless a handler has set its own. These are answers for programs: a browser that is led here
/// must neither run, frame nor keep them.
const HEADERS: [(HeaderName, &str); 5] = [
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (X_FRAME_OPTIONS, "DENY"),
    (CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    (REFERRER_POLICY, "no-referrer"),
    (CACHE_CONTROL, "no-store"),
];
/// A year. Over TLS only.
const HSTS: &str = "max-age=31536000";

/// How much of the network a program takes at once. Flattened into the settings of each program that listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub struct Bounds {
    /// Connections at once, of all addresses together; the next takes one of the address that has the most, or is closed
    // Each costs a descriptor and some 30 KiB.
    #[arg(long, env = "VECMILL_CONNECTIONS", value_name = "N", default_value_t = Self::default().connections, value_parser = value_parser!(u32).range(1..=100_000))]
    pub connections: u32,
    /// Connections at once of one address, of IPv6 of one /64; the next is closed at once. A proxy in front is one address
    // A quarter, and more than any client opens by itself.
    #[arg(long, env = "VECMILL_CONNECTIONS_PER_ADDRESS", value_name = "N", default_value_t = Self::default().connections_per_address, value_parser = value_parser!(u32).range(1..=100_000))]
    pub connections_per_address: u32,
    /// How long a client is waited for that sends a body at less than 16 KiB a second.
    // A line that is lost for a while and found again. No setting: tests have less time.
    #[arg(skip = Self::default().body_patience)]
    pub body_patience: Duration,
    /// How long a client is waited for that takes answers at less than 4 KiB a second.
    // Longer: it may compute between two pieces of a download.
    #[arg(skip = Self::default().answer_patience)]
    pub answer_patience: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: 1024,
            connections_per_address: 256,
            body_patience: Duration::from_secs(30),
            answer_patience: Duration::from_secs(60),
        }
    }
}

/// Serves `routes` until `shutdown` resolves; then finishes what is under way, for `drain_max` at most. Handlers find the
/// peer's address as `ConnectInfo<SocketAddr>`.
///
/// What one connection can hold: its place, a head of 16 KiB and what is written to it of 16 KiB, a handshake for 10 s, a head or
/// nothing for 15 s, a body and answers for as long as they go on at a rate (`patience`). What a handler takes of a body
/// is the handler's to bound.
pub async fn serve(
    listener: TcpListener,
    tls: Option<ServerTls>,
    routes: Router,
    bounds: Bounds,
    shutdown: impl Future<Output = ()>,
    drain_max: Duration,
) -> io::Result<()> {
    let places = Places::new(bounds.connections, bounds.connections_per_address);
    let refused = Pace::default();
    let open = GracefulShutdown::new();
    let mut shutdown = pin!(shutdown);
    let mut following = pin!(async {
        match &tls {
            Some(tls) => tls.follow().await,
            None => std::future::pending().await,
        }
    });
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut following => continue,
            () = &mut shutdown => break,
        };
        let Ok((stream, peer)) = accepted else {
            tokio::time::sleep(ACCEPT_AGAIN).await;
            continue;
        };
        let Some(place) = places.take(peer.ip()) else {
            if let Some(unsaid) = refused.line(Instant::now()) {
                tracing::warn!(
                    client_addr = %peer.ip(), unsaid,
                    "a connection was closed: its address has as many as it may (--connections-per-address, --connections)"
                );
            }
            continue;
        };
        let (routes, tls, watcher) = (routes.clone(), tls.as_ref().map(ServerTls::config), open.watcher());
        tokio::spawn(async move {
            // Answers are small and wanted at once.
            let _ = stream.set_nodelay(true);
            let stream = PatientStream::new(stream, bounds.answer_patience);
            let conversation = async {
                match tls {
                    None => converse(stream, peer, routes, None, bounds, watcher).await,
                    Some(config) => match timeout(HANDSHAKE_MAX, TlsAcceptor::from(config).accept(stream)).await {
                        Ok(Ok(stream)) => converse(stream, peer, routes, Some(HSTS), bounds, watcher).await,
                        // At the level at which nobody's flood fills the log.
                        Ok(Err(error)) => tracing::debug!(client_addr = %peer.ip(), %error, "a TLS handshake failed"),
                        Err(_) => tracing::debug!(client_addr = %peer.ip(), "a TLS handshake took too long"),
                    },
                }
            };
            held(place, conversation).await;
        });
    }
    drop(listener);
    // What is still open then is cut: whoever waits so long for an answer asks again.
    let _ = timeout(drain_max, open.shutdown()).await;
    Ok(())
}

/// A connection to its end, or until its place goes to another.
async fn held(place: Place, conversation: impl Future<Output = ()>) {
    tokio::select! {
        () = conversation => {}
        () = place.cut() => {}
    }
}

/// One connection, request by request.
async fn converse<S>(
    stream: S,
    peer: SocketAddr,
    routes: Router,
    hsts: Option<&'static str>,
    bounds: Bounds,
    watcher: Watcher,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let answer = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        let mut routes = routes.clone();
        async move {
            let mut response = match routes
                .call(request.map(|body| Body::new(PatientBody::new(Lingering::new(body), bounds.body_patience))))
                .await
            {
                Ok(response) => response,
                Err(never) => match never {},
            };
            guard(response.headers_mut(), hsts);
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_buf_size(HEAD_LEN_MAX)
        .max_headers(FIELDS_MAX)
        .serve_connection(TokioIo::new(stream), answer);
    // Clients that vanish or talk nonsense are theirs to explain.
    let _ = watcher.watch(connection).await;
}

/// A body that is read on for a while when nobody wants the rest of it: a client that was refused while it sends would find its
/// connection reset, and not read why.
struct Lingering(Option<Incoming>);

impl Lingering {
    fn new(body: Incoming) -> Self {
        Self(Some(body))
    }
}

impl HttpBody for Lingering {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.0 {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map(HttpBody::size_hint).unwrap_or_default()
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        let Some(mut body) = self.0.take().filter(|body| !body.is_end_stream()) else { return };
        // Out of a runtime nobody is left to read for.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(timeout(LINGER_MAX, async move {
            let mut read = 0;
            while let Some(Ok(frame)) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
                read += frame.data_ref().map_or(0, Bytes::len);
                if read > LINGER_BYTES_MAX {
                    break;
                }
            }
        }));
    }
}

fn guard(headers: &mut HeaderMap, hsts: Option<&'static str>) {
    for (name, value) in HEADERS {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    if let Some(hsts) = hsts {
        headers.insert(STRICT_TRANSPORT_SECURITY, HeaderValue::from_static(hsts));
    }
}
