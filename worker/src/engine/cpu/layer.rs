//! One decoder layer: what is done to blocks of rows before and after attention.

use super::Heads;
use super::attention::{KeyValues, Queries, Tile, attend};
use super::multiply::{Multiply, ROWS_MAX, Rows, Scratch, Sink};
use super::panels::Panels;
use super::path::{Path, Value};
use super::rows::{Norm, NormAndTurn, Round};
use super::threads::spread;
use crate::engine::config::Config;
use crate::engine::error::LoadError;
use crate::engine::packing::Span;
use crate::engine::rope::Rope;
use crate::engine::weights::Weights;

/// Most rows of a block: eight full tiles of the microkernels. A block goes through all that lies between two attentions
/// on one thread, within its caches; weights are read once a block.
const BLOCK_ROWS: usize = ROWS_MAX;

/// Between two rows of a block. Rows that begin a power of two apart would share few places of the first cache.
const GAP_BYTES: usize = 64;

/// Weights of a layer.
pub(super) struct Layer<P> {
    path: P,
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
pub(super) struct Block<P: Path> {
    normed: Wide<P::Value>,
    projected: Vec<f32>,
    attended: Wide<P::Value>,
    inner: Wide<P::Value>,
    scratch: Scratch,
}

/// A block's rows, with gaps between them.
struct Wide<V> {
    values: Vec<V>,
    stride: usize,
}

impl<V: Value> Wide<V> {
    fn new(width: usize) -> Self {
        let stride = width + GAP_BYTES / size_of::<V>();
        Self { values: vec![V::ZERO; BLOCK_ROWS * stride], stride }
    }

    fn rows(&self, rows: usize) -> Rows<'_, V> {
        Rows { values: &self.values, stride: self.stride, rows }
    }
}

impl<P: Path> Block<P> {
    pub(super) fn new(config: &Config) -> Self {
        let (query, key_value) = (config.query_width(), 2 * config.key_width());
        Self {
            normed: Wide::new(config.hidden_size),
            projected: vec![0.0; BLOCK_ROWS * query.max(key_value)],
            attended: Wide::new(query),
            inner: Wide::new(config.intermediate_size),
            scratch: Scratch::new(),
        }
    }
}

/// What layers hand each other: rows of a batch between two attentions. Kept for the model's life, so that a batch does
/// not begin with fresh pages.
pub(super) struct Stream<P: Path> {
    /// `[rows, hidden]`, the residual stream.
    pub(super) hidden: Vec<f32>,
    query: Vec<P::Value>,
    key: Vec<P::Value>,
    value: Vec<P::Value>,
    key_values: KeyValues,
    attended: Vec<P::Value>,
}

impl<P: Path> Stream<P> {
    pub(super) fn new() -> Self {
        Self {
            hidden: Vec::new(),
            query: Vec::new(),
            key: Vec::new(),
            value: Vec::new(),
            key_values: KeyValues::default(),
            attended: Vec::new(),
        }
    }
}

/// A workplace for each thread.
pub(super) struct Places<P: Path> {
    blocks: Vec<Block<P>>,
    tiles: Vec<Tile<P>>,
}

impl<P: Path> Places<P> {
    pub(super) fn new(config: &Config, threads: usize) -> Self {
        Self {
            blocks: (0..threads).map(|_| Block::new(config)).collect(),
            tiles: (0..threads).map(|_| Tile::new(config.head_dim)).collect(),
        }
    }
}

impl<P: Path> Layer<P> {
    pub(super) fn load(path: P, weights: &Weights, config: &Config, number: usize) -> Result<Self, LoadError> {
        let name = |part: &str| format!("layers.{number}.{part}.weight");
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (query, key) = (config.query_width(), config.key_width());
        let matrix = |part: &str, rows, columns| weights.matrix(&[(name(part), rows)], columns);
        let vector = |part: &str, len| weights.vector(&name(part), len);
        let key_value = [(name("self_attn.k_proj"), key), (name("self_attn.v_proj"), key)];
        Ok(Self {
            path,
            input_norm: vector("input_layernorm", hidden)?,
            query: Panels::pack::<P>(&matrix("self_attn.q_proj", query, hidden)?)?,
            key_value: Panels::pack::<P>(&weights.matrix(&key_value, hidden)?)?,
            query_norm: vector("self_attn.q_norm", config.head_dim)?,
            key_norm: vector("self_attn.k_norm", config.head_dim)?,
            output: Panels::pack::<P>(&matrix("self_attn.o_proj", hidden, query)?)?,
            mlp_norm: vector("post_attention_layernorm", hidden)?,
            gate_up: Panels::pack_gated::<P>(
                &matrix("mlp.gate_proj", inner, hidden)?,
                &matrix("mlp.up_proj", inner, hidden)?,
            )?,
            down: Panels::pack::<P>(&matrix("mlp.down_proj", hidden, inner)?)?,
            eps: config.rms_norm_eps as f32,
            heads: Heads::of(config),
        })
    }

