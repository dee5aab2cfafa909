//! The model: weights and the packed forward pass.

use std::collections::BTreeMap;
use std::path::Path;

use super::card::Card;
use super::compute::{Chosen, Compute, ComputePath, PassedOver, Precision};
use super::config::Config;
use super::cpu;
use super::marks::Operations;
use super::packing::Packed;
use super::revision::revision;
use super::weights::Weights;
use super::{EngineError, LoadError, Tokenizer, tensor};

/// What callers need to know about a loaded model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// The folder's name, for people. [`Self::revision`] says which model it is.
    pub name: String,
    /// SHA-256, in hex, over `config.json`, `tokenizer.json` and the weights: the same as
    /// `sha256sum config.json tokenizer.json *.safetensors | sha256sum` in the model's folder.
    pub revision: String,
    /// The commit of its repository, where it came from the Hugging Face hub.
    pub commit: Option<String>,
    /// Prompts of its card by name, for example `query`: each is put before a text, as it stands.
    pub prompts: BTreeMap<String, String>,
    /// Precision of its matrix products.
    pub precision: Precision,
    /// What computes them.
    pub path: ComputePath,
    /// The paths that are faster, and why each was not taken.
    pub passed_over: Vec<PassedOver>,
    /// Values of a row, and so the most dimensions a vector can have.
    pub hidden: usize,
    /// The most tokens a text may have, the end token included.
    pub tokens_max: usize,
    /// Most tokens for a batch where the device's memory sets a bound: on a GPU.
    pub batch_tokens: Option<usize>,
    /// Token ids are below this.
    pub vocab: usize,
    /// The id that ends every text; see [`super::END_TOKEN`].
    pub end_token: u32,
}

/// Qwen3-Embedding with its weights in memory. One thread owns it and runs one batch after the other; on a CPU, matrix
/// products use rayon's threads.
pub struct Model {
    info: ModelInfo,
    tokenizer: Tokenizer,
    forward: Forward,
}

/// The passes that there are. They take the same rows and give the same vectors, within their precisions.
enum Forward {
    /// On candle's tensors.
    Tensor(tensor::Forward),
    /// On a CPU, by microkernels.
    Cpu(Box<dyn cpu::Pass>),
}

impl Forward {
    fn batch_tokens(&self) -> Option<usize> {
        match self {
            Self::Tensor(forward) => forward.batch_tokens(),
            Self::Cpu(_) => None,
        }
    }
}

impl Model {
    /// Loads a checkpoint folder: `config.json`, `tokenizer.json`, and `model.safetensors` or shards with their index.
    ///
    /// Every file is read while it is digested, side by side with the packing of weights: for a large model that takes
    /// as long as reading it from disk.
    ///
    /// # Errors
    /// A file is absent or malformed, a tensor does not fit `config.json`, the configuration asks for something the
    /// forward pass does not do, or the machine lacks what `compute` insists on.
    pub fn load(dir: &Path, compute: &Compute) -> Result<Self, LoadError> {
        let Chosen { place, path, passed_over } = compute.choose()?;
        let config = Config::load(&dir.join("config.json"))?;
        let card = Card::load(dir, config.hidden_size)?;
        let files = Weights::file_names(dir)?;
        let weights = Weights::open(dir, &files)?;
        let load_forward = || -> Result<Forward, LoadError> {
            Ok(match path {
                ComputePath::CudaBf16
                | ComputePath::CudaBf16Fastest
                | ComputePath::HopperBf16
                | ComputePath::HopperBf16Fastest
                | ComputePath::HopperFp8
                | ComputePath::CandleF32 => Forward::Tensor(tensor::Forward::load(&weights, &config, place)?),
                path => Forward::Cpu(cpu::load(path, &weights, &config)?),
            })
        };
        let load_tokenizer = || tokenizer_of(dir, &config);
        let ((tokenizer, revision), forward) =
            rayon::join(|| rayon::join(load_tokenizer, || revision(dir, &files)), load_forward);
        let (tokenizer, forward) = (tokenizer?, forward?);
        let info = ModelInfo {
            name: folder_name(dir)?,
            revision: revision?,
            commit: None,
            prompts: card.prompts,
            precision: path.precision(),
            path,
            passed_over,
            hidden: config.hidden_size,
            tokens_max: config.tokens_max(),
            batch_tokens: forward.batch_tokens(),
            vocab: config.vocab_size,
            end_token: tokenizer.end_token(),
        };
        Ok(Self { info, tokenizer, forward })
    }

