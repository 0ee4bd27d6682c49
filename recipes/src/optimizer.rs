//! `[optimizer]`: how gradients change weights.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::objective::fill;

/// How gradients change weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Optimizer {
    /// Which optimizer.
    pub kind: OptimizerKind,
    /// adamw: the number format that both moments are kept in. Default: "f32".
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Moments")]
    pub moments: Option<Moments>,
    /// The largest learning rate, which the schedule multiplies.
    #[schemars(range(min = 0.0))]
    pub learning_rate: f64,
    /// Decay of the first and of the second moment per step.
    #[schemars(extend("items" = { "type": "number", "minimum": 0.0, "exclusiveMaximum": 1.0 }))]
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub eps: f64,
    /// Decoupled weight decay; never on names that end in .bias or contain "norm".
    #[schemars(range(min = 0.0))]
    pub weight_decay: f64,
    /// Longest gradient over all parameters; longer ones are scaled down to it. 0: no limit.
    #[schemars(range(min = 0.0))]
    pub max_grad_norm: f64,
}

impl Default for Optimizer {
    fn default() -> Self {
        Self {
            kind: OptimizerKind::Adamw,
            moments: None,
            learning_rate: 2e-4,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
        }
    }
}

/// The optimizers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2019), as in PyTorch.
    Adamw,
    /// The same with moments in blocks of 8-bit codes (Dettmers et al. 2022), as in bitsandbytes.
    Adamw8bit,
}

/// The number format of moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Moments {
    /// 32-bit floats.
    F32,
    /// bfloat16, rounded to nearest even: half the memory.
    Bf16,
}

impl Optimizer {
    /// Fills in the format of the moments, where the kind reads it.
    pub(crate) fn fill_in(&mut self) {
        fill(&mut self.moments, self.kind == OptimizerKind::Adamw, Moments::F32);
    }
}
