//! What `[objective]`, `[[objective.auxiliary]]` and `[reference]` must hold beyond what a schema can say.

use crate::auxiliary::{Auxiliary, AuxiliaryKind, EveryUnit, Scope};
use crate::error::Finding;
use crate::objective::ObjectiveKind;
use crate::parallel::{Arrangement, Missing};
use crate::recipe::Recipe;
use crate::reference::ReferenceAdapter;
use crate::source::{Format, SourceUse};

/// The first number that the chosen objective, adapter, quantisation or auxiliary loss does not read.
pub(crate) fn unread_numbers(recipe: &Recipe) -> Option<Finding> {
    let objective = &recipe.objective;
    let kind = objective.kind;
    let unread = |key: &str, name: &str, numbers: &[&str]| {
        let advice = if numbers.is_empty() {
            "It reads none.".to_owned()
        } else {
            format!("It reads {}.", numbers.join(", "))
        };
        Finding::at(key, &format!("is not read by {name:?}. Leave it out. {advice}"))
    };
    if let Some(key) = objective
        .set_numbers()
        .into_iter()
        .find(|key| !kind.numbers().contains(key))
    {
        return Some(unread(&format!("objective.{key}"), kind.name(), kind.numbers()));
    }
    let adapter = &recipe.adapter;
    let numbers = adapter.kind.numbers();
    if let Some(key) = adapter.set_numbers().into_iter().find(|key| !numbers.contains(key)) {
        return Some(unread(&format!("adapter.{key}"), adapter.kind.name(), numbers));
    }
    if let Some(quantization) = &recipe.model.quantization {
        let (set, numbers) = (quantization.set_numbers(), quantization.scheme.numbers());
        if let Some(key) = set.into_iter().find(|key| !numbers.contains(key)) {
            return Some(unread(
                &format!("model.quantization.{key}"),
                quantization.scheme.name(),
                numbers,
            ));
        }
    }
    objective.auxiliary.iter().enumerate().find_map(|(index, auxiliary)| {
        let numbers = auxiliary.kind.numbers();
        let key = auxiliary.set_numbers().into_iter().find(|key| !numbers.contains(key))?;
        let path = format!("objective.auxiliary.{index}.{key}");
        Some(unread(&path, auxiliary.kind.name(), numbers))
    })
}

pub(super) fn check(recipe: &Recipe, findings: &mut Vec<Finding>) {
    let objective = &recipe.objective;
    if objective.kind == ObjectiveKind::None && objective.auxiliary.is_empty() {
        let message = "is \"none\", and there is no auxiliary loss, so nothing would be learnt. Add \
                       [[objective.auxiliary]], or choose an objective.";
        findings.push(Finding::at("objective.kind", message));
    }
    if recipe.reference.is_some() && !objective.kind.needs_reference() {
        let message = format!(
            "is read by dpo, robust, hinge, ipo and kto, but the objective is {:?}. Leave [reference] out.",
            objective.kind.name()
        );
        findings.push(Finding::at("reference", &message));
    }
    if objective.kind == ObjectiveKind::Kto {
        if recipe.train.batch_size < 2 {
            let message =
                "is 1, but kto measures its divergence over mismatched samples of a micro-batch. Write 2 or more.";
            findings.push(Finding::at("train.batch_size", message));
        }
        if recipe.reference.as_ref().is_some_and(|reference| reference.cache) {
            let message = "cannot hold what kto asks its reference: samples that each batch mixes anew. Write false.";
            findings.push(Finding::at("reference.cache", message));
        }
    }
    if let Some(reference) = &recipe.reference
        && !reference.model.is_empty()
        && reference.adapter() == ReferenceAdapter::Initial
    {
        let message = "is \"initial\", which is an adapter of the model that is trained, but `reference.model` names another \
                       one. Keep one of them.";
        findings.push(Finding::at("reference.adapter", message));
    }
    for (index, auxiliary) in objective.auxiliary.iter().enumerate() {
        one_auxiliary(recipe, &format!("objective.auxiliary.{index}"), auxiliary, findings);
    }
    pattern(recipe, findings);
    let replacing = objective.auxiliary.iter().filter(|auxiliary| auxiliary.every > 0);
    if replacing.clone().any(|auxiliary| auxiliary.every == 1) && objective.kind != ObjectiveKind::None {
        let message = "is 1, so the main loss would never be computed. Write 0 to add the loss at each step, 2 or more \
                       to alternate, or objective.kind = \"none\".";
        let index = objective.auxiliary.iter().position(|auxiliary| auxiliary.every == 1);
        let index = index.unwrap_or_default();
        findings.push(Finding::at(&format!("objective.auxiliary.{index}.every"), message));
    }
}

