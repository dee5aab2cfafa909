//! What of a form reaches the parser, and when. The parser keeps what it has of a part's header and searches it from its start at
//! each piece, and takes whatever is there at once: so what is not a file's content is bounded here, before it, and pieces are
//! given to it one by one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use futures_util::{Stream, StreamExt as _};

use super::super::bodies::came_too_slowly;

/// Bytes before a form's first part, and of a part's boundary and headers: names and a file's name are below one of these.
const HEADER_BYTES_MAX: u64 = 16 << 10;
/// Bytes of a piece where a header is looked for: it is searched anew with each, at most four times.
const HEADER_PIECE_BYTES: usize = 4 << 10;
/// Bytes of a piece of content.
const PIECE_BYTES: usize = 64 << 10;
/// Content, of which any amount may pass.
const CONTENT: u64 = u64::MAX;

/// Where in a form its reader is: bytes that have passed since it began to look for the next part.
#[derive(Clone, Debug, Default)]
pub(super) struct Reading(Arc<AtomicU64>);

impl Reading {
    /// The next part is looked for.
    pub(super) fn looks_for_a_part(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// A part has been found: its content comes.
    pub(super) fn has_found_one(&self) {
        self.0.store(CONTENT, Ordering::Relaxed);
    }
}

/// Why a form is not read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FormError {
    /// No part in so many bytes.
    #[error("the form has more than 16 KiB that are no part's content")]
    Header,
    /// The caller sends too slowly, as the edge has it.
    #[error("the upload brings less than 16 KiB a second")]
    Slow,
    /// It ends, or breaks off.
    #[error("the body could not be read")]
    Broken,
}

/// A body, as a form's parser may see it.
pub(super) fn bounded(body: Body, reading: Reading) -> Body {
    Body::from_stream(pieces(body.into_data_stream(), reading))
}

fn pieces<E: std::error::Error + Send + 'static>(
    body: impl Stream<Item = Result<Bytes, E>> + Send + Unpin + 'static,
    reading: Reading,
) -> impl Stream<Item = Result<Bytes, FormError>> + Send + 'static {
    let state = (body, Bytes::new());
    stream::unfold(Some(state), move |state| {
        let reading = reading.clone();
        async move {
            let (mut body, mut held) = state?;
            // One at a time: the parser would take all that there is before it looks at any of it.
            tokio::task::yield_now().await;
            while held.is_empty() {
                held = match body.next().await? {
                    Ok(piece) => piece,
                    Err(error) if came_too_slowly(&error) => return Some((Err(FormError::Slow), None)),
                    Err(_) => return Some((Err(FormError::Broken), None)),
                };
            }
            let passed = reading.0.load(Ordering::Relaxed);
            let piece = match passed {
                CONTENT => held.split_to(held.len().min(PIECE_BYTES)),
                passed if passed >= HEADER_BYTES_MAX => return Some((Err(FormError::Header), None)),
                passed => {
                    let piece = held.split_to(held.len().min(HEADER_PIECE_BYTES));
                    reading.0.store(passed + piece.len() as u64, Ordering::Relaxed);
                    piece
                }
            };
            Some((Ok(piece), Some((body, held))))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_header_ends_or_the_form_does() {
        let reading = Reading::default();
        let body = stream::iter((0..128).map(|_| Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; 64 << 10]))));
        let mut pieces = Box::pin(pieces(body, reading.clone()));
        let mut passed = 0;
        let refused = loop {
            match pieces.next().await.expect("more") {
                Ok(piece) => passed += piece.len(),
                Err(error) => break error,
            }
        };
        assert_eq!((refused, passed), (FormError::Header, 16 << 10));

        let body = stream::iter((0..128).map(|_| Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; 64 << 10]))));
        reading.has_found_one();
        let all = super::pieces(body, reading).map(|piece| piece.expect("content").len());
        assert_eq!(all.fold(0, async |sum, bytes| sum + bytes).await, 8 << 20, "content may be of any length");
    }
}
