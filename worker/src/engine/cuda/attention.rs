//! Causal attention over packed texts, by FlashAttention.
//!
//! A query's output has the same bits in every batch. A block of either kernel takes 128 queries of one head and one span,
//! and goes over the span's keys, 64 (FlashAttention 2) or 128 (3) at a time and counted from its first, from the last that
//! any of them sees down to the first: nothing is split between blocks, and what other spans there are, or the longest of
//! them, decides only how many blocks have nothing to do. Where a text's beginning is shared, its queries lie at other places
//! of their blocks. A query then passes more or fewer keys that it does not see, before the first that it sees: they weigh
//! nothing, and add zeros to a sum that is still zero. And it leaves the loop that masks for the one that does not somewhere
//! else; both are compiled to the same operations in the same order (seen in their machine code, of CUDA 13.0). [`trial`]
//! looks at all of it on the GPU itself.
//!
//! [`trial`]: crate::engine::trial

use std::ops::Range;

use candle_core::{Result, Tensor, bail};
use candle_flash_attn::flash_attn_varlen;

use super::kernels::check_bf16;
use crate::engine::compute::CudaAttention;
use crate::engine::packing::{Packed, RowsBefore, Span};

/// Most spans of a batch: the kernel counts them along a dimension of its grid that ends there.
const SPANS_MAX: usize = 65_535;

/// Where each span's queries and keys lie.
pub(in crate::engine) struct Lengths {
    /// In order; each is a launch.
    parts: Vec<Part>,
    attention: CudaAttention,
    /// Whether a span may have queries that don't see all of its keys. Settled by the layer and not by the batch: a text
    /// of one token must not go through another kernel because there is none longer beside it.
    causal: bool,
}

/// Spans that are launched together. Each is given as many blocks as the longest of them.
struct Part {
    /// Rows of the queries and of the keys.
    queries: Range<usize>,
    keys: Range<usize>,
    /// `[spans + 1]` each, u32: how many lie before each span within the part, and in the end how many there are.
    queries_before: Tensor,
    keys_before: Tensor,
    queries_max: usize,
    keys_max: usize,
}

/// How attention over a batch is launched.
pub(in crate::engine) struct Launches {
    before: RowsBefore,
    /// The spans of each.
    spans: Vec<Range<usize>>,
}

impl Launches {
    pub(in crate::engine) fn of(packed: &Packed) -> Self {
        let end = packed.spans.len();
        let spans = match packed.long_spans() {
            Some(cut) => vec![0..cut, cut..end],
            None => std::iter::once(0..end).collect(),
        };
        Self { before: packed.rows_before(), spans }
    }

    /// What has to be copied to the GPU for [`Lengths::of`].
    pub(in crate::engine) fn arrays(&self) -> Vec<Vec<u32>> {
        let RowsBefore { own, keys, pooled } = &self.before;
        let within = |all: &[u32], spans: &Range<usize>| {
            all[spans.start..=spans.end].iter().map(|rows| rows - all[spans.start]).collect::<Vec<u32>>()
        };
        let each = self.spans.iter().flat_map(|spans| [within(own, spans), within(keys, spans)]).collect::<Vec<_>>();
        [vec![pooled.clone(), keys.clone()], each].concat()
    }
}

impl Lengths {
    /// For all rows, and for the pooled ones. `tensors` are [`Launches::arrays`], copied.
    pub(in crate::engine) fn of(
        packed: &Packed,
        launches: &Launches,
        tensors: &[Tensor],
        attention: CudaAttention,
    ) -> Result<(Self, Self)> {
        let [pooled_before, all_keys_before, each @ ..] = tensors else { bail!("each array gives a tensor") };
        let RowsBefore { own, keys, .. } = &launches.before;
        let rows = |before: &[u32], spans: &Range<usize>| before[spans.start] as usize..before[spans.end] as usize;
        let longest = |spans: &[Span], len: fn(&Span) -> usize| spans.iter().map(len).max().unwrap_or(0);
        let parts = launches.spans.iter().zip(each.chunks_exact(2)).map(|(spans, tensors)| Part {
            queries: rows(own, spans),
            keys: rows(keys, spans),
            queries_before: tensors[0].clone(),
            keys_before: tensors[1].clone(),
            queries_max: longest(&packed.spans[spans.clone()], |span| span.own.len()),
            keys_max: longest(&packed.spans[spans.clone()], Span::keys),
        });
        let all = Self { parts: parts.collect(), attention, causal: true };
        // The pooled query is a text's last, and sees all: the kernel without a mask is the faster one, and one query does
        // not fill the blocks of FlashAttention 3.
        let pooled = Part {
            queries: 0..packed.pooled.len(),
            keys: rows(keys, &(0..packed.spans.len())),
            queries_before: pooled_before.clone(),
            keys_before: all_keys_before.clone(),
            queries_max: 1,
            keys_max: longest(&packed.spans, Span::keys),
        };
        Ok((all, Self { parts: vec![pooled], attention: CudaAttention::Two, causal: false }))
    }
}

/// Attends from `q` `[queries, heads, head_dim]` to `k` and `v` `[keys, kv_heads, head_dim]`, each text to itself; they may
/// be parts of wider rows. Gives `[queries, heads * head_dim]`.
///
/// A text's queries are its last positions: the kernel lets the last query see all keys, and each one before it one less.
pub(in crate::engine) fn attend(q: &Tensor, k: &Tensor, v: &Tensor, lengths: &Lengths) -> Result<Tensor> {
    [q, k, v].into_iter().try_for_each(check_bf16)?;
    let (queries, heads, dim) = q.dims3()?;
    let mut attended = Vec::with_capacity(lengths.parts.len());
    for part in &lengths.parts {
        let (queries, keys) = (&part.queries, &part.keys);
        let (q, k) = (q.narrow(0, queries.start, queries.len())?, k.narrow(0, keys.start, keys.len())?);
        attended.push(launch(&q, &k, &v.narrow(0, keys.start, keys.len())?, part, lengths)?);
    }
    Tensor::cat(&attended, 0)?.reshape((queries, heads * dim))
}

fn launch(q: &Tensor, k: &Tensor, v: &Tensor, part: &Part, lengths: &Lengths) -> Result<Tensor> {
    let Part { queries_before, keys_before, queries_max, keys_max, .. } = part;
    if queries_before.elem_count() > SPANS_MAX + 1 {
        bail!("a batch of {} texts and prefixes; attention takes {SPANS_MAX}", queries_before.elem_count() - 1);
    }
    let scale = 1.0 / (q.dim(2)? as f32).sqrt();
    match lengths.attention {
        CudaAttention::Two => {
            flash_attn_varlen(q, k, v, queries_before, keys_before, *queries_max, *keys_max, scale, lengths.causal)
        }
        #[cfg(feature = "flash-attention-3")]
        CudaAttention::Three => candle_flash_attn_v3::flash_attn_varlen(
            q,
            k,
            v,
            queries_before,
            keys_before,
            *queries_max,
            *keys_max,
            scale,
            lengths.causal,
            false,
        ),
        #[cfg(not(feature = "flash-attention-3"))]
        CudaAttention::Three => bail!("this program was built without FlashAttention 3"),
    }
}
