//! The activations in CubeCL, element by element.

use burn::backend::Cube;
use burn::backend::tensor::FloatTensor;

use super::{Activation, ActivationBackward, ActivationOps};
use crate::ops::cube::{buffer, close, dimensions, element, empty, lanes, open, own, per_element};

impl ActivationOps for Cube {
    fn activate_forward(x: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        let x = open(x);
        let shape = dimensions::<2>(&x);
        let output = empty(&x, shape, x.dtype);
        let elements = shape[0] * shape[1];
        if elements > 0 {
            let lanes = lanes(x.dtype, elements);
            let (count, dim) = per_element(&x.client, elements / lanes);
            // SAFETY: the kernel touches only the elements that there are.
            unsafe {
                kernels::activate::launch_unchecked(
                    &x.client,
                    count,
                    dim,
                    lanes,
                    buffer(&x),
                    buffer(&output),
                    elements / lanes,
                    activation,
                    element(x.dtype),
                );
            }
        }
        close(output)
    }

    fn gated_forward(gate: FloatTensor<Self>, up: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
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
                kernels::gate::launch_unchecked(
                    &gate.client,
                    count,
                    dim,
                    lanes,
                    buffer(&gate),
                    buffer(&up),
                    buffer(&output),
                    elements / lanes,
                    activation,
                    element(gate.dtype),
                );
            }
        }
        close(output)
    }
}

impl ActivationBackward for Cube {
    fn activate_backward(
        gradient: FloatTensor<Self>,
        x: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        let (gradient, x) = (open(gradient), own(open(x)));
        let shape = dimensions::<2>(&x);
        let elements = shape[0] * shape[1];
        if elements > 0 {
            let lanes = lanes(x.dtype, elements);
            let (count, dim) = per_element(&x.client, elements / lanes);
            // SAFETY: the kernel touches only the elements that there are, and nobody else holds the buffer that it
            // overwrites.
            unsafe {
                kernels::differentiate::launch_unchecked(
                    &x.client,
                    count,
                    dim,
                    lanes,
                    buffer(&gradient),
                    buffer(&x),
                    elements / lanes,
                    activation,
                    element(x.dtype),
                );
            }
        }
        close(x)
    }

    fn gated_backward(
        gradient: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
    ) -> [FloatTensor<Self>; 2] {
        let (gradient, gate, up) = (open(gradient), own(open(gate)), own(open(up)));
        let shape = dimensions::<2>(&gate);
        let elements = shape[0] * shape[1];
        if elements > 0 {
            let lanes = lanes(gate.dtype, elements);
            let (count, dim) = per_element(&gate.client, elements / lanes);
            // SAFETY: as above, with two buffers.
            unsafe {
                kernels::differentiate_gate::launch_unchecked(
                    &gate.client,
                    count,
                    dim,
                    lanes,
                    buffer(&gradient),
                    buffer(&gate),
                    buffer(&up),
                    elements / lanes,
                    activation,
                    element(gate.dtype),
                );
            }
        }
        [close(gate), close(up)]
    }
}

mod kernels {
    use cubecl::prelude::*;

    use super::super::{Activation, DENSITY_AT_ZERO, GELU_BOUND, GELU_CUBIC, GELU_FACTOR};
    use crate::ops::vector::NORMAL_TAIL;

    /// Of the polynomial of the normal distribution's tail.
    const DEGREE: usize = NORMAL_TAIL.len() - 1;

