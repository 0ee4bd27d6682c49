//! `parallel`: texts that are translations of one another, in three forms:
//! - {id, lang, text}: rows of one `id` belong together;
//! - {id, text: {en: …, ar: …}}: one text for each language; null is none;
//! - {src, tgt, src_lang, tgt_lang, alignment?}: two texts. `alignment` names pairs of words, counted from 0 and separated by
//!   white space: "0-0 1-2", as fast_align and awesome-align write them, or a list of [i, j].

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::fields::{Fields, LEAVE_OUT, is_blank, kind, parsed};
use crate::error::RowProblem;
use crate::language::canonical;
use crate::sample::{Aligned, Content};

pub(super) const FIELDS: &[&str] = &["text", "src", "tgt", "src_lang", "tgt_lang", "alignment"];

/// A text, and its language where the row names it in another place than `lang`.
pub(super) type Text = (Option<String>, Content);

pub(super) fn read(fields: &mut Fields) -> Result<Vec<Text>, RowProblem> {
    match fields.take("text") {
        Some(Value::String(text)) if is_blank(&text) => Err(fields.empty("text", LEAVE_OUT)),
        Some(Value::String(text)) => Ok(vec![(None, Content::Text(text))]),
        Some(Value::Object(texts)) => languages(fields, texts),
        Some(other) => Err(fields.wrong_type("text", &other, "text, or an object of texts by language,")),
        None if fields.has("src") || fields.has("tgt") => two(fields),
        None => Err(fields.missing("text")),
    }
}

fn languages(fields: &Fields, texts: Map<String, Value>) -> Result<Vec<Text>, RowProblem> {
    let mut read: Vec<Text> = Vec::new();
    for (tag, text) in texts {
        let field = format!("{}.{tag}", fields.full_name("text"));
        let text = match text {
            Value::Null => continue,
            Value::String(text) if is_blank(&text) => {
                return Err(RowProblem::Empty {
                    field,
                    advice: "Fill it in, or leave the language out.",
                });
            }
            Value::String(text) => text,
            other => {
                return Err(RowProblem::WrongType {
                    field,
                    found: kind(&other),
                    expected: "text",
                });
            }
        };
        let language = canonical(&tag).map_err(|advice| RowProblem::Language {
            field,
            found: tag.clone(),
            advice,
        })?;
        read.push((Some(language), Content::Text(text)));
    }
    if read.is_empty() {
        return Err(fields.empty("text", LEAVE_OUT));
    }
    Ok(read)
}

fn two(fields: &mut Fields) -> Result<Vec<Text>, RowProblem> {
    let src = fields.full_text("src", LEAVE_OUT)?;
    let tgt = fields.full_text("tgt", LEAVE_OUT)?;
    let mut language = |field: &str| {
        let tag = fields.text(field)?;
        canonical(&tag).map_err(|advice| RowProblem::Language {
            field: fields.full_name(field),
            found: tag.clone(),
            advice,
        })
    };
    let (src_language, tgt_language) = (language("src_lang")?, language("tgt_lang")?);
    let Some(pairs) = alignment(fields)? else {
        return Ok(vec![
            (Some(src_language), Content::Text(src)),
            (Some(tgt_language), Content::Text(tgt)),
        ]);
    };
    for (side, text) in [("src", &src), ("tgt", &tgt)] {
        let words = text.split_whitespace().count();
        let index = |pair: &(u32, u32)| if side == "src" { pair.0 } else { pair.1 };
        if let Some(pair) = pairs.iter().find(|pair| index(pair) as usize >= words) {
            return Err(RowProblem::Alignment {
                field: fields.full_name("alignment"),
                pair: format!("{}-{}", pair.0, pair.1),
                reason: format!("`{}` has {words} words, counted from 0", fields.full_name(side)),
            });
        }
    }
    let pairs = one_to_one(pairs, &src, &tgt);
    let aligned = |text: &str, other: &str, pairs| {
        Content::Aligned(Aligned {
            text: text.to_owned(),
            other: other.to_owned(),
            pairs,
        })
    };
    let back = pairs.iter().map(|&(src, tgt)| (tgt, src)).collect();
    Ok(vec![
        (Some(src_language), aligned(&src, &tgt, pairs)),
        (Some(tgt_language), aligned(&tgt, &src, back)),
    ])
}

/// The pairs of words that the row names, as it names them.
fn alignment(fields: &mut Fields) -> Result<Option<Vec<(u32, u32)>>, RowProblem> {
    let Some(value) = fields.take("alignment") else {
        return Ok(None);
    };
    let wrong = |pair: String| RowProblem::Alignment {
        field: fields.full_name("alignment"),
        pair,
        reason: "a pair of word numbers such as 0-0 or [0, 0] is expected".to_owned(),
    };
    let of_text = |pair: &str| {
        let (src, tgt) = pair.split_once('-')?;
        Some((src.parse().ok()?, tgt.parse().ok()?))
    };
    let of_list = |pair: &Value| {
        let [src, tgt] = pair.as_array()?.as_slice() else {
            return None;
        };
        let number = |value: &Value| u32::try_from(value.as_u64()?).ok();
        Some((number(src)?, number(tgt)?))
    };
    let pairs: Result<Vec<_>, _> = match parsed(value) {
        Value::String(text) => text
            .split_whitespace()
            .map(|pair| of_text(pair).ok_or_else(|| wrong(pair.to_owned())))
            .collect(),
        Value::Array(list) => list
            .iter()
            .map(|pair| of_list(pair).ok_or_else(|| wrong(pair.to_string())))
            .collect(),
        other => return Err(fields.wrong_type("alignment", &other, "\"0-0 1-2\" or a list of pairs")),
    };
    pairs.map(Some)
}

