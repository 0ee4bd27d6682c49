//! DPO (Rafailov et al., "Direct Preference Optimization", 2023, equation 7): `- log σ(β d)` with d the margin over the
//! reference. With label smoothing ε the mixture of the conservative variant: `- (1 - ε) log σ(β d) - ε log σ(-β d)`.
//! Length-normalised: d of log-probabilities per token.

use super::{Pair, PairLoss, log_sigmoid, sigmoid};

pub(super) fn loss(pair: &Pair, beta: f64, smoothing: f64, length_normalised: bool) -> PairLoss {
    let margin = if length_normalised {
        pair.mean_margin()
    } else {
        pair.margin()
    };
    let z = beta * margin;
    let loss = -(1.0 - smoothing) * log_sigmoid(z) - smoothing * log_sigmoid(-z);
    let derivative = beta * (smoothing * sigmoid(z) - (1.0 - smoothing) * sigmoid(-z));
    if length_normalised {
        PairLoss::by_means(loss, [derivative, -derivative], pair)
    } else {
        PairLoss::by_margin(loss, derivative)
    }
}
