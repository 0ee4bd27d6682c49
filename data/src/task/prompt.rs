//! What a task asks: Jinja templates over the fields of a row.

use std::collections::BTreeSet;

use interlingua_recipes::{ByLanguage, Task};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior};
use serde_json::{Map, Value};

use crate::error::{DataError, RowProblem};
use crate::language::canonical;

/// The name of the template for all languages.
const ALL: &str = "";

/// The prompts of a task, by language where it has several.
#[derive(Debug, Clone)]
pub struct TaskPrompt {
    task: String,
    environment: Environment<'static>,
}

impl TaskPrompt {
    /// Reads the templates.
    ///
    /// # Errors
    /// When one is no Jinja template.
    pub fn new(task: &Task, prompt: &ByLanguage) -> Result<Self, DataError> {
        let wrong = |error: minijinja::Error| DataError::TaskPrompt {
            task: task.name.clone(),
            message: said(&error),
        };
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
        environment.set_syntax(syntax.map_err(wrong)?);
        for (tag, text) in prompt.texts() {
            let tag = tag.map_or_else(
                || ALL.to_owned(),
                |tag| canonical(tag).unwrap_or_else(|_| tag.to_owned()),
            );
            environment.add_template_owned(tag, text.to_owned()).map_err(wrong)?;
        }
        Ok(Self {
            task: task.name.clone(),
            environment,
        })
    }

    /// The prompt for a language, filled in. A template of the language alone stands for its scripts and regions.
    ///
    /// # Errors
    /// When there is no template for the language, it names what is not there, or it makes no text.
    pub fn render(&self, language: &str, variables: &Map<String, Value>) -> Result<String, RowProblem> {
        let primary = language.split('-').next().unwrap_or_default();
        let found = [language, primary, ALL]
            .into_iter()
            .find_map(|name| self.environment.get_template(name).ok());
        let problem = |message: String| RowProblem::Prompt {
            task: self.task.clone(),
            message,
            fields: variables.keys().cloned().collect(),
        };
        let template = found.ok_or_else(|| problem(format!("it has no text for the language {language:?}")))?;
        let text = template
            .render(Serde(variables))
            .map_err(|error| problem(said(&error)))?;
        if text.trim().is_empty() {
            return Err(problem("it makes an empty text".to_owned()));
        }
        Ok(text)
    }
}

/// The fields that a task's prompts name.
///
/// # Errors
/// When one is no Jinja template.
pub(super) fn fields(task: &Task) -> Result<BTreeSet<String>, DataError> {
    let Some(prompt) = &task.prompt else {
        return Ok(task.translate.iter().cloned().collect());
    };
    let prompts = TaskPrompt::new(task, prompt)?;
    let named = prompts
        .environment
        .templates()
        .flat_map(|(_, template)| template.undeclared_variables(false));
    let named = named.chain(task.translate.iter().cloned());
    let column = |name: String| task.fields.get(&name).cloned().unwrap_or(name);
    Ok(named.map(column).collect())
}

fn said(error: &minijinja::Error) -> String {
    let line = error.line().map_or_else(String::new, |line| format!(" in line {line}"));
    let detail = error.detail().map_or_else(String::new, |detail| format!(": {detail}"));
    format!("{}{detail}{line}", error.kind())
}
