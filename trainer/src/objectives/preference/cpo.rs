//! CPO (Xu et al., "Contrastive Preference Optimization", 2024, equation 5): `- log σ(β (log π(y+) - log π(y-)))`, plus α
//! times the likelihood of the chosen answer. This is the first term.

use super::{Pair, PairLoss, log_sigmoid, sigmoid};

pub(super) fn loss(pair: &Pair, beta: f64) -> PairLoss {
    let z = beta * (pair.policy[0] - pair.policy[1]);
    PairLoss::by_margin(-log_sigmoid(z), -beta * sigmoid(-z))
}
