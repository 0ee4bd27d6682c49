//! One step of AdamW (Loshchilov and Hutter, 2019) in the order of torch.optim.AdamW, and the sums over gradients that
//! an optimizer step needs. All tensors here are without a graph.

#[cfg(feature = "cube")]
mod cube;

use burn::backend::Flex;
use burn::tensor::{DType, Tensor};
use multiversion::multiversion;
use rayon::prelude::*;

use super::flex::{ELEMENTS, for_each_task, plain, values};
use super::runs_on_flex;

/// The numbers of one AdamW step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the mean of the gradients.
    pub beta1: f64,
    /// Decay of the mean of the squared gradients.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay; 0 for parameters without decay.
    pub weight_decay: f64,
    /// Number of this step, counted from 1.
    pub step: u64,
}

/// The parameter and its two moments after one step. All four tensors have the same shape; the three that come back
/// are overwritten in place where nobody else holds them.
pub fn adamw_step<const D: usize>(
    parameter: Tensor<D>,
    gradient: Tensor<D>,
    first_moment: Tensor<D>,
    second_moment: Tensor<D>,
    step: &AdamWStep,
) -> (Tensor<D>, Tensor<D>, Tensor<D>) {
    let all_on_flex = runs_on_flex(&parameter)
        && runs_on_flex(&gradient)
        && runs_on_flex(&first_moment)
        && runs_on_flex(&second_moment);
    let shape = parameter.dims();
    let same = [gradient.dims(), first_moment.dims(), second_moment.dims()]
        .iter()
        .all(|other| *other == shape);
    assert!(same, "gradient and moments of a parameter of {shape:?}");
    if !all_on_flex {
        return adamw_step_elsewhere(parameter, gradient, first_moment, second_moment, step);
    }
    let (mut parameter, gradient, mut first_moment, mut second_moment) = match (
        plain(parameter),
        plain(gradient),
        plain(first_moment),
        plain(second_moment),
    ) {
        (Ok(parameter), Ok(gradient), Ok(first), Ok(second)) => (parameter, gradient, first, second),
        (parameter, gradient, first, second) => {
            let [parameter, gradient, first, second] = [parameter, gradient, first, second]
                .map(|tensor| tensor.map_or_else(|tensor| *tensor, Tensor::from_primitive::<Flex>));
            return adamw_step_reference(parameter, gradient, first, second, step);
        }
    };
    let numbers = Numbers::new(step);
    // Buffers that somebody else holds are copied here.
    let (parameters, firsts, seconds) = (
        parameter.storage_mut::<f32>(),
        first_moment.storage_mut::<f32>(),
        second_moment.storage_mut::<f32>(),
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
        Tensor::from_primitive::<Flex>(first_moment),
        Tensor::from_primitive::<Flex>(second_moment),
    )
}

/// One step on a device other than the CPU.
#[cfg(feature = "cube")]
fn adamw_step_elsewhere<const D: usize>(
    parameter: Tensor<D>,
    gradient: Tensor<D>,
    first_moment: Tensor<D>,
    second_moment: Tensor<D>,
    step: &AdamWStep,
) -> (Tensor<D>, Tensor<D>, Tensor<D>) {
    use super::cube::{plain, tensor};

    let all = [&parameter, &gradient, &first_moment, &second_moment];
    if !all
        .iter()
        .all(|tensor| tensor.dtype() == DType::F32 && super::runs_on_cube(*tensor) && !tensor.device().is_autodiff())
    {
        return adamw_step_reference(parameter, gradient, first_moment, second_moment, step);
    }
    match (
        plain(parameter),
        plain(gradient),
        plain(first_moment),
        plain(second_moment),
    ) {
        (Ok(parameter), Ok(gradient), Ok(first), Ok(second)) => {
            let (parameter, first, second) = cube::step(parameter, gradient, first, second, Numbers::new(step));
            (tensor(parameter), tensor(first), tensor(second))
        }
        (parameter, gradient, first, second) => {
            let [parameter, gradient, first, second] =
                [parameter, gradient, first, second].map(|each| each.map_or_else(|each| *each, tensor));
            adamw_step_reference(parameter, gradient, first, second, step)
        }
    }
}

/// One step on a device other than the CPU.
#[cfg(not(feature = "cube"))]
fn adamw_step_elsewhere<const D: usize>(
    parameter: Tensor<D>,
    gradient: Tensor<D>,
    first_moment: Tensor<D>,
    second_moment: Tensor<D>,
    step: &AdamWStep,
) -> (Tensor<D>, Tensor<D>, Tensor<D>) {
    adamw_step_reference(parameter, gradient, first_moment, second_moment, step)
}

