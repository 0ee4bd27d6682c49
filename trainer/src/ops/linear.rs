//! `y = x Wᵀ + bias + s · dropout(x) Aᵀ Bᵀ`: a linear layer, with a low-rank adapter (LoRA, Hu et al., 2021, equation 3)
//! or without, as one operation.
//!
//! Shapes: x `[tokens, in]`, W `[out, in]` (Hugging Face's layout), A `[rank, in]`, B `[out, rank]`. The dense sum
//! `W + s B A` and its gradient are never formed; the pass through the adapter accumulates into the output of the base.

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{DType, Tensor};
use interlingua_checkpoints::packed::Packed;

use super::dequantize::packed_linear;
use super::dropout::{Dropout, dropout, dropout_reference};
use super::flex::{dense, plain, tensor};
use super::matrix::{Matrix, multiplied, multiply};
use super::runs_on_flex;
use super::weight::{self, OnDevice, Weight};

/// A low-rank adapter of a linear layer.
#[derive(Clone)]
pub struct LowRank {
    /// `[rank, in]`.
    pub a: Tensor<2>,
    /// `[out, rank]`.
    pub b: Tensor<2>,
    /// What the product is multiplied with: alpha / rank, or alpha / √rank for rsLoRA.
    pub scale: f32,
    /// Dropout on the adapter's input.
    pub dropout: Option<Dropout>,
}

/// `x Wᵀ + bias + s · dropout(x) Aᵀ Bᵀ`, `[tokens, out]`. All operands share one dtype; a packed weight is decoded here, and
/// again in the backward pass.
pub fn linear(x: Tensor<2>, weight: impl Into<Weight>, bias: Option<Tensor<1>>, adapter: Option<LowRank>) -> Tensor<2> {
    let weight = weight.into();
    if !runs_on_flex(&x) {
        return match weight.here(x.dtype()) {
            OnDevice::Dense(weight) => linear_of_parts(x, weight, bias, adapter, dropout),
            OnDevice::Packed(weight) => {
                let output = packed_linear(x.clone(), &weight, bias);
                adapted(output, x, adapter, dropout)
            }
        };
    }
    let (weight, packed) = match weight {
        Weight::Dense(weight) => (Some(weight), None),
        Weight::Packed(weight) => match weight.on_host() {
            Some(packed) => (None, Some(packed)),
            None => (Some(weight.dense(DType::F32)), None),
        },
    };
    let options = LinearOptions {
        packed,
        has_bias: bias.is_some(),
        has_adapter: adapter.is_some(),
        scale: adapter.as_ref().map_or(0.0, |adapter| adapter.scale),
        dropout: adapter.as_ref().and_then(|adapter| adapter.dropout.clone()),
    };
    let x = x.into_dispatch();
    // An operand that is absent is represented by the input; the options above say so.
    let bias = bias.map_or_else(|| x.clone(), Tensor::into_dispatch);
    let (a, b) = match adapter {
        Some(LowRank { a, b, .. }) => (a.into_dispatch(), b.into_dispatch()),
        None => (x.clone(), x.clone()),
    };
    let weight = weight.map_or_else(|| x.clone(), Tensor::into_dispatch);
    Tensor::from_dispatch(<Dispatch as LinearOps>::linear_forward(x, weight, bias, a, b, options))
}

/// The same in plain tensor operations: the definition, and what runs on devices without a kernel.
pub fn linear_reference(
    x: Tensor<2>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    adapter: Option<LowRank>,
) -> Tensor<2> {
    linear_of_parts(x, weight, bias, adapter, dropout_reference)
}

/// The products and sums one by one.
fn linear_of_parts(
    x: Tensor<2>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    adapter: Option<LowRank>,
    drop_out: fn(Tensor<2>, &Dropout) -> Tensor<2>,
) -> Tensor<2> {
    let mut output = x.clone().matmul(weight.transpose());
    if let Some(bias) = bias {
        output = output + bias.unsqueeze::<2>();
    }
    adapted(output, x, adapter, drop_out)
}

