//! `[adapter]`: the small weights that are trained in place of the model's own.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::layer::Layer;
use crate::objective::fill;
use crate::selector::Selector;
use crate::values::{WordOrNames, read_path, word_or_names_schema, write_path};

/// The adapter to train. Without this table the base weights are trained. Which of the keys from `reduction` on a kind reads
/// stands in [`AdapterKind::numbers`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Adapter {
    /// Which kind of adapter. "none": base weights are trained, as without this table.
    pub kind: AdapterKind,
    /// lora, dora: inner dimension of the low-rank matrices A [rank, in] and B [out, rank].
    #[schemars(range(min = 1))]
    pub rank: usize,
    /// lora, dora: numerator of the scale: the update is multiplied by alpha / rank (with `rslora`, by alpha / √rank).
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub alpha: f64,
    /// Share of the adapter's inputs (bottleneck: of its outputs) set to zero while training.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    pub dropout: f64,
    /// lora, dora: rank-stabilised scale: alpha / √rank in place of alpha / rank.
    pub rslora: bool,
    /// lora, dora: which linear layers carry the adapter: "all-linear" (all but the head), a list of module names such as
    /// ["q_proj", "v_proj"], or "re:" and a regular expression searched in the module's path.
    pub targets: Targets,
    /// Modules trained in full and saved with the adapter, such as ["embed_tokens", "lm_head"].
    pub modules_to_save: Vec<String>,
    /// An adapter folder to go on from (relative to the recipe file). Empty: start anew.
    #[serde(serialize_with = "write_path", deserialize_with = "read_path")]
    #[schemars(with = "String")]
    pub init_from: Option<PathBuf>,
    /// "language": one copy of the adapter for each language of the data; each row passes through that of its language.
    pub route: Route,
    /// Frozen adapters below the trained one, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub under: Vec<Under>,
    /// bottleneck: the inner dimension is the model's hidden size divided by this.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "usize", range(min = 1))]
    pub reduction: Option<usize>,
    /// steering: the hidden states that the vector is added to: N as in hidden_states.N, from 1 on, "middle" (half of the
    /// blocks, rounded down) or "last" (before the final norm).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Layer")]
    pub layer: Option<Layer>,
    /// steering: what the vector is multiplied by where it is added.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64")]
    pub scale: Option<f64>,
    /// steering: "learned" by the objective, or in "closed-form": the difference of mean hidden states of translations.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Fit")]
    pub fit: Option<Fit>,
    /// steering in closed form: name of the source of translations.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub source: Option<String>,
    /// steering in closed form: the language to steer to.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub anchor: Option<String>,
}

impl Default for Adapter {
    fn default() -> Self {
        Self {
            kind: AdapterKind::Lora,
            rank: 16,
            alpha: 32.0,
            dropout: 0.05,
            rslora: false,
            targets: Targets::AllLinear,
            modules_to_save: Vec::new(),
            init_from: None,
            route: Route::None,
            under: Vec::new(),
            reduction: None,
            layer: None,
            scale: None,
            fit: None,
            source: None,
            anchor: None,
        }
    }
}

impl Adapter {
    /// What a recipe without `[adapter]` means: base weights are trained.
    #[must_use]
    pub fn none() -> Self {
        Self {
            kind: AdapterKind::None,
            ..Self::default()
        }
    }

    /// Whether the adapter is computed from hidden states before the first step, so that there are no steps.
    #[must_use]
    pub fn is_closed_form(&self) -> bool {
        self.kind == AdapterKind::Steering && self.fit == Some(Fit::ClosedForm)
    }

    /// Fills in the keys that the kind reads and the recipe leaves out.
    pub(crate) fn fill_in(&mut self) {
        let steering = self.kind == AdapterKind::Steering;
        fill(&mut self.reduction, self.kind == AdapterKind::Bottleneck, 2);
        fill(&mut self.layer, steering, Layer::Middle);
        fill(&mut self.scale, steering, 1.0);
        fill(&mut self.fit, steering, Fit::Learned);
        let closed_form = self.is_closed_form();
        fill(&mut self.anchor, closed_form, "en".to_owned());
    }

