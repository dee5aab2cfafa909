//! Causal attention in tiles: scores of some queries and keys, their softmax so far, their share of the sum (the online
//! softmax of Milakov and Gimelshein 2018, as in FlashAttention). Memory for it does not grow with a text's length.
//!
//! Tiles of keys begin at multiples of [`KEYS`] in the text, whatever the queries: what a query sees is added up in one
//! order in every batch.

use std::ops::Range;

use bytemuck::Zeroable;
use rayon::prelude::*;

use super::Heads;
use super::math::exp2;
use super::multiply::{Columns, Line, Multiply, ROWS_MAX, Rows, STRIP, Scratch, Sink};
use super::path::{LANES, Layout, Path, Simd, Value, Work};
use super::threads::spread;
use crate::engine::packing::Span;

/// Queries of a tile.
const QUERIES: usize = ROWS_MAX;

/// Keys of a tile; a multiple of [`STRIP`]. With 96 queries and heads of 128 in f32: scores 96 KiB, keys and values 128
/// each, which is within a core's second cache.
const KEYS: usize = 256;

/// One thread's tile.
pub(super) struct Tile<P: Path> {
    /// `[QUERIES, head_dim]`: where a batch's rows lie they would share few places of the first cache.
    queries: Vec<P::Value>,
    /// `[QUERIES, KEYS]`.
    scores: Vec<f32>,
    rounded: Vec<P::Value>,
    /// `[QUERIES, head_dim]`.
    sums: Vec<f32>,
    scratch: Scratch,
}

impl<P: Path> Tile<P> {
    pub(super) fn new(head_dim: usize) -> Self {
        Self {
            queries: vec![P::Value::ZERO; QUERIES * head_dim],
            scores: vec![0.0; QUERIES * KEYS],
            rounded: vec![P::Value::ZERO; P::rounded_len(QUERIES * KEYS)],
            sums: vec![0.0; QUERIES * head_dim],
            scratch: Scratch::new(),
        }
    }
}

/// Keys and values of all spans in panels (see [`super::panels`]): for each span, then each key head, first the keys
/// (columns are keys), then the values (columns are dimensions). Keys are filled up to whole strips with zeros.
#[derive(Default)]
pub(super) struct KeyValues {
    lines: Vec<Line>,
    /// Where a span's values begin, and its keys, filled up.
    places: Vec<(usize, usize)>,
}

impl KeyValues {
    /// Packs `[rows, kv_heads * head_dim]` keys and values.
    pub(super) fn pack<P: Path>(&mut self, keys: &[P::Value], values: &[P::Value], spans: &[Span], heads: Heads) {
        self.places.clear();
        let mut end = 0;
        for span in spans {
            let padded = span.keys().next_multiple_of(STRIP);
            self.places.push((end, padded));
            end += len_of_head(padded, heads) * heads.kv;
        }
        // Whole strips are whole lines.
        self.lines.resize(end * size_of::<P::Value>() / size_of::<Line>(), Line::zeroed());

        let mut rest: &mut [P::Value] = bytemuck::cast_slice_mut(&mut self.lines);
        let mut tasks = Vec::with_capacity(spans.len() * heads.kv);
        for (span, &(_, padded)) in spans.iter().zip(&self.places) {
            for head in 0..heads.kv {
                let (both, after) = rest.split_at_mut(len_of_head(padded, heads));
                rest = after;
                tasks.push((span, padded, head, both.split_at_mut(padded * heads.dim)));
            }
        }
        let width = heads.kv * heads.dim;
        tasks.into_par_iter().for_each(|(span, padded, head, (key_panels, value_panels))| {
            let at = |key: usize| {
                let start = span.row(key) * width + head * heads.dim;
                start..start + heads.dim
            };
            pack_keys::<P>(key_panels, padded, heads.dim, |key| (key < span.keys()).then(|| &keys[at(key)]));
            pack_values::<P>(value_panels, padded, |key| (key < span.keys()).then(|| &values[at(key)]));
        });
    }

    /// A span's keys and values of one head, and how many keys there are, filled up.
    fn of<V: Value>(&self, span: usize, head: usize, heads: Heads) -> (&[V], &[V], usize) {
        let (start, padded) = self.places[span];
        let len = len_of_head(padded, heads);
        let both = &bytemuck::cast_slice(&self.lines)[start + head * len..][..len];
        let (keys, values) = both.split_at(padded * heads.dim);
        (keys, values, padded)
    }
}

/// Values of one head's keys and values, of so many keys.
fn len_of_head(padded: usize, heads: Heads) -> usize {
    padded * (heads.dim + heads.dim.next_multiple_of(STRIP))
}

