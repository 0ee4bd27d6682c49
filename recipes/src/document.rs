//! A recipe as TOML, with the line of every key and the overrides laid over it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use crate::error::{Finding, Place, Problem, RecipeError};

/// The keys of `[train]` of which exactly one counts.
pub(crate) const LENGTHS: [&str; 3] = ["steps", "epochs", "tokens"];

/// A parsed recipe that knows where each key was written.
pub(crate) struct Document {
    pub(crate) table: Table,
    file: PathBuf,
    lines: BTreeMap<Vec<String>, usize>,
    overrides: Vec<(Vec<String>, String)>,
}

impl Document {
    /// Parses the text and lays the overrides (`a.b=value`) over it.
    pub(crate) fn parse(text: &str, file: &Path, overrides: &[String]) -> Result<Self, RecipeError> {
        let syntax = |error: &toml::de::Error, message: String| {
            let (line, column) = position(text, error.span().map_or(0, |span| span.start));
            RecipeError::Syntax {
                file: file.to_owned(),
                line,
                column,
                message,
            }
        };
        let spanned = DeTable::parse(text).map_err(|error| syntax(&error, error.message().replace('\n', ", ")))?;
        // What has the form of TOML can only fail by a number that is too large.
        let too_large = "this number does not fit into 64 bits, write a smaller one";
        let table: Table = toml::from_str(text).map_err(|error| syntax(&error, too_large.to_owned()))?;
        let mut lines = BTreeMap::new();
        index_table(spanned.get_ref(), text, &mut Vec::new(), &mut lines);
        let mut document = Self {
            table,
            file: file.to_owned(),
            lines,
            overrides: Vec::new(),
        };
        document.lay_over_all(overrides)?;
        Ok(document)
    }

    /// Lays overrides (`a.b=value`) over it.
    pub(crate) fn lay_over_all(&mut self, overrides: &[String]) -> Result<(), RecipeError> {
        overrides.iter().try_for_each(|text| {
            self.lay_over(text).map_err(|message| RecipeError::Override {
                text: text.clone(),
                message,
            })
        })
    }

    fn lay_over(&mut self, text: &str) -> Result<(), String> {
        let form = "Write --set KEY=VALUE, such as --set train.steps=100.";
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| format!("there is no value. {form}"))?;
        let path: Vec<String> = key.trim().split('.').map(|segment| segment.trim().to_owned()).collect();
        if path.iter().any(String::is_empty) {
            return Err(format!("{:?} is no key. {form}", key.trim()));
        }
        set(&mut self.table, &path, override_value(value)?)?;
        if let [.., table, length] = path.as_slice()
            && table == "train"
            && LENGTHS.contains(&length.as_str())
        {
            self.drop_other_lengths(&path);
        }
        self.overrides.push((path, text.to_owned()));
        Ok(())
    }

    /// An override of the run's length takes the place of the file's, in whatever unit that was.
    fn drop_other_lengths(&mut self, path: &[String]) {
        let (length, parents) = path
            .split_last()
            .map_or(("", path), |(last, parents)| (last.as_str(), parents));
        let overridden = |other: &str| {
            self.overrides.iter().any(|(path, _)| {
                path.split_last()
                    .is_some_and(|(last, of)| last == other && of == parents)
            })
        };
        let gone: Vec<&str> = LENGTHS
            .into_iter()
            .filter(|other| *other != length && !overridden(other))
            .collect();
        if let Some(Value::Table(train)) = find_mut(&mut self.table, parents) {
            gone.into_iter().for_each(|other| drop(train.remove(other)));
        }
    }

    /// Moves a key of the outermost table into the table `into`, unless there is one already.
    pub(crate) fn put_into(&mut self, key: &str, into: &str) {
        if self.table.contains_key(into) {
            return;
        }
        let Some(value) = self.table.remove(key) else { return };
        self.table.insert(
            into.to_owned(),
            Value::Table(Table::from_iter([(key.to_owned(), value)])),
        );
        let lines = std::mem::take(&mut self.lines).into_iter();
        let moved = lines.map(|(mut path, line)| {
            if path.first().is_some_and(|first| first == key) {
                path.insert(0, into.to_owned());
            }
            (path, line)
        });
        self.lines = moved.collect();
    }

    /// Says where a finding was written.
    pub(crate) fn problem(&self, finding: Finding) -> Problem {
        let (place, _) = self.place(&finding.path);
        Problem {
            place,
            key: finding.path.join("."),
            message: finding.message,
        }
    }

    /// The same for a finding in the recipe of a stage, whose keys may come from the stage or from the rest.
    pub(crate) fn stage_problem(&self, stage: usize, name: &str, finding: Finding) -> Problem {
        let header = ["stage".to_owned(), stage.to_string()];
        let staged: Vec<String> = header.iter().chain(&finding.path).cloned().collect();
        let (place, depth) = self.place(&staged);
        let (common_place, common_depth) = self.place(&finding.path);
        let in_stage = depth > header.len() && depth - header.len() >= common_depth;
        if in_stage || common_depth == 0 {
            let message = format!("stage `{name}`: {}", finding.message);
            return Problem {
                place,
                key: staged.join("."),
                message,
            };
        }
        Problem {
            place: common_place,
            key: finding.path.join("."),
            message: finding.message,
        }
    }

    /// The place of the longest written part of the path, and how many segments that is.
    fn place(&self, path: &[String]) -> (Place, usize) {
        for depth in (1..=path.len()).rev() {
            let part = &path[..depth];
            if let Some((_, text)) = self.overrides.iter().rev().find(|(overridden, _)| overridden == part) {
                return (Place::Override(text.clone()), depth);
            }
            if let Some(line) = self.lines.get(part) {
                return (
                    Place::File {
                        file: self.file.clone(),
                        line: *line,
                    },
                    depth,
                );
            }
        }
        (
            Place::File {
                file: self.file.clone(),
                line: 0,
            },
            0,
        )
    }
}

