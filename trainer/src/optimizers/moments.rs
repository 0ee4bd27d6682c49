//! The moments of Adam, in one of three formats.

use burn::tensor::{DType, Device, Tensor};
use interlingua_recipes::{Optimizer, OptimizerKind};

use crate::ops::adamw::{AdamWStep, adamw_step};
use crate::ops::adamw_bf16::adamw_step_bf16;
use crate::ops::adamw8bit::{BLOCK, Quantized, adamw8bit_step};

/// Parameters with fewer numbers keep their moments in f32 where others have 8 bits, as in bitsandbytes (`min_8bit_size`).
pub const LEAST_FOR_8_BITS: usize = 4096;

/// The format of moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MomentFormat {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16, rounded to nearest even.
    Bf16,
    /// Blocks of 8-bit codes; f32 for parameters of less than [`LEAST_FOR_8_BITS`] numbers.
    EightBits,
}

impl MomentFormat {
    /// That of a recipe.
    pub fn of(optimizer: &Optimizer) -> Self {
        match (optimizer.kind, optimizer.moments) {
            (OptimizerKind::Adamw8bit, _) => Self::EightBits,
            (OptimizerKind::Adamw, Some(interlingua_recipes::Moments::Bf16)) => Self::Bf16,
            (OptimizerKind::Adamw, _) => Self::F32,
        }
    }

    /// That of a parameter with so many numbers.
    pub fn for_length(self, length: usize) -> Self {
        match self {
            Self::EightBits if length < LEAST_FOR_8_BITS => Self::F32,
            format => format,
        }
    }

    /// Bytes that both moments of a parameter with so many numbers take.
    pub fn bytes(self, length: usize) -> usize {
        match self.for_length(length) {
            Self::F32 => 2 * 4 * length,
            Self::Bf16 => 2 * 2 * length,
            Self::EightBits => 2 * (length + 4 * length.div_ceil(BLOCK)),
        }
    }
}

/// Running means of the gradient and of its square, flat.
#[derive(Clone, Debug)]
pub enum Moments {
    /// In f32 or bf16.
    Floats(Box<[Tensor<1>; 2]>),
    /// In 8 bits.
    Codes(Box<[Quantized; 2]>),
}

impl Moments {
    /// So many numbers of moments in a format, before the first update.
    pub fn zeros(format: MomentFormat, length: usize, device: &Device) -> Self {
        let floats = |dtype| Self::Floats(Box::new([0, 1].map(|_| Tensor::zeros([length], (device, dtype)))));
        match format {
            MomentFormat::F32 => floats(DType::F32),
            MomentFormat::Bf16 => floats(DType::BF16),
            MomentFormat::EightBits => Self::Codes(Box::new([0, 1].map(|_| Quantized::zeros(length, device)))),
        }
    }

    /// The parameter and its moments after one step.
    pub fn step(self, parameter: Tensor<1>, gradient: Tensor<1>, step: &AdamWStep) -> (Tensor<1>, Self) {
        match self {
            Self::Floats(moments) => {
                let [first, second] = *moments;
                let (parameter, first, second) = if first.dtype() == DType::BF16 {
                    adamw_step_bf16(parameter, gradient, first, second, step)
                } else {
                    adamw_step(parameter, gradient, first, second, step)
                };
                (parameter, Self::Floats(Box::new([first, second])))
            }
            Self::Codes(moments) => {
                let [first, second] = *moments;
                let (parameter, first, second) = adamw8bit_step(parameter, gradient, first, second, step);
                (parameter, Self::Codes(Box::new([first, second])))
            }
        }
    }

    /// Bytes that they take.
    pub fn bytes(&self) -> usize {
        let floats = |tensor: &Tensor<1>| tensor.dims()[0] * tensor.dtype().size();
        match self {
            Self::Floats(moments) => moments.iter().map(floats).sum(),
            Self::Codes(moments) => moments
                .iter()
                .map(|moment| moment.codes.dims()[0] * moment.codes.dtype().size() + floats(&moment.scales))
                .sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_that_the_tensors_have() {
        let device = Device::flex();
        for (format, per_number) in [
            (MomentFormat::F32, 8.0),
            (MomentFormat::Bf16, 4.0),
            (MomentFormat::EightBits, 2.03125),
        ] {
            for length in [1, 4095, 4096, 5000, 65_536] {
                let held = Moments::zeros(format.for_length(length), length, &device).bytes();
                assert_eq!(format.bytes(length), held, "{format:?}, {length}");
            }
            assert_eq!(format.bytes(65_536), (per_number * 65_536.0) as usize);
        }
        assert_eq!(MomentFormat::EightBits.bytes(4095), MomentFormat::F32.bytes(4095));
    }
}
