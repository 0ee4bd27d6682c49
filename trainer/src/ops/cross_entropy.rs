//! Log-probabilities of target tokens and the gradient of a weighted cross-entropy, from logits without a graph.

#[cfg(feature = "cube")]
mod cube;

use burn::backend::Flex;
use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor, TensorData, activation};
use multiversion::multiversion;
use rayon::prelude::*;

use super::flex::{dimensions, for_each_task, plain, values};
use super::vector;

/// Per row r: the log-probability of `targets[r]`, and `scale[r] * (softmax(logits[r]) - onehot(targets[r]))`, which is
/// the gradient of `-scale[r] * log_prob[r]` with respect to the logits. logits and gradient `[rows, vocabulary]`;
/// logits that nobody else holds are overwritten.
pub fn softmax_cross_entropy(logits: Tensor<2>, targets: &[u32], scale: &[f32]) -> (Vec<f32>, Tensor<2>) {
    match plain(logits) {
        Ok(mut logits) => {
            let [rows, vocabulary] = dimensions(&logits);
            check_targets(rows, vocabulary, targets);
            assert_eq!(scale.len(), rows, "one scale per row of logits");
            let mut log_probs = vec![0.0; rows];
            // A buffer that somebody else holds is copied here.
            let output = logits.storage_mut::<f32>().par_chunks_mut(vocabulary.max(1));
            let tasks = output.zip(&mut log_probs).zip(targets.par_iter().zip(scale));
            for_each_task(tasks, rows * vocabulary, |((row, log_prob), (target, scale))| {
                *log_prob = differentiate(row, *target as usize, *scale);
            });
            (log_probs, Tensor::from_primitive::<Flex>(logits))
        }
        Err(logits) => softmax_cross_entropy_elsewhere(*logits, targets, scale),
    }
}

#[cfg(feature = "cube")]
fn softmax_cross_entropy_elsewhere(logits: Tensor<2>, targets: &[u32], scale: &[f32]) -> (Vec<f32>, Tensor<2>) {
    if !super::runs_on_cube(&logits) {
        return softmax_cross_entropy_reference(logits, targets, scale);
    }
    match super::cube::plain(logits) {
        Ok(logits) => {
            assert_eq!(scale.len(), targets.len(), "one scale per row of logits");
            cube::softmax_cross_entropy(logits, targets, scale)
        }
        Err(logits) => softmax_cross_entropy_reference(*logits, targets, scale),
    }
}

#[cfg(not(feature = "cube"))]
fn softmax_cross_entropy_elsewhere(logits: Tensor<2>, targets: &[u32], scale: &[f32]) -> (Vec<f32>, Tensor<2>) {
    softmax_cross_entropy_reference(logits, targets, scale)
}

/// The log-probability of `targets[r]` in each row of logits `[rows, vocabulary]`.
pub fn target_log_probs(logits: Tensor<2>, targets: &[u32]) -> Vec<f32> {
    match plain(logits) {
        Ok(logits) => {
            let [rows, vocabulary] = dimensions(&logits);
            check_targets(rows, vocabulary, targets);
            let mut log_probs = vec![0.0; rows];
            let tasks = values(&logits)
                .par_chunks(vocabulary.max(1))
                .zip(&mut log_probs)
                .zip(targets);
            for_each_task(tasks, rows * vocabulary, |((row, log_prob), target)| {
                *log_prob = log_probability(row, *target as usize);
            });
            log_probs
        }
        Err(logits) => target_log_probs_elsewhere(*logits, targets),
    }
}

#[cfg(feature = "cube")]
fn target_log_probs_elsewhere(logits: Tensor<2>, targets: &[u32]) -> Vec<f32> {
    if !super::runs_on_cube(&logits) {
        return target_log_probs_reference(logits, targets);
    }
    match super::cube::plain(logits) {
        Ok(logits) => cube::target_log_probs(logits, targets),
        Err(logits) => target_log_probs_reference(*logits, targets),
    }
}

#[cfg(not(feature = "cube"))]
fn target_log_probs_elsewhere(logits: Tensor<2>, targets: &[u32]) -> Vec<f32> {
    target_log_probs_reference(logits, targets)
}

/// The kernels index rows with the targets.
fn check_targets(rows: usize, vocabulary: usize, targets: &[u32]) {
    assert_eq!(targets.len(), rows, "one target per row of logits");
    let largest = targets.iter().max().map_or(0, |target| *target as usize + 1);
    assert!(
        largest <= vocabulary,
        "target {} of a vocabulary of {vocabulary}",
        largest - 1
    );
}

/// One row: logits become `scale * (softmax - onehot)`. Returns the target's log-probability.
#[multiversion(targets = "simd")]
fn differentiate(row: &mut [f32], target: usize, scale: f32) -> f32 {
    let maximum = vector::maximum(row);
    let logit = f64::from(row[target]) - f64::from(maximum);
    let sum = vector::exp_and_sum(row, maximum);
    let factor = (f64::from(scale) / sum) as f32;
    row.iter_mut().for_each(|value| *value *= factor);
    row[target] -= scale;
    (logit - sum.ln()) as f32
}

