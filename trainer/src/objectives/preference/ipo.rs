//! IPO (Azar et al., "A General Theoretical Paradigm to Understand Learning from Human Preferences", 2023, equation 17):
//! `(d - 1 / (2 β))²`. `average`: d of log-probabilities per token, as TRL computes it; else of sums, as in the paper.

use super::{Pair, PairLoss};

pub(super) fn loss(pair: &Pair, beta: f64, average: bool) -> PairLoss {
    let margin = if average { pair.mean_margin() } else { pair.margin() };
    let distance = margin - 1.0 / (2.0 * beta);
    let (loss, derivative) = (distance * distance, 2.0 * distance);
    if average {
        PairLoss::by_means(loss, [derivative, -derivative], pair)
    } else {
        PairLoss::by_margin(loss, derivative)
    }
}
