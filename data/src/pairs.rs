//! Pairs of translations from a source that only a loss reads, as an endless order of its own.
//!
//! A pair is an anchor and a sample of the same group in another language. Each epoch sees each pair once, in an order keyed by
//! (seed, epoch): the groups are shuffled and take turns, one language each a turn, so that two pairs of one group are as far
//! apart as they can be. A loss that compares the pairs of a batch would take the other one for a wrong answer, and it is none.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use crate::batch::MicroBatch;
use crate::dataset::Dataset;
use crate::error::DataError;
use crate::language::canonical;
use crate::permutation::permutation;
use crate::replay::Replay;

/// What the order of pairs depends on, besides the samples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairSettings {
    /// The recipe's seed.
    pub seed: u64,
    /// `false`: the order of the files, over and over.
    pub shuffle: bool,
    /// Pairs per device and micro-step.
    pub batch_size: usize,
    /// Number of processes.
    pub world: usize,
}

/// Two samples of one group, as indices into their dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    /// The sample that the other one is tied to.
    pub anchor: u32,
    /// The sample in another language.
    pub other: u32,
}

/// The pairs of one micro-batch: sequence `i` of `others` is the translation of sequence `i` of `anchors`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PairBatch {
    /// The anchors.
    pub anchors: MicroBatch,
    /// Their translations.
    pub others: MicroBatch,
}

/// The order in which a loss reads the pairs of a source.
#[derive(Debug)]
pub struct PairOrder {
    batch_size: usize,
    groups: Arc<Vec<Group>>,
    notes: Vec<String>,
    draws: Mutex<Replay<Draws>>,
}

/// Translations of one another; where a language has several, epochs take turns.
#[derive(Debug)]
struct Group {
    anchors: Vec<u32>,
    others: Vec<Vec<u32>>,
}

impl PairOrder {
    /// The pairs of a dataset of one text a sample. `anchor`: the language of the first of each pair; none: English where a
    /// group has it, else the language of the group's first sample. Groups without an anchor, or with nothing else, are left out.
    ///
    /// # Errors
    /// When no group has a pair, or a micro-step over all processes reads more pairs than there are.
    pub fn new(dataset: &Dataset, anchor: Option<&str>, settings: PairSettings) -> Result<Self, DataError> {
        let anchor = anchor.map(|tag| canonical(tag).unwrap_or_else(|_| tag.to_owned()));
        let (all, without_anchor, groups) = groups(dataset, anchor.as_deref());
        let source = || dataset.source(0).to_owned();
        let mut reasons = Vec::new();
        if let (Some(anchor), 1..) = (&anchor, without_anchor) {
            reasons.push(format!("{without_anchor} of {all} groups lack the anchor {anchor}"));
        }
        let alone = all - without_anchor - groups.len();
        if alone > 0 {
            reasons.push(format!("{alone} of {all} groups hold one language only"));
        }
        if groups.is_empty() {
            if dataset.is_empty() {
                return Err(DataError::NothingLeft {
                    reasons: "a source that a loss reads pairs from has no rows".to_owned(),
                });
            }
            return Err(DataError::NoPair {
                source_name: source(),
                reasons: reasons.join("; "),
            });
        }
        let notes = if reasons.is_empty() {
            Vec::new()
        } else {
            let used = groups.len();
            vec![format!(
                "source {:?}: pairs come from {used} of {all} groups: {}.",
                source(),
                reasons.join("; ")
            )]
        };
        let groups = Arc::new(groups);
        let PairSettings { batch_size, world, .. } = settings;
        let order = PairOrder {
            batch_size,
            notes,
            draws: Mutex::new(Replay::new(Draws {
                settings,
                groups: groups.clone(),
                epoch: 0,
                rest: VecDeque::new(),
                last: Vec::new(),
            })),
            groups,
        };
        if order.len() < batch_size * world {
            return Err(DataError::TooFewPairs {
                source_name: source(),
                pairs: order.len(),
                wanted: batch_size * world,
                batch_size,
                world,
            });
        }
        Ok(order)
    }

    /// The pairs of the first epoch, in the order of the files.
    pub fn pairs(&self) -> Vec<Pair> {
        let pairs = self.groups.iter().flat_map(|group| group.pairs(0));
        pairs.collect()
    }

    /// Pairs of an epoch.
    pub fn len(&self) -> usize {
        self.groups.iter().map(|group| group.others.len()).sum()
    }

    /// Never: there is at least one pair.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// What a person should know, in whole sentences: groups that are left out, and why.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The micro-batch with this number of one rank, always full. Micro-batches are dealt to ranks in turn.
    pub fn micro_batch(&self, dataset: &Dataset, counter: u64, rank: usize, world: usize) -> PairBatch {
        let mut draws = self.draws.lock().unwrap_or_else(PoisonError::into_inner);
        let batch_size = self.batch_size as u64;
        let first = (counter * world as u64 + rank as u64) * batch_size;
        let mut batch = PairBatch::default();
        for number in first..first + batch_size {
            let Some(&(_, pair)) = draws.get(number) else { break };
            for (side, sample) in [(&mut batch.anchors, pair.anchor), (&mut batch.others, pair.other)] {
                side.rows += 1;
                side.push_sample(dataset, sample as usize);
            }
        }
        batch
    }
}

