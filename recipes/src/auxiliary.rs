//! `[[objective.auxiliary]]`: losses on top of the objective, on hidden states or on distributions over options.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::layer::Layer;
use crate::objective::fill;

/// A loss on top of the objective. Which of the numbers it reads stand in [`AuxiliaryKind::numbers`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Auxiliary {
    /// Which loss.
    pub kind: AuxiliaryKind,
    /// The hidden states it reads: N as in hidden_states.N, "middle" (half of the blocks, rounded down) or "last".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Layer")]
    pub layer: Option<Layer>,
    /// middle-layer: what stands for a sentence: the mean of its tokens, the last or the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Pool")]
    pub pool: Option<Pool>,
    /// middle-layer: who looks for whom: "one-way" (the anchor asks) or "symmetric".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Direction")]
    pub direction: Option<Direction>,
    /// middle-layer: "target" lets no gradient through the side that is looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Detach")]
    pub detach: Option<Detach>,
    /// middle-layer: what similarities are divided by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64", extend("exclusiveMinimum" = 0.0))]
    pub temperature: Option<f64>,
    /// What the loss is multiplied by. Default: 1, for router 0.001.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64", extend("exclusiveMinimum" = 0.0))]
    pub weight: Option<f64>,
    /// 0: added at each step. K: on every K-th unit, in place of the main loss; the main data stands still meanwhile.
    #[serde(default)]
    pub every: u64,
    /// What `every` counts: optimizer steps or micro-steps.
    #[serde(default)]
    pub unit: EveryUnit,
    /// Name of the source it reads. Absent: the batch itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub source: Option<String>,
    /// With a source: pairs per device and micro-step. Default: train.batch_size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "usize", range(min = 1))]
    pub batch_size: Option<usize>,
    /// With a source: longest text in tokens; the rest is cut off. Default: data.max_length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "usize", range(min = 1))]
    pub max_length: Option<usize>,
    /// What a loss that compares samples compares: those of a micro-step, or of a whole step.
    #[serde(default)]
    pub scope: Scope,
    /// word-alignment: weight of the term that keeps the anchor's words where they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64", range(min = 0.0))]
    pub stay_close: Option<f64>,
    /// lens: weight of the term that keeps the anchor's mean state where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64", range(min = 0.0))]
    pub retain: Option<f64>,
    /// lens: weight of the term that pulls languages together in the language-agnostic subspace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64", range(min = 0.0))]
    pub align: Option<f64>,
    /// lens: how far each language is moved along its own direction in the language-specific subspace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64", range(min = 0.0))]
    pub separate: Option<f64>,
    /// lens: the source whose rows are probed for the subspaces. Default: `source`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub probe: Option<String>,
    /// lens: tokens of a row that are probed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "usize", range(min = 1))]
    pub probe_length: Option<usize>,
    /// lens: rows of each language that are probed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "usize", range(min = 1))]
    pub probe_rows: Option<usize>,
}

/// The losses on top.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AuxiliaryKind {
    /// InfoNCE between the pooled hidden states of translations (Liu and Niehues 2025; Li et al. 2024).
    MiddleLayer,
    /// Language-agnostic states pulled together, language-specific ones pushed apart (Zhao et al. 2024).
    Lens,
    /// Squared distance between the states of aligned words (Cao et al. 2020; Efimov et al. 2023).
    WordAlignment,
    /// KL of each language's distribution over shared options to the anchor's; an option of this project.
    Consistency,
    /// Load balancing of a mixture of experts (Fedus et al. 2021), over each micro-batch as in Transformers.
    Router,
}

