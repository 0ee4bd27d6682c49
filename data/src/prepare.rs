//! From a recipe's sources to tokenised samples for training and for evaluation.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use interlingua_recipes::{BadRow as OnBadRow, Format, ObjectiveKind, Recipe, Source, SourceUse};
use rayon::prelude::*;

use crate::builders::SampleRows;
use crate::cache::{self, Entry};
use crate::dataset::Dataset;
use crate::error::DataError;
use crate::holdout;
use crate::report::{Report, SkippedRows, SourceReport};
use crate::sample::{Content, Sample};
use crate::source::source_files;
use crate::tokenize::{Outcome, SampleTokenizer};
use crate::tokenized_file::{Info, TokenizedFile, TokenizedSample};
use crate::tokenizer::Tokenizer;

/// Rows that are tokenised at a time: enough for all cores, little enough to hold.
const CHUNK: usize = 2048;
/// Bytes of text after which a chunk is full even with fewer rows.
const CHUNK_BYTES: usize = 32 << 20;

/// Tokenised data of a recipe.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// What is trained on.
    pub train: Dataset,
    /// What is kept for evaluation; none without `holdout`.
    pub heldout: Option<Dataset>,
    /// The sources that only a loss or a probe reads, by name.
    pub auxiliary: BTreeMap<String, Dataset>,
    /// What was read, kept and dropped.
    pub report: Report,
}

/// How far tokenisation is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Name of the source.
    pub source: String,
    /// Number of the source, counted from 1.
    pub number: usize,
    /// How many sources there are.
    pub count: usize,
    /// Rows read so far.
    pub rows: u64,
    /// Tokens kept so far.
    pub tokens: u64,
    /// Whether the source was found in the cache.
    pub cached: bool,
    /// Whether the source is done.
    pub done: bool,
}

/// Tokenises the sources of a recipe, or finds them in the cache. `vocabulary_size` is the model's; `cache` a folder, usually
/// [`crate::cache::default_folder`].
///
/// # Errors
/// When a source cannot be read, a row is bad and the recipe does not say to skip it, the tokenizer or its chat template cannot be used,
/// the cache cannot be written, or nothing is left to train on.
pub fn prepare(
    recipe: &Recipe,
    tokenizer: &Tokenizer,
    vocabulary_size: usize,
    cache: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Prepared, DataError> {
    let data = &recipe.data;
    let base_tokenizer = SampleTokenizer::new(tokenizer, data, vocabulary_size)?;
    let (mut trained, mut auxiliary) = (Vec::new(), BTreeMap::new());
    let mut report = Report {
        notes: notes(recipe, tokenizer),
        ..Report::default()
    };
    for (index, source) in data.sources.iter().enumerate() {
        let mut watch = Watch {
            index,
            count: data.sources.len(),
            source: &source.name,
            progress,
        };
        let sample_tokenizer = match source.r#use {
            SourceUse::Train => base_tokenizer.for_objective(recipe.objective.kind),
            SourceUse::Auxiliary => base_tokenizer.for_auxiliary(auxiliary_length(recipe, &source.name)),
        };
        let reading = Reading {
            index,
            source,
            on_bad_row: data.on_bad_row,
            seed: recipe.seed,
            tokenizer: &sample_tokenizer,
        };
        let file = prepare_source(&reading, cache, &mut watch)?;
        let kept = file.info().report.clone();
        let unreadable = |reason: serde_json::Error| DataError::Cache {
            path: cache.to_owned(),
            reason: reason.into(),
        };
        let source_report: SourceReport = serde_json::from_value(kept).map_err(unreadable)?;
        report.notes.extend(source_report.cross_lingual_note());
        report.sources.push(source_report);
        match source.r#use {
            SourceUse::Train => trained.push(file),
            SourceUse::Auxiliary => {
                let dataset = Dataset::new(vec![file]);
                if dataset.is_empty() {
                    return Err(DataError::NothingLeft {
                        reasons: report.why_nothing_is_left(),
                    });
                }
                auxiliary.insert(source.name.clone(), dataset);
            }
        }
    }
    let learns = recipe.objective.kind != ObjectiveKind::None && !recipe.adapter.is_closed_form();
    let no_training = !learns && trained.is_empty();
    let all = Dataset::new(trained);
    if all.is_empty() && !no_training {
        return Err(DataError::NothingLeft {
            reasons: report.why_nothing_is_left(),
        });
    }
    if data.holdout == 0.0 || no_training {
        return Ok(Prepared {
            train: all,
            heldout: None,
            auxiliary,
            report,
        });
    }
    let (train, heldout) = holdout::split(&all, data.holdout, recipe.seed);
    if train.is_empty() {
        let reasons = format!(
            "data.holdout = {} keeps all {} samples for evaluation",
            data.holdout,
            all.len()
        );
        return Err(DataError::NothingLeft { reasons });
    }
    Ok(Prepared {
        train,
        heldout: (!heldout.is_empty()).then_some(heldout),
        auxiliary,
        report,
    })
}

