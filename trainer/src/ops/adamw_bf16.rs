//! One step of AdamW whose moments are kept in bf16: read, updated in f32, and rounded to nearest even. The parameter is
//! moved by the moments before they are rounded. All tensors here are without a graph.

use burn::backend::Flex;
use burn::tensor::{DType, Tensor};
use half::bf16;
use multiversion::multiversion;
use rayon::prelude::*;

use super::adamw::{AdamWStep, Numbers, adamw_step_reference, update_one};
use super::flex::{ELEMENTS, for_each_task, plain, plain_bf16, values};

/// The parameter (f32) and its two moments (bf16) after one step. All four tensors have the same length; the three that
/// come back are overwritten in place where nobody else holds them.
pub fn adamw_step_bf16(
    parameter: Tensor<1>,
    gradient: Tensor<1>,
    first_moment: Tensor<1>,
    second_moment: Tensor<1>,
    step: &AdamWStep,
) -> (Tensor<1>, Tensor<1>, Tensor<1>) {
    let shape = parameter.dims();
    let same = [gradient.dims(), first_moment.dims(), second_moment.dims()]
        .iter()
        .all(|other| *other == shape);
    assert!(same, "gradient and moments of a parameter of {shape:?}");
    let (mut parameter, gradient, mut first, mut second) = match (
        plain(parameter),
        plain(gradient),
        plain_bf16(first_moment),
        plain_bf16(second_moment),
    ) {
        (Ok(parameter), Ok(gradient), Ok(first), Ok(second)) => (parameter, gradient, first, second),
        (parameter, gradient, first, second) => {
            let [parameter, gradient, first, second] = [parameter, gradient, first, second]
                .map(|tensor| tensor.map_or_else(|tensor| *tensor, Tensor::from_primitive::<Flex>));
            return adamw_step_bf16_reference(parameter, gradient, first, second, step);
        }
    };
    let numbers = Numbers::new(step);
    // Buffers that somebody else holds are copied here.
    let (parameters, firsts, seconds) = (
        parameter.storage_mut::<f32>(),
        first.storage_mut::<bf16>(),
        second.storage_mut::<bf16>(),
    );
    let length = parameters.len();
    let tasks = parameters
        .par_chunks_mut(ELEMENTS)
        .zip(firsts.par_chunks_mut(ELEMENTS))
        .zip(seconds.par_chunks_mut(ELEMENTS))
        .zip(values(&gradient).par_chunks(ELEMENTS));
    for_each_task(tasks, length, |(((parameter, first), second), gradient)| {
        update(parameter, first, second, gradient, numbers);
    });
    (
        Tensor::from_primitive::<Flex>(parameter),
        Tensor::from_primitive::<Flex>(first),
        Tensor::from_primitive::<Flex>(second),
    )
}

/// One step on a run of elements.
#[multiversion(targets = "simd")]
fn update(parameter: &mut [f32], first: &mut [bf16], second: &mut [bf16], gradient: &[f32], numbers: Numbers) {
    let elements = parameter.iter_mut().zip(first).zip(second).zip(gradient);
    for (((parameter, first), second), gradient) in elements {
        let moments = update_one(parameter, first.to_f32(), second.to_f32(), *gradient, numbers);
        (*first, *second) = (bf16::from_f32(moments.0), bf16::from_f32(moments.1));
    }
}

/// The same in plain tensor operations.
pub fn adamw_step_bf16_reference(
    parameter: Tensor<1>,
    gradient: Tensor<1>,
    first_moment: Tensor<1>,
    second_moment: Tensor<1>,
    step: &AdamWStep,
) -> (Tensor<1>, Tensor<1>, Tensor<1>) {
    let (first, second) = (first_moment.cast(DType::F32), second_moment.cast(DType::F32));
    let (parameter, first, second) = adamw_step_reference(parameter, gradient, first, second, step);
    (parameter, first.cast(DType::BF16), second.cast(DType::BF16))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_equal, random};

    #[test]
    fn twenty_steps_equal_the_reference() {
        for length in [1, 257, 40_000] {
            let zeros = || random([length]).zeros_like().cast(DType::BF16);
            let start = random([length]);
            let mut kernel = (start.clone(), zeros(), zeros());
            let mut reference = (start, zeros(), zeros());
            for step in 1..=20 {
                let gradient = random([length]) * 0.1;
                let settings = AdamWStep {
                    learning_rate: 0.01,
                    beta1: 0.9,
                    beta2: 0.99,
                    epsilon: 1e-8,
                    weight_decay: 0.1,
                    step,
                };
                kernel = adamw_step_bf16(kernel.0, gradient.clone(), kernel.1, kernel.2, &settings);
                reference = adamw_step_bf16_reference(reference.0, gradient, reference.1, reference.2, &settings);
            }
            assert_eq!((kernel.1.dtype(), kernel.2.dtype()), (DType::BF16, DType::BF16));
            let f32 = |tensor: Tensor<1>| tensor.cast(DType::F32);
            // Where the f32 before rounding lies between two numbers of bf16, the last bit of f32 decides.
            check_equal(f32(kernel.1), f32(reference.1), 1e-3, "first moment");
            check_equal(f32(kernel.2), f32(reference.2), 1e-3, "second moment");
            check_equal(kernel.0, reference.0, 1e-3, "parameter");
        }
    }

    #[test]
    fn moments_are_rounded_to_nearest_even() {
        let device = burn::tensor::Device::flex();
        let row = |value: f32| Tensor::<1>::from_data([value], &device);
        let settings = AdamWStep {
            learning_rate: 0.1,
            beta1: 0.5,
            beta2: 0.5,
            epsilon: 1e-8,
            weight_decay: 0.0,
            step: 1,
        };
        // The moment is half the gradient: in the middle between 1 and 1 + 2^-7, or between that and 1 + 2^-6.
        for (gradient, expected) in [
            (2.0 + 2f32.powi(-7), 1.0),
            (2.0 + 3.0 * 2f32.powi(-7), 1.0 + 2f32.powi(-6)),
        ] {
            let zero = || row(0.0).cast(DType::BF16);
            let (_, first, _) = adamw_step_bf16(row(0.0), row(gradient), zero(), zero(), &settings);
            assert_eq!(first.cast(DType::F32).into_scalar::<f32>(), expected, "{gradient}");
        }
    }
}
