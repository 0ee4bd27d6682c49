//! Dropout with a mask that is recomputed, never stored: bit for bit the same whatever the batch shape, the number of
//! processes, or whether the pass is the first one or a recomputation.

#[cfg(feature = "cube")]
mod cube;

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{DType, Tensor, TensorData};
use rayon::prelude::*;

use super::flex::{dense, dimensions, tensor, values};
use super::has_kernel;
use crate::random::{key, mix};

/// Which elements of `[tokens, features]` a dropout keeps.
#[derive(Clone, Debug)]
pub struct Dropout {
    /// One key per token: seed, step, global index of the sample, position.
    pub token_keys: Arc<[u64]>,
    /// Key of the module: layer, module, purpose.
    pub module_key: u64,
    /// Probability of an element to be dropped, in [0, 1).
    pub probability: f32,
}

impl Dropout {
    /// The key of one token: `position` within its sequence, `sample` its index in the whole data set.
    pub fn token_key(seed: u64, step: u64, sample: u64, position: u32) -> u64 {
        key(&[seed, step, sample, u64::from(position)])
    }

    /// `output = input * mask / (1 - probability)`, both `[tokens, features]`. The same call serves forward and
    /// backward pass: the gradient of the input is the gradient of the output under the same mask.
    pub fn apply(&self, input: &[f32], output: &mut [f32], features: usize) {
        let (keep, threshold) = (self.keep(), self.threshold());
        let rows = output
            .par_chunks_mut(features)
            .zip(input.par_chunks(features))
            .zip(self.token_keys.par_iter());
        rows.for_each(|((output, input), token_key)| {
            let row_key = mix(token_key ^ self.module_key);
            for (group, (output, input)) in output.chunks_mut(4).zip(input.chunks(4)).enumerate() {
                let mut word = mix(row_key.wrapping_add(group as u64));
                for (output, input) in output.iter_mut().zip(input) {
                    *output = if word & 0xFFFF >= threshold { input * keep } else { 0.0 };
                    word >>= 16;
                }
            }
        });
    }

    /// What kept elements are multiplied with.
    fn keep(&self) -> f32 {
        1.0 / (1.0 - self.probability)
    }

    /// 16 bits below this drop an element. Four elements share one mixed word, 16 bits each: the probability is exact
    /// to 1/65536.
    fn threshold(&self) -> u64 {
        (f64::from(self.probability) * 65536.0).round() as u64
    }

    /// The factors `mask / (1 - probability)` themselves, `[tokens, features]`, for devices without the kernel.
    pub fn factors(&self, features: usize) -> Vec<f32> {
        let ones = vec![1.0; self.token_keys.len() * features];
        let mut factors = vec![0.0; ones.len()];
        self.apply(&ones, &mut factors, features);
        factors
    }
}

/// `x * mask / (1 - probability)`, `[tokens, features]`.
pub fn dropout(x: Tensor<2>, dropout: &Dropout) -> Tensor<2> {
    if !has_kernel(&x) {
        return dropout_reference(x, dropout);
    }
    let output = <Dispatch as DropoutOps>::dropout_forward(x.into_dispatch(), dropout.clone());
    Tensor::from_dispatch(output)
}

/// The same in plain tensor operations.
pub fn dropout_reference(x: Tensor<2>, dropout: &Dropout) -> Tensor<2> {
    let [tokens, features] = x.dims();
    let factors = TensorData::new(dropout.factors(features), [tokens, features]);
    let factors = Tensor::<2>::from_data(factors, (&x.device().without_autodiff(), DType::F32)).cast(x.dtype());
    x * factors
}

/// Dropout as an operation of a backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub trait DropoutOps: Backend {
    /// The output `[tokens, features]`.
    fn dropout_forward(x: FloatTensor<Self>, dropout: Dropout) -> FloatTensor<Self>;
}

impl DropoutOps for Flex {
    fn dropout_forward(x: FloatTensor<Self>, dropout: Dropout) -> FloatTensor<Self> {
        let x = dense(x);
        let shape = dimensions::<2>(&x);
        let mut output = vec![0.0; shape[0] * shape[1]];
        dropout.apply(values(&x), &mut output, shape[1]);
        tensor(output, shape)
    }
}

impl<B: DropoutOps, C: CheckpointStrategy> DropoutOps for Autodiff<B, C> {
    fn dropout_forward(x: FloatTensor<Self>, dropout: Dropout) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct DropoutStep;
        impl<B: DropoutOps> Backward<B, 1> for DropoutStep {
            type State = Dropout;

            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
                let gradient = grads.consume::<B>(&ops.node);
                if let [Some(node)] = ops.parents {
                    grads.register::<B>(node.id, B::dropout_forward(gradient, ops.state));
                }
            }
        }
        let prepared = DropoutStep.prepare::<C>([x.node()]).compute_bound().stateful();
        let output = B::dropout_forward(x.into_primitive(), dropout.clone());
        match prepared {
            OpsKind::Tracked(prepared) => prepared.finish(dropout, output),
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_equal, random};

    fn dropout(tokens: usize, probability: f32) -> Dropout {
        let token_keys = (0..tokens)
            .map(|token| Dropout::token_key(42, 3, 17, token as u32))
            .collect();
        Dropout {
            token_keys,
            module_key: 5,
            probability,
        }
    }

    #[test]
    fn drops_the_share_it_is_asked_to_and_keeps_the_mean() {
        let factors = dropout(500, 0.25).factors(203);
        let dropped = factors.iter().filter(|factor| **factor == 0.0).count() as f64 / factors.len() as f64;
        let mean = factors.iter().map(|factor| f64::from(*factor)).sum::<f64>() / factors.len() as f64;
        assert!((dropped - 0.25).abs() < 5e-3, "{dropped}");
        assert!((mean - 1.0).abs() < 1e-2, "{mean}");
    }

    #[test]
    fn output_and_gradient_equal_the_reference() {
        let dropout = dropout(9, 0.3);
        let (x, outer) = (random([9, 37]), random([9, 37]));
        let run = |drop_out: fn(Tensor<2>, &Dropout) -> Tensor<2>| {
            let tracked = x.clone().autodiff().require_grad();
            let output = drop_out(tracked.clone(), &dropout);
            let grads = (output.clone() * outer.clone().autodiff()).sum().backward();
            (output.inner(), tracked.grad(&grads).unwrap())
        };
        let (kernel, reference) = (run(super::dropout), run(dropout_reference));
        check_equal(kernel.0, reference.0, 0.0, "output");
        check_equal(kernel.1, reference.1, 0.0, "gradient");
    }

    #[test]
    fn a_token_keeps_its_mask_wherever_it_stands() {
        let all = dropout(10, 0.5);
        let tail = Dropout {
            token_keys: all.token_keys[6..].into(),
            ..all.clone()
        };
        assert_eq!(all.factors(33)[6 * 33..], tail.factors(33));
    }
}
