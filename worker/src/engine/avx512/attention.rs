//! Causal attention in tiles: scores of some queries and keys, their softmax so far, their share of the sum (the online
//! softmax of Milakov and Gimelshein 2018, as in FlashAttention). Memory for it does not grow with a text's length.

use std::arch::x86_64::*;
use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::Heads;
use super::kernel::{Rows, Sink, exp2, load_f32, mask, multiply_panel, store_bf16, store_f32};
use super::layer::Block;
use super::panels::{LANES, Line, PANEL};
use super::threads::spread;
use crate::engine::packing::Span;

/// Queries of a tile: eight full tiles of the microkernel.
const QUERIES: usize = 96;

/// Keys of a tile; a multiple of [`PANEL`]. With 96 queries and heads of 128: scores 96 KiB, their weights 48, keys and
/// values 64 each, which is well within a core's second cache.
const KEYS: usize = 256;

/// One thread's tile.
pub(super) struct Tile {
    scores: Vec<f32>,
    weights: Vec<bf16>,
    sums: Vec<f32>,
}

impl Tile {
    pub(super) fn new(head_dim: usize) -> Self {
        Self {
            scores: vec![0.0; QUERIES * KEYS],
            weights: vec![bf16::ZERO; QUERIES * KEYS],
            sums: vec![0.0; QUERIES * head_dim],
        }
    }
}

/// Keys and values of all spans as panels: for each span, then each key head, first the keys (columns are keys), then the
/// values (columns are dimensions). Keys are filled up to a multiple of [`PANEL`] with zeros.
#[derive(Default)]
pub(super) struct KeyValues {
    lines: Vec<Line>,
    /// Where a span's lines begin, and its keys, filled up.
    places: Vec<(usize, usize)>,
}

impl KeyValues {
    /// Packs `[rows, kv_heads * head_dim]` keys and values.
    pub(super) fn pack(&mut self, keys: &[bf16], values: &[bf16], spans: &[Span], heads: Heads) {
        let lines_of = |padded: usize| heads.key_lines(padded) + heads.value_lines(padded);
        self.places.clear();
        let mut end = 0;
        for span in spans {
            let padded = span.keys().next_multiple_of(PANEL);
            self.places.push((end, padded));
            end += lines_of(padded) * heads.kv;
        }
        self.lines.resize(end, Line::ZERO);

        let mut rest = &mut self.lines[..end];
        let mut tasks = Vec::with_capacity(spans.len() * heads.kv);
        for (span, &(_, padded)) in spans.iter().zip(&self.places) {
            for head in 0..heads.kv {
                let (lines, after) = rest.split_at_mut(lines_of(padded));
                rest = after;
                tasks.push((span, padded, head, lines));
            }
        }
        let width = heads.kv * heads.dim;
        tasks.into_par_iter().for_each(|(span, padded, head, lines)| {
            let (key_lines, value_lines) = lines.split_at_mut(heads.key_lines(padded));
            let of = |all: &'_ [bf16], row: usize| -> Range<usize> {
                debug_assert!((row + 1) * width <= all.len());
                row * width + head * heads.dim..row * width + (head + 1) * heads.dim
            };
            for panel in key_lines.chunks_exact_mut(heads.dim).enumerate() {
                let (number, lines) = panel;
                for column in 0..PANEL {
                    let key = number * PANEL + column;
                    let key = (key < span.keys()).then(|| &keys[of(keys, span.row(key))]);
                    for pair in 0..heads.dim / 2 {
                        let (first, second) = key.map_or((bf16::ZERO, bf16::ZERO), |k| (k[2 * pair], k[2 * pair + 1]));
                        lines[2 * pair + column / LANES].set(column % LANES, first, second);
                    }
                }
            }
            for pair in 0..padded / 2 {
                let value = |key: usize| (key < span.keys()).then(|| &values[of(values, span.row(key))]);
                let (first, second) = (value(2 * pair), value(2 * pair + 1));
                for dim in 0..heads.dim.next_multiple_of(PANEL) {
                    let at = |value: Option<&[bf16]>| value.and_then(|v| v.get(dim).copied()).unwrap_or(bf16::ZERO);
                    let line = (dim / PANEL) * padded + 2 * pair + dim % PANEL / LANES;
                    value_lines[line].set(dim % LANES, at(first), at(second));
                }
            }
        });
    }

    /// A span's key panels and value panels of one head, and its keys, filled up.
    fn of(&self, span: usize, head: usize, heads: Heads) -> (&[Line], &[Line], usize) {
        let (start, padded) = self.places[span];
        let (keys, values) = (heads.key_lines(padded), heads.value_lines(padded));
        let lines = &self.lines[start + head * (keys + values)..][..keys + values];
        let (keys, values) = lines.split_at(keys);
        (keys, values, padded)
    }
}