fn pack_keys<'a, P: Path>(
    panels: &mut [P::Value],
    padded: usize,
    dim: usize,
    key: impl Fn(usize) -> Option<&'a [P::Value]>,
) {
    let Layout { panel: width, group } = P::LAYOUT;
    for column in 0..padded {
        let panel = &mut panels[column / width * width * dim..][..width * dim];
        let column_values = key(column);
        for place in 0..dim / group {
            let out = &mut panel[(place * width + column % width) * group..][..group];
            match column_values {
                Some(values) => out.copy_from_slice(&values[place * group..][..group]),
                None => out.fill(P::Value::ZERO),
            }
        }
    }
}

fn pack_values<'a, P: Path>(panels: &mut [P::Value], padded: usize, value: impl Fn(usize) -> Option<&'a [P::Value]>) {
    let Layout { panel: width, group } = P::LAYOUT;
    let panels = panels.chunks_exact_mut(padded * width);
    for (panel, out) in panels.enumerate() {
        for key in 0..padded {
            let values = value(key).and_then(|values| values.get(panel * width..)).unwrap_or_default();
            let out = &mut out[key / group * width * group..][..width * group];
            for column in 0..width {
                out[column * group + key % group] = values.get(column).copied().unwrap_or(P::Value::ZERO);
            }
        }
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

struct Task<'a, V> {
    queries: Queries,
    head: usize,
    out: &'a mut [V],
}

/// Attends from `q` `[queries, heads * head_dim]`. Gives, one key head after the other, `[queries, group * head_dim]`.
/// `all` covers the queries in order and without gaps.
pub(super) fn attend<P: Path>(
    path: P,
    tiles: &mut [Tile<P>],
    q: &[P::Value],
    key_values: &KeyValues,
    all: &[Queries],
    heads: Heads,
    out: &mut Vec<P::Value>,
) {
    let queries = all.last().map_or(0, |last| last.rows.end);
    let width = heads.group() * heads.dim;
    out.resize(heads.kv * queries * width, P::Value::ZERO);
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
    spread(tiles, tasks, |tile, task| {
        for member in 0..heads.group() {
            attend_tile(path, tile, q, key_values, &task.queries, (task.head, member), heads, task.out);
        }
    });
}

#[allow(clippy::too_many_arguments, reason = "a tile's place among queries, keys and heads")]
fn attend_tile<P: Path>(
    path: P,
    tile: &mut Tile<P>,
    q: &[P::Value],
    key_values: &KeyValues,
    queries: &Queries,
    (head, member): (usize, usize),
    heads: Heads,
    out: &mut [P::Value],
) {
    let (keys, values, padded) = key_values.of(queries.span, head, heads);
    let (count, dim, group) = (queries.rows.len(), heads.dim, heads.group());
    let stride = heads.query * dim;
    let own = q[queries.rows.start * stride..].chunks(stride);
    for (tile, row) in tile.queries.chunks_exact_mut(dim).zip(own).take(count) {
        tile.copy_from_slice(&row[(head * group + member) * dim..][..dim]);
    }
    let mut state = [(f32::NEG_INFINITY, 0.0); QUERIES];
    let state = &mut state[..count];
    let sums = &mut tile.sums[..count * dim];
    sums.fill(0.0);
    let seen = queries.position + count;
    for first in (0..seen).step_by(KEYS) {
        let keys_here = KEYS.min(seen - first);
        let filled = keys_here.next_multiple_of(STRIP);
        path.enter(Multiply {
            path,
            rows: Rows { values: &tile.queries, stride: dim, rows: count },
            columns: Columns {
                elements: P::Value::elements(&keys[first * dim..][..filled * dim]),
                inner: dim,
                start: 0,
                pitch: dim * P::LAYOUT.panel,
                outputs: filled,
                step: STRIP,
            },
            sink: Sink::Set { values: &mut tile.scores, stride: KEYS },
            scratch: &mut tile.scratch,
        });
        path.enter(Soften {
            path,
            scores: &mut tile.scores,
            rounded: &mut tile.rounded,
            state,
            sums,
            visible: (queries.position + 1) as isize - first as isize,
            keys: keys_here,
            // Scores become powers of 2.
            scale: std::f32::consts::LOG2_E / (dim as f32).sqrt(),
        });
        path.enter(Multiply {
            path,
            rows: Rows { values: P::weights(&tile.scores, &tile.rounded), stride: KEYS, rows: count },
            columns: Columns {
                elements: P::Value::elements(values),
                inner: filled,
                start: first,
                pitch: padded * P::LAYOUT.panel,
                outputs: dim,
                step: STRIP,
            },
            sink: Sink::Add { values: sums, stride: dim },
            scratch: &mut tile.scratch,
        });
    }
    path.enter(Divide { path, sums, state, dim, out: &mut out[member * dim..], stride: group * dim });
}

/// Turns scores into weights relative to the largest score so far of their row.
struct Soften<'a, P: Path> {
    path: P,
    /// Rows [`KEYS`] apart; [`Path::store_weights`] says where the weights go.
    scores: &'a mut [f32],
    rounded: &'a mut [P::Value],
    /// Of each row the largest score and the sum of weights so far.
    state: &'a mut [(f32, f32)],
    /// `[rows, head_dim]`: sums of earlier tiles, which are brought down to the new largest score.
    sums: &'a mut [f32],
    /// How many of the tile's keys the first row sees, or, below zero, how many rows come before one that sees any.
    visible: isize,
    /// Keys of the tile.
    keys: usize,
    scale: f32,
}

