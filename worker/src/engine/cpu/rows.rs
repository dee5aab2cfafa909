//! What happens to rows between products: norms, heads, positions.

use super::path::{LANES, LanesOf, Path, Simd, Work};
use crate::engine::rope::Rope;

/// RMS norm of `[rows, width]` into rows `stride` values apart, rounded for a product.
pub(super) struct Norm<'a, P: Path> {
    pub(super) path: P,
    pub(super) rows: &'a [f32],
    pub(super) weight: &'a [f32],
    pub(super) eps: f32,
    pub(super) out: &'a mut [P::Value],
    pub(super) stride: usize,
}

impl<P: Path> Work for Norm<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (path, width) = (self.path, self.weight.len());
        for (row, out) in self.rows.chunks_exact(width).zip(self.out.chunks_mut(self.stride)) {
            let scale = inverse_rms(path.simd(), row, self.eps);
            let chunks = row.chunks(LANES).zip(self.weight.chunks(LANES));
            for (out, (row, weight)) in out[..width].chunks_mut(LANES).zip(chunks) {
                path.store_values(out, normed(path, row, weight, scale));
            }
        }
    }
}

/// RMS norm of `[rows, width]` in place.
pub(super) struct NormInPlace<'a, P> {
    pub(super) path: P,
    pub(super) rows: &'a mut [f32],
    pub(super) weight: &'a [f32],
    pub(super) eps: f32,
}

impl<P: Path> Work for NormInPlace<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let simd = self.path.simd();
        for row in self.rows.chunks_exact_mut(self.weight.len()) {
            let scale = inverse_rms(simd, row, self.eps);
            for (row, weight) in row.chunks_mut(LANES).zip(self.weight.chunks(LANES)) {
                let lanes = normed(self.path, row, weight, scale);
                simd.store_part(row, lanes);
            }
        }
    }
}

/// Heads of `[rows, heads * head_dim]`, normed and turned to the rows' positions, rounded for a product.
pub(super) struct NormAndTurn<'a, P: Path> {
    pub(super) path: P,
    /// Rows `stride` values apart, of which the first `width` are the heads.
    pub(super) rows: &'a [f32],
    pub(super) stride: usize,
    pub(super) width: usize,
    /// `[head_dim]`, of every head's norm.
    pub(super) weight: &'a [f32],
    pub(super) eps: f32,
    pub(super) rope: &'a Rope,
    /// Of each row.
    pub(super) positions: &'a [u32],
    pub(super) out: &'a mut [P::Value],
}

impl<P: Path> Work for NormAndTurn<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (path, dim) = (self.path, self.weight.len());
        let rows = self.rows.chunks(self.stride).zip(self.out.chunks_exact_mut(self.width));
        for ((row, out), &position) in rows.zip(self.positions) {
            let angles = self.rope.at(position as usize);
            for (head, out) in row[..self.width].chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
                norm_and_turn(path, head, self.weight, self.eps, angles, out);
            }
        }
    }
}

/// One head. `cos` and `sin` have `head_dim / 2` values; pairs are `(i, i + head_dim / 2)`, as in Qwen3.
#[inline(always)]
fn norm_and_turn<P: Path>(
    path: P,
    head: &[f32],
    weight: &[f32],
    eps: f32,
    (cos, sin): (&[f32], &[f32]),
    out: &mut [P::Value],
) {
    let simd = path.simd();
    let half = head.len() / 2;
    let scale = inverse_rms(simd, head, eps);
    let (out_left, out_right) = out.split_at_mut(half);
    for start in (0..half).step_by(LANES) {
        let end = half.min(start + LANES);
        let left = normed(path, &head[start..end], &weight[start..end], scale);
        let right = normed(path, &head[half + start..half + end], &weight[half + start..half + end], scale);
        let (cos, sin) = (simd.load_part(&cos[start..end]), simd.load_part(&sin[start..end]));
        let minus_right = simd.sub(simd.splat(0.0), right);
        path.store_values(&mut out_left[start..end], simd.mul_add(left, cos, simd.mul(minus_right, sin)));
        path.store_values(&mut out_right[start..end], simd.mul_add(right, cos, simd.mul(left, sin)));
    }
}

/// Rows `stride` values apart, of which `width` from `start` on are rounded for a product.
pub(super) struct Round<'a, P: Path> {
    pub(super) path: P,
    pub(super) rows: &'a [f32],
    pub(super) stride: usize,
    pub(super) start: usize,
    pub(super) width: usize,
    pub(super) out: &'a mut [P::Value],
}

impl<P: Path> Work for Round<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (row, out) in self.rows.chunks(self.stride).zip(self.out.chunks_exact_mut(self.width)) {
            let row = &row[self.start..self.start + self.width];
            for (row, out) in row.chunks(LANES).zip(out.chunks_mut(LANES)) {
                self.path.store_values(out, self.path.simd().load_part(row));
            }
        }
    }
}

/// Sixteen values, or what is left, of a normed row.
#[inline(always)]
fn normed<P: Path>(path: P, row: &[f32], weight: &[f32], scale: f32) -> LanesOf<P> {
    let simd = path.simd();
    simd.mul(simd.mul(simd.load_part(row), simd.splat(scale)), simd.load_part(weight))
}

#[inline(always)]
fn inverse_rms<S: Simd>(simd: S, row: &[f32], eps: f32) -> f32 {
    let mut squares = simd.splat(0.0);
    for lanes in row.chunks(LANES) {
        let lanes = simd.load_part(lanes);
        squares = simd.mul_add(lanes, lanes, squares);
    }
    1.0 / (simd.sum(squares) / row.len() as f32 + eps).sqrt()
}
