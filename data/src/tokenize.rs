//! A sample becomes tokens and labels.

use interlingua_recipes::{Data, Format, TrainOn, Truncate};

use crate::batch::{UNSUPERVISED, supervised_tokens};
use crate::error::{DataError, RowProblem};
use crate::mask::{Conversations, check_template, labels};
use crate::sample::{Content, Message};
use crate::tokenizer::{Encoded, Tokenizer};

/// Turns samples into tokens and labels, as a recipe says.
#[derive(Debug, Clone)]
pub struct SampleTokenizer {
    tokenizer: Tokenizer,
    /// Why there is none, as a sentence without its full stop, where rows may turn out not to need one.
    conversations: Result<Conversations, String>,
    max_length: usize,
    truncate: Truncate,
    train_on: TrainOn,
    vocabulary_size: usize,
}

/// Ids and labels of one sequence, of equal length.
pub type Tokens = (Vec<u32>, Vec<i32>);

/// What became of a sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Tokens with at least one supervised one; a long text gives several sequences.
    Kept {
        /// The sequences, none longer than `max_length`.
        sequences: Vec<Tokens>,
        /// Whether tokens were cut off.
        truncated: bool,
    },
    /// Nothing to learn from is left.
    Dropped(DropReason),
}

/// Why a sample was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DropReason {
    /// It is longer than `max_length`, and `truncate = "drop"`.
    TooLong,
    /// All its supervised tokens were cut off.
    TruncatedAway,
    /// It had none to begin with: a label counts only if a token precedes it.
    Unsupervised,
}

impl DropReason {
    /// The reason as tables show it.
    pub fn text(self) -> &'static str {
        match self {
            Self::TooLong => "longer than max_length",
            Self::TruncatedAway => "no supervised token left after truncation",
            Self::Unsupervised => "no supervised token",
        }
    }
}

impl SampleTokenizer {
    /// Finds and checks the chat template, if rows of one of the formats need one.
    ///
    /// # Errors
    /// When a template is needed and there is none, or it cannot be trained with.
    pub fn new(tokenizer: &Tokenizer, data: &Data, vocabulary_size: usize) -> Result<Self, DataError> {
        let formats = || data.sources.iter().map(|source| source.format);
        let needed = formats().any(|format| matches!(format, Format::Alpaca | Format::Sharegpt | Format::Messages));
        let possible = formats().any(|format| format == Format::PromptCompletion);
        let conversations = match needed || possible {
            false => Err("no format of the recipe has messages".to_owned()),
            true => {
                let found = tokenizer
                    .chat_template(&data.template)
                    .and_then(|template| check_template(tokenizer, &template));
                match found {
                    Err(error) if needed || data.template != "auto" => return Err(error),
                    found => found.map_err(|error| error.to_string().trim_end_matches('.').to_owned()),
                }
            }
        };
        Ok(SampleTokenizer {
            tokenizer: tokenizer.clone(),
            conversations,
            max_length: data.max_length,
            truncate: data.truncate,
            train_on: data.train_on,
            vocabulary_size,
        })
    }

    /// The chat template, where there is one.
    pub fn conversations(&self) -> Option<&Conversations> {
        self.conversations.as_ref().ok()
    }

