//! Robust DPO (Chowdhury, Kini and Natarajan, "Provably Robust DPO", 2024, equation 12): DPO's loss corrected for a share
//! ε of flipped preferences, `(- (1 - ε) log σ(β d) + ε log σ(-β d)) / (1 - 2 ε)`.

use super::{Pair, PairLoss, log_sigmoid, sigmoid};

pub(super) fn loss(pair: &Pair, beta: f64, smoothing: f64) -> PairLoss {
    let z = beta * pair.margin();
    let scale = 1.0 / (1.0 - 2.0 * smoothing);
    let loss = scale * (smoothing * log_sigmoid(-z) - (1.0 - smoothing) * log_sigmoid(z));
    let derivative = -scale * beta * ((1.0 - smoothing) * sigmoid(-z) + smoothing * sigmoid(z));
    PairLoss::by_margin(loss, derivative)
}
