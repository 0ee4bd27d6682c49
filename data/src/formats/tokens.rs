//! `tokens`: {input_ids, labels?}, tokenised by another tool; for preferences {chosen_ids, chosen_labels?, rejected_ids,
//! rejected_labels?} or {input_ids, labels?, label}.
//!
//! Labels are not shifted; -100 is not supervised; without labels all tokens are supervised. `label` is true for a good answer
//! and false for a bad one. Whether the ids fit the vocabulary is checked where the vocabulary is known.

use serde_json::Value;

use super::fields::{Fields, kind};
use crate::batch::UNSUPERVISED;
use crate::error::RowProblem;
use crate::sample::Content;

pub(super) const FIELDS: &[&str] = &[
    "input_ids",
    "labels",
    "label",
    "chosen_ids",
    "chosen_labels",
    "rejected_ids",
    "rejected_labels",
];

pub(super) fn read(fields: &mut Fields) -> Result<Content, RowProblem> {
    if fields.has("chosen_ids") || fields.has("rejected_ids") {
        let chosen = sequence(fields, "chosen_ids", "chosen_labels")?;
        let rejected = sequence(fields, "rejected_ids", "rejected_labels")?;
        if chosen == rejected {
            return Err(RowProblem::EqualAnswers {
                chosen: fields.full_name("chosen_ids"),
                rejected: fields.full_name("rejected_ids"),
            });
        }
        return Ok(Content::Pair {
            chosen: Box::new(chosen),
            rejected: Box::new(rejected),
            languages: [None, None],
        });
    }
    let content = sequence(fields, "input_ids", "labels")?;
    Ok(match fields.flag("label")? {
        None => content,
        Some(desirable) => Content::Marked {
            content: Box::new(content),
            desirable,
        },
    })
}

/// One sequence: the ids in one field, their labels in another.
fn sequence(fields: &mut Fields, ids: &str, labels: &str) -> Result<Content, RowProblem> {
    let list = fields.list(ids, "a list of token ids")?;
    let input_ids = numbers(fields, ids, list, "a token id, a whole number from 0,", |id| {
        i32::try_from(id).ok().and_then(|id| u32::try_from(id).ok())
    })?;
    let numbers = match fields.optional_list(labels, "a list of token ids and -100")? {
        None => None,
        Some(list) => Some(numbers(fields, labels, list, "a token id or -100", |label| {
            i32::try_from(label)
                .ok()
                .filter(|&label| label >= 0 || label == UNSUPERVISED)
        })?),
    };
    match &numbers {
        Some(numbers) if numbers.len() != input_ids.len() => Err(RowProblem::LabelCount {
            fields: [fields.full_name(labels), fields.full_name(ids)],
            labels: numbers.len(),
            input_ids: input_ids.len(),
        }),
        _ => Ok(Content::Tokens {
            input_ids,
            labels: numbers,
        }),
    }
}

fn numbers<T>(
    fields: &Fields,
    field: &str,
    list: Vec<Value>,
    expected: &'static str,
    convert: impl Fn(i64) -> Option<T>,
) -> Result<Vec<T>, RowProblem> {
    let read = |(index, value): (usize, Value)| match value.as_i64().and_then(&convert) {
        Some(number) => Ok(number),
        None => Err(RowProblem::Token {
            field: format!("{}[{index}]", fields.full_name(field)),
            found: if value.is_number() {
                value.to_string()
            } else {
                kind(&value).to_owned()
            },
            expected,
        }),
    };
    list.into_iter().enumerate().map(read).collect()
}

#[cfg(test)]
mod tests {
    use interlingua_recipes::Format;
    use serde_json::json;

    use super::super::tests::{problem, read};
    use crate::sample::Content;

    #[test]
    fn labels_may_be_absent() {
        let expected = Content::Tokens {
            input_ids: vec![3, 0],
            labels: None,
        };
        assert_eq!(read(Format::Tokens, json!({"input_ids": [3, 0]})), expected);
        assert_eq!(
            read(Format::Tokens, json!({"input_ids": "[3, 0]", "labels": ""})),
            expected
        );
        let expected = Content::Tokens {
            input_ids: vec![3, 0],
            labels: Some(vec![-100, 0]),
        };
        assert_eq!(
            read(Format::Tokens, json!({"input_ids": [3, 0], "labels": [-100, 0]})),
            expected
        );
    }

    #[test]
    fn pairs_and_marks_can_be_given_as_tokens() {
        let tokens = |input_ids: &[u32], labels: Option<&[i32]>| {
            Box::new(Content::Tokens {
                input_ids: input_ids.to_vec(),
                labels: labels.map(<[i32]>::to_vec),
            })
        };
        let row = json!({"chosen_ids": [1, 2], "rejected_ids": [1, 3], "rejected_labels": [-100, 3]});
        let expected = Content::Pair {
            chosen: tokens(&[1, 2], None),
            rejected: tokens(&[1, 3], Some(&[-100, 3])),
            languages: [None, None],
        };
        assert_eq!(read(Format::Tokens, row), expected);
        let expected = Content::Marked {
            content: tokens(&[1, 2], None),
            desirable: false,
        };
        assert_eq!(
            read(Format::Tokens, json!({"input_ids": [1, 2], "label": false})),
            expected
        );
        let text = |row| problem(Format::Tokens, row).to_string();
        assert!(text(json!({"chosen_ids": [1]})).starts_with("the row has no `rejected_ids`."));
        assert!(text(json!({"chosen_ids": [1, 2], "rejected_ids": [1, 2]})).contains("are equal"));
        let labels = text(json!({"chosen_ids": [1, 2], "chosen_labels": [1], "rejected_ids": [1]}));
        assert!(
            labels.starts_with("`chosen_labels` has 1 numbers, but `chosen_ids` has 2."),
            "{labels}"
        );
    }

    #[test]
    fn bad_rows_are_named() {
        let text = |row| problem(Format::Tokens, row).to_string();
        assert_eq!(
            text(json!({"input_ids": [1, -2]})),
            "`input_ids[1]` is -2, where a token id, a whole number from 0, is expected. Correct the row."
        );
        assert!(text(json!({"input_ids": [1.5]})).starts_with("`input_ids[0]` is 1.5,"));
        assert!(text(json!({"input_ids": ["a"]})).starts_with("`input_ids[0]` is text,"));
        assert!(text(json!({"input_ids": [4_294_967_296_u64]})).starts_with("`input_ids[0]` is 4294967296,"));
        assert!(text(json!({"input_ids": []})).starts_with("`input_ids` is empty."));
        assert!(
            text(json!({"input_ids": [1], "labels": [-1]})).starts_with("`labels[0]` is -1, where a token id or -100")
        );
        assert_eq!(
            text(json!({"input_ids": [1, 2], "labels": [1]})),
            "`labels` has 1 numbers, but `input_ids` has 2. Write one label per token, not shifted; -100 is not supervised."
        );
    }
}
