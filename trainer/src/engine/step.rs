//! Forward and backward pass of one micro-batch through all parts.

use burn::tensor::{DType, IndexingUpdateOp, Tensor};

use super::gradients::Gradients;
use super::head::{Targets, log_probs_with_gradient};
use super::inputs::Inputs;
use super::pass::Pass;
use crate::models::Model;
use crate::ops::seed::backward_from;

/// What a block of the forward pass leaves for the backward pass.
enum Kept<'a> {
    /// Its input; the graph is made again from it.
    Input(Box<Tensor<2>>),
    /// Its graph.
    Graph(Box<Part<'a>>),
}

/// The graph of one part.
struct Part<'a> {
    /// A leaf when something below needs its gradient, else a constant.
    input: Tensor<2>,
    output: Tensor<2>,
    pass: Pass<'a>,
}

impl Part<'_> {
    /// Adds the gradients of the part's parameters, and returns that of its input where asked for.
    fn backward(self, gradient: Tensor<2>, gradients: &mut Gradients) -> Option<Tensor<2>> {
        if !self.output.is_autodiff() {
            return None;
        }
        let mut graph = backward_from(self.output, gradient);
        self.pass.collect(&mut graph, gradients);
        if self.input.is_autodiff() {
            self.input.grad_remove(&mut graph)
        } else {
            None
        }
    }
}

/// Adds the gradient of `- Σ weight · log_prob(target)` to `gradients` and returns the log-probabilities.
///
/// `weights` belongs to `targets` one to one: a token loss that is normalised over the whole optimizer step knows its
/// factors beforehand, so that one pass gives loss and gradient. `recompute`: only the inputs of blocks are kept, and
/// their graphs made again in the backward pass.
pub fn forward_backward(
    model: &Model,
    inputs: &Inputs,
    targets: &Targets,
    weights: &[f32],
    recompute: bool,
    gradients: &mut Gradients,
) -> Vec<f32> {
    let new_pass = |tracked: bool| Pass::new(&model.parameters, model.dtype, tracked, inputs.token_keys.clone());
    // Blocks below the lowest trainable parameter keep nothing.
    let trains_embedding = model.parameters.get(model.embedding).trainable;
    let lowest = if trains_embedding {
        Some(0)
    } else {
        lowest_trainable_block(model)
    };
    let lowest = lowest.unwrap_or(model.blocks.len());
    // The input of part `index` needs a gradient when something below it is trained.
    let leaf = |x: Tensor<2>, index: usize| {
        if trains_embedding || index > lowest {
            x.autodiff().require_grad()
        } else {
            x
        }
    };
    let build = |x: Tensor<2>, index: usize| {
        let (input, pass) = (leaf(x, index), new_pass(true));
        let output = model.blocks[index].forward(input.clone(), inputs, &pass, None);
        Part { input, output, pass }
    };

    let mut x = model.embed(inputs, &new_pass(false));
    let mut kept = Vec::new();
    for (index, block) in model.blocks.iter().enumerate() {
        if index >= lowest && !recompute {
            let part = build(x, index);
            x = part.output.clone().inner();
            kept.push(Kept::Graph(Box::new(part)));
        } else {
            if index >= lowest {
                kept.push(Kept::Input(Box::new(x.clone())));
            }
            x = block.forward(x, inputs, &new_pass(false), None);
        }
    }

    let (input, pass) = (leaf(x, model.blocks.len()), new_pass(true));
    let output = model.final_norm(input.clone(), &pass);
    let hidden = output.clone().without_autodiff();
    let token_keys = inputs.token_keys.as_deref();
    let (log_probs, gradient) = log_probs_with_gradient(model, &hidden, targets, weights, token_keys, gradients);
    let mut gradient = Part { input, output, pass }.backward(gradient, gradients);

    for (index, kept) in (lowest..model.blocks.len()).zip(kept).rev() {
        let Some(above) = gradient else { return log_probs };
        let part = match kept {
            Kept::Graph(part) => *part,
            Kept::Input(x) => build(*x, index),
        };
        gradient = part.backward(above, gradients);
    }
    if let (true, Some(gradient)) = (trains_embedding, gradient) {
        let [_, hidden_size] = gradient.dims();
        let size = model.config.vocab_size * hidden_size;
        let rows = Tensor::<2>::zeros([model.config.vocab_size, hidden_size], (&model.device, DType::F32));
        let ids = inputs.input_ids.clone();
        let rows = rows.select_assign(0, ids, gradient.cast(DType::F32), IndexingUpdateOp::Add);
        gradients.add(model.embedding, rows.reshape([size]));
    }
    log_probs
}

fn lowest_trainable_block(model: &Model) -> Option<usize> {
    model.blocks.iter().position(|block| {
        block
            .parameters()
            .into_iter()
            .any(|id| model.parameters.get(id).trainable)
    })
}
