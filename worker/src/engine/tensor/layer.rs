//! One decoder layer over packed rows.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::attention::{Reach, attend};
use super::exp::exp;
use super::heads::{Angles, NormAndTurn};
use super::linear::Linear;
use super::load::Loader;
use super::norm::rms_norm;
use crate::engine::LoadError;
use crate::engine::config::Config;
#[cfg(feature = "cuda")]
use crate::engine::cuda;

/// Rows that go through the MLP at a time on a CPU. Its inner width is the widest thing of the model (8B: 2 x 12,288), so
/// a 32k text in one go would need 3 GB; at 2,048 rows the weights are still read rarely. A GPU's batches fit its memory.
const MLP_ROWS: usize = 2048;

/// The rows of a batch, and how attention is to see them.
pub(super) struct Rows {
    pub(super) reach: Reach,
    /// Which rows the spans' keys are, u32, if they don't lie one after the other (texts share a prefix).
    pub(super) key_rows: Option<Tensor>,
    pub(super) angles: Angles,
}

/// The pooled rows alone: for each text the last.
pub(super) struct Pooled {
    /// Which of the batch's rows, u32.
    pub(super) index: Tensor,
    pub(super) reach: Reach,
    pub(super) angles: Angles,
}

/// Weights of a layer.
pub(super) struct Layer {
    input_norm: Tensor,
    /// Queries, keys and values on top of each other.
    qkv: Linear,
    query_norm: Tensor,
    key_norm: Tensor,
    output: Linear,
    mlp_norm: Tensor,
    /// Gate and up on top of each other.
    gate_up: Linear,
    down: Linear,
    eps: f32,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Layer {
    pub(super) fn load(loader: &Loader, config: &Config, number: usize) -> std::result::Result<Self, LoadError> {
        let name = |part: &str| format!("layers.{number}.{part}.weight");
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (query_width, key_width) = (config.query_width(), config.key_width());
        let qkv = [
            (name("self_attn.q_proj"), query_width),
            (name("self_attn.k_proj"), key_width),
            (name("self_attn.v_proj"), key_width),
        ];
        let gate_up = [(name("mlp.gate_proj"), inner), (name("mlp.up_proj"), inner)];
        Ok(Self {
            input_norm: loader.norm(&name("input_layernorm"), hidden)?,
            qkv: loader.linear(&qkv, hidden)?,
            query_norm: loader.norm(&name("self_attn.q_norm"), config.head_dim)?,
            key_norm: loader.norm(&name("self_attn.k_norm"), config.head_dim)?,
            output: loader.linear(&[(name("self_attn.o_proj"), hidden)], query_width)?,
            mlp_norm: loader.norm(&name("post_attention_layernorm"), hidden)?,
            gate_up: loader.linear(&gate_up, hidden)?,
            down: loader.linear(&[(name("mlp.down_proj"), hidden)], inner)?,
            eps: config.rms_norm_eps as f32,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        })
    }

    /// `[rows, hidden]` to the same.
    pub(super) fn forward(&self, hidden: Tensor, rows: &Rows) -> Result<Tensor> {
        let qkv = self.split_heads(&self.qkv.forward(&rms_norm(&hidden, &self.input_norm, self.eps)?)?)?;
        let norms = [(self.heads, &self.query_norm), (self.kv_heads, &self.key_norm)];
        qkv.inplace_op1(&NormAndTurn { norms: &norms, eps: self.eps, angles: &rows.angles })?;
        let (k, v) = self.keys_values(&qkv, self.heads, rows)?;
        let attended = attend(&qkv.narrow(1, 0, self.heads)?, &k, &v, &rows.reach)?;
        // The MLP needs their memory.
        drop((qkv, k, v));
        self.after_attention(hidden, attended)
    }

    /// The last layer: `[rows, hidden]` to `[texts, hidden]`. Only keys and values are needed of rows that aren't pooled.
    pub(super) fn forward_pooled(&self, hidden: &Tensor, rows: &Rows, pooled: &Pooled) -> Result<Tensor> {
        let normed = rms_norm(hidden, &self.input_norm, self.eps)?;
        let (query_width, key_width) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let kv = self.split_heads(&self.qkv.part(query_width, 2 * key_width)?.forward(&normed)?)?;
        let key_norm = [(self.kv_heads, &self.key_norm)];
        kv.inplace_op1(&NormAndTurn { norms: &key_norm, eps: self.eps, angles: &rows.angles })?;
        let (k, v) = self.keys_values(&kv, 0, rows)?;
        let q = self.qkv.part(0, query_width)?.forward(&normed.index_select(&pooled.index, 0)?)?;
        let q = self.split_heads(&q)?;
        let query_norm = [(self.heads, &self.query_norm)];
        q.inplace_op1(&NormAndTurn { norms: &query_norm, eps: self.eps, angles: &pooled.angles })?;
        let hidden = hidden.index_select(&pooled.index, 0)?;
        self.after_attention(hidden, attend(&q, &k, &v, &pooled.reach)?)
    }

    /// Output projection, then the MLP, each added to the residual stream.
    fn after_attention(&self, hidden: Tensor, attended: Tensor) -> Result<Tensor> {
        let hidden = self.output.add_to(hidden, &attended)?;
        drop(attended);
        let normed = rms_norm(&hidden, &self.mlp_norm, self.eps)?;
        let rows = normed.dim(0)?;
        let rows_max = if hidden.device().is_cpu() { MLP_ROWS } else { rows };
        let parts = (0..rows)
            .step_by(rows_max)
            .map(|start| {
                let len = rows_max.min(rows - start);
                let inner = self.gate_up.forward(&normed.narrow(0, start, len)?)?.apply_op1_no_bwd(&GatedSilu)?;
                self.down.add_to(hidden.narrow(0, start, len)?, &inner)
            })
            .collect::<Result<Vec<_>>>()?;
        Tensor::cat(&parts, 0)
    }

    /// Keys and values, `[keys, kv_heads, head_dim]` each, of heads that begin with `before` others; span by span.
    fn keys_values(&self, heads: &Tensor, before: usize, rows: &Rows) -> Result<(Tensor, Tensor)> {
        let both = heads.narrow(1, before, 2 * self.kv_heads)?;
        let both = match &rows.key_rows {
            Some(key_rows) => both.contiguous()?.index_select(key_rows, 0)?,
            None => both,
        };
        Ok((both.narrow(1, 0, self.kv_heads)?, both.narrow(1, self.kv_heads, self.kv_heads)?))
    }

    fn split_heads(&self, projected: &Tensor) -> Result<Tensor> {
        let (rows, width) = projected.dims2()?;
        projected.reshape((rows, width / self.head_dim, self.head_dim))
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
            pulp::Arch::new().dispatch(|| {
                for ((output, gate), up) in output.iter_mut().zip(gate).zip(up) {
                    *output = gate / (1.0 + exp(-gate)) * up;
                }
            });
        });
        Ok((CpuStorage::F32(output), (rows, inner).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        Ok((cuda::gated_silu(storage, layout)?, (rows, width / 2).into()))
    }
}
