//! The prompts that builders write, as Jinja templates.

use interlingua_recipes::{Build, BuildKind};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior};
use serde::Serialize;

use super::kinds::Asked;
use crate::error::DataError;
use crate::language_name::english_name;

/// The template of one builder.
pub(super) struct PromptTemplate {
    key: String,
    kind: BuildKind,
    environment: Environment<'static>,
}

/// What the template of a prompt sees.
#[derive(Serialize)]
struct Variables<'a> {
    source: &'a str,
    target: &'a str,
    source_language: String,
    target_language: String,
    text: &'a str,
    instruction: &'a str,
    input: &'a str,
    output: &'a str,
    mode: u8,
}

/// What the template of a document sees.
#[derive(Serialize)]
struct Document<'a> {
    versions: Vec<DocumentPart<'a>>,
}

/// One version of a document, as its template sees it.
#[derive(Serialize)]
struct DocumentPart<'a> {
    language: &'a str,
    name: String,
    text: &'a str,
}

/// The template of a kind where the recipe has none.
fn default_template(kind: BuildKind) -> &'static str {
    match kind {
        BuildKind::Translation => {
            "Translate the following text from {{ source_language }} into {{ target_language }}.\n\n{{ text }}"
        }
        BuildKind::QuestionTranslation => {
            "Translate the following question from {{ source_language }} into {{ target_language }}, without answering \
             it.\n\n{{ text }}"
        }
        BuildKind::Crossin => {
            "{% if mode == 3 %}Translate the following text from {{ source_language }} into {{ target_language }}.\n\n\
             {{ text }}{% else %}{{ text }}\n[{{ target }}]{% endif %}"
        }
        BuildKind::CrossLingualAnswer => "{{ text }} Answer in {{ target_language }}: ",
        BuildKind::LanguageTag => "<2{{ target }}> {{ text }}",
        BuildKind::ParallelDocument => {
            "{% for version in versions %}[{{ version.language }}] {{ version.text }}\
             {% if not loop.last %}\n{% endif %}{% endfor %}"
        }
    }
}

impl PromptTemplate {
    pub(super) fn new(key: &str, build: &Build) -> Result<Self, DataError> {
        let mut template = PromptTemplate {
            key: format!("{key}.template"),
            kind: build.kind,
            environment: Environment::new(),
        };
        template.environment.set_undefined_behavior(UndefinedBehavior::Strict);
        let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
        let syntax = syntax.map_err(|error| template.error(&error))?;
        template.environment.set_syntax(syntax);
        let source = build
            .template
            .clone()
            .unwrap_or_else(|| default_template(build.kind).to_owned());
        let added = template.environment.add_template_owned("prompt", source);
        added.map_err(|error| template.error(&error))?;
        Ok(template)
    }

    /// The text of a prompt, or of a document.
    pub(super) fn render(&self, asked: &Asked) -> Result<String, DataError> {
        let (source, target) = asked.ends();
        let template = self.environment.get_template("prompt");
        let text = template.and_then(|template| match self.kind {
            BuildKind::ParallelDocument => {
                let versions = asked.versions.iter().map(|version| DocumentPart {
                    language: version.language(),
                    name: english_name(version.language()),
                    text: version.text(),
                });
                template.render(Serde(Document {
                    versions: versions.collect(),
                }))
            }
            _ => template.render(Serde(Variables {
                source: source.language(),
                target: target.language(),
                source_language: english_name(source.language()),
                target_language: english_name(target.language()),
                text: &asked.text,
                instruction: &source.instruction,
                input: &source.input,
                output: source.answer.as_deref().unwrap_or_default(),
                mode: asked.mode,
            })),
        });
        let text = text.map_err(|error| self.error(&error))?;
        if text.trim().is_empty() {
            return Err(self.wrong("it makes an empty text".to_owned()));
        }
        Ok(text)
    }

    fn error(&self, error: &minijinja::Error) -> DataError {
        let line = error.line().map_or_else(String::new, |line| format!(" in line {line}"));
        let detail = error.detail().map_or_else(String::new, |detail| format!(": {detail}"));
        self.wrong(format!("{}{detail}{line}", error.kind()))
    }

    fn wrong(&self, message: String) -> DataError {
        DataError::BuildTemplate {
            key: self.key.clone(),
            message,
            variables: match self.kind {
                BuildKind::ParallelDocument => "versions, each with language, name and text",
                _ => "source, target, source_language, target_language, text, instruction, input, output and mode",
            },
        }
    }
}