/// One row: the target's log-probability.
#[multiversion(targets = "simd")]
fn log_probability(row: &[f32], target: usize) -> f32 {
    let maximum = vector::maximum(row);
    let sum = vector::sum_by(row, |value| vector::exp(value - maximum));
    (f64::from(row[target]) - f64::from(maximum) - sum.ln()) as f32
}

/// [`softmax_cross_entropy`] in plain tensor operations.
pub fn softmax_cross_entropy_reference(logits: Tensor<2>, targets: &[u32], scale: &[f32]) -> (Vec<f32>, Tensor<2>) {
    let [rows, vocabulary] = logits.dims();
    let (device, dtype) = (logits.device(), logits.dtype());
    let log_probs = activation::log_softmax(logits.cast(DType::F32), 1);
    let indices = target_indices(targets, &log_probs);
    let chosen = log_probs.clone().gather(1, indices.clone());
    let scale = Tensor::<2>::from_data(TensorData::new(scale.to_vec(), [rows, 1]), (&device, DType::F32));
    let onehot = Tensor::<2>::zeros([rows, vocabulary], (&device, DType::F32));
    let ones = Tensor::<2>::ones([rows, 1], (&device, DType::F32));
    let onehot = onehot.scatter(1, indices, ones, IndexingUpdateOp::Add);
    let gradient = (log_probs.exp() - onehot) * scale;
    (to_vector(chosen), gradient.cast(dtype))
}

/// [`target_log_probs`] in plain tensor operations.
pub fn target_log_probs_reference(logits: Tensor<2>, targets: &[u32]) -> Vec<f32> {
    let log_probs = activation::log_softmax(logits.cast(DType::F32), 1);
    let indices = target_indices(targets, &log_probs);
    to_vector(log_probs.gather(1, indices))
}

/// The targets as a column `[rows, 1]` beside `like`.
fn target_indices(targets: &[u32], like: &Tensor<2>) -> Tensor<2, Int> {
    let column: Vec<i32> = targets.iter().map(|target| *target as i32).collect();
    Tensor::from_data(TensorData::new(column, [targets.len(), 1]), &like.device())
}

/// The elements of an f32 tensor.
fn to_vector(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::ops::testing::{check_equal, random};

    fn rows_of(rows: usize, vocabulary: usize) -> (Vec<u32>, Vec<f32>) {
        let targets = (0..rows).map(|row| ((row * 7919) % vocabulary) as u32).collect();
        (targets, (0..rows).map(|row| row as f32 * 0.25 - 1.0).collect())
    }

    #[test]
    fn log_probabilities_and_gradient_equal_the_reference() {
        for (rows, vocabulary) in [(1, 1), (3, 2), (5, 33), (20, 1000), (64, 8192)] {
            let logits = random([rows, vocabulary]) * 5.0;
            let (targets, scale) = rows_of(rows, vocabulary);
            let (log_probs, gradient) = softmax_cross_entropy(logits.clone(), &targets, &scale);
            let (reference_log_probs, reference) = softmax_cross_entropy_reference(logits.clone(), &targets, &scale);
            check_equal(gradient, reference, 1e-6, "gradient");
            assert_eq!(log_probs, target_log_probs(logits.clone(), &targets));
            let others = target_log_probs_reference(logits, &targets);
            for (computed, (expected, other)) in log_probs.iter().zip(reference_log_probs.iter().zip(others)) {
                assert!((computed - expected).abs() < 1e-5 && (computed - other).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn the_gradient_is_that_of_the_loss() {
        let logits = random([6, 50]);
        let (targets, scale) = rows_of(6, 50);
        let (_, gradient) = softmax_cross_entropy(logits.clone(), &targets, &scale);
        let tracked = logits.autodiff().require_grad();
        let log_probs = activation::log_softmax(tracked.clone(), 1);
        let chosen = log_probs.clone().gather(1, target_indices(&targets, &log_probs));
        let weights = Tensor::<2>::from_data(TensorData::new(scale, [6, 1]), &Device::flex());
        let grads = (chosen * weights.autodiff()).sum().neg().backward();
        check_equal(gradient, tracked.grad(&grads).unwrap(), 1e-6, "gradient");
    }

    #[test]
    fn huge_and_infinite_logits_stay_finite_and_nan_shows() {
        let row = [1e30f32, -1e30, f32::NEG_INFINITY, 1e30];
        let logits = Tensor::<2>::from_data([row], &Device::flex());
        let (log_probs, gradient) = softmax_cross_entropy(logits, &[3], &[1.0]);
        assert!((log_probs[0] + std::f32::consts::LN_2).abs() < 1e-6);
        check_equal(
            gradient,
            Tensor::from_data([[0.5, 0.0, 0.0, -0.5]], &Device::flex()),
            1e-6,
            "gradient",
        );
        let logits = Tensor::<2>::from_data([[1.0, f32::NAN, 2.0]], &Device::flex());
        assert!(target_log_probs(logits.clone(), &[0])[0].is_nan());
        assert!(softmax_cross_entropy(logits, &[0], &[1.0]).0[0].is_nan());
    }

    #[test]
    fn shared_logits_are_left_alone() {
        let logits = random([9, 40]);
        let before = logits.clone().into_data();
        let (targets, scale) = rows_of(9, 40);
        softmax_cross_entropy(logits.clone(), &targets, &scale);
        logits.into_data().assert_eq(&before, true);
    }
}
