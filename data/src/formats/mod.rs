//! Row formats: what the fields of a row mean. One file per format.

mod alpaca;
mod choice;
mod fields;
mod kto;
mod messages;
mod parallel;
mod preference;
mod prompt_completion;
mod sharegpt;
mod text;
mod tokens;

use std::collections::BTreeMap;

use interlingua_recipes::Format;
use serde_json::{Map, Value};

use fields::Fields;
pub(crate) use fields::kind;

use crate::error::RowProblem;
use crate::sample::Content;

/// Fields that a row of any format may have.
pub(crate) const COMMON: [&str; 2] = ["id", "lang"];

/// The fields of a row of this format, the required ones first.
pub(crate) fn row_fields(format: Format) -> &'static [&'static str] {
    match format {
        Format::Alpaca => alpaca::FIELDS,
        Format::Sharegpt => sharegpt::FIELDS,
        Format::Messages => messages::FIELDS,
        Format::PromptCompletion => prompt_completion::FIELDS,
        Format::Text => text::FIELDS,
        Format::Preference => preference::FIELDS,
        Format::Kto => kto::FIELDS,
        Format::Parallel => parallel::FIELDS,
        Format::Choice => choice::FIELDS,
        Format::Tokens => tokens::FIELDS,
    }
}

/// The fields of the objects inside a row of this format, which `fields` may rename too.
pub(crate) fn inner_fields(format: Format) -> &'static [&'static str] {
    match format {
        Format::Sharegpt => sharegpt::TURN_FIELDS,
        Format::Messages | Format::PromptCompletion | Format::Preference | Format::Kto => messages::MESSAGE_FIELDS,
        Format::Alpaca | Format::Text | Format::Parallel | Format::Choice | Format::Tokens => &[],
    }
}

/// What a row of this format says: one content, or for `parallel` one for each language, with the language where the row names
/// it in another place than `lang`. `renames` gives the column for each field that has another name in the file.
pub(crate) fn read(
    format: Format,
    renames: &BTreeMap<String, String>,
    row: Map<String, Value>,
) -> Result<Vec<(Option<String>, Content)>, RowProblem> {
    let mut fields = Fields::of_row(row, renames, row_fields(format));
    let content = match format {
        Format::Alpaca => alpaca::read(&mut fields),
        Format::Sharegpt => sharegpt::read(&mut fields),
        Format::Messages => messages::read(&mut fields),
        Format::PromptCompletion => prompt_completion::read(&mut fields),
        Format::Text => text::read(&mut fields),
        Format::Preference => preference::read(&mut fields),
        Format::Kto => kto::read(&mut fields),
        Format::Parallel => return parallel::read(&mut fields),
        Format::Choice => choice::read(&mut fields),
        Format::Tokens => tokens::read(&mut fields),
    };
    Ok(vec![(None, content?)])
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn parse(format: Format, row: Value) -> Result<Content, RowProblem> {
        let Value::Object(row) = row else { panic!() };
        let mut contents = super::read(format, &BTreeMap::new(), row)?;
        Ok(contents.remove(0).1)
    }

    pub(super) fn read(format: Format, row: Value) -> Content {
        parse(format, row).unwrap()
    }

    pub(super) fn problem(format: Format, row: Value) -> RowProblem {
        parse(format, row).unwrap_err()
    }

    /// Roles and contents of a conversation of plain text.
    pub(super) fn conversation(format: Format, row: Value) -> Vec<(&'static str, &'static str)> {
        let Content::Conversation { messages, .. } = read(format, row) else {
            panic!()
        };
        let leak = |text: &str| -> &'static str { text.to_owned().leak() };
        messages
            .iter()
            .map(|message| (leak(&message.role), leak(message.content.as_str().unwrap())))
            .collect()
    }

    #[test]
    fn fields_are_renamed_in_the_row_and_inside_it() {
        let renames = [("conversations", "dialogue"), ("from", "who"), ("value", "says")];
        let renames = renames
            .map(|(field, column)| (field.to_owned(), column.to_owned()))
            .into();
        let row = serde_json::json!({"dialogue": [{"who": "human", "says": "hi"}]});
        let Value::Object(row) = row else { panic!() };
        let contents = super::read(Format::Sharegpt, &renames, row).unwrap();
        let Content::Conversation { messages, .. } = &contents[0].1 else {
            panic!()
        };
        assert_eq!(messages[0].content, "hi");
    }
}