/// The longest text of an auxiliary source, in tokens: as the loss that names it says.
fn auxiliary_length(recipe: &Recipe, source: &str) -> usize {
    let names = |name: &Option<String>| name.as_deref() == Some(source);
    let mut losses = recipe.objective.auxiliary.iter();
    let loss = losses.find(|loss| names(&loss.source) || names(&loss.probe));
    loss.and_then(|loss| loss.max_length).unwrap_or(recipe.data.max_length)
}

/// What is right but may surprise.
fn notes(recipe: &Recipe, tokenizer: &Tokenizer) -> Vec<String> {
    let ended = |source: &Source| {
        source.r#use == SourceUse::Train
            && matches!(
                source.format,
                Format::Text | Format::PromptCompletion | Format::Preference | Format::Kto | Format::Parallel
            )
    };
    if tokenizer.eos_id().is_some() || !recipe.data.sources.iter().any(ended) {
        return Vec::new();
    }
    let note = "The tokenizer names no eos_token, so nothing tells the model where texts and completions end.";
    vec![note.to_owned()]
}

struct Watch<'a> {
    index: usize,
    count: usize,
    source: &'a str,
    progress: &'a mut dyn FnMut(Progress),
}

impl Watch<'_> {
    fn say(&mut self, rows: u64, tokens: u64, cached: bool, done: bool) {
        let source = self.source.to_owned();
        (self.progress)(Progress {
            source,
            number: self.index + 1,
            count: self.count,
            rows,
            tokens,
            cached,
            done,
        });
    }
}

/// How a source is read.
struct Reading<'a> {
    index: usize,
    source: &'a Source,
    on_bad_row: OnBadRow,
    seed: u64,
    tokenizer: &'a SampleTokenizer,
}

fn prepare_source(reading: &Reading, folder: &Path, watch: &mut Watch) -> Result<TokenizedFile, DataError> {
    let &Reading {
        index,
        source,
        on_bad_row,
        seed,
        tokenizer,
    } = reading;
    let files: Vec<String> = source_files(source)?
        .iter()
        .map(|file| file.display().to_string())
        .collect();
    let path = cache::file_of(folder, source, on_bad_row, &files, tokenizer, seed)?;
    if let Some(file) = cache::open(&path)? {
        let tokens = file.records().iter().map(|record| u64::from(record.length)).sum();
        watch.say(file.records().len() as u64, tokens, true, true);
        return Ok(file);
    }
    watch.say(0, 0, false, false);
    let mut entry = Entry::new(&path)?;
    let mut pass = Pass {
        on_bad_row,
        report: SourceReport {
            name: source.name.clone(),
            auxiliary: source.r#use == SourceUse::Auxiliary,
            ..SourceReport::default()
        },
        files: files.iter().cloned().zip(0..).collect(),
        languages: Vec::new(),
    };
    let mut rows = SampleRows::open(index, source, on_bad_row, seed)?;
    loop {
        let mut chunk: Vec<Sample> = Vec::new();
        let mut bytes = 0;
        while chunk.len() < CHUNK && bytes < CHUNK_BYTES {
            let Some(sample) = rows.next().transpose()? else { break };
            bytes += sample.content.bytes();
            chunk.push(sample);
        }
        if chunk.is_empty() {
            break;
        }
        let outcomes: Vec<_> = chunk
            .par_iter()
            .map(|sample| tokenizer.tokenize(&sample.content))
            .collect();
        for (sample, outcome) in chunk.iter().zip(outcomes) {
            match outcome {
                Ok(outcome) => pass.keep(sample, outcome, &mut entry)?,
                Err(problem) => {
                    let kind = problem.kind();
                    let error = DataError::bad_row(sample.place.clone(), problem);
                    if pass.on_bad_row == OnBadRow::Fail {
                        return Err(error);
                    }
                    pass.report.skip(kind, 1, &error.to_string());
                }
            }
        }
        watch.say(rows.rows(), pass.report.tokens(), false, false);
    }
    pass.report.rows = rows.rows();
    for (kind, skipped) in &rows.skipped().kinds {
        pass.report.skip(kind, skipped.rows, &skipped.first);
    }
    watch.say(pass.report.rows, pass.report.tokens(), false, true);
    let report = serde_json::to_value(&pass.report).map_err(|reason| DataError::Cache {
        path: path.clone(),
        reason: reason.into(),
    })?;
    entry.finish(&Info {
        source: source.name.clone(),
        languages: pass.languages,
        files,
        report,
    })
}