/// Micro-steps after which alternating losses may begin their pattern anew: so many are counted beforehand.
const LONGEST_PATTERN: u64 = 10_000_000;

/// The pattern in which losses take the place of the main one is counted beforehand, so it must not be too long.
fn pattern(recipe: &Recipe, findings: &mut Vec<Finding>) {
    let micro_steps = recipe.train.gradient_accumulation as u64;
    let mut period = Some(micro_steps);
    for (index, auxiliary) in recipe.objective.auxiliary.iter().enumerate() {
        let own = match auxiliary.unit {
            EveryUnit::Step => auxiliary.every.max(1).checked_mul(micro_steps),
            EveryUnit::MicroStep => Some(auxiliary.every.max(1)),
        };
        period = period
            .zip(own)
            .and_then(|(one, other)| (one / divisor(one, other)).checked_mul(other));
        if period.is_none_or(|period| period > LONGEST_PATTERN) {
            let message = format!(
                "is {}, so that losses take turns in a pattern of more than {LONGEST_PATTERN} micro-steps. Write a smaller \
                 number.",
                auxiliary.every
            );
            return findings.push(Finding::at(&format!("objective.auxiliary.{index}.every"), &message));
        }
    }
}

/// The greatest common divisor.
fn divisor(one: u64, other: u64) -> u64 {
    if other == 0 { one } else { divisor(other, one % other) }
}

fn one_auxiliary(recipe: &Recipe, key: &str, auxiliary: &Auxiliary, findings: &mut Vec<Finding>) {
    let mut report = |below: &str, message: &str| findings.push(Finding::at(&format!("{key}.{below}"), message));
    let name = auxiliary.kind.name();
    let known: Vec<&str> = recipe.data.sources.iter().map(|source| source.name.as_str()).collect();
    for (field, source) in [("source", &auxiliary.source), ("probe", &auxiliary.probe)] {
        if let Some(source) = source
            && !known.contains(&source.as_str())
        {
            let message = format!(
                "is {source:?}, which is no source. The sources are {}.",
                known.join(", ")
            );
            report(field, &message);
        }
    }
    if auxiliary.source.is_none() && (auxiliary.batch_size.is_some() || auxiliary.max_length.is_some()) {
        report(
            "source",
            "is missing: batch_size and max_length are those of a source. Name it, or leave them out.",
        );
    }
    if auxiliary.kind == AuxiliaryKind::Router {
        return of_router(recipe, auxiliary, &mut report);
    }
    let needs_source = matches!(auxiliary.kind, AuxiliaryKind::Lens | AuxiliaryKind::WordAlignment);
    if needs_source && auxiliary.source.is_none() {
        report(
            "source",
            &format!("is missing. {name:?} reads a source of its own: name it, with use = \"auxiliary\"."),
        );
    }
    let per_micro_step = auxiliary.every > 0 && auxiliary.unit == EveryUnit::MicroStep;
    if per_micro_step && recipe.data.parallel.is_some() {
        let message = "is \"micro-step\", but with [data.parallel] groups stay whole within a step. Write \"step\".";
        report("unit", message);
    }
    if auxiliary.every > 0 && auxiliary.source.is_none() {
        report(
            "every",
            "needs a source: on such units the main data stands still. Name one, or write every = 0.",
        );
    }
    if per_micro_step && !(recipe.train.gradient_accumulation as u64).is_multiple_of(auxiliary.every) {
        let message = format!(
            "is {}, but a step has {} micro-steps, so steps would differ in what they hold. Make \
             train.gradient_accumulation a multiple of it.",
            auxiliary.every, recipe.train.gradient_accumulation
        );
        report("every", &message);
    }
    let compares = auxiliary.kind == AuxiliaryKind::MiddleLayer;
    let pairs = auxiliary.batch_size.unwrap_or(recipe.train.batch_size) as u64;
    let micro_steps = match (auxiliary.scope, per_micro_step) {
        (Scope::MicroStep, _) => 1,
        (Scope::Step, false) => recipe.train.gradient_accumulation as u64,
        (Scope::Step, true) => recipe.train.gradient_accumulation as u64 / auxiliary.every,
    };
    if compares && auxiliary.source.is_some() && pairs * micro_steps < 2 {
        let message = "leaves one pair to compare, and a loss that tells a translation from the others needs two or more. \
                       Raise it, or write scope = \"step\" with more than one micro-step.";
        report("batch_size", message);
    }
    if auxiliary.source.is_none() && !needs_source {
        on_the_batch(recipe, auxiliary, &mut report);
    }
}

