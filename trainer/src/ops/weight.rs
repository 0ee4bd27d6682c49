//! Weights as the linear operation takes them: dense on the device, or packed and decoded where they are used.
//!
//! On a GPU a quantised weight stays as it is and is dequantised for each product (`ops/dequantize.rs`); one that is offloaded is
//! brought there for the time that its block computes. On a CPU a packed weight is decoded a tile of rows at a time, multiplied while the tile is in the cache, and forgotten,
//! in the forward pass and again in the backward pass, so that no weight ever exists whole in f32.

use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use interlingua_checkpoints::dtype::Dtype;
use interlingua_checkpoints::packed::{Format, Outline, Packed};
use rayon::prelude::*;

use super::dequantize::{DevicePacked, SpreadPacked, dequantize};
use super::flex::write_all;
use super::is_cube;
use super::matrix::{Matrix, multiply_columns};
use crate::collectives::Collectives;
use crate::spread::SpreadBytes;

/// Elements of a tile: 8 MiB of f32, so that products are large enough for full speed and a tile is small beside a weight.
const TILE_ELEMENTS: usize = 2 << 20;

/// Elements that one task decodes.
const DECODE_ELEMENTS: usize = 32 << 10;

/// A weight `[outputs, inputs]`.
#[derive(Clone, Debug)]
pub enum Weight {
    /// On the device, in the dtype that is computed in.
    Dense(Tensor<2>),
    /// Frozen, in fewer bits.
    Packed(PackedWeight),
}

impl From<Tensor<2>> for Weight {
    fn from(weight: Tensor<2>) -> Self {
        Self::Dense(weight)
    }
}

impl Weight {
    /// The weight as a product on its device takes it, in a dtype where it is not quantised.
    pub fn here(self, dtype: DType) -> OnDevice {
        match self {
            Self::Dense(weight) => OnDevice::Dense(weight),
            Self::Packed(weight) => weight.here(dtype),
        }
    }

    /// The whole weight, in a dtype.
    pub fn dense(&self, dtype: DType) -> Tensor<2> {
        match self {
            Self::Dense(weight) if weight.dtype() == dtype => weight.clone(),
            Self::Dense(weight) => weight.clone().cast(dtype),
            Self::Packed(weight) => weight.dense(dtype),
        }
    }
}

/// A packed weight and the device that it computes on.
#[derive(Clone, Debug)]
pub struct PackedWeight {
    device: Device,
    place: Place,
}

/// Where a packed weight is.
#[derive(Clone, Debug)]
enum Place {
    /// In host memory or in a file, where a CPU reads it.
    Host(Arc<Packed>),
    /// In the memory of a GPU.
    Device(Arc<DevicePacked>),
    /// In host memory or in a file, and on the GPU while its block computes.
    Offloaded {
        packed: Arc<Packed>,
        brought: Arc<Mutex<Option<OnDevice>>>,
    },
    /// In pieces in the host memory of all processes.
    SpreadHost {
        pieces: SpreadBytes,
        outline: Outline,
        brought: Arc<Mutex<Option<Arc<Packed>>>>,
    },
    /// In pieces on the GPUs of all processes.
    SpreadDevice {
        pieces: Arc<SpreadPacked>,
        brought: Arc<Mutex<Option<Arc<DevicePacked>>>>,
    },
}

/// A weight on its device, for the time of a product.
#[expect(clippy::large_enum_variant, reason = "there are as many as products at a time")]
#[derive(Clone, Debug)]
pub enum OnDevice {
    /// In the dtype that is computed in.
    Dense(Tensor<2>),
    /// Quantised.
    Packed(Arc<DevicePacked>),
}

impl PackedWeight {
    /// A weight that stays on the host: on a CPU every one, and an embedding that is read by rows.
    pub fn on_host_for(packed: Packed, device: &Device) -> Self {
        Self {
            device: device.clone(),
            place: Place::Host(Arc::new(packed)),
        }
    }

    /// A quantised weight in the memory of its device.
    pub fn new(packed: Packed, device: &Device) -> Self {
        match DevicePacked::upload(&packed, device) {
            Some(uploaded) if has_memory_of_its_own(device) => Self {
                device: device.clone(),
                place: Place::Device(Arc::new(uploaded)),
            },
            _ => Self::on_host_for(packed, device),
        }
    }

    /// A weight that is brought to its device for the time that its block computes.
    pub fn offloaded(packed: Packed, device: &Device) -> Self {
        if !has_memory_of_its_own(device) {
            return Self::on_host_for(packed, device);
        }
        Self {
            device: device.clone(),
            place: Place::Offloaded {
                packed: Arc::new(packed),
                brought: Arc::default(),
            },
        }
    }

