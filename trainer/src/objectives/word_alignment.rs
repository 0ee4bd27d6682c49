//! Word-level alignment (Cao, Kitaev and Klein, "Multilingual Alignment of Contextual Word Representations", 2020,
//! equation 1; Efimov et al., "The Impact of Cross-Lingual Adjustment of Contextual Word Representations on Zero-Shot
//! Transfer", 2023): the squared distance between the states of aligned words, plus a term that keeps the anchor's states
//! where the model had them before training. A word's state is the mean over its tokens. Over a step:
//! `mean (f(a)_i - f(b)_j)² + stay_close · mean (f(a) - f_0(a))²`, the first mean over aligned word pairs and features,
//! the second over the anchor's tokens and features.

use std::ops::Range;

use burn::tensor::{DType, Tensor};

use super::averages::averages;

/// Aligned words of a micro-batch, and the anchor's tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AlignedWords {
    /// For each pair the tokens of the anchor's word and of the other's.
    pub words: Vec<(Range<usize>, Range<usize>)>,
    /// The anchor's sequences.
    pub anchors: Vec<Range<usize>>,
}

impl AlignedWords {
    /// Tokens of the anchor.
    pub fn anchor_tokens(&self) -> usize {
        self.anchors.iter().map(Range::len).sum()
    }
}

/// The two terms of a micro-batch, and the gradient of their weighted sum by the states `[tokens, hidden]`. `words` and
/// `tokens`: how many word pairs and anchor tokens the whole step has; `initial`: the states before training; `weight`:
/// that of the loss, and of its second term within it.
pub fn loss(
    states: &Tensor<2>,
    initial: &Tensor<2>,
    aligned: &AlignedWords,
    (words, tokens): (u64, u64),
    (weight, stay_close): (f64, f64),
) -> ([f64; 2], Tensor<2>) {
    let [length, hidden] = states.dims();
    let device = states.device();
    let (states, initial) = (states.clone().cast(DType::F32), initial.clone().cast(DType::F32));
    let mut gradient = states.zeros_like();
    let mut terms = [0.0; 2];
    if !aligned.words.is_empty() {
        let (of_anchor, of_other): (Vec<_>, Vec<_>) = aligned.words.iter().cloned().unzip();
        let difference = averages(&of_anchor, length, &device) - averages(&of_other, length, &device);
        let distance = difference.clone().matmul(states.clone());
        let share = 1.0 / (words as f64 * hidden as f64);
        terms[0] = sum(distance.clone().powi_scalar(2)) * share;
        gradient = gradient + difference.transpose().matmul(distance) * (2.0 * weight * share);
    }
    if stay_close > 0.0 && tokens > 0 {
        let mut kept = vec![0.0f32; length];
        aligned.anchors.iter().for_each(|range| kept[range.clone()].fill(1.0));
        let kept = burn::tensor::TensorData::new(kept, [length, 1]);
        let moved = (states - initial) * Tensor::<2>::from_data(kept, (&device, DType::F32));
        let share = 1.0 / (tokens as f64 * hidden as f64);
        terms[1] = sum(moved.clone().powi_scalar(2)) * share;
        gradient = gradient + moved * (2.0 * weight * stay_close * share);
    }
    (terms, gradient)
}

fn sum(values: Tensor<2>) -> f64 {
    values.sum().into_data().iter::<f64>().sum()
}
