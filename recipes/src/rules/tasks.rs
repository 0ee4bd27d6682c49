//! What `[[eval.tasks]]` must hold beyond what a schema can say.

use super::{glob, languages, tag, unique_names};
use crate::error::Finding;
use crate::eval::{DivideBy, Extract, Measure, PromptLanguage, Scoring, Similarity, Task, TaskKind};
use crate::recipe::Recipe;
use crate::source::Format;

pub(super) fn check(recipe: &Recipe, findings: &mut Vec<Finding>) {
    let tasks = &recipe.eval.tasks;
    let names: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
    unique_names("eval.tasks", &names, findings);
    for (index, task) in tasks.iter().enumerate() {
        let key = format!("eval.tasks.{index}");
        rows(&key, task, &tasks[..index], findings);
        languages(&key, task.lang.as_deref(), task.lang_field.as_deref(), findings);
        tag(&format!("{key}.anchor"), &task.anchor, findings);
        if let Some(language) = &task.answer_lang {
            tag(&format!("{key}.answer_lang"), language, findings);
        }
        task_languages(&key, task, findings);
        format(&format!("{key}.format"), task, findings);
        unread(&key, task, findings);
        asked(&key, task, findings);
    }
}

/// Where the rows come from: a file, or an earlier task that translates.
fn rows(key: &str, task: &Task, earlier: &[Task], findings: &mut Vec<Finding>) {
    let Some(from) = &task.from else {
        if task.path.as_os_str().is_empty() {
            findings.push(Finding::at(key, "needs a `path`: the file that has the rows."));
        } else {
            glob(&format!("{key}.path"), &task.path, findings);
        }
        return;
    };
    let key = format!("{key}.from");
    if !task.path.as_os_str().is_empty() {
        let message = "names a task whose rows are read, and there is a `path` too. Keep one.";
        findings.push(Finding::at(&key, message));
    }
    match earlier.iter().find(|task| task.name == *from) {
        Some(task) if !task.translate.is_empty() => {}
        Some(_) => {
            let message =
                format!("is {from:?}, a task that translates no fields. Set its `translate`, such as [\"question\"].");
            findings.push(Finding::at(&key, &message));
        }
        None => {
            let message = format!("is {from:?}, and no task above has that name.");
            findings.push(Finding::at(&key, &message));
        }
    }
}

/// Which formats a kind of task reads.
fn format(key: &str, task: &Task, findings: &mut Vec<Finding>) {
    let several = matches!(task.format, Format::Preference | Format::Kto | Format::Choice);
    let message = match (task.kind, task.format) {
        (TaskKind::Generate, Format::Choice) if !task.translate.is_empty() => return,
        (TaskKind::Generate, Format::Text | Format::Tokens) => {
            "has no question to answer, but the task's kind is \"generate\". \
             Use alpaca, sharegpt, messages or prompt-completion, parallel for translations, or kind = \"perplexity\"."
                .to_owned()
        }
        (TaskKind::Perplexity | TaskKind::Generate, _) if several => format!(
            "is {:?}, whose rows hold several answers or a bad one, and a task of kind {:?} reads one good answer a row. \
             Use another format for the task.",
            task.format.name(),
            task.kind.name()
        ),
        (TaskKind::MultipleChoice, other) if other != Format::Choice => format!(
            "is {:?}, but a task of kind \"multiple-choice\" reads \"choice\": question, choices and answer.",
            other.name()
        ),
        (TaskKind::Tokenizer, Format::Text) => return,
        (kind, other) if (kind.is_parallel() || kind == TaskKind::Tokenizer) && other != Format::Parallel => format!(
            "is {:?}, but a task of kind {:?} reads texts that are translations of one another: \"parallel\".",
            other.name(),
            kind.name()
        ),
        _ => return,
    };
    findings.push(Finding::at(key, &message));
}

