//! From a hidden row to the vector that is written.

use super::NonFinite;

/// Cuts to `dimensions`, then scales to length 1. In that order: a cut of a unit vector is no unit vector.
///
/// `dimensions` beyond the row's width means the whole row; limits are the caller's to check against
/// [`super::ModelInfo::hidden`].
///
/// # Errors
/// [`NonFinite`] if any value of the **whole** row is not finite (a fault past the cut is still a fault of this text's
/// forward pass), or the cut row's length is 0.
pub fn finish(hidden: &[f32], dimensions: usize) -> Result<Vec<f32>, NonFinite> {
    if hidden.iter().any(|value| !value.is_finite()) {
        return Err(NonFinite);
    }
    let cut = &hidden[..dimensions.min(hidden.len())];
    // f64: squares of large f32 values overflow f32, and the sum of 4096 of them loses digits.
    let length = cut.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
    if length == 0.0 {
        return Err(NonFinite);
    }
    Ok(cut.iter().map(|&value| (f64::from(value) / length) as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_before_it_normalizes() {
        assert_eq!(finish(&[3.0, 4.0, 12.0], 2), Ok(vec![0.6, 0.8]));
        assert_eq!(finish(&[0.0, 5.0], 2), Ok(vec![0.0, 1.0]));
    }

    #[test]
    fn lengths_beyond_f32_do_not_overflow() {
        let vector = finish(&[f32::MAX, f32::MAX], 2).expect("finite input");
        assert!((vector[0] - std::f32::consts::FRAC_1_SQRT_2).abs() < 1e-7);
        let vector = finish(&[f32::MIN_POSITIVE, 0.0], 2).expect("finite input");
        assert_eq!(vector, [1.0, 0.0]);
    }

    #[test]
    fn refuses_what_has_no_direction() {
        for row in [[f32::NAN, 1.0], [1.0, f32::INFINITY], [1.0, f32::NEG_INFINITY], [0.0, 0.0]] {
            assert_eq!(finish(&row, 1), Err(NonFinite), "{row:?}");
        }
        assert_eq!(finish(&[0.0, 1.0], 1), Err(NonFinite), "nothing is left after the cut");
        assert_eq!(finish(&[1.0], 0), Err(NonFinite));
        assert_eq!(finish(&[], 8), Err(NonFinite));
    }
}
