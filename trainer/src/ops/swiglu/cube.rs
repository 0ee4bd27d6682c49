//! The unit in CubeCL, element by element.

use burn::backend::Cube;
use burn::backend::tensor::FloatTensor;

use super::{SwigluBackward, SwigluOps};
use crate::ops::cube::{buffer, close, dimensions, element, empty, lanes, open, own, per_element};

impl SwigluOps for Cube {
    fn swiglu_forward(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let (gate, up) = (open(gate), open(up));
        let shape = dimensions::<2>(&gate);
        assert_eq!((shape, gate.dtype), (dimensions::<2>(&up), up.dtype), "gate and up");
        let output = empty(&gate, shape, gate.dtype);
        let elements = shape[0] * shape[1];
        if elements > 0 {
            let lanes = lanes(gate.dtype, elements);
            let (count, dim) = per_element(&gate.client, elements / lanes);
            // SAFETY: the kernel touches only the elements that there are.
            unsafe {
                kernels::forward::launch_unchecked(
                    &gate.client,
                    count,
                    dim,
                    lanes,
                    buffer(&gate),
                    buffer(&up),
                    buffer(&output),
                    elements / lanes,
                    element(gate.dtype),
                );
            }
        }
        close(output)
    }
}

impl SwigluBackward for Cube {
    fn swiglu_backward(
        gradient: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2] {
        let (gradient, gate, up) = (open(gradient), own(open(gate)), own(open(up)));
        let shape = dimensions::<2>(&gate);
        let elements = shape[0] * shape[1];
        if elements > 0 {
            let lanes = lanes(gate.dtype, elements);
            let (count, dim) = per_element(&gate.client, elements / lanes);
            // SAFETY: the kernel touches only the elements that there are, and nobody else holds the two buffers that
            // it overwrites.
            unsafe {
                kernels::backward::launch_unchecked(
                    &gate.client,
                    count,
                    dim,
                    lanes,
                    buffer(&gradient),
                    buffer(&gate),
                    buffer(&up),
                    elements / lanes,
                    element(gate.dtype),
                );
            }
        }
        [close(gate), close(up)]
    }
}

mod kernels {
    use cubecl::prelude::*;

    #[cube]
    fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
        let one = Vector::<f32, N>::new(1.0f32);
        let zero = Vector::<f32, N>::new(0.0f32);
        one / (one + Vector::exp(zero - x))
    }

    /// `silu(gate) * up`.
    #[cube(launch_unchecked)]
    pub fn forward<F: Float, N: Size>(
        gate: &[Vector<F, N>],
        up: &[Vector<F, N>],
        output: &mut [Vector<F, N>],
        vectors: usize,
        #[define(F)] _dtype: ElemType,
    ) {
        let index = ABSOLUTE_POS;
        if index >= vectors {
            terminate!();
        }
        let x = Vector::<f32, N>::cast_from(gate[index]);
        let up = Vector::<f32, N>::cast_from(up[index]);
        output[index] = Vector::<F, N>::cast_from(x * sigmoid::<N>(x) * up);
    }

    /// gate and up become their gradients: with s the sigmoid of the gate x, `g up s (1 + x (1 - s))` and `g x s`.
    #[cube(launch_unchecked)]
    pub fn backward<F: Float, N: Size>(
        gradient: &[Vector<F, N>],
        gate: &mut [Vector<F, N>],
        up: &mut [Vector<F, N>],
        vectors: usize,
        #[define(F)] _dtype: ElemType,
    ) {
        let index = ABSOLUTE_POS;
        if index >= vectors {
            terminate!();
        }
        let one = Vector::<f32, N>::new(1.0f32);
        let gradient = Vector::<f32, N>::cast_from(gradient[index]);
        let x = Vector::<f32, N>::cast_from(gate[index]);
        let other = Vector::<f32, N>::cast_from(up[index]);
        let sigmoid = sigmoid::<N>(x);
        let for_gate = gradient * other * sigmoid * (one + x * (one - sigmoid));
        let for_up = gradient * x * sigmoid;
        gate[index] = Vector::<F, N>::cast_from(for_gate);
        up[index] = Vector::<F, N>::cast_from(for_up);
    }
}
