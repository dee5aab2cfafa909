//! One decoder layer: what is done to blocks of rows before and after attention.

use half::bf16;

use super::attention::{KeyValues, Queries, Tile, attend};
use super::kernel::{Rows, Sink, multiply};
use super::panels::Panels;
use super::rows::{heads, norm, round};
use super::threads::spread;
use super::{Angles, Heads};
use crate::engine::config::Config;
use crate::engine::error::LoadError;
use crate::engine::packing::Span;
use crate::engine::weights::Weights;

/// Most rows of a block: eight full tiles of the microkernel. A block goes through all that lies between two attentions
/// on one thread, within its caches; weights are read once a block.
const BLOCK_ROWS: usize = 96;

/// Weights of a layer.
pub(super) struct Layer {
    input_norm: Vec<f32>,
    query: Panels,
    /// Keys and values on top of each other.
    key_value: Panels,
    query_norm: Vec<f32>,
    key_norm: Vec<f32>,
    output: Panels,
    mlp_norm: Vec<f32>,
    gate_up: Panels,
    down: Panels,
    eps: f32,
    heads: Heads,
}

/// One thread's block of rows on its way through a layer.
pub(super) struct Block {
    normed: Vec<bf16>,
    projected: Vec<f32>,
    attended: Vec<bf16>,
    inner: Vec<bf16>,
    pub(super) tile: Tile,
}

impl Block {
    pub(super) fn new(config: &Config) -> Self {
        let (query, key_value) = (config.query_width(), 2 * config.key_width());
        Self {
            normed: vec![bf16::ZERO; BLOCK_ROWS * config.hidden_size],
            projected: vec![0.0; BLOCK_ROWS * query.max(key_value)],
            attended: vec![bf16::ZERO; BLOCK_ROWS * query],
            inner: vec![bf16::ZERO; BLOCK_ROWS * config.intermediate_size],
            tile: Tile::new(config.head_dim),
        }
    }
}

/// What layers hand each other: rows of a batch between two attentions. Kept for the model's life, so that a batch does
/// not begin with fresh pages.
#[derive(Default)]
pub(super) struct Stream {
    /// `[rows, hidden]`, the residual stream.
    pub(super) hidden: Vec<f32>,
    query: Vec<bf16>,
    key: Vec<bf16>,
    value: Vec<bf16>,
    key_values: KeyValues,
    attended: Vec<bf16>,
}

impl Layer {
    pub(super) fn load(weights: &Weights, config: &Config, number: usize) -> Result<Self, LoadError> {
        let name = |part: &str| format!("layers.{number}.{part}.weight");
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (query, key) = (config.query_width(), config.key_width());
        let matrix = |part: &str, rows, columns| weights.matrix(&[(name(part), rows)], columns);
        let vector = |part: &str, len| weights.vector(&name(part), len);
        let key_value = [(name("self_attn.k_proj"), key), (name("self_attn.v_proj"), key)];
        Ok(Self {
            input_norm: vector("input_layernorm", hidden)?,
            query: Panels::pack(&matrix("self_attn.q_proj", query, hidden)?)?,
            key_value: Panels::pack(&weights.matrix(&key_value, hidden)?)?,
            query_norm: vector("self_attn.q_norm", config.head_dim)?,
            key_norm: vector("self_attn.k_norm", config.head_dim)?,
            output: Panels::pack(&matrix("self_attn.o_proj", hidden, query)?)?,
            mlp_norm: vector("post_attention_layernorm", hidden)?,
            gate_up: Panels::pack_gated(
                &matrix("mlp.gate_proj", inner, hidden)?,
                &matrix("mlp.up_proj", inner, hidden)?,
            )?,
            down: Panels::pack(&matrix("mlp.down_proj", hidden, inner)?)?,
            eps: config.rms_norm_eps as f32,
            heads: Heads::of(config),
        })
    }

