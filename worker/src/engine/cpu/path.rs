//! What differs between CPUs: which instructions there are ([`Simd`]), and in which type values go into products
//! ([`Path`]).
//!
//! Both are tokens: one can be had only where the CPU has the instructions, so whoever holds one may use them. The
//! compiler has to be told per function which instructions it may use: [`Path::enter`] is that function, and all that runs
//! beneath it is inlined into it.
//!
//! All paths in f32 give the same bits. What is computed value by value is the same IEEE 754 operation everywhere; a sum
//! of products adds them one by one in the order of the inner dimension, each with one rounding; and a sum over a row is
//! always sixteen sums side by side, added up in one order, whatever the width of a register.

use bytemuck::Pod;
use half::bf16;

use super::multiply::{Columns, Elements, Rows, Scratch, Tile};

/// f32 values that are computed side by side.
pub(super) const LANES: usize = 16;

/// Sixteen f32 values, in as many registers as that takes, and what can be done with them.
///
/// `max` and `min` give the second value where either is not a number, as x86 has it, so that one is never lost.
pub(super) trait Simd: Copy + Send + Sync + 'static {
    /// The values.
    type Lanes: Copy;
    /// Columns of a panel in f32.
    const PANEL: usize;

    /// The token, or which of the instructions this CPU lacks.
    fn detect() -> Result<Self, &'static str>;

    /// Runs work with these instructions.
    fn enter<W: Work>(self, work: W) -> W::Output;

    /// [`Path::multiply_strip`] in f32, in tiles that fit the registers.
    fn multiply_strip(self, rows: Rows<'_, f32>, columns: Columns<'_>, strip: usize, scratch: &mut Scratch);

    /// [`add_tile`](super::multiply::add_tile) of [`Self::PANEL`] columns.
    fn add_tile<const HEIGHT: usize>(self, tile: Tile<'_>, sums: &mut [f32]);

    /// Says that a cache line will be read soon. The address need not be anybody's.
    fn prefetch(self, line: *const u8);

    fn splat(self, value: f32) -> Self::Lanes;
    /// Sixteen times the value at an address.
    ///
    /// # Safety
    /// There is a value at the address.
    #[inline(always)]
    #[allow(unsafe_code, reason = "a microkernel's reads can't afford a check each")]
    unsafe fn splat_from(self, at: *const f32) -> Self::Lanes {
        // SAFETY: the caller's.
        self.splat(unsafe { *at })
    }
    /// Reads sixteen values from where they lie.
    fn load(self, values: &[f32; LANES]) -> Self::Lanes;
    fn store(self, out: &mut [f32; LANES], lanes: Self::Lanes);
    /// The first `count` of `first`, the others of `others`.
    fn select(self, count: usize, first: Self::Lanes, others: Self::Lanes) -> Self::Lanes;
    fn add(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    fn sub(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    fn mul(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    fn div(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    /// `a * b + c`, rounded once.
    fn mul_add(self, a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes;
    fn max(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    fn min(self, a: Self::Lanes, b: Self::Lanes) -> Self::Lanes;
    /// To the nearest integer, ties to even.
    fn round(self, a: Self::Lanes) -> Self::Lanes;
    /// `a * 2^n` for integers from -126 to 127.
    fn times_power_of_two(self, a: Self::Lanes, n: Self::Lanes) -> Self::Lanes;
    /// Widens sixteen bf16 values, which is exact.
    fn widen(self, values: &[bf16; LANES]) -> Self::Lanes;

    /// Reads as many values as there are, sixteen at most; the other lanes are 0.
    #[inline(always)]
    fn load_part(self, values: &[f32]) -> Self::Lanes {
        if let Ok(values) = values.try_into() {
            return self.load(values);
        }
        let mut padded = [0.0; LANES];
        padded[..values.len()].copy_from_slice(values);
        self.load(&padded)
    }

    /// Writes as many values as there is room for, sixteen at most.
    #[inline(always)]
    fn store_part(self, out: &mut [f32], lanes: Self::Lanes) {
        if let Ok(out) = out.try_into() {
            return self.store(out, lanes);
        }
        let mut padded = [0.0; LANES];
        self.store(&mut padded, lanes);
        let len = out.len();
        out.copy_from_slice(&padded[..len]);
    }

    /// The sum of all lanes, in one order on every path.
    #[inline(always)]
    fn sum(self, lanes: Self::Lanes) -> f32 {
        let mut values = [0.0; LANES];
        self.store(&mut values, lanes);
        for width in [8, 4, 2, 1] {
            for lane in 0..width {
                values[lane] += values[lane + width];
            }
        }
        values[0]
    }

    /// The largest of all lanes. One that is not a number may be passed over.
    #[inline(always)]
    fn largest(self, lanes: Self::Lanes) -> f32 {
        let mut values = [0.0; LANES];
        self.store(&mut values, lanes);
        for width in [8, 4, 2, 1] {
            for lane in 0..width {
                let (a, b) = (values[lane], values[lane + width]);
                values[lane] = if a > b { a } else { b };
            }
        }
        values[0]
    }
}

/// The type of what goes into products.
pub(super) trait Value: Pod + Send + Sync {
    const ZERO: Self;
    /// Whether it is bf16, so that weights are, too.
    const NARROW: bool;

    /// Packed columns of this type.
    fn elements(values: &[Self]) -> Elements<'_>;
}

impl Value for f32 {
    const ZERO: Self = 0.0;
    const NARROW: bool = false;

    fn elements(values: &[Self]) -> Elements<'_> {
        Elements::F32(values)
    }
}

impl Value for bf16 {
    const ZERO: Self = Self::ZERO;
    const NARROW: bool = true;

    fn elements(values: &[Self]) -> Elements<'_> {
        Elements::Bf16(values)
    }
}

/// How columns are packed for a path's microkernel; see [`super::panels`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    /// Columns of a panel.
    pub(super) panel: usize,
    /// Inner values of a column that lie side by side.
    pub(super) group: usize,
}

/// One way to compute on a CPU.
pub(super) trait Path: Copy + Send + Sync + 'static {
    type Simd: Simd;
    /// What goes into products.
    type Value: Value;
    const LAYOUT: Layout;

    /// The token, or which of the instructions this CPU lacks.
    fn detect() -> Result<Self, &'static str>;

    fn simd(self) -> Self::Simd;

    /// Runs work with the path's instructions.
    fn enter<W: Work>(self, work: W) -> W::Output;

    /// Sums of products of `rows` and the columns of one strip, `[rows, STRIP]`; see [`super::multiply`].
    fn multiply_strip(self, rows: Rows<'_, Self::Value>, columns: Columns<'_>, strip: usize, scratch: &mut Scratch);

    /// Rounds lanes to what goes into products, and writes as many as there is room for, sixteen at most.
    fn store_values(self, out: &mut [Self::Value], lanes: LanesOf<Self>);

    /// Puts weights of attention where [`Self::weights`] finds them: in the place of their scores, or, rounded, beside.
    fn store_weights(self, scores: &mut [f32; LANES], rounded: &mut [Self::Value], lanes: LanesOf<Self>);

    /// The weights of attention.
    fn weights<'a>(scores: &'a [f32], rounded: &'a [Self::Value]) -> &'a [Self::Value];

    /// How much [`Self::store_weights`] puts beside so many scores.
    fn rounded_len(scores: usize) -> usize;
}

/// A path's lanes.
pub(super) type LanesOf<P> = <<P as Path>::Simd as Simd>::Lanes;

/// Work that runs with a path's instructions, which it holds the token of.
pub(super) trait Work {
    type Output;

    /// Is to be inlined, with all that it calls.
    fn run(self) -> Self::Output;
}

/// f32, with whichever instructions.
#[derive(Clone, Copy)]
pub(super) struct F32<S>(S);

impl<S: Simd> Path for F32<S> {
    type Simd = S;
    type Value = f32;
    const LAYOUT: Layout = Layout { panel: S::PANEL, group: 1 };

    fn detect() -> Result<Self, &'static str> {
        S::detect().map(Self)
    }

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    #[inline(always)]
    fn enter<W: Work>(self, work: W) -> W::Output {
        self.0.enter(work)
    }

    #[inline(always)]
    fn multiply_strip(self, rows: Rows<'_, f32>, columns: Columns<'_>, strip: usize, scratch: &mut Scratch) {
        self.0.multiply_strip(rows, columns, strip, scratch);
    }

    #[inline(always)]
    fn store_values(self, out: &mut [f32], lanes: S::Lanes) {
        self.0.store_part(out, lanes);
    }

    #[inline(always)]
    fn store_weights(self, scores: &mut [f32; LANES], _: &mut [f32], lanes: S::Lanes) {
        self.0.store(scores, lanes);
    }

    fn weights<'a>(scores: &'a [f32], _: &'a [f32]) -> &'a [f32] {
        scores
    }

    fn rounded_len(_: usize) -> usize {
        0
    }
}