/// The base's output with what the adapter adds.
fn adapted(
    output: Tensor<2>,
    x: Tensor<2>,
    adapter: Option<LowRank>,
    drop_out: fn(Tensor<2>, &Dropout) -> Tensor<2>,
) -> Tensor<2> {
    let Some(LowRank { a, b, scale, dropout }) = adapter else {
        return output;
    };
    let x = match dropout {
        Some(dropout) => drop_out(x, &dropout),
        None => x,
    };
    output + x.matmul(a.transpose()).matmul(b.transpose()) * scale
}

/// `g W`, `[tokens, in]`: what the gradient g `[tokens, out]` of the output makes of the input, without a graph.
pub fn input_gradient(gradient: Tensor<2>, weight: &Weight) -> Tensor<2> {
    let packed = match weight {
        Weight::Packed(weight) if runs_on_flex(&gradient) => weight.on_host(),
        _ => None,
    };
    let dtype = gradient.dtype();
    match (packed, plain(gradient)) {
        (Some(packed), Ok(gradient)) => {
            let (view, tokens, _) = matrix(&gradient);
            let values = weight::input_gradient(view, &packed);
            Tensor::from_primitive::<Flex>(tensor(values, [tokens, packed.shape()[1]]))
        }
        (_, Ok(gradient)) => Tensor::from_primitive::<Flex>(gradient).matmul(weight.dense(dtype)),
        (_, Err(gradient)) => gradient.matmul(weight.dense(dtype)),
    }
}

/// What the operation knows besides its tensors.
#[derive(Clone, Debug)]
pub struct LinearOptions {
    /// The weight, where it is packed.
    packed: Option<Arc<Packed>>,
    has_bias: bool,
    has_adapter: bool,
    scale: f32,
    dropout: Option<Dropout>,
}

/// Which gradients a backward pass needs.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    input: bool,
    weight: bool,
    bias: bool,
    adapter: bool,
}

/// Gradients of input, weight, bias, A and B, where wanted.
type LinearGradients<B> = (
    Option<FloatTensor<B>>,
    Option<FloatTensor<B>>,
    Option<FloatTensor<B>>,
    Option<FloatTensor<B>>,
    Option<FloatTensor<B>>,
);

/// The linear layer as an operation of a backend.
#[backend_extension(Flex, Autodiff)]
pub trait LinearOps: Backend {
    /// The output `[tokens, out]`.
    fn linear_forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        options: LinearOptions,
    ) -> FloatTensor<Self>;
}

/// The two passes of a backend that has both.
pub trait LinearBackward: LinearOps {
    /// The output `[tokens, out]`, and the low-rank activations `dropout(x) Aᵀ` `[tokens, rank]` for the backward pass.
    fn linear_forward_keeping(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        options: &LinearOptions,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>);

    /// The gradients that are wanted, out of the gradient of the output.
    fn linear_backward(
        gradient: FloatTensor<Self>,
        saved: Saved<Self>,
        options: &LinearOptions,
        wanted: Wanted,
    ) -> LinearGradients<Self>;
}

/// What the backward pass keeps; the input only when a gradient needs it.
#[derive(Clone, Debug)]
pub struct Saved<B: Backend> {
    x: Option<FloatTensor<B>>,
    weight: Option<FloatTensor<B>>,
    adapter: Option<(FloatTensor<B>, FloatTensor<B>)>,
    low: Option<FloatTensor<B>>,
}

fn matrix(tensor: &FlexTensor) -> (Matrix<'_>, usize, usize) {
    let shape = tensor.layout().shape();
    let (rows, columns) = (shape[0], shape[1]);
    (Matrix::new(tensor.storage::<f32>(), rows, columns), rows, columns)
}

/// The adapter's input after dropout; borrowed where there is none.
fn dropped<'a>(x: &'a FlexTensor, options: &LinearOptions, buffer: &'a mut Vec<f32>) -> Matrix<'a> {
    let (view, rows, columns) = matrix(x);
    match &options.dropout {
        None => view,
        Some(dropout) => {
            buffer.resize(rows * columns, 0.0);
            dropout.apply(x.storage::<f32>(), buffer, columns);
            Matrix::new(buffer, rows, columns)
        }
    }
}

