//! What `[distributed]` asks of other keys.

use crate::distributed::Strategy;
use crate::error::Finding;
use crate::recipe::Recipe;
use crate::train::{Offload, Recompute};

pub(super) fn check(recipe: &Recipe, findings: &mut Vec<Finding>) {
    if recipe.distributed.strategy != Strategy::Zero3 {
        return;
    }
    if recipe.memory.recompute == Recompute::None {
        let message = "is \"none\", but with distributed.strategy = \"zero3\" a block's weights are gone when it has computed, so \
                       that the backward pass has to compute it again. Write \"auto\" or \"block\".";
        findings.push(Finding::at("memory.recompute", message));
    }
    if recipe.memory.offload == Offload::Weights {
        let message = "is \"weights\", but with distributed.strategy = \"zero3\" each process keeps its part of them on its \
                       device. Write \"none\" or \"activations\", or choose another strategy.";
        findings.push(Finding::at("memory.offload", message));
    }
}
