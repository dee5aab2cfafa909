//! A line of JSON: `{"id", "text"}` or `{"id", "input"}` with a text or token ids, a string, or a line of an OpenAI batch file.

use std::borrow::Cow;

use serde::de::DeserializeSeed;

use super::{
    BadRow, ReadOptions, Row,
    check::{self, utf8},
    json_value::{Keep, Value},
    options::{INPUT_FIELD, TEXT_FIELD},
};

/// The one endpoint of a batch file that makes vectors.
const BATCH_URL: &str = "/v1/embeddings";
/// Fields of a batch line's `body`. `instruction` is this service's own; a job has one for all its rows.
const BODY_FIELDS: [&str; 4] = ["input", "model", "dimensions", "instruction"];
/// The place of `body` among the fields of a line.
const BODY: usize = 5;

/// Makes a row of a line; `None` for a blank one.
pub(super) fn row(number: u64, line: &[u8], options: &ReadOptions) -> Option<Result<Row, BadRow>> {
    (!line.trim_ascii().is_empty()).then(|| Line { number, options }.row(line))
}

/// Where a line stands and what it must keep to.
#[derive(Clone, Copy)]
struct Line<'a> {
    number: u64,
    options: &'a ReadOptions,
}

impl Line<'_> {
    fn bad<T>(self, code: &'static str, reason: impl Into<String>) -> Result<T, BadRow> {
        Err(BadRow::new(self.number, code, reason))
    }

    fn row(self, line: &[u8]) -> Result<Row, BadRow> {
        let Self { number, options } = self;
        let line = utf8(number, "line", line)?;
        let names = [&options.id_field, &options.text_field, "custom_id", "method", "url", "body", INPUT_FIELD];
        // A name that somebody asked for has no stand-in.
        let names = if options.text_field == TEXT_FIELD { &names[..] } else { &names[..names.len() - 1] };
        match self.parse(line, Keep { names, inner: Some((BODY, &BODY_FIELDS)) })? {
            Value::Text(text) => check::row(number, number.to_string().into(), text, options),
            Value::Object(fields) => match *fields {
                [id, Some(text), ..] => self.plain(id, &options.text_field, text),
                [id, None, None, _, _, None, Some(input)] => self.plain(id, INPUT_FIELD, input),
                [_, None, None, _, _, None, None] => self.bad(
                    "no_text",
                    format!("there is no field {:?}: add it, or name another with --text-field", options.text_field),
                ),
                [_, None, custom_id, method, url, body, _] => self.batch(custom_id, method, url, body),
            },
            other => self.bad(
                "bad_json",
                format!("the line is {}: write an object with id and text, or a string", other.kind()),
            ),
        }
    }

    fn parse<'de>(self, line: &'de str, keep: Keep<'_>) -> Result<Value<'de>, BadRow> {
        let mut json = serde_json::Deserializer::from_str(line);
        let value = keep.deserialize(&mut json).and_then(|value| json.end().map(|()| value));
        value.map_err(|error| {
            let message = error.to_string();
            // Without serde_json's own line, which is always 1. Its messages never quote the input.
            let message = message.split(" at line ").next().unwrap_or_default();
            let place = format!("line {}, column {}", self.number, error.column());
            BadRow::new(self.number, "bad_json", format!("the line is not JSON that can be used ({place}): {message}"))
        })
    }

    fn plain(self, id: Option<Value<'_>>, field: &str, text: Value<'_>) -> Result<Row, BadRow> {
        let id = self.id(&self.options.id_field, id)?;
        match text {
            Value::Text(text) => check::row(self.number, id, text, self.options),
            Value::Array { tokens: Some(tokens), .. } => check::token_row(self.number, id, tokens, self.options),
            Value::Array { .. } => Err(check::not_token_ids(self.number, field)),
            other => self.bad(
                "bad_json",
                format!("{field} is {}: make it a string or a list of token ids, or drop the row", other.kind()),
            ),
        }
    }

    fn batch(
        self,
        custom_id: Option<Value<'_>>,
        method: Option<Value<'_>>,
        url: Option<Value<'_>>,
        body: Option<Value<'_>>,
    ) -> Result<Row, BadRow> {
        let id = self.id("custom_id", custom_id)?;
        if !method.is_none_or(|method| is(&method, "POST")) {
            return self.bad("wrong_method", "method must be \"POST\"");
        }
        if !url.is_none_or(|url| is(&url, BATCH_URL)) {
            return self.bad("wrong_url", format!("url must be {BATCH_URL:?}: nothing else is computed here"));
        }
        let body = match body {
            Some(Value::Object(body)) => body,
            None => return self.bad("no_text", "the batch line has no body: its input is the text"),
            Some(_) => return self.bad("bad_input", "body must be an object with the field input"),
        };
        let [input, model, dimensions, instruction, ..] = *body;
        self.same_model(model)?;
        self.same_dimensions(dimensions)?;
        if !matches!(instruction, None | Some(Value::Null)) {
            return self.bad("wrong_instruction", "an instruction counts for a whole job: give it to the job");
        }
        self.input(id, input)
    }

    fn same_model(self, model: Option<Value<'_>>) -> Result<(), BadRow> {
        match (model, &self.options.model) {
            (None | Some(Value::Null), _) | (Some(Value::Text(_)), None) => Ok(()),
            (Some(named), Some(model)) if is(&named, model) => Ok(()),
            (_, Some(model)) => self.bad("wrong_model", format!("body.model must be the job's, {model:?}")),
            _ => self.bad("wrong_model", "body.model must be a string"),
        }
    }

    fn same_dimensions(self, dimensions: Option<Value<'_>>) -> Result<(), BadRow> {
        match (dimensions, self.options.dimensions) {
            (None | Some(Value::Null), Some(ours)) if self.options.dimensions_in_every_line => self.bad(
                "wrong_dimensions",
                format!("body.dimensions is missing where other lines have {ours}: a job has one length of vectors"),
            ),
            (None | Some(Value::Null), _) => Ok(()),
            (Some(Value::Unsigned(asked)), Some(ours)) if asked == u64::from(ours) => Ok(()),
            (_, Some(ours)) => self.bad("wrong_dimensions", format!("body.dimensions must be the job's, {ours}")),
            _ => self.bad("wrong_dimensions", "body.dimensions must be left out, or given to the job too"),
        }
    }

    /// A batch line's `input`: one text as a string or as token ids, bare or as the only item of an array.
    fn input(self, id: Cow<'_, str>, input: Option<Value<'_>>) -> Result<Row, BadRow> {
        let item = match input {
            Some(Value::Array { len: 2.., first: Some(first), .. })
                if matches!(*first, Value::Text(_) | Value::Array { .. }) =>
            {
                return self
                    .bad("several_inputs", "input has several texts: give each a line and a custom_id of its own");
            }
            Some(Value::Array { len: 1, first: Some(first), .. })
                if matches!(*first, Value::Text(_) | Value::Array { .. }) =>
            {
                Some(*first)
            }
            other => other,
        };
        match item {
            None | Some(Value::Array { len: 0, .. }) => {
                self.bad("no_text", "body.input is missing or an empty array: it must be one text")
            }
            Some(Value::Text(text)) => check::row(self.number, id, text, self.options),
            Some(Value::Array { tokens: Some(tokens), .. }) => check::token_row(self.number, id, tokens, self.options),
            Some(Value::Array { .. }) => Err(check::not_token_ids(self.number, "body.input")),
            Some(other) => {
                self.bad("bad_input", format!("body.input is {}: it must be one text, or its token ids", other.kind()))
            }
        }
    }

    fn id<'de>(self, field: &str, id: Option<Value<'de>>) -> Result<Cow<'de, str>, BadRow> {
        let Some(id) = id else { return Ok(self.number.to_string().into()) };
        match id {
            Value::Text(id) => Ok(id),
            Value::Unsigned(id) => Ok(id.to_string().into()),
            Value::Signed(id) => Ok(id.to_string().into()),
            Value::Null => self.bad("bad_id", format!("{field} is null: give it a value, or leave the field out")),
            other => self.bad("bad_id", format!("{field} is {}: make it a string or an integer", other.kind())),
        }
    }
}

fn is(value: &Value<'_>, expected: &str) -> bool {
    matches!(value, Value::Text(text) if text == expected)
}
