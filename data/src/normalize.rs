//! Changes to text before it is tokenised: `normalize = ["nfc", "nfkc", "arabic-letters"]`, in the order of the list.
//!
//! They change every text a model reads: prompts, completions, plain text and the text of messages. They leave alone
//! `tokens` rows, the tools of a conversation, and keys of a message other than its content.

use interlingua_recipes::Normalization;
use serde_json::Value;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick, is_nfkc_quick};

use crate::sample::{Aligned, Content};

/// Applies the changes to all text of a row.
pub fn normalize(changes: &[Normalization], content: &mut Content) {
    for &change in changes {
        apply(change, content);
    }
}

fn apply(change: Normalization, content: &mut Content) {
    let text = |text: &mut String| *text = normalize_text(change, text);
    match content {
        Content::Conversation { messages, .. } => {
            for message in messages {
                normalize_value(change, &mut message.content);
            }
        }
        Content::PromptCompletion {
            prompt: first,
            completion: second,
        }
        | Content::Exchange {
            question: first,
            answer: second,
        } => [first, second].map(text).into_iter().collect(),
        Content::Text(only) => text(only),
        Content::Tokens { .. } => {}
        Content::Choice { question, choices, .. } => {
            text(question);
            choices.iter_mut().for_each(text);
        }
        Content::Pair { chosen, rejected, .. } => {
            apply(change, chosen);
            apply(change, rejected);
        }
        Content::Marked { content, .. } => apply(change, content),
        Content::Aligned(aligned) => {
            let words = |aligned: &Aligned| [&aligned.text, &aligned.other].map(|text| text.split_whitespace().count());
            let before = words(aligned);
            text(&mut aligned.text);
            text(&mut aligned.other);
            // A ligature of a whole phrase becomes several words, and the pairs would name others than they did.
            if words(aligned) != before {
                aligned.pairs.clear();
            }
        }
    }
}

/// The content of a message: a string, or a list of strings and of parts with a `text`.
fn normalize_value(change: Normalization, content: &mut Value) {
    match content {
        Value::String(text) => *text = normalize_text(change, text),
        Value::Array(parts) => parts.iter_mut().for_each(|part| normalize_value(change, part)),
        Value::Object(part) => {
            if let Some(text) = part.get_mut("text") {
                normalize_value(change, text);
            }
        }
        _ => {}
    }
}

/// The text after one change.
///
/// `arabic-letters` writes Arabic (not Persian or Urdu, whose letters these are too) with one code point for each of
/// the letters alef, yeh and kaf, and with letters in place of their presentation forms:
/// - the presentation forms U+FB50–U+FDC7 and U+FE80–U+FEFC become the letters they stand for (also the lam-alef
///   ligatures; the ligatures of whole words, such as U+FDFA, stay);
/// - آ أ إ ٱ, and alef followed by a combining madda or hamza (U+0653–U+0655), become ا;
/// - ى (alef maksura) and ی (Farsi yeh) become ي;
/// - ک (keheh) and ڪ (swash kaf) become ك.
///
/// Vowel signs, tatweel, teh marbuta and hamza on its own, on waw or on yeh stay as they are.
pub fn normalize_text(change: Normalization, text: &str) -> String {
    match change {
        Normalization::Nfc if is_nfc_quick(text.chars()) == IsNormalized::Yes => text.to_owned(),
        Normalization::Nfc => text.nfc().collect(),
        Normalization::Nfkc if is_nfkc_quick(text.chars()) == IsNormalized::Yes => text.to_owned(),
        Normalization::Nfkc => text.nfkc().collect(),
        Normalization::ArabicLetters => arabic_letters(text),
    }
}

fn arabic_letters(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut push = |sign: char| match sign {
        '\u{0622}' | '\u{0623}' | '\u{0625}' | '\u{0671}' => out.push('\u{0627}'),
        '\u{0653}'..='\u{0655}' if out.ends_with('\u{0627}') => {}
        '\u{0649}' | '\u{06CC}' => out.push('\u{064A}'),
        '\u{06A9}' | '\u{06AA}' => out.push('\u{0643}'),
        _ => out.push(sign),
    };
    for sign in text.chars() {
        match sign {
            '\u{FB50}'..='\u{FDC7}' | '\u{FE80}'..='\u{FEFC}' => std::iter::once(sign).nfkc().for_each(&mut push),
            _ => push(sign),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Message;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn composition_is_that_of_unicode() {
        assert_eq!(normalize_text(Normalization::Nfc, "e\u{301}ﬁ"), "éﬁ");
        assert_eq!(normalize_text(Normalization::Nfkc, "e\u{301}ﬁ"), "éfi");
    }

    #[test]
    fn arabic_letters_have_one_form() {
        for (given, expected) in [
            ("أحمد إلى آخر", "احمد الي اخر"),
            ("ٱلكتاب", "الكتاب"),
            ("ا\u{654}ا\u{653}ا\u{655}", "ااا"),
            ("کتاب فارسی ڪ", "كتاب فارسي ك"),
            ("\u{FEF7}\u{FEDB}\u{FEF0}", "لاكي"),
            ("مدرسةٌ ئ ؤ ء ـ \u{FDFA}", "مدرسةٌ ئ ؤ ء ـ \u{FDFA}"),
            ("Latin, 中文", "Latin, 中文"),
        ] {
            assert_eq!(normalize_text(Normalization::ArabicLetters, given), expected, "{given}");
        }
    }

    #[test]
    fn all_text_of_a_conversation_changes_and_nothing_else() {
        let mut message = Message::new("user", "أ");
        message.extra.insert("name".into(), "أ".into());
        let mut parts = Message::new("user", "");
        parts.content = json!([{"type": "text", "text": "أ"}, "أ", {"type": "image", "image": "أ"}]);
        let mut content = Content::Conversation {
            messages: vec![message, parts],
            tools: Some(json!(["أ"])),
            supervise_from: 0,
        };
        normalize(&[Normalization::ArabicLetters], &mut content);
        let Content::Conversation { messages, tools, .. } = content else {
            panic!()
        };
        assert_eq!(messages[0].content, json!("ا"));
        assert_eq!(messages[0].extra["name"], json!("أ"));
        assert_eq!(
            messages[1].content,
            json!([{"type": "text", "text": "ا"}, "ا", {"type": "image", "image": "أ"}])
        );
        assert_eq!(tools, Some(json!(["أ"])));
    }

    #[test]
    fn changes_are_applied_in_order() {
        let mut content = Content::Text("ﬁ e\u{301} أ".into());
        normalize(&[Normalization::Nfkc, Normalization::ArabicLetters], &mut content);
        assert_eq!(content, Content::Text("fi é ا".into()));
    }

    proptest! {
        #[test]
        fn a_second_time_changes_nothing(text in "[\u{600}-\u{6FF}\u{FB50}-\u{FDFF}\u{FE70}-\u{FEFC}a-z\u{300}-\u{310}]{0,20}") {
            for change in [Normalization::Nfc, Normalization::Nfkc, Normalization::ArabicLetters] {
                let once = normalize_text(change, &text);
                prop_assert_eq!(normalize_text(change, &once), once);
            }
        }
    }
}
