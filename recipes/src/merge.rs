//! `stage.merge`: a stage that merges what earlier stages trained.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::adapter::{AdapterKind, Route};
use crate::error::Finding;
use crate::keys;
use crate::model::Init;
use crate::recipe::Recipe;
use crate::stage::Stage;
use crate::train::Parameters;

/// Makes the stage a merge of what earlier stages trained, models or adapters, in place of a training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Merge {
    /// How tensors become one.
    pub method: MergeMethod,
    /// The stages whose models or adapters are merged, two or more.
    pub of: Vec<String>,
    /// A weight for each of them, in the same order; they are divided by their sum. Absent: all alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Vec<f64>")]
    pub weights: Option<Vec<f64>>,
    /// Share of the entries of a task vector that "ties" and "dare-ties" keep. Absent: 0.2 for "ties", 0.5 for "dare-ties".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64", range(max = 1.0), extend("exclusiveMinimum" = 0.0))]
    pub density: Option<f64>,
    /// What "ties" and "dare-ties" multiply the merged task vector by. Absent: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64", extend("exclusiveMinimum" = 0.0))]
    pub scale: Option<f64>,
    /// The model that the task vectors of "ties" and "dare-ties" start from, a folder (relative to the recipe file) or a hub id.
    /// Absent: the model that the merged stages started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1))]
    pub base: Option<String>,
    /// What of adapters is merged: "entry-wise" keeps the rank, so that a later stage can go on; "exact" (for "linear") adds up
    /// the updates, and the ranks with them.
    #[serde(default)]
    pub combination: MergeCombination,
}

/// How tensors of one name become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MergeMethod {
    /// The weighted mean.
    Linear,
    /// Spherical interpolation between two.
    Slerp,
    /// Task vectors trimmed by magnitude, with elected signs (Yadav et al. 2023).
    Ties,
    /// Task vectors thinned at random, with elected signs (Yu et al. 2023).
    DareTies,
}

impl MergeMethod {
    /// Its name in a recipe.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Slerp => "slerp",
            Self::Ties => "ties",
            Self::DareTies => "dare-ties",
        }
    }

    fn has_base(self) -> bool {
        matches!(self, Self::Ties | Self::DareTies)
    }
}

/// What of adapters is merged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MergeCombination {
    /// The entries of A, and those of B.
    #[default]
    EntryWise,
    /// The updates: ranks add up.
    Exact,
}

/// A merge stage with its folders.
#[derive(Debug, Clone, PartialEq)]
pub struct MergeStage {
    /// What the recipe says.
    pub merge: Merge,
    /// The folders to merge.
    pub inputs: Vec<PathBuf>,
    /// The model that task vectors start from; none where there are none, or adapters are merged.
    pub base: Option<String>,
    /// Name of the folder in the stage's output: `model` or `adapter`.
    pub result: &'static str,
}

/// The recipe of a merge stage: that of the first of the merged stages, with the merge and an output folder of its own.
/// `earlier` are the names and recipes of the stages before.
pub(crate) fn stage(
    recipe: &Recipe,
    stage: &Stage,
    merge: &Merge,
    earlier: &[(&str, Option<&Recipe>)],
) -> Result<Recipe, Vec<Finding>> {
    let mut findings: Vec<Finding> = stage
        .overlay
        .keys()
        .map(String::as_str)
        .chain(stage.from.as_ref().map(|_| "from"))
        .map(|key| {
            Finding::at(
                key,
                "cannot stand beside `merge`: such a stage trains nothing. Leave it out.",
            )
        })
        .collect();
    numbers(merge, &mut findings);
    let mut merged = Vec::new();
    for (index, name) in merge.of.iter().enumerate() {
        let key = format!("merge.of.{index}");
        match earlier.iter().find(|(earlier, _)| earlier == name) {
            Some(_) if merge.of[..index].contains(name) => {
                let message = format!("names {name:?} a second time. Keep one, and give it more weight.");
                findings.push(Finding::at(&key, &message));
            }
            Some((_, found)) => merged.push(*found),
            None => {
                let names: Vec<&str> = earlier.iter().map(|(name, _)| *name).collect();
                let advice = keys::stage_advice(name, &names, "A merge stands after the stages that it merges.");
                let message = format!("is {name:?}, which is no stage before this one. {advice}");
                findings.push(Finding::at(&key, &message));
            }
        }
    }
    // What is wrong with an earlier stage was already said there.
    let merged: Option<Vec<&Recipe>> = merged.into_iter().collect();
    let (true, Some(merged)) = (findings.is_empty(), merged) else {
        return Err(findings);
    };
    let adapters = kind(merge, &merged)?;
    let base = base(merge, &merged, adapters)?;
    let result = if adapters { "adapter" } else { "model" };
    let mut own = merged[0].clone();
    own.output = recipe.output.join(&stage.name);
    own.merge = Some(MergeStage {
        merge: merge.clone(),
        inputs: merged.iter().map(|merged| merged.output.join(result)).collect(),
        base,
        result,
    });
    Ok(own)
}

