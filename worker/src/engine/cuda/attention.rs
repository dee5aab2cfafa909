//! Causal attention over packed texts, by FlashAttention.
//!
//! A query's output has the same bits in every batch. A block of the kernel takes 128 queries of one head and one span, and
//! goes over the span's keys, 64 at a time and counted from its first, from the last that any of them sees down to the
//! first: nothing is split between blocks, and what other spans there are, or the longest of them, decides only how many
//! blocks have nothing to do. Where a text's beginning is shared, its queries lie at other places of their blocks. A query
//! then passes more or fewer keys that it does not see, before the first that it sees: they weigh nothing, and add zeros
//! to a sum that is still zero. And it leaves the loop that masks for the one that does not somewhere else; both are
//! compiled to the same operations in the same order (seen in their machine code, of CUDA 13.0). [`trial`] looks at all
//! of it on the GPU itself.
//!
//! [`trial`]: crate::engine::trial

use candle_core::{Result, Tensor, bail};
use candle_flash_attn::flash_attn_varlen;

use super::kernels::check_bf16;
use crate::engine::packing::{Packed, Span};

/// Most spans of a batch: the kernel counts them along a dimension of its grid that ends there.
const SPANS_MAX: usize = 65_535;

/// Where each span's queries and keys lie, `[spans + 1]` each, u32: how many lie before it, and in the end how many there are.
pub(in crate::engine) struct Lengths {
    queries_before: Tensor,
    keys_before: Tensor,
    queries_max: usize,
    keys_max: usize,
    /// Whether a span may have queries that don't see all of its keys. Settled by the layer and not by the batch: a text
    /// of one token must not go through another kernel because there is none longer beside it.
    causal: bool,
}

impl Lengths {
    /// For all rows, and for the pooled ones. `tensors` are [`Packed::rows_before`], copied.
    pub(in crate::engine) fn of(packed: &Packed, tensors: &[Tensor]) -> Result<(Self, Self)> {
        let [queries_before, keys_before, pooled_before] = tensors else { bail!("each part gives a tensor") };
        let keys_max = packed.spans.iter().map(Span::keys).max().unwrap_or(0);
        let queries_max = packed.spans.iter().map(|span| span.own.len()).max().unwrap_or(0);
        let lengths = |queries_before: &Tensor, queries_max, causal| Self {
            queries_before: queries_before.clone(),
            keys_before: keys_before.clone(),
            queries_max,
            keys_max,
            causal,
        };
        // The pooled query is a text's last, and sees all: the kernel without a mask is the faster one.
        Ok((lengths(queries_before, queries_max, true), lengths(pooled_before, 1, false)))
    }
}

/// Attends from `q` `[queries, heads, head_dim]` to `k` and `v` `[keys, kv_heads, head_dim]`, each text to itself; they may
/// be parts of wider rows. Gives `[queries, heads * head_dim]`.
///
/// A text's queries are its last positions: the kernel lets the last query see all keys, and each one before it one less.
pub(in crate::engine) fn attend(q: &Tensor, k: &Tensor, v: &Tensor, lengths: &Lengths) -> Result<Tensor> {
    [q, k, v].into_iter().try_for_each(check_bf16)?;
    let (queries, heads, dim) = q.dims3()?;
    let Lengths { queries_before, keys_before, queries_max, keys_max, causal } = lengths;
    if queries_before.elem_count() > SPANS_MAX + 1 {
        bail!("a batch of {} texts and prefixes; attention takes {SPANS_MAX}", queries_before.elem_count() - 1);
    }
    let scale = 1.0 / (dim as f32).sqrt();
    flash_attn_varlen(q, k, v, queries_before, keys_before, *queries_max, *keys_max, scale, *causal)?
        .reshape((queries, heads * dim))
}