/// Queries of one span that attend to its keys.
#[derive(Debug, Clone)]
pub(super) struct Queries {
    /// Index of the span.
    pub(super) span: usize,
    /// Their rows among all queries.
    pub(super) rows: Range<usize>,
    /// The first one's position in its text; it sees itself and all before.
    pub(super) position: usize,
}

struct Task<'a> {
    queries: Queries,
    head: usize,
    out: &'a mut [bf16],
}

/// Attends from `q` `[queries, heads * head_dim]`. Gives, one key head after the other, `[queries, group * head_dim]`.
/// `all` covers the queries in order and without gaps.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) fn attend(
    blocks: &mut [Block],
    q: &[bf16],
    key_values: &KeyValues,
    all: &[Queries],
    heads: Heads,
    out: &mut Vec<bf16>,
) {
    let queries = all.last().map_or(0, |last| last.rows.end);
    let width = heads.group() * heads.dim;
    out.resize(heads.kv * queries * width, bf16::ZERO);
    let mut tasks = Vec::new();
    let mut rest = out.as_mut_slice();
    for head in 0..heads.kv {
        for span in all {
            for start in span.rows.clone().step_by(QUERIES) {
                let rows = start..span.rows.end.min(start + QUERIES);
                let (out, after) = rest.split_at_mut(rows.len() * width);
                rest = after;
                let position = span.position + start - span.rows.start;
                tasks.push(Task { queries: Queries { rows, position, span: span.span }, head, out });
            }
        }
    }
    // The longest first: one that is begun last would leave the other threads idle.
    tasks.sort_by_key(|task| std::cmp::Reverse((task.queries.position + 1) * task.queries.rows.len()));
    spread(blocks, tasks, |block, task| {
        for member in 0..heads.group() {
            attend_tile(&mut block.tile, q, key_values, &task.queries, (task.head, member), heads, task.out);
        }
    });
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn attend_tile(
    tile: &mut Tile,
    q: &[bf16],
    key_values: &KeyValues,
    queries: &Queries,
    (head, member): (usize, usize),
    heads: Heads,
    out: &mut [bf16],
) {
    let (key_lines, value_lines, padded) = key_values.of(queries.span, head, heads);
    let (count, dim, group) = (queries.rows.len(), heads.dim, heads.group());
    let stride = heads.query * dim;
    let q = Rows { values: &q[queries.rows.start * stride + (head * group + member) * dim..], stride, rows: count };
    let scale = std::f32::consts::LOG2_E / (dim as f32).sqrt();
    let mut state = [(f32::NEG_INFINITY, 0.0); QUERIES];
    let sums = &mut tile.sums[..count * dim];
    sums.fill(0.0);
    let seen = queries.position + count;
    for first in (0..seen).step_by(KEYS) {
        let keys = KEYS.min(seen - first);
        let panels = keys.div_ceil(PANEL);
        let mut scores = Sink::Set { values: &mut tile.scores, stride: KEYS };
        for panel in 0..panels {
            let lines = &key_lines[(first / PANEL + panel) * dim..][..dim];
            multiply_panel(q, lines, dim, PANEL, panel, &mut scores);
        }
        let rows = tile.scores.chunks_exact(KEYS).zip(tile.weights.chunks_exact_mut(KEYS));
        for (row, ((scores, weights), state)) in rows.zip(&mut state[..count]).enumerate() {
            let visible = (queries.position + row + 1).saturating_sub(first).min(keys);
            let shrink = soften(scores, visible, scale, state, &mut weights[..panels * PANEL]);
            if shrink != 1.0 {
                multiply_by(&mut sums[row * dim..][..dim], shrink);
            }
        }
        let weights = Rows { values: &tile.weights, stride: KEYS, rows: count };
        let mut sums = Sink::Add { values: sums, stride: dim };
        for panel in 0..dim.div_ceil(PANEL) {
            let lines = &value_lines[panel * padded + first..][..panels * PANEL];
            multiply_panel(weights, lines, panels * PANEL, PANEL.min(dim - panel * PANEL), panel, &mut sums);
        }
    }
    for (row, (sums, (_, total))) in sums.chunks_exact(dim).zip(&state[..count]).enumerate() {
        let scale = _mm512_set1_ps(1.0 / total);
        let out = &mut out[(row * group + member) * dim..][..dim];
        for (out, sums) in out.chunks_mut(LANES).zip(sums.chunks(LANES)) {
            store_bf16(out, _mm512_mul_ps(load_f32(sums), scale));
        }
    }
}

/// Turns a row's visible scores into weights relative to the largest score so far, zeros the weights behind them, and
/// brings `state` (largest score, sum of weights) up to date. `scale` turns scores into powers of 2. Gives what earlier
/// sums are to be multiplied by.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn soften(scores: &[f32], visible: usize, scale: f32, state: &mut (f32, f32), weights: &mut [bf16]) -> f32 {
    if visible == 0 {
        weights.fill(bf16::ZERO);
        return 1.0;
    }
    // Whole registers, and one that is cut where the visible ones end: the tile is filled up to whole registers.
    let (whole, cut) = (visible / LANES, mask(visible % LANES));
    let cut = if visible.is_multiple_of(LANES) { 0 } else { cut };
    let (scores, _) = scores.as_chunks::<LANES>();
    let (weights, _) = weights.as_chunks_mut::<LANES>();
    let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
    let mut largest = lowest;
    for lanes in &scores[..whole] {
        largest = _mm512_max_ps(largest, load_f32(lanes));
    }
    if cut != 0 {
        largest = _mm512_mask_max_ps(largest, cut, largest, load_f32(&scores[whole]));
    }
    let before = state.0;
    let now = before.max(_mm512_reduce_max_ps(largest));
    let (factor, offset) = (_mm512_set1_ps(scale), _mm512_set1_ps(now * scale));
    let mut sum = _mm512_setzero_ps();
    for (weights, scores) in weights.iter_mut().zip(scores).take(whole) {
        let lanes = exp2(_mm512_fmsub_ps(load_f32(scores), factor, offset));
        store_bf16(weights, lanes);
        sum = _mm512_add_ps(sum, lanes);
    }
    for (place, weights) in weights.iter_mut().enumerate().skip(whole) {
        let seen = if place == whole { cut } else { 0 };
        let lanes = _mm512_maskz_mov_ps(seen, exp2(_mm512_fmsub_ps(load_f32(&scores[place]), factor, offset)));
        store_bf16(weights, lanes);
        sum = _mm512_add_ps(sum, lanes);
    }
    let shrink = if before == now { 1.0 } else { ((before - now) * scale).exp2() };
    *state = (now, state.1 * shrink + _mm512_reduce_add_ps(sum));
    shrink
}

#[target_feature(enable = "avx512f")]
fn multiply_by(row: &mut [f32], factor: f32) {
    let factor = _mm512_set1_ps(factor);
    for lanes in row.chunks_mut(LANES) {
        let product = _mm512_mul_ps(load_f32(lanes), factor);
        store_f32(lanes, product);
    }
}
