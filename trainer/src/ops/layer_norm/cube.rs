//! The normalisation in CubeCL: a row per line of units of a cube; one pass for the mean, one for the variance and one for
//! the output.

use burn::backend::Cube;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::{CubeCount, CubeDim};

use super::{LayerNormBackward, LayerNormOps, Options, Saved, Wanted};
use crate::ops::cube::{RowCubes, buffer, close, dimensions, element, empty, lanes, most_units, open, reshaped};

/// Rows that a unit adds up for the gradient of weight or bias; the sums of the strips are then added by Burn.
const STRIP: usize = 64;

impl LayerNormOps for Cube {
    fn layer_norm_forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        options: Options,
    ) -> FloatTensor<Self> {
        let [output, ..] = Self::layer_norm_saving(x, weight, bias, options);
        output
    }
}

impl LayerNormBackward for Cube {
    fn layer_norm_saving(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        options: Options,
    ) -> [FloatTensor<Self>; 3] {
        let (x, weight) = (open(x), open(weight));
        let bias = options.has_bias.then(|| open(bias));
        let [rows, size] = dimensions(&x);
        for vector in std::iter::once(&weight).chain(&bias) {
            assert_eq!(
                (dimensions::<1>(vector), vector.dtype),
                ([size], x.dtype),
                "weight or bias of a normalisation over {size} features"
            );
        }
        let output = empty(&x, [rows, size], x.dtype);
        let (mean, inverse) = (empty(&x, [rows], DType::F32), empty(&x, [rows], DType::F32));
        if rows * size > 0 {
            let lanes = lanes(x.dtype, size);
            let cubes = RowCubes::new(&x.client, rows, size / lanes);
            // SAFETY: the kernel touches only the rows that there are, and the buffers have the lengths that
            // `dimensions` gave. Without a bias it does not read what stands in its place.
            unsafe {
                kernels::normalize::launch_unchecked(
                    &x.client,
                    cubes.count(),
                    cubes.dim(),
                    lanes,
                    buffer(&x),
                    buffer(&weight),
                    buffer(bias.as_ref().unwrap_or(&weight)),
                    buffer(&output),
                    buffer(&mean),
                    buffer(&inverse),
                    rows,
                    size / lanes,
                    size as f32,
                    options.eps as f32,
                    bias.is_some(),
                    cubes.width,
                    cubes.height,
                    element(x.dtype),
                );
            }
        }
        [close(output), close(mean), close(inverse)]
    }

    fn layer_norm_backward(
        gradient: FloatTensor<Self>,
        saved: Saved<Self>,
        wanted: Wanted,
    ) -> (FloatTensor<Self>, [Option<FloatTensor<Self>>; 2]) {
        let (gradient, x, weight) = (open(gradient), open(saved.x), open(saved.weight));
        let (mean, inverse) = (open(saved.mean), open(saved.inverse));
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
                    buffer(&mean),
                    buffer(&inverse),
                    buffer(&output),
                    rows,
                    size / lanes,
                    size as f32,
                    cubes.width,
                    cubes.height,
                    element(x.dtype),
                );
            }
        }
        let total = |for_bias: bool| close(column_sums(&gradient, &x, [&mean, &inverse], for_bias));
        let weight_gradient = wanted.weight.then(|| total(false));
        let bias_gradient = wanted.bias.then(|| total(true));
        (close(output), [weight_gradient, bias_gradient])
    }
}

