//! The microkernel: a product of a few bf16 rows and a panel of 32 bf16 columns, summed in f32 registers.
//!
//! 12 rows by 2 vectors are 24 sums, which with two columns and one row value fill the 32 registers; each step makes 24
//! products of 2 x 16 for 14 loads, so the multipliers set the pace, not the caches (measured: 97 % of what `vdpbf16ps`
//! can do on one core). Rows are read where they lie; only the columns are packed, once, when weights are loaded.
//!
//! A sum adds its products in the order of the inner dimension, whatever the height of the tile. A row's values are
//! therefore the same bits in every batch.

use std::arch::x86_64::*;
use std::f32::consts::LN_2;

use half::bf16;

use super::panels::{LANES, Line, PANEL, Panels};

/// Most rows of a tile.
pub(super) const TILE_ROWS: usize = 12;

/// Rows of bf16 values, `stride` values apart; both the width that is multiplied and `stride` are even.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) values: &'a [bf16],
    pub(super) stride: usize,
    pub(super) rows: usize,
}

/// Where a product's sums go.
pub(super) enum Sink<'a> {
    /// f32, replacing what is there; rows are `stride` values apart.
    Set { values: &'a mut [f32], stride: usize },
    /// f32, added to what is there.
    Add { values: &'a mut [f32], stride: usize },
    /// For panels of 16 gate columns and 16 up columns: `silu(gate) * up` as bf16, 16 values a panel.
    GatedSilu { values: &'a mut [bf16], stride: usize },
}

/// Multiplies `rows` by all panels of `columns`: `[rows, inner] x [inner, outputs]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) fn multiply(rows: Rows<'_>, columns: &Panels, mut sink: Sink<'_>) {
    for panel in 0..columns.count() {
        multiply_panel(rows, columns.panel(panel), columns.inner(), columns.width(panel), panel, &mut sink);
    }
}

/// Multiplies `rows` by one panel, whose results are columns `panel * 32` and on of the sink (16 for gated SiLU).
/// Writes `width` of them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) fn multiply_panel(
    rows: Rows<'_>,
    lines: &[Line],
    inner: usize,
    width: usize,
    panel: usize,
    sink: &mut Sink<'_>,
) {
    // Tiles of nearly equal height: a last tile of one row would take as long as one of six.
    let tiles = rows.rows.div_ceil(TILE_ROWS);
    let mut first = 0;
    for tile in 0..tiles {
        let next = (tile + 1) * rows.rows / tiles;
        let height = next - first;
        let part = Rows { values: &rows.values[first * rows.stride..], rows: height, ..rows };
        let place = Place { row: first, panel, width };
        match height {
            1 => run::<1>(part, lines, inner, place, sink),
            2 => run::<2>(part, lines, inner, place, sink),
            3 => run::<3>(part, lines, inner, place, sink),
            4 => run::<4>(part, lines, inner, place, sink),
            5 => run::<5>(part, lines, inner, place, sink),
            6 => run::<6>(part, lines, inner, place, sink),
            7 => run::<7>(part, lines, inner, place, sink),
            8 => run::<8>(part, lines, inner, place, sink),
            9 => run::<9>(part, lines, inner, place, sink),
            10 => run::<10>(part, lines, inner, place, sink),
            11 => run::<11>(part, lines, inner, place, sink),
            _ => run::<12>(part, lines, inner, place, sink),
        }
        first = next;
    }
}