impl<P: Path> Work for Soften<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let filled = self.keys.next_multiple_of(STRIP);
        let dim = self.sums.len() / self.state.len();
        for (row, (state, sums)) in self.state.iter_mut().zip(self.sums.chunks_exact_mut(dim)).enumerate() {
            let visible = (self.visible + row as isize).clamp(0, self.keys as isize) as usize;
            let scores = &mut self.scores[row * KEYS..][..filled];
            let rounded = match P::rounded_len(KEYS) {
                0 => &mut [],
                len => &mut self.rounded[row * len..][..filled],
            };
            let shrink = soften(self.path, scores, rounded, visible, self.scale, state);
            if shrink != 1.0 {
                multiply_by(self.path.simd(), sums, shrink);
            }
        }
    }
}

/// Turns a row's visible scores into weights, zeros the weights behind them, and brings `state` up to date. Gives what
/// earlier sums are to be multiplied by.
#[inline(always)]
fn soften<P: Path>(
    path: P,
    scores: &mut [f32],
    rounded: &mut [P::Value],
    visible: usize,
    scale: f32,
    state: &mut (f32, f32),
) -> f32 {
    let simd = path.simd();
    let (scores, _) = scores.as_chunks_mut::<LANES>();
    let mut rounded = rounded.chunks_exact_mut(LANES);
    let nothing = simd.splat(0.0);
    let mut shrink = 1.0;
    let mut seen = 0;
    if visible > 0 {
        let lowest = simd.splat(f32::NEG_INFINITY);
        let mut largest = lowest;
        for (place, lanes) in scores[..visible.div_ceil(LANES)].iter().enumerate() {
            let lanes = simd.load(lanes);
            let left = visible - place * LANES;
            let lanes = if left < LANES { simd.select(left, lanes, lowest) } else { lanes };
            largest = simd.max(largest, lanes);
        }
        let before = state.0;
        let now = before.max(simd.largest(largest));
        let (factor, offset) = (simd.splat(scale), simd.splat(-(now * scale)));
        let mut sum = nothing;
        for (place, scores) in scores[..visible.div_ceil(LANES)].iter_mut().enumerate() {
            let weights = exp2(simd, simd.mul_add(simd.load(scores), factor, offset));
            let left = visible - place * LANES;
            let weights = if left < LANES { simd.select(left, weights, nothing) } else { weights };
            path.store_weights(scores, rounded.next().unwrap_or_default(), weights);
            sum = simd.add(sum, weights);
            seen += 1;
        }
        if before != now {
            let mut power = [0.0; LANES];
            simd.store(&mut power, exp2(simd, simd.splat((before - now) * scale)));
            shrink = power[0];
        }
        *state = (now, state.1 * shrink + simd.sum(sum));
    }
    for scores in &mut scores[seen..] {
        path.store_weights(scores, rounded.next().unwrap_or_default(), nothing);
    }
    shrink
}

#[inline(always)]
fn multiply_by<S: Simd>(simd: S, row: &mut [f32], factor: f32) {
    let factor = simd.splat(factor);
    for lanes in row.chunks_mut(LANES) {
        let product = simd.mul(simd.load_part(lanes), factor);
        simd.store_part(lanes, product);
    }
}

/// Divides sums by their rows' sum of weights, into rows `stride` apart.
struct Divide<'a, P: Path> {
    path: P,
    sums: &'a [f32],
    state: &'a [(f32, f32)],
    dim: usize,
    out: &'a mut [P::Value],
    stride: usize,
}

impl<P: Path> Work for Divide<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let simd = self.path.simd();
        let rows = self.sums.chunks_exact(self.dim).zip(self.state);
        for ((sums, (_, total)), out) in rows.zip(self.out.chunks_mut(self.stride)) {
            let scale = simd.splat(1.0 / total);
            for (out, sums) in out[..self.dim].chunks_mut(LANES).zip(sums.chunks(LANES)) {
                self.path.store_values(out, simd.mul(simd.load_part(sums), scale));
            }
        }
    }
}
