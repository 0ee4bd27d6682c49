//! The answer in what a model has written.

use std::fmt;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;
use unicode_normalization::UnicodeNormalization;

use crate::language::{Grouping, grouping};

/// Where the answer is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extractor {
    /// All of it, without white space around it.
    None,
    /// The first line that says anything.
    FirstLine,
    /// The last number, as tasks of arithmetic have it (MGSM, MSVAMP).
    Number,
    /// The first object or list of JSON, whatever stands around it.
    Json,
    /// The letter of an option from A to J, in upper case: at the beginning with a mark behind it, else the last one in
    /// brackets, else the last upper-case letter that stands alone before a mark or the end.
    Letter,
}

/// An extracted answer. Two are equal when they say the same: texts in Unicode's form C, numbers and JSON by value.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Text.
    Text(String),
    /// A decimal number in one spelling: no leading or trailing zeros, `-` for a negative one, `.` before decimals.
    Number(String),
    /// JSON.
    Json(Value),
}

impl fmt::Display for Answer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) | Self::Number(text) => formatter.write_str(text),
            Self::Json(value) => value.fmt(formatter),
        }
    }
}

impl Extractor {
    /// The answer in a text of a language, which says how numbers are written; none where there is no such answer.
    pub fn extract(self, text: &str, language: &str) -> Option<Answer> {
        let whole = |text: &str| Some(text.trim().nfc().collect()).filter(|text: &String| !text.is_empty());
        match self {
            Self::None => whole(text).map(Answer::Text),
            Self::FirstLine => text.lines().find_map(whole).map(Answer::Text),
            Self::Number => last_number(text, grouping(language)).map(Answer::Number),
            Self::Json => json(text).map(Answer::Json),
            Self::Letter => letter(text).map(Answer::Text),
        }
    }
}

/// The first object or list that can be read.
pub(crate) fn json(text: &str) -> Option<Value> {
    text.match_indices(['{', '[']).find_map(|(start, _)| {
        let mut values = serde_json::Deserializer::from_str(&text[start..]).into_iter::<Value>();
        values.next()?.ok()
    })
}

fn letter(text: &str) -> Option<String> {
    static FORMS: LazyLock<[Regex; 3]> = LazyLock::new(|| {
        [
            r"^\W*([A-Ja-j])(?:\s*$|\s*[\])}.:,;*\n\u{3001}\u{3002}])",
            r"[(\[{*]([A-Ja-j])[)\]}*]",
            r"(?:^|[^\p{Latin}\p{Cyrillic}\p{Nd}'])([A-J])\s*(?:$|[.,:;!?)\]*\n\u{3002}\u{0964}\u{06d4}])",
        ]
        .map(|form| Regex::new(form).expect("a pattern of ours"))
    });
    let text = text.nfkc().collect::<String>();
    let last = |form: &Regex| {
        form.captures_iter(&text)
            .last()
            .map(|found| found[1].to_ascii_uppercase())
    };
    FORMS.iter().find_map(last)
}

fn last_number(text: &str, grouping: Grouping) -> Option<String> {
    // Digits, each with at most one separator before it.
    static NUMBER: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"[0-9](?:[.,' ]?[0-9])*").expect("a pattern of ours"));
    let text = text.chars().map(plain).collect::<String>();
    let found = NUMBER.find_iter(&text).last()?;
    let (digits, before) = last_in_run(found.as_str(), grouping);
    let negative = before == 0 && is_negative(&text[..found.start()]);
    Some(canonical(&digits, negative))
}

/// Digits of any script as ASCII, and the marks within numbers as `.`, `,`, `'`, `-` or a space that cannot be a word's.
fn plain(character: char) -> char {
    match character {
        '\u{66b}' => '.',
        '\u{66c}' | '\u{2019}' | '\u{ff07}' => '\'',
        '\u{ff0c}' => ',',
        '\u{ff0e}' => '.',
        '\u{2212}' | '\u{ff0d}' => '-',
        '\u{a0}' | '\u{2009}' | '\u{202f}' => '\'',
        _ => digit(character).map_or(character, |digit| char::from(b'0' + digit)),
    }
}

