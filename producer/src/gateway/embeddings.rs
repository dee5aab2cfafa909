//! `POST /v1/embeddings`: as OpenAI's, with `instruction` beyond it.

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
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::auth::Caller;
use super::error::{ApiError, ErrorEnvelope};
use super::workers::AskError;
use super::{App, RequestId};
use crate::contract::{CONTRACT_VERSION, EMBED_INPUTS_MAX, EmbedAnswer, EmbedInput, EmbedRequest};

/// The body. A field that is not known is refused by name: a misspelt `dimensions` must not come back as full vectors.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = EmbeddingsRequest)]
pub(super) struct Body {
    /// What to embed: at most 2,048 inputs and 300,000 tokens.
    #[schema(value_type = Inputs)]
    input: Value,
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
    #[expect(dead_code, reason = "the field may be sent")]
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
    let body: Body = parsed(body, "a request for embeddings")?;
    if body.model != app.model {
        let sentence = format!("the model {} is not served here; {} is", printable(&body.model), app.model);
        return Err(ApiError::not_found("model_not_found", sentence));
    }
    let request = EmbedRequest {
        version: CONTRACT_VERSION,
        id,
        token: caller.token.to_string(),
        model: body.model,
        inputs: inputs(body.input)?,
        dimensions: body.dimensions,
        instruction: body.instruction,
        deadline_ms: deadline_ms(&app),
    };
    let entered = app.admission.enter().map_err(|wait| {
        let sentence = "more requests are under way than the workers answer in time; ask again";
        ApiError::unavailable("overloaded", sentence).after(wait)
    })?;
    let answer = app.workers.ask(&request).await.map_err(|error| {
        let code = match error {
            AskError::Away => "queue_unavailable",
            AskError::Full => "overloaded",
            AskError::Late => "timeout",
            AskError::Garbled => "worker_failed",
        };
        tracing::warn!(request = request.id, tenant = %caller.access.tenant(), code, "no answer from the workers");
        ApiError::unavailable(code, error.to_string())
    })?;
    match answer {
        EmbedAnswer::Refused(refusal) => Err(refusal.into()),
        EmbedAnswer::Embedded { tokens, dimensions, vectors } => {
            entered.answered();
            // OpenAI's SDK asks for base64 where the caller asks for nothing; who asks for nothing by hand reads numbers.
            let encoding = body.encoding_format.unwrap_or(Encoding::Float);
            let text = rendered(&app.model, &tokens, dimensions, &vectors, encoding);
            Ok(([(CONTENT_TYPE, "application/json")], text).into_response())
        }
    }
}

/// A JSON body, or what is wrong with it; `what` it should be.
pub(super) fn parsed<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>, what: &str) -> Result<T, ApiError> {
    let bytes = body.map_err(|rejection| match rejection.status().as_u16() {
        413 => ApiError::too_large(format!("the body may have {} bytes", super::BODY_LEN_MAX)),
        _ => ApiError::invalid("invalid_body", None, "the body could not be read"),
    })?;
    serde_json::from_slice(&bytes).map_err(|error| {
        // The library's words name fields and types, never values, once what it quotes of them is cut off.
        let told = error.to_string();
        let param = told.split('`').nth(1).filter(|_| told.contains("field")).map(str::to_owned);
        let sentence = format!("the body is not {what}: {}", unquoted(&told));
        ApiError::invalid("invalid_body", param.as_deref(), sentence)
    })
}

fn deadline_ms(app: &App) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from((now + app.answer_within).as_millis()).unwrap_or(u64::MAX)
}

