//! Generation: the model answers, greedily, and its answers are compared with the expected ones.

use interlingua_checkpoints::config::ModelConfig;
use interlingua_data::DataError;
use interlingua_data::error::RowProblem;
use interlingua_data::language_name::english_name;
use interlingua_data::sample::{Content, Message};
use interlingua_data::task::{TaskRow, groups, reread};
use interlingua_data::tokenize::SampleTokenizer;
use interlingua_data::tokenizer::Tokenizer;
use interlingua_recipes::{Format, Task};
use serde_json::{Value, json};

use super::prompts::{Asked, Prompts};
use super::scores::{Scores, Scoring};
use super::setting::{Setting, wrong};
use super::work::{Answer, Said, Work};
use crate::error::TrainError;
use crate::generate::{GenerateOptions, Until, generate_by_language};
use crate::models::Model;
use crate::train::metrics::Example;

/// Answers of a task that are shown.
const EXAMPLES: usize = 4;

/// A task of kind `generate`.
pub(super) struct Generate {
    task: Task,
    tokenizer: Tokenizer,
    questions: Vec<Question>,
    options: GenerateOptions,
}

/// A prompt, as tokens, whose answer may be known.
struct Question {
    id: Option<String>,
    group: Option<String>,
    language: String,
    prompt: String,
    input_ids: Vec<u32>,
    expected: Value,
}

impl Generate {
    pub(super) fn new(setting: &Setting, task: &Task, rows: &[TaskRow]) -> Result<Self, TrainError> {
        let tokenize = setting.tokenize(task)?;
        let prompts = Prompts::new(setting, &tokenize, task, rows)?;
        let mut questions = Vec::new();
        let mut put = |row: &TaskRow, index: usize, ask: &super::prompts::Ask, expected: Value| {
            let prompt = prompts.prompt(index, ask)?;
            let input_ids = setting.tokenizer.encode(&prompt.text, prompt.special)?;
            questions.push(Question {
                id: row.sample.id.clone(),
                // Several texts of one row are items of their own.
                group: row.sample.group.clone().filter(|_| task.translate.is_empty()),
                language: row.sample.language.clone(),
                prompt: prompt.question,
                input_ids,
                expected,
            });
            Ok::<_, TrainError>(())
        };
        let pairs = translations(task, rows)?;
        for (index, row) in rows.iter().enumerate() {
            if !task.translate.is_empty() {
                for text in texts(task, row)? {
                    let ask = |row: &TaskRow, _: &TaskRow, language: &str| {
                        // An example shows the first text of its row; what it becomes is not known, so there are none.
                        let filled = prompts.fill_in(row, language, vec![("text", json!(text))]);
                        Ok(asked(filled.transpose()?.unwrap_or_else(|| text.clone()), Value::Null))
                    };
                    put(row, index, &ask, Value::Null)?;
                }
                continue;
            }
            if task.format == Format::Parallel {
                let Some((source, target)) = pairs.get(index).copied().flatten() else {
                    continue;
                };
                let ask = |row: &TaskRow, _: &TaskRow, language: &str| {
                    let place = rows.iter().position(|other| std::ptr::eq(other, row));
                    let (source, target) = place.and_then(|place| pairs[place]).unwrap_or((source, target));
                    translation(&prompts, &rows[source], &rows[target], language)
                };
                let expected = rows[target].sample.content.texts().first().copied().unwrap_or_default();
                put(row, index, &ask, json!(expected))?;
                continue;
            }
            let expected = expected(&row.sample.content).ok_or_else(|| {
                wrong(
                    task,
                    row,
                    "a generate task needs rows that end with an answer of the assistant. Remove the row.",
                )
            })?;
            put(
                row,
                index,
                &|row, _, language| question(&prompts, row, language),
                expected,
            )?;
        }
        Ok(Self {
            options: GenerateOptions {
                max_new_tokens: task.max_new_tokens,
                temperature: 0.0,
                top_p: 1.0,
                seed: 0,
                stop_tokens: stop_tokens(&tokenize, &setting.tokenizer, &setting.config),
            },
            task: task.clone(),
            tokenizer: setting.tokenizer.clone(),
            questions,
        })
    }
}

