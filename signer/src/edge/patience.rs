//! How long a slow client is waited for, by what it gets done.
//!
//! A connection has so much patience. Waiting for the client spends it, second by second; each byte that the client sends, or
//! takes, earns some back, up to what there was. So a stalled client is cut when it has none left, one that trickles soon after,
//! and one that keeps to the rate never, however long its transfer takes. Waiting for ourselves costs nothing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::HttpBody;
use hyper::body::{Bytes, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// The least average rate of a request's body, bytes a second: a bad mobile line makes it; and at the most that 256
/// connections of one address can hold up, they pay 4 MiB a second for it.
const BODY_RATE: u32 = 16 * 1024;
/// The least average rate at which answers are taken while more is to be sent. Lower than that of bodies: a client may compute
/// between two pieces of a download, and an answer that waits costs 16 KiB and what the kernel keeps.
const ANSWER_RATE: u32 = 4 * 1024;

#[derive(Debug)]
struct Patience {
    rate: u32,
    most: Duration,
    left: Duration,
    /// Since when the client is waited for, and what tells that the patience is at its end.
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl Patience {
    fn new(rate: u32, most: Duration) -> Self {
        Self { rate, most, left: most, waiting: None }
    }

    /// The client is waited for: ready once it has been for too long.
    fn spend(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let left = self.left;
        let (_, end) = self.waiting.get_or_insert_with(|| {
            let now = Instant::now();
            (now, Box::pin(sleep_until(now + left)))
        });
        end.as_mut().poll(context)
    }

    /// The client has done something: `bytes`.
    fn earn(&mut self, bytes: usize) {
        if let Some((since, _)) = self.waiting.take() {
            self.left = self.left.saturating_sub(since.elapsed());
        }
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.left = (self.left + Duration::from_secs(1) * bytes / self.rate).min(self.most);
    }
}

/// A connection whose client must take what it is sent. How long it may say nothing is the HTTP server's to bound.
#[derive(Debug)]
pub(super) struct PatientStream<S> {
    stream: S,
    patience: Patience,
}

impl<S> PatientStream<S> {
    pub(super) fn new(stream: S, patience: Duration) -> Self {
        Self { stream, patience: Patience::new(ANSWER_RATE, patience) }
    }

    /// What came of a write, or the end of the patience.
    fn judge(&mut self, outcome: Poll<io::Result<usize>>, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match outcome {
            Poll::Pending => {
                ready!(self.patience.spend(context));
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not take its answer")))
            }
            Poll::Ready(written) => {
                self.patience.earn(written.as_ref().map_or(0, |bytes| *bytes));
                Poll::Ready(written)
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for PatientStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PatientStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(outcome, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.judge(outcome, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    // Of TCP neither waits.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A request's body whose client must send it. What its handler takes to read on costs nothing.
#[derive(Debug)]
pub(super) struct PatientBody<B> {
    body: B,
    patience: Patience,
}

impl<B> PatientBody<B> {
    pub(super) fn new(body: B, patience: Duration) -> Self {
        Self { body, patience: Patience::new(BODY_RATE, patience) }
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for PatientBody<B>
where
    B::Error: Into<axum::BoxError>,
{
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Pending => {
                ready!(self.patience.spend(context));
                let late = io::Error::new(io::ErrorKind::TimedOut, "the request's body comes too slowly");
                Poll::Ready(Some(Err(late.into())))
            }
            Poll::Ready(frame) => {
                let bytes = match &frame {
                    Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
                    _ => 0,
                };
                self.patience.earn(bytes);
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::{advance, timeout};

    use super::*;

    /// Whether the client is given up within `wait`.
    async fn given_up(patience: &mut Patience, wait: Duration) -> bool {
        timeout(wait, poll_fn(|context| patience.spend(context))).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn patience_ends_with_a_stall_and_with_a_trickle_and_not_at_the_rate() {
        const SECOND: Duration = Duration::from_secs(1);
        let mut stalled = Patience::new(1000, SECOND * 30);
        assert!(!given_up(&mut stalled, SECOND * 29).await);
        assert!(given_up(&mut stalled, SECOND * 2).await);

        let mut trickled = Patience::new(1000, SECOND * 30);
        let mut seconds = 0;
        while !given_up(&mut trickled, SECOND).await {
            trickled.earn(100);
            seconds += 1;
        }
        assert!((32..=35).contains(&seconds), "a tenth of the rate buys a tenth of the time: {seconds}");

        let mut honest = Patience::new(1000, SECOND * 30);
        for _ in 0..3600 {
            assert!(!given_up(&mut honest, SECOND).await, "an hour at the rate");
            honest.earn(1000);
        }
        assert!(!given_up(&mut honest, SECOND * 20).await, "and then a gap");
        honest.earn(1);
        // What we take ourselves is not the client's.
        advance(SECOND * 600).await;
        assert!(!given_up(&mut honest, SECOND * 9).await);
        assert!(given_up(&mut honest, SECOND * 2).await);
        honest.earn(1_000_000);
        assert!(!given_up(&mut honest, SECOND * 29).await, "no more is earned than there was");
        assert!(given_up(&mut honest, SECOND * 2).await);
    }
}
