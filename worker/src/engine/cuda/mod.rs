//! What the forward pass on tensors does on an NVIDIA GPU. Weights and activations are bf16; norms, positions, softmax and
//! the sums of products are f32.
//!
//! A text has the same bits in every batch, but by choice ([`CudaProducts`]). Products have one algorithm for all heights
//! ([`cublas_lt`]); attention is one kernel in all batches ([`attention`]); norms are a block or a warp a row, whose sums
//! follow the row's width alone; the rest is done value by value, or copied. In the last layer pooled rows have a kernel
//! and products of their own, in every batch and at every length.
//!
//! Everything of a batch is queued on one stream, and nothing waits for it but [`transfer::Pending::rows`]: while the GPU
//! computes one batch, the model's thread lays out and queues the next.

mod attention;
mod cublas_lt;
mod fp8;
mod gpu;
mod kernels;
mod products;
mod transfer;

pub(super) use attention::{Launches, Lengths, attend};
pub(super) use fp8::{Fp8Rows, gated_silu_fp8, quantize_rows, rms_norm_fp8};
pub(super) use gpu::{Gpu, end_process};
pub(super) use kernels::{gated_silu, gather, norm_and_turn, rms_norm};
pub(super) use products::{AddProduct, Factor, product};
pub(super) use transfer::{Batch, Pending};

use super::LoadError;
#[cfg(doc)]
use super::compute::CudaProducts;
use super::config::Config;

/// Refuses a model that the kernels don't fit. Qwen3-Embedding's do.
pub(super) fn check(config: &Config) -> Result<(), LoadError> {
    let refuse =
        |field, value: usize, expected| Err(LoadError::Unsupported { field, value: value.to_string(), expected });
    if config.head_dim != kernels::HEAD_DIM {
        return refuse("head_dim", config.head_dim, "must be 128 on a GPU; --device cpu takes any");
    }
    // Rows, and parts of them, then begin where products and kernels want them to.
    for (field, width) in [("hidden_size", config.hidden_size), ("intermediate_size", config.intermediate_size)] {
        if !width.is_multiple_of(products::ALIGNMENT / size_of::<half::bf16>()) {
            return refuse(field, width, "must be a multiple of 128 on a GPU; --device cpu takes any");
        }
    }
    Ok(())
}
