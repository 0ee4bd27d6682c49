//! What `[[data.sources]]` must hold beyond what a schema can say.

use super::{glob, languages, tag, unique_names};
use crate::build::{Build, BuildKind};
use crate::error::Finding;
use crate::mix::MixBy;
use crate::objective::ObjectiveKind;
use crate::recipe::Recipe;
use crate::source::{Format, Source, SourcePath, SourceUse};

pub(super) fn check(recipe: &Recipe, findings: &mut Vec<Finding>) {
    let sources = &recipe.data.sources;
    if sources.is_empty() {
        let message = "is missing, so there is nothing to learn from. Write [[data.sources]] with a path and a format.";
        findings.push(Finding::at("data.sources", message));
    }
    let trained = |source: &Source| source.r#use == SourceUse::Train;
    let learns = recipe.objective.kind != ObjectiveKind::None && !recipe.adapter.is_closed_form();
    if !sources.is_empty() && !sources.iter().any(trained) && learns {
        let message = format!(
            "are all auxiliary, so the objective {:?} has nothing to learn from. Add a source with use = \"train\", or \
             write objective.kind = \"none\".",
            recipe.objective.kind.name()
        );
        findings.push(Finding::at("data.sources", &message));
    }
    let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
    unique_names("data.sources", &names, findings);
    for (index, source) in sources.iter().enumerate() {
        let key = format!("data.sources.{index}");
        path(&key, source, findings);
        languages(&key, source.lang.as_deref(), source.lang_field.as_deref(), findings);
        match source.r#use {
            SourceUse::Train => fits_objective(&key, source, recipe.objective.kind, findings),
            SourceUse::Auxiliary => auxiliary(&key, source, recipe, findings),
        }
        builders(&key, source, findings);
    }
    named_sources(recipe, findings);
}

fn path(key: &str, source: &Source, findings: &mut Vec<Finding>) {
    let files = match &source.path {
        SourcePath::Files(path) => return glob(&format!("{key}.path"), path, findings),
        SourcePath::Aligned(files) => files,
    };
    if source.format != Format::Parallel {
        let message = format!(
            "is {:?}, but line-aligned files hold texts that are translations of one another. Write \"parallel\".",
            source.format.name()
        );
        findings.push(Finding::at(&format!("{key}.format"), &message));
    }
    for language in files.keys() {
        tag(&format!("{key}.path.{language}"), language, findings);
    }
    let set = [
        ("lang", source.lang.is_some()),
        ("lang_field", source.lang_field.is_some()),
        ("group_field", source.group_field.is_some()),
        ("fields", !source.fields.is_empty()),
    ];
    for (name, _) in set.into_iter().filter(|(_, set)| *set) {
        let message = "says nothing of line-aligned files: their languages stand in `path`, and their lines are the groups. \
                       Leave it out.";
        findings.push(Finding::at(&format!("{key}.{name}"), message));
    }
}

/// An objective reads the rows that it is made for.
fn fits_objective(key: &str, source: &Source, objective: ObjectiveKind, findings: &mut Vec<Finding>) {
    let (format, name) = (source.format, objective.name());
    let message = if objective.reads_pairs() {
        if matches!(format, Format::Preference | Format::Tokens) {
            return;
        }
        format!(
            "is {:?}, but the objective {name:?} reads pairs of a chosen and a rejected answer. Use format = \
             \"preference\", or \"tokens\" with chosen_ids and rejected_ids.",
            format.name()
        )
    } else if objective == ObjectiveKind::Kto {
        if matches!(format, Format::Kto | Format::Tokens) {
            return;
        }
        format!(
            "is {:?}, but the objective {name:?} reads answers that are marked desirable or not. Use format = \"kto\", or \
             \"tokens\" with label.",
            format.name()
        )
    } else {
        let (rows, objectives) = match format {
            Format::Preference => ("pairs of a chosen and a rejected answer", "dpo or orpo"),
            Format::Kto => ("answers that are marked desirable or not", "kto"),
            _ => return,
        };
        format!(
            "is {:?}, but the objective {name:?} does not read {rows}. Choose an objective that does, such as {objectives}.",
            format.name()
        )
    };
    findings.push(Finding::at(&format!("{key}.format"), &message));
}

fn auxiliary(key: &str, source: &Source, recipe: &Recipe, findings: &mut Vec<Finding>) {
    let losses = &recipe.objective.auxiliary;
    let readers = losses
        .iter()
        .filter(|loss| [&loss.source, &loss.probe].contains(&&Some(source.name.clone())));
    let mut lengths: Vec<usize> = readers
        .clone()
        .map(|loss| loss.max_length.unwrap_or(recipe.data.max_length))
        .collect();
    lengths.sort_unstable();
    lengths.dedup();
    let message = match lengths.as_slice() {
        [_] => None,
        // A steering vector in closed form is computed from it.
        [] if recipe.adapter.source.as_ref() == Some(&source.name) => None,
        [] => Some(
            "is \"auxiliary\", but no loss names the source. Write its name as `source` in [[objective.auxiliary]], or \
             use = \"train\"."
                .to_owned(),
        ),
        lengths => Some(format!(
            "is \"auxiliary\", and the losses that name the source cut its texts at {lengths:?} tokens. Give them one \
             max_length, or a source each."
        )),
    };
    if let Some(message) = message {
        findings.push(Finding::at(&format!("{key}.use"), &message));
    }
    if matches!(source.format, Format::Preference | Format::Kto | Format::Choice) {
        let message = format!(
            "is {:?}, but the rows of an auxiliary source are read as one text each. Use parallel, text, tokens or a \
             format of conversations, whose prompts are read.",
            source.format.name()
        );
        findings.push(Finding::at(&format!("{key}.format"), &message));
    }
    if !source.build.is_empty() {
        let message = "makes rows to train on, but the source is auxiliary. Write use = \"train\", or leave it out.";
        findings.push(Finding::at(&format!("{key}.build"), message));
    }
}

