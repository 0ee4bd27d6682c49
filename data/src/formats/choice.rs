//! `choice`: {question, context?, choices, answer}. The answer is the index of a choice from 0, a letter from A, or the text
//! of a choice.

use serde_json::Value;

use super::fields::{Fields, LEAVE_OUT, is_blank, kind};
use crate::error::RowProblem;
use crate::sample::Content;

pub(super) const FIELDS: &[&str] = &["question", "choices", "answer", "context"];

pub(super) fn read(fields: &mut Fields) -> Result<Content, RowProblem> {
    let question = fields.full_text("question", LEAVE_OUT)?;
    let context = fields.optional_text("context")?.filter(|context| !is_blank(context));
    let list = fields.list("choices", "a list of texts")?;
    let text = |(index, value): (usize, Value)| match value {
        Value::String(text) if !is_blank(&text) => Ok(text),
        Value::String(_) => Err(RowProblem::Empty {
            field: format!("{}[{index}]", fields.full_name("choices")),
            advice: LEAVE_OUT,
        }),
        other => Err(RowProblem::WrongType {
            field: format!("{}[{index}]", fields.full_name("choices")),
            found: kind(&other),
            expected: "text",
        }),
    };
    let choices: Vec<String> = list.into_iter().enumerate().map(text).collect::<Result<_, _>>()?;
    if choices.len() < 2 {
        return Err(RowProblem::OneChoice {
            field: fields.full_name("choices"),
        });
    }
    let answer = answer(fields, &choices)?;
    let question = match context {
        Some(context) => format!("{context}\n{question}"),
        None => question,
    };
    Ok(Content::Choice {
        question,
        choices,
        answer,
    })
}

/// The index of the right choice. A text that is a choice is that choice, even where it looks like a letter or a number.
fn answer(fields: &mut Fields, choices: &[String]) -> Result<usize, RowProblem> {
    let value = fields.required("answer")?;
    let index = match &value {
        Value::Number(number) => number.as_u64().and_then(|index| usize::try_from(index).ok()),
        Value::String(text) => choices.iter().position(|choice| choice == text).or_else(|| {
            let text = text.trim();
            letter(text).or_else(|| text.parse().ok())
        }),
        other => return Err(fields.wrong_type("answer", other, "an index from 0, a letter, or the text of a choice")),
    };
    index
        .filter(|&index| index < choices.len())
        .ok_or_else(|| RowProblem::Answer {
            field: fields.full_name("answer"),
            found: value.to_string(),
            choices: choices.len(),
        })
}

/// The place of one letter in the alphabet, from 0.
fn letter(text: &str) -> Option<usize> {
    let mut letters = text.chars();
    match (letters.next(), letters.next()) {
        (Some(letter), None) if letter.is_ascii_alphabetic() => {
            Some(usize::from(letter.to_ascii_uppercase() as u8 - b'A'))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use interlingua_recipes::Format;
    use serde_json::{Value, json};

    use super::super::tests::{problem, read};
    use crate::sample::Content;

    fn row(choices: Value, answer: Value) -> Value {
        json!({"context": "c", "question": "q", "choices": choices, "answer": answer})
    }

    #[test]
    fn an_answer_is_an_index_a_letter_or_a_text() {
        for (choices, answer, expected) in [
            (json!(["x", "y"]), json!(1), 1),
            (json!(["x", "y"]), json!("B"), 1),
            (json!(["x", "y"]), json!("a"), 0),
            (json!(["x", "y"]), json!("y"), 1),
            (json!(["x", "y"]), json!("1"), 1),
            (json!(["B", "A"]), json!("A"), 1),
            (json!("[\"1\", \"0\"]"), json!("0"), 1),
        ] {
            let Content::Choice { question, answer, .. } = read(Format::Choice, row(choices, answer)) else {
                panic!()
            };
            assert_eq!((question.as_str(), answer), ("c\nq", expected));
        }
    }

    #[test]
    fn bad_rows_are_named() {
        let text = |choices, answer| problem(Format::Choice, row(choices, answer)).to_string();
        let two = || json!(["x", "y"]);
        assert_eq!(
            text(two(), json!(2)),
            "`answer` is 2, but there are 2 choices. Write an index from 0 to 1, a letter from A to B, or the text of a choice."
        );
        assert!(text(two(), json!("C")).starts_with("`answer` is \"C\","));
        assert!(text(two(), json!(-1)).starts_with("`answer` is -1,"));
        assert!(text(two(), json!("z z")).starts_with("`answer` is \"z z\","));
        assert!(text(two(), json!([1])).starts_with("`answer` is a list"));
        assert!(text(json!(["x"]), json!(0)).starts_with("`choices` has one choice."));
        assert!(text(json!(["x", ""]), json!(0)).starts_with("`choices[1]` is empty."));
        assert!(text(json!(["x", 3]), json!(0)).starts_with("`choices[1]` is a number"));
        assert!(text(json!([]), json!(0)).starts_with("`choices` is empty."));
    }
}
