//! bf16 products on CPUs with AVX512-BF16 (AMD since Zen 4, Intel since Cooper Lake), summed in f32. The residual stream,
//! norms, softmax and positions stay f32; what goes into a product is rounded to bf16.
//!
//! In the microkernel 12 rows by 2 vectors are 24 sums, which with two columns and one row value fill the 32 registers;
//! each step makes 24 products of 2 x 16 for 14 loads, so the multipliers set the pace, not the caches (measured: 97 % of
//! what `vdpbf16ps` can do on one core).
#![allow(unsafe_code, reason = "instructions that not every CPU has, and loads through pointers")]

use std::arch::x86_64::*;

use half::bf16;

use super::avx512::{Avx512, mask};
use super::multiply::{Ahead, Columns, Elements, Rows, STRIP, Scratch};
use super::path::{LANES, Layout, Path, Simd, Work};

/// Most rows of a tile.
const TILE_ROWS: usize = 12;

/// The CPU has AVX512-BF16. The field is private, so that none is made without looking.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512Bf16(Avx512);

impl Path for Avx512Bf16 {
    type Simd = Avx512;
    type Value = bf16;
    const LAYOUT: Layout = Layout { panel: STRIP, group: 2 };

    fn detect() -> Result<Self, &'static str> {
        let simd = Avx512::detect()?;
        let rest = is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bf16");
        if rest { Ok(Self(simd)) } else { Err("this CPU has no AVX512-BF16") }
    }

    #[inline(always)]
    fn simd(self) -> Avx512 {
        self.0
    }

    #[inline]
    fn enter<W: Work>(self, work: W) -> W::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
        fn inside<W: Work>(work: W) -> W::Output {
            work.run()
        }
        // SAFETY: an `Avx512Bf16` is a CPU with these instructions.
        unsafe { inside(work) }
    }

    #[inline(always)]
    fn multiply_strip(self, rows: Rows<'_, bf16>, columns: Columns<'_>, strip: usize, scratch: &mut Scratch) {
        let Elements::Bf16(values) = columns.elements else { unreachable!("this path packs nothing but bf16") };
        let values = &values[strip * columns.pitch + columns.start * STRIP..][..columns.inner * STRIP];
        let sums = scratch.sums(rows.rows);
        // Tiles of nearly equal height: a last tile of one row would take as long as one of six.
        let tiles = rows.rows.div_ceil(TILE_ROWS);
        let mut first = 0;
        let behind = Ahead::of(values);
        for tile in 0..tiles {
            behind.fetch(self.0, tile, tiles);
            let next = (tile + 1) * rows.rows / tiles;
            let part = (&rows.values[first * rows.stride..], rows.stride);
            let sums = &mut sums[first * STRIP..next * STRIP];
            // SAFETY: an `Avx512Bf16` is a CPU with these instructions.
            unsafe {
                match next - first {
                    1 => set_tile::<1>(part, values, columns.inner, sums),
                    2 => set_tile::<2>(part, values, columns.inner, sums),
                    3 => set_tile::<3>(part, values, columns.inner, sums),
                    4 => set_tile::<4>(part, values, columns.inner, sums),
                    5 => set_tile::<5>(part, values, columns.inner, sums),
                    6 => set_tile::<6>(part, values, columns.inner, sums),
                    7 => set_tile::<7>(part, values, columns.inner, sums),
                    8 => set_tile::<8>(part, values, columns.inner, sums),
                    9 => set_tile::<9>(part, values, columns.inner, sums),
                    10 => set_tile::<10>(part, values, columns.inner, sums),
                    11 => set_tile::<11>(part, values, columns.inner, sums),
                    _ => set_tile::<12>(part, values, columns.inner, sums),
                }
            }
            first = next;
        }
    }

    #[inline(always)]
    fn store_values(self, out: &mut [bf16], lanes: __m512) {
        // SAFETY: an `Avx512Bf16` is a CPU with these instructions. Both types are 16 bf16 values in 256 bits; the mask
        // covers no more lanes than there is room for, and masked lanes are not written.
        unsafe {
            let bits = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(lanes));
            _mm256_mask_storeu_epi16(out.as_mut_ptr().cast(), mask(out.len()), bits);
        }
    }

    #[inline(always)]
    fn store_weights(self, _: &mut [f32; LANES], rounded: &mut [bf16], lanes: __m512) {
        self.store_values(rounded, lanes);
    }

    fn weights<'a>(_: &'a [f32], rounded: &'a [bf16]) -> &'a [bf16] {
        rounded
    }

    fn rounded_len(scores: usize) -> usize {
        scores
    }
}

/// Sets `[HEIGHT, STRIP]` sums: `HEIGHT` rows, `stride` values apart, by one panel. Two products are added at a time, in
/// the order of the inner dimension, whatever the height: a row's values are the same bits in every batch.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn set_tile<const HEIGHT: usize>((rows, stride): (&[bf16], usize), columns: &[bf16], inner: usize, sums: &mut [f32]) {
    let pairs = inner / 2;
    // The inner loop can't afford a bounds check a load: these are the check.
    assert!(inner.is_multiple_of(2) && rows.len() >= (HEIGHT - 1) * stride + inner);
    assert!(columns.len() >= pairs * 2 * STRIP && sums.len() >= HEIGHT * STRIP);
    let mut tile = [[_mm512_setzero_ps(); 2]; HEIGHT];
    let (values, columns) = (rows.as_ptr(), columns.as_ptr().cast::<__m512i>());
    for pair in 0..pairs {
        // SAFETY: `columns` has two vectors a pair (asserted). The last row read begins at (HEIGHT - 1) * stride and has
        // `inner` values (asserted). `__m512bh` is 32 bf16 values in 512 bits, for which any bits are valid.
        unsafe {
            let left = to_bh(_mm512_loadu_si512(columns.add(2 * pair)));
            let right = to_bh(_mm512_loadu_si512(columns.add(2 * pair + 1)));
            for (row, tile) in tile.iter_mut().enumerate() {
                let value = values.add(row * stride + 2 * pair).cast::<i32>().read_unaligned();
                let value = to_bh(_mm512_set1_epi32(value));
                tile[0] = _mm512_dpbf16_ps(tile[0], value, left);
                tile[1] = _mm512_dpbf16_ps(tile[1], value, right);
            }
        }
    }
    for (row, tile) in tile.into_iter().enumerate() {
        let sums = &mut sums[row * STRIP..(row + 1) * STRIP];
        // SAFETY: a row of sums is two vectors.
        unsafe {
            _mm512_storeu_ps(sums.as_mut_ptr(), tile[0]);
            _mm512_storeu_ps(sums.as_mut_ptr().add(LANES), tile[1]);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn to_bh(bits: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits, and any bits are bf16 values.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(bits) }
}
