//! A matrix product with weights, and what makes the rows that go into it.

use candle_core::{Result, Tensor};

use super::gated::gated_silu;
use super::norm::Norm;
#[cfg(feature = "cuda")]
use crate::engine::cuda::{self, Factor};
use crate::engine::marks::Marks;
use crate::engine::place::Place;

/// Weights `[out, in]`, as stored: products take them transposed.
pub(super) struct Linear {
    weights: Weights,
    place: Place,
}

enum Weights {
    Plain(Tensor),
    /// Rows that go into the product are in FP8 as well.
    #[cfg(feature = "cuda")]
    Fp8(cuda::Fp8Rows),
}

impl Linear {
    /// `weights` lie at `place`.
    pub(super) fn new(weights: Tensor, place: Place) -> Self {
        Self { weights: Weights::Plain(weights), place }
    }

    /// The same, in the precision of the place's products.
    pub(super) fn reduced(weights: Tensor, place: Place) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if place.is_fp8() {
            return Ok(Self { weights: Weights::Fp8(cuda::quantize_rows(&weights)?), place });
        }
        Ok(Self::new(weights, place))
    }

    /// Norms rows, `[rows, in]`, and multiplies: `[rows, out]`.
    pub(super) fn forward_normed(
        &self,
        rows: &Tensor,
        norm: &Norm,
        marks: &Marks,
        name: &'static str,
    ) -> Result<Tensor> {
        match &self.weights {
            Weights::Plain(weights) => {
                let normed = norm.of(rows)?;
                marks.moved("norm", &[rows, &normed])?;
                let output = match &self.place {
                    Place::Cpu => normed.matmul(&weights.t()?)?,
                    #[cfg(feature = "cuda")]
                    Place::Cuda(gpu) => cuda::product(gpu, Factor::Bf16(&normed), Factor::Bf16(weights))?,
                };
                marks.product(name, &normed, &output, false)?;
                Ok(output)
            }
            #[cfg(feature = "cuda")]
            Weights::Fp8(weights) => {
                let normed = cuda::rms_norm_fp8(rows, &norm.weight, norm.eps)?;
                marks.moved("norm", &[rows, &normed.values])?;
                let output = cuda::product(self.place.gpu()?, Factor::Fp8(&normed), Factor::Fp8(weights))?;
                marks.product(name, &normed.values, &output, false)?;
                Ok(output)
            }
        }
    }

    /// Multiplies rows, `[rows, in]`, and adds the product to `residual`, `[rows, out]`. That may be done in its memory, also
    /// where other tensors share it. For weights that are not reduced.
    pub(super) fn add_to(&self, residual: Tensor, rows: &Tensor, marks: &Marks, name: &'static str) -> Result<Tensor> {
        let sum = match &self.weights {
            Weights::Plain(weights) => match &self.place {
                Place::Cpu => (residual + rows.matmul(&weights.t()?)?)?,
                #[cfg(feature = "cuda")]
                Place::Cuda(gpu) => {
                    let (rows, weights) = (Factor::Bf16(rows), Factor::Bf16(weights));
                    residual.inplace_op1(&cuda::AddProduct { gpu, rows, weights })?;
                    residual
                }
            },
            #[cfg(feature = "cuda")]
            Weights::Fp8(_) => candle_core::bail!("these rows are not in FP8"),
        };
        marks.product(name, rows, &sum, true)?;
        Ok(sum)
    }

    /// Multiplies `silu(gate) * up` of `gate_up`, `[rows, 2 * in]`, and adds the product to `residual` as [`Self::add_to`].
    pub(super) fn add_gated_to(
        &self,
        residual: Tensor,
        gate_up: Tensor,
        marks: &Marks,
        name: &'static str,
    ) -> Result<Tensor> {
        match &self.weights {
            Weights::Plain(_) => {
                let gated = gated_silu(&gate_up)?;
                marks.moved("SwiGLU", &[&gate_up, &gated])?;
                drop(gate_up);
                self.add_to(residual, &gated, marks, name)
            }
            #[cfg(feature = "cuda")]
            Weights::Fp8(weights) => {
                let gated = cuda::gated_silu_fp8(&gate_up)?;
                marks.moved("SwiGLU", &[&gate_up, &gated.values])?;
                drop(gate_up);
                let (gpu, rows) = (self.place.gpu()?, Factor::Fp8(&gated));
                residual.inplace_op1(&cuda::AddProduct { gpu, rows, weights: Factor::Fp8(weights) })?;
                marks.product(name, &gated.values, &residual, true)?;
                Ok(residual)
            }
        }
    }

    /// Only `len` of the outputs, from `start` on.
    pub(super) fn part(&self, start: usize, len: usize) -> Result<Self> {
        let weights = match &self.weights {
            Weights::Plain(weights) => Weights::Plain(weights.narrow(0, start, len)?),
            #[cfg(feature = "cuda")]
            Weights::Fp8(cuda::Fp8Rows { values, scales }) => Weights::Fp8(cuda::Fp8Rows {
                values: values.narrow(0, start, len)?,
                scales: scales.narrow(0, start, len)?,
            }),
        };
        Ok(Self { weights, place: self.place.clone() })
    }
}
