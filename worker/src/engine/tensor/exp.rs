//! The exponential function, written so that the compiler makes vector code of it.

/// e^x within 2 units in the last place for results that are normal numbers; about 1e-38 below, 3e38 above them. NaN stays
/// NaN.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2, and e^r by its Taylor polynomial of degree 7, whose next term is below 2^-27.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding it leaves n, rounded, in a sum's lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.3, 88.3);
    let sum = x * std::f32::consts::LOG2_E + ROUND;
    let n = sum - ROUND;
    // ln 2 in two parts (Cody and Waite): the first has so few bits that n times it is exact.
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let taylor = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let power = taylor.into_iter().fold(1.0 / 5040.0, |sum, term: f32| sum * r + term);
    // n's bits, moved to the exponent; everything above them falls off.
    power * f32::from_bits((sum.to_bits() << 23).wrapping_add(127 << 23))
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn agrees_with_the_standard_library() {
        for step in -87_000..88_000 {
            let x = step as f32 / 1000.0;
            let wanted = f64::from(x).exp();
            let error = (f64::from(exp(x)) - wanted).abs() / wanted;
            assert!(error < 2.5e-7, "e^{x}: off by {error:e}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) < 2e-38);
        assert!(exp(f32::NAN).is_nan());
    }
}
