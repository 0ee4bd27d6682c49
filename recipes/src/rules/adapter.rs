//! What `[adapter]` must hold beyond what a schema can say.

use super::tag;
use crate::adapter::{AdapterKind, Route};
use crate::error::Finding;
use crate::layer::Layer;
use crate::recipe::Recipe;
use crate::train::Length;

pub(super) fn check(recipe: &Recipe, findings: &mut Vec<Finding>) {
    let adapter = &recipe.adapter;
    let mut report = |key: &str, message: &str| findings.push(Finding::at(&format!("adapter.{key}"), message));
    if adapter.kind == AdapterKind::None {
        let advice = "but `adapter.kind` is \"none\". Set the kind, or leave it out.";
        if adapter.init_from.is_some() {
            report("init_from", &format!("names an adapter to go on from, {advice}"));
        }
        if !adapter.under.is_empty() {
            report("under", &format!("names adapters below the trained one, {advice}"));
        }
        if adapter.route == Route::Language {
            report("route", &format!("asks for an adapter for each language, {advice}"));
        }
        return;
    }
    let on_linear_layers = matches!(adapter.kind, AdapterKind::Lora | AdapterKind::Dora);
    if !adapter.modules_to_save.is_empty() && (adapter.route == Route::Language || !on_linear_layers) {
        let why = if on_linear_layers {
            "trains modules that all languages share, while each language has an adapter folder of its own"
        } else {
            "belongs to lora and dora"
        };
        report(
            "modules_to_save",
            &format!("{why}. Leave it out, or select them with train.parameters."),
        );
    }
    if adapter.layer == Some(Layer::Number(0)) {
        report(
            "layer",
            "is 0, the embedding's output. A vector is added to the output of a block: write 1 or more.",
        );
    }
    if adapter.is_closed_form() {
        closed_form(recipe, &mut report);
    } else {
        for (key, set) in [
            ("source", adapter.source.is_some()),
            ("anchor", adapter.anchor.is_some()),
        ] {
            if set {
                report(
                    key,
                    "is read with fit = \"closed-form\" only. Set adapter.fit, or leave it out.",
                );
            }
        }
    }
    for (index, under) in adapter.under.iter().enumerate() {
        if let Some(lang) = &under.lang {
            tag(&format!("adapter.under.{index}.lang"), lang, findings);
        }
    }
    if let Some(anchor) = &adapter.anchor {
        tag("adapter.anchor", anchor, findings);
    }
}

/// A vector that is computed from a source of translations, without a step.
fn closed_form(recipe: &Recipe, report: &mut impl FnMut(&str, &str)) {
    let adapter = &recipe.adapter;
    let known: Vec<&str> = recipe.data.sources.iter().map(|source| source.name.as_str()).collect();
    match &adapter.source {
        None => {
            let message = "is missing. fit = \"closed-form\" reads a source of translations: name one of data.sources.";
            report("source", message);
        }
        Some(source) if !known.contains(&source.as_str()) => {
            let message = format!(
                "is {source:?}, which is no source. The sources are {}.",
                known.join(", ")
            );
            report("source", &message);
        }
        Some(_) => {}
    }
    if recipe.train.length() != Length::Steps(0) {
        let message =
            "is \"closed-form\", which leaves nothing to train. Leave out train.steps, train.epochs and train.tokens.";
        report("fit", message);
    }
    if adapter.init_from.is_some() {
        report(
            "init_from",
            "names an adapter to go on from, but fit = \"closed-form\" computes a new one. Leave it out.",
        );
    }
}
