//! Operations with a kernel of their own. Each file holds the public function, its reference in plain tensor operations
//! (the definition, and what runs where there is no kernel), the CPU kernel and the backward pass.

pub mod adamw;
pub mod adamw8bit;
pub mod adamw_bf16;
pub mod attention;
pub mod cross_entropy;
pub mod dropout;
mod flex;
pub mod linear;
pub mod matrix;
pub mod quantile_map;
pub mod rms_norm;
pub mod rotary;
pub mod seed;
pub mod swiglu;
#[cfg(test)]
pub(crate) mod testing;
pub mod vector;
pub mod weight;

use burn::tensor::{DType, Device, Tensor};

/// Whether a tensor lies where the CPU kernels run: f32 on Burn's flex backend.
pub fn runs_on_flex<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.dtype() == DType::F32 && tensor.device() == Device::flex()
}
