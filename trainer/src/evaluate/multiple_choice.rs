//! Multiple choice: the answer whose whole text, letter or filled template the model finds the most likely.
//!
//! By whole text as in arXiv 2501.09825 (`scoring = "answer"`), by letter as in MMLU, by filled template
//! as for XCOPA, XWinograd and PAWS-X in AFP (NAACL 2024). Log-probabilities are summed from the first token on in which the answers
//! differ from the prompt, or filled templates from one another.

use interlingua_data::DataError;
use interlingua_data::error::RowProblem;
use interlingua_data::sample::Content;
use interlingua_data::task::{Groups, TaskRow, check_shared};
use interlingua_metrics::bootstrap::{RESAMPLES, interval};
use interlingua_metrics::consistency;
use interlingua_metrics::consistency::{Ac3, Consistency, Mlc};
use interlingua_metrics::statistics::score;
use interlingua_recipes::{DivideBy, Scoring as By, Task};
use serde_json::json;

use super::likelihood::{Branches, branch_log_probs};
use super::prompts::{Asked, Prompts};
use super::scores::{MEAN, SEED, Scores, Scoring};
use super::setting::{Setting, wrong};
use super::work::{Answer, Said, Work};
use crate::error::TrainError;
use crate::models::Model;

/// A task of kind `multiple-choice`.
pub(super) struct MultipleChoice {
    task: Task,
    items: Vec<Item>,
    /// The items of all languages: numbers, by language in the order of `languages`.
    shared: Vec<Vec<usize>>,
    languages: Vec<String>,
}

struct Item {
    id: Option<String>,
    group: Option<String>,
    language: String,
    branches: Branches,
    bytes: Vec<u64>,
    answer: usize,
}

impl MultipleChoice {
    pub(super) fn new(setting: &Setting, task: &Task, rows: &[TaskRow]) -> Result<Self, TrainError> {
        let groups = comparable(task, rows)?;
        let tokenize = setting.tokenize(task)?;
        let prompts = Prompts::new(setting, &tokenize, task, rows)?;
        // What some language lacks is left out of all of them.
        let mut wanted: Vec<usize> = groups.items.iter().flatten().copied().collect();
        wanted.sort_unstable();
        if wanted.is_empty() {
            wanted = (0..rows.len()).collect();
        }
        let mut items = Vec::with_capacity(wanted.len());
        for index in &wanted {
            items.push(item(setting, task, &prompts, rows, *index)?);
        }
        let number = |index: &usize| wanted.binary_search(index).unwrap_or_default();
        Ok(Self {
            task: task.clone(),
            items,
            shared: groups
                .items
                .iter()
                .map(|item| item.iter().map(number).collect())
                .collect(),
            languages: groups.languages,
        })
    }

    fn choice(&self, item: &Item, log_probs: &[f64]) -> usize {
        let value = |index: usize| {
            let by = match self.task.divide_by {
                DivideBy::Nothing => 1.0,
                DivideBy::Tokens => counted(&item.branches, index) as f64,
                DivideBy::Bytes => item.bytes[index] as f64,
            };
            log_probs[index] / by.max(1.0)
        };
        // The first of equals.
        let best = (0..log_probs.len()).max_by(|a, b| value(*a).total_cmp(&value(*b)).then(b.cmp(a)));
        best.unwrap_or_default()
    }
}

/// The items that all languages have, where their choices can be compared.
fn comparable(task: &Task, rows: &[TaskRow]) -> Result<Groups, TrainError> {
    let groups = check_shared(task, rows)?.unwrap_or_default();
    for item in &groups.items {
        let right = |index: usize| (choices(&rows[index]).2, choices(&rows[index]).1.len());
        let Some(other) = item.iter().find(|index| right(**index) != right(item[0])) else {
            continue;
        };
        if task.group_field.is_none() {
            return Ok(Groups::default());
        }
        let problem = format!(
            "its choices are not those of {}: number or place of the right one differ, so they cannot be compared across languages. \
             Put them in one order, or leave `group_field` out.",
            rows[item[0]].sample.place
        );
        return Err(wrong(task, &rows[*other], &problem));
    }
    Ok(groups)
}