/// The gradient of the bias, `sum over rows of g`, or of the weight, `sum over rows of g (x - mean) r`; first within strips
/// of rows, then over the strips: the same bits at every call.
fn column_sums(gradient: &CubeTensor, x: &CubeTensor, [mean, inverse]: [&CubeTensor; 2], for_bias: bool) -> CubeTensor {
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
                buffer(mean),
                buffer(inverse),
                buffer(&sums),
                rows,
                size,
                STRIP,
                for_bias,
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

    /// Normalises a row and keeps its mean and its inverse standard deviation.
    #[cube(launch_unchecked)]
    pub(super) fn normalize<F: Float, N: Size>(
        x: &[Vector<F, N>],
        weight: &[Vector<F, N>],
        bias: &[Vector<F, N>],
        output: &mut [Vector<F, N>],
        mean: &mut [f32],
        inverse: &mut [f32],
        rows: usize,
        vectors: usize,
        features: f32,
        eps: f32,
        #[comptime] has_bias: bool,
        #[comptime] width: usize,
        #[comptime] height: usize,
        #[define(F)] _dtype: ElemType,
    ) {
        let row = CUBE_POS_X as usize * height + UNIT_POS_Y as usize;
        let start = row * vectors;
        let mut sums = Vector::<f32, N>::new(0.0f32);
        if row < rows {
            let mut column = UNIT_POS_X as usize;
            while column < vectors {
                sums += Vector::<f32, N>::cast_from(x[start + column]);
                column += width;
            }
        }
        let centre = row_sum(lane_sum::<N>(sums), width, height) / features;
        let centres = Vector::<f32, N>::new(centre);
        let mut squares = Vector::<f32, N>::new(0.0f32);
        if row < rows {
            let mut column = UNIT_POS_X as usize;
            while column < vectors {
                let value = Vector::<f32, N>::cast_from(x[start + column]) - centres;
                squares += value * value;
                column += width;
            }
        }
        let variance = row_sum(lane_sum::<N>(squares), width, height) / features;
        let root = 1.0f32 / (variance + eps).sqrt();
        if row < rows {
            let mut column = UNIT_POS_X as usize;
            while column < vectors {
                let value = Vector::<f32, N>::cast_from(x[start + column]) - centres;
                let mut scaled = value * Vector::<f32, N>::new(root) * Vector::<f32, N>::cast_from(weight[column]);
                if comptime!(has_bias) {
                    scaled += Vector::<f32, N>::cast_from(bias[column]);
                }
                output[start + column] = Vector::<F, N>::cast_from(scaled);
                column += width;
            }
            if UNIT_POS_X == 0 {
                mean[row] = centre;
                inverse[row] = root;
            }
        }
    }

    /// The gradient of x out of that of the output, g: with `h = (x - mean) r` and r the inverse,
    /// `r (w g - mean(w g) - h mean(w g h))`.
    #[cube(launch_unchecked)]
    pub(super) fn differentiate<F: Float, N: Size>(
        gradient: &[Vector<F, N>],
        x: &[Vector<F, N>],
        weight: &[Vector<F, N>],
        mean: &[f32],
        inverse: &[f32],
        output: &mut [Vector<F, N>],
        rows: usize,
        vectors: usize,
        features: f32,
        #[comptime] width: usize,
        #[comptime] height: usize,
        #[define(F)] _dtype: ElemType,
    ) {
        let row = CUBE_POS_X as usize * height + UNIT_POS_Y as usize;
        let start = row * vectors;
        let mut centre = 0.0f32;
        let mut root = 0.0f32;
        if row < rows {
            centre = mean[row];
            root = inverse[row];
        }
        let centres = Vector::<f32, N>::new(centre);
        let roots = Vector::<f32, N>::new(root);
        let mut sums = Vector::<f32, N>::new(0.0f32);
        let mut products = Vector::<f32, N>::new(0.0f32);
        if row < rows {
            let mut column = UNIT_POS_X as usize;
            while column < vectors {
                let weighted =
                    Vector::<f32, N>::cast_from(gradient[start + column]) * Vector::<f32, N>::cast_from(weight[column]);
                sums += weighted;
                products += weighted * (Vector::<f32, N>::cast_from(x[start + column]) - centres) * roots;
                column += width;
            }
        }
        let average = row_sum(lane_sum::<N>(sums), width, height) / features;
        let along = row_sum(lane_sum::<N>(products), width, height) / features;
        if row < rows {
            let mut column = UNIT_POS_X as usize;
            while column < vectors {
                let weighted =
                    Vector::<f32, N>::cast_from(gradient[start + column]) * Vector::<f32, N>::cast_from(weight[column]);
                let normalized = (Vector::<f32, N>::cast_from(x[start + column]) - centres) * roots;
                let value = weighted - Vector::<f32, N>::new(average) - normalized * Vector::<f32, N>::new(along);
                output[start + column] = Vector::<F, N>::cast_from(value * roots);
                column += width;
            }
        }
    }

    /// Adds `g`, or `g (x - mean) r`, over a strip of rows; a unit per column.
    #[cube(launch_unchecked)]
    pub(super) fn add_rows<F: Float>(
        gradient: &[F],
        x: &[F],
        mean: &[f32],
        inverse: &[f32],
        sums: &mut [f32],
        rows: usize,
        size: usize,
        #[comptime] strip: usize,
        #[comptime] for_bias: bool,
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
            let mut value = f32::cast_from(gradient[position]);
            if comptime!(!for_bias) {
                value *= (f32::cast_from(x[position]) - mean[row]) * inverse[row];
            }
            sum += value;
            row += 1;
        }
        sums[index * size + column] = sum;
    }
}
