//! Where weights live and what they take there; gradients and moments of what is trained.

use interlingua_checkpoints::packed::Scheme;
use interlingua_recipes::Offload;

use super::settings::{DeviceKind, Settings};
use super::shapes::{BaseParameter, Place, Shapes};
use super::sharding::{UNIT, piece};
use crate::optimizers::moments::MomentFormat;

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
    let mut brought = vec![0u64; shapes.blocks.len()];
    for parameter in &shapes.base {
        let elements = parameter.elements();
        let Kept { format, place } = kept(parameter, shapes, settings);
        let size = size(parameter, format, settings);
        let is_cut = settings.shards_blocks() && parameter.block.is_some();
        match place {
            Where::Device if is_cut => bytes.device += of_piece(size, elements, settings),
            Where::Device => bytes.device += size,
            // Mapped files are not counted; numbers that come from no file have to be somewhere.
            Where::Mapped if settings.from_file => {}
            Where::Mapped => bytes.host += size,
        }
        if let Some(block) = parameter.block
            && (is_cut || place == Where::Mapped)
        {
            brought[block] += size;
        }
        match (format, parameter.place) {
            (Format::Trained | Format::Computed, _) => {}
            (_, Place::BlockLinear) => bytes.decoded = bytes.decoded.max(elements),
            // A frozen embedding is read by rows, unless it is the head too.
            (_, Place::Embedding) if !is_tied(shapes) => {}
            _ => bytes.decoded_head = elements,
        }
    }
    // The block that computes, and the next one.
    let together = match settings.device {
        _ if settings.shards_blocks() && !settings.brings_ahead => 1,
        _ if settings.shards_blocks() => 2,
        DeviceKind::Cuda => 2,
        DeviceKind::Cpu => return bytes,
    };
    let neighbours = brought.windows(together).map(|blocks| blocks.iter().sum::<u64>());
    bytes.device += neighbours.max().unwrap_or_else(|| brought.iter().sum::<u64>());
    bytes
}

/// What processes bring together of a block: bytes, and operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gathered {
    /// The pieces of all processes.
    pub bytes: u64,
    /// One for the weights in floats, and two where some are packed: codes and scales.
    pub operations: u64,
}

/// What comes together for each block, where processes keep pieces of blocks.
pub fn gathered(shapes: &Shapes, settings: &Settings) -> Vec<Gathered> {
    let mut blocks = vec![Gathered::default(); shapes.blocks.len()];
    if !settings.shards_blocks() {
        return blocks;
    }
    let (mut floats, mut packed) = (vec![false; blocks.len()], vec![false; blocks.len()]);
    for parameter in &shapes.base {
        let Some(block) = parameter.block else { continue };
        let Kept { format, .. } = kept(parameter, shapes, settings);
        let size = size(parameter, format, settings);
        blocks[block].bytes += settings.world as u64 * of_piece(size, parameter.elements(), settings);
        match format {
            Format::Quantised(_) => packed[block] = true,
            Format::Trained | Format::Computed | Format::File => floats[block] = true,
        }
    }
    for (block, gathered) in blocks.iter_mut().enumerate() {
        gathered.operations = u64::from(floats[block]) + 2 * u64::from(packed[block]);
    }
    blocks
}

/// Bytes of a weight.
fn size(parameter: &BaseParameter, format: Format, settings: &Settings) -> u64 {
    let elements = parameter.elements();
    match format {
        Format::Trained => F32 * elements,
        Format::Computed => settings.number * elements,
        Format::Quantised(scheme) => packed_bytes(scheme, parameter.shape),
        Format::File => settings.file_number * elements,
    }
}

/// Bytes of one process's piece of a weight of so many bytes and numbers.
fn of_piece(size: u64, elements: u64, settings: &Settings) -> u64 {
    let share = u128::from(piece(elements, settings.world as u64));
    let bytes = (u128::from(size) * share).div_ceil(u128::from(elements.max(1)));
    u64::try_from(bytes).unwrap_or(size)
}

/// How a weight is kept, as `models::weights` decides it.
#[derive(Clone, Copy, Debug)]
struct Kept {
    format: Format,
    place: Where,
}

#[derive(Clone, Copy, Debug)]
enum Format {
    /// f32, since it is trained.
    Trained,
    /// That of the computation.
    Computed,
    /// Fewer bits.
    Quantised(Scheme),
    /// That of its file.
    File,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    /// In the memory of the device.
    Device,
    /// In a file, and brought to the device where it is used.
    Mapped,
}

fn kept(parameter: &BaseParameter, shapes: &Shapes, settings: &Settings) -> Kept {
    let offload = settings.offload == Offload::Weights;
    let on_cpu = settings.device == DeviceKind::Cpu;
    let quantised = settings.quantization.map(|quantization| quantization.scheme);
    let quantised_head = settings.quantization.is_some_and(|quantization| quantization.head);
    let (format, place) = match (parameter.place, quantised) {
        _ if parameter.trained => (Format::Trained, Where::Device),
        (Place::Small, _) => (Format::Computed, Where::Device),
        (Place::Embedding, _) if !is_tied(shapes) && settings.from_file => (Format::File, Where::Mapped),
        (Place::BlockLinear, Some(scheme)) if offload => (Format::Quantised(scheme), Where::Mapped),
        (Place::BlockLinear, Some(scheme)) => (Format::Quantised(scheme), Where::Device),
        (Place::Head, Some(scheme)) if quantised_head => (Format::Quantised(scheme), Where::Device),
        (Place::BlockLinear, None) if offload => (Format::File, Where::Mapped),
        (Place::Embedding | Place::Head, _) if on_cpu && offload => (Format::File, Where::Mapped),
        (Place::Embedding | Place::Head, Some(_)) if on_cpu => (Format::File, Where::Device),
        _ => (Format::Computed, Where::Device),
    };
    Kept { format, place }
}

/// Whether the embedding is the head.
fn is_tied(shapes: &Shapes) -> bool {
    !shapes.base.iter().any(|parameter| parameter.place == Place::Head)
}

/// A packed matrix `[rows, columns]`.
fn packed_bytes(scheme: Scheme, [rows, columns]: [usize; 2]) -> u64 {
    let (rows, elements) = (rows as u64, rows as u64 * columns as u64);
    match scheme {
        Scheme::Nf4 { block, double } => {
            let scales = elements.div_ceil(block as u64);
            let scales = if double {
                scales + F32 * scales.div_ceil(SCALE_BLOCK)
            } else {
                F32 * scales
            };
            elements.div_ceil(2) + scales
        }
        Scheme::Int8 => elements + F32 * rows,
    }
}

/// The two moments of everything that one process updates.
pub fn optimizer(shapes: &Shapes, settings: &Settings) -> u64 {
    let processes = settings.moment_pieces();
    let moments = |elements: u64| {
        let piece = piece(elements, processes);
        // The whole parameter decides the format.
        match settings.moments.for_length(elements as usize) {
            MomentFormat::F32 => 2 * F32 * piece,
            MomentFormat::Bf16 => F32 * piece,
            MomentFormat::EightBits => 2 * (piece + F32 * piece.div_ceil(UNIT)),
        }
    };
    shapes.trained().map(moments).sum()
}
