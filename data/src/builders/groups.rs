//! The rows of a source by group, each as a question and an answer, or as a text.

use std::collections::{HashMap, HashSet};

use crate::sample::{Content, Sample};

/// The language versions of one text or task.
pub(super) struct Group<'a> {
    /// One for each language, in the order of the rows; of rows of one language the first.
    pub(super) versions: Vec<Version<'a>>,
}

/// One language version.
pub(super) struct Version<'a> {
    /// The row.
    pub(super) sample: &'a Sample,
    /// What is asked, without its input; the text itself where nothing is asked.
    pub(super) instruction: String,
    /// What the instruction is about; may be empty.
    pub(super) input: String,
    /// Instruction and input as the user says them; the text itself where nothing is asked.
    pub(super) question: String,
    /// What is answered; `None` for a text.
    pub(super) answer: Option<String>,
}

impl Version<'_> {
    pub(super) fn language(&self) -> &str {
        &self.sample.language
    }

    /// The answer, or the text.
    pub(super) fn text(&self) -> &str {
        self.answer.as_deref().unwrap_or(&self.question)
    }
}

/// Gathers the rows of each group, in the order in which groups first appear. Conversations give their first question with its
/// answer (alpaca rows, whose history comes first, their last one); those without both are left out.
pub(super) fn gather(samples: &[Sample]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group> = Vec::new();
    let mut index: HashMap<String, usize> = HashMap::new();
    let mut seen: HashSet<(usize, &str)> = HashSet::new();
    for sample in samples {
        let Some(version) = version(sample) else { continue };
        let key = match &sample.group {
            Some(group) => format!("group\0{group}"),
            None => format!("row\0{}", sample.place),
        };
        let group = *index.entry(key).or_insert_with(|| {
            groups.push(Group { versions: Vec::new() });
            groups.len() - 1
        });
        if seen.insert((group, &sample.language)) {
            groups[group].versions.push(version);
        }
    }
    groups
}

fn version(sample: &Sample) -> Option<Version<'_>> {
    let (question, answer) = match &sample.content {
        Content::Text(text) => (text.clone(), None),
        Content::Aligned(aligned) => (aligned.text.clone(), None),
        Content::PromptCompletion { prompt, completion } => (prompt.clone(), Some(completion.clone())),
        Content::Conversation { messages, .. } => {
            let is = |role: &'static str| move |message: &&crate::sample::Message| message.role == role;
            let mut messages = messages.iter();
            let (question, answer) = match &sample.instruction {
                Some(_) => {
                    let answer = messages.by_ref().rfind(is("assistant"))?;
                    (messages.rfind(is("user"))?, answer)
                }
                None => (messages.find(is("user"))?, messages.find(is("assistant"))?),
            };
            let text = |message: &crate::sample::Message| message.content.as_str().map(str::to_owned);
            (text(question)?, Some(text(answer)?))
        }
        _ => return None,
    };
    let (instruction, input) = match &sample.instruction {
        Some((instruction, input)) if !instruction.trim().is_empty() => (instruction.clone(), input.clone()),
        _ => (question.clone(), String::new()),
    };
    Some(Version {
        sample,
        instruction,
        input,
        question,
        answer,
    })
}