/// The value of a decimal digit of any script.
pub(crate) fn digit(character: char) -> Option<u8> {
    let zero = ZEROS[..ZEROS.partition_point(|zero| *zero <= character)].last()?;
    u8::try_from(character as u32 - *zero as u32)
        .ok()
        .filter(|value| *value < 10)
}

/// A minus stands right before the number or its currency, and behind no letter or digit, where it would be a dash.
fn is_negative(before: &str) -> bool {
    let before = before.trim_end_matches(['$', '€', '£', '¥', '₹']);
    before
        .strip_suffix('-')
        .is_some_and(|rest| !rest.ends_with(|character: char| character.is_alphanumeric() || character == ')'))
}

/// The last number in a run of digits and separators, with `.` before its decimals, and where in the run it begins.
fn last_in_run(run: &str, grouping: Grouping) -> (String, usize) {
    let mut start = 0;
    // A run that is no number is several: leave out the first of them until the rest is one.
    loop {
        if let Some(number) = read(&run[start..], grouping) {
            return (number, start);
        }
        start += run[start..]
            .find(|character: char| !character.is_ascii_digit())
            .map_or(0, |at| at + 1);
    }
}

/// A run of digits and separators as one number.
fn read(run: &str, grouping: Grouping) -> Option<String> {
    let (decimal, group) = if grouping.decimal_comma { (',', '.') } else { ('.', ',') };
    let marks = run
        .matches(|character: char| !character.is_ascii_digit())
        .collect::<String>();
    let count = |mark: char| marks.matches(mark).count();
    if count(' ') > 0 && !grouping.spaces {
        return None;
    }
    // Which mark stands before decimals: the last one, where it occurs once and cannot be one that groups thousands.
    let point = marks.chars().last().filter(|last| {
        let once = count(*last) == 1 && (*last == '.' || *last == ',');
        let behind = run.len() - 1 - run.rfind(*last).unwrap_or(0);
        let alone = marks.len() == 1;
        let could_group = behind == 3 && (!alone || is_grouped(run, *last));
        once && match alone {
            true if *last == decimal => true,
            true if *last == group => !could_group && (*last == '.' || run.starts_with("0,")),
            _ => true,
        }
    });
    let (whole, fraction) = match point {
        Some(point) => run.rsplit_once(point)?,
        None => (run, ""),
    };
    let mut kinds = whole.chars().filter(|character| !character.is_ascii_digit());
    if let Some(mark) = kinds.next()
        && (kinds.any(|other| other != mark) || !is_grouped(whole, mark))
    {
        return None;
    }
    let digits = whole.chars().filter(char::is_ascii_digit).collect::<String>();
    Some(if fraction.is_empty() {
        digits
    } else {
        format!("{digits}.{fraction}")
    })
}

/// Groups of three digits behind a first one of one to three, or of two before the last three, as in India.
fn is_grouped(whole: &str, mark: char) -> bool {
    let groups = whole.split(mark).map(str::len).collect::<Vec<_>>();
    let Some((last, [first, middle @ ..])) = groups.split_last() else {
        return false;
    };
    *last == 3
        && !whole.starts_with('0')
        && ((*first <= 3 && middle.iter().all(|group| *group == 3))
            || (*first <= 2 && middle.iter().all(|group| *group == 2)))
}

fn canonical(digits: &str, negative: bool) -> String {
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    let whole = if whole.is_empty() { "0" } else { whole };
    let sign = if negative && (whole, fraction) != ("0", "") {
        "-"
    } else {
        ""
    };
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{whole}{point}{fraction}")
}

