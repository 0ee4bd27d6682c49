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
}

impl Content {
    /// About how many bytes of text it holds, to bound what is read at a time.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Conversation { messages, .. } => messages
                .iter()
                .map(|message| message.content.as_str().map_or(64, str::len))
                .sum(),
            Self::PromptCompletion { prompt, completion } => prompt.len() + completion.len(),
            Self::Text(text) => text.len(),
            Self::Tokens { input_ids, .. } => 8 * input_ids.len(),
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
