//! JSON lines: `{"id": .., "text": ..}`, OpenAI batch lines, or plain strings.

use std::{fmt, io::Read};

use serde::{
    Deserialize,
    de::{Deserializer, IgnoredAny, MapAccess, Visitor},
};

use super::{
    BadRow, ReadOptions, Row, Rows,
    batch_line::{self, Body},
    check_row,
    lines::each_line,
};

/// Rows of JSON lines.
pub(super) fn rows(input: Box<dyn Read + Send>, options: &ReadOptions) -> Rows {
    let options = options.clone();
    each_line(input, move |line, text| parse(line, text, &options))
}

fn parse(line: u64, text: &str, options: &ReadOptions) -> Result<Row, BadRow> {
    let bad_json = |error: serde_json::Error| {
        // serde_json's words name types and places, and for a wrong type the value: keep the place only.
        let what = if error.is_data() { "has a field of a wrong type" } else { "is not valid JSON" };
        BadRow::new(line, "bad_json", format!("the line {what} (column {})", error.column()))
    };
    let first = text.trim_start().as_bytes().first();
    if first == Some(&b'"') {
        return check_row(line, None, serde_json::from_str(text).map_err(bad_json)?, options);
    }
    if first != Some(&b'{') {
        let reason = "the line is neither a JSON object nor a string: write {\"id\": .., \"text\": ..}";
        return Err(BadRow::new(line, "bad_json", reason));
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let fields = deserializer.deserialize_map(Fields { options }).map_err(bad_json)?;
    deserializer.end().map_err(bad_json)?;
    match fields {
        Object { text: Some(text), id, .. } => check_row(line, id.map(Id::into_string), text, options),
        Object { body: Some(body), custom_id, url, method, .. } => {
            batch_line::check(line, method.as_deref(), url.as_deref(), &body, options)?;
            let text = body.into_text(line)?;
            check_row(line, custom_id, text, options)
        }
        _ => {
            let reason = format!("the object has neither {:?} nor an OpenAI batch line's \"body\"", options.text_field);
            Err(BadRow::new(line, "no_text", reason))
        }
    }
}

/// An id may be written as a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Id {
    Text(String),
    Number(i64),
    Natural(u64),
}

impl Id {
    fn into_string(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Number(number) => number.to_string(),
            Self::Natural(number) => number.to_string(),
        }
    }
}

/// What is read of an object; other fields are passed over without being built.
#[derive(Default)]
struct Object {
    id: Option<Id>,
    text: Option<String>,
    custom_id: Option<String>,
    method: Option<String>,
    url: Option<String>,
    body: Option<Body>,
}

struct Fields<'a> {
    options: &'a ReadOptions,
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Object, M::Error> {
        let mut object = Object::default();
        while let Some(name) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            match name.as_ref() {
                name if name == self.options.id_field => object.id = map.next_value()?,
                name if name == self.options.text_field => object.text = Some(map.next_value()?),
                "custom_id" => object.custom_id = map.next_value()?,
                "method" => object.method = map.next_value()?,
                "url" => object.url = map.next_value()?,
                "body" => object.body = Some(map.next_value()?),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(object)
    }
}