/// A TOML value, or else a bare string.
fn override_value(text: &str) -> Result<Value, String> {
    let text = text.trim();
    match text.parse::<Value>() {
        // A date is never meant: no key holds one, while a name or a path may look like one.
        Ok(Value::Datetime(_)) => Ok(Value::String(text.to_owned())),
        Ok(value) => Ok(value),
        Err(error) if text.starts_with(['[', '{', '"', '\'']) => Err(format!(
            "{text} is not a TOML value: {}. Put texts in quotes, also inside lists.",
            error.message()
        )),
        Err(_) => Ok(Value::String(text.to_owned())),
    }
}

fn set(table: &mut Table, path: &[String], value: Value) -> Result<(), String> {
    let [first, rest @ ..] = path else { return Ok(()) };
    if rest.is_empty() {
        table.insert(first.clone(), value);
        return Ok(());
    }
    let inner = table.entry(first.clone()).or_insert_with(|| Value::Table(Table::new()));
    set_value(inner, first, rest, value)
}

fn set_value(inner: &mut Value, name: &str, path: &[String], value: Value) -> Result<(), String> {
    match inner {
        Value::Table(table) => set(table, path, value),
        Value::Array(items) => {
            let count = items.len();
            let [index, rest @ ..] = path else { return Ok(()) };
            let item = index
                .parse::<usize>()
                .ok()
                .and_then(|index| items.get_mut(index))
                .ok_or_else(|| {
                    format!("`{name}` is a list of {count}. Use an index below {count} in place of {index:?}.")
                })?;
            if rest.is_empty() {
                *item = value;
                return Ok(());
            }
            set_value(item, index, rest, value)
        }
        _ => Err(format!(
            "`{name}` is a single value, with no keys in it. Set `{name}` itself."
        )),
    }
}

fn find_mut<'a>(table: &'a mut Table, path: &[String]) -> Option<&'a mut Value> {
    let (first, rest) = path.split_first()?;
    rest.iter()
        .try_fold(table.get_mut(first)?, |value, segment| match value {
            Value::Table(table) => table.get_mut(segment),
            Value::Array(items) => items.get_mut(segment.parse::<usize>().ok()?),
            _ => None,
        })
}

fn index_table(table: &DeTable<'_>, text: &str, path: &mut Vec<String>, lines: &mut BTreeMap<Vec<String>, usize>) {
    for (key, value) in table {
        path.push(key.get_ref().to_string());
        lines.insert(path.clone(), position(text, key.span().start).0);
        index_value(value, text, path, lines);
        path.pop();
    }
}

fn index_value(
    value: &Spanned<DeValue<'_>>,
    text: &str,
    path: &mut Vec<String>,
    lines: &mut BTreeMap<Vec<String>, usize>,
) {
    match value.get_ref() {
        DeValue::Table(table) => index_table(table, text, path, lines),
        DeValue::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                path.push(index.to_string());
                lines.insert(path.clone(), position(text, item.span().start).0);
                index_value(item, text, path, lines);
                path.pop();
            }
        }
        _ => {}
    }
}

/// Line and column of a byte offset, both counted from 1.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    (line, column)
}
