//! `prompt-completion`: {prompt, completion}, both plain text or both lists of messages, as TRL writes it.
//!
//! Plain text stays as it is: no template is applied. Lists of messages become one conversation, of which only the
//! messages of the completion are supervised; `tools` as in `messages`.

use serde_json::Value;

use super::fields::{Fields, LEAVE_OUT, is_blank};
use super::messages::{list_or_text, messages, tools};
use crate::error::RowProblem;
use crate::sample::Content;

pub(super) const FIELDS: &[&str] = &["prompt", "completion", "tools"];

pub(super) fn read(fields: &mut Fields) -> Result<Content, RowProblem> {
    let prompt = list_or_text(fields.required("prompt")?);
    let completion = list_or_text(fields.required("completion")?);
    match (prompt, completion) {
        (Value::String(prompt), Value::String(completion)) => {
            if is_blank(&prompt) {
                return Err(fields.empty("prompt", "Fill it in, or read the completions as format = \"text\"."));
            }
            if is_blank(&completion) {
                return Err(fields.empty("completion", LEAVE_OUT));
            }
            Ok(Content::PromptCompletion { prompt, completion })
        }
        (Value::Array(prompt), Value::Array(completion)) => {
            for (field, list) in [("prompt", &prompt), ("completion", &completion)] {
                if list.is_empty() {
                    return Err(fields.empty(field, LEAVE_OUT));
                }
            }
            let mut all = messages(fields, "prompt", prompt)?;
            let supervise_from = all.len();
            all.extend(messages(fields, "completion", completion)?);
            Ok(Content::Conversation {
                messages: all,
                tools: tools(fields)?,
                supervise_from,
            })
        }
        (Value::Array(_), other) => Err(fields.wrong_type("completion", &other, "a list of messages, as in `prompt`,")),
        (Value::String(_), other) => Err(fields.wrong_type("completion", &other, "text, as in `prompt`,")),
        (other, _) => Err(fields.wrong_type("prompt", &other, "text or a list of messages")),
    }
}

#[cfg(test)]
mod tests {
    use interlingua_recipes::Format;
    use serde_json::json;

    use super::super::tests::{problem, read};
    use crate::sample::Content;

    #[test]
    fn text_stays_text() {
        let expected = Content::PromptCompletion {
            prompt: "a ".into(),
            completion: "[b]".into(),
        };
        assert_eq!(
            read(Format::PromptCompletion, json!({"prompt": "a ", "completion": "[b]"})),
            expected
        );
    }

    #[test]
    fn messages_are_supervised_from_the_completion_on() {
        let row = json!({
            "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}],
            "completion": [{"role": "assistant", "content": "b"}],
        });
        let Content::Conversation {
            messages,
            supervise_from,
            ..
        } = read(Format::PromptCompletion, row)
        else {
            panic!()
        };
        assert_eq!((messages.len(), supervise_from), (3, 2));
        assert_eq!(messages[2].content, "b");
    }

    #[test]
    fn bad_rows_are_named() {
        let text = |prompt, completion| {
            problem(
                Format::PromptCompletion,
                json!({"prompt": prompt, "completion": completion}),
            )
            .to_string()
        };
        assert!(text(json!("a"), json!("")).starts_with("`completion` is empty."));
        assert!(text(json!(""), json!("a")).starts_with("`prompt` is empty."));
        assert!(
            text(json!("a"), json!([])).starts_with("`completion` is a list, where text, as in `prompt`, is expected.")
        );
        assert!(text(json!([]), json!([])).starts_with("`prompt` is empty."));
        assert!(text(json!(1), json!("a")).starts_with("`prompt` is a number"));
        assert!(text(json!(null), json!("a")).starts_with("the row has no `prompt`."));
        let list = json!([{"role": "user", "content": "a"}]);
        assert!(text(list, json!("a")).starts_with("`completion` is text, where a list of messages"));
    }
}