    /// What the outcome depends on besides the sample, as a hash.
    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        let template = self
            .conversations()
            .map(|conversations| conversations.template().fingerprint());
        let settings = (self.max_length, self.truncate, self.train_on, self.vocabulary_size);
        *blake3::hash(format!("{:?} {template:?} {settings:?}", self.tokenizer.fingerprint()).as_bytes()).as_bytes()
    }

    /// Tokens and labels of what a sample says.
    ///
    /// # Errors
    /// When the template refuses the row, or a token is not one of the model's.
    pub fn tokenize(&self, content: &Content) -> Result<Outcome, RowProblem> {
        let (ids, labels) = match content {
            Content::Conversation {
                messages,
                tools,
                supervise_from,
            } => self.conversation(messages, tools.as_ref(), *supervise_from)?,
            Content::PromptCompletion { prompt, completion } => self.prompt_completion(prompt, completion)?,
            Content::Text(text) => self.text(text)?,
            Content::Tokens { input_ids, labels } => {
                let labels = labels.clone().unwrap_or_else(|| all(input_ids));
                (input_ids.clone(), labels)
            }
        };
        self.check_vocabulary(content, &ids, &labels)?;
        Ok(self.fit(ids, labels, matches!(content, Content::Text(_))))
    }

    fn conversation(
        &self,
        messages: &[Message],
        tools: Option<&serde_json::Value>,
        supervise_from: usize,
    ) -> Result<Tokens, RowProblem> {
        let refused = |message: &String| RowProblem::Template {
            message: message.clone(),
        };
        let conversations = self.conversations.as_ref().map_err(refused)?;
        if self.train_on == TrainOn::All {
            let rendered = conversations.template().render(messages, tools, false);
            let text = rendered.map_err(|message| RowProblem::Template { message })?.text;
            let ids = self.encode(&text, false)?.ids;
            return Ok((ids.clone(), all(&ids)));
        }
        let (text, ranges) = conversations.render(&self.tokenizer, messages, tools, supervise_from)?;
        let encoded = self.encode(&text, false)?;
        let labels = labels(&encoded, &ranges);
        Ok((encoded.ids, labels))
    }

    fn prompt_completion(&self, prompt: &str, completion: &str) -> Result<Tokens, RowProblem> {
        let encoded = self.encode(&format!("{prompt}{completion}"), true)?;
        let supervised = prompt.len()..prompt.len() + completion.len();
        let mut labels = match self.train_on {
            TrainOn::Assistant => labels(&encoded, &[supervised]),
            TrainOn::All => all(&encoded.ids),
        };
        let mut ids = encoded.ids;
        self.end_with_eos(&mut ids, &mut labels);
        Ok((ids, labels))
    }

    fn text(&self, text: &str) -> Result<Tokens, RowProblem> {
        let mut ids = self.encode(text, true)?.ids;
        let mut labels = all(&ids);
        self.end_with_eos(&mut ids, &mut labels);
        Ok((ids, labels))
    }

    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Encoded, RowProblem> {
        let encoded = self.tokenizer.encode_with_spans(text, add_special_tokens);
        encoded.map_err(|error| RowProblem::Tokenizer {
            message: error.to_string(),
        })
    }

    /// Appends the end-of-text token, supervised, unless the post-processor has put it there already.
    fn end_with_eos(&self, ids: &mut Vec<u32>, labels: &mut Vec<i32>) {
        let Some(eos) = self.tokenizer.eos_id() else { return };
        if ids.last() != Some(&eos) {
            ids.push(eos);
            labels.push(UNSUPERVISED);
        }
        if let Some(last) = labels.last_mut() {
            *last = eos as i32;
        }
    }

    fn check_vocabulary(&self, content: &Content, ids: &[u32], labels: &[i32]) -> Result<(), RowProblem> {
        let size = self.vocabulary_size;
        let problem = |field: String, found: i64| Err(RowProblem::OutOfVocabulary { field, found, size });
        if let Some(index) = ids.iter().position(|&id| id as usize >= size) {
            return match content {
                Content::Tokens { .. } => problem(format!("input_ids[{index}]"), i64::from(ids[index])),
                _ => problem(
                    self.tokenizer.token(ids[index]).unwrap_or_default(),
                    i64::from(ids[index]),
                ),
            };
        }
        let wrong = |&label: &i32| label != UNSUPERVISED && usize::try_from(label).map_or(true, |label| label >= size);
        match labels.iter().position(wrong) {
            Some(index) => problem(format!("labels[{index}]"), i64::from(labels[index])),
            None => Ok(()),
        }
    }

    /// Cuts what is too long. The end of a conversation is lost; a text is cut into sequences that share one token, so that each of its
    /// tokens is supervised once.
    fn fit(&self, mut ids: Vec<u32>, mut labels: Vec<i32>, text: bool) -> Outcome {
        if supervised_tokens(&labels) == 0 {
            return Outcome::Dropped(DropReason::Unsupervised);
        }
        if ids.len() <= self.max_length {
            return Outcome::Kept {
                sequences: vec![(ids, labels)],
                truncated: false,
            };
        }
        if self.truncate == Truncate::Drop {
            return Outcome::Dropped(DropReason::TooLong);
        }
        if text {
            let starts = (0..ids.len() - 1).step_by(self.max_length - 1);
            let cut = |start: usize| {
                let end = ids.len().min(start + self.max_length);
                (ids[start..end].to_vec(), labels[start..end].to_vec())
            };
            return Outcome::Kept {
                sequences: starts.map(cut).collect(),
                truncated: false,
            };
        }
        ids.truncate(self.max_length);
        labels.truncate(self.max_length);
        match supervised_tokens(&labels) {
            0 => Outcome::Dropped(DropReason::TruncatedAway),
            _ => Outcome::Kept {
                sequences: vec![(ids, labels)],
                truncated: true,
            },
        }
    }
}

/// Labels that supervise every token.
fn all(ids: &[u32]) -> Vec<i32> {
    ids.iter().map(|&id| id as i32).collect()
}
