//! Operations with a kernel of their own. Each file holds the public function, its reference in plain tensor operations
//! (the definition, and what runs where there is no kernel), the CPU kernel and the backward pass; its folder holds the
//! kernel in CubeCL, which runs on GPUs.

pub mod adamw;
pub mod attention;
pub mod check;
pub mod cross_entropy;
#[cfg(feature = "cube")]
mod cube;
pub mod dequantize;
pub mod dropout;
mod flex;
pub mod linear;
pub mod matrix;
pub mod rms_norm;
pub mod rotary;
pub mod seed;
pub mod swiglu;
#[cfg(test)]
mod testing;
pub mod vector;

use burn::tensor::{DType, Device, Tensor};

/// Whether there are kernels for a tensor: for f32 on Burn's flex backend, and for f32, bf16 and f16 on a device of
/// CubeCL. What has none runs the reference.
pub fn has_kernel<const D: usize>(tensor: &Tensor<D>) -> bool {
    runs_on_flex(tensor) || runs_on_cube(tensor)
}

/// Whether a tensor lies where the CubeCL kernels run.
pub fn runs_on_cube<const D: usize>(tensor: &Tensor<D>) -> bool {
    #[cfg(feature = "cube")]
    return matches!(tensor.dtype(), DType::F32 | DType::BF16 | DType::F16) && cube::is_cube(&tensor.device());
    #[cfg(not(feature = "cube"))]
    return {
        let _ = tensor;
        false
    };
}

/// Whether a tensor lies where the CPU kernels run: f32 on Burn's flex backend.
pub fn runs_on_flex<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.dtype() == DType::F32 && tensor.device() == Device::flex()
}
