//! The fields of one object, under the names that the format gives them.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::error::RowProblem;

/// The fields of a row, or of an object inside a row.
pub(crate) struct Fields<'a> {
    values: Map<String, Value>,
    /// What the object had before anything was taken out of it.
    found: Vec<String>,
    renames: &'a BTreeMap<String, String>,
    expected: &'static [&'static str],
    /// What stands before the name of a field in messages, such as `messages[2].`.
    path: String,
}

impl<'a> Fields<'a> {
    /// The fields of a row.
    pub(crate) fn of_row(
        values: Map<String, Value>,
        renames: &'a BTreeMap<String, String>,
        expected: &'static [&'static str],
    ) -> Self {
        let found = values.keys().cloned().collect();
        Fields {
            values,
            found,
            renames,
            expected,
            path: String::new(),
        }
    }

    /// The fields of an object inside this row: element `index` of the list `field`.
    pub(crate) fn inside(
        &self,
        field: &str,
        index: usize,
        value: Value,
        expected: &'static [&'static str],
    ) -> Result<Fields<'a>, RowProblem> {
        let path = format!("{}[{index}]", self.full_name(field));
        let Value::Object(values) = value else {
            return Err(RowProblem::WrongType {
                field: path,
                found: kind(&value),
                expected: "an object",
            });
        };
        let found = values.keys().cloned().collect();
        Ok(Fields {
            values,
            found,
            renames: self.renames,
            expected,
            path: format!("{path}."),
        })
    }

    /// The name that the file gives to a field.
    pub(crate) fn column<'b>(&'b self, field: &'b str) -> &'b str {
        self.renames.get(field).map_or(field, String::as_str)
    }

    /// The field with its path, for messages.
    pub(crate) fn full_name(&self, field: &str) -> String {
        format!("{}{}", self.path, self.column(field))
    }

    /// Takes a value out; `None` when it is absent or null.
    pub(crate) fn take(&mut self, field: &str) -> Option<Value> {
        let column = self.renames.get(field).map_or(field, String::as_str);
        self.values.shift_remove(column).filter(|value| !value.is_null())
    }

    /// Takes a value out that must be there.
    pub(crate) fn required(&mut self, field: &str) -> Result<Value, RowProblem> {
        self.take(field).ok_or_else(|| self.missing(field))
    }

    /// Whether a field is there and not null.
    pub(crate) fn has(&self, field: &str) -> bool {
        self.values
            .get(self.column(field))
            .is_some_and(|value| !value.is_null())
    }

    /// Takes a true or false out that may be absent; .tsv files can only write it as text.
    pub(crate) fn flag(&mut self, field: &str) -> Result<Option<bool>, RowProblem> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(Some(true)),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(Some(false)),
            Some(other) => Err(self.wrong_type(field, &other, "true or false")),
        }
    }

    /// Takes a text out that may be absent.
    pub(crate) fn optional_text(&mut self, field: &str) -> Result<Option<String>, RowProblem> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong_type(field, &other, "text")),
        }
    }

    /// Takes a text out that must be there; it may be empty.
    pub(crate) fn text(&mut self, field: &str) -> Result<String, RowProblem> {
        self.optional_text(field)?.ok_or_else(|| self.missing(field))
    }

    /// Takes a text out that must be there and say something.
    pub(crate) fn full_text(&mut self, field: &str, advice: &'static str) -> Result<String, RowProblem> {
        let text = self.text(field)?;
        if is_blank(&text) {
            Err(self.empty(field, advice))
        } else {
            Ok(text)
        }
    }

    /// Takes a list out that may be absent. A text that holds a list in JSON is one too: .tsv files and many Parquet files
    /// have no other way to write it.
    pub(crate) fn optional_list(
        &mut self,
        field: &str,
        expected: &'static str,
    ) -> Result<Option<Vec<Value>>, RowProblem> {
        let Some(value) = self.take(field) else { return Ok(None) };
        match parsed(value) {
            Value::Array(list) => Ok(Some(list)),
            Value::String(text) if is_blank(&text) => Ok(None),
            other => Err(self.wrong_type(field, &other, expected)),
        }
    }

    /// Takes a list out that must be there and not be empty.
    pub(crate) fn list(&mut self, field: &str, expected: &'static str) -> Result<Vec<Value>, RowProblem> {
        let list = self
            .optional_list(field, expected)?
            .ok_or_else(|| self.missing(field))?;
        if list.is_empty() {
            Err(self.empty(field, LEAVE_OUT))
        } else {
            Ok(list)
        }
    }

    /// Everything that was not taken out; nulls are left out, as Parquet writes them for absent keys.
    pub(crate) fn rest(self) -> Map<String, Value> {
        self.values.into_iter().filter(|(_, value)| !value.is_null()).collect()
    }

    pub(crate) fn wrong_type(&self, field: &str, value: &Value, expected: &'static str) -> RowProblem {
        RowProblem::WrongType {
            field: self.full_name(field),
            found: kind(value),
            expected,
        }
    }

    pub(crate) fn empty(&self, field: &str, advice: &'static str) -> RowProblem {
        RowProblem::Empty {
            field: self.full_name(field),
            advice,
        }
    }

    /// The problem of a row without this field; suggests the first column that the format has no name for.
    pub(crate) fn missing(&self, field: &str) -> RowProblem {
        let expected: Vec<String> = self.expected.iter().map(|name| self.column(name).to_owned()).collect();
        let other = self
            .found
            .iter()
            .find(|name| !expected.contains(name) && !super::COMMON.contains(&name.as_str()));
        let column = other.map_or("COLUMN", String::as_str);
        RowProblem::MissingField {
            field: self.full_name(field),
            found: self.found.clone(),
            expected,
            advice: format!("If another column holds it, write fields = {{ {field} = {column:?} }} in the source."),
        }
    }
}

/// Advice for a row that says nothing.
pub(super) const LEAVE_OUT: &str = "Fill it in, or remove the row.";

/// Whether there is nothing but white space.
pub(super) fn is_blank(text: &str) -> bool {
    text.trim().is_empty()
}

/// The list that a text holds in JSON, or the value as it is.
pub(super) fn parsed(value: Value) -> Value {
    match &value {
        Value::String(text) if text.trim_start().starts_with('[') => match serde_json::from_str(text) {
            Ok(list @ Value::Array(_)) => list,
            _ => value,
        },
        _ => value,
    }
}

/// The kind of a JSON value, for a sentence.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
