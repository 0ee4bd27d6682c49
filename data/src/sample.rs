//! A sample: one row of a file after its format has been understood, before any tokenizer sees it.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};

/// The language tag of rows that name none: BCP-47's "undetermined".
pub const UNDETERMINED: &str = "und";

/// One row of a source, whatever its format was.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// What the row says.
    pub content: Content,
    /// BCP-47 tag in canonical case (`sw`, `zh-Hant`, `pt-BR`); [`UNDETERMINED`] when neither the source nor the row names one.
    pub language: String,
    /// Rows with the same group are translations of one another; `None` when the row has no such column.
    pub group: Option<String>,
    /// The row's own `id`.
    pub id: Option<String>,
    /// Where the row was read.
    pub place: Place,
    /// Instruction and input of an `alpaca` row apart from each other, in a source that rows are built out of.
    pub instruction: Option<(String, String)>,
}

/// Where a row was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Index into the recipe's `data.sources`.
    pub source: usize,
    /// The file.
    pub file: Arc<Path>,
    /// Line, counted from 1; for Parquet and for the elements of a JSON array the row, counted from 1. 0: the file as a whole.
    pub line: u64,
}

impl fmt::Display for Place {
    /// Writes `file:line`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.file.display())?;
        if self.line > 0 {
            write!(formatter, ":{}", self.line)?;
        }
        Ok(())
    }
}

/// What a row says.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Messages that a chat template turns into text (`alpaca`, `sharegpt`, `messages`, and `prompt-completion` in messages).
    Conversation {
        /// The messages in order, at least one.
        messages: Vec<Message>,
        /// The tools that the template shows to the model, as the row lists them.
        tools: Option<Value>,
        /// Messages before this index are never supervised; 0 but for `prompt-completion` rows, where the completion starts here.
        supervise_from: usize,
    },
    /// Two pieces of plain text, of which the second is supervised.
    PromptCompletion {
        /// What is asked; may be empty.
        prompt: String,
        /// What is to be learnt; not empty.
        completion: String,
    },
    /// Plain text, all of it supervised; not empty.
    Text(String),
    /// Tokens as another tool made them.
    Tokens {
        /// Token ids, at least one.
        input_ids: Vec<u32>,
        /// One label per token, not shifted; -100 is not supervised. `None`: all tokens are supervised.
        labels: Option<Vec<i32>>,
    },
    /// A question and its answer, which become a conversation of the two where there is a chat template, else plain text
    /// with a line end between them unless the question ends with white space. The answer is supervised.
    Exchange {
        /// What is asked; not empty.
        question: String,
        /// What is to be learnt; not empty.
        answer: String,
    },
    /// A question with answers to choose from, each of which becomes an [`Content::Exchange`] with the question.
    Choice {
        /// Context and question; not empty.
        question: String,
        /// The answers to choose from, at least two.
        choices: Vec<String>,
        /// Index of the right one.
        answer: usize,
    },
    /// Two answers to one prompt, each with the prompt: conversations, prompts with completions, or tokens.
    Pair {
        /// The better one.
        chosen: Box<Content>,
        /// The worse one.
        rejected: Box<Content>,
        /// Languages of the two answers, where the row names them; BCP-47 tags in canonical case.
        languages: [Option<String>; 2],
    },
    /// A prompt and an answer that is marked good or bad.
    Marked {
        /// Prompt and answer.
        content: Box<Content>,
        /// Whether the answer is a good one.
        desirable: bool,
    },
    /// A text whose words are aligned with those of its translation.
    Aligned(Aligned),
}

/// A text whose words are aligned with those of its translation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aligned {
    /// The text.
    pub text: String,
    /// The translation.
    pub other: String,
    /// Pairs of words, as indices into the words of `text` and of `other` that white space separates. No word is in two pairs.
    pub pairs: Vec<(u32, u32)>,
}

impl Content {
    /// All texts in it: those of messages, prompts and answers one by one; none for tokens.
    pub fn texts(&self) -> Vec<&str> {
        match self {
            Self::Conversation { messages, .. } => {
                messages.iter().filter_map(|message| message.content.as_str()).collect()
            }
            Self::PromptCompletion {
                prompt: first,
                completion: second,
            }
            | Self::Exchange {
                question: first,
                answer: second,
            } => vec![first, second],
            Self::Text(text) => vec![text],
            Self::Tokens { .. } => Vec::new(),
            Self::Choice { question, choices, .. } => {
                std::iter::once(question).chain(choices).map(String::as_str).collect()
            }
            Self::Pair { chosen, rejected, .. } => [chosen.texts(), rejected.texts()].concat(),
            Self::Marked { content, .. } => content.texts(),
            Self::Aligned(aligned) => vec![&aligned.text],
        }
    }

    /// Whether it was tokenised by another tool.
    pub fn is_tokens(&self) -> bool {
        match self {
            Self::Tokens { .. } => true,
            Self::Marked { content, .. } | Self::Pair { chosen: content, .. } => content.is_tokens(),
            _ => false,
        }
    }

    /// About how many bytes of text it holds, to bound what is read at a time.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Tokens { input_ids, .. } => 8 * input_ids.len(),
            Self::Pair { chosen, rejected, .. } => chosen.bytes() + rejected.bytes(),
            Self::Marked { content, .. } => content.bytes(),
            _ => 64 + self.texts().iter().map(|text| text.len()).sum::<usize>(),
        }
    }
}

/// One message of a conversation. It serialises to the object that a chat template sees.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// A string or a list of parts; null when only `tool_calls` say something.
    pub content: Value,
    /// Whether the row itself asks to supervise this message (its key `train`, or `weight` 0 or 1); `None`: as the recipe says.
    #[serde(skip)]
    pub train: Option<bool>,
    /// All other keys, such as `tool_calls`, `name` or `reasoning_content`.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Message {
    /// A message of plain text.
    #[must_use]
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message {
            role: role.into(),
            content: Value::String(content.into()),
            train: None,
            extra: Map::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_sees_all_keys_of_a_message_but_not_our_own() {
        let mut message = Message::new("assistant", "hi");
        message.train = Some(true);
        message.extra.insert("name".into(), "bo".into());
        let object = serde_json::to_string(&message).unwrap();
        assert_eq!(object, r#"{"role":"assistant","content":"hi","name":"bo"}"#);
    }

    #[test]
    fn places_read_as_file_and_line() {
        let file: Arc<Path> = Path::new("a/b.jsonl").into();
        assert_eq!(
            Place {
                source: 0,
                file: file.clone(),
                line: 3
            }
            .to_string(),
            "a/b.jsonl:3"
        );
        assert_eq!(
            Place {
                source: 0,
                file,
                line: 0
            }
            .to_string(),
            "a/b.jsonl"
        );
    }
}
