//! Rotary positions: one table for the model's life, gathered by position for every batch.

use candle_core::{Device, Result, Tensor};

use super::config::Config;

/// Cosines and sines of every position, `[tokens_max, head_dim / 2]` each (16 MB for 32,768 positions of 128).
pub(super) struct Rope {
    cos: Tensor,
    sin: Tensor,
}

/// Cosines and sines of the rows of one packed batch, `[rows, head_dim / 2]` each.
pub(super) struct Angles {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    pub(super) fn new(config: &Config) -> Result<Self> {
        let (positions, half) = (config.max_position_embeddings, config.head_dim / 2);
        // Products in f32, as the model was trained with: at position 32,767 the rounding of an angle is visible, and
        // the trained one is the right one.
        let frequency = |i: usize| (1.0 / config.rope_theta.powf(2.0 * i as f64 / config.head_dim as f64)) as f32;
        let frequencies: Vec<f32> = (0..half).map(frequency).collect();
        let angles = (0..positions).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
        let (sin, cos): (Vec<f32>, Vec<f32>) = angles.map(f32::sin_cos).unzip();
        let shape = (positions, half);
        Ok(Self { cos: Tensor::from_vec(cos, shape, &Device::Cpu)?, sin: Tensor::from_vec(sin, shape, &Device::Cpu)? })
    }

    /// Angles of the given positions, one a packed row.
    pub(super) fn angles(&self, positions: Vec<u32>) -> Result<Angles> {
        let positions = Tensor::new(positions, &Device::Cpu)?;
        Ok(Angles { cos: self.cos.index_select(&positions, 0)?, sin: self.sin.index_select(&positions, 0)? })
    }
}

impl Angles {
    /// Turns `[rows, heads, head_dim]`.
    pub(super) fn turn(&self, heads: &Tensor) -> Result<Tensor> {
        // candle's layout is [batch, rows, heads, head_dim]; to it the packed rows are one sequence, each with the
        // position that was gathered for it.
        candle_nn::rotary_emb::rope_thd(&heads.unsqueeze(0)?, &self.cos, &self.sin)?.squeeze(0)
    }
}
