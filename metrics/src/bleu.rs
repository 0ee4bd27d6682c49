//! BLEU of a corpus (Papineni et al., 2002; Post, "A Call for Clarity in Reporting BLEU Scores", 2018) with the numbers of
//! sacrebleu 2: runs of 1 to 4 tokens, exponential smoothing, no effective order.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;

use crate::language::{primary, without_spaces};
use crate::statistics::Metric;
use crate::text::{common, is_space, ngrams, words};

const ORDER: usize = 4;

/// BLEU from 0 to 100.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bleu;

/// How texts become tokens; scores of different tokenizers do not compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tokenizer {
    /// mteval-v13a's, which WMT uses.
    V13a,
    /// Chinese characters one by one, the rest as in 13a.
    Zh,
    /// Characters one by one.
    Char,
    /// White space.
    None,
}

impl Tokenizer {
    /// That for a language: `zh` for Chinese, `char` for scripts that are written without spaces between words, else
    /// `13a`.
    pub fn of_language(tag: &str) -> Self {
        match primary(tag) {
            "zh" | "yue" | "lzh" | "wuu" | "cmn" => Self::Zh,
            _ if without_spaces(tag) => Self::Char,
            _ => Self::V13a,
        }
    }

    /// sacrebleu's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::V13a => "13a",
            Self::Zh => "zh",
            Self::Char => "char",
            Self::None => "none",
        }
    }

    /// The tokens of a text, with white space between them.
    fn tokenize(self, text: &str) -> Cow<'_, str> {
        let text = text.trim_end_matches(is_space);
        match self {
            Self::V13a => Cow::Owned(western(&format!(" {} ", without_markup(text)))),
            Self::Zh => {
                let mut spaced = String::with_capacity(2 * text.len());
                for character in text.trim_start_matches(is_space).chars() {
                    if is_chinese(character) {
                        spaced.extend([' ', character, ' ']);
                    } else {
                        spaced.push(character);
                    }
                }
                Cow::Owned(western(&spaced))
            }
            Self::Char => Cow::Owned(text.chars().flat_map(|character| [character, ' ']).collect()),
            Self::None => Cow::Borrowed(text),
        }
    }
}

/// What 13a does before it looks at characters.
fn without_markup(text: &str) -> String {
    [
        ("<skipped>", ""),
        ("-\n", ""),
        ("\n", " "),
        ("&quot;", "\""),
        ("&amp;", "&"),
        ("&lt;", "<"),
        ("&gt;", ">"),
    ]
    .iter()
    .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// Spaces around punctuation: around symbols; around full stops and commas that do not stand between digits; and behind a
/// digit's dash.
fn western(text: &str) -> String {
    static RULES: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
        [
            (r"([{-~\[-` -&(-+:-@/])", " ${1} "),
            ("([^0-9])([.,])", "${1} ${2} "),
            ("([.,])([^0-9])", " ${1} ${2}"),
            ("([0-9])(-)", "${1} ${2} "),
        ]
        .map(|(pattern, to)| (Regex::new(pattern).expect("a pattern of ours"), to))
    });
    RULES.iter().fold(text.to_owned(), |text, (rule, to)| {
        rule.replace_all(&text, *to).into_owned()
    })
}

/// What sacrebleu takes for Chinese. One of its ranges is not the one that its comment names: where
/// extension B of the ideographs is meant, it has U+2001 to U+2A6D, general punctuation among them.
fn is_chinese(character: char) -> bool {
    matches!(
        character,
        '\u{2001}'..='\u{2a6d}'
            | '\u{2e80}'..='\u{2fdf}'
            | '\u{2ff0}'..='\u{303f}'
            | '\u{3100}'..='\u{312f}'
            | '\u{31a0}'..='\u{31bf}'
            | '\u{31c0}'..='\u{31ef}'
            | '\u{3200}'..='\u{4db5}'
            | '\u{4e00}'..='\u{9fbb}'
            | '\u{f900}'..='\u{fa2d}'
            | '\u{fa30}'..='\u{fa6a}'
            | '\u{fa70}'..='\u{fad9}'
            | '\u{fe10}'..='\u{fe1f}'
            | '\u{fe30}'..='\u{fe4f}'
            | '\u{ff00}'..='\u{ffef}'
    )
}

/// The statistics of one item: tokens of the hypothesis and of the reference, then for each order the runs that both have,
/// then those of the hypothesis.
pub fn item(hypothesis: &str, reference: &str, tokenizer: Tokenizer) -> Vec<f64> {
    let (hypothesis, reference) = (tokenizer.tokenize(hypothesis), tokenizer.tokenize(reference));
    let hypothesis = words(&hypothesis).collect::<Vec<_>>();
    let reference = words(&reference).collect::<Vec<_>>();
    let orders = || 1..=ORDER;
    let both = orders().map(|order| common(&ngrams(&hypothesis, order), &ngrams(&reference, order)));
    let runs = orders().map(|order| (hypothesis.len() + 1).saturating_sub(order));
    [hypothesis.len(), reference.len()]
        .into_iter()
        .chain(both)
        .chain(runs)
        .map(|count| count as f64)
        .collect()
}

impl Metric for Bleu {
    fn finish(&self, sum: &[f64]) -> f64 {
        let (lengths, counts) = sum.split_at(2);
        let (both, runs) = counts.split_at(ORDER);
        if runs[ORDER - 1] == 0.0 || both.iter().all(|count| *count == 0.0) {
            return 0.0;
        }
        // Each order without a match halves what the next such order is given for one.
        let mut match_of_none = 1.0;
        let logarithms = both.iter().zip(runs).map(|(both, runs)| {
            if *both == 0.0 {
                match_of_none /= 2.0;
                f64::ln(match_of_none / runs)
            } else {
                f64::ln(both / runs)
            }
        });
        let mean = logarithms.sum::<f64>() / ORDER as f64;
        100.0 * f64::exp(mean + (1.0 - lengths[1] / lengths[0]).min(0.0))
    }
}
