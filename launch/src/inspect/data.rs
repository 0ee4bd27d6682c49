//! Data files: their format is found by reading them in each.

use std::collections::BTreeMap;
use std::path::Path;

use interlingua_data::source::read_source;
use interlingua_recipes::{BadRow, Format, Source};
use serde_json::{Value, json};

use super::{Facts, facts as object};
use crate::exit::Failure;

/// The formats in the order in which they are tried: those that ask for more come first.
const FORMATS: [Format; 10] = [
    Format::Messages,
    Format::Sharegpt,
    Format::Alpaca,
    Format::Preference,
    Format::Kto,
    Format::Choice,
    Format::PromptCompletion,
    Format::Tokens,
    Format::Text,
    Format::Parallel,
];

/// Rows that decide on the format.
const LOOKED_AT: usize = 100;

/// What a data file holds.
///
/// # Errors
/// When it has no row in a format that is known.
pub(super) fn facts(path: &Path) -> Result<Facts, Failure> {
    let format = format(path)?;
    let mut rows = read_source(0, &source(path, format, 0), BadRow::Skip).map_err(Failure::usage)?;
    let (mut languages, mut good) = (BTreeMap::<String, u64>::new(), 0_u64);
    for sample in rows.by_ref() {
        *languages.entry(sample.map_err(Failure::usage)?.language).or_default() += 1;
        good += 1;
    }
    let skipped = rows.skipped();
    let mut facts = object([
        ("kind", json!("data")),
        ("path", json!(path)),
        ("format", json!(format)),
        ("rows", json!(good)),
        ("bad_rows", json!(skipped.rows())),
        ("bytes", json!(path.metadata().map_or(0, |metadata| metadata.len()))),
    ]);
    if let Some(first) = skipped.kinds.values().next() {
        facts.insert("first_bad_row".to_owned(), json!(first.first));
    }
    let table = languages
        .iter()
        .map(|(language, rows)| json!({ "language": language, "rows": rows }));
    facts.insert("languages".to_owned(), Value::Array(table.collect()));
    Ok(facts)
}

/// All texts of a data file: those of messages, prompts and completions one by one.
///
/// # Errors
/// When it has no row in a format that is known, or a row cannot be read.
pub(crate) fn texts(path: &Path) -> Result<Vec<String>, Failure> {
    let mut texts = Vec::new();
    for sample in read_source(0, &source(path, format(path)?, 0), BadRow::Fail).map_err(Failure::usage)? {
        let content = sample.map_err(Failure::usage)?.content;
        if content.is_tokens() {
            return Err(Failure::usage(format!(
                "{} holds tokens, where texts are needed.",
                path.display()
            )));
        }
        texts.extend(content.texts().into_iter().map(str::to_owned));
    }
    Ok(texts)
}

/// The format in which most of the first rows can be read; of equals the one that asks for most.
fn format(path: &Path) -> Result<Format, Failure> {
    let tried = FORMATS
        .into_iter()
        .map(|format| (format, good_rows(path, format)))
        .rev();
    let best = tried.max_by_key(|(_, good)| *good).filter(|(_, good)| *good > 0);
    best.map(|(format, _)| format).ok_or_else(|| unknown(path))
}

/// How many of the first rows can be read in a format.
fn good_rows(path: &Path, format: Format) -> usize {
    let rows = read_source(0, &source(path, format, LOOKED_AT), BadRow::Skip);
    rows.map_or(0, |rows| rows.filter(Result::is_ok).count())
}

/// Why no format fits: what is wrong with the file as plain text rows, the format that asks for least.
fn unknown(path: &Path) -> Failure {
    let reason = match read_source(0, &source(path, Format::Text, 1), BadRow::Fail) {
        Err(error) => error.to_string(),
        Ok(mut rows) => rows
            .find_map(Result::err)
            .map_or_else(|| "no row".to_owned(), |error| error.to_string()),
    };
    Failure::usage(format!(
        "{} has no row in a format that is known. Read as text: {reason}",
        path.display()
    ))
}

fn source(path: &Path, format: Format, limit: usize) -> Source {
    Source {
        limit,
        ..Source::new("", path, format)
    }
}
