//! What `[data.mix]` and `[data.parallel]` must hold beyond what a schema can say.

use std::collections::BTreeMap;

use oxilangtag::LanguageTag;

use super::tag;
use crate::error::Finding;
use crate::mix::MixBy;
use crate::recipe::Recipe;

/// The name that stands for all that are not named.
const OTHERS: &str = "*";

pub(super) fn check(recipe: &Recipe, findings: &mut Vec<Finding>) {
    let mix = &recipe.data.mix;
    if mix.is_active() && recipe.data.parallel.is_some() {
        let message = "and [data.parallel] both decide what a batch holds. Keep one of them.";
        findings.push(Finding::at("data.mix", message));
    }
    if mix.temperature.is_some() && !mix.ratios.is_empty() {
        let message = "and `data.mix.ratios` both say the shares. Keep one of them.";
        findings.push(Finding::at("data.mix.temperature", message));
    }
    ratios(recipe, "data.mix.ratios", &mix.ratios, findings);
    if !mix.schedule.is_empty() && mix.ratios.is_empty() && mix.temperature.is_none() {
        let message = "changes shares that nothing sets. Write data.mix.ratios, those before its first phase.";
        findings.push(Finding::at("data.mix.schedule", message));
    }
    let mut before = 0.0;
    for (index, phase) in mix.schedule.iter().enumerate() {
        let key = format!("data.mix.schedule.{index}");
        if phase.ratios.is_empty() {
            findings.push(Finding::at(
                &format!("{key}.ratios"),
                "is empty. Name the shares of this phase.",
            ));
        }
        ratios(recipe, &format!("{key}.ratios"), &phase.ratios, findings);
        if index > 0 && phase.from <= before {
            let message = format!(
                "is {}, but the phase before begins at {before}. Write phases in order.",
                phase.from
            );
            findings.push(Finding::at(&format!("{key}.from"), &message));
        }
        before = phase.from;
    }
    parallel(recipe, findings);
}

fn ratios(recipe: &Recipe, key: &str, ratios: &BTreeMap<String, f64>, findings: &mut Vec<Finding>) {
    let sources: Vec<&str> = recipe.data.sources.iter().map(|source| source.name.as_str()).collect();
    let mut languages = BTreeMap::new();
    for (name, ratio) in ratios {
        let key = format!("{key}.{name}");
        if recipe.data.mix.by == MixBy::Language
            && let Some(first) = languages.insert(canonical(name), name)
        {
            let message = format!("and {first:?} are one language. Give it one share.");
            findings.push(Finding::at(&key, &message));
        }
        if !(ratio.is_finite() && *ratio >= 0.0) {
            findings.push(Finding::at(&key, &format!("is {ratio}, but a share is 0 or more.")));
        }
        match recipe.data.mix.by {
            _ if name == OTHERS => {}
            MixBy::Language => tag(&key, name, findings),
            MixBy::Source if !sources.contains(&name.as_str()) => {
                let message = format!("names no source. The sources are {}.", sources.join(", "));
                findings.push(Finding::at(&key, &message));
            }
            MixBy::Source => {}
        }
    }
    if !ratios.is_empty() && ratios.values().sum::<f64>() <= 0.0 {
        findings.push(Finding::at(
            key,
            "sum to 0, so nothing would be drawn. Give something a share.",
        ));
    }
}

/// The tag in canonical case, so that two spellings of one language are one language.
fn canonical(tag: &str) -> String {
    LanguageTag::parse_and_normalize(tag).map_or_else(|_| tag.to_owned(), LanguageTag::into_inner)
}

fn parallel(recipe: &Recipe, findings: &mut Vec<Finding>) {
    let Some(parallel) = &recipe.data.parallel else {
        return;
    };
    let named: Vec<String> = parallel.languages.iter().map(|language| canonical(language)).collect();
    for (index, language) in parallel.languages.iter().enumerate() {
        let key = format!("data.parallel.languages.{index}");
        tag(&key, language, findings);
        if named[..index].contains(&named[index]) {
            findings.push(Finding::at(
                &key,
                &format!("names {language:?} a second time. Keep one."),
            ));
        }
    }
    tag("data.parallel.anchor", &parallel.anchor, findings);
    if !named.is_empty() && !named.contains(&canonical(&parallel.anchor)) {
        let message = format!(
            "is {:?}, which is not among data.parallel.languages. Add it there, or name another anchor.",
            parallel.anchor
        );
        findings.push(Finding::at("data.parallel.anchor", &message));
    }
    let per_group = parallel.languages_per_group;
    if per_group == 1 || (!named.is_empty() && per_group > named.len()) {
        let message = format!(
            "is {per_group}, but a group has 2 or more languages{}. Write 0 for all.",
            if named.is_empty() {
                String::new()
            } else {
                format!(", at most the {} that are named", named.len())
            }
        );
        findings.push(Finding::at("data.parallel.languages_per_group", &message));
    }
}
