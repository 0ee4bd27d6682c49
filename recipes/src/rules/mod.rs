//! What a recipe must hold beyond what a schema can say.

mod adapter;
mod distributed;
mod mixture;
mod objective;
mod quantization;
mod sources;
mod tasks;

use std::path::Path;

use oxilangtag::LanguageTag;

use crate::adapter::Targets;
use crate::document::LENGTHS;
use crate::error::Finding;
use crate::eval::{Measure, TaskKind};
use crate::optimizer::OptimizerKind;
use crate::recipe::Recipe;
use crate::selector::Selector;
use crate::train::{Metric, Parameters};

pub(crate) use objective::unread_numbers;

/// Everything that is wrong with a recipe of one stage whose keys and values have passed the schema.
pub(crate) fn check(recipe: &Recipe) -> Vec<Finding> {
    let mut findings = Vec::new();
    model(recipe, &mut findings);
    adapter::check(recipe, &mut findings);
    quantization::check(recipe, &mut findings);
    sources::check(recipe, &mut findings);
    lengths(recipe, &mut findings);
    tasks::check(recipe, &mut findings);
    early_stop(recipe, &mut findings);
    patterns(recipe, &mut findings);
    optimizer(recipe, &mut findings);
    mixture::check(recipe, &mut findings);
    objective::check(recipe, &mut findings);
    distributed::check(recipe, &mut findings);
    findings
}

/// Everything that is wrong with a recipe that only evaluates: with its tasks, and how its model is quantised.
pub(crate) fn check_tasks(recipe: &Recipe) -> Vec<Finding> {
    let mut findings = Vec::new();
    quantization::check_block(recipe, &mut findings);
    tasks::check(recipe, &mut findings);
    findings
}

fn model(recipe: &Recipe, findings: &mut Vec<Finding>) {
    if recipe.output.as_os_str().is_empty() {
        findings.push(Finding::at(
            "output",
            "is empty. Name the folder that the run writes into.",
        ));
    }
    if recipe.model.path.is_empty() {
        let message = "is missing. Write `path = …` in [model] with a model folder or a hub id.";
        findings.push(Finding::at("model.path", message));
    }
}

fn lengths(recipe: &Recipe, findings: &mut Vec<Finding>) {
    let train = &recipe.train;
    let given = [train.steps.is_some(), train.epochs.is_some(), train.tokens.is_some()];
    let given: Vec<&str> = LENGTHS
        .into_iter()
        .zip(given)
        .filter(|(_, given)| *given)
        .map(|(name, _)| name)
        .collect();
    if let [first, second, ..] = given.as_slice() {
        let message = format!("and `train.{first}` both say how long the run is. Keep one of them.");
        findings.push(Finding::at(&format!("train.{second}"), &message));
    }
    if train.steps == Some(0) && !recipe.adapter.is_closed_form() {
        let message = "is 0, so nothing would be trained. Write 1 or more.";
        findings.push(Finding::at("train.steps", message));
    }
    let schedule = &recipe.schedule;
    for (key, value) in [
        ("warmup", schedule.warmup),
        ("num_decay_steps", schedule.num_decay_steps),
    ] {
        if value >= 1.0 && value.fract() != 0.0 {
            let message = format!("is {value}, but must be a fraction below 1 of the run or a whole number of steps.");
            findings.push(Finding::at(&format!("schedule.{key}"), &message));
        }
    }
}

fn optimizer(recipe: &Recipe, findings: &mut Vec<Finding>) {
    let optimizer = &recipe.optimizer;
    if optimizer.kind == OptimizerKind::Adamw8bit && optimizer.moments.is_some() {
        let message = "is not read by \"adamw8bit\", whose moments have 8 bits. Leave it out.";
        findings.push(Finding::at("optimizer.moments", message));
    }
}

