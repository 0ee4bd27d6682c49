//! Supervised fine-tuning: the mean negative log-likelihood of the supervised tokens of an optimizer step,
//! `loss = - 1/N Σ log p(token)` with N over all micro-batches and processes.

/// The factor of `- log p` of every supervised token in the step's loss: known before the forward pass, so that one pass
/// gives loss and gradient. `weight`: that of the objective; `tokens`: supervised tokens of the whole step.
pub fn factor(weight: f64, tokens: u64) -> f32 {
    (weight / tokens.max(1) as f64) as f32
}
