//! What happens to a row between products: norms, heads, positions.

use std::arch::x86_64::*;

use half::bf16;

use super::kernel::{load_f32, store_bf16, store_f32};
use super::panels::LANES;

/// RMS norm of `row`, rounded to bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) fn norm(row: &[f32], weight: &[f32], eps: f32, out: &mut [bf16]) {
    let scale = _mm512_set1_ps(inverse_rms(row, eps));
    for ((out, row), weight) in out.chunks_mut(LANES).zip(row.chunks(LANES)).zip(weight.chunks(LANES)) {
        store_bf16(out, _mm512_mul_ps(_mm512_mul_ps(load_f32(row), scale), load_f32(weight)));
    }
}

/// RMS norm of `row` in place.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) fn norm_in_place(row: &mut [f32], weight: &[f32], eps: f32) {
    let scale = _mm512_set1_ps(inverse_rms(row, eps));
    for (row, weight) in row.chunks_mut(LANES).zip(weight.chunks(LANES)) {
        let normed = _mm512_mul_ps(_mm512_mul_ps(load_f32(row), scale), load_f32(weight));
        store_f32(row, normed);
    }
}

/// One row's heads, normed and turned to the row's position, rounded to bf16. `cos` and `sin` have `head_dim / 2` values.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) fn heads(row: &[f32], weight: &[f32], eps: f32, (cos, sin): (&[f32], &[f32]), out: &mut [bf16]) {
    let (dim, half) = (weight.len(), weight.len() / 2);
    for (head, out) in row.chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
        let scale = _mm512_set1_ps(inverse_rms(head, eps));
        let (out_left, out_right) = out.split_at_mut(half);
        for start in (0..half).step_by(LANES) {
            let end = half.min(start + LANES);
            let normed = |offset: usize| {
                let (value, weight) =
                    (load_f32(&head[offset + start..offset + end]), &weight[offset + start..offset + end]);
                _mm512_mul_ps(_mm512_mul_ps(value, scale), load_f32(weight))
            };
            let (left, right) = (normed(0), normed(half));
            let (cos, sin) = (load_f32(&cos[start..end]), load_f32(&sin[start..end]));
            store_bf16(&mut out_left[start..end], _mm512_fmsub_ps(left, cos, _mm512_mul_ps(right, sin)));
            store_bf16(&mut out_right[start..end], _mm512_fmadd_ps(right, cos, _mm512_mul_ps(left, sin)));
        }
    }
}

/// Rounds to bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) fn round(row: &[f32], out: &mut [bf16]) {
    for (out, row) in out.chunks_mut(LANES).zip(row.chunks(LANES)) {
        store_bf16(out, load_f32(row));
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn inverse_rms(row: &[f32], eps: f32) -> f32 {
    let mut squares = _mm512_setzero_ps();
    for lanes in row.chunks(LANES) {
        let lanes = load_f32(lanes);
        squares = _mm512_fmadd_ps(lanes, lanes, squares);
    }
    1.0 / (_mm512_reduce_add_ps(squares) / row.len() as f32 + eps).sqrt()
}
