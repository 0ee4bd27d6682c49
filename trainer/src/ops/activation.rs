//! Activation functions of feed-forward blocks, alone and as gated linear units (Shazeer, "GLU variants improve
//! Transformer", 2020).

#[cfg(feature = "cube")]
mod cube;
mod loops;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{DType, Tensor, activation};
use rayon::prelude::*;

use super::flex::{ELEMENTS, dense, dimensions, for_each_task, tensor, values, write_all};
use super::has_kernel;

/// The activation functions of the model families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `x Φ(x)` with Φ the distribution function of the standard normal distribution (Hendrycks and Gimpel, 2016): the
    /// exact form, with the error function (`gelu`).
    Gelu,
    /// `x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2` (`gelu_new`, `gelu_pytorch_tanh`, BLOOM's).
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

/// The factor of the argument of [`Activation::GeluTanh`]: √(2/π).
const GELU_FACTOR: f32 = 0.797_884_6;
/// The factor of x³ in the argument of [`Activation::GeluTanh`].
const GELU_CUBIC: f32 = 0.044_715;
/// Beyond this absolute value [`Activation::GeluTanh`] is x or 0 in f32.
const GELU_BOUND: f32 = 12.0;
/// `1 / √(2π)`.
const DENSITY_AT_ZERO: f32 = 0.398_942_3;

/// The activation of each element; x and output `[rows, features]`.
pub fn activate(x: Tensor<2>, activation: Activation) -> Tensor<2> {
    if !has_kernel(&x) {
        return activate_reference(x, activation);
    }
    let x = x.into_dispatch();
    Tensor::from_dispatch(<Dispatch as ActivationOps>::activate_forward(x, activation))
}

/// The same in plain tensor operations; all but the two that are exact in any format in f32, as PyTorch computes them.
pub fn activate_reference(x: Tensor<2>, activation: Activation) -> Tensor<2> {
    let dtype = x.dtype();
    match activation {
        Activation::Silu => activation::silu(x),
        Activation::Relu => activation::relu(x),
        Activation::Gelu => {
            let x = x.cast(DType::F32);
            let erf = (x.clone() * std::f64::consts::FRAC_1_SQRT_2).erf();
            (x * (erf + 1.0) * 0.5).cast(dtype)
        }
        Activation::GeluTanh => activation::gelu_approximate(x.cast(DType::F32)).cast(dtype),
    }
}

/// `activation(gate) * up`; gate, up and output `[rows, features]`.
pub fn gated(gate: Tensor<2>, up: Tensor<2>, activation: Activation) -> Tensor<2> {
    if !has_kernel(&gate) {
        return gated_reference(gate, up, activation);
    }
    let (gate, up) = (gate.into_dispatch(), up.into_dispatch());
    Tensor::from_dispatch(<Dispatch as ActivationOps>::gated_forward(gate, up, activation))
}

/// The same in plain tensor operations.
pub fn gated_reference(gate: Tensor<2>, up: Tensor<2>, activation: Activation) -> Tensor<2> {
    activate_reference(gate, activation) * up
}

