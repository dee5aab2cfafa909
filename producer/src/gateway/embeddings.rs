//! `POST /v1/embeddings`: as OpenAI's, with `instruction` beyond it.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::Caller;
use super::error::{ApiError, ErrorEnvelope};
use super::workers::{AskError, Question, left};
use super::{App, RequestId};
use crate::contract::{
    CONTRACT_VERSION, EmbedAnswer, EmbedInput, EmbedInputs, EmbedRequest, INSTRUCTION_BYTES_MAX, embed_cost,
};
use crate::shares::Share;

/// A body that is read where it stands: it takes less than the two changes of thread.
const SMALL_BYTES: usize = 64 << 10;
/// Vectors that are written out at once: a millisecond or two.
const WHOLE_BYTES: usize = 64 << 10;
/// Most of a library's sentence that is passed on.
const SENTENCE_BYTES: usize = 400;
/// Longest name of a user, which is not used.
const USER_BYTES_MAX: usize = 1024;

/// The body. A field that is not known is refused by name: a misspelt `dimensions` must not come back as full vectors.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = EmbeddingsRequest)]
pub(super) struct Body {
    /// What to embed: at most 2,048 inputs and 300,000 tokens.
    #[schema(value_type = Inputs)]
    input: EmbedInputs,
    /// The model that is served; `GET /v1/models` names it.
    model: String,
    /// Length of each vector, from 32 to the model's own, which it is where this is left out.
    #[schema(minimum = 32)]
    dimensions: Option<u32>,
    /// `float` where it is left out.
    encoding_format: Option<Encoding>,
    /// The task of Qwen3's query prompt; not OpenAI's.
    instruction: Option<String>,
    /// Taken and not used, as by OpenAI's own models.
    user: Option<String>,
}

/// How a vector is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = EncodingFormat)]
pub(super) enum Encoding {
    /// Numbers.
    Float,
    /// Little-endian 32-bit floats, one after the other.
    Base64,
}

/// What may stand as `input`; for the description only.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "the shapes are read by hand, for errors that say which entry is wrong")]
pub(super) enum Inputs {
    /// A text, not empty.
    Text(String),
    /// Texts.
    Texts(Vec<String>),
    /// The token ids of one text.
    Tokens(Vec<u32>),
    /// The token ids of several texts.
    TokenLists(Vec<Vec<u32>>),
}

/// The answer; for the description only.
#[derive(ToSchema)]
#[schema(as = EmbeddingsAnswer)]
#[expect(dead_code, reason = "it is written out by hand, for its size")]
pub(super) struct Answer {
    /// `list`.
    object: String,
    /// A vector for each input, in their order.
    data: Vec<Embedding>,
    /// The model.
    model: String,
    /// What it cost.
    usage: Usage,
}

/// A vector.
#[derive(ToSchema)]
#[expect(dead_code, reason = "see `Answer`")]
pub(super) struct Embedding {
    /// `embedding`.
    object: String,
    /// Which input.
    index: u32,
    /// The vector.
    embedding: Vector,
}

/// In the encoding asked for.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "see `Answer`")]
pub(super) enum Vector {
    /// Numbers.
    Float(Vec<f32>),
    /// Base64 of little-endian 32-bit floats.
    Base64(String),
}

/// Exact tokens.
#[derive(ToSchema)]
#[expect(dead_code, reason = "see `Answer`")]
pub(super) struct Usage {
    /// Tokens of all inputs.
    prompt_tokens: u64,
    /// The same: there is no output.
    total_tokens: u64,
}