    /// A weight of which this process keeps a piece; it comes together for the time that its block computes.
    pub fn spread(packed: &Packed, device: &Device, collectives: &Arc<dyn Collectives>) -> Self {
        let uploaded = has_memory_of_its_own(device).then(|| DevicePacked::upload(packed, device));
        let place = match uploaded.flatten() {
            Some(uploaded) => Place::SpreadDevice {
                pieces: Arc::new(SpreadPacked::cut(&uploaded, collectives)),
                brought: Arc::default(),
            },
            None => {
                let (bytes, outline) = packed.flatten();
                Place::SpreadHost {
                    pieces: SpreadBytes::cut(&bytes, collectives),
                    outline,
                    brought: Arc::default(),
                }
            }
        };
        Self {
            device: device.clone(),
            place,
        }
    }

    /// Whether it lies in pieces on all processes.
    pub fn is_spread(&self) -> bool {
        matches!(self.place, Place::SpreadHost { .. } | Place::SpreadDevice { .. })
    }

    /// The weight on the host; none where it is in the memory of a GPU alone.
    pub fn on_host(&self) -> Option<Arc<Packed>> {
        match &self.place {
            Place::Host(packed) | Place::Offloaded { packed, .. } => Some(packed.clone()),
            Place::SpreadHost {
                pieces,
                outline,
                brought,
            } => Some(here_or_together(pieces, outline, brought)),
            Place::Device(_) | Place::SpreadDevice { .. } => None,
        }
    }

    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        match &self.place {
            Place::Host(packed) | Place::Offloaded { packed, .. } => packed.shape(),
            Place::Device(packed) => packed.shape(),
            Place::SpreadHost { outline, .. } => outline.shape(),
            Place::SpreadDevice { pieces, .. } => pieces.shape(),
        }
    }

    /// Asks for a weight that is kept elsewhere, so that it is there by the time it is used.
    pub fn bring(&self) {
        match &self.place {
            Place::Host(packed) => packed.prefetch(),
            Place::Device(_) => {}
            Place::Offloaded { packed, brought } => {
                let mut brought = brought.lock().unwrap_or_else(PoisonError::into_inner);
                if brought.is_none() {
                    *brought = Some(self.uploaded(packed));
                }
            }
            Place::SpreadHost {
                pieces,
                outline,
                brought,
            } => {
                let mut brought = brought.lock().unwrap_or_else(PoisonError::into_inner);
                if brought.is_none() {
                    *brought = Some(together(pieces, outline));
                }
            }
            Place::SpreadDevice { pieces, brought } => {
                let mut brought = brought.lock().unwrap_or_else(PoisonError::into_inner);
                if brought.is_none() {
                    *brought = Some(Arc::new(pieces.together()));
                }
            }
        }
    }

    /// Gives the memory of a weight that is kept elsewhere back.
    pub fn let_go(&self) {
        match &self.place {
            Place::Host(packed) => packed.release(),
            Place::Device(_) => {}
            Place::Offloaded { packed, brought } => {
                *brought.lock().unwrap_or_else(PoisonError::into_inner) = None;
                packed.release();
            }
            Place::SpreadHost { brought, .. } => *brought.lock().unwrap_or_else(PoisonError::into_inner) = None,
            Place::SpreadDevice { brought, .. } => *brought.lock().unwrap_or_else(PoisonError::into_inner) = None,
        }
    }

    /// The weight as a product on its device takes it, in a dtype where it is not quantised.
    pub fn here(&self, dtype: DType) -> OnDevice {
        let here = match &self.place {
            Place::Host(packed) => OnDevice::Dense(decoded(packed, &self.device, dtype)),
            Place::Device(packed) => OnDevice::Packed(packed.clone()),
            Place::Offloaded { packed, brought } => {
                let brought = brought.lock().unwrap_or_else(PoisonError::into_inner).clone();
                brought.unwrap_or_else(|| self.uploaded(packed))
            }
            Place::SpreadHost { .. } => OnDevice::Dense(self.dense(dtype)),
            Place::SpreadDevice { pieces, brought } => OnDevice::Packed(device_parts(pieces, brought)),
        };
        match here {
            OnDevice::Dense(weight) if weight.dtype() != dtype => OnDevice::Dense(weight.cast(dtype)),
            here => here,
        }
    }

    /// On the device: quantised as it is, floats in their own format.
    fn uploaded(&self, packed: &Packed) -> OnDevice {
        match DevicePacked::upload(packed, &self.device) {
            Some(uploaded) => OnDevice::Packed(Arc::new(uploaded)),
            None => OnDevice::Dense(stored(packed, &self.device)),
        }
    }

    /// The whole weight `[outputs, inputs]`, in a dtype.
    pub fn dense(&self, dtype: DType) -> Tensor<2> {
        match &self.place {
            Place::Host(packed) | Place::Offloaded { packed, .. } => decoded(packed, &self.device, dtype),
            Place::Device(packed) => dequantize(packed, dtype),
            Place::SpreadHost {
                pieces,
                outline,
                brought,
            } => decoded(&here_or_together(pieces, outline, brought), &self.device, dtype),
            Place::SpreadDevice { pieces, brought } => dequantize(&device_parts(pieces, brought), dtype),
        }
    }

    /// Some of its rows, `[rows.len(), inputs]`, in a dtype: an embedding is read this way.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn rows(&self, rows: &[u32], dtype: DType) -> Tensor<2> {
        let columns = self.shape()[1];
        let Some(packed) = self.on_host() else {
            let index: Vec<i32> = rows.iter().map(|row| *row as i32).collect();
            let index = Tensor::<1, Int>::from_data(TensorData::new(index, [rows.len()]), &self.device);
            return self.dense(dtype).select(0, index);
        };
        let mut values = vec![0.0; rows.len() * columns];
        values
            .par_chunks_mut(columns.max(1))
            .zip(rows)
            .with_min_len(16)
            .for_each(|(values, row)| packed.decode_rows(*row as usize..*row as usize + 1, values));
        on_device(values, [rows.len(), columns], &self.device, dtype)
    }
}