fn numbers(merge: &Merge, findings: &mut Vec<Finding>) {
    let count = merge.of.len();
    let method = merge.method.name();
    let mut find = |key: &str, message: String| findings.push(Finding::at(&format!("merge.{key}"), &message));
    if count < 2 {
        find("of", format!("is a list of {count}, but must name two stages or more."));
    } else if merge.method == MergeMethod::Slerp && count != 2 {
        find(
            "of",
            format!(
                "is a list of {count}, but slerp merges two. Merge two and then the result with the next, or use linear."
            ),
        );
    }
    let weights = merge.weights.as_deref().unwrap_or_default();
    if merge.weights.is_some() && weights.len() != count {
        find(
            "weights",
            format!(
                "is a list of {}, but must have a number for each of the {count} stages.",
                weights.len()
            ),
        );
    } else if weights.iter().any(|weight| *weight < 0.0) {
        find(
            "weights",
            "has a number below 0. Write numbers of at least 0.".to_owned(),
        );
    } else if merge.weights.is_some() && weights.iter().sum::<f64>() <= 0.0 {
        find("weights", "are all 0. Write at least one above 0.".to_owned());
    }
    let given = [
        ("density", merge.density.is_some()),
        ("scale", merge.scale.is_some()),
        ("base", merge.base.is_some()),
    ];
    for (key, _) in given
        .into_iter()
        .filter(|(_, given)| *given && !merge.method.has_base())
    {
        find(
            key,
            format!("is for \"ties\" and \"dare-ties\", and the method is {method:?}. Leave it out."),
        );
    }
    if merge.combination == MergeCombination::Exact && merge.method != MergeMethod::Linear {
        find(
            "combination",
            format!("is \"exact\", which is for \"linear\", and the method is {method:?}. Leave it out."),
        );
    }
}

/// Whether adapters are merged: all of the stages leave one and nothing else, or none does.
fn kind(merge: &Merge, merged: &[&Recipe]) -> Result<bool, Vec<Finding>> {
    let has_adapter = |recipe: &Recipe| recipe.adapter.kind != AdapterKind::None;
    for (index, recipe) in merged.iter().enumerate() {
        let name = &merge.of[index];
        let key = format!("merge.of.{index}");
        if has_adapter(recipe) != has_adapter(merged[0]) {
            let what = |recipe| {
                if has_adapter(recipe) {
                    "leaves an adapter"
                } else {
                    "leaves a model"
                }
            };
            let message = format!(
                "is {name:?}, which {}, while {:?} {}. Merge models with models and adapters with adapters.",
                what(recipe),
                merge.of[0],
                what(merged[0])
            );
            return Err(vec![Finding::at(&key, &message)]);
        }
        if has_adapter(recipe) && recipe.train.parameters != Parameters::Auto {
            let message = format!(
                "is {name:?}, which leaves an adapter and a model, as `train.parameters` is set there. Train one of the two."
            );
            return Err(vec![Finding::at(&key, &message)]);
        }
        let kept_apart = match recipe.adapter.kind {
            AdapterKind::Bottleneck | AdapterKind::Steering => Some("trains an adapter that PEFT lacks"),
            _ if recipe.adapter.route == Route::Language => Some("trains a copy for each language"),
            _ => None,
        };
        if let (true, Some(what)) = (has_adapter(recipe), kept_apart) {
            let message = format!("is {name:?}, which {what}, and only LoRA adapters for all rows are merged.");
            return Err(vec![Finding::at(&key, &message)]);
        }
        let rank = |recipe: &Recipe| recipe.adapter.rank;
        let entry_wise = merge.method != MergeMethod::Linear || merge.combination == MergeCombination::EntryWise;
        if has_adapter(recipe) && entry_wise && rank(recipe) != rank(merged[0]) {
            let message = format!(
                "is {name:?} of rank {}, while {:?} has rank {}. Give both one adapter.rank, or write method = \"linear\" and \
                 combination = \"exact\".",
                rank(recipe),
                merge.of[0],
                rank(merged[0])
            );
            return Err(vec![Finding::at(&key, &message)]);
        }
        if recipe.adapter.kind == AdapterKind::Dora {
            let message = format!(
                "is {name:?}, which trains DoRA, whose magnitudes cannot be merged. Use adapter.kind = \"lora\" there."
            );
            return Err(vec![Finding::at(&key, &message)]);
        }
    }
    Ok(has_adapter(merged[0]))
}

/// The model that task vectors start from.
fn base(merge: &Merge, merged: &[&Recipe], adapters: bool) -> Result<Option<String>, Vec<Finding>> {
    if adapters {
        return match &merge.base {
            None => Ok(None),
            Some(_) => Err(vec![Finding::at(
                "merge.base",
                "is for models, and these are adapters: each is what was learnt. Leave it out.",
            )]),
        };
    }
    if !merge.method.has_base() || merge.base.is_some() {
        return Ok(merge.base.clone());
    }
    let of_first = &merged[0].model;
    let is_known = merged
        .iter()
        .all(|recipe| recipe.model.path == of_first.path && recipe.model.init == Init::Weights);
    if is_known {
        return Ok(Some(of_first.path.clone()));
    }
    let message = "is missing, and the merged stages did not start from the same weights. Write `base = …` with the model \
                   that their task vectors start from.";
    Err(vec![Finding::at("merge.base", message)])
}