fn counted(branches: &Branches, index: usize) -> u64 {
    let (ids, from) = &branches.branches[index];
    (ids.len() - from) as u64
}

/// The question, choices and answer of a row.
fn choices(row: &TaskRow) -> (&str, &[String], usize) {
    match &row.sample.content {
        Content::Choice {
            question,
            choices,
            answer,
        } => (question, choices, *answer),
        _ => ("", &[], 0),
    }
}

fn letter(index: usize) -> String {
    char::from(b'A' + index as u8).to_string()
}

fn item(setting: &Setting, task: &Task, prompts: &Prompts, rows: &[TaskRow], index: usize) -> Result<Item, TrainError> {
    let row = &rows[index];
    let (_, own, answer) = choices(row);
    if task.scoring == By::Letter && own.len() > 26 {
        return Err(wrong(
            task,
            row,
            "there are more choices than letters. Use scoring = \"answer\".",
        ));
    }
    let ask = |choice: Option<usize>| {
        move |row: &TaskRow, other: &TaskRow, language: &str| -> Result<Asked, RowProblem> {
            let (question, _, right) = choices(row);
            let (_, texts, _) = choices(other);
            let letters: Vec<String> = (0..texts.len().min(26)).map(letter).collect();
            let lines = letters
                .iter()
                .zip(texts)
                .map(|(letter, text)| format!("{letter}. {text}"));
            let options = lines.collect::<Vec<_>>().join("\n");
            let mut more = vec![
                ("choices", json!(texts)),
                ("letters", json!(letters)),
                ("options", json!(options)),
            ];
            if let Some(choice) = choice {
                more.extend([("choice", json!(texts.get(choice))), ("choice_index", json!(choice))]);
            }
            let by_letter = task.scoring == By::Letter;
            let question = match prompts.fill_in(row, language, more) {
                Some(filled) => filled?,
                None if by_letter => format!("{question}\n{options}\n"),
                None => question.to_owned(),
            };
            Ok(Asked {
                before: Vec::new(),
                question,
                message: None,
                answers: if by_letter { letters } else { texts.to_vec() },
                right,
            })
        }
    };
    let encode = |text: &str, special: bool, from: usize| {
        let mut encoded = setting.tokenizer.encode_with_spans(text, special)?;
        // What a post-processor puts behind a text is no part of an answer.
        while encoded.spans.len() > 1 && encoded.spans.last().is_some_and(|(start, end)| start == end) {
            encoded.spans.pop();
            encoded.ids.pop();
        }
        let start = encoded.spans.iter().position(|(_, end)| *end > from);
        let start = start.unwrap_or(encoded.ids.len());
        Ok::<_, DataError>((encoded.ids, start))
    };
    let mut sequences = Vec::new();
    let mut bytes = Vec::new();
    if task.scoring == By::Template {
        for place in 0..own.len() {
            let filled = prompts.question(index, &ask(Some(place)))?;
            bytes.push(filled.len() as u64);
            sequences.push(encode(&filled, true, 0)?);
        }
        let shared = common(&sequences);
        for sequence in &mut sequences {
            sequence.1 = shared.min(sequence.0.len().saturating_sub(1));
        }
    } else {
        let prompt = prompts.prompt(index, &ask(None))?;
        for text in &prompt.answers {
            let whole = [&prompt.text, prompt.glue, text].concat();
            sequences.push(encode(&whole, prompt.special, prompt.text.len())?);
            bytes.push(text.len() as u64);
        }
    }
    if sequences.len() != own.len() || sequences.iter().any(|(ids, start)| *start >= ids.len()) {
        return Err(wrong(
            task,
            row,
            "the tokenizer makes no token of a choice, or another language has other choices. Correct the row.",
        ));
    }
    Ok(Item {
        id: row.sample.id.clone(),
        group: row.sample.group.clone(),
        language: row.sample.language.clone(),
        branches: Branches::new(&sequences),
        bytes,
        answer,
    })
}