    /// The keys of [`AdapterKind::numbers`] that the recipe sets.
    pub(crate) fn set_numbers(&self) -> Vec<&'static str> {
        [
            ("reduction", self.reduction.is_some()),
            ("layer", self.layer.is_some()),
            ("scale", self.scale.is_some()),
            ("fit", self.fit.is_some()),
            ("source", self.source.is_some()),
            ("anchor", self.anchor.is_some()),
        ]
        .into_iter()
        .filter(|(_, set)| *set)
        .map(|(key, _)| key)
        .collect()
    }
}

/// The keys that one kind of adapter reads and others do not.
pub(crate) const NUMBERS: [&str; 6] = ["reduction", "layer", "scale", "fit", "source", "anchor"];

/// The kinds of adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AdapterKind {
    /// Low-rank updates of linear layers (Hu et al. 2021).
    Lora,
    /// LoRA on the direction, with a trained magnitude per output (Liu et al. 2024).
    Dora,
    /// A small network with a residual connection after each block (Houlsby et al. 2019; Pfeiffer et al. 2020, 2022).
    Bottleneck,
    /// A vector added to the hidden states between two blocks.
    Steering,
    /// No adapter: base weights are trained.
    None,
}

impl AdapterKind {
    /// The name in recipes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lora => "lora",
            Self::Dora => "dora",
            Self::Bottleneck => "bottleneck",
            Self::Steering => "steering",
            Self::None => "none",
        }
    }

    /// Those of `reduction`, `layer`, `scale`, `fit`, `source` and `anchor` that it reads.
    #[must_use]
    pub fn numbers(self) -> &'static [&'static str] {
        match self {
            Self::Lora | Self::Dora | Self::None => &[],
            Self::Bottleneck => &["reduction"],
            Self::Steering => &["layer", "scale", "fit", "source", "anchor"],
        }
    }
}

/// Which copy of the adapter a row passes through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Route {
    /// There is one, for all rows.
    #[default]
    None,
    /// That of its language.
    Language,
}

/// How a steering vector comes about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Fit {
    /// By the objective, from zero.
    Learned,
    /// As the difference of mean hidden states of translations.
    ClosedForm,
}

/// A frozen adapter below the trained one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Under {
    /// The adapter's folder (relative to the recipe file). One with a copy for each language stands for all of them, each
    /// for the rows of its language.
    #[schemars(with = "String", length(min = 1))]
    pub path: PathBuf,
    /// Only for rows of this language. Absent: for all rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub lang: Option<String>,
}

/// Which linear layers carry the adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "WordOrNames", into = "WordOrNames")]
pub enum Targets {
    /// Every linear layer but the head, as in PEFT.
    AllLinear,
    /// The layers whose path contains one of these names as whole segments.
    Names(Vec<String>),
    /// The layers in whose path this regular expression is found (without the `re:`).
    Regex(String),
}

impl Targets {
    /// What decides whether a module carries the adapter; `None` for [`Targets::AllLinear`].
    ///
    /// # Errors
    /// When the regular expression is none; never for a loaded recipe, whose patterns were checked.
    pub fn selector(&self) -> Result<Option<Selector>, regex::Error> {
        match self {
            Self::AllLinear => Ok(None),
            Self::Names(names) => Ok(Some(Selector::from_names(names))),
            Self::Regex(pattern) => Selector::from_regex(pattern).map(Some),
        }
    }
}

impl From<WordOrNames> for Targets {
    fn from(value: WordOrNames) -> Self {
        match value {
            WordOrNames::Word(word) => match word.strip_prefix("re:") {
                Some(pattern) => Self::Regex(pattern.to_owned()),
                None => Self::AllLinear,
            },
            WordOrNames::Names(names) => Self::Names(names),
        }
    }
}

impl From<Targets> for WordOrNames {
    fn from(targets: Targets) -> Self {
        match targets {
            Targets::AllLinear => Self::Word("all-linear".to_owned()),
            Targets::Names(names) => Self::Names(names),
            Targets::Regex(pattern) => Self::Word(format!("re:{pattern}")),
        }
    }
}

impl JsonSchema for Targets {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Targets".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        word_or_names_schema("all-linear", "module names")
    }
}
