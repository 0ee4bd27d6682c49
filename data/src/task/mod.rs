//! The rows of an evaluation task: what their format reads, and every field that the file has, for prompts to name.

mod groups;
mod prompt;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use interlingua_recipes::{BadRow as OnBadRow, Format, Source, Task};
use serde_json::{Map, Value};

use crate::error::DataError;
use crate::language::canonical;
use crate::language_name::english_name;
use crate::readers::{self, Origin, Row};
use crate::sample::{Place, Sample};
use crate::source::RowReader;

pub use groups::{Groups, check_shared, groups};
pub use prompt::TaskPrompt;

/// One row of a task in one language.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskRow {
    /// What its format reads.
    pub sample: Sample,
    /// Its fields as the file has them, and those of the format by their own names.
    pub values: Map<String, Value>,
}

impl TaskRow {
    /// What a prompt may name: the row's fields, `lang` (its tag) and `language` (its English name).
    pub fn variables(&self) -> Map<String, Value> {
        let mut variables = self.values.clone();
        let language = &self.sample.language;
        variables.insert("lang".into(), language.clone().into());
        variables.insert("language".into(), english_name(language).into());
        variables
    }

    /// What the rows of one item have in common, where the row says it.
    pub fn group(&self) -> Option<&str> {
        self.sample.group.as_deref()
    }
}

/// A task's rows of the languages that it names, or of all when it names none; at most `limit` of each.
///
/// # Errors
/// When a file is missing or cannot be read, there is no row of the languages, or, with [`OnBadRow::Fail`], at the first bad row.
pub fn read_task(task: &Task, on_bad_row: OnBadRow) -> Result<Vec<TaskRow>, DataError> {
    read(task, &sources(task, &task.path), on_bad_row, task.limit)
}

/// The rows that examples are drawn from, where the task names a file of them.
///
/// # Errors
/// As [`read_task`].
pub fn read_shots(task: &Task, on_bad_row: OnBadRow) -> Result<Option<Vec<TaskRow>>, DataError> {
    let path = task.shots_path.as_ref();
    path.map(|path| read(task, &sources(task, path), on_bad_row, 0))
        .transpose()
}

/// A row whose fields have changed, read anew. It keeps place, language and group.
///
/// # Errors
/// When the fields no longer make a row of the task's format.
pub fn reread(task: &Task, row: &TaskRow, values: Map<String, Value>) -> Result<TaskRow, DataError> {
    let mut source = source(task, &task.path, None);
    source.lang = Some(row.sample.language.clone());
    source.group_field = None;
    let reader = RowReader::new(&source)?;
    let place = row.sample.place.clone();
    let samples = reader.samples(Row {
        place,
        values: values.clone(),
    })?;
    let sample = samples.into_iter().next().map(|sample| Sample {
        group: row.sample.group.clone(),
        ..sample
    });
    Ok(TaskRow {
        sample: sample.unwrap_or_else(|| row.sample.clone()),
        values: named(task, values),
    })
}

/// A task's file, or one for each of its languages where the path says `{lang}`, as sources of data.
fn sources(task: &Task, path: &Path) -> Vec<Source> {
    let text = path.to_string_lossy();
    if !text.contains("{lang}") {
        return vec![source(task, path, task.lang.clone())];
    }
    let languages = task.languages.iter();
    languages
        .map(|lang| source(task, Path::new(&text.replace("{lang}", lang)), Some(lang.clone())))
        .collect()
}

fn source(task: &Task, path: &Path, lang: Option<String>) -> Source {
    Source {
        lang,
        lang_field: task.lang_field.clone(),
        group_field: task.group_field.clone(),
        fields: task.fields.clone(),
        ..Source::new(&task.name, path, task.format)
    }
}

fn read(task: &Task, sources: &[Source], on_bad_row: OnBadRow, limit: usize) -> Result<Vec<TaskRow>, DataError> {
    let tags = task.languages.iter();
    let wanted: BTreeSet<String> = tags.map(|tag| canonical(tag).unwrap_or_else(|_| tag.clone())).collect();
    let mut rows = Vec::new();
    let mut places: Vec<String> = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        let mut reader = RowReader::new(source)?;
        reader.columns.extend(prompt::fields(task)?);
        for file in readers::files(&source.path)? {
            places.push(file.display().to_string());
            let origin = Origin {
                source: index,
                file: Arc::from(file),
            };
            for row in readers::open(origin, source.format, &reader.columns)? {
                let read = row.and_then(|row| {
                    let values = with_choices(task, row.values);
                    let place: Place = row.place;
                    let samples = reader.samples(Row {
                        place,
                        values: values.clone(),
                    })?;
                    Ok((samples, named(task, values)))
                });
                let (samples, values) = match read {
                    Ok(read) => read,
                    Err(DataError::BadRow(_)) if on_bad_row == OnBadRow::Skip => continue,
                    Err(error) => return Err(error),
                };
                // The texts of one row are one item, whether or not it has an id.
                let several = samples.len() > 1;
                let samples = samples
                    .into_iter()
                    .filter(|sample| wanted.is_empty() || wanted.contains(&sample.language));
                rows.extend(samples.map(|mut sample| {
                    if several && sample.group.is_none() {
                        sample.group = Some(sample.place.to_string());
                    }
                    TaskRow {
                        sample,
                        values: values.clone(),
                    }
                }));
            }
        }
    }
    let found: BTreeSet<&str> = rows.iter().map(|row| row.sample.language.as_str()).collect();
    let absent: Vec<String> = wanted
        .iter()
        .filter(|tag| !found.contains(tag.as_str()))
        .cloned()
        .collect();
    if rows.is_empty() || !absent.is_empty() {
        return Err(DataError::TaskLanguages {
            task: task.name.clone(),
            absent,
            path: places.join(", "),
        });
    }
    if limit > 0 && (task.group_field.is_some() || task.format == Format::Parallel) {
        // The same items in every language, whatever the order of the rows.
        let mut first = BTreeSet::<Option<String>>::new();
        rows.retain(|row| {
            let group = row.sample.group.clone();
            first.contains(&group) || first.len() < limit && first.insert(group)
        });
    } else if limit > 0 {
        let mut taken = BTreeMap::<String, usize>::new();
        rows.retain(|row| {
            let count = taken.entry(row.sample.language.clone()).or_default();
            *count += 1;
            *count <= limit
        });
    }
    Ok(rows)
}

/// The row's fields with the task's choices, where it has none of its own.
fn with_choices(task: &Task, mut values: Map<String, Value>) -> Map<String, Value> {
    if task.format == Format::Choice && !task.choices.is_empty() {
        let column = task.fields.get("choices").map_or("choices", String::as_str);
        values.entry(column).or_insert_with(|| task.choices.clone().into());
    }
    values
}

/// The fields by the names that the format gives them too.
fn named(task: &Task, mut values: Map<String, Value>) -> Map<String, Value> {
    for (field, column) in &task.fields {
        if let Some(value) = values.get(column).cloned() {
            values.insert(field.clone(), value);
        }
    }
    values
}