    #[cube]
    fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
        let one = Vector::<f32, N>::new(1.0f32);
        let zero = Vector::<f32, N>::new(0.0f32);
        one / (one + Vector::exp(zero - x))
    }

    /// `exp(-x²/2)`.
    #[cube]
    fn density<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
        Vector::exp(x * x * Vector::<f32, N>::new(-0.5f32))
    }

    /// The distribution function of the standard normal distribution, as `vector::normal_distribution`.
    #[cube]
    fn distribution<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
        let one = Vector::<f32, N>::new(1.0f32);
        let t = one / (one + x.abs() * Vector::<f32, N>::new(0.3f32));
        let mut p = Vector::<f32, N>::new(comptime!(NORMAL_TAIL[DEGREE]));
        #[unroll]
        for index in 0..DEGREE {
            p = p * t + Vector::<f32, N>::new(comptime!(NORMAL_TAIL[DEGREE - 1 - index]));
        }
        let tail = density::<N>(x) * t * p;
        let zero = Vector::<f32, N>::new(0.0f32);
        select_many(x.less_than(&zero), tail, one - tail)
    }

    /// x within the bound beyond which the sigmoid in [`Activation::GeluTanh`] is 0 or 1.
    #[cube]
    fn within_bound<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
        let low = Vector::<f32, N>::new(-GELU_BOUND);
        let high = Vector::<f32, N>::new(GELU_BOUND);
        let raised = select_many(x.less_than(&low), low, x);
        select_many(high.less_than(&raised), high, raised)
    }

    /// `(1 + tanh(u)) / 2` as the sigmoid of 2u; x lies within the bound.
    #[cube]
    fn gelu_tanh_sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
        let cubic = x * x * Vector::<f32, N>::new(GELU_CUBIC);
        let argument = x * (Vector::<f32, N>::new(1.0f32) + cubic);
        sigmoid::<N>(argument * Vector::<f32, N>::new(comptime!(2.0 * GELU_FACTOR)))
    }

    /// The activation.
    #[cube]
    fn value<N: Size>(x: Vector<f32, N>, #[comptime] activation: Activation) -> Vector<f32, N> {
        if comptime!(activation == Activation::Silu) {
            x * sigmoid::<N>(x)
        } else if comptime!(activation == Activation::Gelu) {
            x * distribution::<N>(x)
        } else if comptime!(activation == Activation::GeluTanh) {
            x * gelu_tanh_sigmoid::<N>(within_bound::<N>(x))
        } else {
            let zero = Vector::<f32, N>::new(0.0f32);
            select_many(x.less_than(&zero), zero, x)
        }
    }

    /// Its derivative; the formulas are those of the CPU kernel.
    #[cube]
    fn slope<N: Size>(x: Vector<f32, N>, #[comptime] activation: Activation) -> Vector<f32, N> {
        let one = Vector::<f32, N>::new(1.0f32);
        if comptime!(activation == Activation::Silu) {
            let sigmoid = sigmoid::<N>(x);
            sigmoid * (one + x * (one - sigmoid))
        } else if comptime!(activation == Activation::Gelu) {
            distribution::<N>(x) + x * density::<N>(x) * Vector::<f32, N>::new(DENSITY_AT_ZERO)
        } else if comptime!(activation == Activation::GeluTanh) {
            let bounded = within_bound::<N>(x);
            let sigmoid = gelu_tanh_sigmoid::<N>(bounded);
            let cubic = bounded * bounded * Vector::<f32, N>::new(comptime!(3.0 * GELU_CUBIC));
            let inner = (one + cubic) * Vector::<f32, N>::new(comptime!(2.0 * GELU_FACTOR));
            sigmoid + x * sigmoid * (one - sigmoid) * inner
        } else {
            let zero = Vector::<f32, N>::new(0.0f32);
            select_many(zero.less_than(&x), one, zero)
        }
    }

    /// The activation of each element.
    #[cube(launch_unchecked)]
    pub(super) fn activate<F: Float, N: Size>(
        x: &[Vector<F, N>],
        output: &mut [Vector<F, N>],
        vectors: usize,
        #[comptime] activation: Activation,
        #[define(F)] _dtype: ElemType,
    ) {
        let index = ABSOLUTE_POS;
        if index >= vectors {
            terminate!();
        }
        let x = Vector::<f32, N>::cast_from(x[index]);
        output[index] = Vector::<F, N>::cast_from(value::<N>(x, activation));
    }

    /// x becomes its gradient.
    #[cube(launch_unchecked)]
    pub(super) fn differentiate<F: Float, N: Size>(
        gradient: &[Vector<F, N>],
        x: &mut [Vector<F, N>],
        vectors: usize,
        #[comptime] activation: Activation,
        #[define(F)] _dtype: ElemType,
    ) {
        let index = ABSOLUTE_POS;
        if index >= vectors {
            terminate!();
        }
        let gradient = Vector::<f32, N>::cast_from(gradient[index]);
        let at = Vector::<f32, N>::cast_from(x[index]);
        x[index] = Vector::<F, N>::cast_from(gradient * slope::<N>(at, activation));
    }

    /// `activation(gate) * up`.
    #[cube(launch_unchecked)]
    pub(super) fn gate<F: Float, N: Size>(
        gate: &[Vector<F, N>],
        up: &[Vector<F, N>],
        output: &mut [Vector<F, N>],
        vectors: usize,
        #[comptime] activation: Activation,
        #[define(F)] _dtype: ElemType,
    ) {
        let index = ABSOLUTE_POS;
        if index >= vectors {
            terminate!();
        }
        let x = Vector::<f32, N>::cast_from(gate[index]);
        let up = Vector::<f32, N>::cast_from(up[index]);
        output[index] = Vector::<F, N>::cast_from(value::<N>(x, activation) * up);
    }

    /// gate and up become their gradients.
    #[cube(launch_unchecked)]
    pub(super) fn differentiate_gate<F: Float, N: Size>(
        gradient: &[Vector<F, N>],
        gate: &mut [Vector<F, N>],
        up: &mut [Vector<F, N>],
        vectors: usize,
        #[comptime] activation: Activation,
        #[define(F)] _dtype: ElemType,
    ) {
        let index = ABSOLUTE_POS;
        if index >= vectors {
            terminate!();
        }
        let gradient = Vector::<f32, N>::cast_from(gradient[index]);
        let x = Vector::<f32, N>::cast_from(gate[index]);
        let other = Vector::<f32, N>::cast_from(up[index]);
        gate[index] = Vector::<F, N>::cast_from(gradient * other * slope::<N>(x, activation));
        up[index] = Vector::<F, N>::cast_from(gradient * value::<N>(x, activation));
    }
}
