//! Number formats of weights, and tensors on the host.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// A number format that weights come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit float.
    F32,
    /// bfloat16.
    BF16,
    /// IEEE half precision.
    F16,
}

impl Dtype {
    /// Bytes per number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::BF16 | Self::F16 => 2,
        }
    }

    /// The name in `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::BF16 => "bfloat16",
            Self::F16 => "float16",
        }
    }

    /// The format of a name in `config.json`, with or without `torch.`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name.strip_prefix("torch.").unwrap_or(name) {
            "float32" => Some(Self::F32),
            "bfloat16" => Some(Self::BF16),
            "float16" => Some(Self::F16),
            _ => None,
        }
    }

    /// The format of a safetensors header, where it is one of floats that weights come in.
    pub fn from_safetensors(dtype: safetensors::Dtype) -> Option<Self> {
        match dtype {
            safetensors::Dtype::F32 => Some(Self::F32),
            safetensors::Dtype::BF16 => Some(Self::BF16),
            safetensors::Dtype::F16 => Some(Self::F16),
            _ => None,
        }
    }

    /// The format in a safetensors header.
    pub fn to_safetensors(self) -> safetensors::Dtype {
        match self {
            Self::F32 => safetensors::Dtype::F32,
            Self::BF16 => safetensors::Dtype::BF16,
            Self::F16 => safetensors::Dtype::F16,
        }
    }
}

/// A tensor on the host: little-endian numbers in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// Number format.
    pub dtype: Dtype,
    /// Extents.
    pub shape: Vec<usize>,
    /// The numbers' bytes.
    pub data: Vec<u8>,
}

impl HostTensor {
    /// An f32 tensor.
    pub fn from_f32(shape: Vec<usize>, values: &[f32]) -> Self {
        Self {
            dtype: Dtype::F32,
            shape,
            data: encode_f32(Dtype::F32, values),
        }
    }

    /// The numbers as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        decode_f32(self.dtype, &self.data)
    }

    /// The tensor in another format, rounded to nearest even.
    pub fn cast(&self, dtype: Dtype) -> Self {
        if dtype == self.dtype {
            return self.clone();
        }
        Self {
            dtype,
            shape: self.shape.clone(),
            data: encode_f32(dtype, &self.to_f32()),
        }
    }
}

/// Numbers as little-endian bytes of a format, rounded to nearest even.
pub fn encode_f32(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    fn bytes<const N: usize>(values: &[f32], convert: impl Fn(f32) -> [u8; N]) -> Vec<u8> {
        let mut bytes = vec![0; values.len() * N];
        bytes
            .as_chunks_mut::<N>()
            .0
            .iter_mut()
            .zip(values)
            .for_each(|(bytes, value)| *bytes = convert(*value));
        bytes
    }
    match dtype {
        Dtype::F32 => bytes(values, f32::to_le_bytes),
        Dtype::BF16 => bytes(values, |value| bf16::from_f32(value).to_le_bytes()),
        Dtype::F16 => bytes(values, |value| f16::from_f32(value).to_le_bytes()),
    }
}

/// Little-endian bytes as f32.
pub fn decode_f32(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / dtype.bytes()];
    decode_into(dtype, bytes, &mut values);
    values
}

/// Little-endian bytes as f32, into a place for as many.
pub fn decode_into(dtype: Dtype, bytes: &[u8], values: &mut [f32]) {
    match dtype {
        Dtype::F32 => {
            let bytes = bytes.as_chunks::<4>().0;
            values
                .iter_mut()
                .zip(bytes)
                .for_each(|(value, bytes)| *value = f32::from_le_bytes(*bytes));
        }
        Dtype::BF16 => {
            let bytes = bytes.as_chunks::<2>().0;
            values
                .iter_mut()
                .zip(bytes)
                .for_each(|(value, bytes)| *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16));
        }
        Dtype::F16 => {
            // Several at a time, for which the processor has an instruction.
            const WIDTH: usize = 64;
            let bytes = bytes.as_chunks::<2>().0;
            for (values, bytes) in values.chunks_mut(WIDTH).zip(bytes.chunks(WIDTH)) {
                let mut halves = [f16::ZERO; WIDTH];
                halves
                    .iter_mut()
                    .zip(bytes)
                    .for_each(|(half, bytes)| *half = f16::from_le_bytes(*bytes));
                halves[..values.len()].convert_to_f32_slice(values);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn casts_round_to_nearest_even() {
        let tensor = HostTensor::from_f32(vec![3], &[1.0, 1.003_906_3, -65504.0]);
        assert_eq!(tensor.cast(Dtype::BF16).to_f32(), [1.0, 1.0, -65536.0]);
        assert_eq!(tensor.cast(Dtype::F16).to_f32()[2], -65504.0);
        assert_eq!(tensor.cast(Dtype::F32), tensor);
    }
}
