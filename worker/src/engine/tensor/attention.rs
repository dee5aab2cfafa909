//! Causal attention over packed texts, in blocks of queries: memory grows with a text's length, never with its square.

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor, bail};
use rayon::prelude::*;

use super::exp::exp;
use crate::engine::marks::{Work, bytes};

/// Most queries a block has. Larger blocks waste more products above the diagonal, smaller ones pack keys more often.
/// Measured best of 64, 128 and 256 at 2,048 tokens.
const BLOCK_QUERIES_MAX: usize = 256;

/// Most scores a block holds (4 MB of f32), so that a 32k text costs a thread no more than a short one.
const BLOCK_SCORES_MAX: usize = 1 << 20;

/// Where one text lies among the packed rows. Its queries are the last of its positions: all of them in most layers,
/// the pooled one in the last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) query_start: usize,
    pub(super) query_len: usize,
    pub(super) key_start: usize,
    pub(super) key_len: usize,
}

/// Which rows see which.
pub(super) struct Reach {
    /// Texts that lie among the queries, in order and without gaps.
    pub(super) spans: Vec<Span>,
    /// The same for the kernel on the GPU.
    #[cfg(feature = "cuda")]
    pub(super) lengths: crate::engine::cuda::Lengths,
}

impl Reach {
    /// What attention from `q` to as many values as keys `k` does, each `[rows, heads, head_dim]`: each query sees what
    /// comes before it, and itself.
    pub(super) fn work(&self, q: &Tensor, k: &Tensor) -> Work {
        let seen = |span: &Span| {
            let (queries, keys) = (span.query_len as u64, span.key_len as u64);
            queries * keys - queries * queries.saturating_sub(1) / 2
        };
        let pairs: u64 = self.spans.iter().map(seen).sum();
        let width: usize = q.dims().iter().skip(1).product();
        Work { operation: "attention", flop: 4 * width as u64 * pairs, bytes: 2 * (bytes(q) + bytes(k)) }
    }
}

/// Some queries of one text, for one key head and the query heads that share it.
struct Block {
    head: usize,
    /// First query's row, and how many.
    query_start: usize,
    queries: usize,
    key_start: usize,
    /// Keys that the first query sees; each further one sees one more.
    visible_first: usize,
}

/// Attends from `q` `[queries, heads, head_dim]` to `k` and `v` `[keys, kv_heads, head_dim]`, each text to itself.
/// Gives `[queries, heads * head_dim]`.
pub(super) fn attend(q: &Tensor, k: &Tensor, v: &Tensor, reach: &Reach) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if q.device().is_cuda() {
        return crate::engine::cuda::attend(q, k, v, &reach.lengths);
    }
    let spans = &reach.spans;
    let (queries, heads, dim) = q.dims3()?;
    let (_, kv_heads, _) = k.dims3()?;
    let group = heads / kv_heads;
    // Head-major, so that a block is one plain matrix: rows are (query, head of the group).
    let q = q.contiguous()?.reshape((queries, kv_heads, group, dim))?.transpose(0, 1)?.contiguous()?;
    let q = q.reshape((kv_heads, queries * group, dim))?;
    let k = k.transpose(0, 1)?.contiguous()?;
    let v = v.transpose(0, 1)?.contiguous()?;
    let scale = 1.0 / (dim as f32).sqrt();

    let run = |block: &Block| -> Result<Tensor> {
        let keys = block.visible_first + block.queries - 1;
        let rows = |all: &Tensor, start, len| all.get(block.head)?.narrow(0, start, len);
        let scores = rows(&q, block.query_start * group, block.queries * group)?
            .matmul(&rows(&k, block.key_start, keys)?.t()?)?;
        scores.inplace_op1(&CausalSoftmax { scale, group, visible_first: block.visible_first })?;
        scores.matmul(&rows(&v, block.key_start, keys)?)
    };
    // In order of (head, query), which is the order the rows are stitched in.
    let blocks: Vec<Block> = (0..kv_heads).flat_map(|head| blocks(head, group, spans)).collect();
    let outputs = blocks.par_iter().map(run).collect::<Result<Vec<_>>>()?;
    let stitched = Tensor::cat(&outputs, 0)?.reshape((kv_heads, queries, group, dim))?;
    stitched.transpose(0, 1)?.contiguous()?.reshape((queries, heads * dim))
}

fn blocks(head: usize, group: usize, spans: &[Span]) -> impl Iterator<Item = Block> {
    spans.iter().flat_map(move |span| {
        let size = (BLOCK_SCORES_MAX / (group * span.key_len)).clamp(1, BLOCK_QUERIES_MAX);
        (0..span.query_len).step_by(size).map(move |first| Block {
            head,
            query_start: span.query_start + first,
            queries: size.min(span.query_len - first),
            key_start: span.key_start,
            visible_first: span.key_len - span.query_len + first + 1,
        })
    })
}

/// Scales scores, hides the keys after each query, and turns each row into weights that sum to 1. In place: scores are
/// the largest thing attention has.
struct CausalSoftmax {
    scale: f32,
    group: usize,
    visible_first: usize,
}

impl InplaceOp1 for CausalSoftmax {
    fn name(&self) -> &'static str {
        "causal-softmax"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(scores), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            bail!("causal softmax takes contiguous f32 scores");
        };
        let (_, keys) = layout.shape().dims2()?;
        pulp::Arch::new().dispatch(|| {
            for (row, scores) in scores[start..end].chunks_exact_mut(keys).enumerate() {
                let (seen, hidden) = scores.split_at_mut(self.visible_first + row / self.group);
                soften(seen, self.scale);
                hidden.fill(0.0);
            }
        });
        Ok(())
    }
}

/// Softmax of scaled scores.
#[inline(always)]
fn soften(scores: &mut [f32], scale: f32) {
    // Eight largest and eight sums side by side: one after the other they would be one long chain.
    let mut largest = [f32::NEG_INFINITY; 8];
    for chunk in scores.chunks(8) {
        for (largest, score) in largest.iter_mut().zip(chunk) {
            *largest = if *score > *largest { *score } else { *largest };
        }
    }
    let largest = largest.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0.0; 8];
    for chunk in scores.chunks_mut(8) {
        for (sum, score) in sums.iter_mut().zip(chunk) {
            *score = exp((*score - largest) * scale);
            *sum += *score;
        }
    }
    // The largest adds 1 to the sum, so this divides by 1 or more (or passes a NaN on, which `finish` refuses).
    let normalize = 1.0 / sums.iter().sum::<f32>();
    scores.iter_mut().for_each(|weight| *weight *= normalize);
}
