//! What a list of names or a `re:` pattern selects among dotted module and parameter paths.

use regex::Regex;

/// Decides which dotted paths a recipe means.
#[derive(Debug, Clone)]
pub struct Selector(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Names(Vec<String>),
    Regex(Regex),
}

impl Selector {
    /// Selects the paths that contain one of the names as whole segments: `q_proj` selects
    /// `model.layers.0.self_attn.q_proj` and `model.layers.0.self_attn.q_proj.weight`, and not `my_q_proj`.
    #[must_use]
    pub fn from_names(names: &[String]) -> Self {
        Self(Kind::Names(names.to_vec()))
    }

    /// Selects the paths in which the regular expression is found anywhere.
    ///
    /// # Errors
    /// When the pattern is no regular expression.
    pub fn from_regex(pattern: &str) -> Result<Self, regex::Error> {
        Regex::new(pattern).map(|regex| Self(Kind::Regex(regex)))
    }

    /// Reads a recipe's text: `re:` and a regular expression, or one name.
    ///
    /// # Errors
    /// When the pattern is no regular expression.
    pub fn from_text(text: &str) -> Result<Self, regex::Error> {
        match text.strip_prefix("re:") {
            Some(pattern) => Self::from_regex(pattern),
            None => Ok(Self::from_names(&[text.to_owned()])),
        }
    }

    /// Whether the path is selected.
    #[must_use]
    pub fn selects(&self, path: &str) -> bool {
        match &self.0 {
            Kind::Names(names) => names
                .iter()
                .any(|name| format!(".{path}.").contains(&format!(".{}.", name.trim_matches('.')))),
            Kind::Regex(regex) => regex.is_match(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Selector;

    #[test]
    fn names_are_whole_segments_and_patterns_are_searched() {
        let names = Selector::from_names(&["q_proj".into(), "layers.1".into()]);
        assert!(names.selects("model.layers.0.self_attn.q_proj"));
        assert!(names.selects("model.layers.0.self_attn.q_proj.weight"));
        assert!(names.selects("model.layers.1.mlp.up_proj"));
        assert!(!names.selects("model.layers.11.mlp.up_proj"));
        assert!(!names.selects("model.layers.0.my_q_proj"));
        let pattern = Selector::from_text(r"re:layers\.(30|31)\.").unwrap();
        assert!(pattern.selects("model.layers.31.mlp.up_proj.weight"));
        assert!(!pattern.selects("model.layers.3.mlp.up_proj.weight"));
    }
}