impl AuxiliaryKind {
    /// The name in recipes and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::MiddleLayer => "middle-layer",
            Self::Lens => "lens",
            Self::WordAlignment => "word-alignment",
            Self::Consistency => "consistency",
            Self::Router => "router",
        }
    }

    /// Whether it compares the samples of a micro-step, or of a step, with one another.
    #[must_use]
    pub fn compares_samples(self) -> bool {
        match self {
            Self::MiddleLayer | Self::Consistency => true,
            Self::Lens | Self::WordAlignment | Self::Router => false,
        }
    }

    /// The keys it reads besides `kind`, `weight`, `every`, `unit` and `scope`.
    #[must_use]
    pub fn numbers(self) -> &'static [&'static str] {
        match self {
            Self::MiddleLayer => &[
                "layer",
                "pool",
                "direction",
                "detach",
                "temperature",
                "source",
                "batch_size",
                "max_length",
            ],
            Self::Lens => &[
                "layer",
                "retain",
                "align",
                "separate",
                "probe",
                "probe_length",
                "probe_rows",
                "source",
                "batch_size",
                "max_length",
            ],
            Self::WordAlignment => &["layer", "stay_close", "source", "batch_size", "max_length"],
            Self::Consistency | Self::Router => &[],
        }
    }
}

/// What stands for a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Pool {
    /// The mean over its tokens.
    #[default]
    Mean,
    /// Its last token.
    Last,
    /// Its first token.
    First,
}

/// Who looks for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// The anchor looks for its translation.
    OneWay,
    /// Each looks for the other; the mean of both.
    Symmetric,
}

/// Through which side no gradient flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Detach {
    /// Gradients flow through both sides.
    None,
    /// None flows through the side that is looked for.
    Target,
}

/// What `every` counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EveryUnit {
    /// Optimizer steps.
    #[default]
    Step,
    /// Micro-steps.
    MicroStep,
}

/// What a loss that compares samples compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// The samples of a micro-step, over all processes.
    #[default]
    MicroStep,
    /// The samples of a whole optimizer step.
    Step,
}

/// What Transformers multiplies the loss of a router with (`router_aux_loss_coef` of its configuration classes).
const ROUTER_WEIGHT: f64 = 0.001;

impl Auxiliary {
    /// What the loss is multiplied by.
    #[must_use]
    pub fn weight(&self) -> f64 {
        let of_kind = match self.kind {
            AuxiliaryKind::Router => ROUTER_WEIGHT,
            _ => 1.0,
        };
        self.weight.unwrap_or(of_kind)
    }

    /// Fills in the numbers that the loss reads and the recipe leaves out.
    pub(crate) fn fill_in(&mut self) {
        self.weight = Some(self.weight());
        let middle = self.kind == AuxiliaryKind::MiddleLayer;
        let lens = self.kind == AuxiliaryKind::Lens;
        let layer = if middle { Layer::Middle } else { Layer::Last };
        fill(&mut self.layer, self.kind.numbers().contains(&"layer"), layer);
        fill(&mut self.pool, middle, Pool::Mean);
        fill(&mut self.direction, middle, Direction::OneWay);
        fill(&mut self.detach, middle, Detach::None);
        fill(&mut self.temperature, middle, 0.1);
        fill(&mut self.stay_close, self.kind == AuxiliaryKind::WordAlignment, 1.0);
        for number in [&mut self.retain, &mut self.align, &mut self.separate] {
            fill(number, lens, 1.0);
        }
        fill(&mut self.probe_length, lens, 64);
        fill(&mut self.probe_rows, lens, 300);
    }

    /// The keys that the recipe sets and only some losses read.
    pub(crate) fn set_numbers(&self) -> Vec<&'static str> {
        [
            ("layer", self.layer.is_some()),
            ("pool", self.pool.is_some()),
            ("direction", self.direction.is_some()),
            ("detach", self.detach.is_some()),
            ("temperature", self.temperature.is_some()),
            ("source", self.source.is_some()),
            ("batch_size", self.batch_size.is_some()),
            ("max_length", self.max_length.is_some()),
            ("stay_close", self.stay_close.is_some()),
            ("retain", self.retain.is_some()),
            ("align", self.align.is_some()),
            ("separate", self.separate.is_some()),
            ("probe", self.probe.is_some()),
            ("probe_length", self.probe_length.is_some()),
            ("probe_rows", self.probe_rows.is_some()),
        ]
        .into_iter()
        .filter(|(_, set)| *set)
        .map(|(key, _)| key)
        .collect()
    }
}
