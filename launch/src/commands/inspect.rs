//! `interlingua inspect PATH`.

use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

use crate::cli::Global;
use crate::exit::{CommandResult, Exit};
use crate::inspect::{self, Facts};
use crate::table::{self, Table};
use crate::{output, style};

/// Says what a model folder, adapter, checkpoint, data file, recipe or run folder is: sizes, number formats, languages.
#[derive(Args)]
#[command(after_help = "Example: interlingua inspect runs/quickstart/adapter")]
pub(crate) struct Arguments {
    /// The folder or file
    path: PathBuf,
}

/// Looks and prints.
///
/// # Errors
/// When there is nothing at the path, or nothing that is known.
pub(crate) fn run(arguments: &Arguments, global: &Global) -> CommandResult {
    let facts = inspect::inspect(&arguments.path)?;
    if global.json {
        output::json(&facts)?;
    } else {
        output::line(render(&facts))?;
    }
    Ok(Exit::Done)
}

/// The facts as lines, lists of objects as tables.
fn render(facts: &Facts) -> String {
    let scalar = |(_, value): &(&String, &Value)| !is_rows(value) && !is_nothing(value);
    let width = facts
        .iter()
        .filter(scalar)
        .map(|(key, _)| key.len())
        .max()
        .unwrap_or_default();
    let lines = facts.iter().filter(scalar).map(|(key, value)| {
        format!(
            "{} {}",
            style::paint(style::TITLE, &format!("{:<width$}", key.replace('_', " "))),
            text(key, value)
        )
    });
    let tables = facts.iter().filter(|(_, value)| is_rows(value)).map(|(key, value)| {
        let rows: Vec<&Facts> = value
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_object)
            .collect();
        let columns: Vec<&String> = rows.first().map(|row| row.keys().collect()).unwrap_or_default();
        let mut table = Table::new(columns.iter().map(|column| column.replace('_', " ")));
        for row in &rows {
            table.row(
                columns
                    .iter()
                    .map(|column| text(column, row.get(*column).unwrap_or(&Value::Null))),
            );
        }
        format!(
            "\n{}\n{}",
            style::paint(style::TITLE, &key.replace('_', " ")),
            table.render()
        )
    });
    lines.chain(tables).collect::<Vec<_>>().join("\n")
}

/// Whether a value is a list of objects.
fn is_rows(value: &Value) -> bool {
    value
        .as_array()
        .is_some_and(|list| list.first().is_some_and(Value::is_object))
}

/// Whether there is nothing to show.
fn is_nothing(value: &Value) -> bool {
    value.is_null()
        || value.as_array().is_some_and(Vec::is_empty)
        || value.as_object().is_some_and(serde_json::Map::is_empty)
}

/// A value for people.
fn text(key: &str, value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
        Value::Number(number) => match number.as_u64() {
            Some(bytes) if key == "bytes" => table::bytes(bytes),
            Some(count) => table::count(count),
            None => number.to_string(),
        },
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(|item| text(key, item)).collect::<Vec<_>>().join(", "),
        Value::Object(map) => map
            .iter()
            .map(|(key, item)| format!("{key} {}", text(key, item)))
            .collect::<Vec<_>>()
            .join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_lines_and_lists_of_objects_are_tables() {
        let facts = serde_json::json!({
            "kind": "model", "bytes": 2048, "languages": ["ar", "sw"], "parameters": 12345, "rope": null, "stages": [],
            "files": [{ "name": "a", "bytes": 1024 }, { "name": "bb", "bytes": 1 }],
        });
        let plain = anstream::adapter::strip_str(&render(facts.as_object().unwrap())).to_string();
        let expected = "kind       model\nbytes      2.00 KiB\nlanguages  ar, sw\nparameters 12,345\n\nfiles\nname     bytes\na     1.00 KiB\nbb         1 B";
        assert_eq!(plain, expected);
    }
}
