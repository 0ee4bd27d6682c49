//! Where weights live and what they take there; gradients and moments of what is trained.

use interlingua_checkpoints::packed::Scheme;
use interlingua_recipes::Offload;

use super::settings::{DeviceKind, Settings};
use super::shapes::{BaseParameter, Place, Shapes};
use super::shares::{is_spread, padded_piece, piece};
use crate::ops::adamw8bit::BLOCK;
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
        match place {
            Where::Device if is_spread(parameter, settings) => bytes.device += of_piece(parameter, format, settings),
            Where::Device => bytes.device += size,
            // Mapped files are not counted; numbers that come from no file have to be somewhere.
            Where::Mapped if settings.from_file => {}
            Where::Mapped => bytes.host += size,
        }
        if let (Where::Mapped, Some(block)) = (place, parameter.block) {
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
    if settings.device == DeviceKind::Cuda {
        // The block that computes, and the next one.
        let pairs = brought.windows(2).map(|pair| pair.iter().sum::<u64>());
        bytes.device += pairs.max().unwrap_or_else(|| brought.iter().sum::<u64>());
    }
    // Of weights in pieces the block that computes; nothing is sent meanwhile.
    bytes.device += gathered(shapes, settings)
        .iter()
        .map(|block| block.whole)
        .max()
        .unwrap_or(0);
    bytes
}

/// What processes bring together of a block whose weights lie in pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gathered {
    /// Bytes of the whole weights.
    pub whole: u64,
    /// Bytes of all pieces, with the zeros that make them as long as each other.
    pub bytes: u64,
    /// Operations: one for all weights in floats; of each packed weight one on a CPU, and on a GPU one each for its codes and
    /// scales, and for the scales' own codes.
    pub operations: u64,
}

/// What comes together for each block; nothing where blocks are whole on each process.
pub fn gathered(shapes: &Shapes, settings: &Settings) -> Vec<Gathered> {
    let mut blocks = vec![Gathered::default(); shapes.blocks.len()];
    let mut has_floats = vec![false; blocks.len()];
    for parameter in shapes.base.iter().filter(|parameter| is_spread(parameter, settings)) {
        let Some(block) = parameter.block else { continue };
        let Kept { format, .. } = kept(parameter, shapes, settings);
        blocks[block].whole += size(parameter, format, settings);
        blocks[block].bytes += settings.world as u64 * of_piece(parameter, format, settings);
        match (format, settings.device) {
            (Format::Quantised(_), DeviceKind::Cpu) => blocks[block].operations += 1,
            (Format::Quantised(Scheme::Nf4 { double: true, .. }), _) => blocks[block].operations += 3,
            (Format::Quantised(_), _) => blocks[block].operations += 2,
            (Format::Trained | Format::Computed | Format::File, _) => has_floats[block] = true,
        }
    }
    for (gathered, has_floats) in blocks.iter_mut().zip(has_floats) {
        gathered.operations += u64::from(has_floats);
    }
    blocks
}

/// Bytes of a weight.
fn size(parameter: &BaseParameter, format: Format, settings: &Settings) -> u64 {
    let (count, number) = cuttable(parameter, format, settings);
    count * number
}

/// Bytes of one process's piece of a weight.
fn of_piece(parameter: &BaseParameter, format: Format, settings: &Settings) -> u64 {
    let (count, number) = cuttable(parameter, format, settings);
    padded_piece(count, settings.world) * number
}

/// What a weight can be cut into, numbers or, where it is packed, bytes: how many, and how many bytes each.
fn cuttable(parameter: &BaseParameter, format: Format, settings: &Settings) -> (u64, u64) {
    match format {
        Format::Trained => (parameter.elements(), F32),
        Format::Computed => (parameter.elements(), settings.number),
        Format::File => (parameter.elements(), settings.file_number),
        Format::Quantised(scheme) => (packed_bytes(scheme, parameter.shape), 1),
    }
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
            MomentFormat::EightBits => 2 * (piece + F32 * piece.div_ceil(BLOCK as u64)),
        }
    };
    shapes.trained().map(moments).sum()
}
