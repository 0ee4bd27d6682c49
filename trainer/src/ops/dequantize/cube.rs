//! Packed weights in CubeCL: one pass from the packed bytes to the type that the product computes in.

use burn::backend::Cube;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::{Format, INT8_STEP, NESTED_BLOCK, PackedOps, Packing};
use crate::ops::cube::{buffer, close, element, empty, lanes, open, open_int, per_element};

/// Elements that a unit unpacks: four bytes of codes, one vector of results, never across a block.
const RUN: usize = 8;

impl PackedOps for Cube {
    fn unpack(
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        scale_codes: IntTensor<Self>,
        scale_table: FloatTensor<Self>,
        table: FloatTensor<Self>,
        packing: Packing,
    ) -> FloatTensor<Self> {
        let (codes, scales, scale_codes) = (open_int(codes), open(scales), open_int(scale_codes));
        let (scale_table, table) = (open(scale_table), open(table));
        let output = empty(&scales, packing.shape, packing.dtype);
        if packing.shape[0] * packing.shape[1] > 0 {
            match packing.format {
                Format::Int8 => unpack_int8(&codes, &scales, &output, packing),
                Format::Nf4 => unpack_nf4([&codes, &scales, &codes, &scales, &table], &output, packing, None),
                Format::Nf4Double { offset } => {
                    let parts = [&codes, &scales, &scale_codes, &scale_table, &table];
                    unpack_nf4(parts, &output, packing, Some(offset));
                }
            }
        }
        close(output)
    }
}

fn unpack_int8(codes: &CubeTensor, scales: &CubeTensor, output: &CubeTensor, packing: Packing) {
    let [rows, columns] = packing.shape;
    let lanes = lanes(packing.dtype, columns);
    let vectors = rows * columns / lanes;
    let (count, dim) = per_element(&codes.client, vectors);
    // SAFETY: the kernel touches only the elements that there are, and the lengths were compared with the shape when
    // the weight was packed.
    unsafe {
        kernels::int8::launch_unchecked(
            &codes.client,
            count,
            dim,
            lanes,
            buffer(codes),
            buffer(scales),
            buffer(output),
            vectors,
            columns / lanes,
            INT8_STEP,
            element(packing.dtype),
        );
    }
}

fn unpack_nf4(
    [codes, scales, scale_codes, scale_table, table]: [&CubeTensor; 5],
    output: &CubeTensor,
    packing: Packing,
    offset: Option<f32>,
) {
    let elements = packing.shape[0] * packing.shape[1];
    let client = &codes.client;
    let whole = elements.is_multiple_of(RUN);
    // Elements of a unit, bytes that it reads and elements that it writes at once.
    let (run, bytes, lanes) = if whole {
        (RUN, RUN / 2, if packing.dtype == DType::F32 { RUN / 2 } else { RUN })
    } else {
        (2, 1, 1)
    };
    let units = elements.div_ceil(run);
    let (count, dim) = per_element(client, units);
    // SAFETY: as for int8.
    unsafe {
        kernels::nf4::launch_unchecked(
            client,
            count,
            dim,
            bytes,
            lanes,
            buffer(codes),
            buffer(scales),
            buffer(scale_codes),
            buffer(scale_table),
            buffer(table),
            buffer(output),
            elements,
            units,
            offset.unwrap_or(0.0),
            offset.is_some(),
            packing.block / run,
            NESTED_BLOCK,
            element(packing.dtype),
        );
    }
}

mod kernels {
    use cubecl::prelude::*;

    /// N elements of one row.
    #[cube(launch_unchecked)]
    pub fn int8<F: Float, N: Size>(
        codes: &[Vector<i8, N>],
        scales: &[f32],
        output: &mut [Vector<F, N>],
        vectors: usize,
        row_vectors: usize,
        step: f32,
        #[define(F)] _dtype: ElemType,
    ) {
        let index = ABSOLUTE_POS;
        if index >= vectors {
            terminate!();
        }
        let scale = Vector::<f32, N>::new(scales[index / row_vectors]);
        let step = Vector::<f32, N>::new(step);
        output[index] = Vector::<F, N>::cast_from(Vector::<f32, N>::cast_from(codes[index]) * scale * step);
    }

    /// N bytes of codes, which become 2 N elements in vectors of M. With M of 1, the last element may be missing.
    #[cube(launch_unchecked)]
    pub fn nf4<F: Float, N: Size, M: Size>(
        codes: &[Vector<u8, N>],
        scales: &[f32],
        scale_codes: &[u8],
        scale_table: &[f32],
        table: &[f32],
        output: &mut [Vector<F, M>],
        elements: usize,
        units: usize,
        offset: f32,
        #[comptime] double: bool,
        #[comptime] units_per_block: usize,
        #[comptime] nested_block: usize,
        #[define(F)] _dtype: ElemType,
    ) {
        let index = ABSOLUTE_POS;
        if index >= units {
            terminate!();
        }
        let block = index / units_per_block;
        let scale = if comptime!(double) {
            scale_table[u32::cast_from(scale_codes[block]) as usize] * scales[block / nested_block] + offset
        } else {
            scales[block]
        };
        let bytes = codes[index];
        let count = N::value().comptime() * 2;
        let lanes = M::value().comptime();
        #[unroll]
        for part in 0..comptime!(count / lanes) {
            let mut values = Vector::<f32, M>::new(0.0f32);
            #[unroll]
            for lane in 0..lanes {
                let byte = u32::cast_from(bytes.extract(comptime!((part * lanes + lane) / 2)));
                let code = if comptime!((part * lanes + lane) % 2 == 0) {
                    byte >> 4u32
                } else {
                    byte & 15u32
                };
                values.insert(lane, table[code as usize] * scale);
            }
            if index * count + comptime!(part * lanes) < elements {
                output[index * comptime!(count / lanes) + part] = Vector::<F, M>::cast_from(values);
            }
        }
    }
}
