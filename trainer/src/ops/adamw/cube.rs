//! The optimizer step in CubeCL, element by element and in place.

use burn_cubecl::tensor::CubeTensor;

use super::Numbers;
use crate::ops::cube::{buffer, element, lanes, own, per_element};

/// The parameter and its two moments after one step; all four tensors are f32, dense and of one shape.
pub(super) fn step(
    parameter: CubeTensor,
    gradient: CubeTensor,
    first_moment: CubeTensor,
    second_moment: CubeTensor,
    numbers: Numbers,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let (parameter, first, second) = (own(parameter), own(first_moment), own(second_moment));
    let elements = parameter.meta.num_elements();
    if elements > 0 {
        let lanes = lanes(parameter.dtype, elements);
        let (count, dim) = per_element(&parameter.client, elements / lanes);
        // SAFETY: the kernel touches only the elements that there are, and nobody else holds the three buffers that it
        // overwrites.
        unsafe {
            kernels::update::launch_unchecked(
                &parameter.client,
                count,
                dim,
                lanes,
                buffer(&parameter),
                buffer(&gradient),
                buffer(&first),
                buffer(&second),
                elements / lanes,
                numbers.decay,
                numbers.first_weight,
                numbers.second_decay,
                numbers.second_weight,
                numbers.inverse_root_bias,
                numbers.epsilon,
                numbers.step_size,
                element(parameter.dtype),
            );
        }
    }
    (parameter, first, second)
}

mod kernels {
    use cubecl::prelude::*;

    /// One step on N elements; the arithmetic of the CPU kernel.
    #[cube(launch_unchecked)]
    pub fn update<F: Float, N: Size>(
        parameter: &mut [Vector<F, N>],
        gradient: &[Vector<F, N>],
        first: &mut [Vector<F, N>],
        second: &mut [Vector<F, N>],
        vectors: usize,
        decay: f32,
        first_weight: f32,
        second_decay: f32,
        second_weight: f32,
        inverse_root_bias: f32,
        epsilon: f32,
        step_size: f32,
        #[define(F)] _dtype: ElemType,
    ) {
        let index = ABSOLUTE_POS;
        if index >= vectors {
            terminate!();
        }
        let gradient = Vector::<f32, N>::cast_from(gradient[index]);
        let mean = Vector::<f32, N>::cast_from(first[index]);
        let mean = mean + (gradient - mean) * Vector::<f32, N>::new(first_weight);
        let square = Vector::<f32, N>::cast_from(second[index]) * Vector::<f32, N>::new(second_decay)
            + gradient * gradient * Vector::<f32, N>::new(second_weight);
        let denominator =
            Vector::sqrt(square) * Vector::<f32, N>::new(inverse_root_bias) + Vector::<f32, N>::new(epsilon);
        let value = Vector::<f32, N>::cast_from(parameter[index]) * Vector::<f32, N>::new(decay)
            - Vector::<f32, N>::new(step_size) * (mean / denominator);
        parameter[index] = Vector::<F, N>::cast_from(value);
        first[index] = Vector::<F, N>::cast_from(mean);
        second[index] = Vector::<F, N>::cast_from(square);
    }
}
