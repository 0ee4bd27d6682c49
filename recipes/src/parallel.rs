//! `[data.parallel]`: batches of groups of equivalent samples.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Batches of groups of equivalent samples: rows of one group are translations of one another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Parallel {
    /// The languages of a group, in this order after the anchor. Empty: all that the rows have.
    pub languages: Vec<String>,
    /// The language that the others are tied to.
    #[schemars(length(min = 1))]
    pub anchor: String,
    /// Groups in one optimizer step, over all processes; their rows are cut into micro-batches of train.batch_size. A row is one
    /// sample: data.packing and train.gradient_accumulation are not read.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub groups_per_batch: usize,
    /// Languages of each group that are used, the anchor always among them. 0: all.
    pub languages_per_group: usize,
    /// What happens to a group that lacks one of the languages.
    pub missing: Missing,
    /// How the samples become batches.
    pub arrangement: Arrangement,
}

impl Default for Parallel {
    fn default() -> Self {
        Self {
            languages: Vec::new(),
            anchor: "en".to_owned(),
            groups_per_batch: 4,
            languages_per_group: 0,
            missing: Missing::Skip,
            arrangement: Arrangement::Groups,
        }
    }
}

/// What happens to a group that lacks one of the languages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Missing {
    /// It is left out, and counted.
    Skip,
    /// It is used with the languages it has, as long as the anchor and one more are among them.
    Allow,
}

/// How the samples of groups become batches. The first three are the ablation of batch-wise alignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Arrangement {
    /// Whole groups, the anchor first.
    Groups,
    /// Whole groups without their anchor.
    NoAnchor,
    /// The same samples as with groups, in random order.
    Shuffled,
    /// Each batch in one language, of as many rows as a batch of whole groups.
    SameLanguage,
}