impl Group {
    /// Its pairs, in the order of the files.
    fn pairs(&self, epoch: u64) -> impl Iterator<Item = Pair> + '_ {
        (0..self.others.len()).map(move |other| self.pair(other, epoch))
    }

    fn pair(&self, other: usize, epoch: u64) -> Pair {
        let turn = |samples: &[u32]| samples[(epoch % samples.len() as u64) as usize];
        Pair {
            anchor: turn(&self.anchors),
            other: turn(&self.others[other]),
        }
    }
}

/// How many groups there are, how many of them lack the anchor, and those that have a pair, in the order of the files.
fn groups(dataset: &Dataset, anchor: Option<&str>) -> (usize, usize, Vec<Group>) {
    let mut found: HashMap<u64, usize> = HashMap::new();
    // The samples of each language, languages in the order of the files too.
    let mut all: Vec<Vec<(u16, Vec<u32>)>> = Vec::new();
    for sample in 0..dataset.len() {
        let index = *found.entry(dataset.group(sample)).or_insert_with(|| {
            all.push(Vec::new());
            all.len() - 1
        });
        let (language, group) = (dataset.language(sample), &mut all[index]);
        match group.iter_mut().find(|(own, _)| *own == language) {
            Some((_, samples)) => samples.push(sample as u32),
            None => group.push((language, vec![sample as u32])),
        }
    }
    let tag = |language: u16| dataset.languages()[usize::from(language)].as_str();
    let place_of_anchor = |group: &[(u16, Vec<u32>)]| {
        let place = |wanted: &dyn Fn(&str) -> bool| group.iter().position(|(language, _)| wanted(tag(*language)));
        match anchor {
            Some(anchor) => place(&|tag| tag == anchor),
            None => place(&|tag| tag == "en")
                .or_else(|| place(&|tag| tag.starts_with("en-")))
                .or(Some(0)),
        }
    };
    let count = all.len();
    let mut without_anchor = 0;
    let mut groups = Vec::new();
    for mut group in all {
        let Some(place) = place_of_anchor(&group) else {
            without_anchor += 1;
            continue;
        };
        let (_, anchors) = group.remove(place);
        if !group.is_empty() {
            groups.push(Group {
                anchors,
                others: group.into_iter().map(|(_, samples)| samples).collect(),
            });
        }
    }
    (count, without_anchor, groups)
}

/// All pairs, epoch after epoch, each with the index of its group.
#[derive(Debug, Clone)]
struct Draws {
    settings: PairSettings,
    groups: Arc<Vec<Group>>,
    /// The epoch that comes next.
    epoch: u64,
    /// What is left of the one before.
    rest: VecDeque<(u32, Pair)>,
    /// Groups at the end of the epoch before, as many as a micro-step reads pairs, and at most half of all.
    last: Vec<u32>,
}

impl Draws {
    /// The order of groups, those that ended the epoch before behind the others.
    fn group_order(&self) -> Vec<u32> {
        let order = permutation(self.groups.len() as u32, self.settings.seed, self.epoch, "pairs");
        let last: HashSet<u32> = self.last.iter().copied().collect();
        let (behind, mut first): (Vec<u32>, Vec<u32>) = order.into_iter().partition(|group| last.contains(group));
        first.extend(behind);
        first
    }

    fn next_epoch(&mut self) {
        let PairSettings {
            seed,
            shuffle,
            batch_size,
            world,
        } = self.settings;
        let mut turns: BTreeMap<usize, Vec<(u32, Pair)>> = BTreeMap::new();
        if shuffle {
            for group in self.group_order() {
                let members = &self.groups[group as usize];
                let purpose = format!("languages of pairs {group}");
                let languages = permutation(members.others.len() as u32, seed, self.epoch, &purpose);
                for (turn, &other) in languages.iter().enumerate() {
                    let pair = members.pair(other as usize, self.epoch);
                    turns.entry(turn).or_default().push((group, pair));
                }
            }
        } else {
            let epoch = self.epoch;
            let groups = (0..).zip(self.groups.iter());
            let all = groups.flat_map(|(number, group)| group.pairs(epoch).map(move |pair| (number, pair)));
            turns.insert(0, all.collect());
        }
        self.rest.extend(turns.into_values().flatten());
        let kept = (batch_size * world).min(self.groups.len() / 2);
        self.last = self.rest.iter().rev().take(kept).map(|(group, _)| *group).collect();
        self.epoch += 1;
    }
}

