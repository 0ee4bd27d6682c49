//! `alpaca`: {instruction, input?, output, system?, history?}.
//!
//! A row becomes a conversation: the system message if there is one, the pairs of `history` as user and assistant
//! messages, then a user message of the instruction and, after a blank line, the input, then the output as the
//! assistant's. An `input` or `system` that is blank counts as absent. The answers in the history are supervised like the
//! output, as in LLaMA-Factory.

use serde_json::Value;

use super::fields::{Fields, LEAVE_OUT, is_blank};
use crate::error::RowProblem;
use crate::sample::{Content, Message};

pub(super) const FIELDS: &[&str] = &["instruction", "output", "input", "system", "history"];

pub(super) fn read(fields: &mut Fields) -> Result<Content, RowProblem> {
    let instruction = fields.text("instruction")?;
    let input = fields.optional_text("input")?.filter(|input| !is_blank(input));
    let output = fields.full_text("output", LEAVE_OUT)?;
    let system = fields.optional_text("system")?.filter(|system| !is_blank(system));
    let history = fields
        .optional_list("history", "a list of [user, assistant] pairs")?
        .unwrap_or_default();

    let mut messages: Vec<Message> = system
        .map(|system| Message::new("system", system))
        .into_iter()
        .collect();
    for (index, pair) in history.into_iter().enumerate() {
        let wrong = |pair: &Value| RowProblem::WrongType {
            field: format!("{}[{index}]", fields.full_name("history")),
            found: super::fields::kind(pair),
            expected: "a [user, assistant] pair of texts",
        };
        match pair {
            Value::Array(pair) => match <[Value; 2]>::try_from(pair) {
                Ok([Value::String(user), Value::String(assistant)]) => {
                    messages.push(Message::new("user", user));
                    messages.push(Message::new("assistant", assistant));
                }
                _ => return Err(wrong(&Value::Array(Vec::new()))),
            },
            other => return Err(wrong(&other)),
        }
    }
    let user = match (is_blank(&instruction), input) {
        (true, None) => return Err(fields.empty("instruction", LEAVE_OUT)),
        (true, Some(input)) => input,
        (false, None) => instruction,
        (false, Some(input)) => format!("{instruction}\n\n{input}"),
    };
    messages.push(Message::new("user", user));
    messages.push(Message::new("assistant", output));
    Ok(Content::Conversation {
        messages,
        tools: None,
        supervise_from: 0,
    })
}

#[cfg(test)]
mod tests {
    use interlingua_recipes::Format;
    use serde_json::json;

    use super::super::tests::{conversation, problem};

    #[test]
    fn instruction_and_input_are_one_message() {
        let row = json!({"instruction": "Translate.", "input": "Hallo", "output": "Hello"});
        assert_eq!(
            conversation(Format::Alpaca, row),
            [("user", "Translate.\n\nHallo"), ("assistant", "Hello")]
        );
        for input in [json!(""), json!(" \n"), json!(null)] {
            let row = json!({"instruction": "Hi", "input": input, "output": "Hello", "system": ""});
            assert_eq!(
                conversation(Format::Alpaca, row),
                [("user", "Hi"), ("assistant", "Hello")]
            );
        }
        let row = json!({"instruction": "", "input": "Hi", "output": "Hello"});
        assert_eq!(conversation(Format::Alpaca, row)[0], ("user", "Hi"));
    }

    #[test]
    fn system_and_history_come_first() {
        let row = json!({"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]]});
        let expected = [
            ("system", "s"),
            ("user", "a"),
            ("assistant", "b"),
            ("user", "c"),
            ("assistant", "d"),
        ];
        assert_eq!(conversation(Format::Alpaca, row), expected);
    }

    #[test]
    fn bad_rows_are_named() {
        let text = |row| problem(Format::Alpaca, row).to_string();
        assert_eq!(
            text(json!({"instruction": "a", "response": "b", "id": 1})),
            "the row has no `output`. It has `instruction`, `response` and `id`; expected are `instruction`, `output`, `input`, \
             `system` and `history`. If another column holds it, write fields = { output = \"response\" } in the source."
        );
        assert_eq!(
            text(json!({"instruction": "a", "output": 4})),
            "`output` is a number, where text is expected. Correct the row, or read another column with `fields = { … }`."
        );
        assert_eq!(
            text(json!({"instruction": "a", "output": " "})),
            "`output` is empty. Fill it in, or remove the row."
        );
        assert_eq!(
            text(json!({"instruction": "", "output": "b"})),
            "`instruction` is empty. Fill it in, or remove the row."
        );
        for history in [
            json!([["a"]]),
            json!(["a"]),
            json!([["a", 1]]),
            json!("a"),
            json!({"a": "b"}),
        ] {
            let message = text(json!({"instruction": "a", "output": "b", "history": history}));
            assert!(message.starts_with("`history"), "{message}");
        }
    }
}
