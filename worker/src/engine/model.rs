//! The model: weights and the packed forward pass.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::ops::rms_norm;

use super::attention::Span;
use super::config::Config;
use super::layer::{Layer, Pooled, Rows};
use super::revision::revision;
use super::rope::Rope;
use super::weights::{EMBEDDINGS, Weights};
use super::{EngineError, LoadError, Tokenizer};

/// What callers need to know about a loaded model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// The folder's name, for people. [`Self::revision`] says which model it is.
    pub name: String,
    /// SHA-256, in hex, over `config.json`, `tokenizer.json` and the weights: the same as
    /// `sha256sum config.json tokenizer.json *.safetensors | sha256sum` in the model's folder.
    pub revision: String,
    /// Values of a row, and so the most dimensions a vector can have.
    pub hidden: usize,
    /// The most tokens a text may have, the end token included.
    pub tokens_max: usize,
    /// Token ids are below this.
    pub vocab: usize,
    /// The id that ends every text; see [`super::END_TOKEN`].
    pub end_token: u32,
}

/// Qwen3-Embedding with its weights in memory, f32 on the CPU. One thread owns it and runs one batch after the other;
/// matrix products use rayon's threads.
pub struct Model {
    info: ModelInfo,
    /// `[vocab, hidden]`, in the type it has on disk: only looked up, so widening all of it would buy nothing.
    embeddings: Tensor,
    layers: Vec<Layer>,
    final_norm: Tensor,
    eps: f32,
    rope: Rope,
}

impl Model {
    /// Loads a checkpoint folder: `config.json`, `tokenizer.json`, and `model.safetensors` or shards with their index.
    ///
    /// Reads every weight twice (digest, then load) and takes the time of that: seconds for 0.6B.
    ///
    /// # Errors
    /// A file is absent or malformed, a tensor does not fit `config.json`, or the configuration asks for something the
    /// forward pass does not do.
    pub fn load(dir: &Path) -> Result<Self, LoadError> {
        let config = Config::load(&dir.join("config.json"))?;
        // Not kept; but a model without a tokenizer that ends texts as pooling needs must not start.
        let end_token = Tokenizer::load(dir)?.end_token();
        if end_token as usize >= config.vocab_size {
            return Err(LoadError::Unsupported {
                field: "vocab_size",
                value: config.vocab_size.to_string(),
                expected: "must be above the end token's id of tokenizer.json",
            });
        }
        let files = Weights::file_names(dir)?;
        let weights = Weights::open(dir, &files)?;
        let hidden = config.hidden_size;
        let info = ModelInfo {
            name: folder_name(dir)?,
            revision: revision(dir, &files)?,
            hidden,
            tokens_max: config.tokens_max(),
            vocab: config.vocab_size,
            end_token,
        };
        let layer = |number| Layer::load(&weights, &config, number);
        Ok(Self {
            info,
            embeddings: weights.stored(EMBEDDINGS, &[config.vocab_size, hidden])?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_, _>>()?,
            final_norm: weights.f32("norm.weight", &[hidden])?,
            eps: config.rms_norm_eps as f32,
            rope: Rope::new(&config)?,
        })
    }

    /// What was loaded.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Runs texts of token ids, each with the end token last, through the model. Gives one row of [`ModelInfo::hidden`]
    /// values a text, in order: the last token's hidden state after the final norm, neither cut nor normalized (see
    /// [`super::finish`]), and not checked for being finite.
    ///
    /// Memory grows with the tokens of all texts together, which the caller bounds; no text costs the square of its
    /// length. No texts give no rows.
    ///
    /// # Errors
    /// A text is empty, too long, or has an id outside the vocabulary. Nothing is computed then.
    pub fn forward(&self, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>, EngineError> {
        for (index, text) in texts.iter().enumerate() {
            self.check(index, text)?;
        }
        let Some((last, layers)) = self.layers.split_last() else { return Ok(Vec::new()) };
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let (rows, pooled) = self.lay_out(texts)?;
        let ids = Tensor::new(texts.concat(), &Device::Cpu)?;
        let mut hidden = self.embeddings.index_select(&ids, 0)?.to_dtype(DType::F32)?;
        for layer in layers {
            hidden = layer.forward(&hidden, &rows)?;
        }
        let hidden = last.forward_pooled(&hidden, &rows, &pooled)?;
        Ok(rms_norm(&hidden, &self.final_norm, self.eps)?.to_vec2()?)
    }

    fn check(&self, index: usize, text: &[u32]) -> Result<(), EngineError> {
        let (tokens, tokens_max, vocab) = (text.len(), self.info.tokens_max, self.info.vocab);
        match text.iter().find(|&&token| token as usize >= vocab) {
            _ if tokens == 0 => Err(EngineError::Empty { index }),
            _ if tokens > tokens_max => Err(EngineError::TooLong { index, tokens, tokens_max }),
            Some(&token) => Err(EngineError::Token { index, token, vocab }),
            None => Ok(()),
        }
    }

    /// Where each text's rows lie, and which rows are pooled.
    fn lay_out(&self, texts: &[&[u32]]) -> Result<(Rows, Pooled), EngineError> {
        let starts = texts.iter().scan(0, |end, text| {
            let start = *end;
            *end += text.len();
            Some((start, text.len()))
        });
        let spans: Vec<Span> = starts
            .map(|(start, len)| Span { query_start: start, query_len: len, key_start: start, key_len: len })
            .collect();
        let pooled_spans = spans.iter().enumerate().map(|(i, span)| Span { query_start: i, query_len: 1, ..*span });
        let last_rows: Vec<u32> = spans.iter().map(|span| (span.key_start + span.key_len - 1) as u32).collect();
        let positions = spans.iter().flat_map(|span| 0..span.key_len as u32).collect();
        let last_positions = spans.iter().map(|span| span.key_len as u32 - 1).collect();
        let pooled = Pooled {
            index: Tensor::new(last_rows, &Device::Cpu)?,
            rows: Rows { spans: pooled_spans.collect(), angles: self.rope.angles(last_positions)? },
        };
        Ok((Rows { spans, angles: self.rope.angles(positions)? }, pooled))
    }
}

fn folder_name(dir: &Path) -> Result<String, LoadError> {
    let real = dir.canonicalize().map_err(LoadError::read(dir))?;
    Ok(real.file_name().unwrap_or(real.as_os_str()).to_string_lossy().into_owned())
}
