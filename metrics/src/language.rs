//! Languages: how they are written.

/// How a language groups digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grouping {
    /// A comma stands before decimals.
    pub(crate) decimal_comma: bool,
    /// A space stands between thousands.
    pub(crate) spaces: bool,
}

/// How numbers are written in a language.
pub(crate) fn grouping(tag: &str) -> Grouping {
    let language = primary(tag);
    let point = ["de-CH", "es-MX", "es-US", "es-419"].contains(&tag);
    Grouping {
        decimal_comma: COMMA.binary_search(&language).is_ok() && !point,
        spaces: SPACES.binary_search(&language).is_ok(),
    }
}

/// Languages with a comma before decimals (CLDR, `decimal` with Latin digits).
const COMMA: &[&str] = &[
    "ady", "af", "agq", "ast", "az", "ba", "bas", "be", "bg", "blo", "br", "bs", "bua", "ca", "cs", "cv", "da", "de",
    "dsb", "dua", "dyo", "el", "eo", "es", "et", "eu", "ewo", "ff", "fi", "fo", "fr", "fy", "gl", "hr", "hsb", "ht",
    "hu", "hy", "ia", "id", "ie", "is", "it", "jgo", "jv", "ka", "kab", "kbd", "kea", "kgp", "kk", "kkj", "kl", "ksf",
    "ku", "ky", "lb", "lij", "lld", "ln", "lo", "lt", "lu", "lv", "mgh", "mk", "mua", "nb", "nl", "nmg", "nn", "nnh",
    "no", "nr", "pl", "pms", "ps", "pt", "rm", "rn", "ro", "ru", "rw", "sah", "sc", "scn", "se", "seh", "sg", "shi",
    "sk", "sl", "smn", "sq", "sr", "ss", "su", "sv", "tg", "tk", "tok", "tr", "ts", "tt", "tzm", "uk", "uz", "ve",
    "vec", "vi", "wo", "yav", "yrl", "zgh",
];

/// Languages with a space between thousands (CLDR, `group`).
const SPACES: &[&str] = &[
    "ady", "af", "agq", "ba", "bas", "be", "bg", "blo", "br", "bua", "cs", "cv", "dje", "dua", "dyo", "eo", "et",
    "ewo", "ff", "fi", "fr", "gl", "ht", "hu", "hy", "ie", "ka", "kab", "kbd", "kea", "khq", "kk", "ksf", "ky", "lt",
    "lv", "mfe", "nb", "nmg", "nn", "no", "nr", "pl", "rm", "ru", "sah", "se", "ses", "shi", "sk", "smn", "sq", "ss",
    "sv", "tg", "tk", "to", "tok", "ts", "tt", "twq", "tyv", "tzm", "uk", "uz", "ve", "vec", "xh", "yav", "zgh",
];

/// Whether a language is written without spaces between words: Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan and
/// what is close to them, by their usual script or the one that the tag names.
pub fn without_spaces(tag: &str) -> bool {
    match script(tag) {
        Some(script) => matches!(
            script.to_ascii_lowercase().as_str(),
            "hans" | "hant" | "hani" | "jpan" | "thai" | "laoo" | "khmr" | "mymr" | "tibt"
        ),
        None => matches!(
            primary(tag),
            "zh" | "cmn"
                | "yue"
                | "lzh"
                | "wuu"
                | "nan"
                | "hak"
                | "ja"
                | "th"
                | "lo"
                | "km"
                | "my"
                | "shn"
                | "mnw"
                | "bo"
                | "dz"
        ),
    }
}

/// The language of a tag: what stands before the first `-`.
pub(crate) fn primary(tag: &str) -> &str {
    tag.split('-').next().unwrap_or(tag)
}

/// The script that a tag names.
pub(crate) fn script(tag: &str) -> Option<&str> {
    tag.split('-')
        .skip(1)
        .take_while(|part| part.len() > 1)
        .find(|part| part.len() == 4 && part.bytes().all(|byte| byte.is_ascii_alphabetic()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn numbers_are_written_as_in_cldr() {
        let mut fixture =
            serde_json::from_str::<serde_json::Value>(include_str!("../tests/fixtures/metrics.json")).unwrap();
        let expected = serde_json::from_value::<BTreeMap<String, [bool; 2]>>(fixture["numbers"].take()).unwrap();
        assert!(expected.len() > 200);
        for (tag, [decimal_comma, spaces]) in expected {
            assert_eq!(grouping(&tag), Grouping { decimal_comma, spaces }, "{tag}");
        }
    }
}
