//! Which language a text is in, and whether it is the one asked for ("fidelity").
//!
//! A language that is alone in its script is known by the script; others are told apart by lingua, where it has a model of
//! them and the feature `identify` is on. A language that neither knows has no fidelity, rather than a wrong one.

use std::collections::BTreeMap;
use unicode_script::{Script, UnicodeScript};

use crate::language::{primary, script};
use crate::statistics::hit;

/// Languages that are alone in their script, or nearly: one that shares it, as Yiddish does, is not known.
const ALONE: [(Script, &str, &str); 17] = [
    (Script::Armenian, "Armn", "hy"),
    (Script::Georgian, "Geor", "ka"),
    (Script::Greek, "Grek", "el"),
    (Script::Gujarati, "Gujr", "gu"),
    (Script::Gurmukhi, "Guru", "pa"),
    (Script::Hebrew, "Hebr", "he"),
    (Script::Kannada, "Knda", "kn"),
    (Script::Khmer, "Khmr", "km"),
    (Script::Lao, "Laoo", "lo"),
    (Script::Malayalam, "Mlym", "ml"),
    (Script::Myanmar, "Mymr", "my"),
    (Script::Oriya, "Orya", "or"),
    (Script::Sinhala, "Sinh", "si"),
    (Script::Tamil, "Taml", "ta"),
    (Script::Telugu, "Telu", "te"),
    (Script::Thaana, "Thaa", "dv"),
    (Script::Thai, "Thai", "th"),
];

/// Other tags of languages that are known.
const ALIASES: [(&str, &str); 11] = [
    ("arb", "ar"),
    ("cmn", "zh"),
    ("fil", "tl"),
    ("iw", "he"),
    ("nn", "nb"),
    ("no", "nb"),
    ("ory", "or"),
    ("pes", "fa"),
    ("swh", "sw"),
    ("zlm", "ms"),
    ("zsm", "ms"),
];

/// What lingua knows.
#[cfg(feature = "identify")]
mod models {
    use std::sync::LazyLock;

    use lingua::{Language, LanguageDetector, LanguageDetectorBuilder};

    static DETECTOR: LazyLock<LanguageDetector> =
        LazyLock::new(|| LanguageDetectorBuilder::from_all_languages().build());

    pub(super) fn detect(text: &str) -> Option<String> {
        DETECTOR.detect_language_of(text).map(|language| code(&language))
    }

    pub(super) fn knows(tag: &str) -> bool {
        Language::all().iter().any(|known| code(known) == tag)
    }

    fn code(language: &Language) -> String {
        language.iso_code_639_1().to_string()
    }
}

/// Without lingua scripts alone are known.
#[cfg(not(feature = "identify"))]
mod models {
    pub(super) fn detect(_: &str) -> Option<String> {
        None
    }

    pub(super) fn knows(_: &str) -> bool {
        false
    }
}

/// The language of a text, among those that are known; none where it has no letters, or none that says anything.
pub fn identify(text: &str) -> Option<String> {
    let mut letters = BTreeMap::<&str, usize>::new();
    for letter in text.chars().filter(|character| character.is_alphabetic()) {
        let alone = ALONE.iter().find(|(script, _, _)| *script == letter.script());
        *letters
            .entry(alone.map_or("", |(_, _, language)| *language))
            .or_default() += 1;
    }
    let (language, _) = letters.into_iter().max_by_key(|(_, count)| *count)?;
    if language.is_empty() {
        models::detect(text)
    } else {
        Some(language.to_owned())
    }
}

/// What [`identify`] calls the language of a tag; none where it does not know it. Scripts of Chinese are one language, so
/// are the two written forms of Norwegian. A language in another script than its usual one, as `sr-Latn`, is not known.
fn known(tag: &str) -> Option<String> {
    let language = primary(tag).to_lowercase();
    let language = ALIASES
        .iter()
        .find(|(alias, _)| *alias == language)
        .map_or(language, |(_, language)| (*language).to_owned());
    let named = script(tag);
    let named = |usual: &str| named.is_none_or(|named| named.eq_ignore_ascii_case(usual));
    if let Some((_, script, _)) = ALONE.iter().find(|(_, _, alone)| *alone == language) {
        return named(script).then_some(language);
    }
    let usual: &[&str] = match language.as_str() {
        "ar" | "fa" | "ur" => &["Arab"],
        "bg" | "ru" | "sr" | "uk" => &["Cyrl"],
        "bn" => &["Beng"],
        "hi" | "mr" => &["Deva"],
        "ja" => &["Jpan"],
        "ko" => &["Kore", "Hang"],
        "zh" => &["Hans", "Hant", "Hani"],
        _ => &["Latn"],
    };
    (models::knows(&language) && usual.iter().any(|usual| named(usual))).then_some(language)
}