#[derive(Clone, Copy)]
struct Place {
    row: usize,
    panel: usize,
    width: usize,
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn run<const HEIGHT: usize>(rows: Rows<'_>, lines: &[Line], inner: usize, place: Place, sink: &mut Sink<'_>) {
    let sums = sums::<HEIGHT>(rows, lines, inner);
    let masks = [mask(place.width), mask(place.width.saturating_sub(LANES))];
    match sink {
        Sink::Set { values, stride } => {
            for (row, sums) in sums.into_iter().enumerate() {
                let out = &mut values[(place.row + row) * *stride + place.panel * PANEL..][..place.width];
                store(out, sums, masks);
            }
        }
        Sink::Add { values, stride } => {
            for (row, sums) in sums.into_iter().enumerate() {
                let out = &mut values[(place.row + row) * *stride + place.panel * PANEL..][..place.width];
                let [left, right] = load(out, masks);
                store(out, [_mm512_add_ps(left, sums[0]), _mm512_add_ps(right, sums[1])], masks);
            }
        }
        Sink::GatedSilu { values, stride } => {
            for (row, [gate, up]) in sums.into_iter().enumerate() {
                let out = &mut values[(place.row + row) * *stride + place.panel * LANES..][..place.width];
                store_bf16(out, _mm512_mul_ps(silu(gate), up));
            }
        }
    }
}

/// `HEIGHT` rows by one panel.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
#[allow(
    unsafe_code,
    reason = "the inner loop can't afford a bounds check a load; the assertions above it are the check"
)]
fn sums<const HEIGHT: usize>(rows: Rows<'_>, lines: &[Line], inner: usize) -> [[__m512; 2]; HEIGHT] {
    let pairs = inner / 2;
    assert!(inner.is_multiple_of(2) && rows.values.len() >= (HEIGHT - 1) * rows.stride + inner);
    assert!(lines.len() >= 2 * pairs);
    let mut sums = [[_mm512_setzero_ps(); 2]; HEIGHT];
    let values = rows.values.as_ptr().cast::<i32>();
    let stride = rows.stride / 2;
    let columns = lines.as_ptr().cast::<__m512i>();
    for pair in 0..pairs {
        // SAFETY: `lines` has 2 * pairs lines (asserted), and a `Line` is 64 bytes at a multiple of 64. The last row read
        // begins at (HEIGHT - 1) * rows.stride and has `inner` values (asserted); a pair of them may lie at any multiple
        // of 2 bytes, so it is read unaligned. `__m512bh` is 32 bf16 values in 512 bits, for which any bits are valid.
        unsafe {
            let columns = [columns.add(2 * pair), columns.add(2 * pair + 1)].map(|line| to_bh(_mm512_load_si512(line)));
            for (row, sums) in sums.iter_mut().enumerate() {
                let value = to_bh(_mm512_set1_epi32(values.add(row * stride + pair).read_unaligned()));
                sums[0] = _mm512_dpbf16_ps(sums[0], value, columns[0]);
                sums[1] = _mm512_dpbf16_ps(sums[1], value, columns[1]);
            }
        }
    }
    sums
}

#[inline]
#[target_feature(enable = "avx512f")]
#[allow(unsafe_code, reason = "std::arch has no cast to bf16 vectors")]
fn to_bh(bits: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits, and any bits are bf16 values.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(bits) }
}

/// The lowest `count` of 16.
#[inline]
pub(super) fn mask(count: usize) -> __mmask16 {
    if count >= LANES { !0 } else { (1 << count) - 1 }
}

#[inline]
#[target_feature(enable = "avx512f")]
#[allow(unsafe_code, reason = "std::arch loads through pointers")]
fn load(values: &[f32], masks: [__mmask16; 2]) -> [__m512; 2] {
    debug_assert!(values.len() >= (masks[0].count_ones() + masks[1].count_ones()) as usize);
    let at = values.as_ptr();
    // SAFETY: the masks cover `values.len()` lanes (`run` makes both from the same width); masked lanes are not read.
    unsafe { [_mm512_maskz_loadu_ps(masks[0], at), _mm512_maskz_loadu_ps(masks[1], at.wrapping_add(LANES))] }
}

