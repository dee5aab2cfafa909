//! f32 on any CPU, in plain Rust: slow, and what the other paths in f32 must agree with to the bit.

use half::bf16;

use super::multiply::{Columns, Rows, Scratch, Tile, add_tile, multiply_strip_f32};
use super::path::{LANES, Simd, Work};

/// Needs nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Portable;

type Lanes = [f32; LANES];

#[inline(always)]
fn each(a: Lanes, b: Lanes, operation: impl Fn(f32, f32) -> f32) -> Lanes {
    std::array::from_fn(|lane| operation(a[lane], b[lane]))
}

/// `a * b + c`, rounded once.
///
/// Without an instruction for it, the standard library asks the C library, which takes several times as long: here the
/// product is exact in f64, and the sum is rounded to odd (Boldo and Melquiond 2008), so that rounding it once more to f32
/// gives what rounding once would have given.
#[inline(always)]
fn mul_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
        return a.mul_add(b, c);
    }
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = product + c;
    // What the sum lost (Knuth's exact addition of two numbers); not a number where the sum is none or infinite.
    let part = sum - product;
    let lost = (product - (sum - part)) + (c - part);
    let bits = sum.to_bits();
    let away = (lost > 0.0) == (sum > 0.0);
    let inexact = lost.abs() > 0.0;
    let odd = if inexact && bits & 1 == 0 { bits.wrapping_add(if away { 1 } else { u64::MAX }) } else { bits };
    f64::from_bits(odd) as f32
}

impl Simd for Portable {
    type Lanes = Lanes;
    const PANEL: usize = LANES;

    fn detect() -> Result<Self, &'static str> {
        Ok(Self)
    }

    #[inline(always)]
    fn enter<W: Work>(self, work: W) -> W::Output {
        work.run()
    }

    #[inline(always)]
    fn multiply_strip(self, rows: Rows<'_, f32>, columns: Columns<'_>, strip: usize, scratch: &mut Scratch) {
        multiply_strip_f32::<_, 6, 1>(self, rows, columns, strip, scratch);
    }

    #[inline(never)]
    fn add_tile<const HEIGHT: usize>(self, tile: Tile<'_>, sums: &mut [f32]) {
        add_tile::<_, HEIGHT, 1>(self, tile, sums);
    }

    #[inline(always)]
    fn prefetch(self, _: *const u8) {}

    #[inline(always)]
    fn splat(self, value: f32) -> Lanes {
        [value; LANES]
    }

    #[inline(always)]
    fn load(self, values: &[f32; LANES]) -> Lanes {
        *values
    }

    #[inline(always)]
    fn store(self, out: &mut [f32; LANES], lanes: Lanes) {
        *out = lanes;
    }

    #[inline(always)]
    fn select(self, count: usize, first: Lanes, others: Lanes) -> Lanes {
        std::array::from_fn(|lane| if lane < count { first[lane] } else { others[lane] })
    }

    #[inline(always)]
    fn add(self, a: Lanes, b: Lanes) -> Lanes {
        each(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Lanes, b: Lanes) -> Lanes {
        each(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        each(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Lanes, b: Lanes) -> Lanes {
        each(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn mul_add(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        std::array::from_fn(|lane| mul_add(a[lane], b[lane], c[lane]))
    }

    #[inline(always)]
    fn max(self, a: Lanes, b: Lanes) -> Lanes {
        each(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: Lanes, b: Lanes) -> Lanes {
        each(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn round(self, a: Lanes) -> Lanes {
        a.map(f32::round_ties_even)
    }

    #[inline(always)]
    fn times_power_of_two(self, a: Lanes, n: Lanes) -> Lanes {
        each(a, n, |a, n| a * f32::from_bits(((n as i32 + 127) as u32) << 23))
    }

    #[inline(always)]
    fn widen(self, values: &[bf16; LANES]) -> Lanes {
        values.map(bf16::to_f32)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::mul_add;

    fn same(a: f32, b: f32, c: f32) -> bool {
        let (ours, theirs) = (mul_add(a, b, c), a.mul_add(b, c));
        ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan()
    }

    #[test]
    fn rounds_once_where_twice_would_differ() {
        // The product and the sum lie just beside the middle of two f32 values.
        let tiny = f32::from_bits(0x3380_0001);
        for (a, b, c) in [(1.0 + f32::EPSILON, 1.0 + f32::EPSILON, tiny), (tiny, 0.5, 1.0), (-tiny, 0.5, 1.0)] {
            assert!(same(a, b, c), "{a:e} * {b:e} + {c:e}");
        }
        for special in [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN_POSITIVE, 1e-45] {
            for (a, b, c) in
                [(special, 1.0, 1.0), (1.0, 1.0, special), (special, special, 1.0), (special, 2.0, -special)]
            {
                assert!(same(a, b, c), "{a:e} * {b:e} + {c:e}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100_000))]

        #[test]
        fn is_the_standard_librarys(a: u32, b: u32, c: u32, near in 0u8..2) {
            let (a, b) = (f32::from_bits(a), f32::from_bits(b));
            // Half of them cancel nearly, which is where rounding shows.
            let c = if near == 0 { f32::from_bits(c) } else { -(a * b) * (1.0 + (c % 8) as f32 * f32::EPSILON) };
            prop_assert!(same(a, b, c), "{:e} * {:e} + {:e}", a, b, c);
        }
    }
}