    /// `stream.hidden` `[rows, hidden]` in place.
    pub(super) fn forward(
        &self,
        places: &mut Places<P>,
        stream: &mut Stream<P>,
        spans: &[Span],
        rope: &Rope,
        positions: &[u32],
    ) {
        let Stream { hidden, query, key, value, key_values, attended } = stream;
        query.resize(positions.len() * self.heads.query * self.heads.dim, P::Value::ZERO);
        self.keys_values(&mut places.blocks, hidden, Some(query), key, value, rope, positions);
        key_values.pack::<P>(key, value, spans, self.heads);
        let queries: Vec<Queries> = spans
            .iter()
            .enumerate()
            .map(|(number, span)| Queries { span: number, rows: span.own.clone(), position: span.shared.len() })
            .collect();
        attend(self.path, &mut places.tiles, query, key_values, &queries, self.heads, attended);
        self.after_attention(&mut places.blocks, hidden, attended);
    }

    /// The last layer: `stream.hidden` `[rows, hidden]` becomes `[texts, hidden]`. Of rows that aren't pooled only keys
    /// and values are needed.
    pub(super) fn forward_pooled(
        &self,
        places: &mut Places<P>,
        stream: &mut Stream<P>,
        spans: &[Span],
        pooled: &[usize],
        rope: &Rope,
        positions: &[u32],
    ) {
        let Stream { hidden, query, key, value, key_values, attended } = stream;
        self.keys_values(&mut places.blocks, hidden, None, key, value, rope, positions);
        key_values.pack::<P>(key, value, spans, self.heads);
        let width = self.input_norm.len();
        let last = |span: &Span| span.own.end - 1;
        let mut kept: Vec<f32> =
            pooled.iter().flat_map(|&span| &hidden[last(&spans[span]) * width..][..width]).copied().collect();
        let last_positions: Vec<u32> = pooled.iter().map(|&span| positions[last(&spans[span])]).collect();
        query.resize(pooled.len() * self.heads.query * self.heads.dim, P::Value::ZERO);
        self.queries(&mut places.blocks, &kept, query, rope, &last_positions);
        let queries: Vec<Queries> = pooled
            .iter()
            .enumerate()
            .map(|(text, &span)| Queries { span, rows: text..text + 1, position: spans[span].keys() - 1 })
            .collect();
        attend(self.path, &mut places.tiles, query, key_values, &queries, self.heads, attended);
        self.after_attention(&mut places.blocks, &mut kept, attended);
        *hidden = kept;
    }

    /// Projects rows to keys and values, and to queries where they are wanted of every row.
    #[allow(clippy::too_many_arguments, reason = "what is read, what is written, and where the rows stand")]
    fn keys_values(
        &self,
        blocks: &mut [Block<P>],
        hidden: &[f32],
        query: Option<&mut Vec<P::Value>>,
        key: &mut Vec<P::Value>,
        value: &mut Vec<P::Value>,
        rope: &Rope,
        positions: &[u32],
    ) {
        let (rows, width) = (positions.len(), self.heads.kv * self.heads.dim);
        key.resize(rows * width, P::Value::ZERO);
        value.resize(rows * width, P::Value::ZERO);
        let step = block_rows(rows, blocks.len());
        let query_width = self.heads.query * self.heads.dim;
        let mut queries = query.map(|query| query.chunks_mut(step * query_width));
        let tasks: Vec<_> = hidden
            .chunks(step * self.input_norm.len())
            .zip(key.chunks_mut(step * width).zip(value.chunks_mut(step * width)))
            .zip(positions.chunks(step))
            .map(|((hidden, (key, value)), positions)| {
                (hidden, key, value, queries.as_mut().and_then(Iterator::next), positions)
            })
            .collect();
        spread(blocks, tasks, |block, (hidden, key, value, query, positions)| {
            self.norm(hidden, &self.input_norm, &mut block.normed);
            let stride = 2 * width;
            let projected = &mut block.projected[..positions.len() * stride];
            self.project(&block.normed, &self.key_value, projected, stride, &mut block.scratch);
            self.turn(projected, (stride, width), &self.key_norm, rope, positions, key);
            self.path.enter(Round { path: self.path, rows: projected, stride, start: width, width, out: value });
            if let Some(query) = query {
                self.project_queries(block, query, rope, positions);
            }
        });
    }