    /// `stream.hidden` `[rows, hidden]` in place.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub(super) fn forward(&self, blocks: &mut [Block], stream: &mut Stream, spans: &[Span], angles: &Angles<'_>) {
        let Stream { hidden, query, key, value, key_values, attended } = stream;
        let rows = angles.positions.len();
        query.resize(rows * self.heads.query * self.heads.dim, bf16::ZERO);
        self.keys_values(blocks, hidden, Some(query), key, value, angles);
        key_values.pack(key, value, spans, self.heads);
        let queries: Vec<Queries> = spans
            .iter()
            .enumerate()
            .map(|(number, span)| Queries { span: number, rows: span.own.clone(), position: span.shared.len() })
            .collect();
        attend(blocks, query, key_values, &queries, self.heads, attended);
        self.after_attention(blocks, hidden, attended);
    }

    /// The last layer: `stream.hidden` `[rows, hidden]` becomes `[texts, hidden]`. Of rows that aren't pooled only keys
    /// and values are needed.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub(super) fn forward_pooled(
        &self,
        blocks: &mut [Block],
        stream: &mut Stream,
        spans: &[Span],
        pooled: &[usize],
        angles: &Angles<'_>,
    ) {
        let Stream { hidden, query, key, value, key_values, attended } = stream;
        self.keys_values(blocks, hidden, None, key, value, angles);
        key_values.pack(key, value, spans, self.heads);
        let width = self.input_norm.len();
        let last = |span: &Span| span.own.end - 1;
        let mut kept: Vec<f32> =
            pooled.iter().flat_map(|&span| &hidden[last(&spans[span]) * width..][..width]).copied().collect();
        let positions: Vec<u32> = pooled.iter().map(|&span| angles.positions[last(&spans[span])]).collect();
        query.resize(pooled.len() * self.heads.query * self.heads.dim, bf16::ZERO);
        self.queries(blocks, &kept, query, &Angles { positions: &positions, ..*angles });
        let queries: Vec<Queries> = pooled
            .iter()
            .enumerate()
            .map(|(text, &span)| Queries { span, rows: text..text + 1, position: spans[span].keys() - 1 })
            .collect();
        attend(blocks, query, key_values, &queries, self.heads, attended);
        self.after_attention(blocks, &mut kept, attended);
        *hidden = kept;
    }

    /// Projects rows to keys and values, and to queries where they are wanted of every row.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn keys_values(
        &self,
        blocks: &mut [Block],
        hidden: &[f32],
        query: Option<&mut [bf16]>,
        key: &mut Vec<bf16>,
        value: &mut Vec<bf16>,
        angles: &Angles<'_>,
    ) {
        let (rows, width) = (angles.positions.len(), self.heads.kv * self.heads.dim);
        key.resize(rows * width, bf16::ZERO);
        value.resize(rows * width, bf16::ZERO);
        let step = block_rows(rows, blocks.len());
        let query_width = self.heads.query * self.heads.dim;
        let mut queries = query.map(|query| query.chunks_mut(step * query_width));
        let tasks: Vec<_> = hidden
            .chunks(step * self.input_norm.len())
            .zip(key.chunks_mut(step * width).zip(value.chunks_mut(step * width)))
            .zip(angles.positions.chunks(step))
            .map(|((hidden, (key, value)), positions)| {
                (hidden, key, value, queries.as_mut().and_then(Iterator::next), positions)
            })
            .collect();
        spread(blocks, tasks, |block, (hidden, key, value, query, positions)| {
            let rows = positions.len();
            self.norm(hidden, &self.input_norm, &mut block.normed);
            let projected = &mut block.projected[..rows * 2 * width];
            let sink = Sink::Set { values: projected, stride: 2 * width };
            multiply(whole(&block.normed, self.input_norm.len(), rows), &self.key_value, sink);
            for (row, projected) in projected.chunks_exact(2 * width).enumerate() {
                let (keys, values) = projected.split_at(width);
                let angle = angles.of(positions[row]);
                heads(keys, &self.key_norm, self.eps, angle, &mut key[row * width..][..width]);
                round(values, &mut value[row * width..][..width]);
            }
            if let Some(query) = query {
                self.project_queries(block, query, positions, angles);
            }
        });
    }

    /// Projects every row to queries.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn queries(&self, blocks: &mut [Block], hidden: &[f32], query: &mut [bf16], angles: &Angles<'_>) {
        let step = block_rows(angles.positions.len(), blocks.len());
        let tasks: Vec<_> = hidden
            .chunks(step * self.input_norm.len())
            .zip(query.chunks_mut(step * self.heads.query * self.heads.dim))
            .zip(angles.positions.chunks(step))
            .collect();
        spread(blocks, tasks, |block, ((hidden, query), positions)| {
            self.norm(hidden, &self.input_norm, &mut block.normed);
            self.project_queries(block, query, positions, angles);
        });
    }

    /// From `block.normed`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn project_queries(&self, block: &mut Block, query: &mut [bf16], positions: &[u32], angles: &Angles<'_>) {
        let (rows, width) = (positions.len(), self.heads.query * self.heads.dim);
        let projected = &mut block.projected[..rows * width];
        let sink = Sink::Set { values: projected, stride: width };
        multiply(whole(&block.normed, self.input_norm.len(), rows), &self.query, sink);
        for ((row, projected), query) in projected.chunks_exact(width).enumerate().zip(query.chunks_exact_mut(width)) {
            heads(projected, &self.query_norm, self.eps, angles.of(positions[row]), query);
        }
    }

    /// Output projection, then the MLP, each added to the residual stream. `attended` is as [`attend`] gives it.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn after_attention(&self, blocks: &mut [Block], hidden: &mut [f32], attended: &[bf16]) {
        let (width, query_width) = (self.input_norm.len(), self.heads.query * self.heads.dim);
        let rows = hidden.len() / width;
        let (inner, part) = (self.down.inner(), self.heads.group() * self.heads.dim);
        let step = block_rows(rows, blocks.len());
        let tasks: Vec<_> = hidden.chunks_mut(step * width).enumerate().collect();
        spread(blocks, tasks, |block, (number, hidden)| {
            let (first, count) = (number * step, hidden.len() / width);
            for head in 0..self.heads.kv {
                let attended = &attended[(head * rows + first) * part..][..count * part];
                for (row, values) in attended.chunks_exact(part).enumerate() {
                    block.attended[row * query_width + head * part..][..part].copy_from_slice(values);
                }
            }
            let add = |hidden: &mut [f32], values: &[bf16], columns: &Panels| {
                let rows = whole(values, columns.inner(), count);
                multiply(rows, columns, Sink::Add { values: hidden, stride: width });
            };
            add(hidden, &block.attended, &self.output);
            self.norm(hidden, &self.mlp_norm, &mut block.normed);
            let sink = Sink::GatedSilu { values: &mut block.inner, stride: inner };
            multiply(whole(&block.normed, width, count), &self.gate_up, sink);
            add(hidden, &block.inner, &self.down);
        });
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn norm(&self, hidden: &[f32], weight: &[f32], out: &mut [bf16]) {
        for (row, out) in hidden.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
            norm(row, weight, self.eps, out);
        }
    }
}

fn whole(values: &[bf16], width: usize, rows: usize) -> Rows<'_> {
    Rows { values, stride: width, rows }
}

/// Rows of a block, so that all threads have equally many blocks where there are enough rows.
fn block_rows(rows: usize, threads: usize) -> usize {
    let blocks = rows.div_ceil(BLOCK_ROWS).next_multiple_of(threads);
    rows.div_ceil(blocks).max(1)
}
