//! SimPO (Meng, Xia and Chen, "SimPO", 2024, equation 6): `- log σ(β (mean log π(y+) - mean log π(y-)) - γ)`, without a
//! reference; γ is the margin itself.

use super::{Pair, PairLoss, log_sigmoid, sigmoid};

pub(super) fn loss(pair: &Pair, beta: f64, gamma: f64) -> PairLoss {
    let means = pair.means();
    let z = beta * (means[0] - means[1]) - gamma;
    let derivative = -beta * sigmoid(-z);
    PairLoss::by_means(-log_sigmoid(z), [derivative, -derivative], pair)
}
