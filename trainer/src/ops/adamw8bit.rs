//! One step of AdamW whose moments are kept in 8 bits (Dettmers et al., "8-bit Optimizers via Block-wise Quantization",
//! 2022): blocks of 256 numbers, each a code of a [`QuantileMap`] times the largest magnitude of its block. The arithmetic is
//! in f32, and the parameter is moved by the moments before they are rounded to codes. All tensors here are without a graph.

use burn::backend::Flex;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use multiversion::multiversion;
use rayon::prelude::*;

use super::adamw::{AdamWStep, Numbers, move_one};
use super::as_indices;
use super::flex::{ELEMENTS, for_each_task, plain, plain_bytes, values};
use super::quantile_map::{QuantileMap, signed, unsigned};

/// Numbers of a block.
pub const BLOCK: usize = 256;

/// Numbers in 8 bits.
#[derive(Clone, Debug)]
pub struct Quantized {
    /// One byte for each.
    pub codes: Tensor<1, Int>,
    /// The largest magnitude of each block, f32.
    pub scales: Tensor<1>,
}

impl Quantized {
    /// So many zeros.
    pub fn zeros(length: usize, device: &Device) -> Self {
        Self::new(vec![0; length], vec![0.0; length.div_ceil(BLOCK)], device)
    }

    /// These codes and scales.
    pub fn new(codes: Vec<u8>, scales: Vec<f32>, device: &Device) -> Self {
        let (length, blocks) = (codes.len(), scales.len());
        assert_eq!(
            blocks,
            length.div_ceil(BLOCK),
            "a scale for each block of {length} numbers"
        );
        Self {
            codes: Tensor::from_data(TensorData::new(codes, [length]), (device, DType::U8)),
            scales: Tensor::from_data(TensorData::new(scales, [blocks]), (device, DType::F32)),
        }
    }
}

/// The parameter (f32) and its two moments after one step. Parameter, gradient and codes have the same length; what comes
/// back is overwritten in place where nobody else holds it.
pub fn adamw8bit_step(
    parameter: Tensor<1>,
    gradient: Tensor<1>,
    first: Quantized,
    second: Quantized,
    step: &AdamWStep,
) -> (Tensor<1>, Quantized, Quantized) {
    let shape = parameter.dims();
    let same = [gradient.dims(), first.codes.dims(), second.codes.dims()]
        .iter()
        .all(|other| *other == shape);
    assert!(same, "gradient and moments of a parameter of {shape:?}");
    let codes = (plain_bytes(first.codes), plain_bytes(second.codes));
    let floats = (
        plain(parameter),
        plain(gradient),
        plain(first.scales),
        plain(second.scales),
    );
    let ((mut first_codes, mut second_codes), (mut parameter, gradient, mut first_scales, mut second_scales)) =
        match (codes, floats) {
            ((Ok(first), Ok(second)), (Ok(parameter), Ok(gradient), Ok(first_scales), Ok(second_scales))) => {
                ((first, second), (parameter, gradient, first_scales, second_scales))
            }
            ((first, second), (parameter, gradient, first_scales, second_scales)) => {
                let [parameter, gradient, first_scales, second_scales] =
                    [parameter, gradient, first_scales, second_scales]
                        .map(|tensor| tensor.map_or_else(|tensor| *tensor, Tensor::from_primitive::<Flex>));
                let [first, second] =
                    [(first, first_scales), (second, second_scales)].map(|(codes, scales)| Quantized {
                        codes: codes.map_or_else(|tensor| *tensor, Tensor::from_primitive::<Flex>),
                        scales,
                    });
                return adamw8bit_step_reference(parameter, gradient, first, second, step);
            }
        };
    let numbers = Numbers::new(step);
    // Buffers that somebody else holds are copied here.
    let (parameters, firsts, seconds) = (
        parameter.storage_mut::<f32>(),
        first_codes.storage_mut::<u8>(),
        second_codes.storage_mut::<u8>(),
    );
    let (scales_of_first, scales_of_second) = (first_scales.storage_mut::<f32>(), second_scales.storage_mut::<f32>());
    let length = parameters.len();
    // A task has whole blocks.
    const BLOCKS: usize = ELEMENTS / BLOCK;
    let tasks = parameters
        .par_chunks_mut(ELEMENTS)
        .zip(values(&gradient).par_chunks(ELEMENTS))
        .zip(
            firsts
                .par_chunks_mut(ELEMENTS)
                .zip(scales_of_first.par_chunks_mut(BLOCKS)),
        )
        .zip(
            seconds
                .par_chunks_mut(ELEMENTS)
                .zip(scales_of_second.par_chunks_mut(BLOCKS)),
        );
    for_each_task(tasks, length, |(((parameter, gradient), first), second)| {
        let blocks = parameter.chunks_mut(BLOCK).zip(gradient.chunks(BLOCK));
        let first = first.0.chunks_mut(BLOCK).zip(first.1);
        let second = second.0.chunks_mut(BLOCK).zip(second.1);
        for (((parameter, gradient), first), second) in blocks.zip(first).zip(second) {
            update(parameter, gradient, first.0, first.1, second.0, second.1, numbers);
        }
    });
    let quantized = |codes, scales| Quantized {
        codes: Tensor::from_primitive::<Flex>(codes),
        scales: Tensor::from_primitive::<Flex>(scales),
    };
    (
        Tensor::from_primitive::<Flex>(parameter),
        quantized(first_codes, first_scales),
        quantized(second_codes, second_scales),
    )
}

