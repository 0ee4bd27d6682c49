//! Where weights live and what they take there; gradients and moments of what is trained.

use interlingua_recipes::Offload;

use super::settings::{DeviceKind, Packing, Settings};
use super::shapes::{BaseParameter, Place, Shapes};

/// Bytes of an f32.
pub const F32: u64 = 4;
/// Blocks of NF4 that share the scale of their scales.
const SCALE_BLOCK: u64 = 256;

/// Bytes of weights by place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightBytes {
    /// On the device.
    pub device: u64,
    /// In host memory.
    pub host: u64,
    /// The largest weight of a block that is decoded where it is used, in numbers.
    pub decoded: u64,
    /// The head, where that is decoded, in numbers.
    pub decoded_head: u64,
}

/// The base's weights.
pub fn base(shapes: &Shapes, settings: &Settings) -> WeightBytes {
    let mut bytes = WeightBytes::default();
    let mut offloaded = vec![0u64; shapes.blocks.len()];
    for parameter in &shapes.base {
        let elements = parameter.elements();
        let kept = kept(parameter, shapes, settings);
        match (kept, parameter.place) {
            (Kept::Dense, _) => {}
            (_, Place::BlockLinear) => bytes.decoded = bytes.decoded.max(elements),
            // A frozen embedding is read by rows, unless it is the head too.
            (_, Place::Embedding) if !is_tied(shapes) => {}
            _ => bytes.decoded_head = elements,
        }
        let size = match kept {
            Kept::Dense if parameter.trained => F32 * elements,
            Kept::Dense => settings.number * elements,
            Kept::Packed(packing) => packed_bytes(packing, parameter.shape),
            Kept::Stored | Kept::Mapped => settings.file_number * elements,
        };
        match kept {
            // Mapped files are not counted; numbers that come from no file have to be somewhere.
            Kept::Mapped => {
                if !settings.from_file {
                    bytes.host += size;
                }
                if let Some(block) = parameter.block {
                    offloaded[block] += settings.number * elements;
                }
            }
            _ => bytes.device += size,
        }
    }
    if settings.device == DeviceKind::Cuda {
        // The block that computes, and the next one.
        let pairs = offloaded.windows(2).map(|pair| pair.iter().sum::<u64>());
        bytes.device += pairs.max().unwrap_or_else(|| offloaded.iter().sum::<u64>());
    }
    bytes
}

/// How a weight is kept, as `models::weights` decides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    /// On the device, in f32 when trained, else in the format of the computation.
    Dense,
    /// In fewer bits.
    Packed(Packing),
    /// In memory, in the format of its file.
    Stored,
    /// In its file.
    Mapped,
}

/// Whether the embedding is the head.
fn is_tied(shapes: &Shapes) -> bool {
    !shapes.base.iter().any(|parameter| parameter.place == Place::Head)
}

fn kept(parameter: &BaseParameter, shapes: &Shapes, settings: &Settings) -> Kept {
    let offload = settings.offload == Offload::Weights;
    let on_cpu = settings.device == DeviceKind::Cpu;
    match (parameter.place, settings.packing) {
        _ if parameter.trained => Kept::Dense,
        (Place::Small, _) => Kept::Dense,
        (Place::Embedding, _) if !is_tied(shapes) && settings.from_file => Kept::Mapped,
        (Place::BlockLinear, Some(packing)) => Kept::Packed(packing),
        (Place::Head, Some(packing)) if settings.packs_head => Kept::Packed(packing),
        (Place::BlockLinear, None) if offload => Kept::Mapped,
        (Place::Embedding | Place::Head, _) if on_cpu && offload => Kept::Mapped,
        (Place::Embedding | Place::Head, Some(_)) if on_cpu => Kept::Stored,
        _ => Kept::Dense,
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
    let moments = |elements: u64| settings.moments.bytes(elements as usize) as u64;
    shapes.trained().map(moments).sum()
}
