//! Prompts: a question, with examples before it, as the model reads it.

use std::collections::{BTreeMap, BTreeSet};

use interlingua_data::DataError;
use interlingua_data::error::RowProblem;
use interlingua_data::mask::Conversations;
use interlingua_data::sample::{Content, Message};
use interlingua_data::task::{TaskPrompt, TaskRow, read_shots};
use interlingua_data::tokenize::SampleTokenizer;
use interlingua_recipes::{PromptLanguage, Task};

use super::setting::{Setting, wrong};
use crate::error::TrainError;

/// What stands before a question and its answer.
pub(super) struct Asked {
    /// The messages that the row itself has before its question.
    pub(super) before: Vec<Message>,
    /// The question as text.
    pub(super) question: String,
    /// The row's own message that asks it; none where it is made of the row's fields.
    pub(super) message: Option<Message>,
    /// The answers to it, the right one among them.
    pub(super) answers: Vec<String>,
    /// The right one.
    pub(super) right: usize,
}

/// A prompt as the model reads it.
pub(super) struct Prompt {
    /// The question alone.
    pub(super) question: String,
    /// All of it.
    pub(super) text: String,
    /// What stands between it and an answer, as part of the answer.
    pub(super) glue: &'static str,
    /// Whether the tokenizer adds its special tokens.
    pub(super) special: bool,
    /// The answers to it.
    pub(super) answers: Vec<String>,
}

/// The prompts of a task.
pub(super) struct Prompts<'a> {
    task: &'a Task,
    rows: &'a [TaskRow],
    template: Option<TaskPrompt>,
    conversations: Option<Conversations>,
    /// Rows of a file of examples.
    shots: Option<Vec<TaskRow>>,
    /// The rows of an item by language.
    by_group: BTreeMap<&'a str, BTreeMap<&'a str, usize>>,
}

/// Turns a row into a question and its answer. The second row is where choices come from, and the tag the language that the question
/// is asked in.
pub(super) type Ask<'a> = dyn Fn(&TaskRow, &TaskRow, &str) -> Result<Asked, RowProblem> + 'a;

impl<'a> Prompts<'a> {
    pub(super) fn new(
        setting: &Setting,
        tokenize: &SampleTokenizer,
        task: &'a Task,
        rows: &'a [TaskRow],
    ) -> Result<Self, TrainError> {
        let conversations = tokenize.conversations().filter(|_| task.chat != Some(false)).cloned();
        if task.chat == Some(true) && conversations.is_none() {
            return Err(TrainError::Setup(format!(
                "eval task `{}`: chat is true, but the model has no chat template. Set data.template, or leave `chat` out.",
                task.name
            )));
        }
        let template = task
            .prompt
            .as_ref()
            .map(|prompt| TaskPrompt::new(task, prompt))
            .transpose()?;
        let mut by_group = BTreeMap::<&str, BTreeMap<&str, usize>>::new();
        for (index, row) in rows.iter().enumerate() {
            if let Some(group) = row.group() {
                by_group.entry(group).or_default().insert(&row.sample.language, index);
            }
        }
        let mixed = task.prompt_language == PromptLanguage::Mixed;
        if mixed && let Some(row) = rows.iter().find(|row| row.group().is_none()) {
            let problem =
                "prompt_language is \"mixed\", but nothing says which rows are the same item. Set `group_field`.";
            return Err(wrong(task, row, problem));
        }
        Ok(Self {
            task,
            rows,
            template,
            conversations,
            shots: read_shots(task, setting.on_bad_row)?,
            by_group,
        })
    }

    /// The task's template filled in for a row; none without a template.
    pub(super) fn fill_in(
        &self,
        row: &TaskRow,
        language: &str,
        more: Vec<(&str, serde_json::Value)>,
    ) -> Option<Result<String, RowProblem>> {
        let template = self.template.as_ref()?;
        let mut variables = row.variables();
        variables.extend(more.into_iter().map(|(name, value)| (name.to_owned(), value)));
        Some(template.render(language, &variables))
    }

    /// The prompt of a row.
    ///
    /// # Errors
    /// When it cannot be filled in, or there are too few examples.
    pub(super) fn prompt(&self, index: usize, ask: &Ask) -> Result<Prompt, TrainError> {
        let row = &self.rows[index];
        let asked = self.ask(row, self.rows, ask)?;
        let mut examples = Vec::new();
        for (shot, among) in self.examples(index)? {
            examples.push(self.ask(shot, among, ask)?);
        }
        match &self.conversations {
            Some(conversations) => self.chat(row, conversations, asked, examples),
            None => Ok(self.plain(asked, examples)),
        }
    }

    /// The question of a row alone, as text.
    ///
    /// # Errors
    /// When it cannot be filled in.
    pub(super) fn question(&self, index: usize, ask: &Ask) -> Result<String, TrainError> {
        Ok(self.ask(&self.rows[index], self.rows, ask)?.question)
    }