/// The zeros of Unicode's decimal digits; the other nine follow each.
const ZEROS: &[char] = &[
    '\u{30}',
    '\u{660}',
    '\u{6f0}',
    '\u{7c0}',
    '\u{966}',
    '\u{9e6}',
    '\u{a66}',
    '\u{ae6}',
    '\u{b66}',
    '\u{be6}',
    '\u{c66}',
    '\u{ce6}',
    '\u{d66}',
    '\u{de6}',
    '\u{e50}',
    '\u{ed0}',
    '\u{f20}',
    '\u{1040}',
    '\u{1090}',
    '\u{17e0}',
    '\u{1810}',
    '\u{1946}',
    '\u{19d0}',
    '\u{1a80}',
    '\u{1a90}',
    '\u{1b50}',
    '\u{1bb0}',
    '\u{1c40}',
    '\u{1c50}',
    '\u{a620}',
    '\u{a8d0}',
    '\u{a900}',
    '\u{a9d0}',
    '\u{a9f0}',
    '\u{aa50}',
    '\u{abf0}',
    '\u{ff10}',
    '\u{104a0}',
    '\u{10d30}',
    '\u{10d40}',
    '\u{11066}',
    '\u{110f0}',
    '\u{11136}',
    '\u{111d0}',
    '\u{112f0}',
    '\u{11450}',
    '\u{114d0}',
    '\u{11650}',
    '\u{116c0}',
    '\u{116d0}',
    '\u{116da}',
    '\u{11730}',
    '\u{118e0}',
    '\u{11950}',
    '\u{11bf0}',
    '\u{11c50}',
    '\u{11d50}',
    '\u{11da0}',
    '\u{11de0}',
    '\u{11f50}',
    '\u{16130}',
    '\u{16a60}',
    '\u{16ac0}',
    '\u{16b50}',
    '\u{16d70}',
    '\u{1ccf0}',
    '\u{1d7ce}',
    '\u{1d7d8}',
    '\u{1d7e2}',
    '\u{1d7ec}',
    '\u{1d7f6}',
    '\u{1e140}',
    '\u{1e2f0}',
    '\u{1e4f0}',
    '\u{1e5f1}',
    '\u{1e950}',
    '\u{1fbf0}',
];

#[cfg(test)]
mod tests {
    use super::*;

    fn extracted(extractor: Extractor, text: &str, language: &str) -> Option<String> {
        extractor.extract(text, language).map(|answer| answer.to_string())
    }

    #[test]
    fn the_last_number_is_found_in_any_spelling() {
        for (text, language, expected) in [
            ("The answer is 18.", "en", Some("18")),
            ("18.00", "en", Some("18")),
            ("She pays $1,000 for 3.", "en", Some("3")),
            ("She pays $1,000", "en", Some("1000")),
            ("1,234,567.50", "en", Some("1234567.5")),
            ("1,23,456", "hi", Some("123456")),
            ("1,2,3", "en", Some("3")),
            ("(3,5)", "en", Some("5")),
            ("3,5", "de", Some("3.5")),
            ("3.5", "de", Some("3.5")),
            ("1.234", "de", Some("1234")),
            ("1.234", "en", Some("1.234")),
            ("1,234", "en", Some("1234")),
            ("1,234", "de", Some("1.234")),
            ("1.234.567,5 €", "de", Some("1234567.5")),
            ("1,234.5", "de", Some("1234.5")),
            ("0.125", "de", Some("0.125")),
            ("0,125", "en", Some("0.125")),
            ("1 000 roubles", "ru", Some("1000")),
            ("1\u{202f}000 euros", "fr", Some("1000")),
            ("in 2012 345", "fr", Some("345")),
            ("3 400", "en", Some("400")),
            ("1'000", "de", Some("1000")),
            ("-7", "en", Some("-7")),
            ("−7,5", "sv", Some("-7.5")),
            ("-$12", "en", Some("-12")),
            ("10-7", "en", Some("7")),
            ("10 - 7", "en", Some("7")),
            ("COVID-19", "en", Some("19")),
            ("-3,4", "en", Some("4")),
            ("-0.0", "en", Some("0")),
            ("007", "en", Some("7")),
            ("১৮", "bn", Some("18")),
            ("উত্তর হল ১,০০০।", "bn", Some("1000")),
            ("الجواب ١٨٫٥", "ar", Some("18.5")),
            ("١٬٠٠٠", "ar", Some("1000")),
            ("۱۲۳", "fa", Some("123")),
            ("उत्तर १८ है", "hi", Some("18")),
            ("答えは１，０００です", "ja", Some("1000")),
            ("คำตอบคือ ๑๘", "th", Some("18")),
            ("99999999999999999999999", "en", Some("99999999999999999999999")),
            ("no number", "en", None),
            ("", "en", None),
        ] {
            assert_eq!(
                extracted(Extractor::Number, text, language).as_deref(),
                expected,
                "{text:?} in {language}"
            );
        }
    }

