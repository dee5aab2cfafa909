//! A line of JSON: `{"id", "text"}`, a string, or a line of an OpenAI batch file.

use std::borrow::Cow;

use serde::de::DeserializeSeed;

use super::{
    BadRow, ReadOptions, Row,
    check::{self, utf8},
    json_value::{Keep, Value},
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
        let names = [&options.id_field, &options.text_field, "custom_id", "method", "url", "body"];
        match self.parse(line, Keep { names: &names, inner: Some((BODY, &BODY_FIELDS)) })? {
            Value::Text(text) => check::row(number, number.to_string().into(), text, options),
            Value::Object(fields) => match *fields {
                [_, None, None, _, _, None] => self.bad(
                    "no_text",
                    format!("there is no field {:?}: add it, or name another with --text-field", options.text_field),
                ),
                [_, None, custom_id, method, url, body] => self.batch(custom_id, method, url, body),
                [id, Some(text), ..] => self.plain(id, text),
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

    fn plain(self, id: Option<Value<'_>>, text: Value<'_>) -> Result<Row, BadRow> {
        let id = self.id(&self.options.id_field, id)?;
        match text {
            Value::Text(text) => check::row(self.number, id, text, self.options),
            other => {
                let field = &self.options.text_field;
                self.bad("bad_json", format!("{field} is {}: make it a string, or drop the row", other.kind()))
            }
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
        check::row(self.number, id, self.input(input)?, self.options)
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
            (None | Some(Value::Null), _) => Ok(()),
            (Some(Value::Unsigned(asked)), Some(ours)) if asked == u64::from(ours) => Ok(()),
            (_, Some(ours)) => self.bad("wrong_dimensions", format!("body.dimensions must be the job's, {ours}")),
            _ => self.bad("wrong_dimensions", "body.dimensions must be left out, or given to the job too"),
        }
    }

    /// A batch line's `input`: one text, bare or as the only item of an array.
    fn input<'de>(self, input: Option<Value<'de>>) -> Result<Cow<'de, str>, BadRow> {
        let item = match input {
            Some(Value::Array { len: 2.., first: Some(first) }) if matches!(*first, Value::Text(_)) => {
                return self
                    .bad("several_inputs", "input has several texts: give each a line and a custom_id of its own");
            }
            Some(Value::Array { first, .. }) => first.map(|first| *first),
            other => other,
        };
        match item {
            None => self.bad("no_text", "body.input is missing or an empty array: it must be one text"),
            Some(Value::Unsigned(_) | Value::Array { .. }) => {
                self.bad("bad_input", "body.input holds token ids: send the text that they stand for")
            }
            Some(Value::Text(text)) => Ok(text),
            Some(other) => self.bad("bad_input", format!("body.input is {}: it must be one text", other.kind())),
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
