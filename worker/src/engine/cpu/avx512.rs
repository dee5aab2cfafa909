//! f32 on CPUs with AVX-512: Intel's servers since Skylake, AMD since Zen 4.
#![allow(unsafe_code, reason = "instructions that not every CPU has, and loads through pointers")]

use std::arch::{asm, x86_64::*};

use half::bf16;

use super::multiply::{Columns, Rows, Scratch, Tile, add_tile, multiply_strip_f32};
use super::path::{LANES, Simd, Work};

/// The CPU has AVX-512. The field is private, so that none is made without looking.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512(());

/// The lowest `count` of 16.
#[inline(always)]
pub(super) fn mask(count: usize) -> __mmask16 {
    if count >= LANES { !0 } else { (1 << count) - 1 }
}

impl Simd for Avx512 {
    type Lanes = __m512;
    const PANEL: usize = 2 * LANES;

    fn detect() -> Result<Self, &'static str> {
        if is_x86_feature_detected!("avx512f") { Ok(Self(())) } else { Err("this CPU has no AVX-512") }
    }

    #[inline]
    fn enter<W: Work>(self, work: W) -> W::Output {
        #[target_feature(enable = "avx512f")]
        fn inside<W: Work>(work: W) -> W::Output {
            work.run()
        }
        // SAFETY: an `Avx512` is a CPU with these instructions.
        unsafe { inside(work) }
    }

    #[inline(always)]
    fn multiply_strip(self, rows: Rows<'_, f32>, columns: Columns<'_>, strip: usize, scratch: &mut Scratch) {
        multiply_strip_f32::<_, 12, 2>(self, rows, columns, strip, scratch);
    }

    #[inline(always)]
    fn add_tile<const HEIGHT: usize>(self, tile: Tile<'_>, sums: &mut [f32]) {
        #[inline(never)]
        #[target_feature(enable = "avx512f")]
        fn inside<const HEIGHT: usize>(simd: Avx512, tile: Tile<'_>, sums: &mut [f32]) {
            add_tile::<_, HEIGHT, 2>(simd, tile, sums);
        }
        // SAFETY: an `Avx512` is a CPU with these instructions.
        unsafe { inside::<HEIGHT>(self, tile, sums) }
    }

    #[inline(always)]
    fn prefetch(self, line: *const u8) {
        // SAFETY: no address is too bad for a hint.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: an `Avx512` is a CPU with these instructions.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn splat_from(self, at: *const f32) -> __m512 {
        // Written out, because the compiler would read the values of all rows of a tile ahead, and then lack registers for
        // the tile's sums.
        #[inline]
        #[target_feature(enable = "avx512f")]
        unsafe fn broadcast(at: *const f32) -> __m512 {
            let lanes;
            // SAFETY: there is a value, says the caller.
            unsafe {
                asm!(
                    "vbroadcastss {lanes}, dword ptr [{at}]",
                    lanes = out(zmm_reg) lanes,
                    at = in(reg) at,
                    options(pure, readonly, nostack, preserves_flags),
                );
            }
            lanes
        }
        // SAFETY: as in `splat`; the value is the caller's to know.
        unsafe { broadcast(at) }
    }

    #[inline(always)]
    fn load(self, values: &[f32; LANES]) -> __m512 {
        // SAFETY: as in `splat`; there are sixteen values.
        unsafe { _mm512_loadu_ps(values.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, out: &mut [f32; LANES], lanes: __m512) {
        // SAFETY: as in `splat`; there is room for sixteen values.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), lanes) }
    }

    #[inline(always)]
    fn load_part(self, values: &[f32]) -> __m512 {
        // SAFETY: as in `splat`; the mask covers no more lanes than there are values, and masked lanes are not read.
        unsafe { _mm512_maskz_loadu_ps(mask(values.len()), values.as_ptr()) }
    }

    #[inline(always)]
    fn store_part(self, out: &mut [f32], lanes: __m512) {
        // SAFETY: as in `splat`; the mask covers no more lanes than there is room for, and masked lanes are not written.
        unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), mask(out.len()), lanes) }
    }

    #[inline(always)]
    fn select(self, count: usize, first: __m512, others: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_mask_blend_ps(mask(count), others, first) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }

    #[inline(always)]
    fn times_power_of_two(self, a: __m512, n: __m512) -> __m512 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_scalef_ps(a, n) }
    }

    #[inline(always)]
    fn widen(self, values: &[bf16; LANES]) -> __m512 {
        let at = values.as_ptr().cast::<__m256i>();
        // SAFETY: as in `splat`; sixteen values are 256 bits. A bf16 is the upper half of an f32.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(at)))) }
    }
}
