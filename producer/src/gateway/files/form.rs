//! The form of an upload, and what of it reaches the parser, and when. The parser keeps what it has of a part's header and
//! searches it from its start at each piece, and takes whatever is there at once: so what is not a file's content is bounded
//! here, before it, and pieces are given to it one by one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body;
use axum::extract::Multipart;
use axum::extract::multipart::{Field, MultipartError};
use bytes::Bytes;
use futures_util::stream;
use futures_util::{Stream, StreamExt as _};
use vecmill_signer::claims::Digest;

use super::super::bodies::came_too_slowly;
use super::super::embeddings::printable;
use super::super::error::{ApiError, cause};
use super::BATCH;

/// Longest field of a form that is not the file.
const FIELD_BYTES_MAX: usize = 1024;
/// Most parts of a form: it may have four, each once.
const PARTS_MAX: usize = 4;
/// Seconds that a file may be kept: an hour to thirty days, as OpenAI has it.
const KEPT_S: std::ops::RangeInclusive<u64> = 3600..=2_592_000;
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

/// A file's name, length and digest.
pub(super) type Received = (String, u64, Digest);

/// A part of a form.
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
pub(super) enum Part<'a> {
    /// The file's name, and its content, not read yet.
    File(String, Field<'a>),
    /// Another field, which has been read.
    Field,
    /// None: that was all.
    End,
}

/// What a form has brought so far.
#[derive(Debug, Default)]
pub(super) struct Form {
    parts: usize,
    purpose: Option<String>,
    anchor: Option<String>,
    seconds: Option<String>,
    file: Option<Received>,
}

impl Form {
    /// Reads the next part, if it is not the file, which is for the caller to take.
    pub(super) async fn next<'a>(&mut self, form: &'a mut Multipart, reading: &Reading) -> Result<Part<'a>, ApiError> {
        reading.looks_for_a_part();
        let Some(field) = form.next_field().await.map_err(not_read_on)? else { return Ok(Part::End) };
        reading.has_found_one();
        self.parts += 1;
        if self.parts > PARTS_MAX {
            let sentence = format!("the form has more than {PARTS_MAX} parts");
            return Err(ApiError::invalid("invalid_body", None, sentence));
        }
        let name = field.name().unwrap_or_default().to_owned();
        match name.as_str() {
            "purpose" => self.purpose = Some(text(field).await?),
            "expires_after[anchor]" => self.anchor = Some(text(field).await?),
            "expires_after[seconds]" => self.seconds = Some(text(field).await?),
            "file" if self.file.is_some() => {
                return Err(ApiError::invalid("invalid_body", Some("file"), "the form has two fields named file"));
            }
            "file" => {
                let name = field.file_name().unwrap_or("file").chars().filter(|c| !c.is_control()).take(255).collect();
                return Ok(Part::File(name, field));
            }
            other => {
                let name = printable(other);
                let sentence = format!("the form has a field {name:?}; it may have purpose, expires_after and file");
                return Err(ApiError::invalid("invalid_body", None, sentence));
            }
        }
        Ok(Part::Field)
    }

    /// The file has been taken.
    pub(super) fn received(&mut self, filename: String, (bytes, sha256): (u64, Digest)) {
        self.file = Some((filename, bytes, sha256));
    }

    /// The seconds to keep the file, if it is not for ever; and its name, length and digest.
    pub(super) fn check(&mut self) -> Result<(Option<u64>, Received), ApiError> {
        let wrong = |param: &str, sentence: String| Err(ApiError::invalid("invalid_body", Some(param), sentence));
        match self.purpose.as_deref() {
            Some(BATCH) => {}
            Some(_) => return wrong("purpose", "purpose must be \"batch\": files are for batches here".to_owned()),
            None => return wrong("purpose", "the form lacks the field purpose: it must be \"batch\"".to_owned()),
        }
        let expires_after_s = match (self.anchor.as_deref(), self.seconds.as_deref()) {
            (None, None) => None,
            (Some("created_at"), Some(seconds)) => match seconds.parse() {
                Ok(seconds) if KEPT_S.contains(&seconds) => Some(seconds),
                _ => {
                    let (from, to) = (KEPT_S.start(), KEPT_S.end());
                    return wrong("expires_after", format!("expires_after[seconds] must be {from} to {to}"));
                }
            },
            _ => {
                let sentence = "expires_after must have both anchor, \"created_at\", and seconds".to_owned();
                return wrong("expires_after", sentence);
            }
        };
        match self.file.take() {
            None => wrong("file", "the form lacks the field file".to_owned()),
            Some((_, 0, _)) => wrong("file", "the file is empty".to_owned()),
            Some(file) => Ok((expires_after_s, file)),
        }
    }
}

async fn text(mut field: Field<'_>) -> Result<String, ApiError> {
    let mut text = Vec::new();
    while let Some(piece) = field.chunk().await.map_err(not_read_on)? {
        text.extend_from_slice(&piece);
        if text.len() > FIELD_BYTES_MAX {
            return Err(ApiError::too_large(format!("a field of the form may have {FIELD_BYTES_MAX} bytes")));
        }
    }
    String::from_utf8(text).map_err(|_| ApiError::invalid("invalid_body", None, "a field of the form is not UTF-8"))
}

/// Why a form is not read on, for its sender. Our own refusal is among the causes of the parser's.
pub(super) fn not_read_on(error: MultipartError) -> ApiError {
    match cause::<FormError>(&error) {
        Some(FormError::Header) => ApiError::too_large(format!("{}: give it fewer headers", FormError::Header)),
        Some(FormError::Slow) => ApiError::invalid("upload_stalled", None, FormError::Slow.to_string()),
        Some(FormError::Broken) | None => {
            ApiError::invalid("invalid_body", None, "the form ends too early or is not multipart/form-data")
        }
    }
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
