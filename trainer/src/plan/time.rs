//! How long a step is, from the number of multiplications and a rate.

use std::time::Instant;

use interlingua_checkpoints::config::ModelConfig;

use super::block::Sizes;
use super::settings::{DeviceKind, Settings};
use super::shapes::{Place, Shapes};
use crate::ops::matrix::{Matrix, multiplied};

/// Floating-point operations a second of one thread of a CPU with wide vectors: half of what 2.5 GHz, 16 lanes and two units
/// for fused multiplication and addition would do. An assumption.
const CPU_THREAD: f64 = 40e9;
/// The same of GPUs by compute capability: about a third of what the maker states for dense 16-bit products on a common card of
/// that generation (V100, RTX 2080, A100, RTX 3090, RTX 4070, H100, B200, RTX 5090). An assumption.
const GPUS: [((u32, u32), f64); 8] = [
    ((7, 0), 40e12),
    ((7, 5), 20e12),
    ((8, 0), 100e12),
    ((8, 6), 25e12),
    ((8, 9), 40e12),
    ((9, 0), 330e12),
    ((10, 0), 700e12),
    ((12, 0), 70e12),
];
/// The rate of a GPU that is not known: one of the middle class.
const UNKNOWN_GPU: f64 = 40e12;

/// The rate that is assumed of a GPU, by its compute capability where that is known.
pub fn assumed_gpu_rate(capability: Option<(u32, u32)>) -> f64 {
    let known = GPUS
        .iter()
        .rev()
        .find(|(from, _)| capability.is_some_and(|capability| capability >= *from));
    known.map_or(UNKNOWN_GPU, |(_, rate)| *rate)
}

/// The rate that is assumed where none was measured.
pub fn assumed_rate(device: DeviceKind, threads: u64) -> f64 {
    match device {
        DeviceKind::Cpu => CPU_THREAD * threads as f64,
        DeviceKind::Cuda => assumed_gpu_rate(None),
    }
}

/// Measures the rate of a CPU on a product of square matrices, on all threads: the fastest of a few.
pub fn measured_cpu_rate() -> f64 {
    const SIZE: usize = 768;
    let values = vec![0.5; SIZE * SIZE];
    let operand = || Matrix::new(&values, SIZE, SIZE);
    let seconds = (0..4).map(|_| {
        let start = Instant::now();
        std::hint::black_box(multiplied(operand(), operand(), 1.0));
        start.elapsed().as_secs_f64()
    });
    2.0 * (SIZE as f64).powi(3) / seconds.fold(f64::INFINITY, f64::min)
}

/// Seconds of an optimizer step: the matrix products of its passes at the settings' rate.
pub fn step_seconds(config: &ModelConfig, shapes: &Shapes, settings: &Settings) -> f64 {
    let tokens = settings.tokens() as f64 * settings.accumulation as f64;
    tokens * operations_per_token(config, shapes, settings) / settings.rate
}

/// Floating-point operations of a token: 2 for each weight of a matrix that it passes through, once forward, once for the
/// gradient of the input from the lowest trained block on, once for the gradient of a trained weight, and once more where blocks
/// are computed again; and those of attention, of which half is masked.
pub fn operations_per_token(config: &ModelConfig, shapes: &Shapes, settings: &Settings) -> f64 {
    let sizes = Sizes::of(config, settings);
    let lowest = shapes.lowest();
    let attention = 2.0 * sizes.queries as f64 * settings.row_tokens as f64;
    let mut operations = 0.0;
    for (index, block) in shapes.blocks.iter().enumerate() {
        let has_backward = index >= lowest;
        let again = has_backward && settings.recompute;
        let passes = 1.0 + f64::from(u8::from(has_backward)) + f64::from(u8::from(again));
        for (linear, times) in block.passed() {
            let weight = 2.0 * (times * linear.inputs * linear.outputs) as f64;
            let adapter = 2.0 * (times * linear.rank * (linear.inputs + linear.outputs)) as f64;
            let trained = if linear.trained { 1.0 } else { 0.0 };
            operations += (passes + trained) * weight + (passes + 1.0) * adapter;
        }
        // The backward pass of attention has five products where the forward pass has two.
        operations += attention * (1.0 + if has_backward { 2.5 } else { 0.0 } + if again { 1.0 } else { 0.0 });
    }
    let is_head = |place| matches!(place, Place::Head) || (config.tie_word_embeddings && place == Place::Embedding);
    let head = shapes.base.iter().filter(|parameter| is_head(parameter.place));
    let head = head.map(|parameter| 2.0 * parameter.elements() as f64 * if parameter.trained { 3.0 } else { 2.0 });
    operations + head.sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_looked_up_by_generation() {
        assert_eq!(assumed_gpu_rate(Some((9, 0))), 330e12);
        assert_eq!(assumed_gpu_rate(Some((8, 7))), 25e12);
        assert_eq!(assumed_gpu_rate(Some((6, 1))), UNKNOWN_GPU);
        assert_eq!(assumed_gpu_rate(None), UNKNOWN_GPU);
    }

    #[test]
    fn a_rate_is_measured() {
        let rate = measured_cpu_rate();
        assert!(rate.is_finite() && rate > 1e8, "{rate}");
    }
}
