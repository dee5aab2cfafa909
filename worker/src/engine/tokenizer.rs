//! Text to token ids, as Qwen3-Embedding wants them: the end token last, because that is the position that is pooled.
//! A text may also come as ids; then only what is around them is added.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use tokenizers::processors::template::TemplateProcessing;
use vecmill_producer::contract::{RowInput, Truncate};

use super::config::Config;
use super::{LoadError, TokenizeError};

/// The token that ends every text and whose hidden state is the text's. (Not `<|im_end|>`, which ends a chat turn.)
pub const END_TOKEN: &str = "<|endoftext|>";

/// A text of more than this times `tokens_max` bytes is refused, or cut there, without being tokenized, so that a huge
/// text costs nothing. English has 4 to 5 bytes a token and no script of the Qwen3 vocabulary comes near 32 on average; a text can
/// pass it and yet fit only if it is mostly runs of blanks.
pub const TEXT_BYTES_PER_TOKEN_MAX: usize = 32;

/// What is to be embedded.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    /// A text.
    Text(&'a str),
    /// A text's token ids, with or without the end token.
    Tokens(&'a [u32]),
}

impl<'a> From<&'a str> for Input<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a RowInput> for Input<'a> {
    fn from(input: &'a RowInput) -> Self {
        match input {
            RowInput::Text(text) => Self::Text(text),
            RowInput::Tokens(tokens) => Self::Tokens(tokens),
        }
    }
}

/// Token ids for the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The ids; the last is the end token.
    pub ids: Vec<u32>,
    /// Whether the text's end was cut off.
    pub truncated: bool,
}

