//! Which samples are translations of one another, and which of them an epoch uses.

use std::collections::{BTreeMap, HashMap};

use interlingua_recipes::{Missing, Parallel};

use crate::dataset::Dataset;
use crate::error::DataError;
use crate::language::canonical;
use crate::permutation::permutation;

/// The usable groups of a dataset.
#[derive(Debug)]
pub(super) struct Membership {
    seed: u64,
    shuffle: bool,
    /// The anchor first, then the others.
    pub(super) languages: Vec<String>,
    /// Languages that an epoch uses of a group, if it has as many.
    pub(super) per_group: usize,
    /// In the order of the files.
    groups: Vec<Group>,
}

#[derive(Debug)]
struct Group {
    name: u64,
    /// The samples in each language that there are any in, by the language's place in the list; the anchor is 0.
    languages: Vec<(usize, Vec<u32>)>,
}

/// A sample of a group in an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Member {
    /// Place of its language in the list; 0 is the anchor.
    pub(super) language: usize,
    pub(super) sample: u32,
}

/// Groups that were looked at.
#[derive(Default)]
struct Counts {
    all: usize,
    without_anchor: usize,
    anchor_alone: usize,
    incomplete: usize,
    /// Groups with an anchor that lack a language, by its place in the list.
    lacking: Vec<usize>,
}

impl Membership {
    /// The usable groups. What a person should know is added to the notes.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn new(
        dataset: &Dataset,
        parallel: &Parallel,
        (seed, shuffle): (u64, bool),
        notes: &mut Vec<String>,
    ) -> Result<Self, DataError> {
        let languages = languages(dataset, parallel);
        let place: HashMap<&str, usize> = languages.iter().map(String::as_str).zip(0..).collect();
        let mut found: HashMap<u64, usize> = HashMap::new();
        let mut all: Vec<(u64, BTreeMap<usize, Vec<u32>>)> = Vec::new();
        for sample in 0..dataset.len() {
            let name = dataset.group(sample);
            let index = *found.entry(name).or_insert_with(|| {
                all.push((name, BTreeMap::new()));
                all.len() - 1
            });
            let language = &dataset.languages()[usize::from(dataset.language(sample))];
            if let Some(&language) = place.get(language.as_str()) {
                all[index].1.entry(language).or_default().push(sample as u32);
            }
        }
        let mut counts = Counts {
            all: all.len(),
            lacking: vec![0; languages.len()],
            ..Counts::default()
        };
        let skip = parallel.missing == Missing::Skip;
        all.retain(|(_, group)| counts.usable(group, skip));
        if all.is_empty() {
            return Err(DataError::NoGroup {
                reasons: counts.reasons(&languages).join("; "),
            });
        }
        notes.extend(counts.note(&languages, all.len()));
        let groups = all.into_iter().map(|(name, group)| Group {
            name,
            languages: group.into_iter().collect(),
        });
        Ok(Membership {
            seed,
            shuffle,
            per_group: match parallel.languages_per_group {
                0 => languages.len(),
                some => some.min(languages.len()),
            },
            groups: groups.collect(),
            languages,
        })
    }

    /// Number of usable groups.
    pub(super) fn len(&self) -> usize {
        self.groups.len()
    }

    /// Samples that an epoch uses.
    pub(super) fn rows_per_epoch(&self) -> usize {
        let used = self
            .groups
            .iter()
            .map(|group| group.languages.len().min(self.per_group));
        used.sum()
    }

    /// The language that the fewest groups have, of those that any has, and how many have it.
    pub(super) fn fewest(&self) -> (&str, usize) {
        let mut counts = vec![0; self.languages.len()];
        let there = self.groups.iter().flat_map(|group| &group.languages);
        there.for_each(|(language, _)| counts[*language] += 1);
        let counts = self.languages.iter().map(String::as_str).zip(counts);
        let fewest = counts.filter(|(_, count)| *count > 0).min_by_key(|(_, count)| *count);
        fewest.unwrap_or(("", 0))
    }

    /// The groups of an epoch in their order, each with its samples, the anchor first.
    pub(super) fn epoch(&self, epoch: u64) -> Vec<Vec<Member>> {
        let order = if self.shuffle {
            permutation(self.groups.len() as u32, self.seed, epoch, "groups")
        } else {
            (0..self.groups.len() as u32).collect()
        };
        order
            .into_iter()
            .map(|group| self.members(&self.groups[group as usize], epoch))
            .collect()
    }

    fn members(&self, group: &Group, epoch: u64) -> Vec<Member> {
        let mut used: Vec<usize> = (0..group.languages.len()).collect();
        if used.len() > self.per_group {
            let others = group.languages.len() as u32 - 1;
            let purpose = format!("languages of group {}", group.name);
            let chosen = permutation(others, self.seed, epoch, &purpose);
            used.truncate(1);
            used.extend(chosen.iter().take(self.per_group - 1).map(|&other| other as usize + 1));
            used.sort_unstable();
        }
        let member = |place: usize| {
            let (language, samples) = &group.languages[place];
            Member {
                language: *language,
                sample: samples[(epoch % samples.len() as u64) as usize],
            }
        };
        used.into_iter().map(member).collect()
    }
}

