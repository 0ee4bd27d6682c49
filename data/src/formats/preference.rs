//! `preference`: {prompt, chosen, rejected}, all plain text or all lists of messages, as TRL writes it; optional
//! `chosen_lang` and `rejected_lang` where an answer is in another language than the prompt.
//!
//! Answers in messages may be whole conversations: without `prompt`, or with one in plain text, what the two conversations
//! begin with together is the prompt.

use serde_json::Value;

use super::fields::{Fields, LEAVE_OUT, is_blank};
use super::messages::{list_or_text, messages, tools};
use crate::error::RowProblem;
use crate::language::canonical;
use crate::sample::{Content, Message};

pub(super) const FIELDS: &[&str] = &["prompt", "chosen", "rejected", "chosen_lang", "rejected_lang", "tools"];

pub(super) fn read(fields: &mut Fields) -> Result<Content, RowProblem> {
    let prompt = fields.take("prompt").map(list_or_text);
    let chosen = list_or_text(fields.required("chosen")?);
    let rejected = list_or_text(fields.required("rejected")?);
    let languages = [language(fields, "chosen_lang")?, language(fields, "rejected_lang")?];
    if chosen == rejected {
        return Err(equal(fields));
    }
    let (chosen, rejected) = match (chosen, rejected) {
        (Value::String(chosen), Value::String(rejected)) => texts(fields, prompt, chosen, rejected)?,
        (Value::Array(chosen), Value::Array(rejected)) => conversations(fields, prompt, chosen, rejected)?,
        (Value::Array(_), other) => {
            return Err(fields.wrong_type("rejected", &other, "a list of messages, as in `chosen`,"));
        }
        (Value::String(_), other) => return Err(fields.wrong_type("rejected", &other, "text, as in `chosen`,")),
        (other, _) => return Err(fields.wrong_type("chosen", &other, "text or a list of messages")),
    };
    Ok(Content::Pair {
        chosen: Box::new(chosen),
        rejected: Box::new(rejected),
        languages,
    })
}

fn equal(fields: &Fields) -> RowProblem {
    RowProblem::EqualAnswers {
        chosen: fields.full_name("chosen"),
        rejected: fields.full_name("rejected"),
    }
}

/// The language of an answer, where the row names it.
fn language(fields: &mut Fields, field: &str) -> Result<Option<String>, RowProblem> {
    let tag = fields.optional_text(field)?.filter(|tag| !tag.is_empty());
    tag.map(|tag| {
        canonical(&tag).map_err(|advice| RowProblem::Language {
            field: fields.full_name(field),
            found: tag.clone(),
            advice,
        })
    })
    .transpose()
}

fn texts(
    fields: &Fields,
    prompt: Option<Value>,
    chosen: String,
    rejected: String,
) -> Result<(Content, Content), RowProblem> {
    let prompt = match prompt {
        None => return Err(fields.missing("prompt")),
        Some(Value::String(prompt)) => prompt,
        Some(other) => return Err(fields.wrong_type("prompt", &other, "text, as in `chosen`,")),
    };
    for (field, text) in [("prompt", &prompt), ("chosen", &chosen), ("rejected", &rejected)] {
        if is_blank(text) {
            return Err(fields.empty(field, LEAVE_OUT));
        }
    }
    let with = |completion| Content::PromptCompletion {
        prompt: prompt.clone(),
        completion,
    };
    Ok((with(chosen), with(rejected)))
}

fn conversations(
    fields: &mut Fields,
    prompt: Option<Value>,
    chosen: Vec<Value>,
    rejected: Vec<Value>,
) -> Result<(Content, Content), RowProblem> {
    let mut chosen = messages(fields, "chosen", chosen)?;
    let mut rejected = messages(fields, "rejected", rejected)?;
    let shared = chosen
        .iter()
        .zip(&rejected)
        .take_while(|(one, other)| one == other)
        .count();
    let prompt = match prompt {
        Some(Value::Array(prompt)) => messages(fields, "prompt", prompt)?,
        Some(Value::String(prompt)) if shared == 0 => vec![Message::new("user", prompt)],
        None | Some(Value::String(_)) => {
            rejected.drain(..shared);
            chosen.drain(..shared).collect()
        }
        Some(other) => return Err(fields.wrong_type("prompt", &other, "a list of messages")),
    };
    if prompt.is_empty() {
        return Err(fields.missing("prompt"));
    }
    for (field, answer) in [("chosen", &chosen), ("rejected", &rejected)] {
        if answer.is_empty() {
            return Err(fields.empty(field, "The other answer is only longer: write two answers."));
        }
    }
    if chosen == rejected {
        return Err(equal(fields));
    }
    let tools = tools(fields)?;
    let with = |answer: Vec<Message>| Content::Conversation {
        messages: prompt.iter().cloned().chain(answer).collect(),
        tools: tools.clone(),
        supervise_from: prompt.len(),
    };
    Ok((with(chosen), with(rejected)))
}

