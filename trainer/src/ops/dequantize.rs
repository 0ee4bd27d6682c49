//! Weights that stay packed on the device: NF4 with one scale per 64 elements (Dettmers et al., "QLoRA", 2023), the
//! scales themselves in 8 bits or not, and int8 with one scale per row, all as bitsandbytes packs them. A weight is
//! dequantised when a product needs it, in the forward pass and again in the backward pass, and dropped after.

#[cfg(feature = "cube")]
mod cube;
mod flex;

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use interlingua_checkpoints::packed::{self, LEVELS, Packed};

use super::{as_indices, runs_on_cube, runs_on_flex};
use crate::collectives::Collectives;
use crate::spread::{Spread, SpreadInt};

/// Scales that share a scale of their own, where scales are in 8 bits.
pub const NESTED_BLOCK: usize = 256;
/// What a code of an int8 weight is worth in scales of its row: 1 / 127.
const INT8_STEP: f32 = 7.874_016e-3;
/// A weight `[out, in]` in packed form on a device. The tensors carry no graph.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "handles of tensors, of which a model has some hundreds"
)]
pub enum DevicePacked {
    /// Four bits per element.
    Nf4 {
        /// u8, two codes per byte over the rows of the weight, the first in the high half.
        codes: Tensor<1, Int>,
        /// Elements that share a scale; they are counted through the rows of the weight, so a block may end in the next row.
        block: usize,
        /// Per block.
        scales: Scales,
        /// What the codes stand for, f32 `[16]`.
        table: Tensor<1>,
        /// `[out, in]`.
        shape: [usize; 2],
    },
    /// Eight bits per element: `code * scale * (1 / 127)`.
    Int8 {
        /// i8, row by row.
        codes: Tensor<1, Int>,
        /// The largest absolute value of each row, f32 `[out]`.
        scales: Tensor<1>,
        /// `[out, in]`.
        shape: [usize; 2],
    },
}

/// The scales of the blocks of an NF4 weight.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "handles of tensors, of which a model has some hundreds"
)]
pub enum Scales {
    /// f32, one per block.
    Plain(Tensor<1>),
    /// In 8 bits ("double quantisation"): `table[code] * nested[block / 256] + offset`.
    Double {
        /// u8, one per block.
        codes: Tensor<1, Int>,
        /// f32, one per 256 blocks.
        nested: Tensor<1>,
        /// What the codes stand for, f32 `[256]`.
        table: Tensor<1>,
        /// Added to every scale.
        offset: f32,
    },
}

/// A weight on devices of which each process keeps a piece.
#[derive(Clone, Debug)]
pub struct SpreadPacked {
    codes: SpreadInt,
    /// f32.
    scales: Option<Spread>,
    /// u8, where the scales are in 8 bits.
    scale_codes: Option<SpreadInt>,
    /// The weight with nothing in it: what does not lie in pieces.
    rest: DevicePacked,
}

impl SpreadPacked {
    /// This process's piece of a weight that every process has.
    pub fn cut(whole: &DevicePacked, collectives: &Arc<dyn Collectives>) -> Self {
        let mut rest = whole.clone();
        let (codes, floats, scale_codes) = rest.vectors();
        let (mut spread_floats, mut spread_codes) = (None, None);
        let spread = SpreadInt::cut(codes, collectives);
        *codes = empty_codes(codes);
        if let Some(floats) = floats {
            spread_floats = Some(Spread::cut(floats, collectives));
            *floats = Tensor::zeros([1], (&floats.device(), floats.dtype()));
        }
        if let Some(codes) = scale_codes {
            spread_codes = Some(SpreadInt::cut(codes, collectives));
            *codes = empty_codes(codes);
        }
        Self {
            codes: spread,
            scales: spread_floats,
            scale_codes: spread_codes,
            rest,
        }
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.rest.shape()
    }

    /// The whole weight. All processes take part.
    pub fn together(&self) -> DevicePacked {
        let mut whole = self.rest.clone();
        let (codes, floats, scale_codes) = whole.vectors();
        *codes = self.codes.values();
        if let (Some(floats), Some(spread)) = (floats, &self.scales) {
            *floats = spread.values();
        }
        if let (Some(codes), Some(spread)) = (scale_codes, &self.scale_codes) {
            *codes = spread.values();
        }
        whole
    }
}

fn empty_codes(codes: &Tensor<1, Int>) -> Tensor<1, Int> {
    Tensor::zeros([1], (&codes.device(), codes.dtype()))
}

/// The vectors of a weight: its codes, its scales, and their codes.
type Vectors<'a> = (
    &'a mut Tensor<1, Int>,
    Option<&'a mut Tensor<1>>,
    Option<&'a mut Tensor<1, Int>>,
);

