//! `sharegpt`: {conversations: [{from, value}], system?, tools?}.
//!
//! `from` becomes a role: human and user are the user; gpt, assistant and model the assistant; system the system; tool,
//! observation and function_response a tool. function_call is the assistant calling tools: its value is JSON, {name,
//! arguments} or a list of them, and becomes `tool_calls`. A `system` beside the conversation comes before it.

use serde_json::{Map, Value, json};

use super::fields::{Fields, LEAVE_OUT, is_blank};
use super::messages::{supervised, tools};
use crate::error::RowProblem;
use crate::sample::{Content, Message};

pub(super) const FIELDS: &[&str] = &["conversations", "system", "tools"];
pub(super) const TURN_FIELDS: &[&str] = &["from", "value"];

pub(super) fn read(fields: &mut Fields) -> Result<Content, RowProblem> {
    let turns = fields.list("conversations", "a list of turns")?;
    let system = fields.optional_text("system")?.filter(|system| !is_blank(system));
    let mut messages: Vec<Message> = system
        .map(|system| Message::new("system", system))
        .into_iter()
        .collect();
    for (index, turn) in turns.into_iter().enumerate() {
        messages.push(message(fields.inside("conversations", index, turn, TURN_FIELDS)?)?);
    }
    Ok(Content::Conversation {
        messages,
        tools: tools(fields)?,
        supervise_from: 0,
    })
}

fn message(mut fields: Fields) -> Result<Message, RowProblem> {
    let from = fields.text("from")?;
    let train = supervised(&mut fields)?;
    let role = match from.as_str() {
        "human" | "user" => "user",
        "gpt" | "assistant" | "model" => "assistant",
        "system" => "system",
        "tool" | "observation" | "function_response" => "tool",
        "function_call" => {
            let calls = tool_calls(&mut fields)?;
            let extra = Map::from_iter([("tool_calls".to_owned(), calls)]);
            return Ok(Message {
                role: "assistant".to_owned(),
                content: Value::String(String::new()),
                train,
                extra,
            });
        }
        _ => {
            return Err(RowProblem::UnknownRole {
                field: fields.full_name("from"),
                found: from,
            });
        }
    };
    let value = match role {
        "user" | "assistant" => fields.full_text("value", LEAVE_OUT)?,
        _ => fields.text("value")?,
    };
    Ok(Message {
        role: role.to_owned(),
        content: Value::String(value),
        train,
        extra: Map::new(),
    })
}

fn tool_calls(fields: &mut Fields) -> Result<Value, RowProblem> {
    const EXPECTED: &str = "JSON such as {\"name\": …, \"arguments\": {…}}";
    let value = fields.required("value")?;
    let parsed = match &value {
        Value::String(text) => serde_json::from_str(text).map_err(|_| fields.wrong_type("value", &value, EXPECTED))?,
        other => other.clone(),
    };
    let calls = match parsed {
        Value::Array(calls) => calls,
        call => vec![call],
    };
    if calls.is_empty() || !calls.iter().all(|call| call.get("name").is_some_and(Value::is_string)) {
        return Err(fields.wrong_type("value", &value, EXPECTED));
    }
    Ok(calls
        .into_iter()
        .map(|call| json!({"type": "function", "function": call}))
        .collect())
}

#[cfg(test)]
mod tests {
    use interlingua_recipes::Format;
    use serde_json::{Value, json};

    use super::super::tests::{conversation, problem, read};
    use crate::sample::Content;

    #[test]
    fn speakers_become_roles() {
        let row = json!({"system": "s", "conversations": [
            {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"},
            {"from": "observation", "value": "c"}, {"from": "model", "value": "d"},
        ]});
        let expected = [
            ("system", "s"),
            ("user", "a"),
            ("assistant", "b"),
            ("tool", "c"),
            ("assistant", "d"),
        ];
        assert_eq!(conversation(Format::Sharegpt, row), expected);
    }

    #[test]
    fn a_function_call_becomes_tool_calls() {
        let call = "{\"name\": \"f\", \"arguments\": {\"x\": 1}}";
        let row = json!({"conversations": [{"from": "function_call", "value": call}]});
        let Content::Conversation { messages, .. } = read(Format::Sharegpt, row) else {
            panic!()
        };
        assert_eq!(messages[0].role, "assistant");
        let expected = json!([{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]);
        assert_eq!(messages[0].extra["tool_calls"], expected);
    }

    #[test]
    fn bad_rows_are_named() {
        let text = |turns: Value| problem(Format::Sharegpt, json!({"conversations": turns})).to_string();
        assert_eq!(
            text(json!([{"from": "narrator", "value": "a"}])),
            "`conversations[0].from` is \"narrator\". Known are human, user, gpt, assistant, model, system, tool, observation, \
             function_response and function_call."
        );
        assert!(text(json!([])).starts_with("`conversations` is empty."));
        assert!(text(json!([{"from": "gpt", "value": ""}])).starts_with("`conversations[0].value` is empty."));
        assert!(text(json!([{"from": "gpt", "value": 1}])).starts_with("`conversations[0].value` is a number"));
        assert!(text(json!([{"from": "function_call", "value": "f()"}])).contains("where JSON such as"));
        let missing = text(json!([{"role": "user", "content": "a"}]));
        assert!(missing.contains("no `conversations[0].from`") && missing.contains("fields = { from = \"role\" }"));
    }
}
