//! The head in chunks of positions: projection, log-softmax and gradient for a few hundred positions at a time, so that
//! `[tokens, vocab]` never exists; positions that nothing asks for are skipped.

use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};

use super::gradients::Gradients;
use super::pass::Pass;
use crate::models::Model;
use crate::ops::cross_entropy::{softmax_cross_entropy, target_log_probs};
use crate::ops::linear::input_gradient;
use crate::ops::seed::backward_from;

/// Numbers a chunk of logits may hold: 64 MiB in f32.
const CHUNK_ELEMENTS: usize = 16 << 20;

/// Positions whose next token is predicted: `positions` are rows of the hidden states, `tokens` what follows there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Targets {
    /// Rows of the hidden states `[tokens, hidden]`.
    pub positions: Vec<u32>,
    /// The token that follows at each of them.
    pub tokens: Vec<u32>,
}

impl Targets {
    /// The supervised positions of sequences that begin at `boundaries`: a label counts if a token precedes it in its
    /// sequence. Labels are not shifted; negative ones are unsupervised.
    pub fn of_labels(labels: &[i32], boundaries: &[usize]) -> Self {
        let mut targets = Self::default();
        for range in boundaries.windows(2) {
            for (position, label) in labels[range[0]..range[1]].iter().enumerate().skip(1) {
                if let Ok(token) = u32::try_from(*label) {
                    targets.positions.push((range[0] + position) as u32 - 1);
                    targets.tokens.push(token);
                }
            }
        }
        targets
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }
}

fn chunk_rows(model: &Model) -> usize {
    chunk_rows_of(model.config.vocab_size)
}

/// Rows of logits that are made at a time, for a vocabulary of this size.
pub fn chunk_rows_of(vocabulary: usize) -> usize {
    (CHUNK_ELEMENTS / vocabulary).max(16)
}

fn rows(positions: &[u32], like: &Tensor<2>) -> Tensor<1, Int> {
    let positions: Vec<i32> = positions.iter().map(|position| *position as i32).collect();
    let length = positions.len();
    Tensor::from_data(TensorData::new(positions, [length]), &like.device().without_autodiff())
}

/// Log-probabilities of the targets, without gradients. `hidden`: `[tokens, hidden]` after the final norm.
pub fn log_probs(model: &Model, hidden: &Tensor<2>, targets: &Targets) -> Vec<f32> {
    let size = chunk_rows(model);
    let chunks = targets.positions.chunks(size).zip(targets.tokens.chunks(size));
    chunks
        .flat_map(|(positions, tokens)| {
            let selected = hidden.clone().select(0, rows(positions, hidden));
            target_log_probs(model.logits(selected), tokens)
        })
        .collect()
}

/// Log-probabilities of the targets, and the gradient of `- Σ weight · log_prob` by the hidden states
/// `[tokens, hidden]`; gradients of the head's own trainable parameters are added to `gradients`. `token_keys`: dropout
/// of an adapter on the head is on.
pub fn log_probs_with_gradient(
    model: &Model,
    hidden: &Tensor<2>,
    targets: &Targets,
    weights: &[f32],
    token_keys: Option<&[u64]>,
    gradients: &mut Gradients,
) -> (Vec<f32>, Tensor<2>) {
    let size = chunk_rows(model);
    let trains = model
        .head
        .parameters()
        .into_iter()
        .any(|id| model.parameters.get(id).trainable);
    let mut log_probs = Vec::with_capacity(targets.len());
    let mut hidden_gradient = hidden.zeros_like();
    for start in (0..targets.len()).step_by(size) {
        let range = start..targets.len().min(start + size);
        let (positions, tokens) = (&targets.positions[range.clone()], &targets.tokens[range.clone()]);
        let index = rows(positions, hidden);
        let selected = hidden.clone().select(0, index.clone());
        let selected_gradient = if trains || !model.head.adapters.is_empty() || model.config.head.softcap.is_some() {
            let keys = token_keys.map(|keys| positions.iter().map(|position| keys[*position as usize]).collect());
            let pass = Pass::new(&model.parameters, model.dtype, true, keys);
            let selected = selected.autodiff().require_grad();
            let logits = model.logits_in(selected.clone(), &pass);
            let (chunk, gradient) = softmax_cross_entropy(logits.clone().inner(), tokens, &weights[range]);
            log_probs.extend(chunk);
            let mut graph = backward_from(logits, gradient);
            pass.collect(&mut graph, gradients);
            selected.grad_remove(&mut graph)
        } else {
            // Without anything to train the logits are overwritten by their own gradient.
            let weight = model.plain_pass().weight(model.head.weight);
            let (chunk, gradient) = softmax_cross_entropy(model.logits(selected), tokens, &weights[range]);
            log_probs.extend(chunk);
            let gradient = input_gradient(gradient, &weight);
            Some(match model.config.head.scale {
                Some(scale) => gradient * scale,
                None => gradient,
            })
        };
        if let Some(gradient) = selected_gradient {
            hidden_gradient = hidden_gradient.select_assign(0, index, gradient, IndexingUpdateOp::Add);
        }
    }
    (log_probs, hidden_gradient)
}