fn early_stop(recipe: &Recipe, findings: &mut Vec<Finding>) {
    let early_stop = &recipe.train.early_stop;
    if early_stop.patience == 0 {
        return;
    }
    let tasks = || recipe.eval.tasks.iter();
    let measures = |kind| tasks().any(|task| task.kind == kind);
    let compares = |all: &[Measure]| tasks().any(|task| task.measures.iter().any(|measure| all.contains(measure)));
    let (measured, advice) = match early_stop.metric {
        Metric::ExactMatch => (
            compares(&[Measure::ExactMatch, Measure::Qa]),
            "Add a task of kind \"generate\" to [[eval.tasks]].",
        ),
        Metric::Chrf => (
            compares(&[Measure::Chrf]),
            "Add a task of kind \"generate\" with measures = [\"chrf\"] to [[eval.tasks]].",
        ),
        Metric::Bleu => (
            compares(&[Measure::Bleu]),
            "Add a task of kind \"generate\" with measures = [\"bleu\"] to [[eval.tasks]].",
        ),
        Metric::Fidelity => (
            compares(&[Measure::Fidelity]),
            "Add a task of kind \"generate\" with measures = [\"fidelity\"] to [[eval.tasks]].",
        ),
        Metric::Accuracy => (
            measures(TaskKind::MultipleChoice) || recipe.data.holdout > 0.0 && recipe.objective.kind.is_preference(),
            "Add a task of kind \"multiple-choice\" to [[eval.tasks]].",
        ),
        Metric::Consistency | Metric::Ac3 | Metric::Mlc => (
            tasks().any(|task| task.kind == TaskKind::MultipleChoice && task.group_field.is_some()),
            "Add a task of kind \"multiple-choice\" with a group_field to [[eval.tasks]].",
        ),
        Metric::Retrieval => (
            measures(TaskKind::Retrieval),
            "Add a task of kind \"retrieval\" to [[eval.tasks]].",
        ),
        Metric::Gap => (
            recipe.data.holdout > 0.0 || !recipe.eval.tasks.is_empty(),
            "Set data.holdout, or add a task to [[eval.tasks]].",
        ),
        Metric::Loss | Metric::Perplexity | Metric::BitsPerByte => (
            recipe.data.holdout > 0.0 || measures(TaskKind::Perplexity),
            "Set data.holdout, or add a task of kind \"perplexity\" to [[eval.tasks]].",
        ),
    };
    if !measured {
        let message = format!(
            "waits for {:?}, but nothing measures that. {advice}",
            early_stop.metric.name()
        );
        findings.push(Finding::at("train.early_stop", &message));
    }
    if recipe.train.eval_every == 0 {
        let message = "needs evaluations, but `train.eval_every` is 0. Set it to a number of steps.";
        findings.push(Finding::at("train.early_stop", message));
    }
}

fn patterns(recipe: &Recipe, findings: &mut Vec<Finding>) {
    let mut regex = |key: &str, checked: Result<(), regex::Error>| {
        if let Err(error) = checked {
            // The last line of the parser's message says what is wrong; those before it draw an arrow.
            let reason = error.to_string();
            let reason = reason
                .lines()
                .last()
                .unwrap_or_default()
                .trim_start_matches("error: ")
                .to_owned();
            findings.push(Finding::at(
                key,
                &format!("is not a regular expression: {reason}. Correct what follows \"re:\"."),
            ));
        }
    };
    if let Targets::Regex(pattern) = &recipe.adapter.targets {
        regex("adapter.targets", Selector::from_regex(pattern).map(drop));
    }
    if let Parameters::Regex(pattern) = &recipe.train.parameters {
        regex("train.parameters", Selector::from_regex(pattern).map(drop));
    }
    for (index, freeze) in recipe.train.freeze.iter().enumerate() {
        regex(&format!("train.freeze.{index}.match"), freeze.selector().map(drop));
    }
}

fn unique_names(list: &str, names: &[&str], findings: &mut Vec<Finding>) {
    for (index, name) in names.iter().enumerate() {
        if let Some(first) = names[..index].iter().position(|other| other == name) {
            let message = format!("is {name:?}, as is `{list}.{first}.name`. Give each a name of its own.");
            findings.push(Finding::at(&format!("{list}.{index}.name"), &message));
        }
    }
}

fn glob(key: &str, path: &Path, findings: &mut Vec<Finding>) {
    let path = path.to_string_lossy();
    if path.contains(['*', '?'])
        && let Err(error) = glob::Pattern::new(&path)
    {
        findings.push(Finding::at(
            key,
            &format!("is not a glob: {}. Correct the pattern, or name a file.", error.msg),
        ));
    }
}

fn languages(key: &str, lang: Option<&str>, lang_field: Option<&str>, findings: &mut Vec<Finding>) {
    if let Some(lang) = lang {
        tag(&format!("{key}.lang"), lang, findings);
        if lang_field.is_some() {
            let message = format!("and `{key}.lang` both say the language of the rows. Keep one of them.");
            findings.push(Finding::at(&format!("{key}.lang_field"), &message));
        }
    }
}

fn tag(key: &str, language: &str, findings: &mut Vec<Finding>) {
    if LanguageTag::parse(language).is_ok() {
        return;
    }
    let hyphens = language.replace('_', "-");
    let advice = if hyphens != language && LanguageTag::parse(hyphens.as_str()).is_ok() {
        format!("Write {hyphens:?}.")
    } else {
        "Write a tag such as \"en\", \"sw\", \"pt-BR\" or \"zh-Hant\".".to_owned()
    };
    findings.push(Finding::at(
        key,
        &format!("is {language:?}, which is not a well-formed BCP-47 language tag. {advice}"),
    ));
}
