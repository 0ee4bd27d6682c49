//! Language tags: BCP-47, well-formed, in canonical case.

use oxilangtag::LanguageTag;

/// The tag in canonical case (`zh-hant` becomes `zh-Hant`), so that two spellings of one language are one language.
///
/// # Errors
/// When the tag is not well-formed; what comes back says what to do.
pub fn canonical(tag: &str) -> Result<String, String> {
    if let Ok(tag) = LanguageTag::parse_and_normalize(tag) {
        return Ok(tag.into_inner());
    }
    let tidy = tag.trim().replace('_', "-");
    match LanguageTag::parse_and_normalize(&tidy) {
        Ok(tidy) => Err(format!("Write {:?}.", tidy.as_str())),
        Err(_) => {
            Err("Write a tag such as \"sw\", \"zh-Hant\" or \"pt-BR\"; \"und\" if the language is not known.".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::canonical;

    #[test]
    fn one_language_has_one_spelling() {
        for (given, expected) in [
            ("sw", "sw"),
            ("ZH-hant-hk", "zh-Hant-HK"),
            ("pt-br", "pt-BR"),
            ("bar-x-muc", "bar-x-muc"),
            ("ace-Arab", "ace-Arab"),
            ("und", "und"),
        ] {
            assert_eq!(canonical(given).unwrap(), expected);
        }
    }

    #[test]
    fn malformed_tags_come_with_advice() {
        assert_eq!(canonical("zh_Hans").unwrap_err(), "Write \"zh-Hans\".");
        assert_eq!(canonical(" en").unwrap_err(), "Write \"en\".");
        for tag in ["", "e", "not a language", "en--US", "123456789"] {
            assert!(canonical(tag).unwrap_err().starts_with("Write a tag such as"), "{tag}");
        }
    }
}