impl Iterator for Draws {
    type Item = (u32, Pair);

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            self.next_epoch();
        }
        self.rest.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenized_file::TokenizedSample;
    use proptest::prelude::*;

    const LANGUAGES: [&str; 4] = ["ar", "en", "en-GB", "sw"];

    fn dataset(rows: &[(u32, u64)]) -> Dataset {
        let sample = |(place, &(language, group)): (usize, &(u32, u64))| TokenizedSample {
            input_ids: vec![place as u32; 3],
            labels: vec![-100; 3],
            language,
            group,
            ..Default::default()
        };
        let samples: Vec<_> = rows.iter().enumerate().map(sample).collect();
        Dataset::in_memory(&LANGUAGES, &samples).unwrap()
    }

    fn settings(shuffle: bool, batch_size: usize, world: usize) -> PairSettings {
        PairSettings {
            seed: 5,
            shuffle,
            batch_size,
            world,
        }
    }

    fn numbers(order: &PairOrder) -> Vec<(u32, u32)> {
        order.pairs().iter().map(|pair| (pair.anchor, pair.other)).collect()
    }

    #[test]
    fn the_anchor_is_the_given_language_else_english_else_the_first() {
        let rows = [(3, 1), (1, 1), (0, 1), (0, 2), (3, 2), (0, 3), (2, 3), (3, 4)];
        let data = dataset(&rows);
        let english = PairOrder::new(&data, None, settings(true, 1, 1)).unwrap();
        assert_eq!(numbers(&english), [(1, 0), (1, 2), (3, 4), (6, 5)]);
        assert!(english.notes()[0].contains("3 of 4 groups"), "{:?}", english.notes());
        let swahili = PairOrder::new(&data, Some("SW"), settings(true, 1, 1)).unwrap();
        assert_eq!(numbers(&swahili), [(0, 1), (0, 2), (4, 3)]);
        assert!(swahili.notes()[0].contains("1 of 4 groups lack the anchor sw"));
        let none = PairOrder::new(&data, Some("fr"), settings(true, 1, 1))
            .unwrap_err()
            .to_string();
        assert!(
            none.contains("\"memory\"") && none.contains("4 of 4 groups lack the anchor fr"),
            "{none}"
        );
        let few = PairOrder::new(&data, None, settings(true, 3, 2))
            .unwrap_err()
            .to_string();
        assert!(few.contains("has 4 pairs") && few.contains("reads 6"), "{few}");
    }

    #[test]
    fn file_order_goes_over_and_over_and_ranks_take_turns() {
        let data = dataset(&[(1, 1), (0, 1), (3, 1), (1, 2), (0, 2)]);
        let order = PairOrder::new(&data, None, settings(false, 1, 2)).unwrap();
        let seen = |counter, rank| {
            let batch = order.micro_batch(&data, counter, rank, 2);
            assert_eq!((batch.anchors.rows, batch.others.sequences.len()), (1, 1));
            (batch.anchors.sequences[0].sample, batch.others.sequences[0].sample)
        };
        let seen = [seen(1, 0), seen(0, 1), seen(0, 0), seen(1, 1)];
        assert_eq!(seen, [(3, 4), (0, 2), (0, 1), (0, 1)]);
    }

    proptest! {
        /// With as many languages in every group, no group is twice in a micro-batch over all ranks, epochs' ends included.
        #[test]
        fn pairs_of_a_group_are_apart_and_each_comes_once_an_epoch(groups in 6_u64..40, languages in 2_u32..=4, batch in 1_usize..4, epochs in 1_usize..4) {
            let rows: Vec<(u32, u64)> = (0..groups).flat_map(|group| (0..languages).map(move |language| (language, group))).collect();
            let data = dataset(&rows);
            let order = PairOrder::new(&data, None, settings(true, batch, 1)).unwrap();
            prop_assert_eq!(order.len(), groups as usize * (languages as usize - 1));
            let read = (epochs * order.len()).div_ceil(batch);
            let mut counts: HashMap<u64, usize> = HashMap::new();
            let mut left = epochs * order.len();
            for counter in 0..read as u64 {
                let pairs = order.micro_batch(&data, counter, 0, 1);
                prop_assert_eq!(pairs.anchors.sequences.len(), batch);
                let mut seen = HashSet::new();
                for (anchor, other) in pairs.anchors.sequences.iter().zip(&pairs.others.sequences) {
                    let group = data.group(anchor.sample as usize);
                    prop_assert_eq!(group, data.group(other.sample as usize));
                    prop_assert!(seen.insert(group), "group {group} is twice in a micro-batch");
                    if left > 0 {
                        *counts.entry(other.sample).or_default() += 1;
                        left -= 1;
                    }
                }
                let again = PairOrder::new(&data, None, settings(true, batch, 1)).unwrap();
                prop_assert_eq!(pairs, again.micro_batch(&data, counter, 0, 1));
            }
            prop_assert_eq!(counts.len(), order.len());
            prop_assert!(counts.values().all(|&count| count == epochs));
        }
    }
}
