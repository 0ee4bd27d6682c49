//! SLiC-HF (Zhao et al., "SLiC-HF: Sequence Likelihood Calibration with Human Feedback", 2023, equation 2):
//! `max(0, δ - log π(y+) + log π(y-))`, plus α times the likelihood of the chosen answer. This is the first term.

use super::{Pair, PairLoss};

pub(super) fn loss(pair: &Pair, delta: f64) -> PairLoss {
    let slack = delta - pair.policy[0] + pair.policy[1];
    if slack > 0.0 {
        PairLoss::by_margin(slack, -1.0)
    } else {
        PairLoss::by_margin(0.0, 0.0)
    }
}