/// Vectors for some texts, at once.
#[utoipa::path(
    post,
    path = "/v1/embeddings",
    request_body = Body,
    responses(
        (status = 200, description = "The vectors", body = Answer),
        (status = 400, response = ErrorEnvelope),
        (status = 404, response = ErrorEnvelope),
        (status = 413, response = ErrorEnvelope),
    ),
)]
pub(super) async fn embeddings(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Extension(RequestId(id)): Extension<RequestId>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let deadline_ms = deadline_ms(&app);
    let asked = elsewhere(body.as_ref().map_or(0, Bytes::len), move || read(body)).await??;
    if asked.model != app.model {
        let sentence = format!("the model {} is not served here; {} is", printable(&asked.model), app.model);
        return Err(ApiError::not_found("model_not_found", sentence));
    }
    let token = app.embed_token(&caller).await?;
    let tenant = caller.access.tenant();
    let (inputs, encoding) = (asked.inputs.len() as u64, asked.encoding);
    let dimensions = asked.dimensions.unwrap_or(app.model_dimensions).min(app.model_dimensions);
    // For the answer, which may be longer than the question.
    let memory = app.bodies.reserve(tenant.as_str(), inputs * 4 * u64::from(dimensions))?;
    let cost = embed_cost(&asked.inputs, asked.instruction.as_deref());
    // What goes with it is good no longer.
    let deadline_ms = deadline_ms.min(token.expires_at.saturating_mul(1000));
    let request = EmbedRequest {
        version: CONTRACT_VERSION,
        id: id.clone(),
        token: token.token.to_string(),
        model: asked.model,
        inputs: asked.inputs,
        dimensions: asked.dimensions,
        instruction: asked.instruction,
        deadline_ms,
    };
    let bytes = elsewhere(asked.bytes, move || request.to_bytes()).await?;
    let entering = tokio::time::timeout(left(deadline_ms), app.admission.enter(tenant.as_str(), cost));
    let late = || ApiError::unavailable("timeout", AskError::Late.to_string());
    let entered = entering.await.map_err(|_| late())?.map_err(|wait| {
        let sentence = "more requests of this tenant are under way than the workers answer in time; ask again";
        ApiError::unavailable("overloaded", sentence).after(wait)
    })?;
    let answer = app.workers.ask(Question { id: id.clone(), deadline_ms, bytes }).await.map_err(|error| {
        let code = match error {
            AskError::Away => "queue_unavailable",
            AskError::Full => "overloaded",
            AskError::Late => "timeout",
            AskError::Garbled => "worker_failed",
        };
        tracing::warn!(request = id, %tenant, code, "no answer from the workers");
        ApiError::unavailable(code, error.to_string())
    })?;
    match answer {
        EmbedAnswer::Refused(refusal) => Err(refusal.into()),
        EmbedAnswer::Embedded { tokens, dimensions, vectors } => {
            entered.answered();
            let answer = Vectors { model: app.model.clone(), tokens, dimensions, vectors, encoding };
            Ok(([(CONTENT_TYPE, "application/json")], answer.into_body(memory)).into_response())
        }
    }
}

/// A body that was read and is within its bounds, but for its model.
struct Asked {
    model: String,
    inputs: Vec<EmbedInput>,
    dimensions: Option<u32>,
    instruction: Option<String>,
    encoding: Encoding,
    /// Length of the body.
    bytes: usize,
}

/// Reads the body. It costs time in proportion to it, and memory.
fn read(body: Result<Bytes, BytesRejection>) -> Result<Asked, ApiError> {
    let bytes = body.as_ref().map_or(0, Bytes::len);
    let Body { input, model, dimensions, encoding_format, instruction, user } =
        parsed(body, "a request for embeddings")?;
    let long = |param: &str, most: usize| {
        ApiError::invalid("invalid_body", Some(param), format!("{param} may have {most} bytes"))
    };
    if instruction.as_ref().is_some_and(|text| text.len() > INSTRUCTION_BYTES_MAX) {
        return Err(long("instruction", INSTRUCTION_BYTES_MAX));
    }
    if user.is_some_and(|user| user.len() > USER_BYTES_MAX) {
        return Err(long("user", USER_BYTES_MAX));
    }
    // OpenAI's SDK asks for base64 where the caller asks for nothing; who asks for nothing by hand reads numbers.
    let encoding = encoding_format.unwrap_or(Encoding::Float);
    Ok(Asked { model, inputs: input.checked()?, dimensions, instruction, encoding, bytes })
}

/// Does what takes time in proportion to so many bytes: here and now if they are few, off the runtime's threads otherwise.
async fn elsewhere<T: Send + 'static>(bytes: usize, work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    if bytes <= SMALL_BYTES {
        return Ok(work());
    }
    let failed = |_| ApiError::internal("gateway_failed", "the gateway failed on this request");
    tokio::task::spawn_blocking(work).await.map_err(failed)
}

