//! Rotary positions: one table for the model's life.

use rayon::prelude::*;

use super::config::Config;

/// Cosines and sines of every position, `[tokens_max, head_dim / 2]` each (16 MB for 32,768 positions of 128).
pub(super) struct Rope {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl Rope {
    pub(super) fn new(config: &Config) -> Self {
        let (positions, half) = (config.max_position_embeddings, config.head_dim / 2);
        // Products in f32, as the model was trained with: at position 32,767 the rounding of an angle is visible, and
        // the trained one is the right one.
        // By `libm` and not by the C library, whose results depend on its version and on the CPU's generation.
        let exponent = |i: usize| 2.0 * i as f64 / config.head_dim as f64;
        let frequency = |i: usize| (1.0 / libm::pow(config.rope_theta, exponent(i))) as f32;
        let frequencies: Vec<f32> = (0..half).map(frequency).collect();
        let (mut cos, mut sin) = (vec![0.0; positions * half], vec![0.0; positions * half]);
        cos.par_chunks_exact_mut(half).zip(sin.par_chunks_exact_mut(half)).enumerate().for_each(
            |(position, (cos, sin))| {
                for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(&frequencies) {
                    (*sin, *cos) = libm::sincosf(position as f32 * frequency);
                }
            },
        );
        Self { cos, sin, half }
    }

    /// Cosines and sines of one position.
    pub(super) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.half..(position + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }

    /// The whole table, cosines and sines, and its width.
    pub(super) fn table(&self) -> (&[f32], &[f32], usize) {
        (&self.cos, &self.sin, self.half)
    }
}
