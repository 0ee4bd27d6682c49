//! Starts a backward pass in the middle of a network: a part's graph gets the gradient of its output from the part
//! above, without the multiplication and the sum that `(output * gradient).sum()` costs.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients as AutodiffGradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{Gradients, Tensor, TensorData};

use super::has_kernel;

/// Gradients of all leaves below `output` `[rows, columns]`, given the gradient of `output` (same shape, untracked).
pub fn backward_from(output: Tensor<2>, gradient: Tensor<2>) -> Gradients {
    if !has_kernel(&output) {
        return (output * gradient).sum().backward();
    }
    let root = <Dispatch as SeedOps>::seed_gradient(output.into_dispatch(), gradient.into_dispatch());
    Tensor::<1>::from_dispatch(root).backward()
}

/// The root of such a backward pass as an operation of a backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub trait SeedOps: Backend {
    /// A scalar without meaning whose backward pass gives `output` its gradient.
    fn seed_gradient(output: FloatTensor<Self>, gradient: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl SeedOps for Flex {
    fn seed_gradient(_output: FloatTensor<Self>, _gradient: FloatTensor<Self>) -> FloatTensor<Self> {
        FlexTensor::from_data(TensorData::new(vec![0.0f32], [1]))
    }
}

#[cfg(feature = "cube")]
impl SeedOps for burn::backend::Cube {
    fn seed_gradient(output: FloatTensor<Self>, _gradient: FloatTensor<Self>) -> FloatTensor<Self> {
        use burn::backend::TensorMetadata;
        use burn::backend::ops::FloatTensorOps;

        Self::float_zeros([1].into(), &output.device(), output.dtype().into())
    }
}

impl<B: SeedOps, C: CheckpointStrategy> SeedOps for Autodiff<B, C> {
    fn seed_gradient(output: FloatTensor<Self>, gradient: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Seed;
        impl<B: SeedOps> Backward<B, 1> for Seed {
            type State = FloatTensor<B>;

            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut AutodiffGradients,
                _checkpointer: &mut Checkpointer,
            ) {
                grads.consume::<B>(&ops.node);
                if let [Some(node)] = ops.parents {
                    grads.register::<B>(node.id, ops.state);
                }
            }
        }
        let gradient = gradient.into_primitive();
        let prepared = Seed.prepare::<C>([output.node()]).compute_bound().stateful();
        let root = B::seed_gradient(output.into_primitive(), gradient.clone());
        match prepared {
            OpsKind::Tracked(prepared) => prepared.finish(gradient, root),
            OpsKind::UnTracked(prepared) => prepared.finish(root),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn equals_the_sum_of_the_product() {
        let device = Device::flex();
        let x = Tensor::<2>::from_floats([[1.0, -2.0], [0.5, 3.0]], &device)
            .autodiff()
            .require_grad();
        let gradient = Tensor::<2>::from_floats([[0.1, 0.2], [-0.3, 0.4]], &device);
        let seeded = x.grad(&backward_from(x.clone().powi_scalar(2), gradient.clone()));
        let expected = x.grad(&(x.clone().powi_scalar(2) * gradient.autodiff()).sum().backward());
        let (seeded, expected) = (seeded.unwrap().into_data(), expected.unwrap().into_data());
        seeded.assert_eq(&expected, true);
    }
}