/// One step on a block. Moments come as codes and their scale.
#[multiversion(targets = "simd")]
fn update(
    parameter: &mut [f32],
    gradient: &[f32],
    first_codes: &mut [u8],
    first_scale: &mut f32,
    second_codes: &mut [u8],
    second_scale: &mut f32,
    numbers: Numbers,
) {
    let (mut first, mut second) = ([0.0f32; BLOCK], [0.0f32; BLOCK]);
    let length = parameter.len();
    let (first, second) = (&mut first[..length], &mut second[..length]);
    dequantize(first_codes, *first_scale, signed(), first);
    dequantize(second_codes, *second_scale, unsigned(), second);
    let moments = first.iter_mut().zip(second.iter_mut());
    for ((parameter, gradient), (first, second)) in parameter.iter_mut().zip(gradient).zip(moments) {
        *first = *first * numbers.first_decay + gradient * numbers.first_weight;
        *second = *second * numbers.second_decay + gradient * gradient * numbers.second_weight;
        move_one(parameter, *first, *second, numbers);
    }
    *first_scale = quantize(first, signed(), first_codes);
    *second_scale = quantize(second, unsigned(), second_codes);
}

#[inline(always)]
fn dequantize(codes: &[u8], scale: f32, map: &QuantileMap, values: &mut [f32]) {
    for (value, code) in values.iter_mut().zip(codes) {
        *value = map.values[usize::from(*code)] * scale;
    }
}

/// Writes the codes of a block's numbers and returns its scale.
#[inline(always)]
fn quantize(values: &[f32], map: &QuantileMap, codes: &mut [u8]) -> f32 {
    // Magnitudes of floats are in the order of their bits.
    let magnitude = values.iter().map(|value| value.to_bits() & 0x7fff_ffff).max();
    let scale = f32::from_bits(magnitude.unwrap_or(0));
    let inverse = 1.0 / scale.max(f32::MIN_POSITIVE);
    for (code, value) in codes.iter_mut().zip(values) {
        *code = map.nearest((value * inverse).clamp(-1.0, 1.0));
    }
    scale
}

/// The same in plain tensor operations.
pub fn adamw8bit_step_reference(
    parameter: Tensor<1>,
    gradient: Tensor<1>,
    first: Quantized,
    second: Quantized,
    step: &AdamWStep,
) -> (Tensor<1>, Quantized, Quantized) {
    let bias1 = 1.0 - step.beta1.powf(step.step as f64);
    let bias2 = 1.0 - step.beta2.powf(step.step as f64);
    let first = dequantized(first, signed()) * step.beta1 + gradient.clone() * (1.0 - step.beta1);
    let second = dequantized(second, unsigned()) * step.beta2 + gradient.square() * (1.0 - step.beta2);
    let denominator = second.clone().sqrt() / bias2.sqrt() + step.epsilon;
    let parameter = parameter * (1.0 - step.learning_rate * step.weight_decay)
        - first.clone() / denominator * (step.learning_rate / bias1);
    (parameter, quantized(first, signed()), quantized(second, unsigned()))
}

/// The numbers that codes stand for.
fn dequantized(numbers: Quantized, map: &QuantileMap) -> Tensor<1> {
    let device = numbers.scales.device();
    let ([length], [blocks]) = (numbers.codes.dims(), numbers.scales.dims());
    let table = Tensor::<1>::from_data(TensorData::new(map.values.to_vec(), [256]), (&device, DType::F32));
    let scales = numbers.scales.reshape([blocks, 1]).repeat_dim(1, BLOCK);
    let scales = scales.reshape([blocks * BLOCK]).narrow(0, 0, length);
    table.select(0, as_indices(numbers.codes)) * scales
}

