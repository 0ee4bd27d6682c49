//! The hinge of SLiC (Zhao et al., "SLiC-HF", 2023) on DPO's margin over the reference, as TRL has it:
//! `max(0, 1 - β d)`.

use super::{Pair, PairLoss};

pub(super) fn loss(pair: &Pair, beta: f64) -> PairLoss {
    let slack = 1.0 - beta * pair.margin();
    if slack > 0.0 {
        PairLoss::by_margin(slack, -beta)
    } else {
        PairLoss::by_margin(0.0, 0.0)
    }
}