impl DevicePacked {
    /// The vectors that grow with the weight.
    fn vectors(&mut self) -> Vectors<'_> {
        match self {
            Self::Int8 { codes, scales, .. } => (codes, Some(scales), None),
            Self::Nf4 { codes, scales, .. } => match scales {
                Scales::Plain(scales) => (codes, Some(scales), None),
                Scales::Double {
                    codes: scales, nested, ..
                } => (codes, Some(nested), Some(scales)),
            },
        }
    }

    /// A quantised weight on a device; none of floats.
    pub fn upload(packed: &Packed, device: &Device) -> Option<Self> {
        let shape = packed.shape();
        Some(match packed.format() {
            packed::Format::Float(_) => return None,
            packed::Format::Int8 { scales } => {
                let codes = packed.codes().iter().map(|code| *code as i8).collect();
                Self::int8(codes, scales.clone(), shape, device)
            }
            packed::Format::Nf4 { block, absmax } => {
                let scales = match absmax {
                    packed::Absmax::Plain(scales) => Scales::Plain(floats(scales.clone(), device)),
                    packed::Absmax::Nested {
                        codes,
                        absmax,
                        block,
                        offset,
                        map,
                    } => {
                        assert_eq!(*block, NESTED_BLOCK, "scales that share a scale");
                        Scales::Double {
                            codes: bytes(codes.clone(), device),
                            nested: floats(absmax.clone(), device),
                            table: floats(map.to_vec(), device),
                            offset: *offset,
                        }
                    }
                };
                Self::nf4(packed.codes().to_vec(), scales, *block, shape, device)
            }
        })
    }

    /// An NF4 weight `[out, in]` with blocks of `block` elements.
    ///
    /// # Panics
    /// When the lengths do not fit the shape.
    pub fn nf4(codes: Vec<u8>, scales: Scales, block: usize, shape: [usize; 2], device: &Device) -> Self {
        let elements = shape[0] * shape[1];
        assert_eq!(codes.len(), elements.div_ceil(2), "bytes of codes of {shape:?}");
        let blocks = elements.div_ceil(block);
        let (found, nested) = match &scales {
            Scales::Plain(scales) => (scales.dims()[0], None),
            Scales::Double { codes, nested, .. } => (codes.dims()[0], Some(nested.dims()[0])),
        };
        assert_eq!(found, blocks, "one scale per {block} elements of {shape:?}");
        assert!(
            nested.is_none_or(|nested| nested == blocks.div_ceil(NESTED_BLOCK)),
            "scales of scales"
        );
        Self::Nf4 {
            codes: bytes(codes, device),
            scales,
            block,
            table: floats(LEVELS.to_vec(), device),
            shape,
        }
    }

    /// An int8 weight `[out, in]`. Panics if the lengths do not fit the shape.
    pub fn int8(codes: Vec<i8>, scales: Vec<f32>, shape: [usize; 2], device: &Device) -> Self {
        assert_eq!(codes.len(), shape[0] * shape[1], "codes of {shape:?}");
        assert_eq!(scales.len(), shape[0], "one scale per row of {shape:?}");
        let device = device.clone().without_autodiff();
        let count = codes.len();
        Self::Int8 {
            codes: Tensor::from_data(TensorData::new(codes, [count]), (&device, DType::I8)),
            scales: floats(scales, &device),
            shape,
        }
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Nf4 { shape, .. } | Self::Int8 { shape, .. } => *shape,
        }
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        let elements = |tensor: &Tensor<1>| tensor.dims()[0] * size_of::<f32>();
        match self {
            Self::Int8 { codes, scales, .. } => codes.dims()[0] + elements(scales),
            Self::Nf4 {
                codes, scales, table, ..
            } => {
                let scales = match scales {
                    Scales::Plain(scales) => elements(scales),
                    Scales::Double {
                        codes, nested, table, ..
                    } => codes.dims()[0] + elements(nested) + elements(table),
                };
                codes.dims()[0] + scales + elements(table)
            }
        }
    }

    fn codes(&self) -> &Tensor<1, Int> {
        match self {
            Self::Nf4 { codes, .. } | Self::Int8 { codes, .. } => codes,
        }
    }

    /// The parts in the order in which an operation takes them. Parts that a format lacks are represented by ones that
    /// it has.
    fn parts(&self, dtype: DType) -> Parts {
        match self {
            Self::Int8 { codes, scales, shape } => Parts {
                codes: codes.clone(),
                scales: scales.clone(),
                scale_codes: codes.clone(),
                scale_table: scales.clone(),
                table: scales.clone(),
                packing: Packing {
                    format: Format::Int8,
                    block: 1,
                    shape: *shape,
                    dtype,
                },
            },
            Self::Nf4 {
                codes,
                scales,
                block,
                table,
                shape,
            } => {
                let packing = |format| Packing {
                    format,
                    block: *block,
                    shape: *shape,
                    dtype,
                };
                let (codes, table) = (codes.clone(), table.clone());
                match scales {
                    Scales::Plain(scales) => Parts {
                        scale_codes: codes.clone(),
                        codes,
                        scales: scales.clone(),
                        scale_table: table.clone(),
                        table,
                        packing: packing(Format::Nf4),
                    },
                    Scales::Double {
                        codes: scale_codes,
                        nested,
                        table: scale_table,
                        offset,
                    } => Parts {
                        codes,
                        scales: nested.clone(),
                        scale_codes: scale_codes.clone(),
                        scale_table: scale_table.clone(),
                        table,
                        packing: packing(Format::Nf4Double { offset: *offset }),
                    },
                }
            }
        }
    }
}