/// The pieces of all processes, put together.
///
/// # Panics
/// When the processes have not cut the same weight.
fn together(pieces: &SpreadBytes, outline: &Outline) -> Arc<Packed> {
    let bytes = pieces.values();
    let whole = outline.restore(&bytes);
    Arc::new(whole.unwrap_or_else(|| {
        panic!(
            "{} bytes of all processes are no weight {:?}",
            bytes.len(),
            outline.shape()
        )
    }))
}

/// The whole weight, which is here while its block computes.
fn here_or_together(pieces: &SpreadBytes, outline: &Outline, brought: &Mutex<Option<Arc<Packed>>>) -> Arc<Packed> {
    let here = brought.lock().unwrap_or_else(PoisonError::into_inner).clone();
    here.unwrap_or_else(|| together(pieces, outline))
}

fn device_parts(pieces: &SpreadPacked, brought: &Mutex<Option<Arc<DevicePacked>>>) -> Arc<DevicePacked> {
    let here = brought.lock().unwrap_or_else(PoisonError::into_inner).clone();
    here.unwrap_or_else(|| Arc::new(pieces.together()))
}

/// Whether tensors of a device live in other memory than the host's.
fn has_memory_of_its_own(device: &Device) -> bool {
    is_cube(device)
}

/// A packed weight decoded on the host, on a device.
fn decoded(packed: &Packed, device: &Device, dtype: DType) -> Tensor<2> {
    let [rows, columns] = packed.shape();
    let mut values = vec![0.0; rows * columns];
    decode(packed, 0, &mut values);
    on_device(values, [rows, columns], device, dtype)
}

/// Floats on a device in the format that they are kept in.
fn stored(packed: &Packed, device: &Device) -> Tensor<2> {
    let dtype = match packed.format() {
        Format::Float(Dtype::BF16) => DType::BF16,
        Format::Float(Dtype::F16) => DType::F16,
        _ => return decoded(packed, device, DType::F32),
    };
    let data = TensorData::from_bytes_vec(packed.codes().to_vec(), packed.shape(), dtype);
    Tensor::from_data(data, (device, dtype))
}

fn on_device(values: Vec<f32>, shape: [usize; 2], device: &Device, dtype: DType) -> Tensor<2> {
    let tensor = Tensor::from_data(TensorData::new(values, shape), (device, DType::F32));
    if dtype == DType::F32 {
        tensor
    } else {
        tensor.cast(dtype)
    }
}

/// Decodes rows from `first` on, as many as `out` has place for, on several threads.
fn decode(packed: &Packed, first: usize, out: &mut [f32]) {
    let columns = packed.shape()[1].max(1);
    let rows = (DECODE_ELEMENTS / columns).max(1);
    out.par_chunks_mut(rows * columns).enumerate().for_each(|(index, out)| {
        let start = first + index * rows;
        packed.decode_rows(start..start + out.len() / columns, out);
    });
}

/// Runs over the weight in tiles: the first row of each, and its rows decoded.
fn for_each_tile(packed: &Packed, mut run: impl FnMut(usize, Matrix)) {
    let [rows, columns] = packed.shape();
    let size = (TILE_ELEMENTS / columns.max(1)).max(1).min(rows.max(1));
    let mut buffer = vec![0.0; size * columns];
    for start in (0..rows).step_by(size) {
        let count = size.min(rows - start);
        let tile = &mut buffer[..count * columns];
        decode(packed, start, tile);
        run(start, Matrix::new(tile, count, columns));
    }
}

