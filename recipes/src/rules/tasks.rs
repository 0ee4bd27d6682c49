//! What `[[eval.tasks]]` must hold beyond what a schema can say.

use super::{glob, languages, tag, unique_names};
use crate::error::Finding;
use crate::eval::{Task, TaskKind};
use crate::recipe::Recipe;
use crate::source::Format;

pub(super) fn check(recipe: &Recipe, findings: &mut Vec<Finding>) {
    let tasks = &recipe.eval.tasks;
    let names: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
    unique_names("eval.tasks", &names, findings);
    for (index, task) in tasks.iter().enumerate() {
        let key = format!("eval.tasks.{index}");
        glob(&format!("{key}.path"), &task.path, findings);
        languages(&key, task.lang.as_deref(), task.lang_field.as_deref(), findings);
        task_languages(&key, task, findings);
        format(&format!("{key}.format"), task, findings);
    }
}

/// Which formats a kind of task reads.
fn format(key: &str, task: &Task, findings: &mut Vec<Finding>) {
    let message = match (task.kind, task.format) {
        (TaskKind::Generate, Format::Text | Format::Tokens | Format::Parallel) => {
            "has no question to answer, but the task's kind is \"generate\". \
             Use alpaca, sharegpt, messages or prompt-completion, or kind = \"perplexity\"."
                .to_owned()
        }
        (kind, Format::Preference | Format::Kto | Format::Choice) => format!(
            "is {:?}, whose rows hold several answers or a bad one, and a task of kind {:?} reads one good answer a row. \
             Use another format for the task.",
            task.format.name(),
            kind.name()
        ),
        _ => return,
    };
    findings.push(Finding::at(key, &message));
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