/// How many tokens all sequences begin with.
fn common(sequences: &[(Vec<u32>, usize)]) -> usize {
    let first = sequences.first().map_or(&[][..], |(ids, _)| ids);
    let is_shared = |index: &usize| sequences.iter().all(|(ids, _)| ids.get(*index) == first.get(*index));
    (0..first.len()).take_while(is_shared).count()
}

impl Work for MultipleChoice {
    fn items(&self) -> usize {
        self.items.len()
    }

    fn at_a_time(&self) -> usize {
        128
    }

    fn answer(&self, model: &Model, numbers: &[usize]) -> Result<Vec<Answer>, TrainError> {
        let items: Vec<&Item> = numbers.iter().map(|number| &self.items[*number]).collect();
        let branches: Vec<&Branches> = items.iter().map(|item| &item.branches).collect();
        let languages: Vec<&str> = items.iter().map(|item| item.language.as_str()).collect();
        let all = branch_log_probs(model, &branches, &languages);
        let answers = numbers.iter().zip(items).zip(all).map(|((number, item), log_probs)| {
            if log_probs.iter().any(|log_prob| !log_prob.is_finite()) {
                return Err(TrainError::Evaluation {
                    item: item.id.clone().unwrap_or_else(|| number.to_string()),
                    language: item.language.clone(),
                });
            }
            Ok(Answer {
                number: *number,
                id: item.id.clone(),
                group: item.group.clone(),
                language: item.language.clone(),
                said: Said::Choice {
                    tokens: (0..log_probs.len())
                        .map(|index| counted(&item.branches, index))
                        .collect(),
                    bytes: item.bytes.clone(),
                    choice: self.choice(item, &log_probs),
                    answer: item.answer,
                    log_probs,
                },
            })
        });
        answers.collect()
    }

    fn score(&self, answers: &[Answer]) -> Scores {
        let chosen = |answer: &Answer| match answer.said {
            Said::Choice { choice, answer, .. } => Some((choice, answer)),
            _ => None,
        };
        let mut scoring = Scoring::of(&self.task, answers);
        if self.languages.len() > 1 {
            let item = |numbers: &Vec<usize>| {
                let all: Vec<Option<(usize, usize)>> = numbers
                    .iter()
                    .map(|number| answers.get(*number).and_then(chosen))
                    .collect();
                let choices: Vec<Option<usize>> = all.iter().map(|chosen| chosen.map(|(choice, _)| choice)).collect();
                consistency::item(&choices, all.iter().flatten().next().map_or(0, |(_, right)| *right))
            };
            let items: Vec<Vec<f64>> = self.shared.iter().map(item).collect();
            for (place, language) in self.languages.iter().enumerate() {
                scoring.set(language, "mlc", score(&items, &Mlc { language: place }));
            }
            for size in 2..=self.languages.len() {
                let row = &mut scoring.row;
                row.consistency_by_size
                    .insert(size, score(&items, &Consistency { size }));
                row.ac3_by_size.insert(size, score(&items, &Ac3 { size }));
            }
            let size = self.languages.len().min(3);
            let row = &mut scoring.row;
            row.consistency = row.consistency_by_size.get(&size).copied();
            row.ac3 = row.ac3_by_size.get(&size).copied();
            row.mlc = row.consistency_by_size.get(&2).copied();
            scoring.put_interval(
                MEAN,
                "consistency",
                interval(&items, &Consistency { size }, SEED, RESAMPLES),
            );
            scoring.put_interval(MEAN, "ac3", interval(&items, &Ac3 { size }, SEED, RESAMPLES));
            scoring.put_interval(MEAN, "mlc", interval(&items, &Consistency { size: 2 }, SEED, RESAMPLES));
        }
        scoring.finish()
    }

    fn fingerprint(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(format!("{:?}", self.task.divide_by).as_bytes());
        for item in &self.items {
            hasher.update(item.language.as_bytes());
            hasher.update(bytemuck::cast_slice(&item.branches.prefix));
            for (ids, from) in &item.branches.branches {
                hasher.update(&from.to_le_bytes()).update(bytemuck::cast_slice(ids));
            }
            hasher.update(&item.answer.to_le_bytes());
        }
        hasher.finalize()
    }
}