    #[test]
    fn digits_have_their_values() {
        for (character, value) in [
            ('7', Some(7)),
            ('٣', Some(3)),
            ('𝟗', Some(9)),
            ('𝟘', Some(0)),
            ('²', None),
            ('x', None),
        ] {
            assert_eq!(digit(character), value, "{character}");
        }
        assert!(ZEROS.is_sorted());
        // The table of another crate has the same digits, which stand in runs from 0 to 9.
        let decimal = Regex::new(r"^\p{Nd}$").unwrap();
        // Or none yet, where ours is newer.
        let unassigned = Regex::new(r"^\p{Cn}$").unwrap();
        for character in '\0'..=char::MAX {
            let text = character.to_string();
            let expected = decimal.is_match(&text) || digit(character).is_some() && unassigned.is_match(&text);
            assert_eq!(digit(character).is_some(), expected, "{character:?}");
        }
    }

    #[test]
    fn a_letter_is_that_of_an_option() {
        for (text, expected) in [
            ("B", Some("B")),
            (" (b) because", Some("B")),
            ("C. Paris", Some("C")),
            ("**D**", Some("D")),
            ("The answer is (A), not (B).", Some("B")),
            ("A cat, so the answer is C.", Some("C")),
            ("Die Antwort ist B", Some("B")),
            ("答案是Ｂ。", Some("B")),
            ("答案是 B。", Some("B")),
            ("उत्तर: D।", Some("D")),
            ("A cat is on the mat", None),
            ("K", None),
            ("", None),
        ] {
            assert_eq!(
                extracted(Extractor::Letter, text, "en").as_deref(),
                expected,
                "{text:?}"
            );
        }
    }

    #[test]
    fn json_is_found_and_compared_by_value() {
        let extract = |text| Extractor::Json.extract(text, "en");
        let expected = extract(r#"{"intent": "alarm", "slots": {"time": "8"}}"#);
        assert!(expected.is_some());
        assert_eq!(
            extract("Here: ```json\n{\"slots\":{\"time\":\"8\"},\"intent\":\"alarm\"}\n``` {}"),
            expected
        );
        assert_eq!(extract("{broken} then [1, 2]"), extract("[1,2]"));
        assert_ne!(extract("[2,1]"), extract("[1,2]"));
        assert_eq!(extract("nothing"), None);
        assert_eq!(extract("{\"cut\": "), None);
    }

    #[test]
    fn texts_are_trimmed() {
        assert_eq!(extracted(Extractor::None, " a\nb \n", "en").as_deref(), Some("a\nb"));
        assert_eq!(
            extracted(Extractor::FirstLine, "\n \n a \nb", "en").as_deref(),
            Some("a")
        );
        assert_eq!(extracted(Extractor::None, " \n", "en"), None);
        assert_eq!(
            Extractor::None.extract("e\u{301}", "fr"),
            Extractor::None.extract("é", "fr")
        );
    }
}