/// The anchor, then the others in the order that the recipe names them, or all that there are in alphabetical order.
fn languages(dataset: &Dataset, parallel: &Parallel) -> Vec<String> {
    let tag = |tag: &String| canonical(tag).unwrap_or_else(|_| tag.clone());
    let others: Vec<String> = if parallel.languages.is_empty() {
        let mut there = vec![false; dataset.languages().len()];
        (0..dataset.len()).for_each(|sample| there[usize::from(dataset.language(sample))] = true);
        let found = dataset.languages().iter().zip(there).filter(|(_, there)| *there);
        found.map(|(language, _)| language.clone()).collect()
    } else {
        parallel.languages.iter().map(tag).collect()
    };
    let mut languages = vec![tag(&parallel.anchor)];
    languages.extend(others.into_iter().filter(|other| *other != tag(&parallel.anchor)));
    languages
}

impl Counts {
    /// Whether a group can be used; counts it.
    fn usable(&mut self, group: &BTreeMap<usize, Vec<u32>>, skip: bool) -> bool {
        if !group.contains_key(&0) {
            self.without_anchor += 1;
            return false;
        }
        for (language, lacking) in self.lacking.iter_mut().enumerate() {
            *lacking += usize::from(!group.contains_key(&language));
        }
        let complete = group.len() == self.lacking.len();
        self.incomplete += usize::from(!complete);
        self.anchor_alone += usize::from(group.len() == 1);
        group.len() > 1 && (complete || !skip)
    }

    /// Why groups are left out, or not whole.
    fn reasons(&self, languages: &[String]) -> Vec<String> {
        let anchor = &languages[0];
        let mut reasons = Vec::new();
        if self.without_anchor > 0 {
            reasons.push(format!(
                "{} of {} groups lack the anchor {anchor}",
                self.without_anchor, self.all
            ));
        }
        if self.anchor_alone > 0 {
            reasons.push(format!(
                "{} of {} groups hold nothing but {anchor}",
                self.anchor_alone, self.all
            ));
        }
        let with_anchor = self.all - self.without_anchor;
        let lacking = languages.iter().zip(&self.lacking).filter(|(_, lacking)| **lacking > 0);
        reasons.extend(
            lacking.map(|(language, lacking)| {
                format!("{lacking} of the {with_anchor} groups that have it lack {language}")
            }),
        );
        reasons
    }

    /// What a person should know when groups are left out, or used with fewer languages.
    fn note(&self, languages: &[String], usable: usize) -> Option<String> {
        let reasons = self.reasons(languages);
        (!reasons.is_empty()).then(|| {
            format!(
                "data.parallel uses {usable} of {} groups: {}.",
                self.all,
                reasons.join("; ")
            )
        })
    }
}