impl LinearOps for Flex {
    fn linear_forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        options: LinearOptions,
    ) -> FloatTensor<Self> {
        Self::linear_forward_keeping(x, weight, bias, a, b, &options).0
    }
}

impl LinearBackward for Flex {
    fn linear_forward_keeping(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        options: &LinearOptions,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        // The weight of a packed layer is the input itself here.
        let weight = options.packed.is_none().then(|| dense(weight));
        let x = dense(x);
        let (x_view, tokens, _) = matrix(&x);
        let weight = weight.as_ref().map(|weight| matrix(weight).0);
        let features = options.packed.as_ref().map_or(0, |packed| packed.shape()[0]);
        let features = weight.map_or(features, |weight| weight.rows());
        let mut values = match (&options.packed, weight) {
            (Some(packed), _) => weight::product(x_view, packed),
            (None, Some(weight)) => multiplied(x_view, weight.transposed(), 1.0),
            (None, None) => Vec::new(),
        };
        if options.has_bias {
            let bias = dense(bias);
            let bias = bias.storage::<f32>();
            values
                .chunks_mut(features)
                .for_each(|row| row.iter_mut().zip(bias).for_each(|(sum, value)| *sum += value));
        }
        let low = options.has_adapter.then(|| {
            let (a, b) = (dense(a), dense(b));
            let (a_view, rank, _) = matrix(&a);
            let mut buffer = Vec::new();
            let low = multiplied(dropped(&x, options, &mut buffer), a_view.transposed(), 1.0);
            multiply(
                &mut values,
                Matrix::new(&low, tokens, rank),
                matrix(&b).0.transposed(),
                options.scale,
                true,
            );
            tensor(low, [tokens, rank])
        });
        (tensor(values, [tokens, features]), low)
    }

    fn linear_backward(
        gradient: FloatTensor<Self>,
        saved: Saved<Self>,
        options: &LinearOptions,
        wanted: Wanted,
    ) -> LinearGradients<Self> {
        let gradient = dense(gradient);
        let (gradient_view, tokens, features) = matrix(&gradient);
        let weight = saved.weight.map(dense);
        let weight = weight.as_ref().map(|weight| matrix(weight).0);
        let x = saved.x.map(dense);
        let inputs = options.packed.as_ref().map_or(0, |packed| packed.shape()[1]);
        let inputs = weight.map_or(inputs, |weight| weight.columns());

        let mut input_gradient = match (&options.packed, weight) {
            (Some(packed), _) if wanted.input => Some(weight::input_gradient(gradient_view, packed)),
            (None, Some(weight)) if wanted.input => Some(multiplied(gradient_view, weight, 1.0)),
            _ => None,
        };
        let (mut a_gradient, mut b_gradient) = (None, None);
        if let Some((a, b)) = saved.adapter {
            let (a, b) = (dense(a), dense(b));
            let (a_view, rank, _) = matrix(&a);
            // Gradient of the low-rank activations: s · g B, [tokens, rank].
            let low_gradient = multiplied(gradient_view, matrix(&b).0, options.scale);
            let low_gradient = Matrix::new(&low_gradient, tokens, rank);
            if let Some(output) = &mut input_gradient {
                match &options.dropout {
                    None => multiply(output, low_gradient, a_view, 1.0, true),
                    Some(dropout) => {
                        let path = multiplied(low_gradient, a_view, 1.0);
                        let mut masked = vec![0.0; path.len()];
                        dropout.apply(&path, &mut masked, inputs);
                        output.iter_mut().zip(&masked).for_each(|(sum, value)| *sum += value);
                    }
                }
            }
            if let (true, Some(x), Some(low)) = (wanted.adapter, &x, saved.low) {
                let mut buffer = Vec::new();
                let x_view = dropped(x, options, &mut buffer);
                a_gradient = Some(tensor(
                    multiplied(low_gradient.transposed(), x_view, 1.0),
                    [rank, inputs],
                ));
                let values = multiplied(gradient_view.transposed(), matrix(&low).0, options.scale);
                b_gradient = Some(tensor(values, [features, rank]));
            }
        }
        let weight_gradient = match (wanted.weight, &x) {
            (true, Some(x)) => Some(tensor(
                multiplied(gradient_view.transposed(), matrix(x).0, 1.0),
                [features, inputs],
            )),
            _ => None,
        };
        let bias_gradient = wanted.bias.then(|| {
            let mut sums = vec![0.0; features];
            for row in gradient.storage::<f32>().chunks(features) {
                sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
            tensor(sums, [features])
        });
        let input_gradient = input_gradient.map(|values| tensor(values, [tokens, inputs]));
        (input_gradient, weight_gradient, bias_gradient, a_gradient, b_gradient)
    }
}

impl<B: LinearBackward, C: CheckpointStrategy> LinearOps for Autodiff<B, C> {
    fn linear_forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        options: LinearOptions,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct LinearStep;
        impl<B: LinearBackward> Backward<B, 5> for LinearStep {
            type State = (Saved<B>, LinearOptions);