/// The activations as operations of a backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub trait ActivationOps: Backend {
    /// The output `[rows, features]`.
    fn activate_forward(x: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self>;

    /// The output `[rows, features]` of the gated unit.
    fn gated_forward(gate: FloatTensor<Self>, up: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self>;
}

/// The activations with a backward pass.
pub trait ActivationBackward: ActivationOps {
    /// The gradient of x, in its buffer where nobody else holds that.
    fn activate_backward(
        gradient: FloatTensor<Self>,
        x: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self>;

    /// The gradients of gate and up, in their buffers where nobody else holds those.
    fn gated_backward(
        gradient: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
    ) -> [FloatTensor<Self>; 2];
}

impl ActivationOps for Flex {
    fn activate_forward(x: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        let x = dense(x);
        let shape = dimensions::<2>(&x);
        let length = shape[0] * shape[1];
        // SAFETY: `activate` writes every element of its part of the output, and the parts cover it.
        let output = unsafe {
            write_all(length, |output| {
                let tasks = output.par_chunks_mut(ELEMENTS).zip(values(&x).par_chunks(ELEMENTS));
                for_each_task(tasks, length, |(output, x)| loops::activate(x, output, activation));
            })
        };
        tensor(output, shape)
    }

    fn gated_forward(gate: FloatTensor<Self>, up: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        let (gate, up) = (dense(gate), dense(up));
        let shape = dimensions::<2>(&gate);
        assert_eq!(shape, dimensions::<2>(&up), "gate and up");
        let length = shape[0] * shape[1];
        let inputs = values(&gate).par_chunks(ELEMENTS).zip(values(&up).par_chunks(ELEMENTS));
        // SAFETY: `gate` writes every element of its part of the output, and the parts cover it.
        let output = unsafe {
            write_all(length, |output| {
                let tasks = output.par_chunks_mut(ELEMENTS).zip(inputs);
                for_each_task(tasks, length, |(output, (gate, up))| {
                    loops::gate(gate, up, output, activation);
                });
            })
        };
        tensor(output, shape)
    }
}

impl ActivationBackward for Flex {
    fn activate_backward(
        gradient: FloatTensor<Self>,
        x: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        let (gradient, mut x) = (dense(gradient), dense(x));
        let gradients = values(&gradient);
        // A buffer that somebody else holds is copied here.
        let tasks = x.storage_mut::<f32>().par_chunks_mut(ELEMENTS);
        for_each_task(
            tasks.zip(gradients.par_chunks(ELEMENTS)),
            gradients.len(),
            |(x, gradient)| loops::differentiate(gradient, x, activation),
        );
        x
    }

    fn gated_backward(
        gradient: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
    ) -> [FloatTensor<Self>; 2] {
        let (gradient, mut gate, mut up) = (dense(gradient), dense(gate), dense(up));
        let gradients = values(&gradient);
        // A buffer that somebody else holds is copied here.
        let (gates, ups) = (gate.storage_mut::<f32>(), up.storage_mut::<f32>());
        let tasks = gates.par_chunks_mut(ELEMENTS).zip(ups.par_chunks_mut(ELEMENTS));
        let tasks = tasks.zip(gradients.par_chunks(ELEMENTS));
        for_each_task(tasks, gradients.len(), |((gate, up), gradient)| {
            loops::differentiate_gate(gradient, gate, up, activation);
        });
        [gate, up]
    }
}

impl<B: ActivationBackward, C: CheckpointStrategy> ActivationOps for Autodiff<B, C> {
    fn activate_forward(x: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct ActivationStep;
        impl<B: ActivationBackward> Backward<B, 1> for ActivationStep {
            type State = (FloatTensor<B>, Activation);

            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
                let gradient = grads.consume::<B>(&ops.node);
                let (x, activation) = ops.state;
                if let [Some(node)] = ops.parents {
                    grads.register::<B>(node.id, B::activate_backward(gradient, x, activation));
                }
            }
        }
        let prepared = ActivationStep.prepare::<C>([x.node()]).compute_bound().stateful();
        let x = x.into_primitive();
        match prepared {
            OpsKind::Tracked(prepared) => {
                let output = B::activate_forward(x.clone(), activation);
                prepared.finish((x, activation), output)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::activate_forward(x, activation)),
        }
    }

    fn gated_forward(gate: FloatTensor<Self>, up: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct GatedStep;
        impl<B: ActivationBackward> Backward<B, 2> for GatedStep {
            type State = (FloatTensor<B>, FloatTensor<B>, Activation);

            fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
                let gradient = grads.consume::<B>(&ops.node);
                let (gate, up, activation) = ops.state;
                let gradients = B::gated_backward(gradient, gate, up, activation);
                for (node, gradient) in ops.parents.into_iter().zip(gradients) {
                    if let Some(node) = node {
                        grads.register::<B>(node.id, gradient);
                    }
                }
            }
        }
        let prepared = GatedStep
            .prepare::<C>([gate.node(), up.node()])
            .compute_bound()
            .stateful();
        let (gate, up) = (gate.into_primitive(), up.into_primitive());
        match prepared {
            OpsKind::Tracked(prepared) => {
                let output = B::gated_forward(gate.clone(), up.clone(), activation);
                prepared.finish((gate, up, activation), output)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::gated_forward(gate, up, activation)),
        }
    }
}

#[cfg(test)]
mod tests;
