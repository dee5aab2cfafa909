//! Functions of sixteen values.

use std::f32::consts::{LN_2, LOG2_E};

use super::path::Simd;

/// `x / (1 + e^-x)`.
#[inline(always)]
pub(super) fn silu<S: Simd>(simd: S, x: S::Lanes) -> S::Lanes {
    let minus = simd.sub(simd.splat(0.0), x);
    simd.div(x, simd.add(simd.splat(1.0), exp(simd, minus)))
}

/// e^x within 2 units in the last place from -87.3 to 88; their values below and above. NaN stays NaN.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2, and e^r by its Taylor polynomial of degree 7, whose next term is below 2^-27.
#[inline(always)]
pub(super) fn exp<S: Simd>(simd: S, x: S::Lanes) -> S::Lanes {
    // Within these bounds 2^n is a normal number. A NaN passes: it is the second value.
    let x = simd.min(simd.splat(88.0), simd.max(simd.splat(-87.3), x));
    let n = simd.round(simd.mul(x, simd.splat(LOG2_E)));
    // ln 2 in two parts (Cody and Waite): the first has so few bits that n times it is exact.
    let r = simd.mul_add(n, simd.splat(-0.693_359_4), x);
    let r = simd.mul_add(n, simd.splat(2.121_944_4e-4), r);
    const TAYLOR: [f32; 7] = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let mut sum = simd.splat(1.0 / 5040.0);
    for term in TAYLOR {
        sum = simd.mul_add(sum, r, simd.splat(term));
    }
    simd.times_power_of_two(sum, n)
}

/// 2^x within 2 units in the last place from -126 to 127; 2^-126 below. NaN stays NaN. x is not above 127.
///
/// x = n + f with |f| <= 1/2, and 2^f by its Taylor polynomial of degree 7, whose next term is below 2^-27.
#[inline(always)]
pub(super) fn exp2<S: Simd>(simd: S, x: S::Lanes) -> S::Lanes {
    // Powers of ln 2 over factorials.
    const TAYLOR: [f32; 7] = [1.540_353e-4, 1.333_355_8e-3, 9.618_129e-3, 5.550_411e-2, 0.240_226_5, LN_2, 1.0];
    let x = simd.max(simd.splat(-126.0), x);
    let n = simd.round(x);
    let f = simd.sub(x, n);
    let mut sum = simd.splat(1.525_273_4e-5);
    for term in TAYLOR {
        sum = simd.mul_add(sum, f, simd.splat(term));
    }
    simd.times_power_of_two(sum, n)
}

#[cfg(test)]
mod tests {
    use super::super::path::LANES;
    use super::super::portable::Portable;
    use super::*;

    #[test]
    fn powers_agree_with_the_standard_library() {
        let at = |x: f32, power: fn(Portable, [f32; LANES]) -> [f32; LANES]| power(Portable, [x; LANES])[0];
        for step in -87_000..88_000 {
            let x = step as f32 / 1000.0;
            let (e, two) = (f64::from(x).exp(), f64::from(x).exp2());
            assert!((f64::from(at(x, exp)) - e).abs() / e < 2.5e-7, "e^{x}");
            assert!((f64::from(at(x, exp2)) - two).abs() / two < 2.5e-7, "2^{x}");
        }
        for power in [exp, exp2] {
            assert_eq!(at(0.0, power), 1.0);
            assert!(at(f32::NAN, power).is_nan());
            assert!(at(f32::NEG_INFINITY, power) < 2e-38);
        }
        assert!(at(f32::NAN, silu).is_nan());
    }
}