/// The factors of one step, each computed in f64 and rounded once, as torch does.
#[derive(Clone, Copy)]
pub(super) struct Numbers {
    pub(super) decay: f32,
    pub(super) first_decay: f32,
    pub(super) first_weight: f32,
    pub(super) second_decay: f32,
    pub(super) second_weight: f32,
    pub(super) inverse_root_bias: f32,
    pub(super) epsilon: f32,
    pub(super) step_size: f32,
}

impl Numbers {
    pub(super) fn new(step: &AdamWStep) -> Self {
        let bias1 = 1.0 - step.beta1.powf(step.step as f64);
        let bias2 = 1.0 - step.beta2.powf(step.step as f64);
        Self {
            decay: (1.0 - step.learning_rate * step.weight_decay) as f32,
            first_decay: step.beta1 as f32,
            first_weight: (1.0 - step.beta1) as f32,
            second_decay: step.beta2 as f32,
            second_weight: (1.0 - step.beta2) as f32,
            inverse_root_bias: (1.0 / bias2.sqrt()) as f32,
            epsilon: step.epsilon as f32,
            step_size: (step.learning_rate / bias1) as f32,
        }
    }
}

/// One step on a run of elements.
#[multiversion(targets = "simd")]
fn update(parameter: &mut [f32], first: &mut [f32], second: &mut [f32], gradient: &[f32], numbers: Numbers) {
    let elements = parameter.iter_mut().zip(first).zip(second).zip(gradient);
    for (((parameter, first), second), gradient) in elements {
        (*first, *second) = update_one(parameter, *first, *second, *gradient, numbers);
    }
}

/// One step on one element: the new moments.
#[inline(always)]
pub(super) fn update_one(parameter: &mut f32, first: f32, second: f32, gradient: f32, numbers: Numbers) -> (f32, f32) {
    let first = first + (gradient - first) * numbers.first_weight;
    let second = second * numbers.second_decay + gradient * gradient * numbers.second_weight;
    move_one(parameter, first, second, numbers);
    (first, second)
}

/// Decays one element and moves it by its new moments.
#[inline(always)]
pub(super) fn move_one(parameter: &mut f32, first: f32, second: f32, numbers: Numbers) {
    let denominator = second.sqrt() * numbers.inverse_root_bias + numbers.epsilon;
    *parameter = *parameter * numbers.decay - numbers.step_size * (first / denominator);
}

/// The same in plain tensor operations.
pub fn adamw_step_reference<const D: usize>(
    parameter: Tensor<D>,
    gradient: Tensor<D>,
    first_moment: Tensor<D>,
    second_moment: Tensor<D>,
    step: &AdamWStep,
) -> (Tensor<D>, Tensor<D>, Tensor<D>) {
    let bias1 = 1.0 - step.beta1.powf(step.step as f64);
    let bias2 = 1.0 - step.beta2.powf(step.step as f64);
    let parameter = parameter * (1.0 - step.learning_rate * step.weight_decay);
    let first_moment = first_moment.clone() + (gradient.clone() - first_moment) * (1.0 - step.beta1);
    let second_moment = second_moment * step.beta2 + gradient.square() * (1.0 - step.beta2);
    let denominator = second_moment.clone().sqrt() / bias2.sqrt() + step.epsilon;
    let parameter = parameter - first_moment.clone() / denominator * (step.learning_rate / bias1);
    (parameter, first_moment, second_moment)
}

/// The sum of the squares of all elements, in f64 and in an order that does not depend on the number of threads.
pub fn sum_of_squares<const D: usize>(tensor: &Tensor<D>) -> f64 {
    match plain(tensor.clone()) {
        Ok(tensor) => {
            let values = values(&tensor);
            let mut sums = vec![0.0; values.len().div_ceil(ELEMENTS)];
            let tasks = values.par_chunks(ELEMENTS).zip(&mut sums);
            for_each_task(tasks, values.len(), |(values, sum)| *sum = squares(values));
            sums.iter().sum()
        }
        Err(tensor) => sum_of_squares_reference(&tensor),
    }
}

/// The same in plain tensor operations.
pub fn sum_of_squares_reference<const D: usize>(tensor: &Tensor<D>) -> f64 {
    tensor
        .clone()
        .cast(DType::F32)
        .square()
        .sum()
        .into_data()
        .iter::<f64>()
        .sum()
}

