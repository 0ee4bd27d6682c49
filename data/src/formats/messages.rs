//! `messages`: {messages: [{role, content}], tools?}, as OpenAI and TRL write it.
//!
//! Other keys of a message, such as `tool_calls`, are kept for the template. `train` (true or false) or `weight` (0 or 1)
//! says of one message whether it is supervised. `tools` is a list, or a text that holds one in JSON.

use serde_json::Value;

use super::fields::{Fields, LEAVE_OUT, is_blank, parsed};
use crate::error::RowProblem;
use crate::sample::{Content, Message};

pub(super) const FIELDS: &[&str] = &["messages", "tools"];
pub(super) const MESSAGE_FIELDS: &[&str] = &["role", "content"];

pub(super) fn read(fields: &mut Fields) -> Result<Content, RowProblem> {
    let list = fields.list("messages", "a list of messages")?;
    let messages = messages(fields, "messages", list)?;
    Ok(Content::Conversation {
        messages,
        tools: tools(fields)?,
        supervise_from: 0,
    })
}

/// The messages in a list that stood in `field`.
pub(super) fn messages(fields: &Fields, field: &str, list: Vec<Value>) -> Result<Vec<Message>, RowProblem> {
    let read = |(index, value)| message(fields.inside(field, index, value, MESSAGE_FIELDS)?);
    list.into_iter().enumerate().map(read).collect()
}

/// The tools that the template shows to the model.
pub(super) fn tools(fields: &mut Fields) -> Result<Option<Value>, RowProblem> {
    Ok(fields
        .optional_list("tools", "a list of tools")?
        .filter(|tools| !tools.is_empty())
        .map(Value::Array))
}

fn message(mut fields: Fields) -> Result<Message, RowProblem> {
    let role = fields.full_text("role", "Write system, user, assistant or tool.")?;
    let train = supervised(&mut fields)?;
    let content = fields.take("content");
    let (content_name, missing) = (fields.full_name("content"), fields.missing("content"));
    let extra = fields.rest();
    let calls = extra.contains_key("tool_calls");
    let content = match content {
        None if calls => Value::Null,
        None => return Err(missing),
        Some(Value::String(text)) if is_blank(&text) && !calls && matches!(role.as_str(), "user" | "assistant") => {
            return Err(RowProblem::Empty {
                field: content_name,
                advice: LEAVE_OUT,
            });
        }
        Some(content @ Value::String(_)) => content,
        Some(Value::Array(parts)) if parts.is_empty() && !calls => {
            return Err(RowProblem::Empty {
                field: content_name,
                advice: LEAVE_OUT,
            });
        }
        Some(Value::Array(parts)) => Value::Array(parts),
        Some(other) => {
            let (found, expected) = (super::fields::kind(&other), "text or a list of parts");
            return Err(RowProblem::WrongType {
                field: content_name,
                found,
                expected,
            });
        }
    };
    Ok(Message {
        role,
        content,
        train,
        extra,
    })
}

/// What a message says of its own supervision.
pub(super) fn supervised(fields: &mut Fields) -> Result<Option<bool>, RowProblem> {
    let train = match fields.take("train") {
        None => None,
        Some(Value::Bool(train)) => Some(train),
        Some(other) => return Err(fields.wrong_type("train", &other, "true or false")),
    };
    match fields.take("weight") {
        None => Ok(train),
        Some(weight) => match weight.as_f64() {
            Some(0.0) => Ok(Some(false)),
            Some(1.0) => Ok(Some(train.unwrap_or(true))),
            _ => Err(fields.wrong_type("weight", &weight, "0 or 1")),
        },
    }
}

/// A list of messages, or a text; a text that holds a list of objects in JSON is a list.
pub(super) fn list_or_text(value: Value) -> Value {
    match parsed(value.clone()) {
        Value::Array(list) if list.iter().all(Value::is_object) && !list.is_empty() => Value::Array(list),
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use interlingua_recipes::Format;
    use serde_json::{Value, json};

    use super::super::tests::{conversation, problem, read};
    use crate::sample::Content;

    #[test]
    fn messages_keep_their_other_keys() {
        let call = json!([{"type": "function", "function": {"name": "f", "arguments": {}}}]);
        let row = json!({"messages": [
            {"role": "user", "content": "hi", "tool_calls": null},
            {"role": "assistant", "content": null, "tool_calls": call, "train": false},
            {"role": "assistant", "content": [{"type": "text", "text": "x"}], "weight": 1},
        ], "tools": "[{\"name\": \"f\"}]"});
        let Content::Conversation {
            messages,
            tools,
            supervise_from,
        } = read(Format::Messages, row)
        else {
            panic!()
        };
        assert_eq!((messages.len(), supervise_from), (3, 0));
        assert!(messages[0].extra.is_empty());
        assert_eq!(
            (&messages[1].content, &messages[1].extra["tool_calls"]),
            (&Value::Null, &call)
        );
        assert_eq!(
            [messages[0].train, messages[1].train, messages[2].train],
            [None, Some(false), Some(true)]
        );
        assert_eq!(messages[2].content, json!([{"type": "text", "text": "x"}]));
        assert_eq!(tools, Some(json!([{"name": "f"}])));
    }

    #[test]
    fn an_empty_system_message_and_a_list_in_text_are_fine() {
        let list = json!([{"role": "system", "content": ""}, {"role": "user", "content": "a"}]);
        let expected = [("system", ""), ("user", "a")];
        assert_eq!(
            conversation(Format::Messages, json!({"messages": list.to_string()})),
            expected
        );
        assert_eq!(conversation(Format::Messages, json!({"messages": list})), expected);
    }

    #[test]
    fn bad_rows_are_named() {
        let text = |messages: Value| problem(Format::Messages, json!({"messages": messages})).to_string();
        assert_eq!(text(json!([])), "`messages` is empty. Fill it in, or remove the row.");
        assert_eq!(
            text(json!("hello")),
            "`messages` is text, where a list of messages is expected. Correct the row, or read another column with `fields = { … }`."
        );
        assert!(text(json!(["a"])).starts_with("`messages[0]` is text, where an object is expected."));
        let missing = text(json!([{"role": "user", "content": "a"}, {"from": "gpt", "value": "b"}]));
        assert!(
            missing.starts_with("the row has no `messages[1].role`. It has `from` and `value`;"),
            "{missing}"
        );
        assert!(text(json!([{"role": "user"}])).starts_with("the row has no `messages[0].content`."));
        assert!(text(json!([{"role": "user", "content": ""}])).starts_with("`messages[0].content` is empty."));
        assert!(text(json!([{"role": "user", "content": 3}])).contains("text or a list of parts"));
        assert!(text(json!([{"role": "", "content": "a"}])).starts_with("`messages[0].role` is empty."));
        assert!(text(json!([{"role": "user", "content": "a", "train": 1}])).contains("true or false"));
        assert!(text(json!([{"role": "user", "content": "a", "weight": 0.5}])).contains("0 or 1"));
    }
}
