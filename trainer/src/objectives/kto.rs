//! KTO (Ethayarajh et al., "KTO: Model Alignment as Prospect Theoretic Optimization", 2024, equation 8): for a sample with
//! r = log π(y|x) - log ref(y|x), `w_d (1 - σ(β (r - z)))` when it is desirable and `w_u (1 - σ(β (z - r)))` when not. z is
//! an estimate of the KL divergence between policy and reference: the mean of r over mismatched prompts and completions of
//! the micro-batch, at least 0, without a gradient. The loss of a step is the mean over its samples.

use std::ops::Range;

use interlingua_data::batch::{MicroBatch, UNSUPERVISED};
use interlingua_recipes::{Objective, ObjectiveKind};

use super::preference::sigmoid;

/// KTO with its numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kto {
    /// β.
    pub beta: f64,
    /// w_d.
    pub desirable_weight: f64,
    /// w_u.
    pub undesirable_weight: f64,
}

impl Kto {
    /// That of a recipe; `None` when it has another objective.
    pub fn of(objective: &Objective) -> Option<Self> {
        (objective.kind == ObjectiveKind::Kto).then(|| Self {
            beta: objective.beta.unwrap_or(0.1),
            desirable_weight: objective.desirable_weight.unwrap_or(1.0),
            undesirable_weight: objective.undesirable_weight.unwrap_or(1.0),
        })
    }

    /// The loss of a sample and its derivative by r.
    pub fn loss(&self, r: f64, z: f64, desirable: bool) -> (f64, f64) {
        let (weight, sign) = if desirable {
            (self.desirable_weight, 1.0)
        } else {
            (self.undesirable_weight, -1.0)
        };
        let value = sigmoid(sign * self.beta * (r - z));
        (
            weight * (1.0 - value),
            -weight * sign * self.beta * value * (1.0 - value),
        )
    }
}

/// The sequences whose divergence is measured, those at `rows` of a micro-batch: each prompt with the completion of the sample
/// before it, the first one with the last's, as TRL mismatches them. A prompt ends where the first supervised token begins.
pub fn mismatched(batch: &MicroBatch, rows: Range<usize>) -> MicroBatch {
    let count = batch.sequences.len();
    let starts: Vec<usize> = batch
        .sequences
        .iter()
        .map(|sequence| {
            let labels = &batch.labels[sequence.range()];
            let supervised = labels.iter().position(|label| *label != UNSUPERVISED);
            sequence.start + supervised.unwrap_or(sequence.length)
        })
        .collect();
    let mut mixed = MicroBatch::default();
    for (index, sequence) in batch.sequences.iter().enumerate().take(rows.end).skip(rows.start) {
        let before = (index + count - 1) % count;
        let (prompt, completion) = (
            sequence.start..starts[index],
            starts[before]..batch.sequences[before].range().end,
        );
        let join = |prompt: &[u32], completion: &[u32]| [prompt, completion].concat();
        let ids = join(&batch.input_ids[prompt.clone()], &batch.input_ids[completion.clone()]);
        let mut labels = vec![UNSUPERVISED; prompt.len()];
        labels.extend_from_slice(&batch.labels[completion]);
        mixed.push(&ids, &labels, sequence.language, sequence.sample, 0);
    }
    mixed.rows = mixed.sequences.len();
    mixed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completions_move_on_by_one() {
        let mut batch = MicroBatch::default();
        batch.push(&[1, 2, 3], &[-100, -100, 3], 0, 7, 0);
        batch.push(&[4, 5, 6], &[-100, 5, 6], 1, 8, 0);
        batch.push(&[7, 8], &[-100, 8], 1, 9, 0);
        let mixed = mismatched(&batch, 0..3);
        assert_eq!(mixed.input_ids, [1, 2, 8, 4, 3, 7, 5, 6]);
        assert_eq!(mixed.labels, [-100, -100, 8, -100, 3, -100, 5, 6]);
        assert_eq!(mixed.position_ids, [0, 1, 2, 0, 1, 0, 1, 2]);
        let part = mismatched(&batch, 1..3);
        assert_eq!(part.input_ids, [4, 3, 7, 5, 6]);
    }
}