/// `x Wᵀ`, `[tokens, outputs]`, of x `[tokens, inputs]`.
pub(super) fn product(x: Matrix, packed: &Packed) -> Vec<f32> {
    let [outputs, inputs] = packed.shape();
    let tokens = x.rows();
    assert_eq!(x.columns(), inputs, "inputs of the weight");
    if inputs == 0 {
        return vec![0.0; tokens * outputs];
    }
    // SAFETY: the tiles cover every row of the weight once, so every column of the output is written.
    unsafe {
        write_all(tokens * outputs, |output| {
            for_each_tile(packed, |start, tile| {
                // Each column is written before it is read.
                multiply_columns(output, outputs, start, x, tile.transposed(), false);
            });
        })
    }
}

/// `g W`, `[tokens, inputs]`, of the gradient g `[tokens, outputs]` of the output.
pub(super) fn input_gradient(gradient: Matrix, packed: &Packed) -> Vec<f32> {
    let [outputs, inputs] = packed.shape();
    let tokens = gradient.rows();
    assert_eq!(gradient.columns(), outputs, "outputs of the weight");
    if outputs == 0 {
        return vec![0.0; tokens * inputs];
    }
    // SAFETY: the first tile writes every element, the others add to it.
    unsafe {
        write_all(tokens * inputs, |output| {
            for_each_tile(packed, |start, tile| {
                let of_tile = gradient.column_range(start..start + tile.rows());
                multiply_columns(output, inputs, 0, of_tile, tile, start > 0);
            });
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ops::matrix::multiplied;
    use crate::random::normal;

    fn numbers(key: u64, count: usize) -> Vec<f32> {
        (0..count as u64).map(|index| normal(key, index)).collect()
    }

    fn close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!(
                (found - expected).abs() <= 1e-4 * expected.abs().max(1.0),
                "{found} is not {expected}"
            );
        }
    }

    proptest! {
        #[test]
        fn products_are_those_of_the_decoded_weight(tokens in 1..9usize, outputs in 1..70usize, inputs in 1..90usize, int8: bool) {
            let shape = [outputs, inputs];
            let values = numbers(7, outputs * inputs);
            let packed = if int8 { Packed::int8(&values, shape) } else { Packed::nf4(&values, shape, 64, true) };
            let decoded = packed.decode();
            let weight = Matrix::new(&decoded, outputs, inputs);
            let (x, gradient) = (numbers(1, tokens * inputs), numbers(2, tokens * outputs));
            let (x, gradient) = (Matrix::new(&x, tokens, inputs), Matrix::new(&gradient, tokens, outputs));
            close(&product(x, &packed), &multiplied(x, weight.transposed(), 1.0));
            close(&input_gradient(gradient, &packed), &multiplied(gradient, weight, 1.0));
        }
    }

    #[test]
    fn a_weight_of_several_tiles_is_multiplied_whole() {
        // Two tiles and a rest.
        let (tokens, inputs) = (3, 4096);
        let outputs = 2 * TILE_ELEMENTS / inputs + 5;
        let packed = Packed::int8(&numbers(3, outputs * inputs), [outputs, inputs]);
        let decoded = packed.decode();
        let weight = Matrix::new(&decoded, outputs, inputs);
        let (x, gradient) = (numbers(1, tokens * inputs), numbers(2, tokens * outputs));
        let (x, gradient) = (Matrix::new(&x, tokens, inputs), Matrix::new(&gradient, tokens, outputs));
        let largest = |one: &[f32], other: &[f32]| {
            one.iter()
                .zip(other)
                .map(|(one, other)| (one - other).abs())
                .fold(0.0, f32::max)
        };
        assert!(largest(&product(x, &packed), &multiplied(x, weight.transposed(), 1.0)) < 1e-3);
        assert!(largest(&input_gradient(gradient, &packed), &multiplied(gradient, weight, 1.0)) < 1e-3);
    }

    #[test]
    fn rows_are_those_of_the_whole() {
        let packed = Packed::nf4(&numbers(5, 11 * 50), [11, 50], 64, false);
        let weight = PackedWeight::new(packed, &Device::flex());
        let whole: Vec<f32> = weight.dense(DType::F32).into_data().iter::<f32>().collect();
        let rows: Vec<f32> = weight
            .rows(&[10, 0, 10, 3], DType::F32)
            .into_data()
            .iter::<f32>()
            .collect();
        let expected: Vec<f32> = [10, 0, 10, 3]
            .iter()
            .flat_map(|row| whole[row * 50..(row + 1) * 50].to_vec())
            .collect();
        assert_eq!(rows, expected);
    }
}
