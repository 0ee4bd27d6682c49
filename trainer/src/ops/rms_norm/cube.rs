//! The normalisation in CubeCL: a row per line of units of a cube, one pass for the sum and one for the output.

use burn::backend::Cube;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::{CubeCount, CubeDim};

use super::{RmsNormBackward, RmsNormOps, Saved};
use crate::ops::cube::{RowCubes, buffer, close, dimensions, element, empty, lanes, most_units, open, reshaped};

/// Rows that a unit adds up for the gradient of the weight; the sums of the strips are then added by Burn.
const STRIP: usize = 64;

impl RmsNormOps for Cube {
    fn rms_norm_forward(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64, offset: f32) -> FloatTensor<Self> {
        let [output, _] = Self::rms_norm_saving(x, weight, eps, offset);
        output
    }
}

impl RmsNormBackward for Cube {
    fn rms_norm_saving(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
        offset: f32,
    ) -> [FloatTensor<Self>; 2] {
        let (x, weight) = (open(x), open(weight));
        let [rows, size] = dimensions(&x);
        assert_eq!(
            (dimensions::<1>(&weight), weight.dtype),
            ([size], x.dtype),
            "weight of a normalisation over {size} features"
        );
        let output = empty(&x, [rows, size], x.dtype);
        let inverse = empty(&x, [rows], DType::F32);
        if rows * size > 0 {
            let lanes = lanes(x.dtype, size);
            let cubes = RowCubes::new(&x.client, rows, size / lanes);
            // SAFETY: the kernel touches only the rows that there are, and the buffers have the lengths that
            // `dimensions` gave.
            unsafe {
                kernels::normalize::launch_unchecked(
                    &x.client,
                    cubes.count(),
                    cubes.dim(),
                    lanes,
                    buffer(&x),
                    buffer(&weight),
                    buffer(&output),
                    buffer(&inverse),
                    rows,
                    size / lanes,
                    size as f32,
                    eps as f32,
                    offset,
                    offset != 0.0,
                    cubes.width,
                    cubes.height,
                    element(x.dtype),
                );
            }
        }
        [close(output), close(inverse)]
    }

    fn rms_norm_backward(
        gradient: FloatTensor<Self>,
        saved: Saved<Self>,
        weight_wanted: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        let (gradient, x, weight) = (open(gradient), open(saved.x), open(saved.weight));
        let inverse = open(saved.inverse);
        let [rows, size] = dimensions(&x);
        let output = empty(&x, [rows, size], x.dtype);
        if rows * size > 0 {
            let lanes = lanes(x.dtype, size);
            let cubes = RowCubes::new(&x.client, rows, size / lanes);
            // SAFETY: as in the forward pass.
            unsafe {
                kernels::differentiate::launch_unchecked(
                    &x.client,
                    cubes.count(),
                    cubes.dim(),
                    lanes,
                    buffer(&gradient),
                    buffer(&x),
                    buffer(&weight),
                    buffer(&inverse),
                    buffer(&output),
                    rows,
                    size / lanes,
                    size as f32,
                    saved.offset,
                    cubes.width,
                    cubes.height,
                    element(x.dtype),
                );
            }
        }
        let weight_gradient = weight_wanted.then(|| close(weight_gradient(&gradient, &x, &inverse)));
        (close(output), weight_gradient)
    }
}

/// `sum over rows of g x r`, first within strips of rows, then over the strips: the same bits at every call.
fn weight_gradient(gradient: &CubeTensor, x: &CubeTensor, inverse: &CubeTensor) -> CubeTensor {
    let [rows, size] = dimensions(x);
    let strips = rows.div_ceil(STRIP);
    let sums = empty(x, [strips, size], DType::F32);
    if strips * size > 0 {
        let units = most_units(&x.client);
        // SAFETY: the kernel touches only the rows and columns that there are.
        unsafe {
            kernels::add_rows::launch_unchecked(
                &x.client,
                CubeCount::Static(size.div_ceil(units) as u32, strips as u32, 1),
                CubeDim::new_1d(units as u32),
                buffer(gradient),
                buffer(x),
                buffer(inverse),
                buffer(&sums),
                rows,
                size,
                STRIP,
                element(x.dtype),
            );
        }
    }
    let total = <CubeBackend as FloatTensorOps<CubeBackend>>::float_sum_dim(sums, 0);
    burn_cubecl::kernel::cast(reshaped(total, [size]), x.dtype)
}

mod kernels {
    use cubecl::prelude::*;

    use crate::ops::cube::{lane_sum, row_sum};

