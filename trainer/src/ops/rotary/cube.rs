//! The rotation in CubeCL, pair by pair and in place.

use burn::backend::Cube;
use burn::backend::tensor::FloatTensor;
use burn::tensor::DType;

use super::{RotaryOps, Rotation};
use crate::ops::cube::{buffer, close, dimensions, element, lanes, open, own, per_element};

impl RotaryOps for Cube {
    fn rotary_forward(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        rotation: Rotation,
    ) -> FloatTensor<Self> {
        let (x, cos, sin) = (own(open(x)), open(cos), open(sin));
        let [tokens, heads, head_dim] = dimensions(&x);
        let [rows, half] = dimensions(&cos);
        assert_eq!(dimensions::<2>(&sin), [rows, half], "cosines and sines");
        assert_eq!((cos.dtype, sin.dtype), (DType::F32, DType::F32), "cosines and sines");
        assert!(
            rows == tokens && 2 * half <= head_dim,
            "table [{rows}, {half}] for [{tokens}, {heads}, {head_dim}]"
        );
        if tokens * heads * half > 0 {
            // Both halves of a head and its end have to start at a whole vector; of neighbours, two vectors are N pairs.
            let lanes = lanes(x.dtype, half).min(lanes(x.dtype, head_dim));
            let pairs = tokens * heads * (half / lanes);
            let (count, dim) = per_element(&x.client, pairs);
            // SAFETY: the kernel touches only the pairs that there are, and nobody else holds the buffer of x.
            unsafe {
                kernels::rotate::launch_unchecked(
                    &x.client,
                    count,
                    dim,
                    lanes,
                    buffer(&x),
                    buffer(&cos),
                    buffer(&sin),
                    pairs,
                    heads,
                    head_dim / lanes,
                    half / lanes,
                    if rotation.inverse { -1.0f32 } else { 1.0 },
                    rotation.interleaved,
                    element(x.dtype),
                );
            }
        }
        close(x)
    }
}

mod kernels {
    use cubecl::prelude::*;

    /// Rotates N pairs of one head of one token. Sizes are in vectors.
    #[cube(launch_unchecked)]
    pub(super) fn rotate<F: Float, N: Size>(
        x: &mut [Vector<F, N>],
        cos: &[Vector<f32, N>],
        sin: &[Vector<f32, N>],
        pairs: usize,
        heads: usize,
        head_dim: usize,
        half: usize,
        sign: f32,
        #[comptime] interleaved: bool,
        #[define(F)] _dtype: ElemType,
    ) {
        let index = ABSOLUTE_POS;
        if index >= pairs {
            terminate!();
        }
        let pair = index % half;
        let row = index / half;
        let angle = row / heads * half + pair;
        let cos = cos[angle];
        let sin = sin[angle] * Vector::<f32, N>::new(sign);
        if comptime!(interleaved) {
            let lanes = N::value().comptime();
            let position = row * head_dim + 2 * pair;
            let low = Vector::<f32, N>::cast_from(x[position]);
            let high = Vector::<f32, N>::cast_from(x[position + 1]);
            let first = every_second::<N>(low, high, 0usize);
            let second = every_second::<N>(low, high, 1usize);
            let turned_first = first * cos - second * sin;
            let turned_second = second * cos + first * sin;
            x[position] = Vector::<F, N>::cast_from(merged::<N>(turned_first, turned_second, 0usize));
            x[position + 1] = Vector::<F, N>::cast_from(merged::<N>(turned_first, turned_second, lanes));
        } else {
            let position = row * head_dim + pair;
            let first = Vector::<f32, N>::cast_from(x[position]);
            let second = Vector::<f32, N>::cast_from(x[position + half]);
            x[position] = Vector::<F, N>::cast_from(first * cos - second * sin);
            x[position + half] = Vector::<F, N>::cast_from(second * cos + first * sin);
        }
    }

    /// Of the elements of two vectors one after the other every second one, from `start` on.
    #[cube]
    fn every_second<N: Size>(low: Vector<f32, N>, high: Vector<f32, N>, #[comptime] start: usize) -> Vector<f32, N> {
        let mut result = Vector::<f32, N>::new(0.0f32);
        let size = N::value().comptime();
        #[unroll]
        for lane in 0..size {
            if comptime!(2 * lane + start < size) {
                result.insert(lane, low.extract(comptime!(2 * lane + start)));
            } else {
                result.insert(lane, high.extract(comptime!(2 * lane + start - size)));
            }
        }
        result
    }

    /// Two vectors' elements in turn, N of them from `start` on.
    #[cube]
    fn merged<N: Size>(first: Vector<f32, N>, second: Vector<f32, N>, #[comptime] start: usize) -> Vector<f32, N> {
        let mut result = Vector::<f32, N>::new(0.0f32);
        let size = N::value().comptime();
        #[unroll]
        for lane in 0..size {
            if comptime!((lane + start) % 2 == 0) {
                result.insert(lane, first.extract(comptime!((lane + start) / 2)));
            } else {
                result.insert(lane, second.extract(comptime!((lane + start) / 2)));
            }
        }
        result
    }
}
