//! A sample becomes tokens and labels.

use interlingua_recipes::{Data, Format, ObjectiveKind, TrainOn, Truncate};

use crate::batch::{UNSUPERVISED, supervised_tokens};
use crate::error::{DataError, RowProblem};
use crate::mask::{Conversations, check_template, labels};
use crate::representation;
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
    reader: Reader,
}

/// What reads the tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    /// An evaluation.
    Task,
    /// An objective.
    Objective(ObjectiveKind),
    /// A loss or a probe that reads hidden states.
    Auxiliary,
}

/// The tokens of one sample.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tokens {
    /// Token ids, those of all parts end to end.
    pub input_ids: Vec<u32>,
    /// One label per token, not shifted.
    pub labels: Vec<i32>,
    /// Length of each part; empty when it is one sequence (see [`crate::dataset::TokenizedSample::parts`]).
    pub parts: Vec<u32>,
    /// What else a loss reads (see [`crate::dataset::TokenizedSample::marks`]).
    pub marks: Vec<u32>,
}

/// Ids and labels of one sequence, of equal length.
type Sequence = (Vec<u32>, Vec<i32>);

/// What became of a sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Tokens to learn from; a long text gives several sequences.
    Kept {
        /// The sequences, or the one sample of several parts; no sequence and no part is longer than `max_length`.
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
    /// It, or one of its parts, is longer than `max_length`, and `truncate = "drop"`.
    TooLong,
    /// All supervised tokens, or all of one of its parts, were cut off.
    TruncatedAway,
    /// It, or one of its parts, had none to begin with: a label counts only if a token precedes it.
    Unsupervised,
    /// The tokenizer makes no token of its text.
    Empty,
    /// What is left of the chosen and the rejected answer is the same.
    EqualAnswers,
}

impl DropReason {
    /// The reason as tables show it.
    pub fn text(self) -> &'static str {
        match self {
            Self::TooLong => "longer than max_length",
            Self::TruncatedAway => "no supervised token left after truncation",
            Self::Unsupervised => "no supervised token",
            Self::Empty => "no token",
            Self::EqualAnswers => "chosen and rejected are equal after truncation",
        }
    }
}