    /// Records the commit that the folder holds.
    pub fn with_commit(mut self, commit: Option<String>) -> Self {
        self.info.commit = commit;
        self
    }

    /// What was loaded.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// The tokenizer that lies beside the weights.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
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
        self.launch(texts)?.rows()
    }

    /// [`Self::forward`] in two steps. On a GPU this one queues a batch and returns, so that the next can be made ready
    /// and queued while it is computed; on a CPU it computes it.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn launch(&self, texts: &[&[u32]]) -> Result<Launched, EngineError> {
        for (index, text) in texts.iter().enumerate() {
            self.check(index, text)?;
        }
        if texts.is_empty() {
            return Ok(Launched(Inner::Computed(Vec::new())));
        }
        match &self.forward {
            Forward::Tensor(forward) => forward.launch(&forward.pack(texts)).map(|rows| Launched(Inner::Coming(rows))),
            Forward::Cpu(forward) => forward.forward(&Packed::new(texts)).map(|rows| Launched(Inner::Computed(rows))),
        }
    }

    /// Computes a batch and takes the time of each operation; `None` where the pass is not made of such. To be measured
    /// costs time: two events an operation on a GPU.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn operations(&self, texts: &[&[u32]]) -> Result<Option<Operations>, EngineError> {
        for (index, text) in texts.iter().enumerate() {
            self.check(index, text)?;
        }
        match &self.forward {
            Forward::Tensor(forward) => forward.operations(&forward.pack(texts)).map(Some),
            Forward::Cpu(_) => Ok(None),
        }
    }

    /// Tells a GPU's profiler, if there is one, that what it is to look at begins here: loading tries many kernels out.
    pub fn begin_profile(&self) {
        if let Forward::Tensor(forward) = &self.forward {
            forward.begin_profile();
        }
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
}

/// A batch that was launched. Dropped, its rows are computed in vain.
pub struct Launched(Inner);

enum Inner {
    Computed(Vec<Vec<f32>>),
    Coming(tensor::Launched),
}

impl Launched {
    /// Whether [`Self::rows`] has nothing to wait for.
    pub fn is_computed(&self) -> bool {
        match &self.0 {
            Inner::Computed(_) => true,
            Inner::Coming(rows) => rows.is_computed(),
        }
    }

    /// Waits for the rows, one a text.
    ///
    /// # Errors
    /// The GPU failed, or can't hold the batch.
    pub fn rows(self) -> Result<Vec<Vec<f32>>, EngineError> {
        match self.0 {
            Inner::Computed(rows) => Ok(rows),
            Inner::Coming(rows) => rows.rows(),
        }
    }
}

/// A model without a tokenizer that ends texts as pooling needs must not start.
fn tokenizer_of(dir: &Path, config: &Config) -> Result<Tokenizer, LoadError> {
    let tokenizer = Tokenizer::load(dir)?;
    if tokenizer.end_token() as usize >= config.vocab_size {
        return Err(LoadError::Unsupported {
            field: "vocab_size",
            value: config.vocab_size.to_string(),
            expected: "must be above the end token's id of tokenizer.json",
        });
    }
    Ok(tokenizer)
}

fn folder_name(dir: &Path) -> Result<String, LoadError> {
    let real = dir.canonicalize().map_err(LoadError::read(dir))?;
    Ok(real.file_name().unwrap_or(real.as_os_str()).to_string_lossy().into_owned())
}