/// Qwen3's tokenizer. Cheap to clone; any thread may use it.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    end_token: u32,
    tokens_max: usize,
    vocab: usize,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, for the longest text and the ids that the model knows, `config.json` of a model
    /// folder.
    ///
    /// # Errors
    /// A file is absent or malformed, or [`Self::from_file`] fails.
    pub fn load(dir: &Path) -> Result<Self, LoadError> {
        let config = Config::load(&dir.join("config.json"))?;
        let tokenizer = Self::from_file(&dir.join("tokenizer.json"), END_TOKEN, config.tokens_max())?;
        Ok(Self { vocab: config.vocab_size, ..tokenizer })
    }

    /// Reads one `tokenizer.json`. The chat model's is accepted too: it does not append the end token, so that is set on
    /// top. Truncation and padding that the file asks for are switched off: the first would drop text in silence, the
    /// second would put the end token (which is also the pad token) where it does not belong.
    ///
    /// # Errors
    /// The file can't be read or parsed, lacks `end_token`, or a probe text still does not end in `end_token`.
    pub fn from_file(path: &Path, end_token: &str, tokens_max: usize) -> Result<Self, LoadError> {
        let refuse = |reason: String| LoadError::Tokenizer { path: path.to_owned(), reason };
        let bytes = std::fs::read(path).map_err(LoadError::read(path))?;
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| refuse(error.to_string()))?;
        let end_id = inner.token_to_id(end_token).ok_or_else(|| refuse(format!("has no token {end_token}")))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| refuse(error.to_string()))?;
        // A text is data. One that spells "<|endoftext|>" or "<|im_start|>" is about those words and gets the tokens of
        // its letters, not control tokens.
        inner.set_encode_special_tokens(true);

        if !ends_once(&inner, end_id).map_err(|error| refuse(error.to_string()))? {
            let template = TemplateProcessing::builder()
                .try_single(format!("$A {end_token}"))
                .map_err(&refuse)?
                .special_tokens(vec![(end_token, end_id)])
                .build()
                .map_err(|error| refuse(error.to_string()))?;
            inner.with_post_processor(Some(template));
            if !ends_once(&inner, end_id).map_err(|error| refuse(error.to_string()))? {
                return Err(refuse(format!("does not end a probe text in {end_token}")));
            }
        }
        let vocab = inner.get_vocab_size(true);
        Ok(Self { inner: Arc::new(inner), end_token: end_id, tokens_max, vocab })
    }

    /// The id of [`END_TOKEN`], which is the last of every encoded text.
    pub fn end_token(&self) -> u32 {
        self.end_token
    }

    /// The most tokens a text may have, its instruction and the end token included.
    pub fn tokens_max(&self) -> usize {
        self.tokens_max
    }

    /// Ids that the model knows are below this.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// [`Self::encode_input`] of a text that is not to be cut.
    ///
    /// # Errors
    /// The text is empty or too long, or the tokenizer fails. Nothing is ever cut off.
    pub fn encode(&self, text: &str, instruction: Option<&str>) -> Result<Vec<u32>, TokenizeError> {
        self.encode_input(Input::Text(text), instruction, Truncate::None).map(|encoded| encoded.ids)
    }

    /// Encodes a document (`instruction` is `None`) or a query: `Instruct: {instruction}\nQuery:{text}`, with no blank
    /// after `Query:`, as the model was trained. The last id is always the end token, and only the end token is special:
    /// a text that spells special tokens is encoded as the letters it has.
    ///
    /// Token ids are taken as they are. The end token is appended where it is not the last, and an instruction's prompt
    /// is tokenized alone and put before them.
    ///
    /// With [`Truncate::End`], what is too long keeps its first tokens, with the end token in the last place. A text
    /// beyond [`TEXT_BYTES_PER_TOKEN_MAX`] is cut there first; where that leaves fewer tokens than the model takes (it is
    /// mostly blanks), these are what is kept.
    ///
    /// # Errors
    /// The text is empty, or too long and not to be cut, or its instruction alone is; an id is none of the model's; or
    /// the tokenizer fails.
    pub fn encode_input(
        &self,
        input: Input<'_>,
        instruction: Option<&str>,
        truncate: Truncate,
    ) -> Result<Encoded, TokenizeError> {
        let prompt = instruction.map(|task| format!("Instruct: {task}\nQuery:"));
        let (mut ids, cut) = match input {
            Input::Text(text) => self.encode_text(text, prompt.as_deref(), truncate)?,
            Input::Tokens(tokens) => (self.frame(tokens, prompt.as_deref(), truncate)?, false),
        };
        if ids.len() <= self.tokens_max {
            return Ok(Encoded { ids, truncated: cut });
        }
        if truncate == Truncate::None {
            return Err(self.too_long(ids.len()));
        }
        if let Some(prompt) = prompt {
            let prompt = self.tokenize(&prompt, false)?;
            // Nothing of the text would be left: every text would have the same vector.
            if prompt.len() + 2 > self.tokens_max {
                return Err(self.too_long(ids.len()));
            }
        }
        ids.truncate(self.tokens_max - 1);
        ids.push(self.end_token);
        Ok(Encoded { ids, truncated: true })
    }

    /// A text's ids, not yet cut to the longest; and whether it was cut before it was tokenized.
    fn encode_text(
        &self,
        text: &str,
        prompt: Option<&str>,
        truncate: Truncate,
    ) -> Result<(Vec<u32>, bool), TokenizeError> {
        if text.is_empty() {
            return Err(TokenizeError::Empty);
        }
        let bytes_max = self.tokens_max.saturating_mul(TEXT_BYTES_PER_TOKEN_MAX);
        let bytes = text.len() + prompt.map_or(0, str::len);
        let text = if bytes <= bytes_max {
            text
        } else if truncate == Truncate::None {
            return Err(self.too_long(bytes.div_ceil(TEXT_BYTES_PER_TOKEN_MAX)));
        } else {
            &text[..text.floor_char_boundary(bytes_max.saturating_sub(bytes - text.len()))]
        };
        if text.is_empty() {
            // The prompt alone is as long.
            return Err(self.too_long(bytes.div_ceil(TEXT_BYTES_PER_TOKEN_MAX)));
        }
        let prompted = prompt.map(|prompt| format!("{prompt}{text}"));
        let ids = self.tokenize(prompted.as_deref().unwrap_or(text), true)?;
        match ids.len() {
            0 | 1 => Err(TokenizeError::Empty),
            // Pooling stands on this; the load-time probe can't speak for every text.
            _ if ids.last() != Some(&self.end_token) => Err(TokenizeError::Failed),
            _ => Ok((ids, bytes > bytes_max)),
        }
    }

    /// Token ids with what belongs around them.
    fn frame(&self, tokens: &[u32], prompt: Option<&str>, truncate: Truncate) -> Result<Vec<u32>, TokenizeError> {
        let text = tokens.strip_suffix(&[self.end_token]).unwrap_or(tokens);
        if text.is_empty() {
            return Err(TokenizeError::Empty);
        }
        if let Some(&token) = text.iter().find(|&&token| token as usize >= self.vocab) {
            return Err(TokenizeError::Unknown { token, vocab: self.vocab });
        }
        if truncate == Truncate::None && text.len() >= self.tokens_max {
            return Err(self.too_long(text.len() + 1));
        }
        let mut ids = prompt.map_or(Ok(Vec::new()), |prompt| self.tokenize(prompt, false))?;
        // One more than fits shows that there is more.
        ids.extend(&text[..text.len().min(self.tokens_max)]);
        ids.push(self.end_token);
        Ok(ids)
    }

    fn tokenize(&self, text: &str, end: bool) -> Result<Vec<u32>, TokenizeError> {
        // The crate unwraps inside its regex and merge loops. A text that finds such a place fails alone.
        let encoding = catch_unwind(AssertUnwindSafe(|| self.inner.encode_fast(text, end)))
            .map_err(|_| TokenizeError::Failed)?
            .map_err(|_| TokenizeError::Failed)?;
        Ok(encoding.get_ids().to_vec())
    }

    fn too_long(&self, tokens: usize) -> TokenizeError {
        TokenizeError::TooLong { tokens, tokens_max: self.tokens_max }
    }
}

/// Whether a probe text gets the end token once, and last.
fn ends_once(tokenizer: &tokenizers::Tokenizer, end_token: u32) -> tokenizers::Result<bool> {
    let encoding = tokenizer.encode("probe", true)?;
    let ids = encoding.get_ids();
    Ok(ids.last() == Some(&end_token) && ids.iter().filter(|&&id| id == end_token).count() == 1)
}
