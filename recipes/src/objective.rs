//! `[objective]`: what is minimised.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::auxiliary::Auxiliary;

/// What is minimised. Which of the numbers an objective reads, and their defaults, stand in [`ObjectiveKind::numbers`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Objective {
    /// Which loss.
    pub kind: ObjectiveKind,
    /// What the loss is multiplied by.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub weight: f64,
    /// dpo, robust, hinge, ipo, cpo, kto: how far the model may move from the reference (smaller: farther); orpo: weight
    /// of the odds ratio; simpo: scale of the reward.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64", extend("exclusiveMinimum" = 0.0))]
    pub beta: Option<f64>,
    /// dpo, robust: share of the pairs whose preference is taken to be wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64", range(min = 0.0), extend("exclusiveMaximum" = 0.5))]
    pub label_smoothing: Option<f64>,
    /// dpo: means of the log-probabilities over the answer's tokens in place of sums.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool")]
    pub length_normalised: Option<bool>,
    /// ipo: means over the answer's tokens, as TRL; false: sums, as the paper.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool")]
    pub average: Option<bool>,
    /// orpo: which tokens of the chosen sequence its likelihood counts: "all" (prompt too, as TRL) or "completion".
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Nll")]
    pub nll: Option<Nll>,
    /// simpo: the margin that the reward difference has to reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64", range(min = 0.0))]
    pub gamma: Option<f64>,
    /// cpo, slic: weight of the likelihood of the chosen answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64", range(min = 0.0))]
    pub alpha: Option<f64>,
    /// slic: the margin of the log-probabilities.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64", range(min = 0.0))]
    pub delta: Option<f64>,
    /// kto: weight of desirable samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64", range(min = 0.0))]
    pub desirable_weight: Option<f64>,
    /// kto: weight of undesirable samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64", range(min = 0.0))]
    pub undesirable_weight: Option<f64>,
    /// goldfish: one in k tokens carries no loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "usize", range(min = 2))]
    pub k: Option<usize>,
    /// goldfish: how many tokens decide whether the last of them carries loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "usize", range(min = 1))]
    pub h: Option<usize>,
    /// Preference objectives: train with the adapter's dropout.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool")]
    pub dropout: Option<bool>,
    /// Losses on top.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub auxiliary: Vec<Auxiliary>,
}

impl Default for Objective {
    fn default() -> Self {
        Self {
            kind: ObjectiveKind::Sft,
            weight: 1.0,
            beta: None,
            label_smoothing: None,
            length_normalised: None,
            average: None,
            nll: None,
            gamma: None,
            alpha: None,
            delta: None,
            desirable_weight: None,
            undesirable_weight: None,
            k: None,
            h: None,
            dropout: None,
            auxiliary: Vec::new(),
        }
    }
}

/// Which tokens of the chosen sequence the likelihood of ORPO counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Nll {
    /// All of them, those of the prompt too.
    All,
    /// Those of the answer.
    Completion,
}

/// The losses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ObjectiveKind {
    /// Cross-entropy of the supervised tokens, averaged over all of them in an optimizer step.
    Sft,
    /// The same with one in k tokens left out, chosen by a hash of the text, against memorisation (Hans et al. 2024).
    Goldfish,
    /// Direct preference optimisation (Rafailov et al. 2023).
    Dpo,
    /// DPO with noisy preferences corrected for (Chowdhury et al. 2024).
    Robust,
    /// DPO's margin under a hinge (Zhao et al. 2023, normalised by the reference).
    Hinge,
    /// Identity preference optimisation (Azar et al. 2023).
    Ipo,
    /// Odds ratio preference optimisation, without a reference (Hong et al. 2024).
    Orpo,
    /// Simple preference optimisation, without a reference (Meng et al. 2024).
    Simpo,
    /// Contrastive preference optimisation, without a reference (Xu et al. 2024).
    Cpo,
    /// Sequence likelihood calibration, without a reference (Zhao et al. 2023).
    Slic,
    /// Kahneman-Tversky optimisation, on samples marked desirable or not (Ethayarajh et al. 2024).
    Kto,
    /// None: the auxiliary losses alone.
    None,
}

