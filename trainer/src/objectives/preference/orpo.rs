//! ORPO (Hong, Lee and Thorne, "ORPO", 2024, equations 6 and 7): the likelihood of the chosen sequence, plus β times
//! `- log σ(log odds(y+) - log odds(y-))`, odds = p / (1 - p) with p the exponential of the mean log-probability per
//! token. This is the second term.

use super::{Pair, PairLoss, log_sigmoid, sigmoid};

pub(super) fn loss(pair: &Pair, beta: f64) -> PairLoss {
    let means = pair.means();
    let log_odds = means.map(|mean| mean - log_one_minus_exp(mean));
    let ratio = log_odds[0] - log_odds[1];
    let outer = -beta * sigmoid(-ratio);
    // d log odds / d mean = 1 / (1 - p).
    let inner = means.map(|mean| -1.0 / mean.exp_m1());
    PairLoss::by_means(-beta * log_sigmoid(ratio), [outer * inner[0], -outer * inner[1]], pair)
}

/// log(1 - e^x) for x < 0, by whichever of two forms keeps more digits.
fn log_one_minus_exp(x: f64) -> f64 {
    if x > -std::f64::consts::LN_2 {
        (-x.exp_m1()).ln()
    } else {
        (-x.exp()).ln_1p()
    }
}
