//! The rotation in CubeCL, pair by pair and in place.

use burn::backend::Cube;
use burn::backend::tensor::FloatTensor;
use burn::tensor::DType;

use super::RotaryOps;
use crate::ops::cube::{buffer, close, dimensions, element, lanes, open, own, per_element};

impl RotaryOps for Cube {
    fn rotary_forward(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        inverse: bool,
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
            // Both halves of a head and its end have to start at a whole vector.
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
                    if inverse { -1.0f32 } else { 1.0 },
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
    pub fn rotate<F: Float, N: Size>(
        x: &mut [Vector<F, N>],
        cos: &[Vector<f32, N>],
        sin: &[Vector<f32, N>],
        pairs: usize,
        heads: usize,
        head_dim: usize,
        half: usize,
        sign: f32,
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
        let position = row * head_dim + pair;
        let first = Vector::<f32, N>::cast_from(x[position]);
        let second = Vector::<f32, N>::cast_from(x[position + half]);
        x[position] = Vector::<F, N>::cast_from(first * cos - second * sin);
        x[position + half] = Vector::<F, N>::cast_from(second * cos + first * sin);
    }
}