/// Keys that say something, and that a task of this kind does not read.
fn unread(key: &str, task: &Task, findings: &mut Vec<Finding>) {
    let choice = task.kind == TaskKind::MultipleChoice;
    let generate = task.kind == TaskKind::Generate;
    let asks = choice || generate;
    let states = matches!(task.kind, TaskKind::Retrieval | TaskKind::Similarity);
    let retrieval = task.kind == TaskKind::Retrieval;
    let keys = [
        (
            "choices",
            !task.choices.is_empty(),
            choice || !task.translate.is_empty(),
        ),
        ("scoring", task.scoring != Scoring::Answer, choice),
        ("divide_by", task.divide_by != DivideBy::Nothing, choice),
        ("prompt", task.prompt.is_some(), asks),
        ("prompt_language", task.prompt_language != PromptLanguage::Native, asks),
        ("chat", task.chat.is_some(), asks),
        ("shots", task.shots > 0, asks),
        ("shots_path", task.shots_path.is_some(), task.shots > 0),
        ("stop", !task.stop.is_empty(), generate),
        (
            "extract",
            task.extract != Extract::All,
            generate && task.translate.is_empty(),
        ),
        ("measures", !task.measures.is_empty(), generate),
        ("answer_lang", task.answer_lang.is_some(), generate),
        ("translate", !task.translate.is_empty(), generate),
        ("similarity", task.similarity != Similarity::Margin, retrieval),
        ("neighbours", task.neighbours != 4, retrieval),
        ("layer", task.layer != crate::layer::Layer::Middle, states),
        ("pool", task.pool != crate::auxiliary::Pool::Mean, states),
    ];
    for (name, said, read) in keys {
        if said && !read {
            let message = match name {
                "shots_path" => "is not read where `shots` is 0. Set `shots`, or leave it out.".to_owned(),
                _ => format!(
                    "is not read by a task of kind {:?} like this. Leave it out.",
                    task.kind.name()
                ),
            };
            findings.push(Finding::at(&format!("{key}.{name}"), &message));
        }
    }
}

/// How the model is asked.
fn asked(key: &str, task: &Task, findings: &mut Vec<Finding>) {
    let mut find = |name: &str, message: &str| findings.push(Finding::at(&format!("{key}.{name}"), message));
    if task.scoring == Scoring::Template && task.prompt.is_none() {
        find(
            "scoring",
            "is \"template\", but there is no `prompt`: the template that is filled with each `choice`.",
        );
    }
    if task.scoring == Scoring::Template && task.chat == Some(true) {
        find("chat", "is true, but a filled template is plain text. Leave it out.");
    }
    if task.scoring == Scoring::Letter && task.divide_by != DivideBy::Nothing {
        find("divide_by", "is not read where letters are compared. Leave it out.");
    }
    if !task.translate.is_empty() && task.prompt.is_none() {
        find(
            "translate",
            "needs a `prompt`, such as \"Translate into English: {{ text }}\".",
        );
    }
    if !task.translate.is_empty() && task.measures != [Measure::Fidelity] {
        find(
            "measures",
            "has what compares answers, but translated fields have none to compare with. Leave it out.",
        );
    }
    let each: Vec<&str> = task
        .prompt
        .iter()
        .flat_map(|prompt| prompt.texts().filter_map(|(tag, _)| tag))
        .collect();
    match task.prompt_language {
        PromptLanguage::English if !each.contains(&"en") => {
            find(
                "prompt_language",
                "is \"english\", but `prompt` has no text for \"en\". Write prompt = { en = \"…\", … }.",
            );
        }
        _ => {}
    }
    for language in each {
        tag(&format!("{key}.prompt.{language}"), language, findings);
    }
}

fn task_languages(key: &str, task: &Task, findings: &mut Vec<Finding>) {
    if task.path.to_string_lossy().contains("{lang}") && task.languages.is_empty() {
        let message = "has {lang} in it, but the task names no languages. Write languages = [\"en\", …].";
        findings.push(Finding::at(&format!("{key}.path"), message));
    }
    for (index, language) in task.languages.iter().enumerate() {
        let key = format!("{key}.languages.{index}");
        tag(&key, language, findings);
        if task.languages[..index].contains(language) {
            findings.push(Finding::at(
                &key,
                &format!("names {language:?} a second time. Keep one."),
            ));
        }
    }
}