            fn backward(self, ops: Ops<Self::State, 5>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
                let gradient = grads.consume::<B>(&ops.node);
                let (saved, options) = ops.state;
                let [x, weight, bias, a, b] = ops.parents;
                let weight = weight.filter(|_| options.packed.is_none());
                let bias = bias.filter(|_| options.has_bias);
                let (a, b) = (a.filter(|_| options.has_adapter), b.filter(|_| options.has_adapter));
                let wanted = Wanted {
                    input: x.is_some(),
                    weight: weight.is_some(),
                    bias: bias.is_some(),
                    adapter: a.is_some() || b.is_some(),
                };
                let gradients = B::linear_backward(gradient, saved, &options, wanted);
                let (for_x, for_weight, for_bias, for_a, for_b) = gradients;
                let nodes = [x, weight, bias, a, b];
                for (node, gradient) in nodes.into_iter().zip([for_x, for_weight, for_bias, for_a, for_b]) {
                    if let (Some(node), Some(gradient)) = (node, gradient) {
                        grads.register::<B>(node.id, gradient);
                    }
                }
            }
        }
        let trains_weight = options.packed.is_none() && weight.is_tracked();
        let keeps_input = trains_weight || (options.has_adapter && (a.is_tracked() || b.is_tracked()));
        let nodes = [x.node(), weight.node(), bias.node(), a.node(), b.node()];
        let prepared = LinearStep.prepare::<C>(nodes).compute_bound().stateful();
        let (x, weight, bias) = (x.into_primitive(), weight.into_primitive(), bias.into_primitive());
        let (a, b) = (a.into_primitive(), b.into_primitive());
        match prepared {
            OpsKind::Tracked(prepared) => {
                let kept_x = keeps_input.then(|| x.clone());
                let kept_weight = options.packed.is_none().then(|| weight.clone());
                let adapter = options.has_adapter.then(|| (a.clone(), b.clone()));
                let (output, low) = B::linear_forward_keeping(x, weight, bias, a, b, &options);
                let saved = Saved {
                    x: kept_x,
                    weight: kept_weight,
                    adapter,
                    low,
                };
                prepared.finish((saved, options), output)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::linear_forward(x, weight, bias, a, b, options)),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution, TensorData};

    use super::*;
    use crate::ops::weight::PackedWeight;

