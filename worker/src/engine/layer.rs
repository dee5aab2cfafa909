//! One decoder layer over packed rows.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use candle_nn::ops::rms_norm;
use rayon::prelude::*;

use super::LoadError;
use super::attention::{Span, attend};
use super::config::Config;
use super::rope::Angles;
use super::weights::Weights;

/// Rows that go through the MLP at a time. Its inner width is the widest thing of the model (8B: 2 x 12,288), so a 32k
/// text in one go would need 3 GB; at 2,048 rows the weights are still read rarely.
const MLP_ROWS: usize = 2048;

/// The rows of a batch, and how attention is to see them.
pub(super) struct Rows {
    pub(super) spans: Vec<Span>,
    pub(super) angles: Angles,
}

/// The pooled rows alone: for each text the last.
pub(super) struct Pooled {
    /// Which of the batch's rows, u32.
    pub(super) index: Tensor,
    pub(super) rows: Rows,
}

/// Weights are `[out, in]`, as stored; products take their transposed view.
pub(super) struct Layer {
    input_norm: Tensor,
    /// Queries, keys and values on top of each other.
    qkv: Tensor,
    query_norm: Tensor,
    key_norm: Tensor,
    output: Tensor,
    mlp_norm: Tensor,
    /// Gate and up on top of each other.
    gate_up: Tensor,
    down: Tensor,
    eps: f32,
    head_dim: usize,
    query_width: usize,
    key_width: usize,
}

impl Layer {
    pub(super) fn load(weights: &Weights, config: &Config, number: usize) -> std::result::Result<Self, LoadError> {
        let name = |part: &str| format!("layers.{number}.{part}.weight");
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (query_width, key_width) = (config.query_width(), config.key_width());
        let qkv = [
            (name("self_attn.q_proj"), query_width),
            (name("self_attn.k_proj"), key_width),
            (name("self_attn.v_proj"), key_width),
        ];
        Ok(Self {
            input_norm: weights.f32(&name("input_layernorm"), &[hidden])?,
            qkv: weights.stacked(&qkv, hidden)?,
            query_norm: weights.f32(&name("self_attn.q_norm"), &[config.head_dim])?,
            key_norm: weights.f32(&name("self_attn.k_norm"), &[config.head_dim])?,
            output: weights.f32(&name("self_attn.o_proj"), &[hidden, query_width])?,
            mlp_norm: weights.f32(&name("post_attention_layernorm"), &[hidden])?,
            gate_up: weights.stacked(&[(name("mlp.gate_proj"), inner), (name("mlp.up_proj"), inner)], hidden)?,
            down: weights.f32(&name("mlp.down_proj"), &[hidden, inner])?,
            eps: config.rms_norm_eps as f32,
            head_dim: config.head_dim,
            query_width,
            key_width,
        })
    }

    /// `[rows, hidden]` to the same.
    pub(super) fn forward(&self, hidden: &Tensor, rows: &Rows) -> Result<Tensor> {
        let qkv = rms_norm(hidden, &self.input_norm, self.eps)?.matmul(&self.qkv.t()?)?;
        let q = self.queries(&qkv.narrow(1, 0, self.query_width)?, &rows.angles)?;
        let (k, v) = self.keys_values(&qkv.narrow(1, self.query_width, 2 * self.key_width)?, &rows.angles)?;
        self.after_attention(hidden, &attend(&q, &k, &v, &rows.spans)?)
    }

    /// The last layer: `[rows, hidden]` to `[texts, hidden]`. Only keys and values are needed of rows that aren't pooled.
    pub(super) fn forward_pooled(&self, hidden: &Tensor, rows: &Rows, pooled: &Pooled) -> Result<Tensor> {
        let normed = rms_norm(hidden, &self.input_norm, self.eps)?;
        let kv = normed.matmul(&self.qkv.narrow(0, self.query_width, 2 * self.key_width)?.t()?)?;
        let (k, v) = self.keys_values(&kv, &rows.angles)?;
        let q = normed.index_select(&pooled.index, 0)?.matmul(&self.qkv.narrow(0, 0, self.query_width)?.t()?)?;
        let q = self.queries(&q, &pooled.rows.angles)?;
        let hidden = hidden.index_select(&pooled.index, 0)?;
        self.after_attention(&hidden, &attend(&q, &k, &v, &pooled.rows.spans)?)
    }

    /// Output projection, then the MLP, each added to the residual stream.
    fn after_attention(&self, hidden: &Tensor, attended: &Tensor) -> Result<Tensor> {
        let hidden = (hidden + attended.matmul(&self.output.t()?)?)?;
        let normed = rms_norm(&hidden, &self.mlp_norm, self.eps)?;
        let rows = normed.dim(0)?;
        let mlp = (0..rows)
            .step_by(MLP_ROWS)
            .map(|start| {
                let part = normed.narrow(0, start, MLP_ROWS.min(rows - start))?;
                part.matmul(&self.gate_up.t()?)?.apply_op1_no_bwd(&GatedSilu)?.matmul(&self.down.t()?)
            })
            .collect::<Result<Vec<_>>>()?;
        hidden + Tensor::cat(&mlp, 0)?
    }

    /// `[rows, query_width]` to `[rows, heads, head_dim]`, normed a head and turned.
    fn queries(&self, projected: &Tensor, angles: &Angles) -> Result<Tensor> {
        angles.turn(&rms_norm(&self.split_heads(projected)?, &self.query_norm, self.eps)?)
    }

    /// `[rows, 2 * key_width]` to keys (normed and turned) and values (as they are), `[rows, kv_heads, head_dim]` each.
    fn keys_values(&self, projected: &Tensor, angles: &Angles) -> Result<(Tensor, Tensor)> {
        let k = self.split_heads(&projected.narrow(1, 0, self.key_width)?)?;
        let v = self.split_heads(&projected.narrow(1, self.key_width, self.key_width)?)?;
        Ok((angles.turn(&rms_norm(&k, &self.key_norm, self.eps)?)?, v))
    }

    fn split_heads(&self, projected: &Tensor) -> Result<Tensor> {
        let (rows, width) = projected.dims2()?;
        projected.contiguous()?.reshape((rows, width / self.head_dim, self.head_dim))
    }
}

/// `[rows, 2 * inner]` of gate and up to `silu(gate) * up`, `[rows, inner]`, in one pass over memory.
struct GatedSilu;

impl CustomOp1 for GatedSilu {
    fn name(&self) -> &'static str {
        "gated-silu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            bail!("gated silu takes contiguous f32 values");
        };
        let (rows, width) = layout.shape().dims2()?;
        let inner = width / 2;
        let mut output = vec![0f32; rows * inner];
        output.par_chunks_exact_mut(inner).zip(values[start..end].par_chunks_exact(width)).for_each(|(output, row)| {
            let (gate, up) = row.split_at(inner);
            for ((output, gate), up) in output.iter_mut().zip(gate).zip(up) {
                *output = gate / (1.0 + (-gate).exp()) * up;
            }
        });
        Ok((CpuStorage::F32(output), (rows, inner).into()))
    }
}