#[inline]
#[target_feature(enable = "avx512f")]
#[allow(unsafe_code, reason = "std::arch stores through pointers")]
fn store(values: &mut [f32], sums: [__m512; 2], masks: [__mmask16; 2]) {
    debug_assert!(values.len() >= (masks[0].count_ones() + masks[1].count_ones()) as usize);
    let at = values.as_mut_ptr();
    // SAFETY: as in `load`; masked lanes are not written.
    unsafe {
        _mm512_mask_storeu_ps(at, masks[0], sums[0]);
        _mm512_mask_storeu_ps(at.wrapping_add(LANES), masks[1], sums[1]);
    }
}

/// Rounds to bf16, to nearest even, and writes as many as `values` holds, 16 at most.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
#[allow(unsafe_code, reason = "std::arch stores through pointers, and has no cast from bf16 vectors")]
pub(super) fn store_bf16(values: &mut [bf16], lanes: __m512) {
    let mask = mask(values.len());
    // SAFETY: both are 16 bf16 values in 256 bits; the mask covers no more lanes than `values` has.
    unsafe {
        let bits = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(lanes));
        _mm256_mask_storeu_epi16(values.as_mut_ptr().cast(), mask, bits);
    }
}

/// Reads as many as `values` holds, 16 at most; the other lanes are 0.
#[inline]
#[target_feature(enable = "avx512f")]
#[allow(unsafe_code, reason = "std::arch loads through pointers")]
pub(super) fn load_f32(values: &[f32]) -> __m512 {
    // SAFETY: the mask covers no more lanes than `values` has; masked lanes are not read.
    unsafe { _mm512_maskz_loadu_ps(mask(values.len()), values.as_ptr()) }
}

/// Writes as many as `values` holds, 16 at most.
#[inline]
#[target_feature(enable = "avx512f")]
#[allow(unsafe_code, reason = "std::arch stores through pointers")]
pub(super) fn store_f32(values: &mut [f32], lanes: __m512) {
    // SAFETY: the mask covers no more lanes than `values` has; masked lanes are not written.
    unsafe { _mm512_mask_storeu_ps(values.as_mut_ptr(), mask(values.len()), lanes) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn silu(x: __m512) -> __m512 {
    let one = _mm512_set1_ps(1.0);
    _mm512_div_ps(x, _mm512_add_ps(one, exp(_mm512_sub_ps(_mm512_setzero_ps(), x))))
}

/// e^x, within 2 units in the last place; 0 far below, infinite far above, NaN stays NaN.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2, and e^r by its Taylor polynomial of degree 7, whose next term is below 2^-27.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn exp(x: __m512) -> __m512 {
    // Beyond these the result is 0 or infinite anyway, and n would lose r's digits. A NaN passes: of two operands max and
    // min give the second if either is NaN.
    let x = _mm512_min_ps(_mm512_set1_ps(89.0), _mm512_max_ps(_mm512_set1_ps(-104.0), x));
    let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm512_mul_ps(
        x,
        _mm512_set1_ps(std::f32::consts::LOG2_E),
    ));
    // ln 2 in two parts (Cody and Waite): the first has so few bits that n times it is exact.
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693_359_4), x);
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.121_944_4e-4), r);
    const TAYLOR: [f32; 7] = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let mut sum = _mm512_set1_ps(1.0 / 5040.0);
    for term in TAYLOR {
        sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(term));
    }
    _mm512_scalef_ps(sum, n)
}

/// 2^x for weights that are rounded to bf16 next, within 3e-7; 0 far below, NaN stays NaN. x is not far above 0.
///
/// x = n + f with |f| <= 1/2, and 2^f by the first terms of its Taylor series, the next of which is below 1e-7.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn exp2(x: __m512) -> __m512 {
    // Powers of ln 2 over factorials.
    const TAYLOR: [f32; 6] = [1.333_355_8e-3, 9.618_129e-3, 5.550_411e-2, 0.240_226_5, LN_2, 1.0];
    let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
    let f = _mm512_sub_ps(x, n);
    let mut sum = _mm512_set1_ps(1.540_353e-4);
    for term in TAYLOR {
        sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(term));
    }
    _mm512_scalef_ps(sum, n)
}
