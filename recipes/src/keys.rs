//! Checks a recipe's keys and values against the JSON Schema, with messages for people.

use regex::Regex;
use serde_json::Value as Schema;
use toml::Value;

use crate::error::Finding;
use crate::later;
use crate::schema::{follow, schema};

/// Everything in the table that the schema of a recipe does not allow.
pub(crate) fn check(table: &toml::Table) -> Vec<Finding> {
    let mut walk = Walk {
        root: schema(),
        path: Vec::new(),
        findings: Vec::new(),
    };
    walk.table(table, walk.root);
    walk.findings
}

struct Walk {
    root: &'static Schema,
    path: Vec<String>,
    findings: Vec<Finding>,
}

impl Walk {
    fn report(&mut self, message: String) {
        let message = format!("`{}` {message}", self.path.join("."));
        self.findings.push(Finding {
            path: self.path.clone(),
            message,
        });
    }

    fn value(&mut self, value: &Value, schema: &'static Schema) {
        let schema = follow(self.root, schema);
        match value {
            Value::Table(table) if schema["type"] == "object" => self.table(table, schema),
            Value::Array(items) if schema["type"] == "array" && self.has_length(items.len(), schema) => {
                for (index, item) in items.iter().enumerate() {
                    self.within(&index.to_string(), |walk| walk.value(item, &schema["items"]));
                }
            }
            _ if fits(self.root, value, schema) => {}
            Value::String(text) if later::has_value(&self.path, text) => {
                let expected = expected(self.root, schema);
                self.report(format!(
                    "is {text:?}, which this version of Interlingua does not have yet. Use {expected}."
                ));
            }
            _ => {
                let hint = hint(self.root, value, schema, &self.path);
                let (found, expected) = (found(value), expected(self.root, schema));
                self.report(format!("is {found}, but must be {expected}.{hint}"));
            }
        }
    }

    fn has_length(&self, length: usize, schema: &Schema) -> bool {
        let length = length as u64;
        schema["minItems"].as_u64().is_none_or(|least| length >= least)
            && schema["maxItems"].as_u64().is_none_or(|most| length <= most)
    }

    fn table(&mut self, table: &toml::Table, schema: &'static Schema) {
        for (key, value) in table {
            let known = schema["properties"]
                .get(key)
                .or_else(|| Some(&schema["additionalProperties"]).filter(|additional| additional.is_object()));
            self.within(key, |walk| match known {
                Some(known) => walk.value(value, known),
                None => walk.unknown(schema),
            });
        }
        for key in schema["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Schema::as_str)
        {
            if !table.contains_key(key) {
                let expected = expected(self.root, follow(self.root, &schema["properties"][key]));
                self.within(key, |walk| {
                    walk.report(format!("is missing. Write `{key} = …` with {expected}."))
                });
            }
        }
    }

    fn within(&mut self, segment: &str, check: impl FnOnce(&mut Self)) {
        self.path.push(segment.to_owned());
        check(self);
        self.path.pop();
    }

    fn unknown(&mut self, table: &Schema) {
        if later::has_key(&self.path) {
            return self.report("is not in this version of Interlingua yet. Leave it out.".to_owned());
        }
        let in_stage = self.path.first().is_some_and(|first| first == "stage") && self.path.len() == 3;
        let Some(key) = self.path.last().cloned() else { return };
        if in_stage && key == "output" {
            let advice =
                "cannot be set: a stage runs into a folder of its name in the recipe's `output`. Leave it out.";
            return self.report(advice.to_owned());
        }
        let names: Vec<&str> = table["properties"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, _)| &**name)
            .collect();
        let advice = match (nearest(&key, &names), elsewhere(self.root, &key)) {
            (_, Some(full)) if !names.is_empty() => format!("Did you mean `{full}`?"),
            (Some(name), _) => format!("Did you mean `{name}`?"),
            _ => format!("Known here: {}.", names.join(", ")),
        };
        self.report(format!("is not a recipe key. {advice}"));
    }
}

/// The name that was probably meant.
pub(crate) fn nearest<'a>(written: &str, names: &[&'a str]) -> Option<&'a str> {
    let plain = |text: &str| text.to_lowercase().replace('-', "_");
    let written = plain(written);
    names
        .iter()
        .map(|name| (strsim::damerau_levenshtein(&written, &plain(name)), *name))
        .min()
        .filter(|(distance, name)| *distance <= (name.chars().count() / 3).max(1))
        .map(|(_, name)| name)
}

/// What to do about a name that is none of the stages before.
pub(crate) fn stage_advice(written: &str, earlier: &[&str], at_first: &str) -> String {
    match (nearest(written, earlier), earlier) {
        (Some(name), _) => format!("Did you mean {name:?}?"),
        (None, []) => at_first.to_owned(),
        (None, names) => format!("The stages before are {}.", names.join(", ")),
    }
}

/// Where else in a recipe a key of exactly this name stands, as a dotted key, when there is one such place.
fn elsewhere(root: &Schema, key: &str) -> Option<String> {
    let tables = root["properties"].as_object()?;
    if tables.contains_key(key) {
        return Some(key.to_owned());
    }
    let holds = |schema: &Schema| follow(root, schema)["properties"].get(key).is_some();
    let mut homes = tables
        .iter()
        .filter(|(_, schema)| holds(schema))
        .map(|(name, _)| format!("{name}.{key}"));
    homes.next().filter(|_| homes.next().is_none())
}

