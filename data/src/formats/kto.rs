//! `kto`: {prompt, completion, label}: as `prompt-completion`, with whether the completion is a good one.

use super::fields::Fields;
use super::prompt_completion;
use crate::error::RowProblem;
use crate::sample::Content;

pub(super) const FIELDS: &[&str] = &["prompt", "completion", "label", "tools"];

pub(super) fn read(fields: &mut Fields) -> Result<Content, RowProblem> {
    let desirable = fields.flag("label")?.ok_or_else(|| fields.missing("label"))?;
    Ok(Content::Marked {
        content: Box::new(prompt_completion::read(fields)?),
        desirable,
    })
}

#[cfg(test)]
mod tests {
    use interlingua_recipes::Format;
    use serde_json::json;

    use super::super::tests::{problem, read};
    use crate::sample::Content;

    #[test]
    fn a_completion_is_good_or_bad() {
        for (label, expected) in [
            (json!(true), true),
            (json!(false), false),
            (json!("true"), true),
            (json!("False"), false),
        ] {
            let row = json!({"prompt": "a", "completion": "b", "label": label});
            let Content::Marked { content, desirable } = read(Format::Kto, row) else {
                panic!()
            };
            assert_eq!(desirable, expected);
            assert!(matches!(*content, Content::PromptCompletion { .. }));
        }
    }

    #[test]
    fn bad_rows_are_named() {
        let text = |row| problem(Format::Kto, row).to_string();
        assert!(text(json!({"prompt": "a", "completion": "b"})).starts_with("the row has no `label`."));
        assert_eq!(
            text(json!({"prompt": "a", "completion": "b", "label": 1})),
            "`label` is a number, where true or false is expected. Correct the row, or read another column with `fields = { … }`."
        );
        assert!(text(json!({"prompt": "a", "completion": "", "label": true})).starts_with("`completion` is empty."));
    }
}