#[cfg(test)]
mod tests {
    use interlingua_recipes::Format;
    use serde_json::{Value, json};

    use super::super::tests::{problem, read};
    use crate::sample::Content;

    /// The messages of both conversations and where their answers start.
    fn pair(row: Value) -> [(Vec<String>, usize); 2] {
        let Content::Pair { chosen, rejected, .. } = read(Format::Preference, row) else {
            panic!()
        };
        [*chosen, *rejected].map(|content| match content {
            Content::Conversation {
                messages,
                supervise_from,
                ..
            } => (
                messages
                    .iter()
                    .map(|message| message.content.as_str().unwrap().to_owned())
                    .collect(),
                supervise_from,
            ),
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn text_stays_text_and_languages_are_canonical() {
        let row = json!({"prompt": "a ", "chosen": "b", "rejected": "c", "chosen_lang": "ZH-hant"});
        let with = |completion: &str| {
            Box::new(Content::PromptCompletion {
                prompt: "a ".into(),
                completion: completion.into(),
            })
        };
        let expected = Content::Pair {
            chosen: with("b"),
            rejected: with("c"),
            languages: [Some("zh-Hant".into()), None],
        };
        assert_eq!(read(Format::Preference, row), expected);
    }

    #[test]
    fn the_prompt_of_whole_conversations_is_what_they_share() {
        let (user, good, bad) = (
            json!({"role": "user", "content": "q"}),
            json!({"role": "assistant", "content": "g"}),
            json!({"role": "assistant", "content": "b"}),
        );
        let expected = [(vec!["q".into(), "g".into()], 1), (vec!["q".into(), "b".into()], 1)];
        let rows = [
            json!({"prompt": [user], "chosen": [good], "rejected": [bad]}),
            json!({"chosen": [user, good], "rejected": [user, bad]}),
            json!({"prompt": "q", "chosen": [user, good], "rejected": [user, bad]}),
            json!({"prompt": "q", "chosen": [good], "rejected": [bad]}),
        ];
        for row in rows {
            assert_eq!(pair(row.clone()), expected, "{row}");
        }
        let longer = json!({"chosen": [user, good, user], "rejected": [user, good]});
        assert!(
            problem(Format::Preference, longer)
                .to_string()
                .starts_with("`rejected` is empty.")
        );
        let apart = json!({"chosen": [good], "rejected": [bad]});
        assert!(
            problem(Format::Preference, apart)
                .to_string()
                .starts_with("the row has no `prompt`.")
        );
    }

    #[test]
    fn bad_rows_are_named() {
        let text = |row| problem(Format::Preference, row).to_string();
        assert_eq!(
            text(json!({"prompt": "a", "chosen": "b", "rejected": "b"})),
            "`chosen` and `rejected` are equal, so neither is preferred. Correct or remove the row."
        );
        assert!(text(json!({"prompt": "a", "chosen": "b"})).starts_with("the row has no `rejected`."));
        assert!(text(json!({"prompt": "a", "chosen": "b", "rejected": " "})).starts_with("`rejected` is empty."));
        assert!(text(json!({"prompt": "a", "chosen": "b", "rejected": 3})).starts_with("`rejected` is a number"));
        let list = json!([{"role": "user", "content": "a"}]);
        assert!(text(json!({"prompt": list, "chosen": "b", "rejected": "c"})).starts_with("`prompt` is a list"));
        assert!(text(json!({"prompt": "a", "chosen": list, "rejected": "c"})).starts_with("`rejected` is text"));
        let tag = text(json!({"prompt": "a", "chosen": "b", "rejected": "c", "rejected_lang": "no tag"}));
        assert!(tag.starts_with("`rejected_lang` is \"no tag\""), "{tag}");
    }
}