/// Whether the value is what the schema asks for, all of it.
fn fits(root: &Schema, value: &Value, schema: &Schema) -> bool {
    let schema = follow(root, schema);
    for choice in ["anyOf", "oneOf"] {
        if let Some(choices) = schema[choice].as_array() {
            return choices.iter().any(|one| fits(root, value, one));
        }
    }
    if let Some(word) = schema["const"].as_str() {
        return value.as_str() == Some(word);
    }
    if let Some(words) = schema["enum"].as_array() {
        return words
            .iter()
            .any(|word| word.as_str().is_some() && word.as_str() == value.as_str());
    }
    match (schema["type"].as_str(), value) {
        (Some("string"), Value::String(text)) => {
            let matches = |pattern: &str| Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(text));
            schema["pattern"].as_str().is_none_or(matches)
                && schema["minLength"]
                    .as_u64()
                    .is_none_or(|least| text.chars().count() as u64 >= least)
        }
        (Some("integer" | "number"), Value::Integer(number)) => in_range(*number as f64, schema),
        (Some("number"), Value::Float(number)) => number.is_finite() && in_range(*number, schema),
        (Some("boolean"), Value::Boolean(_)) => true,
        (Some("array"), Value::Array(items)) => {
            items.len() as u64 >= schema["minItems"].as_u64().unwrap_or(0)
                && items.iter().all(|item| fits(root, item, &schema["items"]))
        }
        (Some("object"), Value::Table(table)) => {
            table.len() as u64 >= schema["minProperties"].as_u64().unwrap_or(0)
                && table
                    .values()
                    .all(|value| fits(root, value, &schema["additionalProperties"]))
        }
        _ => false,
    }
}

fn in_range(number: f64, schema: &Schema) -> bool {
    let limit = |name: &str| schema[name].as_f64();
    limit("minimum").is_none_or(|limit| number >= limit)
        && limit("maximum").is_none_or(|limit| number <= limit)
        && limit("exclusiveMinimum").is_none_or(|limit| number > limit)
        && limit("exclusiveMaximum").is_none_or(|limit| number < limit)
}

/// What the schema asks for, in words.
fn expected(root: &Schema, schema: &Schema) -> String {
    let schema = follow(root, schema);
    if let Some(words) = schema["x-expected"].as_str() {
        return words.to_owned();
    }
    let words = words(schema);
    if !words.is_empty() {
        return either(&words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>());
    }
    match schema["type"].as_str() {
        Some("integer") => format!("a whole number{}", range(schema)),
        Some("number") => format!("a number{}", range(schema)),
        Some("boolean") => "true or false".to_owned(),
        Some("string") if schema["minLength"].is_u64() => "a text that is not empty".to_owned(),
        Some("string") => "a text".to_owned(),
        Some("array") => {
            let items = expected(root, &schema["items"]);
            match schema["maxItems"].as_u64() {
                Some(length) => format!("a list of {length}, each {items}"),
                None => format!("a list, each element {items}"),
            }
        }
        _ => "a table".to_owned(),
    }
}

/// The words that an enumeration allows.
fn words(schema: &Schema) -> Vec<&str> {
    let plain = schema["enum"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Schema::as_str);
    let described = schema["oneOf"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|one| one["const"].as_str());
    plain.chain(described).collect()
}

fn either(options: &[String]) -> String {
    match options {
        [] => String::new(),
        [one] => one.clone(),
        [rest @ .., last] => format!("{} or {last}", rest.join(", ")),
    }
}

fn range(schema: &Schema) -> String {
    let limit = |name: &str, words: &str| schema[name].as_f64().map(|limit| format!("{words} {limit}"));
    if let (Some(least), Some(most)) = (schema["minimum"].as_f64(), schema["maximum"].as_f64()) {
        return format!(" from {least} to {most}");
    }
    let limits: Vec<String> = [
        limit("minimum", "of at least"),
        limit("exclusiveMinimum", "above"),
        limit("maximum", "of at most"),
        limit("exclusiveMaximum", "below"),
    ]
    .into_iter()
    .flatten()
    .collect();
    if limits.is_empty() {
        String::new()
    } else {
        format!(" {}", limits.join(" and "))
    }
}

/// What was written, in words.
fn found(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => format!("{number:?}"),
        Value::Boolean(word) => word.to_string(),
        Value::Datetime(_) => "a date".to_owned(),
        Value::Array(items) if items.is_empty() => "an empty list".to_owned(),
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Table(_) => "a table".to_owned(),
    }
}

/// What to do, where it can be said.
fn hint(root: &Schema, value: &Value, schema: &Schema, path: &[String]) -> String {
    let header: Vec<&str> = path
        .iter()
        .map(String::as_str)
        .filter(|part| part.parse::<usize>().is_err())
        .collect();
    let header = header.join(".");
    match (schema["type"].as_str(), value) {
        (Some("array"), Value::Table(_)) => format!(" Write [[{header}]] in place of [{header}]."),
        (Some("object"), Value::Array(_)) => format!(" Write [{header}] in place of [[{header}]]."),
        (Some("array"), Value::String(text)) if follow(root, &schema["items"])["type"] == "string" => {
            format!(" Write [{text:?}].")
        }
        (Some("number"), Value::Float(number)) if !number.is_finite() => " Write a finite number.".to_owned(),
        (Some("integer"), Value::Float(number)) if number.fract() == 0.0 => format!(" Write {number:.0}."),
        (Some("integer" | "number" | "boolean"), Value::String(text)) if fits_bare(root, text, schema) => {
            format!(" Write {text} without quotes.")
        }
        (Some("string"), Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_)) => {
            " Put it in quotes.".to_owned()
        }
        (_, Value::String(text)) => match nearest(text, &words(schema)) {
            Some(word) => format!(" Did you mean {word:?}?"),
            None => String::new(),
        },
        _ => String::new(),
    }
}

/// Whether the text is what the schema asks for once its quotes are gone.
fn fits_bare(root: &Schema, text: &str, schema: &Schema) -> bool {
    text.parse::<Value>().is_ok_and(|value| fits(root, &value, schema))
}
