//! Operations with a kernel of their own. Each file holds the public function, its reference in plain tensor operations
//! (the definition, and what runs where there is no kernel), the CPU kernel and the backward pass; its folder holds the
//! kernel in CubeCL, which runs on GPUs.

pub mod activation;
pub mod adamw;
pub mod adamw8bit;
pub mod adamw_bf16;
pub mod attention;
pub mod check;
pub mod cross_entropy;
#[cfg(feature = "cube")]
mod cube;
pub mod dequantize;
pub mod dropout;
mod flex;
pub mod layer_norm;
pub mod linear;
pub mod matrix;
pub mod quantile_map;
#[cfg(any(feature = "cuda", all(test, feature = "cubecl-cpu")))]
pub(crate) mod raw;
pub mod rms_norm;
pub mod rotary;
pub mod seed;
#[cfg(test)]
pub(crate) mod testing;
pub mod vector;
pub mod weight;
pub mod xielu;

use burn::tensor::{DType, Device, Int, Tensor};

/// Whether there are kernels for a tensor: for f32 on Burn's flex backend, and for f32, bf16 and f16 on a device of
/// CubeCL. What has none runs the reference.
pub fn has_kernel<const D: usize>(tensor: &Tensor<D>) -> bool {
    runs_on_flex(tensor) || runs_on_cube(tensor)
}

/// Whether a tensor lies where the CubeCL kernels run.
pub fn runs_on_cube<const D: usize>(tensor: &Tensor<D>) -> bool {
    matches!(tensor.dtype(), DType::F32 | DType::BF16 | DType::F16) && is_cube(&tensor.device())
}

/// Whether a device is one of CubeCL: a GPU, or its CPU runtime.
pub fn is_cube(device: &Device) -> bool {
    #[cfg(feature = "cube")]
    return cube::is_cube(device);
    #[cfg(not(feature = "cube"))]
    return {
        let _ = device;
        false
    };
}

/// Whole numbers in the type that the device indexes with; LibTorch computes in no other.
pub(crate) fn as_indices<const D: usize>(numbers: Tensor<D, Int>) -> Tensor<D, Int> {
    let dtype = numbers.device().settings().int_dtype;
    numbers.cast(dtype)
}

/// Whether a tensor lies where the CPU kernels run: f32 on Burn's flex backend.
pub fn runs_on_flex<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.dtype() == DType::F32 && tensor.device() == Device::flex()
}