/// The last question of a row, or the task's prompt, and its answer.
fn question(prompts: &Prompts, row: &TaskRow, language: &str) -> Result<Asked, RowProblem> {
    let answer = expected(&row.sample.content).unwrap_or_default();
    if let Some(filled) = prompts.fill_in(row, language, Vec::new()) {
        return Ok(asked(filled?, answer));
    }
    Ok(match &row.sample.content {
        Content::PromptCompletion { prompt, .. } => asked(prompt.clone(), answer),
        Content::Conversation { messages, .. } => {
            let before = &messages[..messages.len().saturating_sub(1)];
            let (last, before) = before.split_last().unwrap_or((&messages[0], &[]));
            Asked {
                before: before.to_vec(),
                message: Some(last.clone()),
                ..asked(last.content.as_str().unwrap_or_default().to_owned(), answer)
            }
        }
        _ => asked(String::new(), answer),
    })
}

fn asked(question: String, answer: Value) -> Asked {
    Asked {
        before: Vec::new(),
        question,
        message: None,
        answers: vec![answer.as_str().map_or_else(|| answer.to_string(), str::to_owned)],
        right: 0,
    }
}

/// The answer that a row ends with.
fn expected(content: &Content) -> Option<Value> {
    match content {
        Content::PromptCompletion { completion, .. } => Some(json!(completion)),
        Content::Conversation { messages, .. } => {
            let (answer, before) = messages.split_last()?;
            let is_answer = answer.role == "assistant" && before.iter().any(|message: &Message| message.role == "user");
            is_answer.then(|| answer.content.as_str().map(|text| json!(text)))?
        }
        _ => None,
    }
}

/// For each row the text to translate and its translation: from the anchor into the row's language, or from that into the anchor
/// where answers are to be in the anchor.
fn translations(task: &Task, rows: &[TaskRow]) -> Result<Vec<Option<(usize, usize)>>, TrainError> {
    if task.format != Format::Parallel {
        return Ok(Vec::new());
    }
    let groups = groups(task, rows)?;
    let Some(anchor) = groups.languages.iter().position(|language| *language == task.anchor) else {
        return Err(TrainError::Setup(format!(
            "eval task `{}`: translations are from or into the anchor, and no row is in {:?}. Set `anchor`, or add it to `languages`.",
            task.name, task.anchor
        )));
    };
    let into_anchor = task.answer_lang.as_ref() == Some(&task.anchor);
    let mut pairs = vec![None; rows.len()];
    for item in &groups.items {
        for (_, index) in item.iter().enumerate().filter(|(place, _)| *place != anchor) {
            pairs[*index] = Some(if into_anchor {
                (*index, item[anchor])
            } else {
                (item[anchor], *index)
            });
        }
    }
    Ok(pairs)
}

/// A text and its translation, as a question and its answer.
fn translation(prompts: &Prompts, source: &TaskRow, target: &TaskRow, language: &str) -> Result<Asked, RowProblem> {
    let text = |row: &TaskRow| {
        row.sample
            .content
            .texts()
            .first()
            .copied()
            .unwrap_or_default()
            .to_owned()
    };
    let names = [&source.sample.language, &target.sample.language].map(|tag| english_name(tag));
    let more = vec![
        ("text", json!(text(source))),
        ("source", json!(source.sample.language)),
        ("target", json!(target.sample.language)),
        ("source_language", json!(names[0])),
        ("target_language", json!(names[1])),
    ];
    let filled = prompts.fill_in(source, language, more).transpose()?;
    let plain = || {
        format!(
            "Translate the following text from {} into {}.\n\n{}",
            names[0],
            names[1],
            text(source)
        )
    };
    Ok(asked(filled.unwrap_or_else(plain), json!(text(target))))
}

/// The texts of a row that are translated, one by one.
fn texts(task: &Task, row: &TaskRow) -> Result<Vec<String>, TrainError> {
    let mut texts = Vec::new();
    for field in &task.translate {
        match row.values.get(field) {
            Some(Value::String(text)) => texts.push(text.clone()),
            Some(Value::Array(list)) if list.iter().all(Value::is_string) => {
                texts.extend(list.iter().filter_map(|text| text.as_str().map(str::to_owned)));
            }
            _ => {
                let problem =
                    format!("`translate` names {field:?}, which is no text or list of texts here. Correct it.");
                return Err(wrong(task, row, &problem));
            }
        }
    }
    Ok(texts)
}