/// The pairs whose words are in no other pair, without those of equal words (Cao et al. 2020).
fn one_to_one(mut pairs: Vec<(u32, u32)>, src: &str, tgt: &str) -> Vec<(u32, u32)> {
    let mut seen = std::collections::HashSet::new();
    pairs.retain(|pair| seen.insert(*pair));
    let (mut of_src, mut of_tgt) = (HashMap::new(), HashMap::new());
    for &(i, j) in &pairs {
        *of_src.entry(i).or_insert(0) += 1;
        *of_tgt.entry(j).or_insert(0) += 1;
    }
    let words = [src, tgt].map(|text| text.split_whitespace().collect::<Vec<_>>());
    pairs.retain(|&(i, j)| of_src[&i] == 1 && of_tgt[&j] == 1 && words[0][i as usize] != words[1][j as usize]);
    pairs
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use interlingua_recipes::Format;
    use serde_json::{Value, json};

    use super::super::tests::problem;
    use crate::sample::Content;

    fn read(row: Value) -> Vec<super::Text> {
        let Value::Object(row) = row else { panic!() };
        super::super::read(Format::Parallel, &BTreeMap::new(), row).unwrap()
    }

    fn two(alignment: Value) -> Value {
        json!({"src": "a b c d", "tgt": "A b C D", "src_lang": "sw", "tgt_lang": "en", "alignment": alignment})
    }

    fn pairs(row: Value) -> Vec<Vec<(u32, u32)>> {
        read(row)
            .into_iter()
            .map(|(_, content)| match content {
                Content::Aligned(aligned) => aligned.pairs,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn a_row_has_one_text_or_one_for_each_language() {
        assert_eq!(read(json!({"text": "a"})), [(None, Content::Text("a".into()))]);
        let text = |language: &str, text: &str| (Some(language.to_owned()), Content::Text(text.into()));
        let row = json!({"text": {"en": "a", "zh-hant": "b", "sw": null}});
        assert_eq!(read(row), [text("en", "a"), text("zh-Hant", "b")]);
        let row = json!({"src": "a", "tgt": "b", "src_lang": "sw", "tgt_lang": "en"});
        assert_eq!(read(row), [text("sw", "a"), text("en", "b")]);
    }

    #[test]
    fn aligned_words_are_pairs_of_their_own_and_differ() {
        let both = |src: &[(u32, u32)]| vec![src.to_vec(), src.iter().map(|&(i, j)| (j, i)).collect()];
        assert_eq!(pairs(two(json!("3-3 0-0"))), both(&[(3, 3), (0, 0)]));
        assert_eq!(pairs(two(json!([[3, 3], [0, 0]]))), both(&[(3, 3), (0, 0)]));
        assert_eq!(
            pairs(two(json!("0-0 0-0 1-1"))),
            both(&[(0, 0)]),
            "said twice, and equal words"
        );
        assert_eq!(pairs(two(json!("0-0 0-2 2-2 3-3"))), both(&[(3, 3)]), "not one to one");
        assert_eq!(pairs(two(json!(""))), both(&[]));
    }

    #[test]
    fn bad_rows_are_named() {
        let text = |row| problem(Format::Parallel, row).to_string();
        assert_eq!(
            text(two(json!("0-0 4-1"))),
            "the pair 4-1 in `alignment` is wrong: `src` has 4 words, counted from 0. Correct the row, or align the texts again."
        );
        assert!(text(two(json!("0-4"))).contains("`tgt` has 4 words"));
        assert!(text(two(json!("0:0"))).contains("a pair of word numbers"));
        assert!(text(two(json!([[0]]))).contains("the pair [0] in `alignment`"));
        assert!(text(two(json!(3))).starts_with("`alignment` is a number"));
        let without = text(json!({"src": "a", "tgt": "b", "src_lang": "sw"}));
        assert!(without.starts_with("the row has no `tgt_lang`."), "{without}");
        assert!(text(json!({"src": "a"})).starts_with("the row has no `tgt`."));
        assert!(text(json!({"lang": "en"})).starts_with("the row has no `text`."));
        assert!(text(json!({"text": {"en": ""}})).starts_with("`text.en` is empty."));
        assert!(text(json!({"text": {"en": 3}})).starts_with("`text.en` is a number"));
        assert!(text(json!({"text": {"zh_Hans": "a"}})).starts_with("`text.zh_Hans` is \"zh_Hans\", which is not"));
        assert!(text(json!({"text": {"en": null}})).starts_with("`text` is empty."));
        assert!(text(json!({"text": 3})).starts_with("`text` is a number"));
    }
}