/// A text, a list of texts, the token ids of one text, or a list of those.
fn inputs(input: Value) -> Result<Vec<EmbedInput>, ApiError> {
    let wrong = |at: &str, message: &str| ApiError::invalid("invalid_input", Some(at), message);
    let shape = "input must be a text, a list of texts, a list of token ids, or a list of lists of token ids";
    let list = match input {
        Value::String(text) => vec![Value::String(text)],
        Value::Array(list) if list.first().is_some_and(Value::is_number) => vec![Value::Array(list)],
        Value::Array(list) => list,
        _ => return Err(wrong("input", shape)),
    };
    if list.is_empty() || list.len() > EMBED_INPUTS_MAX {
        let sentence = format!("input must have 1 to {EMBED_INPUTS_MAX} entries, not {}", list.len());
        return Err(wrong("input", &sentence));
    }
    list.into_iter()
        .enumerate()
        .map(|(index, entry)| {
            let at = format!("input.{index}");
            match entry {
                Value::String(text) if text.is_empty() => Err(wrong(&at, "an input must not be empty")),
                Value::String(text) => Ok(EmbedInput::Text(text)),
                Value::Array(ids) if ids.is_empty() => Err(wrong(&at, "an input must not be empty")),
                Value::Array(ids) => {
                    let id = |id: Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
                    let ids = ids.into_iter().map(id).collect::<Option<Vec<_>>>();
                    ids.map(EmbedInput::Tokens).ok_or_else(|| wrong(&at, "token ids are whole numbers from 0 on"))
                }
                _ => Err(wrong(&at, shape)),
            }
        })
        .collect()
}

/// The answer, written out directly: as `serde_json` values, a thousand vectors of 2,560 numbers would take 200 MB.
fn rendered(model: &str, tokens: &[u32], dimensions: u32, vectors: &[u8], encoding: Encoding) -> String {
    let mut text = String::with_capacity(vectors.len() * if encoding == Encoding::Float { 4 } else { 2 } + 256);
    render(&mut text, model, tokens, dimensions, vectors, encoding);
    text
}

/// The same, appended to a text: a batch's lines have one each.
pub(super) fn render(
    text: &mut String,
    model: &str,
    tokens: &[u32],
    dimensions: u32,
    vectors: &[u8],
    encoding: Encoding,
) {
    text.push_str("{\"object\":\"list\",\"data\":[");
    for (index, vector) in vectors.chunks_exact(4 * dimensions as usize).enumerate() {
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
    let total: u64 = tokens.iter().map(|&tokens| u64::from(tokens)).sum();
    let model = serde_json::to_string(model).unwrap_or_default();
    let _ = write!(text, "],\"model\":{model},\"usage\":{{\"prompt_tokens\":{total},\"total_tokens\":{total}}}}}");
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
    use serde_json::json;

    fn read(input: Value) -> Result<Vec<EmbedInput>, String> {
        inputs(input).map_err(|error| format!("{error:?}"))
    }

    #[test]
    fn inputs_come_in_four_shapes() {
        let text = |text: &str| EmbedInput::Text(text.to_owned());
        assert!(read(json!("a")) == Ok(vec![text("a")]));
        assert!(read(json!(["a", "b"])) == Ok(vec![text("a"), text("b")]));
        assert!(read(json!([1, 2])) == Ok(vec![EmbedInput::Tokens(vec![1, 2])]));
        assert!(read(json!([[1], [2, 3]])) == Ok(vec![EmbedInput::Tokens(vec![1]), EmbedInput::Tokens(vec![2, 3])]));
        assert!(read(json!(["a", [1]])) == Ok(vec![text("a"), EmbedInput::Tokens(vec![1])]));
        for (wrong, at) in [
            (json!(""), "input.0"),
            (json!([]), "\"input\""),
            (json!(7), "\"input\""),
            (json!(null), "\"input\""),
            (json!({}), "\"input\""),
            (json!(["a", ""]), "input.1"),
            (json!([[]]), "input.0"),
            (json!([1, -1]), "input.0"),
            (json!([1, 1.5]), "input.0"),
            (json!([1, 4294967296_u64]), "input.0"),
            (json!(["a", null]), "input.1"),
            (json!(vec!["a"; 2049]), "\"input\""),
        ] {
            let told = read(wrong.clone()).err().expect("refused");
            assert!(told.contains(at), "{wrong}: {told}");
        }
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