impl SampleTokenizer {
    /// Finds and checks the chat template, if rows of one of the formats need one. What comes out tokenises for an evaluation, which
    /// reads one sequence a row.
    ///
    /// # Errors
    /// When a template is needed and there is none, or it cannot be trained with.
    pub fn new(tokenizer: &Tokenizer, data: &Data, vocabulary_size: usize) -> Result<Self, DataError> {
        // Where rows are built, the source's own only count when they are kept.
        let own = |source: &&interlingua_recipes::Source| source.build.is_empty() || source.keep;
        let formats = || data.sources.iter().filter(own).map(|source| source.format);
        let needed = formats().any(|format| matches!(format, Format::Alpaca | Format::Sharegpt | Format::Messages));
        // With plain text in the place of a template that is there and cannot be used, nobody would learn of it.
        let used = formats().any(|format| format == Format::Choice)
            || data.sources.iter().any(|source| !source.build.is_empty());
        let possible = |format| matches!(format, Format::PromptCompletion | Format::Preference | Format::Kto);
        let conversations = match needed || used || formats().any(possible) {
            false => Err("no format of the recipe has messages".to_owned()),
            true => {
                let found = tokenizer
                    .chat_template(&data.template)
                    .and_then(|template| check_template(tokenizer, &template));
                match found {
                    Err(error) if needed || data.template != "auto" => return Err(error),
                    Err(error) if used && !matches!(error, DataError::NoTemplate { .. }) => return Err(error),
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
            reader: Reader::Task,
        })
    }

    /// The same for what an objective trains on: pairs, marked answers, or one sequence a row.
    #[must_use]
    pub fn for_objective(&self, objective: ObjectiveKind) -> Self {
        SampleTokenizer {
            reader: Reader::Objective(objective),
            ..self.clone()
        }
    }

    /// The same for a loss or a probe that reads hidden states: the text of a row, or its prompt, as the model reads it, with the
    /// special tokens of the tokenizer and no end-of-text token behind it, cut at `max_length`; nothing is supervised.
    #[must_use]
    pub fn for_auxiliary(&self, max_length: usize) -> Self {
        SampleTokenizer {
            reader: Reader::Auxiliary,
            max_length,
            ..self.clone()
        }
    }

    /// The chat template, where there is one.
    pub fn conversations(&self) -> Option<&Conversations> {
        self.conversations.as_ref().ok()
    }

    /// What the outcome of a sample of this format depends on besides the sample, as a hash.
    pub(crate) fn fingerprint(&self, format: Format) -> [u8; 32] {
        // Only rows of `tokens` can be right for one objective and wrong for another.
        let reader = (format == Format::Tokens).then_some(self.reader);
        let template = self
            .conversations()
            .map(|conversations| conversations.template().fingerprint());
        let settings = (
            self.max_length,
            self.truncate,
            self.train_on,
            self.vocabulary_size,
            reader,
            self.reader == Reader::Auxiliary,
        );
        *blake3::hash(format!("{:?} {template:?} {settings:?}", self.tokenizer.fingerprint()).as_bytes()).as_bytes()
    }

    /// Tokens and labels of what a sample says.
    ///
    /// # Errors
    /// When the template refuses the row, a token is not one of the model's, or the row is none for what reads it.
    pub fn tokenize(&self, content: &Content) -> Result<Outcome, RowProblem> {
        self.check_wanted(content)?;
        if self.reader == Reader::Auxiliary {
            return self.representation(content);
        }
        Ok(match content {
            Content::Pair { chosen, rejected, .. } => {
                let chosen = self.sequence(chosen, ["chosen_ids", "chosen_labels"], TrainOn::Assistant)?;
                let rejected = self.sequence(rejected, ["rejected_ids", "rejected_labels"], TrainOn::Assistant)?;
                let left = |answer: &Sequence| answer.0.iter().take(self.max_length).copied().collect::<Vec<_>>();
                let same = left(&chosen) == left(&rejected);
                match self.fit_parts(vec![chosen, rejected], Vec::new()) {
                    Outcome::Kept { .. } if same => Outcome::Dropped(DropReason::EqualAnswers),
                    outcome => outcome,
                }
            }
            Content::Marked { content, desirable } => {
                let sequence = self.sequence(content, ["input_ids", "labels"], TrainOn::Assistant)?;
                self.fit_parts(vec![sequence], vec![u32::from(*desirable)])
            }
            Content::Choice {
                question,
                choices,
                answer,
            } => {
                let part = |choice: &String| {
                    let (ids, labels) = self.exchange(question, choice, TrainOn::Assistant)?;
                    self.check_vocabulary(None, &ids, &labels)?;
                    Ok((ids, labels))
                };
                let parts = choices.iter().map(part).collect::<Result<_, RowProblem>>()?;
                self.fit_parts(parts, vec![*answer as u32])
            }
            _ => {
                let (ids, labels) = self.sequence(content, ["input_ids", "labels"], self.train_on)?;
                self.fit(ids, labels, matches!(content, Content::Text(_) | Content::Aligned(_)))
            }
        })
    }

    /// Refuses a row that what reads it cannot use. Only rows of `tokens` get here: for the other formats the recipe is refused.
    fn check_wanted(&self, content: &Content) -> Result<(), RowProblem> {
        let pair = matches!(content, Content::Pair { .. });
        let marked = matches!(content, Content::Marked { .. });
        let refused = |reader: String, wanted, found, advice| {
            Err(RowProblem::NotWanted {
                reader,
                wanted,
                found,
                advice,
            })
        };
        let objective = |kind: ObjectiveKind| format!("the objective is {}, which", kind.name());
        match self.reader {
            Reader::Objective(kind) if kind.reads_pairs() && !pair => refused(
                objective(kind),
                "pairs",
                "no `chosen_ids`",
                "Write chosen_ids and rejected_ids, or choose another objective.",
            ),
            Reader::Objective(kind @ ObjectiveKind::Kto) if !marked => refused(
                objective(kind),
                "answers that are marked desirable or not",
                "no `label`",
                "Write label = true or false, or choose another objective.",
            ),
            Reader::Objective(kind) if kind.is_preference() => Ok(()),
            reader if pair || marked => {
                let name = match reader {
                    Reader::Objective(kind) => objective(kind),
                    Reader::Task => "an evaluation task".to_owned(),
                    Reader::Auxiliary => "an auxiliary source".to_owned(),
                };
                let found = if pair { "a pair" } else { "a `label`" };
                refused(name, "one sequence a row", found, "Write input_ids and labels alone.")
            }
            _ => Ok(()),
        }
    }

    /// One sequence. `fields` name ids and labels in messages about rows that come as tokens.
    fn sequence(&self, content: &Content, fields: [&str; 2], train_on: TrainOn) -> Result<Sequence, RowProblem> {
        let (ids, labels) = match content {
            Content::Conversation {
                messages,
                tools,
                supervise_from,
            } => self.conversation(messages, tools.as_ref(), *supervise_from, train_on)?,
            Content::PromptCompletion { prompt, completion } => self.prompt_completion(prompt, completion, train_on)?,
            Content::Exchange { question, answer } => self.exchange(question, answer, train_on)?,
            Content::Text(text) => self.text(text)?,
            Content::Aligned(aligned) => self.text(&aligned.text)?,
            Content::Tokens { input_ids, labels } => {
                let labels = labels.clone().unwrap_or_else(|| all(input_ids));
                (input_ids.clone(), labels)
            }
            Content::Marked { content, .. } | Content::Pair { chosen: content, .. } => {
                self.sequence(content, fields, train_on)?
            }
            Content::Choice {
                question,
                choices,
                answer,
            } => self.exchange(question, &choices[*answer], train_on)?,
        };
        let named = matches!(content, Content::Tokens { .. }).then_some(fields);
        self.check_vocabulary(named, &ids, &labels)?;
        Ok((ids, labels))
    }

    fn conversation(
        &self,
        messages: &[Message],
        tools: Option<&serde_json::Value>,
        supervise_from: usize,
        train_on: TrainOn,
    ) -> Result<Sequence, RowProblem> {
        let refused = |message: &String| RowProblem::Template {
            message: message.clone(),
        };
        let conversations = self.conversations.as_ref().map_err(refused)?;
        if train_on == TrainOn::All {
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

    fn prompt_completion(&self, prompt: &str, completion: &str, train_on: TrainOn) -> Result<Sequence, RowProblem> {
        let encoded = self.encode(&format!("{prompt}{completion}"), true)?;
        let supervised = prompt.len()..prompt.len() + completion.len();
        let mut labels = match train_on {
            TrainOn::Assistant => labels(&encoded, &[supervised]),
            TrainOn::All => all(&encoded.ids),
        };
        let mut ids = encoded.ids;
        self.end_with_eos(&mut ids, &mut labels);
        Ok((ids, labels))
    }

    /// A question and its answer: a conversation where there is a template, else plain text.
    fn exchange(&self, question: &str, answer: &str, train_on: TrainOn) -> Result<Sequence, RowProblem> {
        if self.conversations.is_ok() {
            let messages = [Message::new("user", question), Message::new("assistant", answer)];
            return self.conversation(&messages, None, 1, train_on);
        }
        let between = if question.ends_with(char::is_whitespace) {
            ""
        } else {
            "\n"
        };
        self.prompt_completion(&format!("{question}{between}"), answer, train_on)
    }

    /// The text of a row, or its prompt, as a model reads it.
    fn representation(&self, content: &Content) -> Result<Outcome, RowProblem> {
        let (mut ids, marks) = match content {
            Content::Aligned(aligned) => {
                let own = self.encode(&aligned.text, true)?;
                let other = self.encode(&aligned.other, true)?;
                let marks = representation::word_marks(aligned, &own, &other, self.max_length);
                (own.ids, marks)
            }
            Content::Conversation {
                messages,
                tools,
                supervise_from,
            } => {
                let conversations = self.conversations.as_ref().map_err(|message| RowProblem::Template {
                    message: message.clone(),
                })?;
                let prompt = representation::prompt(messages, *supervise_from).ok_or(RowProblem::NoPrompt)?;
                let rendered = conversations.template().render(prompt, tools.as_ref(), true);
                let text = rendered.map_err(|message| RowProblem::Template { message })?.text;
                (self.encode(&text, false)?.ids, Vec::new())
            }
            Content::Tokens { input_ids, .. } => (input_ids.clone(), Vec::new()),
            other => {
                let text = other.texts().first().copied().unwrap_or_default();
                (self.encode(text, true)?.ids, Vec::new())
            }
        };
        let named = matches!(content, Content::Tokens { .. }).then_some(["input_ids", "labels"]);
        self.check_vocabulary(named, &ids, &[])?;
        let truncated = ids.len() > self.max_length;
        ids.truncate(self.max_length);
        if ids.is_empty() {
            return Ok(Outcome::Dropped(DropReason::Empty));
        }
        let tokens = Tokens {
            labels: vec![UNSUPERVISED; ids.len()],
            input_ids: ids,
            parts: Vec::new(),
            marks,
        };
        Ok(Outcome::Kept {
            sequences: vec![tokens],
            truncated,
        })
    }

    fn text(&self, text: &str) -> Result<Sequence, RowProblem> {
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

    /// `fields`: the names of ids and labels, where the row gives them itself.
    fn check_vocabulary(&self, fields: Option<[&str; 2]>, ids: &[u32], labels: &[i32]) -> Result<(), RowProblem> {
        let size = self.vocabulary_size;
        let [ids_field, labels_field] = fields.unwrap_or(["input_ids", "labels"]);
        let problem = |field: String, found: i64| Err(RowProblem::OutOfVocabulary { field, found, size });
        if let Some(index) = ids.iter().position(|&id| id as usize >= size) {
            let field = match fields {
                Some(_) => format!("{ids_field}[{index}]"),
                None => self.tokenizer.token(ids[index]).unwrap_or_default(),
            };
            return problem(field, i64::from(ids[index]));
        }
        let wrong = |&label: &i32| label != UNSUPERVISED && usize::try_from(label).map_or(true, |label| label >= size);
        match labels.iter().position(wrong) {
            Some(index) => problem(format!("{labels_field}[{index}]"), i64::from(labels[index])),
            None => Ok(()),
        }
    }

    /// Cuts what is too long. The end of a conversation is lost; a text is cut into sequences that share one token, so that each of its
    /// tokens is supervised once.
    fn fit(&self, ids: Vec<u32>, labels: Vec<i32>, text: bool) -> Outcome {
        let long = ids.len() > self.max_length;
        if !text || !long || self.truncate == Truncate::Drop || supervised_tokens(&labels) == 0 {
            return self.fit_parts(vec![(ids, labels)], Vec::new());
        }
        let starts = (0..ids.len() - 1).step_by(self.max_length - 1);
        let cut = |start: usize| {
            let end = ids.len().min(start + self.max_length);
            Tokens {
                input_ids: ids[start..end].to_vec(),
                labels: labels[start..end].to_vec(),
                ..Tokens::default()
            }
        };
        Outcome::Kept {
            sequences: starts.map(cut).collect(),
            truncated: false,
        }
    }

    /// Cuts the end of each part that is too long. When one has nothing supervised left, the sample is dropped as a whole: what
    /// compares parts needs all of them.
    fn fit_parts(&self, mut parts: Vec<Sequence>, marks: Vec<u32>) -> Outcome {
        let empty = |parts: &[Sequence]| parts.iter().any(|(_, labels)| supervised_tokens(labels) == 0);
        if empty(&parts) {
            return Outcome::Dropped(DropReason::Unsupervised);
        }
        let truncated = parts.iter().any(|(ids, _)| ids.len() > self.max_length);
        if truncated && self.truncate == Truncate::Drop {
            return Outcome::Dropped(DropReason::TooLong);
        }
        for (ids, labels) in &mut parts {
            ids.truncate(self.max_length);
            labels.truncate(self.max_length);
        }
        if empty(&parts) {
            return Outcome::Dropped(DropReason::TruncatedAway);
        }
        let lengths = parts.iter().map(|(ids, _)| ids.len() as u32);
        let mut tokens = Tokens {
            parts: if parts.len() > 1 { lengths.collect() } else { Vec::new() },
            marks,
            ..Tokens::default()
        };
        for (ids, labels) in parts {
            tokens.input_ids.extend(ids);
            tokens.labels.extend(labels);
        }
        Outcome::Kept {
            sequences: vec![tokens],
            truncated,
        }
    }
}

/// Labels that supervise every token.
fn all(ids: &[u32]) -> Vec<i32> {
    ids.iter().map(|&id| id as i32).collect()
}
