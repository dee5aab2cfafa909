//! One decoder layer over packed rows.

use candle_core::{Result, Tensor};

use super::attention::{Reach, attend};
use super::heads::{Angles, NormAndTurn};
use super::linear::Linear;
use super::load::Loader;
use super::norm::Norm;
use super::pick::pick;
use crate::engine::LoadError;
use crate::engine::config::Config;
use crate::engine::marks::Marks;

/// Rows that go through the MLP at a time on a CPU. Its inner width is the widest thing of the model (8B: 2 x 12,288), so
/// a 32k text in one go would need 3 GB; at 2,048 rows the weights are still read rarely. A GPU's batches fit its memory.
const MLP_ROWS: usize = 2048;

/// The rows of a batch, and how attention is to see them.
pub(super) struct Rows {
    pub(super) reach: Reach,
    /// Which rows the spans' keys are, u32, if they don't lie one after the other (texts share a prefix).
    pub(super) key_rows: Option<Tensor>,
    pub(super) angles: Angles,
    pub(super) marks: Marks,
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
    input_norm: Norm,
    /// Queries, keys and values on top of each other.
    qkv: Linear,
    query_norm: Tensor,
    key_norm: Tensor,
    output: Linear,
    mlp_norm: Norm,
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
            input_norm: Norm::new(loader.norm(&name("input_layernorm"), hidden)?, config),
            qkv: loader.linear(&qkv, hidden)?,
            query_norm: loader.norm(&name("self_attn.q_norm"), config.head_dim)?,
            key_norm: loader.norm(&name("self_attn.k_norm"), config.head_dim)?,
            // What goes into it is attention's, as that gives it.
            output: loader.unreduced(&[(name("self_attn.o_proj"), hidden)], query_width)?,
            mlp_norm: Norm::new(loader.norm(&name("post_attention_layernorm"), hidden)?, config),
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
        let marks = &rows.marks;
        let qkv = self.qkv.forward_normed(&hidden, &self.input_norm, marks, "q/k/v product")?;
        let qkv = self.split_heads(qkv)?;
        let norms = [(self.heads, &self.query_norm), (self.kv_heads, &self.key_norm)];
        qkv.inplace_op1(&NormAndTurn { norms: &norms, eps: self.eps, angles: &rows.angles })?;
        let turned = qkv.narrow(1, 0, self.heads + self.kv_heads)?;
        marks.moved("norm and turn", &[&turned, &turned])?;
        let (k, v) = self.keys_values(&qkv, self.heads, rows)?;
        let q = qkv.narrow(1, 0, self.heads)?;
        let attended = attend(&q, &k, &v, &rows.reach)?;
        marks.after(|| rows.reach.work(&q, &k))?;
        // The MLP needs their memory.
        drop((qkv, turned, q, k, v));
        self.after_attention(hidden, attended, marks)
    }

    /// The last layer: `[rows, hidden]` to `[texts, hidden]`. Only keys and values are needed of rows that aren't pooled.
    pub(super) fn forward_pooled(&self, hidden: &Tensor, rows: &Rows, pooled: &Pooled) -> Result<Tensor> {
        let marks = &rows.marks;
        marks.last_layer(true);
        let (query_width, key_width) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let kv = self.qkv.part(query_width, 2 * key_width)?;
        let kv = self.split_heads(kv.forward_normed(hidden, &self.input_norm, marks, "k/v product")?)?;
        let key_norm = [(self.kv_heads, &self.key_norm)];
        kv.inplace_op1(&NormAndTurn { norms: &key_norm, eps: self.eps, angles: &rows.angles })?;
        let turned = kv.narrow(1, 0, self.kv_heads)?;
        marks.moved("norm and turn", &[&turned, &turned])?;
        let (k, v) = self.keys_values(&kv, 0, rows)?;
        let hidden = pick(hidden, &pooled.index)?;
        let q = self.qkv.part(0, query_width)?;
        let q = self.split_heads(q.forward_normed(&hidden, &self.input_norm, marks, "q product")?)?;
        let query_norm = [(self.heads, &self.query_norm)];
        q.inplace_op1(&NormAndTurn { norms: &query_norm, eps: self.eps, angles: &pooled.angles })?;
        marks.moved("norm and turn", &[&q, &q])?;
        let attended = attend(&q, &k, &v, &pooled.reach)?;
        marks.after(|| pooled.reach.work(&q, &k))?;
        let hidden = self.after_attention(hidden, attended, marks);
        marks.last_layer(false);
        hidden
    }

    /// Output projection, then the MLP, each added to the residual stream.
    fn after_attention(&self, hidden: Tensor, attended: Tensor, marks: &Marks) -> Result<Tensor> {
        let hidden = self.output.add_to(hidden, &attended, marks, "output product")?;
        drop(attended);
        let rows = hidden.dim(0)?;
        let rows_max = if hidden.device().is_cpu() { MLP_ROWS } else { rows };
        let parts = (0..rows)
            .step_by(rows_max)
            .map(|start| {
                let part = hidden.narrow(0, start, rows_max.min(rows - start))?;
                let gate_up = self.gate_up.forward_normed(&part, &self.mlp_norm, marks, "gate/up product")?;
                self.down.add_gated_to(part, gate_up, marks, "down product")
            })
            .collect::<Result<Vec<_>>>()?;
        Tensor::cat(&parts, 0)
    }

    /// Keys and values, `[keys, kv_heads, head_dim]` each, of heads that begin with `before` others; span by span.
    fn keys_values(&self, heads: &Tensor, before: usize, rows: &Rows) -> Result<(Tensor, Tensor)> {
        let both = heads.narrow(1, before, 2 * self.kv_heads)?;
        let both = match &rows.key_rows {
            Some(key_rows) => {
                let picked = pick(&both, key_rows)?;
                rows.marks.moved("keys and values", &[&picked, &picked])?;
                picked
            }
            None => both,
        };
        Ok((both.narrow(1, 0, self.kv_heads)?, both.narrow(1, self.kv_heads, self.kv_heads)?))
    }

    /// Takes the rows: under another name they would keep their memory to the layer's end.
    fn split_heads(&self, projected: Tensor) -> Result<Tensor> {
        let (rows, width) = projected.dims2()?;
        projected.reshape((rows, width / self.head_dim, self.head_dim))
    }
}