    /// A question and its answers in the language that the task says.
    fn ask(&self, row: &TaskRow, among: &[TaskRow], ask: &Ask) -> Result<Asked, TrainError> {
        let own = row.sample.language.as_str();
        let asked = match self.task.prompt_language {
            PromptLanguage::Native => ask(row, row, own),
            PromptLanguage::English => ask(row, row, "en"),
            PromptLanguage::Mixed => {
                let versions: Vec<&TaskRow> = match row.group().and_then(|group| self.by_group.get(group)) {
                    Some(versions) if std::ptr::eq(among, self.rows) => {
                        versions.values().map(|index| &self.rows[*index]).collect()
                    }
                    _ => vec![row],
                };
                let drawn = |what: &str| versions[self.draw(row, what) as usize % versions.len()];
                ask(row, drawn("choices"), &drawn("prompt").sample.language)
            }
        };
        asked.map_err(|problem| DataError::bad_row(row.sample.place.clone(), problem).into())
    }

    /// A number that depends on the seed, the item and its language, and what it is for.
    fn draw(&self, row: &TaskRow, what: &str) -> u64 {
        let item = row.group().or(row.sample.id.as_deref()).unwrap_or_default();
        hash(self.task.seed, &[item, &row.sample.language, what])
    }

    /// The examples for a row: the same items for all languages, without the row's own.
    fn examples(&self, index: usize) -> Result<Vec<(&TaskRow, &[TaskRow])>, TrainError> {
        let row = &self.rows[index];
        if self.task.shots == 0 {
            return Ok(Vec::new());
        }
        let among: &[TaskRow] = self.shots.as_deref().unwrap_or(self.rows);
        let mixed = self.task.prompt_language == PromptLanguage::Mixed;
        let item = |place: usize, row: &TaskRow| match row.group().or(row.sample.id.as_deref()) {
            Some(name) => name.to_owned(),
            None => place.to_string(),
        };
        let own = self.shots.is_none().then(|| item(index, row));
        let candidates = among.iter().enumerate().filter(|(place, candidate)| {
            (mixed || candidate.sample.language == row.sample.language)
                && own.as_ref() != Some(&item(*place, candidate))
        });
        let mut ordered: Vec<(u64, u64, &TaskRow, String)> = candidates
            .map(|(place, candidate)| {
                let item = item(place, candidate);
                let by_item = hash(self.task.seed, &[&item]);
                (by_item, self.draw(candidate, "example"), candidate, item)
            })
            .collect();
        ordered.sort_by_key(|(by_item, by_language, ..)| (*by_item, *by_language));
        let mut taken = BTreeSet::new();
        let examples = ordered.into_iter().filter(|(.., item)| taken.insert(item.clone()));
        let examples: Vec<(&TaskRow, &[TaskRow])> = examples
            .take(self.task.shots)
            .map(|(_, _, row, _)| (row, among))
            .collect();
        if examples.len() < self.task.shots {
            let language = &row.sample.language;
            let problem = format!(
                "shots is {}, but there are only {} examples in {language} besides the item itself. Set fewer, or name a file: shots_path.",
                self.task.shots,
                examples.len()
            );
            return Err(wrong(self.task, row, &problem));
        }
        Ok(examples)
    }

    fn chat(
        &self,
        row: &TaskRow,
        conversations: &Conversations,
        asked: Asked,
        examples: Vec<Asked>,
    ) -> Result<Prompt, TrainError> {
        let mut messages = asked.before;
        // Examples stand behind what the system says.
        let leading = messages.iter().take_while(|message| message.role == "system").count();
        let rest = messages.split_off(leading);
        for example in examples {
            let question = example
                .message
                .unwrap_or_else(|| Message::new("user", example.question));
            messages.push(question);
            messages.push(Message::new("assistant", example.answers[example.right].as_str()));
        }
        messages.extend(rest);
        let question = asked
            .message
            .unwrap_or_else(|| Message::new("user", asked.question.as_str()));
        messages.push(question);
        let tools = match &row.sample.content {
            Content::Conversation { tools, .. } => tools.as_ref(),
            _ => None,
        };
        let rendered = conversations.template().render(&messages, tools, true);
        let problem = |message| DataError::bad_row(row.sample.place.clone(), RowProblem::Template { message });
        Ok(Prompt {
            question: asked.question,
            text: rendered.map_err(problem)?.text,
            glue: "",
            special: false,
            answers: asked.answers,
        })
    }

    fn plain(&self, asked: Asked, examples: Vec<Asked>) -> Prompt {
        let mut text = String::new();
        for message in asked.before {
            text.push_str(message.content.as_str().unwrap_or_default());
            text.push('\n');
        }
        for example in examples {
            let (end, glue) = self.between(&example.question);
            let answer = &example.answers[example.right];
            text = [&text, &example.question, end, glue, answer, "\n\n"].concat();
        }
        let (end, glue) = self.between(&asked.question);
        text = [&text, &asked.question, end].concat();
        Prompt {
            question: asked.question,
            text,
            glue,
            special: true,
            answers: asked.answers,
        }
    }

    /// What stands between a question and its answer in plain text: what ends the question, and what begins the answer. A question
    /// of the row ends its line, as in training; a prompt such as "Answer:" goes on.
    fn between(&self, question: &str) -> (&'static str, &'static str) {
        match question.ends_with(char::is_whitespace) {
            true => ("", ""),
            false if self.template.is_none() => ("\n", ""),
            false => ("", " "),
        }
    }
}

fn hash(seed: u64, parts: &[&str]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    for part in parts {
        hasher.update(part.as_bytes()).update(&[0]);
    }
    let mut number = [0; 8];
    number.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(number)
}
