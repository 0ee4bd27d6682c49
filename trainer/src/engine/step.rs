//! A token loss whose factors are known beforehand: one pass gives loss and gradient.

use super::forward::Forward;
use super::gradients::Gradients;
use super::head::{Targets, log_probs_with_gradient};
use super::inputs::Inputs;
use super::keeping::Keeping;
use crate::models::Model;

/// Adds the gradient of `- Σ weight · log_prob(target)` to `gradients` and returns the log-probabilities.
///
/// `weights` belongs to `targets` one to one: a token loss that is normalised over the whole optimizer step knows its
/// factors beforehand, so that one pass gives loss and gradient.
pub fn forward_backward(
    model: &Model,
    inputs: &Inputs,
    targets: &Targets,
    weights: &[f32],
    keeping: Keeping,
    gradients: &mut Gradients,
) -> Vec<f32> {
    let last = model.blocks.len();
    let forward = Forward::run(model, inputs, &[last], keeping);
    let token_keys = inputs.token_keys.as_deref();
    let hidden = forward.hidden(last);
    let (log_probs, gradient) = log_probs_with_gradient(model, hidden, targets, weights, token_keys, gradients);
    forward.backward(vec![(last, gradient)], gradients);
    log_probs
}
