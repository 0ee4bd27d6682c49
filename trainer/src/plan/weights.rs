//! Where weights live and what they take there; gradients and moments of what is trained.

use interlingua_recipes::Offload;

use super::settings::{DeviceKind, MomentFormat, Packing, Settings};
use super::shapes::{BaseParameter, Place, Shapes};

/// Bytes of an f32.
pub const F32: u64 = 4;
/// Parameters with fewer numbers keep their moments in f32 under an optimizer of 8 bits.
const SMALL: u64 = 4096;
/// Numbers that share the scale of a moment of 8 bits.
const MOMENT_BLOCK: u64 = 256;
/// Blocks of NF4 that share the scale of their scales.
const SCALE_BLOCK: u64 = 256;

/// Bytes of weights by place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightBytes {
    /// On the device.
    pub device: u64,
    /// In host memory.
    pub host: u64,
    /// The largest dense weight that is made of a packed one, in the format of the computation.
    pub unpacked: u64,
}

/// The base's weights: frozen ones in the format of the computation or packed, trained ones in f32.
pub fn base(shapes: &Shapes, settings: &Settings) -> WeightBytes {
    let mut bytes = WeightBytes::default();
    let mut blocks = vec![0u64; shapes.blocks.len()];
    for parameter in &shapes.base {
        let size = parameter_bytes(parameter, shapes, settings);
        match parameter.block {
            Some(block) if !parameter.trained && settings.offload == Offload::Weights => blocks[block] += size,
            _ => bytes.device += size,
        }
        if parameter.place == Place::BlockLinear && !parameter.trained && settings.packing.is_some() {
            bytes.unpacked = bytes.unpacked.max(parameter.elements() * settings.number);
        }
    }
    match settings.device {
        // Mapped files are not counted.
        DeviceKind::Cpu => {}
        // The block that computes, and the next one.
        DeviceKind::Cuda => {
            let pairs = blocks.windows(2).map(|pair| pair.iter().sum::<u64>());
            bytes.device += pairs.max().unwrap_or_else(|| blocks.iter().sum::<u64>());
        }
    }
    bytes
}

/// A parameter's bytes, wherever it lives.
fn parameter_bytes(parameter: &BaseParameter, shapes: &Shapes, settings: &Settings) -> u64 {
    let elements = parameter.elements();
    if parameter.trained {
        return F32 * elements;
    }
    match (parameter.place, settings.packing) {
        // Read by rows from the mapped file.
        (Place::Embedding, _) if shapes.base.iter().any(|other| other.place == Place::Head) => 0,
        (Place::BlockLinear, Some(packing)) => packed_bytes(packing, parameter.shape),
        (Place::Embedding | Place::Head, Some(_)) => elements * settings.file_number.min(settings.number),
        _ => elements * settings.number,
    }
}

/// A packed matrix `[rows, columns]`.
fn packed_bytes(packing: Packing, [rows, columns]: [usize; 2]) -> u64 {
    let (rows, elements) = (rows as u64, rows as u64 * columns as u64);
    match packing {
        Packing::Nf4 { block, double } => {
            let scales = elements.div_ceil(block);
            let scales = if double {
                scales + F32 * scales.div_ceil(SCALE_BLOCK)
            } else {
                F32 * scales
            };
            elements.div_ceil(2) + scales
        }
        Packing::Int8 => elements + F32 * rows,
    }
}

/// The two moments of everything that is trained.
pub fn optimizer(shapes: &Shapes, settings: &Settings) -> u64 {
    let moments = |elements: u64| match settings.moments {
        MomentFormat::Bf16 => 2 * 2 * elements,
        MomentFormat::Bytes if elements >= SMALL => 2 * (elements + F32 * elements.div_ceil(MOMENT_BLOCK)),
        MomentFormat::F32 | MomentFormat::Bytes => 2 * F32 * elements,
    };
    shapes.trained().map(moments).sum()
}
