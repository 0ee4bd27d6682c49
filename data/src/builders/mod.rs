//! `[[data.sources.build]]`: rows made out of the parallel rows of a source.
//!
//! All rows of the source are read first, because those of one group may stand anywhere. Which rows are made, and what is drawn
//! for each, depends on the seed, the name of the source, the number of the builder and that of the row, and on nothing else.

mod draw;
mod groups;
mod kinds;
mod template;

use std::collections::BTreeSet;

use interlingua_recipes::{BadRow as OnBadRow, Build, BuildKind, BuiltLanguage, Source};

use crate::error::DataError;
use crate::language::canonical;
use crate::sample::{Content, Sample};
use crate::source::{Skipped, SourceRows, read_source};
use draw::Draw;
use groups::{Group, Version};
use kinds::{Asked, Plan};
use template::PromptTemplate;

/// The samples of a source: its rows, or those that its builders make.
pub(crate) struct SampleRows {
    rows: SourceRows,
    built: Option<std::vec::IntoIter<Sample>>,
}

impl SampleRows {
    /// Opens a source; reads it whole where rows are built.
    pub(crate) fn open(
        source_index: usize,
        source: &Source,
        on_bad_row: OnBadRow,
        seed: u64,
    ) -> Result<Self, DataError> {
        let mut rows = read_source(source_index, source, on_bad_row)?;
        if source.build.is_empty() {
            return Ok(SampleRows { rows, built: None });
        }
        let own = rows.by_ref().collect::<Result<Vec<Sample>, DataError>>()?;
        let groups = groups::gather(&own);
        let mut samples = Vec::new();
        for (number, build) in source.build.iter().enumerate() {
            let builder = Builder {
                key: format!("data.sources.{source_index}.build.{number}"),
                source,
                build,
                draw: Draw::new(seed, &source.name, number),
            };
            samples.extend(builder.run(&groups)?);
        }
        if source.keep {
            samples.splice(0..0, own);
        }
        Ok(SampleRows {
            rows,
            built: Some(samples.into_iter()),
        })
    }

    /// Rows read so far, those left out included.
    pub(crate) fn rows(&self) -> u64 {
        self.rows.rows()
    }

    /// The rows left out so far.
    pub(crate) fn skipped(&self) -> &Skipped {
        self.rows.skipped()
    }
}

impl Iterator for SampleRows {
    type Item = Result<Sample, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.built {
            Some(built) => built.next().map(Ok),
            None => self.rows.next(),
        }
    }
}

/// One `[[data.sources.build]]` at work.
struct Builder<'a> {
    key: String,
    source: &'a Source,
    build: &'a Build,
    draw: Draw,
}

impl Builder<'_> {
    fn run(&self, groups: &[Group]) -> Result<Vec<Sample>, DataError> {
        let template = PromptTemplate::new(&self.key, self.build)?;
        let plan = Plan {
            kind: self.build.kind,
            from: self.languages("from", &self.build.from, groups)?,
            to: self.languages("to", &self.build.to, groups)?,
            probability: self.build.probability.unwrap_or(0.5),
            per_document: self.build.languages_per_document.unwrap_or(0),
            draw: &self.draw,
        };
        let mut samples = Vec::new();
        for mode in plan.modes() {
            let asked = plan.rows(groups, mode);
            for index in self.chosen(asked.len(), mode)? {
                samples.push(self.sample(&asked[index], &template)?);
            }
        }
        Ok(samples)
    }

    /// The languages that a key names, in canonical case, each of which some row has.
    fn languages(&self, name: &str, tags: &[String], groups: &[Group]) -> Result<Vec<String>, DataError> {
        let all = groups.iter().flat_map(|group| &group.versions);
        let found: BTreeSet<&str> = all.map(|version| version.language()).collect();
        let pivot = ["en".to_owned()];
        let tags = match (self.build.kind, name, tags) {
            (BuildKind::Crossin, "from", []) => &pivot,
            (_, _, tags) => tags,
        };
        let known = |tag: &String| {
            let language = canonical(tag).unwrap_or_else(|_| tag.clone());
            match found.contains(language.as_str()) {
                true => Ok(language),
                false => Err(DataError::BuildLanguage {
                    key: format!("{}.{name}", self.key),
                    language,
                    source_name: self.source.name.clone(),
                    found: found.iter().map(|&language| language.to_owned()).collect(),
                }),
            }
        };
        tags.iter().map(known).collect()
    }

    /// Which of the rows that can be made are made, in their order.
    fn chosen(&self, possible: usize, mode: u8) -> Result<Vec<usize>, DataError> {
        let wanted = self.build.count;
        if wanted > possible || possible == 0 {
            let advice = match possible {
                0 => "Rows of one group, in the languages that it names, are needed: set group_field, or the rows' id.",
                _ => "Lower it, or write 0 for all.",
            };
            return Err(DataError::BuildCount {
                key: format!("{}.count", self.key),
                wanted,
                possible,
                source_name: self.source.name.clone(),
                mode: if mode == 0 {
                    String::new()
                } else {
                    format!(" of mode {mode}")
                },
                advice,
            });
        }
        Ok(match wanted {
            0 => (0..possible).collect(),
            _ => self.draw.choose(wanted, possible, mode),
        })
    }

    fn sample(&self, asked: &Asked, template: &PromptTemplate) -> Result<Sample, DataError> {
        let text = template.render(asked)?;
        let (first, last) = asked.ends();
        let content = match &asked.answer {
            Some(answer) => Content::Exchange {
                question: text,
                answer: answer.clone(),
            },
            None => Content::Text(text),
        };
        let counts_as: &Version = match self.build.lang {
            BuiltLanguage::Source => first,
            BuiltLanguage::Target => last,
        };
        let languages: Vec<&str> = asked.versions.iter().map(|version| version.language()).collect();
        let made = format!("{} {}", self.build.kind.name(), languages.join("→"));
        let parent = first.sample;
        Ok(Sample {
            content,
            language: counts_as.language().to_owned(),
            group: parent.group.clone(),
            id: Some(match &parent.id {
                Some(id) => format!("{id}, {made}"),
                None => made,
            }),
            place: parent.place.clone(),
            instruction: None,
        })
    }
}
