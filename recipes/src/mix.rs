//! `[data.mix]`: which share of what is trained on each language, or source, has.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The shares of languages, or sources.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Mix {
    /// What has a share: languages or sources.
    pub by: MixBy,
    /// The share of each, such as { en = 0.4, ar = 0.6 }; "*" is shared evenly by all that are not named, and without it they
    /// are left out. Shares that do not sum to 1 are scaled, with a note.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ratios: BTreeMap<String, f64>,
    /// In place of ratios: shares proportional to n^(1/T), n being the units that each has (Arivazhagan et al. 2019).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64", extend("exclusiveMinimum" = 0.0))]
    pub temperature: Option<f64>,
    /// What shares and budget count.
    pub unit: MixUnit,
    /// Units drawn per epoch. 0: as many as the rows hold.
    pub budget: u64,
    /// A curriculum: other ratios from a share of the run on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub schedule: Vec<MixPhase>,
}

impl Mix {
    /// Whether it asks for anything but the rows as they come.
    #[must_use]
    pub fn is_active(&self) -> bool {
        !self.ratios.is_empty() || self.temperature.is_some() || self.budget > 0 || !self.schedule.is_empty()
    }
}

/// What has a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MixBy {
    /// Each language.
    #[default]
    Language,
    /// Each source.
    Source,
}

/// What shares and budget count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MixUnit {
    /// Tokens, supervised or not.
    #[default]
    Tokens,
    /// Tokens that carry loss.
    SupervisedTokens,
    /// Samples.
    Samples,
}

/// Ratios from a share of the run on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MixPhase {
    /// The share of the run after which the phase begins.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    pub from: f64,
    /// The share of the run over which the ratios move linearly from those before to these. 0: at once.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub ramp: f64,
    /// The ratios, as in `data.mix.ratios`.
    pub ratios: BTreeMap<String, f64>,
}