/// The statistics of one output for [`crate::statistics::Ratio`]: whether it is in the language asked for. An output
/// without letters never is. None where the language is not known.
pub fn item(output: &str, asked: &str) -> Option<Vec<f64>> {
    let asked = known(asked)?;
    Some(hit(identify(output) == Some(asked)))
}

#[cfg(all(test, feature = "identify"))]
mod tests {
    use super::*;

    #[test]
    fn sentences_are_in_their_language() {
        for (tag, text) in [
            ("ar", "صباح الخير، الطفل يقرأ كتابا في المدرسة."),
            ("bn", "শিশুটি আজ সকালে স্কুলে একটি বই পড়ছে।"),
            ("de", "Das Kind liest heute Morgen in der Schule ein Buch."),
            ("el", "Το παιδί διαβάζει ένα βιβλίο στο σχολείο."),
            ("en", "The child is reading a book at school this morning."),
            ("et", "Laps loeb täna hommikul koolis raamatut."),
            ("fi", "Lapsi lukee tänä aamuna kirjaa koulussa."),
            ("hi", "बच्चा आज सुबह स्कूल में किताब पढ़ रहा है।"),
            ("ja", "子供が今朝、学校で本を読んでいます。"),
            ("kn", "ಮಗು ಶಾಲೆಯಲ್ಲಿ ಪುಸ್ತಕ ಓದುತ್ತಿದೆ."),
            ("ko", "아이가 오늘 아침 학교에서 책을 읽고 있어요."),
            ("nn", "Barnet les ei bok på skulen."),
            ("no", "Barnet leser en bok på skolen i dag."),
            ("pt-BR", "A criança está lendo um livro na escola hoje de manhã."),
            ("ru", "Ребёнок сегодня утром читает книгу в школе."),
            ("sr-Cyrl", "Дете јутрос чита књигу у школи."),
            ("swh", "Mtoto anasoma kitabu shuleni leo asubuhi."),
            ("ta", "குழந்தை பள்ளியில் புத்தகம் படிக்கிறது."),
            ("th", "เด็กกำลังอ่านหนังสือที่โรงเรียน"),
            ("tr", "Çocuk bu sabah okulda kitap okuyor."),
            ("vi", "Đứa trẻ đang đọc sách ở trường sáng nay."),
            ("zh-Hans", "孩子今天早上在学校读书。"),
            ("zh-Hant", "孩子今天早上在學校讀書。"),
        ] {
            assert_eq!(item(text, tag), Some(hit(true)), "{tag}: {:?}", identify(text));
            let other = if tag == "fi" { "sw" } else { "fi" };
            assert_eq!(item(text, other), Some(hit(false)), "{tag}");
        }
    }

    #[test]
    fn nothing_is_in_no_language() {
        for text in ["", " \n", "42", "?!", "😀"] {
            assert_eq!(identify(text), None, "{text:?}");
            assert_eq!(item(text, "en"), Some(hit(false)), "{text:?}");
        }
    }

    #[test]
    fn what_is_not_known_has_no_score() {
        for tag in ["qu", "yi", "sr-Latn", "ar-Latn", "ary", "yue", "und", "ace-Arab", ""] {
            assert_eq!(item("The child is reading a book.", tag), None, "{tag}");
        }
    }

    #[test]
    fn a_word_in_another_script_does_not_decide() {
        assert_eq!(
            identify("Neno la Kigiriki λόγος lina maana nyingi katika Kiswahili.").as_deref(),
            Some("sw")
        );
        assert_eq!(identify("Η λέξη computer είναι αγγλική λέξη.").as_deref(), Some("el"));
    }
}
