//! `[model.quantization]`: frozen weights in fewer bits.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::objective::fill;

/// Keeps the weights of the linear layers of all blocks in fewer bits. They stay frozen; embedding and norms stay as they
/// are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Quantization {
    /// "nf4": four bits, as QLoRA. "int8": eight bits, with one scale for each row.
    pub scheme: QuantizationScheme,
    /// nf4: numbers that share a scale: 64, 128, 256, 512, 1024, 2048 or 4096.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "usize", range(min = 64, max = 4096))]
    pub block: Option<usize>,
    /// nf4: keep the scales in 8 bits too.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool")]
    pub double: Option<bool>,
    /// Quantise the head too, where it is not the embedding.
    pub head: bool,
}

impl Default for Quantization {
    fn default() -> Self {
        Self {
            scheme: QuantizationScheme::Nf4,
            block: None,
            double: None,
            head: false,
        }
    }
}

impl Quantization {
    /// Fills in the keys that the scheme reads and the recipe leaves out.
    pub(crate) fn fill_in(&mut self) {
        let nf4 = self.scheme == QuantizationScheme::Nf4;
        fill(&mut self.block, nf4, 64);
        fill(&mut self.double, nf4, true);
    }

    /// The keys of [`QuantizationScheme::numbers`] that the recipe sets.
    pub(crate) fn set_numbers(&self) -> Vec<&'static str> {
        [("block", self.block.is_some()), ("double", self.double.is_some())]
            .into_iter()
            .filter(|(_, set)| *set)
            .map(|(key, _)| key)
            .collect()
    }
}

/// A form of quantised weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum QuantizationScheme {
    /// 4-bit NormalFloat: 16 levels that suit normally distributed weights, times a scale for each block.
    Nf4,
    /// Eight bits, times a scale for each row.
    Int8,
}

impl QuantizationScheme {
    /// The name in a recipe.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Int8 => "int8",
        }
    }

    /// The keys that it reads beside `scheme` and `head`.
    pub(crate) fn numbers(self) -> &'static [&'static str] {
        match self {
            Self::Nf4 => &["block", "double"],
            Self::Int8 => &[],
        }
    }
}