/// Losses name auxiliary sources, shares those that are trained on.
fn named_sources(recipe: &Recipe, findings: &mut Vec<Finding>) {
    let uses = |name: &str, wanted: SourceUse| {
        let mut sources = recipe.data.sources.iter();
        sources.any(|source| source.name == name && source.r#use == wanted)
    };
    for (index, loss) in recipe.objective.auxiliary.iter().enumerate() {
        for (field, name) in [("source", &loss.source), ("probe", &loss.probe)] {
            let Some(name) = name.as_deref().filter(|name| uses(name, SourceUse::Train)) else {
                continue;
            };
            let message =
                format!("is {name:?}, a source that is trained on. Write use = \"auxiliary\" in that source.");
            findings.push(Finding::at(&format!("objective.auxiliary.{index}.{field}"), &message));
        }
    }
    let mix = &recipe.data.mix;
    let phases = mix.schedule.iter().enumerate().map(|(index, phase)| {
        let key = format!("data.mix.schedule.{index}.ratios");
        (key, &phase.ratios)
    });
    let all = std::iter::once(("data.mix.ratios".to_owned(), &mix.ratios)).chain(phases);
    for (key, ratios) in all.filter(|_| mix.by == MixBy::Source) {
        for name in ratios.keys().filter(|name| uses(name, SourceUse::Auxiliary)) {
            let message = "is an auxiliary source, of which nothing is trained on. Leave it out.";
            findings.push(Finding::at(&format!("{key}.{name}"), message));
        }
    }
}

fn builders(key: &str, source: &Source, findings: &mut Vec<Finding>) {
    if source.keep && source.build.is_empty() {
        let message = "keeps the source's own rows beside those that are built, and nothing is built. Leave it out.";
        findings.push(Finding::at(&format!("{key}.keep"), message));
    }
    for (index, build) in source.build.iter().enumerate() {
        let key = format!("{key}.build.{index}");
        let mut report = |below: &str, message: &str| findings.push(Finding::at(&format!("{key}.{below}"), message));
        let (kind, format) = (build.kind, source.format);
        let texts = matches!(format, Format::Text | Format::Parallel);
        if !texts && !format.is_task() {
            let message = format!(
                "is {:?}, but the source's format is {:?}. Rows are built out of parallel, text, alpaca, sharegpt, \
                 messages and prompt-completion.",
                kind.name(),
                format.name()
            );
            report("kind", &message);
        } else if texts && kind.needs_answers() {
            let message = format!(
                "is {:?}, which needs questions with their answers, but the source's format is {:?}. Use alpaca, sharegpt, \
                 messages or prompt-completion.",
                kind.name(),
                format.name()
            );
            report("kind", &message);
        }
        build_languages(&key, build, findings);
        numbers(&key, build, findings);
    }
}

fn build_languages(key: &str, build: &Build, findings: &mut Vec<Finding>) {
    for (name, languages) in [("from", &build.from), ("to", &build.to)] {
        for (index, language) in languages.iter().enumerate() {
            let key = format!("{key}.{name}.{index}");
            tag(&key, language, findings);
            if languages[..index].contains(language) {
                let message = format!("names {language:?} a second time. Keep one.");
                findings.push(Finding::at(&key, &message));
            }
        }
    }
    match (build.kind, build.from.as_slice(), build.to.as_slice()) {
        (BuildKind::ParallelDocument, [_, ..], _) => {
            let message =
                "is not read by \"parallel-document\", whose versions are equals. Name its languages in `to`.";
            findings.push(Finding::at(&format!("{key}.from"), message));
        }
        (BuildKind::Crossin, [_, _, ..], _) => {
            let message = "names several languages, but \"crossin\" has one that all others are asked from and answered \
                           in. Keep one.";
            findings.push(Finding::at(&format!("{key}.from"), message));
        }
        (_, [from], [to]) if from == to => {
            let message = format!("is {to:?}, as is `from`, so no row can be made. Name another language.");
            findings.push(Finding::at(&format!("{key}.to"), &message));
        }
        _ => {}
    }
}

/// Numbers that only one kind reads.
fn numbers(key: &str, build: &Build, findings: &mut Vec<Finding>) {
    let (probability, languages) = (build.probability, build.languages_per_document);
    let wrong = [
        ("probability", probability.is_some(), BuildKind::CrossLingualAnswer),
        (
            "languages_per_document",
            languages.is_some(),
            BuildKind::ParallelDocument,
        ),
    ];
    for (name, _, reader) in wrong.into_iter().filter(|(_, set, kind)| *set && *kind != build.kind) {
        let message = format!("is read by {:?} alone. Leave it out.", reader.name());
        findings.push(Finding::at(&format!("{key}.{name}"), &message));
    }
    let named = if build.to.is_empty() {
        usize::MAX
    } else {
        build.to.len()
    };
    if build.kind == BuildKind::ParallelDocument
        && let Some(count) = languages
        && (count == 1 || count > named)
    {
        let message = format!(
            "is {count}, but a document has 2 languages or more, and no more than `to` names. Write 0 for all."
        );
        findings.push(Finding::at(&format!("{key}.languages_per_document"), &message));
    }
    if build.kind == BuildKind::ParallelDocument && build.to.len() == 1 {
        let message = "names one language, but a document has 2 or more. Add another, or leave it out for all.";
        findings.push(Finding::at(&format!("{key}.to"), message));
    }
}