    /// Output and gradients of x, W, bias, A, B under a random output gradient.
    fn run(
        operation: impl Fn(Tensor<2>, Tensor<2>, Option<Tensor<1>>, Option<LowRank>) -> Tensor<2>,
        [tokens, inputs, outputs, rank]: [usize; 4],
        dropout: Option<Dropout>,
        full: bool,
    ) -> Vec<Tensor<1>> {
        let device = Device::flex();
        let random = |rows: usize, columns: usize, seed: usize| {
            let values = (0..rows * columns)
                .map(|i| crate::random::normal(seed as u64, i as u64))
                .collect::<Vec<_>>();
            Tensor::<2>::from_data(TensorData::new(values, [rows, columns]), &device)
        };
        let leaf = |tensor: Tensor<2>| tensor.autodiff().require_grad();
        let x = leaf(random(tokens, inputs, 1));
        let weight = random(outputs, inputs, 2).autodiff();
        let weight = if full { weight.require_grad() } else { weight };
        let bias = leaf(random(1, outputs, 3));
        let (a, b) = (leaf(random(rank, inputs, 4)), leaf(random(outputs, rank, 5)));
        let adapter = (rank > 0).then(|| LowRank {
            a: a.clone(),
            b: b.clone(),
            scale: 0.7,
            dropout,
        });
        let output = operation(
            x.clone(),
            weight.clone(),
            full.then(|| bias.clone().reshape([outputs])),
            adapter,
        );
        let gradients = (output.clone() * random(tokens, outputs, 6).autodiff())
            .sum()
            .backward();
        let mut results = vec![output.inner().flatten(0, 1)];
        results.extend(
            [x, weight, bias, a, b]
                .iter()
                .filter_map(|leaf| Some(leaf.grad(&gradients)?.flatten(0, 1))),
        );
        results
    }

    #[test]
    fn kernel_equals_reference_in_output_and_gradients() {
        let keys: std::sync::Arc<[u64]> = (0..13).map(|position| Dropout::token_key(1, 2, 3, position)).collect();
        let dropout = Dropout {
            token_keys: keys,
            module_key: 9,
            probability: 0.3,
        };
        for (rank, dropout, full) in [
            (0, None, true),
            (3, None, false),
            (3, None, true),
            (5, Some(dropout.clone()), true),
            (1, Some(dropout), false),
        ] {
            let kernel = run(linear, [13, 37, 21, rank], dropout.clone(), full);
            let reference = run(linear_reference, [13, 37, 21, rank], dropout, full);
            assert_eq!(kernel.len(), reference.len());
            for (kernel, reference) in kernel.into_iter().zip(reference) {
                let difference = (kernel - reference.clone()).abs().max().into_scalar::<f32>();
                assert!(difference <= 1e-4, "rank {rank}, full {full}: {difference}");
            }
        }
    }

    #[test]
    fn a_packed_weight_equals_its_decoded_self_in_output_and_gradients() {
        let device = Device::flex();
        let [tokens, inputs, outputs, rank] = [13, 37, 21, 3];
        let keys: Arc<[u64]> = (0..tokens as u32)
            .map(|position| Dropout::token_key(1, 2, 3, position))
            .collect();
        let dropout = Dropout {
            token_keys: keys,
            module_key: 9,
            probability: 0.3,
        };
        let values: Vec<f32> = Tensor::<1>::random([outputs * inputs], Distribution::Default, &device)
            .into_data()
            .iter::<f32>()
            .collect();
        for packed in [
            Packed::nf4(&values, [outputs, inputs], 64, true),
            Packed::int8(&values, [outputs, inputs]),
        ] {
            let weight = PackedWeight::new(packed, &device);
            let decoded = weight.dense(DType::F32);
            let through = |weight: Weight| {
                run(
                    |x, _, bias, adapter| linear(x, weight.clone(), bias, adapter),
                    [tokens, inputs, outputs, rank],
                    Some(dropout.clone()),
                    true,
                )
            };
            let (found, expected) = (through(Weight::Packed(weight)), through(Weight::Dense(decoded)));
            // Neither has a gradient of the weight, since that which `run` makes is not read.
            assert_eq!((found.len(), expected.len()), (5, 5));
            for (found, expected) in found.into_iter().zip(expected) {
                assert!((found - expected).abs().max().into_scalar::<f32>() <= 1e-4);
            }
        }
    }

    #[test]
    fn a_frozen_weight_gets_no_gradient() {
        let device = Device::flex();
        let weight = Tensor::<2>::random([4, 3], Distribution::Default, &device).autodiff();
        let x = Tensor::<2>::random([2, 3], Distribution::Default, &device)
            .autodiff()
            .require_grad();
        let gradients = linear(x.clone(), weight.clone(), None, None).sum().backward();
        assert!(weight.grad(&gradients).is_none());
        assert!(x.grad(&gradients).is_some());
    }
}