/// The loss of routers goes with the passes of the main data.
fn of_router(recipe: &Recipe, auxiliary: &Auxiliary, report: &mut impl FnMut(&str, &str)) {
    if auxiliary.every > 0 {
        report(
            "every",
            "takes turns with the main loss, but routers are balanced where the main data passes. Write 0.",
        );
    }
    if auxiliary.scope == Scope::Step {
        report(
            "scope",
            "is \"step\", but each micro-batch is balanced by itself, as in Transformers. Leave it out.",
        );
    }
    let all = recipe.objective.auxiliary.iter();
    if all.filter(|other| other.kind == AuxiliaryKind::Router).count() > 1 {
        report(
            "kind",
            "is \"router\" more than once, and one balances all routers. Keep one of them.",
        );
    }
}

/// A loss on the batch itself reads whole groups with their anchor.
fn on_the_batch(recipe: &Recipe, auxiliary: &Auxiliary, report: &mut impl FnMut(&str, &str)) {
    let Some(parallel) = &recipe.data.parallel else {
        let message = "ties translations in the batch together, but batches hold single rows. Add [data.parallel], or \
                       name a source.";
        return report("kind", message);
    };
    if parallel.arrangement != Arrangement::Groups {
        report(
            "kind",
            "needs whole groups. Write data.parallel.arrangement = \"groups\".",
        );
    }
    if auxiliary.kind == AuxiliaryKind::MiddleLayer && parallel.groups_per_batch < 2 {
        let message =
            "needs two groups or more to tell a translation from the others. Raise data.parallel.groups_per_batch.";
        report("kind", message);
    }
    if auxiliary.kind == AuxiliaryKind::Consistency {
        let mut sources = recipe
            .data
            .sources
            .iter()
            .filter(|source| source.r#use == SourceUse::Train);
        if sources.any(|source| !matches!(source.format, Format::Choice)) {
            report(
                "kind",
                "compares distributions over options. Its rows need format = \"choice\".",
            );
        }
    }
    if auxiliary.scope == Scope::MicroStep && parallel.languages.is_empty() && parallel.languages_per_group == 0 {
        let message = "is \"micro-step\", so groups must not be cut in two, and how large they are is not said. Name \
                       data.parallel.languages, or write scope = \"step\".";
        return report("scope", message);
    }
    let languages = match (parallel.languages_per_group, parallel.languages.len()) {
        (0, languages) => languages,
        (some, _) => some,
    };
    let batch_size = recipe.train.batch_size;
    let whole = languages > 0 && parallel.missing == Missing::Skip && batch_size.is_multiple_of(languages);
    let enough = auxiliary.kind != AuxiliaryKind::MiddleLayer || batch_size >= 2 * languages;
    if auxiliary.scope == Scope::MicroStep && !(whole && enough) {
        let message = format!(
            "is \"micro-step\", and micro-batches of {batch_size} rows do not hold {} of {} languages. Make \
             train.batch_size a multiple of the languages of a group, or write scope = \"step\".",
            if auxiliary.kind == AuxiliaryKind::MiddleLayer {
                "two or more whole groups"
            } else {
                "whole groups"
            },
            if languages == 0 {
                "all".to_owned()
            } else {
                languages.to_string()
            }
        );
        report("scope", &message);
    }
}