struct Parts {
    codes: Tensor<1, Int>,
    scales: Tensor<1>,
    scale_codes: Tensor<1, Int>,
    scale_table: Tensor<1>,
    table: Tensor<1>,
    packing: Packing,
}

fn bytes(values: Vec<u8>, device: &Device) -> Tensor<1, Int> {
    let count = values.len();
    let device = device.clone().without_autodiff();
    Tensor::from_data(TensorData::new(values, [count]), (&device, DType::U8))
}

fn floats(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let count = values.len();
    let device = device.clone().without_autodiff();
    Tensor::from_data(TensorData::new(values, [count]), (&device, DType::F32))
}

/// How a packed weight is read, and what it becomes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Packing {
    format: Format,
    /// Elements of NF4 that share a scale.
    block: usize,
    shape: [usize; 2],
    dtype: DType,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Format {
    Nf4,
    Nf4Double { offset: f32 },
    Int8,
}

/// The weight `[out, in]`: computed in f32, then cast to `dtype`.
pub fn dequantize(packed: &DevicePacked, dtype: DType) -> Tensor<2> {
    if !has_kernel(packed, dtype) {
        return dequantize_reference(packed, dtype);
    }
    let parts = packed.parts(dtype);
    Tensor::from_dispatch(<Dispatch as PackedOps>::unpack(
        parts.codes.into_dispatch(),
        parts.scales.into_dispatch(),
        parts.scale_codes.into_dispatch(),
        parts.scale_table.into_dispatch(),
        parts.table.into_dispatch(),
        parts.packing,
    ))
}

/// `x Wᵀ + bias`, `[tokens, out]`, with a frozen packed weight W `[out, in]` and x `[tokens, in]`. Between the passes only
/// the packed weight is kept; bias, if any, has the type of x.
pub fn packed_linear(x: Tensor<2>, weight: &DevicePacked, bias: Option<Tensor<1>>) -> Tensor<2> {
    let output = if has_kernel(weight, x.dtype()) && x.device() == weight.codes().device() {
        let parts = weight.parts(x.dtype());
        Tensor::from_dispatch(<Dispatch as PackedOps>::packed_product(
            x.into_dispatch(),
            parts.codes.into_dispatch(),
            parts.scales.into_dispatch(),
            parts.scale_codes.into_dispatch(),
            parts.scale_table.into_dispatch(),
            parts.table.into_dispatch(),
            parts.packing,
        ))
    } else {
        let dtype = x.dtype();
        x.matmul(dequantize_reference(weight, dtype).transpose())
    };
    match bias {
        Some(bias) => output + bias.unsqueeze::<2>(),
        None => output,
    }
}

/// Whether a packed weight lies where a kernel gives it in this type.
fn has_kernel(packed: &DevicePacked, dtype: DType) -> bool {
    // The tables are f32 wherever the weight is.
    let scales = match packed {
        DevicePacked::Nf4 { table, .. } => table,
        DevicePacked::Int8 { scales, .. } => scales,
    };
    let computes = matches!(dtype, DType::F32 | DType::BF16 | DType::F16);
    computes && (runs_on_flex(scales) || runs_on_cube(scales))
}