/// A JSON body, or what is wrong with it; `what` it should be.
pub(super) fn parsed<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>, what: &str) -> Result<T, ApiError> {
    let bytes = body.map_err(|rejection| match rejection.status().as_u16() {
        413 => ApiError::too_large(format!("the body may have {} bytes", super::BODY_LEN_MAX)),
        _ => ApiError::invalid("invalid_body", None, "the body could not be read"),
    })?;
    serde_json::from_slice(&bytes).map_err(|error| {
        // The library's words name fields and types, never values, once what it quotes of them is cut off.
        let told = beginning(&error);
        let param = told.split('`').nth(1).filter(|_| told.contains("field")).map(printable);
        let sentence = format!("the body is not {what}: {}", unquoted(&told));
        ApiError::invalid("invalid_body", param.as_deref(), sentence)
    })
}

fn deadline_ms(app: &App) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from((now + app.answer_within).as_millis()).unwrap_or(u64::MAX)
}

/// The answer, written out directly: as `serde_json` values, a thousand vectors of 2,560 numbers would take 200 MB.
struct Vectors {
    model: String,
    tokens: Vec<u32>,
    dimensions: u32,
    vectors: Vec<u8>,
    encoding: Encoding,
}

impl Vectors {
    /// The answer's body: a short one whole, a long one in pieces, each written out when the one before is on its way. Their text
    /// is four times as long as they are.
    fn into_body(self, memory: Share) -> axum::body::Body {
        if self.vectors.len() <= WHOLE_BYTES {
            let mut text = String::with_capacity(self.vectors.len() * 4 + 256);
            render(&mut text, &self.model, &self.tokens, self.dimensions, &self.vectors, self.encoding);
            return text.into();
        }
        let length = 4 * self.dimensions.max(1) as usize;
        let count = (WHOLE_BYTES / length).max(1);
        // The memory is given back with the last piece.
        let pieces = stream::unfold((self, memory, 0), move |(answer, memory, first)| async move {
            let all = answer.vectors.len() / length;
            if first > all {
                return None;
            }
            let mut text = String::with_capacity(count * length * 4 + 256);
            if first == 0 {
                text.push_str(HEAD);
            }
            let end = (first + count).min(all);
            let piece = &answer.vectors[first * length..end * length];
            render_entries(&mut text, answer.dimensions, piece, first, answer.encoding);
            if end == all {
                render_tail(&mut text, &answer.model, &answer.tokens);
            }
            let next = if end == all { all + 1 } else { end };
            Some((Ok::<_, Infallible>(text), (answer, memory, next)))
        });
        axum::body::Body::from_stream(pieces)
    }
}

const HEAD: &str = "{\"object\":\"list\",\"data\":[";

/// The same, appended to a text: a batch's lines have one each.
pub(super) fn render(
    text: &mut String,
    model: &str,
    tokens: &[u32],
    dimensions: u32,
    vectors: &[u8],
    encoding: Encoding,
) {
    text.push_str(HEAD);
    render_entries(text, dimensions, vectors, 0, encoding);
    render_tail(text, model, tokens);
}

/// Some of the vectors, of which the first has this index.
fn render_entries(text: &mut String, dimensions: u32, vectors: &[u8], first: usize, encoding: Encoding) {
    for (index, vector) in (first..).zip(vectors.chunks_exact(4 * dimensions.max(1) as usize)) {
        let comma = if index == 0 { "" } else { "," };
        // Writing to a string can't fail.
        let _ = write!(text, "{comma}{{\"object\":\"embedding\",\"index\":{index},\"embedding\":");
        match encoding {
            Encoding::Base64 => {
                text.push('"');
                STANDARD.encode_string(vector, text);
                text.push('"');
            }
            Encoding::Float => {
                for (place, value) in vector.chunks_exact(4).enumerate() {
                    text.push(if place == 0 { '[' } else { ',' });
                    let value = f32::from_le_bytes([value[0], value[1], value[2], value[3]]);
                    // The shortest digits that read back as the same f32.
                    let _ = write!(text, "{value:?}");
                }
                text.push(']');
            }
        }
        text.push('}');
    }
}

fn render_tail(text: &mut String, model: &str, tokens: &[u32]) {
    let total: u64 = tokens.iter().map(|&tokens| u64::from(tokens)).sum();
    let model = serde_json::to_string(model).unwrap_or_default();
    let _ = write!(text, "],\"model\":{model},\"usage\":{{\"prompt_tokens\":{total},\"total_tokens\":{total}}}}}");
}

