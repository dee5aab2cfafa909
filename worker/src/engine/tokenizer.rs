//! Text to token ids, as Qwen3-Embedding wants them: the end token last, because that is the position that is pooled.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use tokenizers::processors::template::TemplateProcessing;

use super::config::Config;
use super::{LoadError, TokenizeError};

/// The token that ends every text and whose hidden state is the text's. (Not `<|im_end|>`, which ends a chat turn.)
pub const END_TOKEN: &str = "<|endoftext|>";

/// A text of more than this times `tokens_max` bytes is refused without being tokenized, so that a huge text costs
/// nothing. English has 4 to 5 bytes a token and no script of the Qwen3 vocabulary comes near 32 on average; a text can
/// pass it and yet fit only if it is mostly runs of blanks.
pub const TEXT_BYTES_PER_TOKEN_MAX: usize = 32;

/// Qwen3's tokenizer. Cheap to clone; any thread may use it.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    end_token: u32,
    tokens_max: usize,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, for the longest text, `config.json` of a model folder.
    ///
    /// # Errors
    /// A file is absent or malformed, or [`Self::from_file`] fails.
    pub fn load(dir: &Path) -> Result<Self, LoadError> {
        let config = Config::load(&dir.join("config.json"))?;
        Self::from_file(&dir.join("tokenizer.json"), END_TOKEN, config.tokens_max())
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
        Ok(Self { inner: Arc::new(inner), end_token: end_id, tokens_max })
    }

    /// The id of [`END_TOKEN`], which is the last of every encoded text.
    pub fn end_token(&self) -> u32 {
        self.end_token
    }

    /// The most tokens a text may have, its instruction and the end token included.
    pub fn tokens_max(&self) -> usize {
        self.tokens_max
    }

    /// Encodes a document (`instruction` is `None`) or a query: `Instruct: {instruction}\nQuery:{text}`, with no blank
    /// after `Query:`, as the model was trained. The last id is always the end token, and only the end token is special:
    /// a text that spells special tokens is encoded as the letters it has.
    ///
    /// # Errors
    /// The text is empty or too long, or the tokenizer fails. Nothing is ever cut off.
    pub fn encode(&self, text: &str, instruction: Option<&str>) -> Result<Vec<u32>, TokenizeError> {
        if text.is_empty() {
            return Err(TokenizeError::Empty);
        }
        let bytes = text.len() + instruction.map_or(0, str::len);
        if bytes > self.tokens_max.saturating_mul(TEXT_BYTES_PER_TOKEN_MAX) {
            let tokens = bytes.div_ceil(TEXT_BYTES_PER_TOKEN_MAX);
            return Err(TokenizeError::TooLong { tokens, tokens_max: self.tokens_max });
        }
        let prompt = instruction.map(|task| format!("Instruct: {task}\nQuery:{text}"));
        let input = prompt.as_deref().unwrap_or(text);
        // The crate unwraps inside its regex and merge loops. A text that finds such a place fails alone.
        let encoding = catch_unwind(AssertUnwindSafe(|| self.inner.encode_fast(input, true)))
            .map_err(|_| TokenizeError::Failed)?
            .map_err(|_| TokenizeError::Failed)?;
        let ids = encoding.get_ids();
        match ids.len() {
            0 | 1 => Err(TokenizeError::Empty),
            tokens if tokens > self.tokens_max => Err(TokenizeError::TooLong { tokens, tokens_max: self.tokens_max }),
            // Pooling stands on this; the load-time probe can't speak for every text.
            _ if ids.last() != Some(&self.end_token) => Err(TokenizeError::Failed),
            _ => Ok(ids.to_vec()),
        }
    }
}

/// Whether a probe text gets the end token once, and last.
fn ends_once(tokenizer: &tokenizers::Tokenizer, end_token: u32) -> tokenizers::Result<bool> {
    let encoding = tokenizer.encode("probe", true)?;
    let ids = encoding.get_ids();
    Ok(ids.last() == Some(&end_token) && ids.iter().filter(|&&id| id == end_token).count() == 1)
}
