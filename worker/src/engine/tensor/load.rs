//! Weights on their way from the checkpoint to where they compute.

use candle_core::{DType, Tensor};

use super::linear::Linear;
use crate::engine::LoadError;
use crate::engine::place::Place;
use crate::engine::weights::Weights;

/// Takes tensors out of a checkpoint to a place.
pub(super) struct Loader<'a> {
    pub(super) weights: &'a Weights,
    pub(super) place: &'a Place,
}

impl Loader<'_> {
    /// A tensor in the place's type.
    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        let stored = self.weights.stored(name, shape)?;
        Ok(stored.to_dtype(self.place.dtype())?.to_device(self.place.device())?)
    }

    /// Weights of a norm: `[width]`, f32.
    pub(super) fn norm(&self, name: &str, width: usize) -> Result<Tensor, LoadError> {
        let stored = self.weights.stored(name, &[width])?;
        Ok(stored.to_dtype(DType::F32)?.to_device(self.place.device())?)
    }

    /// Several `[rows, columns]` tensors on top of each other, one matrix product instead of several, in the precision of the
    /// place's products.
    pub(super) fn linear(&self, parts: &[(String, usize)], columns: usize) -> Result<Linear, LoadError> {
        Ok(Linear::reduced(self.stacked(parts, columns)?, self.place.clone())?)
    }

    /// The same in the place's type.
    pub(super) fn unreduced(&self, parts: &[(String, usize)], columns: usize) -> Result<Linear, LoadError> {
        Ok(Linear::new(self.stacked(parts, columns)?, self.place.clone()))
    }

    fn stacked(&self, parts: &[(String, usize)], columns: usize) -> Result<Tensor, LoadError> {
        let parts = parts
            .iter()
            .map(|(name, rows)| self.tensor(name, &[*rows, columns]))
            .collect::<Result<Vec<_>, LoadError>>()?;
        Ok(Tensor::cat(&parts, 0)?)
    }
}
