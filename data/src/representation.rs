//! What a loss or a probe on hidden states reads of a row: its prompt, and where its aligned words are.

use std::ops::Range;

use crate::sample::{Aligned, Message};
use crate::tokenizer::Encoded;

/// The messages before the last answer; none when nothing stands before it. `supervise_from`: where a completion starts, or 0.
pub(crate) fn prompt(messages: &[Message], supervise_from: usize) -> Option<&[Message]> {
    let end = match supervise_from {
        0 => messages.iter().rposition(|message| message.role == "assistant"),
        start => Some(start),
    };
    Some(&messages[..end.unwrap_or(messages.len())]).filter(|prompt| !prompt.is_empty())
}

/// The first token and the one after the last of each aligned word of a text, in the order of the pairs. Pairs of which one of
/// the words has a token at `max_length` or behind it, or no token at all, are left out, so that the marks of text and translation
/// have equal lengths.
pub(crate) fn word_marks(aligned: &Aligned, own: &Encoded, other: &Encoded, max_length: usize) -> Vec<u32> {
    let (own_words, other_words) = (words(&aligned.text), words(&aligned.other));
    let find = |words: &[Range<usize>], word: u32, encoded: &Encoded| {
        let tokens = tokens_of(words.get(word as usize)?, encoded)?;
        (tokens.end <= max_length).then_some(tokens)
    };
    let marks = aligned.pairs.iter().filter_map(|&(word, translation)| {
        find(&other_words, translation, other)?;
        let tokens = find(&own_words, word, own)?;
        Some([tokens.start as u32, tokens.end as u32])
    });
    marks.flatten().collect()
}

/// The byte ranges of the words that white space separates.
fn words(text: &str) -> Vec<Range<usize>> {
    let start = text.as_ptr() as usize;
    let range = |word: &str| {
        let offset = word.as_ptr() as usize - start;
        offset..offset + word.len()
    };
    text.split_whitespace().map(range).collect()
}

/// The tokens whose text overlaps a range of bytes.
fn tokens_of(word: &Range<usize>, encoded: &Encoded) -> Option<Range<usize>> {
    let overlaps = |&(start, end): &(usize, usize)| start < end && start < word.end && word.start < end;
    let first = encoded.spans.iter().position(overlaps)?;
    let last = encoded.spans.iter().rposition(overlaps)?;
    Some(first..last + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(spans: &[(usize, usize)]) -> Encoded {
        Encoded {
            ids: vec![0; spans.len()],
            spans: spans.to_vec(),
        }
    }

    #[test]
    fn a_word_is_all_tokens_that_hold_a_part_of_it() {
        let aligned = Aligned {
            text: "ab  cde f".into(),
            other: "x y z".into(),
            pairs: vec![(1, 2), (0, 0), (2, 1)],
        };
        // A special token, "ab", " ", " cd", "e", " f"; and "x", " y", " z".
        let own = encoded(&[(0, 0), (0, 2), (2, 3), (3, 6), (6, 7), (7, 9)]);
        let other = encoded(&[(0, 1), (1, 3), (3, 5)]);
        assert_eq!(word_marks(&aligned, &own, &other, 9), [3, 5, 1, 2, 5, 6]);
        assert_eq!(
            word_marks(&aligned, &own, &other, 5),
            [3, 5, 1, 2],
            "the last word is cut off"
        );
        assert_eq!(
            word_marks(&aligned, &own, &other, 2),
            [1, 2],
            "the translation of the first pair is"
        );
    }

    #[test]
    fn a_prompt_ends_before_the_last_answer() {
        let messages = ["user", "assistant", "user", "assistant"].map(|role| Message::new(role, "x"));
        assert_eq!(prompt(&messages, 0).unwrap().len(), 3);
        assert_eq!(prompt(&messages, 1).unwrap().len(), 1);
        assert_eq!(prompt(&messages[..1], 0).unwrap().len(), 1);
        assert!(prompt(&messages[1..2], 0).is_none());
    }

    proptest! {
        #[test]
        fn text_and_translation_keep_the_same_pairs(
            cuts in prop::collection::vec(1_usize..6, 1..8), length in 1_usize..12,
            pairs in prop::collection::vec((0_u32..4, 0_u32..4), 0..5),
        ) {
            let text = "aa bbb c dddd".to_owned();
            let mut spans = Vec::new();
            let mut start = 0;
            for cut in cuts.iter().cycle() {
                if start == text.len() {
                    break;
                }
                let end = text.len().min(start + cut);
                spans.push((start, end));
                start = end;
            }
            let one = encoded(&spans);
            let two = encoded(&[(0, 2), (2, 6), (6, 8), (8, 10), (10, 13)]);
            let aligned = Aligned { text: text.clone(), other: text.clone(), pairs: pairs.clone() };
            let back = Aligned { pairs: pairs.iter().map(|&(i, j)| (j, i)).collect(), ..aligned.clone() };
            let (marks, others) = (word_marks(&aligned, &one, &two, length), word_marks(&back, &two, &one, length));
            prop_assert_eq!(marks.len(), others.len());
            prop_assert!(marks.iter().chain(&others).all(|&mark| mark as usize <= length));
        }
    }
}
