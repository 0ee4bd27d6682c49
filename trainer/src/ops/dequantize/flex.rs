//! Packed weights on the CPU: a task unpacks whole blocks. The product is that of the `gemm` crate.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::DType;
use rayon::prelude::*;

use super::{Format, INT8_STEP, NESTED_BLOCK, PackedOps, Packing};
use crate::ops::flex::{ELEMENTS, dense, for_each_task, tensor, values};

impl PackedOps for Flex {
    fn unpack(
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        scale_codes: IntTensor<Self>,
        scale_table: FloatTensor<Self>,
        table: FloatTensor<Self>,
        packing: Packing,
    ) -> FloatTensor<Self> {
        let (codes, scales, scale_codes) = (dense(codes), dense(scales), dense(scale_codes));
        let (scale_table, table) = (dense(scale_table), dense(table));
        let [rows, columns] = packing.shape;
        let mut weight = vec![0.0f32; rows * columns];
        match packing.format {
            Format::Int8 => {
                let (codes, scales) = (codes.storage::<i8>(), values(&scales));
                let tasks = weight
                    .par_chunks_mut(columns.max(1))
                    .zip(codes.par_chunks(columns.max(1)));
                for_each_task(tasks.zip(scales), rows * columns, |((weight, codes), scale)| {
                    weight
                        .iter_mut()
                        .zip(codes)
                        .for_each(|(weight, code)| *weight = f32::from(*code) * scale * INT8_STEP);
                });
            }
            Format::Nf4 => {
                let scales = values(&scales);
                unpack_nf4(
                    &mut weight,
                    codes.storage::<u8>(),
                    values(&table),
                    packing.block,
                    |block| scales[block],
                );
            }
            Format::Nf4Double { offset } => {
                let (scales, scale_codes, scale_table) =
                    (values(&scales), scale_codes.storage::<u8>(), values(&scale_table));
                unpack_nf4(
                    &mut weight,
                    codes.storage::<u8>(),
                    values(&table),
                    packing.block,
                    |block| scale_table[usize::from(scale_codes[block])] * scales[block / NESTED_BLOCK] + offset,
                );
            }
        }
        as_dtype(tensor(weight, packing.shape), packing.dtype)
    }
}

/// Looks codes up and multiplies each block with its scale.
fn unpack_nf4(
    weight: &mut [f32],
    codes: &[u8],
    table: &[f32],
    block_size: usize,
    scale: impl Fn(usize) -> f32 + Sync + Send,
) {
    let elements = weight.len();
    let size = ELEMENTS.next_multiple_of(block_size);
    let tasks = weight.par_chunks_mut(size).zip(codes.par_chunks(size / 2)).enumerate();
    for_each_task(tasks, elements, |(task, (weight, codes))| {
        let blocks = weight.chunks_mut(block_size).zip(codes.chunks(block_size / 2));
        for (block, (weight, codes)) in blocks.enumerate() {
            let scale = scale(task * (size / block_size) + block);
            for (pair, code) in weight.chunks_mut(2).zip(codes) {
                pair[0] = table[usize::from(code >> 4)] * scale;
                if let Some(second) = pair.get_mut(1) {
                    *second = table[usize::from(code & 15)] * scale;
                }
            }
        }
    });
}

fn as_dtype(weight: FlexTensor, dtype: DType) -> FlexTensor {
    if dtype == DType::F32 {
        return weight;
    }
    Flex::float_cast(weight, dtype.into())
}
