//! Languages: how they are written.

/// How a language groups digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grouping {
    /// A comma stands before decimals.
    pub(crate) decimal_comma: bool,
    /// A space stands between thousands.
    pub(crate) spaces: bool,
}

/// How numbers are written (CLDR 47, `decimal` and `group` of each language's default numbers).
pub(crate) fn grouping(tag: &str) -> Grouping {
    let spaces = matches!(
        primary(tag),
        "be" | "bg"
            | "cs"
            | "eo"
            | "et"
            | "fi"
            | "fr"
            | "hu"
            | "hy"
            | "ka"
            | "kk"
            | "ky"
            | "lt"
            | "lv"
            | "nb"
            | "nn"
            | "no"
            | "oc"
            | "pl"
            | "ru"
            | "sk"
            | "sq"
            | "sv"
            | "tg"
            | "tk"
            | "tt"
            | "uk"
            | "uz"
    );
    let decimal_comma = spaces
        || matches!(
            primary(tag),
            "ast"
                | "az"
                | "bs"
                | "br"
                | "ca"
                | "da"
                | "de"
                | "el"
                | "es"
                | "eu"
                | "fo"
                | "fur"
                | "gl"
                | "hr"
                | "id"
                | "is"
                | "it"
                | "jv"
                | "lb"
                | "ln"
                | "mk"
                | "nl"
                | "pt"
                | "ro"
                | "rw"
                | "sc"
                | "sl"
                | "sr"
                | "su"
                | "tr"
                | "vi"
                | "wo"
        );
    Grouping { decimal_comma, spaces }
}

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
fn script(tag: &str) -> Option<&str> {
    tag.split('-')
        .skip(1)
        .take_while(|part| part.len() > 1)
        .find(|part| part.len() == 4 && part.bytes().all(|byte| byte.is_ascii_alphabetic()))
}