/// The nearest codes, found by halving the range eight times.
fn quantized(numbers: Tensor<1>, map: &QuantileMap) -> Quantized {
    let device = numbers.device();
    let [length] = numbers.dims();
    let blocks = length.div_ceil(BLOCK);
    let missing = blocks * BLOCK - length;
    let rows = if missing == 0 {
        numbers
    } else {
        Tensor::cat(vec![numbers, Tensor::zeros([missing], (&device, DType::F32))], 0)
    };
    let rows = rows.reshape([blocks, BLOCK]);
    let scales: Tensor<2> = rows.clone().abs().max_dim(1);
    let scaled = rows * scales.clone().clamp_min(f32::MIN_POSITIVE).recip();
    let scaled = scaled.clamp(-1.0, 1.0).reshape([blocks * BLOCK]);
    let bounds = Tensor::<1>::from_data(TensorData::new(map.bounds.to_vec(), [256]), (&device, DType::F32));
    let mut codes = Tensor::<1, Int>::zeros([blocks * BLOCK], &device);
    for half in [128, 64, 32, 16, 8, 4, 2, 1] {
        let bound = bounds.clone().select(0, codes.clone() + (half - 1));
        let above = scaled.clone().greater(bound).int();
        codes = codes + above * half;
    }
    Quantized {
        codes: as_bytes(codes.narrow(0, 0, length)),
        scales: scales.reshape([blocks]),
    }
}

/// Codes as bytes. LibTorch holds bytes and cannot make them of other numbers, so there they go by way of the host.
fn as_bytes(codes: Tensor<1, Int>) -> Tensor<1, Int> {
    let device = codes.device();
    if device.supports_dtype(DType::U8) {
        return codes.cast(DType::U8);
    }
    let bytes: Vec<u8> = codes.into_data().iter::<u8>().collect();
    let length = bytes.len();
    Tensor::from_data(TensorData::new(bytes, [length]), (&device, DType::U8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_equal, random};

    fn settings(step: u64) -> AdamWStep {
        AdamWStep {
            learning_rate: 0.01,
            beta1: 0.9,
            beta2: 0.99,
            epsilon: 1e-6,
            weight_decay: 0.1,
            step,
        }
    }

    fn codes(numbers: &Quantized) -> Vec<u8> {
        numbers.codes.clone().into_data().iter::<u8>().collect()
    }

    /// Kernel and reference start each step from the same state, so that one rounding of f32 is all that lies between them.
    #[test]
    fn every_step_equals_the_reference() {
        let device = Device::flex();
        for length in [1, 255, 256, 257, 40_000] {
            let zeros = || Quantized::zeros(length, &device);
            let mut state = (random([length]), zeros(), zeros());
            for step in 1..=10 {
                let gradient = random([length]) * 0.1;
                let (parameter, first, second) = state.clone();
                let expected = adamw8bit_step_reference(parameter, gradient.clone(), first, second, &settings(step));
                let (parameter, first, second) = state;
                state = adamw8bit_step(parameter, gradient, first, second, &settings(step));
                check_equal(state.0.clone(), expected.0, 1e-5, "parameter");
                for (found, expected) in [(&state.1, &expected.1), (&state.2, &expected.2)] {
                    check_equal(found.scales.clone(), expected.scales.clone(), 1e-6, "scales");
                    let pairs = codes(found).into_iter().zip(codes(expected));
                    let other: Vec<u8> = pairs.map(|(found, expected)| found.abs_diff(expected)).collect();
                    assert!(other.iter().all(|difference| *difference <= 1));
                    let count = other.iter().filter(|difference| **difference > 0).count();
                    assert!(count <= length / 1000, "{count} codes of {length} differ");
                }
            }
        }
    }

    #[test]
    fn a_block_without_gradients_stays_as_it_is() {
        let device = Device::flex();
        let zeros = || Quantized::zeros(600, &device);
        let start = random([600]);
        let step = AdamWStep {
            weight_decay: 0.0,
            ..settings(1)
        };
        for update in [adamw8bit_step, adamw8bit_step_reference] {
            let (parameter, first, second) = update(start.clone(), start.zeros_like(), zeros(), zeros(), &step);
            check_equal(parameter, start.clone(), 0.0, "parameter");
            assert!(codes(&first).iter().all(|code| *code == 127) && codes(&second).iter().all(|code| *code == 0));
            check_equal(first.scales.clone(), first.scales.zeros_like(), 0.0, "scales");
        }
    }

    #[test]
    fn shared_tensors_are_left_alone() {
        let device = Device::flex();
        let (parameter, moments) = (random([300]), Quantized::new(vec![200; 300], vec![0.5, 0.25], &device));
        let before = (parameter.clone().into_data(), codes(&moments));
        drop(adamw8bit_step(
            parameter.clone(),
            random([300]),
            moments.clone(),
            moments.clone(),
            &settings(1),
        ));
        parameter.into_data().assert_eq(&before.0, true);
        assert_eq!(codes(&moments), before.1);
        let scales: Vec<f32> = moments.scales.into_data().iter::<f32>().collect();
        assert_eq!(scales, [0.5, 0.25]);
    }
}