/// The rows of a task that translates, with the answers in the place of what was translated.
///
/// # Errors
/// When what comes out is no row of the format, as after an empty answer.
pub(super) fn translated(task: &Task, rows: &[TaskRow], answers: &[Answer]) -> Result<Vec<TaskRow>, TrainError> {
    let mut outputs = answers.iter().map(|answer| match &answer.said {
        Said::Text { output, .. } => output.trim().to_owned(),
        _ => String::new(),
    });
    let mut next = |text: &str| {
        let output = outputs.next().unwrap_or_default();
        // An answer that is empty says nothing: the text itself is kept.
        json!(if output.is_empty() { text } else { &output })
    };
    let mut changed = Vec::with_capacity(rows.len());
    for row in rows {
        let mut values = row.values.clone();
        for field in &task.translate {
            let value = match values.get(field) {
                Some(Value::Array(list)) => list
                    .iter()
                    .map(|text| next(text.as_str().unwrap_or_default()))
                    .collect(),
                Some(Value::String(text)) => next(text),
                _ => continue,
            };
            if let Some(column) = task.fields.get(field) {
                values.insert(column.clone(), value.clone());
            }
            values.insert(field.clone(), value);
        }
        changed.push(reread(task, row, values).map_err(TrainError::from)?);
    }
    Ok(changed)
}

/// Tokens that end an answer: those of the template, of the tokenizer and of the config.
fn stop_tokens(tokenize: &SampleTokenizer, tokenizer: &Tokenizer, config: &ModelConfig) -> Vec<u32> {
    let template = tokenize
        .conversations()
        .map(|conversations| conversations.stop_tokens(tokenizer));
    let mut tokens = template.unwrap_or_default();
    tokens.extend(&config.eos_token_ids);
    tokens.extend(tokenizer.eos_id());
    tokens.sort_unstable();
    tokens.dedup();
    tokens
}

impl Work for Generate {
    fn items(&self) -> usize {
        self.questions.len()
    }

    fn answer(&self, model: &Model, numbers: &[usize]) -> Result<Vec<Answer>, TrainError> {
        let questions: Vec<&Question> = numbers.iter().map(|number| &self.questions[*number]).collect();
        let prompts: Vec<Vec<u32>> = questions.iter().map(|question| question.input_ids.clone()).collect();
        let languages: Vec<&str> = questions.iter().map(|question| question.language.as_str()).collect();
        let has_ended = |tokens: &[u32]| {
            let text = self.tokenizer.decode(tokens, true).unwrap_or_default();
            self.task.stop.iter().any(|stop| text.contains(stop))
        };
        let until: Option<&Until> = if self.task.stop.is_empty() {
            None
        } else {
            Some(&has_ended)
        };
        let generated = generate_by_language(model, &prompts, &languages, &self.options, until);
        let answer = |((number, question), tokens): ((&usize, &Question), Vec<u32>)| {
            let mut output = self.tokenizer.decode(&tokens, true)?;
            let end = self.task.stop.iter().filter_map(|stop| output.find(stop)).min();
            output.truncate(end.unwrap_or(output.len()));
            Ok(Answer {
                number: *number,
                id: question.id.clone(),
                group: question.group.clone(),
                language: question.language.clone(),
                said: Said::Text {
                    prompt: question.prompt.clone(),
                    output,
                    expected: question.expected.clone(),
                },
            })
        };
        let answers = numbers.iter().zip(questions).zip(generated).map(answer);
        Ok(answers.collect::<Result<_, DataError>>()?)
    }

    fn score(&self, answers: &[Answer]) -> Scores {
        let mut scoring = Scoring::of(&self.task, answers);
        scoring.row.examples = examples(answers);
        scoring.finish()
    }

    fn fingerprint(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(format!("{:?} {:?}", self.options, self.task.stop).as_bytes());
        for question in &self.questions {
            hasher.update(question.language.as_bytes());
            hasher.update(bytemuck::cast_slice(&question.input_ids));
            hasher.update(question.expected.to_string().as_bytes());
        }
        hasher.finalize()
    }
}

/// A few answers of different languages.
fn examples(answers: &[Answer]) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    for answer in answers {
        let Said::Text {
            prompt,
            output,
            expected,
        } = &answer.said
        else {
            continue;
        };
        if examples.len() == EXAMPLES {
            break;
        }
        if !examples.iter().any(|known| known.language == answer.language) {
            examples.push(Example {
                language: answer.language.clone(),
                prompt: prompt.clone(),
                answer: output.clone(),
                reference: expected.as_str().unwrap_or_default().to_owned(),
            });
        }
    }
    examples
}
