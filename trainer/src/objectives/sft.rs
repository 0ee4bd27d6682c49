//! Supervised fine-tuning: the mean negative log-likelihood of the supervised tokens of an optimizer step,
//! `loss = - 1/N Σ log p(token)` with N over all micro-batches and processes.

use crate::engine::head::Targets;

/// The factor of `- log p` at each target: known before the forward pass, so that one pass gives loss and gradient.
/// `weight`: `objective.weight`; `tokens`: supervised tokens of the whole step.
pub fn token_weights(targets: &Targets, weight: f64, tokens: u64) -> Vec<f32> {
    vec![(weight / tokens.max(1) as f64) as f32; targets.len()]
}
