//! The gated linear unit of Llama's feed-forward block (Shazeer, "GLU variants improve Transformer", 2020).

#[cfg(feature = "cube")]
mod cube;

use std::mem::MaybeUninit;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{Tensor, activation};
use multiversion::multiversion;
use rayon::prelude::*;

use super::flex::{ELEMENTS, dense, dimensions, for_each_task, tensor, values, write_all};
use super::{has_kernel, vector};

/// `silu(gate) * up` with `silu(x) = x / (1 + exp(-x))`; gate, up and output `[rows, features]`.
pub fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    if !has_kernel(&gate) {
        return swiglu_reference(gate, up);
    }
    Tensor::from_dispatch(<Dispatch as SwigluOps>::swiglu_forward(
        gate.into_dispatch(),
        up.into_dispatch(),
    ))
}

/// The same in plain tensor operations.
pub fn swiglu_reference(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    activation::silu(gate) * up
}

/// The unit as an operation of a backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub trait SwigluOps: Backend {
    /// The output `[rows, features]`.
    fn swiglu_forward(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// The unit with a backward pass.
pub trait SwigluBackward: SwigluOps {
    /// The gradients of gate and up, in the buffers of gate and up where nobody else holds those.
    fn swiglu_backward(
        gradient: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2];
}

impl SwigluOps for Flex {
    fn swiglu_forward(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let (gate, up) = (dense(gate), dense(up));
        let shape = dimensions::<2>(&gate);
        assert_eq!(shape, dimensions::<2>(&up), "gate and up");
        let length = shape[0] * shape[1];
        let inputs = values(&gate).par_chunks(ELEMENTS).zip(values(&up).par_chunks(ELEMENTS));
        // SAFETY: `forward` writes every element of its part of the output, and the parts cover it.
        let output = unsafe {
            write_all(length, |output| {
                let tasks = output.par_chunks_mut(ELEMENTS).zip(inputs);
                for_each_task(tasks, length, |(output, (gate, up))| forward(gate, up, output));
            })
        };
        tensor(output, shape)
    }
}

impl SwigluBackward for Flex {
    fn swiglu_backward(
        gradient: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2] {
        let (gradient, mut gate, mut up) = (dense(gradient), dense(gate), dense(up));
        let gradients = values(&gradient);
        // A buffer that somebody else holds is copied here.
        let (gates, ups) = (gate.storage_mut::<f32>(), up.storage_mut::<f32>());
        let tasks = gates.par_chunks_mut(ELEMENTS).zip(ups.par_chunks_mut(ELEMENTS));
        let tasks = tasks.zip(gradients.par_chunks(ELEMENTS));
        for_each_task(tasks, gradients.len(), |((gate, up), gradient)| {
            backward(gradient, gate, up)
        });
        [gate, up]
    }
}

/// `silu(gate) * up`.
#[multiversion(targets = "simd")]
fn forward(gate: &[f32], up: &[f32], output: &mut [MaybeUninit<f32>]) {
    for ((gate, up), output) in gate.iter().zip(up).zip(output) {
        output.write(gate * vector::sigmoid(*gate) * up);
    }
}

/// gate and up become their gradients: with s the sigmoid of the gate x, `g up s (1 + x (1 - s))` and `g x s`.
#[multiversion(targets = "simd")]
fn backward(gradient: &[f32], gate: &mut [f32], up: &mut [f32]) {
    for ((gradient, gate), up) in gradient.iter().zip(gate).zip(up) {
        let (x, sigmoid) = (*gate, vector::sigmoid(*gate));
        *gate = gradient * *up * sigmoid * (1.0 + x * (1.0 - sigmoid));
        *up = gradient * x * sigmoid;
    }
}

impl<B: SwigluBackward, C: CheckpointStrategy> SwigluOps for Autodiff<B, C> {
    fn swiglu_forward(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct SwigluStep;
        impl<B: SwigluBackward> Backward<B, 2> for SwigluStep {
            type State = (FloatTensor<B>, FloatTensor<B>);

            fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
                let gradient = grads.consume::<B>(&ops.node);
                let (gate, up) = ops.state;
                let gradients = B::swiglu_backward(gradient, gate, up);
                for (node, gradient) in ops.parents.into_iter().zip(gradients) {
                    if let Some(node) = node {
                        grads.register::<B>(node.id, gradient);
                    }
                }
            }
        }
        let prepared = SwigluStep
            .prepare::<C>([gate.node(), up.node()])
            .compute_bound()
            .stateful();
        let (gate, up) = (gate.into_primitive(), up.into_primitive());
        match prepared {
            OpsKind::Tracked(prepared) => {
                let output = B::swiglu_forward(gate.clone(), up.clone());
                prepared.finish((gate, up), output)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::swiglu_forward(gate, up)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_equal, random};

    fn run(gate: &Tensor<2>, up: &Tensor<2>, outer: &Tensor<2>, reference: bool) -> [Tensor<2>; 3] {
        let (gate, up) = (
            gate.clone().autodiff().require_grad(),
            up.clone().autodiff().require_grad(),
        );
        let unit = if reference { swiglu_reference } else { swiglu };
        let output = unit(gate.clone(), up.clone());
        let grads = (output.clone() * outer.clone().autodiff()).sum().backward();
        [output.inner(), gate.grad(&grads).unwrap(), up.grad(&grads).unwrap()]
    }

    #[test]
    fn output_and_gradients_equal_the_reference() {
        for shape in [[1, 1], [3, 5], [17, 33], [64, 1408], [700, 129]] {
            let (gate, up, outer) = (random(shape) * 4.0, random(shape), random(shape));
            let kernel = run(&gate, &up, &outer, false);
            let reference = run(&gate, &up, &outer, true);
            for (name, (kernel, reference)) in ["output", "gate", "up"].iter().zip(kernel.into_iter().zip(reference)) {
                check_equal(kernel, reference, 2e-6, name);
            }
        }
    }

    #[test]
    fn extreme_gates_saturate() {
        let gate = Tensor::<2>::from_data([[-200.0, -90.0, 90.0, 200.0, 0.0]], &burn::tensor::Device::flex());
        let up = gate.ones_like();
        let [output, gate_gradient, up_gradient] = run(&gate, &up, &up, false);
        let close = |computed: Tensor<2>, expected: [f32; 5]| {
            let expected = Tensor::<2>::from_data([expected], &burn::tensor::Device::flex());
            check_equal(computed, expected, 1e-6, "saturated");
        };
        close(output, [0.0, 0.0, 90.0, 200.0, 0.0]);
        close(gate_gradient, [0.0, 0.0, 1.0, 1.0, 0.5]);
        close(up_gradient, [0.0, 0.0, 90.0, 200.0, 0.0]);
    }

    #[test]
    fn the_inputs_are_left_alone() {
        let (gate, up) = (random([40, 30]), random([40, 30]));
        let before = (gate.clone().into_data(), up.clone().into_data());
        run(&gate, &up, &up, false);
        gate.into_data().assert_eq(&before.0, true);
        up.into_data().assert_eq(&before.1, true);
    }
}