/// [`dequantize`] in plain tensor operations.
pub fn dequantize_reference(packed: &DevicePacked, dtype: DType) -> Tensor<2> {
    let [rows, columns] = packed.shape();
    match packed {
        DevicePacked::Int8 { codes, scales, .. } => {
            let codes = codes.clone().float().cast(DType::F32).reshape([rows, columns]);
            (codes * scales.clone().reshape([rows, 1]) * INT8_STEP).cast(dtype)
        }
        DevicePacked::Nf4 {
            codes,
            scales,
            block,
            table,
            ..
        } => {
            let elements = rows * columns;
            let bytes = as_indices(codes.clone());
            let count = bytes.dims()[0];
            let high = bytes.clone() / 16;
            let low = bytes - high.clone() * 16;
            let indices = Tensor::cat(vec![high.reshape([count, 1]), low.reshape([count, 1])], 1);
            let values = table
                .clone()
                .select(0, indices.reshape([2 * count]))
                .narrow(0, 0, elements);
            let scales = match scales {
                Scales::Plain(scales) => scales.clone(),
                Scales::Double {
                    codes,
                    nested,
                    table,
                    offset,
                } => {
                    let values = table.clone().select(0, as_indices(codes.clone()));
                    values * repeated(nested.clone(), NESTED_BLOCK, codes.dims()[0]) + *offset
                }
            };
            let weight = values * repeated(scales, *block, elements);
            weight.reshape([rows, columns]).cast(dtype)
        }
    }
}

/// Each value `times` times in a row, the first `count` of all that.
fn repeated(values: Tensor<1>, times: usize, count: usize) -> Tensor<1> {
    let [length] = values.dims();
    let values = values.reshape([length, 1]).expand([length, times]);
    values.reshape([length * times]).narrow(0, 0, count)
}

/// Packed weights as operations of a backend. What the parts are depends on the packing: of NF4 with plain scales,
/// `scale_codes` and `scale_table` are not read; of int8, neither those nor `table`.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub trait PackedOps: Backend {
    /// The weight `[out, in]`.
    fn unpack(
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        scale_codes: IntTensor<Self>,
        scale_table: FloatTensor<Self>,
        table: FloatTensor<Self>,
        packing: Packing,
    ) -> FloatTensor<Self>;

    /// `x Wᵀ`, `[tokens, out]`.
    fn packed_product(
        x: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        scale_codes: IntTensor<Self>,
        scale_table: FloatTensor<Self>,
        table: FloatTensor<Self>,
        packing: Packing,
    ) -> FloatTensor<Self> {
        let weight = Self::unpack(codes, scales, scale_codes, scale_table, table, packing);
        Self::float_matmul(x, Self::float_transpose(weight))
    }
}

/// What the backward pass keeps: the packed weight alone.
#[derive(Clone, Debug)]
struct Saved<B: Backend> {
    codes: IntTensor<B>,
    scales: FloatTensor<B>,
    scale_codes: IntTensor<B>,
    scale_table: FloatTensor<B>,
    table: FloatTensor<B>,
    packing: Packing,
}

impl<B: PackedOps, C: CheckpointStrategy> PackedOps for Autodiff<B, C> {
    fn unpack(
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        scale_codes: IntTensor<Self>,
        scale_table: FloatTensor<Self>,
        table: FloatTensor<Self>,
        packing: Packing,
    ) -> FloatTensor<Self> {
        use burn::backend::AutodiffBackend;

        let (scales, scale_table, table) = (
            scales.into_primitive(),
            scale_table.into_primitive(),
            table.into_primitive(),
        );
        Self::from_inner(B::unpack(codes, scales, scale_codes, scale_table, table, packing))
    }

    fn packed_product(
        x: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        scale_codes: IntTensor<Self>,
        scale_table: FloatTensor<Self>,
        table: FloatTensor<Self>,
        packing: Packing,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct PackedStep;
        impl<B: PackedOps> Backward<B, 1> for PackedStep {
            type State = Saved<B>;

            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
                let gradient = grads.consume::<B>(&ops.node);
                let saved = ops.state;
                if let [Some(node)] = ops.parents {
                    let weight = B::unpack(
                        saved.codes,
                        saved.scales,
                        saved.scale_codes,
                        saved.scale_table,
                        saved.table,
                        saved.packing,
                    );
                    grads.register::<B>(node.id, B::float_matmul(gradient, weight));
                }
            }
        }
        let saved = Saved::<B> {
            codes,
            scales: scales.into_primitive(),
            scale_codes,
            scale_table: scale_table.into_primitive(),
            table: table.into_primitive(),
            packing,
        };
        let prepared = PackedStep.prepare::<C>([x.node()]).compute_bound().stateful();
        let parts = saved.clone();
        let output = B::packed_product(
            x.into_primitive(),
            parts.codes,
            parts.scales,
            parts.scale_codes,
            parts.scale_table,
            parts.table,
            parts.packing,
        );
        match prepared {
            OpsKind::Tracked(prepared) => prepared.finish(saved, output),
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        }
    }
}

#[cfg(test)]
mod tests;