impl ObjectiveKind {
    /// The name in recipes and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sft => "sft",
            Self::Goldfish => "goldfish",
            Self::Dpo => "dpo",
            Self::Robust => "robust",
            Self::Hinge => "hinge",
            Self::Ipo => "ipo",
            Self::Orpo => "orpo",
            Self::Simpo => "simpo",
            Self::Cpo => "cpo",
            Self::Slic => "slic",
            Self::Kto => "kto",
            Self::None => "none",
        }
    }

    /// The keys of `[objective]` that it reads besides `kind`, `weight` and `auxiliary`.
    #[must_use]
    pub fn numbers(self) -> &'static [&'static str] {
        match self {
            Self::Sft | Self::None => &[],
            Self::Goldfish => &["k", "h"],
            Self::Dpo => &["beta", "label_smoothing", "length_normalised", "dropout"],
            Self::Robust => &["beta", "label_smoothing", "dropout"],
            Self::Hinge => &["beta", "dropout"],
            Self::Ipo => &["beta", "average", "dropout"],
            Self::Orpo => &["beta", "nll", "dropout"],
            Self::Simpo => &["beta", "gamma", "dropout"],
            Self::Cpo => &["beta", "alpha", "dropout"],
            Self::Slic => &["delta", "alpha", "dropout"],
            Self::Kto => &["beta", "desirable_weight", "undesirable_weight", "dropout"],
        }
    }

    /// Whether it reads pairs of a chosen and a rejected answer.
    #[must_use]
    pub fn reads_pairs(self) -> bool {
        self.is_preference() && self != Self::Kto
    }

    /// Whether it reads preferences: pairs, or samples marked desirable or not.
    #[must_use]
    pub fn is_preference(self) -> bool {
        !matches!(self, Self::Sft | Self::Goldfish | Self::None)
    }

    /// Whether it compares with `[reference]`.
    #[must_use]
    pub fn needs_reference(self) -> bool {
        matches!(self, Self::Dpo | Self::Robust | Self::Hinge | Self::Ipo | Self::Kto)
    }
}

impl Objective {
    /// Whether a run reads the main data: for the objective itself, or for an auxiliary loss on the batch.
    #[must_use]
    pub fn reads_main_data(&self) -> bool {
        self.kind != ObjectiveKind::None || self.auxiliary.iter().any(|auxiliary| auxiliary.source.is_none())
    }

    /// Fills in the numbers that the objective reads and the recipe leaves out: TRL's defaults, where TRL has them.
    pub(crate) fn fill_in(&mut self) {
        let reads = |name: &str| self.kind.numbers().contains(&name);
        let beta = if self.kind == ObjectiveKind::Simpo { 2.0 } else { 0.1 };
        let alpha = if self.kind == ObjectiveKind::Slic { 0.0 } else { 1.0 };
        let (has_beta, has_alpha) = (reads("beta"), reads("alpha"));
        let (smoothing, normalised, average) = (reads("label_smoothing"), reads("length_normalised"), reads("average"));
        let (nll, gamma, delta, k) = (reads("nll"), reads("gamma"), reads("delta"), reads("k"));
        let (weights, dropout) = (reads("desirable_weight"), reads("dropout"));
        fill(&mut self.beta, has_beta, beta);
        fill(&mut self.alpha, has_alpha, alpha);
        fill(&mut self.label_smoothing, smoothing, 0.0);
        fill(&mut self.length_normalised, normalised, false);
        fill(&mut self.average, average, true);
        fill(&mut self.nll, nll, Nll::All);
        fill(&mut self.gamma, gamma, 0.5);
        fill(&mut self.delta, delta, 1.0);
        fill(&mut self.desirable_weight, weights, 1.0);
        fill(&mut self.undesirable_weight, weights, 1.0);
        fill(&mut self.k, k, 50);
        fill(&mut self.h, k, 50);
        fill(&mut self.dropout, dropout, false);
        self.auxiliary.iter_mut().for_each(Auxiliary::fill_in);
    }

    /// The numbers that the recipe sets, by key.
    pub(crate) fn set_numbers(&self) -> Vec<&'static str> {
        [
            ("beta", self.beta.is_some()),
            ("label_smoothing", self.label_smoothing.is_some()),
            ("length_normalised", self.length_normalised.is_some()),
            ("average", self.average.is_some()),
            ("nll", self.nll.is_some()),
            ("gamma", self.gamma.is_some()),
            ("alpha", self.alpha.is_some()),
            ("delta", self.delta.is_some()),
            ("desirable_weight", self.desirable_weight.is_some()),
            ("undesirable_weight", self.undesirable_weight.is_some()),
            ("k", self.k.is_some()),
            ("h", self.h.is_some()),
            ("dropout", self.dropout.is_some()),
        ]
        .into_iter()
        .filter(|(_, set)| *set)
        .map(|(key, _)| key)
        .collect()
    }
}

/// Gives a number that is read and not set its default.
pub(crate) fn fill<T>(number: &mut Option<T>, read: bool, default: T) {
    if read {
        number.get_or_insert(default);
    }
}