    /// Normalises a row and keeps its inverse root. With an offset, the product with the weight is in f32 too.
    #[cube(launch_unchecked)]
    pub(super) fn normalize<F: Float, N: Size>(
        x: &[Vector<F, N>],
        weight: &[Vector<F, N>],
        output: &mut [Vector<F, N>],
        inverse: &mut [f32],
        rows: usize,
        vectors: usize,
        features: f32,
        eps: f32,
        offset: f32,
        #[comptime] has_offset: bool,
        #[comptime] width: usize,
        #[comptime] height: usize,
        #[define(F)] _dtype: ElemType,
    ) {
        let row = CUBE_POS_X as usize * height + UNIT_POS_Y as usize;
        let start = row * vectors;
        let mut squares = Vector::<f32, N>::new(0.0f32);
        if row < rows {
            let mut column = UNIT_POS_X as usize;
            while column < vectors {
                let value = Vector::<f32, N>::cast_from(x[start + column]);
                squares += value * value;
                column += width;
            }
        }
        let total = row_sum(lane_sum::<N>(squares), width, height);
        let root = 1.0f32 / (total / features + eps).sqrt();
        if row < rows {
            let mut column = UNIT_POS_X as usize;
            while column < vectors {
                let value = Vector::<f32, N>::cast_from(x[start + column]) * Vector::<f32, N>::new(root);
                if comptime!(has_offset) {
                    let factor = Vector::<f32, N>::cast_from(weight[column]) + Vector::<f32, N>::new(offset);
                    output[start + column] = Vector::<F, N>::cast_from(value * factor);
                } else {
                    output[start + column] = Vector::<F, N>::cast_from(value) * weight[column];
                }
                column += width;
            }
            if UNIT_POS_X == 0 {
                inverse[row] = root;
            }
        }
    }

    /// The gradient of x out of that of the output, g: `r (w g - x r² mean(w g x))` with r the inverse root and w
    /// the sum of weight and offset.
    #[cube(launch_unchecked)]
    pub(super) fn differentiate<F: Float, N: Size>(
        gradient: &[Vector<F, N>],
        x: &[Vector<F, N>],
        weight: &[Vector<F, N>],
        inverse: &[f32],
        output: &mut [Vector<F, N>],
        rows: usize,
        vectors: usize,
        features: f32,
        offset: f32,
        #[comptime] width: usize,
        #[comptime] height: usize,
        #[define(F)] _dtype: ElemType,
    ) {
        let row = CUBE_POS_X as usize * height + UNIT_POS_Y as usize;
        let start = row * vectors;
        let mut products = Vector::<f32, N>::new(0.0f32);
        if row < rows {
            let mut column = UNIT_POS_X as usize;
            while column < vectors {
                let factor = Vector::<f32, N>::cast_from(weight[column]) + Vector::<f32, N>::new(offset);
                let weighted = Vector::<f32, N>::cast_from(gradient[start + column]) * factor;
                products += weighted * Vector::<f32, N>::cast_from(x[start + column]);
                column += width;
            }
        }
        let total = row_sum(lane_sum::<N>(products), width, height);
        if row < rows {
            let root = inverse[row];
            let along = Vector::<f32, N>::new(total / features * root * root);
            let mut column = UNIT_POS_X as usize;
            while column < vectors {
                let factor = Vector::<f32, N>::cast_from(weight[column]) + Vector::<f32, N>::new(offset);
                let weighted = Vector::<f32, N>::cast_from(gradient[start + column]) * factor;
                let value = weighted - Vector::<f32, N>::cast_from(x[start + column]) * along;
                output[start + column] = Vector::<F, N>::cast_from(value * Vector::<f32, N>::new(root));
                column += width;
            }
        }
    }

    /// Adds `g x r` over a strip of rows; a unit per column.
    #[cube(launch_unchecked)]
    pub(super) fn add_rows<F: Float>(
        gradient: &[F],
        x: &[F],
        inverse: &[f32],
        sums: &mut [f32],
        rows: usize,
        size: usize,
        #[comptime] strip: usize,
        #[define(F)] _dtype: ElemType,
    ) {
        let column = ABSOLUTE_POS_X as usize;
        if column >= size {
            terminate!();
        }
        let index = CUBE_POS_Y as usize;
        let mut row = index * strip;
        let mut end = row + strip;
        if end > rows {
            end = rows;
        }
        let mut sum = 0.0f32;
        while row < end {
            let position = row * size + column;
            sum += f32::cast_from(gradient[position]) * f32::cast_from(x[position]) * inverse[row];
            row += 1;
        }
        sums[index * size + column] = sum;
    }
}
