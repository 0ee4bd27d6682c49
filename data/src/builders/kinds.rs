//! What each kind of builder makes out of the groups of a source.

use interlingua_recipes::BuildKind;

use super::draw::Draw;
use super::groups::{Group, Version};

/// What a builder makes, and out of which languages.
pub(super) struct Plan<'a> {
    pub(super) kind: BuildKind,
    /// Canonical tags; empty: all.
    pub(super) from: Vec<String>,
    /// Canonical tags; empty: all.
    pub(super) to: Vec<String>,
    pub(super) probability: f64,
    pub(super) per_document: usize,
    pub(super) draw: &'a Draw,
}

/// A row that can be made.
pub(super) struct Asked<'a> {
    /// The version that is asked in and the one that is answered in; all versions of a document.
    pub(super) versions: Vec<&'a Version<'a>>,
    /// Which kind of row it is, where a builder makes several; 0 otherwise.
    pub(super) mode: u8,
    /// The text that the prompt is about.
    pub(super) text: String,
    /// What is to be learnt; `None` for a document, all of which is.
    pub(super) answer: Option<String>,
}

impl<'a> Asked<'a> {
    /// The first and the last of its versions.
    pub(super) fn ends(&self) -> (&'a Version<'a>, &'a Version<'a>) {
        (self.versions[0], self.versions[self.versions.len() - 1])
    }
}

fn named(languages: &[String], version: &Version) -> bool {
    languages.is_empty() || languages.iter().any(|language| language == version.language())
}

impl Plan<'_> {
    /// The kinds of rows that the builder makes.
    pub(super) fn modes(&self) -> std::ops::RangeInclusive<u8> {
        match self.kind {
            BuildKind::Crossin => 1..=3,
            _ => 0..=0,
        }
    }

    /// All rows of a mode that can be made, in the order of the groups.
    pub(super) fn rows<'a>(&self, groups: &'a [Group<'a>], mode: u8) -> Vec<Asked<'a>> {
        let mut rows = Vec::new();
        for (number, group) in groups.iter().enumerate() {
            match self.kind {
                BuildKind::Translation | BuildKind::LanguageTag => {
                    self.translations(group, &mut rows, |version| version.text().to_owned());
                }
                BuildKind::QuestionTranslation => {
                    self.translations(group, &mut rows, |version| version.question.clone());
                }
                BuildKind::Crossin => rows.extend(self.crossin(group, number, mode)),
                BuildKind::CrossLingualAnswer => self.cross_lingual_answers(group, number, &mut rows),
                BuildKind::ParallelDocument => rows.extend(self.document(group, number)),
            }
        }
        rows
    }

    /// One row for each pair of a language that is translated from and one that is translated into.
    fn translations<'a>(&self, group: &'a Group<'a>, rows: &mut Vec<Asked<'a>>, text: impl Fn(&Version) -> String) {
        for source in group.versions.iter().filter(|version| named(&self.from, version)) {
            let targets = group.versions.iter().filter(|version| named(&self.to, version));
            for target in targets.filter(|target| target.language() != source.language()) {
                rows.push(Asked {
                    versions: vec![source, target],
                    mode: 0,
                    text: text(source),
                    answer: Some(text(target)),
                });
            }
        }
    }

    /// CrossIn: between the pivot and one other language, drawn uniformly over those of the group (Lin et al. 2024).
    fn crossin<'a>(&self, group: &'a Group<'a>, number: usize, mode: u8) -> Option<Asked<'a>> {
        let pivot = group.versions.iter().find(|version| named(&self.from, version))?;
        let others: Vec<&Version> = self.others(group, pivot);
        if others.is_empty() {
            return None;
        }
        let other = others[self
            .draw
            .below(others.len(), number, &format!("language of mode {mode}"))];
        let (source, target) = if mode == 1 { (pivot, other) } else { (other, pivot) };
        let (text, answer) = match mode {
            3 => (source.instruction.clone(), Some(target.instruction.clone())),
            _ => (source.question.clone(), target.answer.clone()),
        };
        Some(Asked {
            versions: vec![source, target],
            mode,
            text,
            answer,
        })
    }

    /// Align-after-pre-train: the prompt says which language the answer is in (Li et al. 2024). With one language in `from`, one row
    /// a group: between that one and another, drawn uniformly, either being the prompt's with equal chance. Otherwise one row for each
    /// version that is asked in.
    fn cross_lingual_answers<'a>(&self, group: &'a Group<'a>, number: usize, rows: &mut Vec<Asked<'a>>) {
        let asked: Vec<&Version> = group
            .versions
            .iter()
            .filter(|version| named(&self.from, version))
            .collect();
        for source in asked {
            let others = self.others(group, source);
            if others.is_empty() {
                continue;
            }
            let row = rows.len();
            let other = others[self.draw.below(others.len(), row, "language of the answer")];
            let flipped = self.from.len() == 1 && self.draw.happens(0.5, number, "language of the prompt");
            let (source, other) = if flipped { (other, source) } else { (source, other) };
            let crosses = self.draw.happens(self.probability, row, "whether the languages differ");
            let target = if crosses { other } else { source };
            rows.push(Asked {
                versions: vec![source, target],
                mode: 0,
                text: source.question.clone(),
                answer: target.answer.clone(),
            });
        }
    }

    /// The versions that may answer this one in another language.
    fn others<'a>(&self, group: &'a Group<'a>, version: &Version) -> Vec<&'a Version<'a>> {
        let others = group.versions.iter().filter(|other| named(&self.to, other));
        others.filter(|other| other.language() != version.language()).collect()
    }

    /// Several versions of one text, in random order.
    fn document<'a>(&self, group: &'a Group<'a>, number: usize) -> Option<Asked<'a>> {
        let versions: Vec<&Version> = group
            .versions
            .iter()
            .filter(|version| named(&self.to, version))
            .collect();
        if versions.len() < self.per_document.max(2) {
            return None;
        }
        let count = if self.per_document == 0 {
            versions.len()
        } else {
            self.per_document
        };
        let order = self.draw.order(versions.len(), number).into_iter().take(count);
        Some(Asked {
            versions: order.map(|index| versions[index]).collect(),
            mode: 0,
            text: String::new(),
            answer: None,
        })
    }
}