/// A library's sentence, as far as anybody reads it: it may hold a field's name as long as the body.
fn beginning(error: &serde_json::Error) -> String {
    struct Short(String);
    impl std::fmt::Write for Short {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            let room = SENTENCE_BYTES.saturating_sub(self.0.len());
            self.0.push_str(&text[..text.floor_char_boundary(room)]);
            if text.len() > room { Err(std::fmt::Error) } else { Ok(()) }
        }
    }
    let mut short = Short(String::new());
    // An error is where it ends.
    let _ = write!(short, "{error}");
    short.0
}

/// A library's sentence without what it quotes of the caller's text.
fn unquoted(sentence: &str) -> String {
    sentence.split('"').step_by(2).collect::<Vec<_>>().join("..")
}

/// A name for a sentence: of a bounded length, nothing that a terminal would take for a command.
pub(super) fn printable(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn every_field_has_a_bound_and_the_refusal_names_it() {
        let with = |name: &str, value: Value| {
            let mut body = json!({"input": "a", "model": "m"});
            body[name] = value;
            read(Ok(body.to_string().into())).err().map(|error| format!("{error:?}"))
        };
        assert_eq!(with("user", json!("u".repeat(USER_BYTES_MAX))), None);
        for (name, value, told) in [
            ("user", json!("u".repeat(USER_BYTES_MAX + 1)), "user may have"),
            ("instruction", json!("i".repeat(INSTRUCTION_BYTES_MAX + 1)), "instruction may have"),
            ("input", json!(["a", 7]), "input.1"),
            (&"long".repeat(100_000), json!(1), "unknown field"),
        ] {
            let refused = with(name, value).expect("refused");
            assert!(refused.contains(told) && refused.len() < 1000, "{}", &refused[..refused.len().min(1000)]);
        }
    }

    #[tokio::test]
    async fn a_long_answer_comes_in_pieces_and_is_the_same() {
        let (dimensions, count) = (1000_u32, 70);
        let values = (0..dimensions * count).map(|value| value as f32 / 7.0);
        let vectors: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
        let memory = crate::shares::Shares::new(10);
        for encoding in [Encoding::Float, Encoding::Base64] {
            let share = memory.take("a", 7).expect("room");
            let tokens = vec![3; count as usize];
            let whole = rendered("m", &tokens, dimensions, &vectors, encoding);
            let answer = Vectors { model: "m".to_owned(), tokens, dimensions, vectors: vectors.clone(), encoding };
            assert!(answer.vectors.len() > WHOLE_BYTES);
            let body = answer.into_body(share);
            assert_eq!(memory.used(), 7, "until it is sent");
            let sent = axum::body::to_bytes(body, usize::MAX).await.expect("a body");
            assert!(sent == whole.as_bytes());
            assert_eq!(memory.used(), 0);
        }
    }

    fn rendered(model: &str, tokens: &[u32], dimensions: u32, vectors: &[u8], encoding: Encoding) -> String {
        let mut text = String::new();
        render(&mut text, model, tokens, dimensions, vectors, encoding);
        text
    }

    #[test]
    fn floats_and_base64_are_the_same_values() {
        let values = [[1.0_f32, -0.1], [f32::MIN_POSITIVE, 0.333_333_34]];
        let bytes: Vec<u8> = values.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
        let parse = |encoding| -> Value {
            serde_json::from_str(&rendered("m/\"x", &[2, 3], 2, &bytes, encoding)).expect("JSON")
        };
        let floats = parse(Encoding::Float);
        assert_eq!((&floats["object"], &floats["model"]), (&json!("list"), &json!("m/\"x")));
        assert_eq!(floats["usage"], json!({"prompt_tokens": 5, "total_tokens": 5}));
        for (index, vector) in values.iter().enumerate() {
            assert_eq!(floats["data"][index]["index"], index);
            let read: Vec<f32> = serde_json::from_value(floats["data"][index]["embedding"].clone()).expect("floats");
            assert_eq!(read, vector);
        }
        let coded = parse(Encoding::Base64);
        let read = STANDARD.decode(coded["data"][1]["embedding"].as_str().expect("text")).expect("base64");
        assert_eq!(read, bytes[8..]);
    }
}