    /// Projects every row to queries.
    fn queries(&self, blocks: &mut [Block<P>], hidden: &[f32], query: &mut [P::Value], rope: &Rope, positions: &[u32]) {
        let step = block_rows(positions.len(), blocks.len());
        let tasks: Vec<_> = hidden
            .chunks(step * self.input_norm.len())
            .zip(query.chunks_mut(step * self.heads.query * self.heads.dim))
            .zip(positions.chunks(step))
            .collect();
        spread(blocks, tasks, |block, ((hidden, query), positions)| {
            self.norm(hidden, &self.input_norm, &mut block.normed);
            self.project_queries(block, query, rope, positions);
        });
    }

    /// From `block.normed`.
    fn project_queries(&self, block: &mut Block<P>, query: &mut [P::Value], rope: &Rope, positions: &[u32]) {
        let width = self.heads.query * self.heads.dim;
        let projected = &mut block.projected[..positions.len() * width];
        self.project(&block.normed, &self.query, projected, width, &mut block.scratch);
        self.turn(projected, (width, width), &self.query_norm, rope, positions, query);
    }

    /// Output projection, then the MLP, each added to the residual stream. `attended` is as [`attend`] gives it.
    fn after_attention(&self, blocks: &mut [Block<P>], hidden: &mut [f32], attended: &[P::Value]) {
        let width = self.input_norm.len();
        let rows = hidden.len() / width;
        let part = self.heads.group() * self.heads.dim;
        let step = block_rows(rows, blocks.len());
        let tasks: Vec<_> = hidden.chunks_mut(step * width).enumerate().collect();
        spread(blocks, tasks, |block, (number, hidden)| {
            let (first, count) = (number * step, hidden.len() / width);
            for head in 0..self.heads.kv {
                let attended = &attended[(head * rows + first) * part..][..count * part];
                let Wide { values, stride } = &mut block.attended;
                for (attended, row) in attended.chunks_exact(part).zip(values.chunks_exact_mut(*stride)) {
                    row[head * part..][..part].copy_from_slice(attended);
                }
            }
            self.add(&block.attended, &self.output, hidden, &mut block.scratch);
            self.norm(hidden, &self.mlp_norm, &mut block.normed);
            let stride = block.inner.stride;
            self.path.enter(Multiply {
                path: self.path,
                rows: block.normed.rows(count),
                columns: self.gate_up.columns(),
                sink: Sink::GatedSilu { values: &mut block.inner.values, stride },
                scratch: &mut block.scratch,
            });
            self.add(&block.inner, &self.down, hidden, &mut block.scratch);
        });
    }

    /// Norms a block's rows.
    fn norm(&self, hidden: &[f32], weight: &[f32], out: &mut Wide<P::Value>) {
        let stride = out.stride;
        self.path.enter(Norm { path: self.path, rows: hidden, weight, eps: self.eps, out: &mut out.values, stride });
    }

    /// Norms a block's heads and turns them to their positions: the first `width` of every `stride` values.
    fn turn(
        &self,
        rows: &[f32],
        (stride, width): (usize, usize),
        weight: &[f32],
        rope: &Rope,
        positions: &[u32],
        out: &mut [P::Value],
    ) {
        let (path, eps) = (self.path, self.eps);
        path.enter(NormAndTurn { path, rows, stride, width, weight, eps, rope, positions, out });
    }

    /// A block's rows by weights.
    fn project(&self, rows: &Wide<P::Value>, weights: &Panels, out: &mut [f32], stride: usize, scratch: &mut Scratch) {
        let rows = rows.rows(out.len() / stride);
        let sink = Sink::Set { values: out, stride };
        self.path.enter(Multiply { path: self.path, rows, columns: weights.columns(), sink, scratch });
    }

    /// A block's rows by weights, added to the residual stream.
    fn add(&self, rows: &Wide<P::Value>, weights: &Panels, hidden: &mut [f32], scratch: &mut Scratch) {
        let stride = self.input_norm.len();
        let rows = rows.rows(hidden.len() / stride);
        let sink = Sink::Add { values: hidden, stride };
        self.path.enter(Multiply { path: self.path, rows, columns: weights.columns(), sink, scratch });
    }
}

/// Rows of a block, so that all threads have equally many blocks where there are enough rows.
fn block_rows(rows: usize, threads: usize) -> usize {
    let blocks = rows.div_ceil(BLOCK_ROWS).next_multiple_of(threads);
    rows.div_ceil(blocks).max(1)
}