/// What is gathered while a source is read.
struct Pass {
    on_bad_row: OnBadRow,
    report: SourceReport,
    /// Index of each file by its name.
    files: HashMap<String, u32>,
    languages: Vec<String>,
}

impl Pass {
    fn keep(&mut self, sample: &Sample, outcome: Outcome, entry: &mut Entry) -> Result<(), DataError> {
        let counts = self.report.by_language.entry(sample.language.clone()).or_default();
        let sequences = match outcome {
            Outcome::Dropped(reason) => {
                *counts.dropped.entry(reason.text().to_owned()).or_default() += 1;
                return Ok(());
            }
            Outcome::Kept { sequences, truncated } => {
                counts.truncated += u64::from(truncated);
                sequences
            }
        };
        let language = match self.languages.iter().position(|known| *known == sample.language) {
            Some(known) => known,
            None => {
                self.languages.push(sample.language.clone());
                self.languages.len() - 1
            }
        };
        let file = sample.place.file.display().to_string();
        let file = self.files.get(&file).copied().unwrap_or_default();
        let group = group_of(sample, &self.report.name, file);
        if let Content::Pair { languages, .. } = &sample.content {
            self.report.pairs += 1;
            if let Some(crossing) = crossing(&sample.language, languages) {
                *self.report.cross_lingual.entry(crossing).or_default() += 1;
            }
        }
        for tokens in sequences {
            counts.add(&tokens);
            entry.push(&TokenizedSample {
                input_ids: tokens.input_ids,
                labels: tokens.labels,
                parts: tokens.parts,
                marks: tokens.marks,
                language: language as u32,
                group,
                file,
                line: sample.place.line,
                id: sample.id.clone().unwrap_or_default(),
            })?;
        }
        Ok(())
    }
}

/// The languages of a pair of which an answer is in another than the prompt.
fn crossing(prompt: &str, answers: &[Option<String>; 2]) -> Option<String> {
    let [chosen, rejected] = answers.each_ref().map(|answer| answer.as_deref().unwrap_or(prompt));
    if chosen == prompt && rejected == prompt {
        return None;
    }
    Some(match chosen == rejected {
        true => format!("{prompt}→{chosen}"),
        false => format!("{prompt}→{chosen}, {rejected}"),
    })
}

/// Equal for rows with the same group, in whatever source; a row without one is a group of its own. `file`: its place among the
/// source's files, so that data that has moved keeps its groups.
fn group_of(sample: &Sample, source: &str, file: u32) -> u64 {
    let key = match &sample.group {
        Some(group) => format!("group\0{group}"),
        None => format!("row\0{source}\0{file}\0{}", sample.place.line),
    };
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(key.as_bytes()).as_bytes()[..8]);
    u64::from_le_bytes(first)
}

impl SourceReport {
    fn skip(&mut self, kind: &str, rows: u64, first: &str) {
        let skipped = self.skipped.entry(kind.to_owned());
        skipped
            .or_insert_with(|| SkippedRows {
                rows: 0,
                first: first.to_owned(),
            })
            .rows += rows;
    }
}
