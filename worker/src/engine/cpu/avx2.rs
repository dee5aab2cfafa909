//! f32 on CPUs with AVX2 and FMA: Intel since Haswell, AMD since Excavator.
#![allow(unsafe_code, reason = "instructions that not every CPU has, and loads through pointers")]

use std::arch::x86_64::*;

use half::bf16;

use super::multiply::{Columns, Rows, Scratch, Tile, add_tile, multiply_strip_f32};
use super::path::{LANES, Simd, Work};

/// The CPU has AVX2 and FMA. The field is private, so that none is made without looking.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx2(());

/// Applies an operation to both halves of the operands.
macro_rules! halves {
    ($operation:ident($($operand:ident),+)) => {
        // SAFETY: an `Avx2` is a CPU with these instructions.
        unsafe { [$operation($($operand[0]),+), $operation($($operand[1]),+)] }
    };
}

impl Simd for Avx2 {
    type Lanes = [__m256; 2];
    const PANEL: usize = LANES;

    fn detect() -> Result<Self, &'static str> {
        match (is_x86_feature_detected!("avx2"), is_x86_feature_detected!("fma")) {
            (true, true) => Ok(Self(())),
            (false, _) => Err("this CPU has no AVX2"),
            (true, false) => Err("this CPU has no FMA"),
        }
    }

    #[inline]
    fn enter<W: Work>(self, work: W) -> W::Output {
        #[target_feature(enable = "avx2,fma")]
        fn inside<W: Work>(work: W) -> W::Output {
            work.run()
        }
        // SAFETY: an `Avx2` is a CPU with these instructions.
        unsafe { inside(work) }
    }

    #[inline(always)]
    fn multiply_strip(self, rows: Rows<'_, f32>, columns: Columns<'_>, strip: usize, scratch: &mut Scratch) {
        multiply_strip_f32::<_, 6, 1>(self, rows, columns, strip, scratch);
    }

    #[inline(always)]
    fn add_tile<const HEIGHT: usize>(self, tile: Tile<'_>, sums: &mut [f32]) {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma")]
        fn inside<const HEIGHT: usize>(simd: Avx2, tile: Tile<'_>, sums: &mut [f32]) {
            add_tile::<_, HEIGHT, 1>(simd, tile, sums);
        }
        // SAFETY: an `Avx2` is a CPU with these instructions.
        unsafe { inside::<HEIGHT>(self, tile, sums) }
    }

    #[inline(always)]
    fn prefetch(self, line: *const u8) {
        // SAFETY: no address is too bad for a hint.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Lanes {
        // SAFETY: an `Avx2` is a CPU with these instructions.
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    fn load(self, values: &[f32; LANES]) -> Self::Lanes {
        let at = values.as_ptr();
        // SAFETY: as in `splat`; there are sixteen values.
        unsafe { [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))] }
    }

    #[inline(always)]
    fn store(self, out: &mut [f32; LANES], lanes: Self::Lanes) {
        let at = out.as_mut_ptr();
        // SAFETY: as in `splat`; there is room for sixteen values.
        unsafe {
            _mm256_storeu_ps(at, lanes[0]);
            _mm256_storeu_ps(at.add(8), lanes[1]);
        }
    }

    #[inline(always)]
    fn select(self, count: usize, first: Self::Lanes, others: Self::Lanes) -> Self::Lanes {
        // SAFETY: as in `splat`.
        unsafe {
            let count = _mm256_set1_epi32(count.min(LANES) as i32);
            let low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let high = _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15);
            let [low, high] = [low, high].map(|lane| _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, lane)));
            [_mm256_blendv_ps(others[0], first[0], low), _mm256_blendv_ps(others[1], first[1], high)]
        }
    }

    #[inline(always)]
    fn add(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        halves!(_mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        halves!(_mm256_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        halves!(_mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        halves!(_mm256_div_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes {
        halves!(_mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        halves!(_mm256_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes {
        halves!(_mm256_min_ps(a, b))
    }

    #[inline(always)]
    fn round(self, a: Self::Lanes) -> Self::Lanes {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        // SAFETY: as in `splat`.
        unsafe { [_mm256_round_ps::<NEAREST>(a[0]), _mm256_round_ps::<NEAREST>(a[1])] }
    }

    #[inline(always)]
    fn times_power_of_two(self, a: Self::Lanes, n: Self::Lanes) -> Self::Lanes {
        // SAFETY: as in `splat`.
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let low = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(n[0]), bias));
            let high = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(n[1]), bias));
            [_mm256_mul_ps(a[0], _mm256_castsi256_ps(low)), _mm256_mul_ps(a[1], _mm256_castsi256_ps(high))]
        }
    }

    #[inline(always)]
    fn widen(self, values: &[bf16; LANES]) -> Self::Lanes {
        let at = values.as_ptr().cast::<__m128i>();
        // SAFETY: as in `splat`; sixteen values are two times 128 bits. A bf16 is the upper half of an f32.
        unsafe {
            let low = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(at)));
            let high = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(at.add(1))));
            [_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)]
        }
    }
}