/// The sum of squares of a run of elements; each square is exact in f64.
#[multiversion(targets = "simd")]
fn squares(values: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 32];
    let chunks = values.chunks_exact(lanes.len());
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(*value) * f64::from(*value);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(*value) * f64::from(*value);
    }
    lanes.iter().sum()
}

/// `tensor * factor`, in place where nobody else holds the tensor.
pub fn scale_in_place<const D: usize>(tensor: Tensor<D>, factor: f32) -> Tensor<D> {
    match plain(tensor) {
        Ok(mut tensor) => {
            let values = tensor.storage_mut::<f32>();
            let length = values.len();
            for_each_task(values.par_chunks_mut(ELEMENTS), length, |values| scale(values, factor));
            Tensor::from_primitive::<Flex>(tensor)
        }
        Err(tensor) => *tensor * factor,
    }
}

/// Multiplies a run of elements.
#[multiversion(targets = "simd")]
fn scale(values: &mut [f32], factor: f32) {
    values.iter_mut().for_each(|value| *value *= factor);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_equal, random};

    fn options(step: u64) -> AdamWStep {
        AdamWStep {
            learning_rate: 0.01,
            beta1: 0.9,
            beta2: 0.99,
            epsilon: 1e-8,
            weight_decay: 0.1,
            step,
        }
    }

    #[test]
    fn twenty_steps_equal_the_reference() {
        for shape in [[1, 1], [3, 7], [200, 511]] {
            let zeros = || random(shape).zeros_like();
            let start = random(shape);
            let mut kernel = (start.clone(), zeros(), zeros());
            let mut reference = (start, zeros(), zeros());
            for step in 1..=20 {
                let gradient = random(shape) * 0.1;
                kernel = adamw_step(kernel.0, gradient.clone(), kernel.1, kernel.2, &options(step));
                reference = adamw_step_reference(reference.0, gradient, reference.1, reference.2, &options(step));
            }
            check_equal(kernel.0, reference.0, 1e-5, "parameter");
            check_equal(kernel.1, reference.1, 1e-6, "first moment");
            check_equal(kernel.2, reference.2, 1e-6, "second moment");
        }
    }

    /// Without rounding and epsilon, the first step is `p (1 - lr decay) - lr sign(g)`.
    #[test]
    fn the_first_step_is_known() {
        let device = burn::tensor::Device::flex();
        let row = |values: [f32; 2]| Tensor::<1>::from_data(values, &device);
        let step = AdamWStep {
            learning_rate: 0.1,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
            step: 1,
        };
        let (parameter, first, second) = adamw_step(
            row([1.0, -2.0]),
            row([0.5, -0.25]),
            row([0.0, 0.0]),
            row([0.0, 0.0]),
            &step,
        );
        check_equal(parameter, row([0.899, -1.898]), 1e-6, "parameter");
        check_equal(first, row([0.05, -0.025]), 1e-7, "first moment");
        check_equal(second, row([2.5e-4, 6.25e-5]), 1e-9, "second moment");
    }

    #[test]
    fn shared_tensors_are_left_alone() {
        let (parameter, gradient, moment) = (random([10, 10]), random([10, 10]), random([10, 10]).abs());
        let before = (parameter.clone().into_data(), moment.clone().into_data());
        let _ = adamw_step(parameter.clone(), gradient, moment.clone(), moment.clone(), &options(3));
        let _ = scale_in_place(parameter.clone(), 3.0);
        parameter.into_data().assert_eq(&before.0, true);
        moment.into_data().assert_eq(&before.1, true);
    }

    #[test]
    fn sums_and_products() {
        for length in [1, 5, 40_000, 200_001] {
            let tensor = random([length]);
            let exact: f64 = tensor
                .clone()
                .into_data()
                .iter::<f64>()
                .map(|value| value * value)
                .sum();
            assert!((sum_of_squares(&tensor) - exact).abs() <= exact * 1e-12);
            assert!((sum_of_squares_reference(&tensor) - exact).abs() <= exact * 1e-5);
            check_equal(scale_in_place(tensor.clone(), 0.5), tensor * 0.5, 0.0, "product");
        }
        let huge = Tensor::<1>::from_data([1e30f32, 1e30], &burn::tensor::Device::flex());
        assert!(sum_of_squares(&huge).is_finite());
    }
}
