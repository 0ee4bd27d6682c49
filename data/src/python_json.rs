//! Values printed as Python prints them, and JSON as Python's `json.dumps` writes it.

use minijinja::value::{Value, ValueKind};
use serde_json::Value as Json;

/// The arguments of `json.dumps`.
pub(crate) struct Style {
    pub(crate) ensure_ascii: bool,
    pub(crate) sort_keys: bool,
    pub(crate) item_separator: String,
    pub(crate) key_separator: String,
    /// The white space of one level; none: all on one line.
    pub(crate) indent: Option<String>,
}

/// `str(value)`.
pub(crate) fn display(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::String => value.to_string(),
        ValueKind::None | ValueKind::Bool | ValueKind::Number | ValueKind::Seq | ValueKind::Map => {
            serde_json::to_value(value).map_or_else(|_| value.to_string(), |json| repr(&json))
        }
        _ => value.to_string(),
    }
}

/// `repr(value)`.
fn repr(value: &Json) -> String {
    match value {
        Json::Null => "None".to_owned(),
        Json::Bool(true) => "True".to_owned(),
        Json::Bool(false) => "False".to_owned(),
        Json::Number(number) => self::number(number),
        Json::String(text) => repr_text(text),
        Json::Array(items) => format!("[{}]", items.iter().map(repr).collect::<Vec<_>>().join(", ")),
        Json::Object(entries) => {
            let entries: Vec<String> = entries
                .iter()
                .map(|(key, value)| format!("{}: {}", repr_text(key), repr(value)))
                .collect();
            format!("{{{}}}", entries.join(", "))
        }
    }
}

fn repr_text(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut output = String::from(quote);
    for character in text.chars() {
        match character {
            '\\' => output.push_str("\\\\"),
            '\n' => output.push_str("\\n"),
            '\r' => output.push_str("\\r"),
            '\t' => output.push_str("\\t"),
            character if character == quote => output.extend(['\\', character]),
            character if u32::from(character) < 0x20 || character == '\u{7f}' => {
                output.push_str(&format!("\\x{:02x}", u32::from(character)));
            }
            character => output.push(character),
        }
    }
    output.push(quote);
    output
}

/// An integer, or a float as Python's `repr` writes it: the shortest digits that give the number back, with an exponent
/// below 1e-4 and from 1e16 on.
fn number(number: &serde_json::Number) -> String {
    let Some(float) = number.as_f64().filter(|_| number.is_f64()) else {
        return number.to_string();
    };
    if float != 0.0 && !(1e-4..1e16).contains(&float.abs()) {
        let scientific = format!("{float:e}");
        if let Some((digits, exponent)) = scientific.split_once('e') {
            let (sign, exponent) = exponent
                .strip_prefix('-')
                .map_or(('+', exponent), |exponent| ('-', exponent));
            return format!("{digits}e{sign}{exponent:0>2}");
        }
    }
    format!("{float:?}")
}

/// `json.dumps(value, …)`.
pub(crate) fn to_json(value: &Json, style: &Style) -> String {
    let mut output = String::new();
    write(value, style, 0, &mut output);
    output
}

fn write(value: &Json, style: &Style, depth: usize, output: &mut String) {
    match value {
        Json::Number(number) => output.push_str(&self::number(number)),
        Json::String(text) => write_text(text, style, output),
        Json::Array(items) if !items.is_empty() => {
            output.push('[');
            for (index, item) in items.iter().enumerate() {
                begin(index, style, depth + 1, output);
                write(item, style, depth + 1, output);
            }
            new_line(style, depth, output);
            output.push(']');
        }
        Json::Object(entries) if !entries.is_empty() => {
            let mut entries: Vec<(&String, &Json)> = entries.iter().collect();
            if style.sort_keys {
                entries.sort_by_key(|(key, _)| *key);
            }
            output.push('{');
            for (index, (key, value)) in entries.into_iter().enumerate() {
                begin(index, style, depth + 1, output);
                write_text(key, style, output);
                output.push_str(&style.key_separator);
                write(value, style, depth + 1, output);
            }
            new_line(style, depth, output);
            output.push('}');
        }
        other => output.push_str(&other.to_string()),
    }
}

fn begin(index: usize, style: &Style, depth: usize, output: &mut String) {
    if index > 0 {
        output.push_str(&style.item_separator);
    }
    new_line(style, depth, output);
}

fn new_line(style: &Style, depth: usize, output: &mut String) {
    if let Some(indent) = &style.indent {
        output.push('\n');
        output.push_str(&indent.repeat(depth));
    }
}

fn write_text(text: &str, style: &Style, output: &mut String) {
    let quoted = Json::from(text).to_string();
    if !style.ensure_ascii {
        output.push_str(&quoted);
        return;
    }
    for character in quoted.chars() {
        if character.is_ascii() {
            output.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                output.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_as_python_writes_them() {
        let cases = [
            (1.0, "1.0"),
            (-0.5, "-0.5"),
            (1e-5, "1e-05"),
            (0.0001, "0.0001"),
            (1e16, "1e+16"),
            (123456789012345.0, "123456789012345.0"),
            (1.5e300, "1.5e+300"),
            (0.0, "0.0"),
        ];
        for (float, expected) in cases {
            assert_eq!(repr(&Json::from(float)), expected);
        }
    }

    #[test]
    fn text_as_python_writes_it() {
        assert_eq!(repr(&Json::from("it's")), "\"it's\"");
        assert_eq!(repr(&Json::from("a'b\"c\n")), "'a\\'b\"c\\n'");
    }
}
