//! OpenAI's batch lines: `{"custom_id": .., "method": "POST", "url": "/v1/embeddings", "body": {"input": ..}}`.

use serde::Deserialize;

use super::{BadRow, ReadOptions};

/// The request in a line. Fields that don't change a vector are passed over.
#[derive(Deserialize)]
pub(super) struct Body {
    input: Input,
    model: Option<String>,
    dimensions: Option<u32>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Input {
    Text(String),
    Texts(Vec<String>),
    Other(serde::de::IgnoredAny),
}

impl Body {
    /// The one text of the line.
    pub(super) fn into_text(self, line: u64) -> Result<String, BadRow> {
        match self.input {
            Input::Text(text) => Ok(text),
            Input::Texts(mut texts) if texts.len() == 1 => Ok(texts.remove(0)),
            Input::Texts(texts) => {
                let reason =
                    format!("the line's body has {} inputs: give each a line with a custom_id of its own", texts.len());
                Err(BadRow::new(line, "several_inputs", reason))
            }
            Input::Other(_) => Err(BadRow::new(
                line,
                "bad_input",
                "the body's input is not a text: token ids can't be submitted in bulk",
            )),
        }
    }
}

/// Checks that the line asks for what the job gives.
pub(super) fn check(
    line: u64,
    method: Option<&str>,
    url: Option<&str>,
    body: &Body,
    options: &ReadOptions,
) -> Result<(), BadRow> {
    if method.is_some_and(|method| method != "POST") {
        return Err(BadRow::new(line, "wrong_method", "the line's method must be POST"));
    }
    if url.is_some_and(|url| url != "/v1/embeddings") {
        return Err(BadRow::new(
            line,
            "wrong_url",
            "the line's url must be /v1/embeddings: other requests can't be embedded",
        ));
    }
    if let (Some(wanted), Some(given)) = (body.dimensions, options.dimensions)
        && wanted != given
    {
        let reason = format!(
            "the line asks for {wanted} dimensions, the job gives {given}: submit it with --dimensions {wanted}"
        );
        return Err(BadRow::new(line, "wrong_dimensions", reason));
    }
    if let (Some(wanted), Some(given)) = (&body.model, &options.model)
        && wanted != given
    {
        let reason = format!("the line asks for another model than the job's, {given}: submit it in a job of its own");
        return Err(BadRow::new(line, "wrong_model", reason));
    }
    Ok(())
}
