//! Forms that nobody vouched for. See [`crate::fuzz`].

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::{FromRequest as _, Multipart};
use axum::http::Request;
use bytes::Bytes;
use futures_util::stream;
use tokio::runtime::{Builder, Runtime};
use vecmill_signer::claims::Digest;

use super::form::{self, Form, Part, Reading, Received, not_read_on};

/// A form with the boundary `x` gives the same fields and the same file, or the same refusal, in whatever pieces it comes; and its
/// file has no more bytes than it.
pub(crate) fn multipart(bytes: &[u8]) {
    thread_local! {
        static RUNTIME: Runtime = Builder::new_current_thread().build().expect("a runtime");
    }
    RUNTIME.with(|runtime| {
        let whole = runtime.block_on(read(bytes, bytes.len().max(1)));
        // The length itself is as good as chance for how long the pieces are.
        let piece = 1 + bytes.len() % 32;
        assert_eq!(runtime.block_on(read(bytes, piece)), whole, "in pieces of {piece}");
        if let Ok((_, (name, length, _))) = whole {
            assert!(name.chars().count() <= 255 && (1..=bytes.len() as u64).contains(&length));
        }
    });
}

/// What an upload takes from the form, in pieces of so many bytes; the code and the sentence of a refusal.
async fn read(bytes: &[u8], piece: usize) -> Result<(Option<u64>, Received), String> {
    let pieces: Vec<_> = bytes.chunks(piece).map(|piece| Ok::<_, Infallible>(Bytes::copy_from_slice(piece))).collect();
    let reading = Reading::default();
    let request = Request::post("/v1/files").header("content-type", "multipart/form-data; boundary=x");
    let request = request.body(form::bounded(Body::from_stream(stream::iter(pieces)), reading.clone()));
    let form = Multipart::from_request(request.expect("a request"), &()).await;
    let mut form = form.map_err(|error| error.to_string())?;
    let mut given = Form::default();
    loop {
        match given.next(&mut form, &reading).await.map_err(|refusal| format!("{refusal:?}"))? {
            Part::File(name, mut content) => {
                let mut file = Vec::new();
                while let Some(piece) = content.chunk().await.map_err(|error| format!("{:?}", not_read_on(error)))? {
                    file.extend_from_slice(&piece);
                }
                given.received(name, (file.len() as u64, Digest::of(&file)));
            }
            Part::Field => {}
            Part::End => return given.check().map_err(|refusal| format!("{refusal:?}")),
        }
    }
}

#[cfg(test)]
mod generated {
    use proptest::prelude::*;

    /// What forms are made of.
    const PIECES: [&str; 12] = [
        "--x\r\n",
        "--x--",
        "\r\n",
        "\n",
        "Content-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n",
        "Content-Disposition: form-data; name=\"file\"; filename=\"a.jsonl\"\r\n\r\nabc\r\n",
        "Content-Disposition: form-data; name=\"expires_after[anchor]\"\r\n\r\ncreated_at\r\n",
        "Content-Disposition: form-data; name=\"expires_after[seconds]\"\r\n\r\n3600\r\n",
        "Content-Type: text/plain\r\n",
        "name=",
        "\"",
        "-",
    ];

    proptest! {
        #[test]
        fn a_form_is_the_same_in_any_pieces(pieces in prop::collection::vec(prop::sample::select(&PIECES[..]), 0..12)) {
            super::multipart(pieces.concat().as_bytes());
        }
    }
}
