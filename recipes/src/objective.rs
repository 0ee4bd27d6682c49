//! `[objective]`: what is minimised.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is minimised.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Objective {
    /// Which loss.
    pub kind: ObjectiveKind,
    /// What the loss is multiplied by.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub weight: f64,
}

impl Default for Objective {
    fn default() -> Self {
        Self {
            kind: ObjectiveKind::Sft,
            weight: 1.0,
        }
    }
}

/// The losses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ObjectiveKind {
    /// Cross-entropy of the supervised tokens, averaged over all of them in an optimizer step.
    Sft,
}
