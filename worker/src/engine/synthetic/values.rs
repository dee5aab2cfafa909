//! Values from a counter: any value of any tensor can be computed alone, in any order and in any language.
//! `tests/golden/make.py` computes the same bits; a change here needs one there and a new [`super::FORMAT`].

use half::{bf16, f16};
use rayon::prelude::*;

use super::shape::{Stored, TensorPlan};

/// Weyl increment of splitmix64 (Steele, Lea and Flood, 2014): 2^64 over the golden ratio.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// Values a thread makes at a time.
const PART: usize = 1 << 16;

/// A stream of well mixed bits, addressed by index.
#[derive(Clone, Copy)]
struct Stream(u64);

impl Stream {
    fn new(seed: u64, name: &str) -> Self {
        Self(mix(seed ^ fnv1a(name)))
    }

    fn bits(self, index: u64) -> u64 {
        mix(self.0.wrapping_add((index + 1).wrapping_mul(STEP)))
    }

    /// In [-1, 1), a multiple of 2^-23: every step is exact in f32.
    fn uniform(self, index: u64) -> f32 {
        (self.bits(index) >> 40) as f32 * (1.0 / 8_388_608.0) - 1.0
    }
}

/// splitmix64's output function.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

/// FNV-1a, 64 bits.
fn fnv1a(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

/// A tensor's values, little endian, as safetensors holds them.
pub(super) fn bytes(plan: &TensorPlan, stored: Stored, seed: u64) -> Vec<u8> {
    // Without the prefix: the same weights whatever they are called.
    let stream = Stream::new(seed, plan.name.strip_prefix("model.").unwrap_or(&plan.name));
    let value = |index: usize| plan.center + plan.amplitude * stream.uniform(index as u64);
    let width = stored.bytes();
    let mut bytes = vec![0; plan.len() * width];
    bytes.par_chunks_mut(PART * width).enumerate().for_each(|(part, bytes)| {
        for (offset, bytes) in bytes.chunks_exact_mut(width).enumerate() {
            let value = value(part * PART + offset);
            match stored {
                Stored::F32 => bytes.copy_from_slice(&value.to_le_bytes()),
                Stored::Bf16 => bytes.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
                Stored::F16 => bytes.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
            }
        }
    });
    bytes
}

/// A text of `length` token ids for tests and benchmarks: random bytes' ids and the end token last.
pub fn token_ids(seed: u64, length: usize) -> Vec<u32> {
    let stream = Stream::new(seed, &format!("tokens.{length}"));
    let end = super::tokenizer_json::END_ID;
    let byte = |index| (stream.bits(index) >> 40) as u32 % end;
    (0..length as u64).map(|index| if index + 1 == length as u64 { end } else { byte(index) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_splitmix64s() {
        // The first outputs of splitmix64 from state 0, as published with xoshiro.
        assert_eq!(Stream(0).bits(0), 0xE220_A839_7B1D_CDAF);
        assert_eq!(Stream(0).bits(1), 0x6E78_9E6A_A1B9_65F4);
        assert_eq!(fnv1a(""), 0xCBF2_9CE4_8422_2325);
        assert_eq!(fnv1a("a"), 0xAF63_DC4C_8601_EC8C);
    }

    #[test]
    fn uniform_values_spread_evenly() {
        let stream = Stream::new(7, "x");
        let values: Vec<f32> = (0..100_000).map(|index| stream.uniform(index)).collect();
        let mean = values.iter().sum::<f32>() / 1e5;
        let variance = values.iter().map(|value| value * value).sum::<f32>() / 1e5;
        assert!(values.iter().all(|value| (-1.0..1.0).contains(value)));
        assert!(mean.abs() < 0.01 && (variance - 1.0 / 3.0).abs() < 0.01, "mean {mean}, variance {variance}");
    }
}
