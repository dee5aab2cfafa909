//! The forward pass on candle's tensors: f32 on any CPU.

mod attention;
mod exp;
mod heads;
mod layer;
mod linear;

use candle_core::{DType, Device, Tensor};
use candle_nn::ops::rms_norm;

use super::config::Config;
use super::packing::Packed;
use super::rope::Rope;
use super::weights::{EMBEDDINGS, Weights};
use super::{EngineError, LoadError};
use attention::Span;
use heads::Angles;
use layer::{Layer, Pooled, Rows};

/// A model's weights, as tensors.
pub(super) struct Forward {
    /// `[vocab, hidden]`, in the type it has on disk: only looked up, so widening all of it would buy nothing.
    embeddings: Tensor,
    layers: Vec<Layer>,
    final_norm: Tensor,
    eps: f32,
    /// `[tokens_max, head_dim / 2]`, cosines and sines.
    rope: (Tensor, Tensor),
    device: Device,
    dtype: DType,
}

impl Forward {
    pub(super) fn load(weights: &Weights, config: &Config, device: &Device, dtype: DType) -> Result<Self, LoadError> {
        let rope = Rope::new(config);
        let (cos, sin, half) = rope.table();
        let table = |values: &[f32]| Tensor::from_slice(values, (values.len() / half, half), device);
        let layer = |number| Layer::load(weights, config, number);
        Ok(Self {
            embeddings: weights.stored(EMBEDDINGS, &[config.vocab_size, config.hidden_size])?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_, _>>()?,
            final_norm: weights.f32("norm.weight", &[config.hidden_size])?,
            eps: config.rms_norm_eps as f32,
            rope: (table(cos)?, table(sin)?),
            device: device.clone(),
            dtype,
        })
    }

    /// One row of `hidden` values a text.
    pub(super) fn forward(&self, packed: &Packed) -> Result<Vec<Vec<f32>>, EngineError> {
        let Some((last, layers)) = self.layers.split_last() else { return Ok(Vec::new()) };
        let (rows, pooled) = self.lay_out(packed)?;
        let ids = Tensor::new(packed.ids.as_slice(), &self.device)?;
        let mut hidden = self.embeddings.index_select(&ids, 0)?.to_dtype(self.dtype)?;
        for layer in layers {
            hidden = layer.forward(&hidden, &rows)?;
        }
        let hidden = last.forward_pooled(&hidden, &rows, &pooled)?;
        Ok(rms_norm(&hidden, &self.final_norm, self.eps)?.to_dtype(DType::F32)?.to_vec2()?)
    }

    /// Where each span's rows lie, and which rows are pooled.
    fn lay_out(&self, packed: &Packed) -> Result<(Rows, Pooled), EngineError> {
        let shared = packed.spans.iter().any(|span| !span.shared.is_empty());
        let mut key_end = 0;
        let spans: Vec<Span> = packed
            .spans
            .iter()
            .map(|span| {
                key_end += span.keys();
                Span {
                    query_start: span.own.start,
                    query_len: span.own.len(),
                    key_start: key_end - span.keys(),
                    key_len: span.keys(),
                }
            })
            .collect();
        let key_rows = shared.then(|| {
            packed.spans.iter().flat_map(|span| (0..span.keys()).map(|position| span.row(position) as u32)).collect()
        });
        let key_rows = key_rows.map(|rows: Vec<u32>| Tensor::new(rows, &self.device)).transpose()?;
        let pooled_span = |(text, &span): (usize, &usize)| Span { query_start: text, query_len: 1, ..spans[span] };
        let last_rows: Vec<u32> = packed.last_rows().map(|row| row as u32).collect();
        let last_positions: Vec<u32> = packed.last_rows().map(|row| packed.positions[row]).collect();
        let pooled = Pooled {
            index: Tensor::new(last_rows, &self.device)?,
            spans: packed.pooled.iter().enumerate().map(pooled_span).collect(),
            angles: self.angles(&last_positions)?,
        };
        Ok((Rows { spans, key_rows, angles: self.angles(&packed.positions)? }, pooled))
    }

    fn angles(&self, positions: &[u32]) -> Result<Angles, EngineError> {
        let positions = Tensor::new(positions, &self.device)?;
        Ok(Angles { cos: self.rope.0.index_select(&positions, 0)?, sin: self.rope.1.index_select(&positions, 0)? })
    }
}
