//! The forward pass on CPUs with AVX512-BF16 (AMD since Zen 4, Intel since Cooper Lake): products of bf16 values, summed
//! in f32. The residual stream, norms, softmax and positions stay f32; what goes into a product is rounded to bf16.

mod attention;
mod kernel;
mod layer;
mod panels;
mod rows;
mod threads;

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};

use super::config::Config;
use super::packing::Packed;
use super::rope::Rope;
use super::weights::{EMBEDDINGS, Weights};
use super::{EngineError, LoadError};
use layer::{Block, Layer, Stream};

/// Whether this CPU has what the kernels need.
pub(super) fn supported() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bf16")
}

/// A model's weights, packed for the microkernel.
pub(super) struct Forward {
    /// `[vocab, hidden]`, in the type it has on disk.
    embeddings: Tensor,
    layers: Vec<Layer>,
    final_norm: Vec<f32>,
    eps: f32,
    rope: Rope,
    work: Mutex<Work>,
}

/// Buffers of the batch that is being computed.
struct Work {
    blocks: Vec<Block>,
    stream: Stream,
}

/// How attention is cut into heads.
#[derive(Debug, Clone, Copy)]
struct Heads {
    query: usize,
    kv: usize,
    dim: usize,
}

impl Heads {
    fn of(config: &Config) -> Self {
        Self { query: config.num_attention_heads, kv: config.num_key_value_heads, dim: config.head_dim }
    }

    /// Query heads that share a key head.
    fn group(self) -> usize {
        self.query / self.kv
    }

    /// Lines that one head's keys fill.
    fn key_lines(self, keys: usize) -> usize {
        keys / panels::PANEL * self.dim
    }

    /// Lines that one head's values fill.
    fn value_lines(self, keys: usize) -> usize {
        self.dim.div_ceil(panels::PANEL) * keys
    }
}

/// Cosines and sines of the rows of a batch.
#[derive(Clone, Copy)]
struct Angles<'a> {
    rope: &'a Rope,
    /// One a row.
    positions: &'a [u32],
}

impl Angles<'_> {
    fn of(&self, position: u32) -> (&[f32], &[f32]) {
        self.rope.at(position as usize)
    }
}

impl Forward {
    /// Packs the weights.
    ///
    /// # Errors
    /// The CPU lacks the instructions, or a width is odd.
    pub(super) fn load(weights: &Weights, config: &Config) -> Result<Self, LoadError> {
        if !supported() {
            return Err(LoadError::NoBf16);
        }
        let widths = [("hidden_size", config.hidden_size), ("intermediate_size", config.intermediate_size)];
        if let Some((field, width)) = widths.into_iter().find(|(_, width)| !width.is_multiple_of(2)) {
            let expected = "must be even for bf16 on a CPU; --dtype f32 takes any";
            return Err(LoadError::Unsupported { field, value: width.to_string(), expected });
        }
        let threads = rayon::current_num_threads();
        Ok(Self {
            embeddings: weights.stored(EMBEDDINGS, &[config.vocab_size, config.hidden_size])?,
            layers: (0..config.num_hidden_layers)
                .map(|number| Layer::load(weights, config, number))
                .collect::<Result<_, _>>()?,
            final_norm: weights.vector("norm.weight", config.hidden_size)?,
            eps: config.rms_norm_eps as f32,
            rope: Rope::new(config),
            work: Mutex::new(Work {
                blocks: (0..threads).map(|_| Block::new(config)).collect(),
                stream: Stream::default(),
            }),
        })
    }

    /// One row of `hidden` values a text.
    #[allow(unsafe_code, reason = "the kernels need instructions that not every CPU has")]
    pub(super) fn forward(&self, packed: &Packed) -> Result<Vec<Vec<f32>>, EngineError> {
        let ids = Tensor::new(packed.ids.as_slice(), &Device::Cpu)?;
        let hidden = self.embeddings.index_select(&ids, 0)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        // A panic leaves numbers that the next batch overwrites.
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        work.stream.hidden = hidden;
        // SAFETY: `load` refuses a CPU without these instructions.
        unsafe { self.run(packed, &mut work) };
        Ok(work.stream.hidden.chunks_exact(self.final_norm.len()).map(<[f32]>::to_vec).collect())
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn run(&self, packed: &Packed, work: &mut Work) {
        let Some((last, layers)) = self.layers.split_last() else { return };
        let Work { blocks, stream } = work;
        let angles = Angles { rope: &self.rope, positions: &packed.positions };
        for layer in layers {
            layer.forward(blocks, stream, &packed.spans, &angles);
        }
        last.forward_pooled(blocks, stream, &packed.spans, &packed.pooled, &angles);
        for row in stream.hidden.chunks_exact_mut(self.final_norm.len()) {
            rows::norm_in_place(row, &self.final_norm, self.eps);
        }
    }
}
