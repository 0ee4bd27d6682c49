//! Batches of groups of equivalent samples, and the arrangements that they are compared with.
//!
//! The groups of epoch `e` come in an order keyed by (seed, e), in the order of the files when `shuffle = false`; epochs follow one
//! another. A step reads the next `groups_per_batch` of them, each sample a row of its own. `no-anchor` leaves their anchors out.
//! `shuffled` deals the samples of the same epoch anew, each alone: a step has as many rows as with groups, of whatever groups.
//! `same-language` lets the samples of each language wait in a line, those of an epoch behind those of the epoch before; a step
//! takes as many rows as a whole group batch has from the longest line, and when none is that long the next epoch's samples join.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use interlingua_recipes::{Arrangement, Parallel};

use super::epochs::Epochs;
use super::membership::{Member, Membership};

use crate::dataset::Dataset;
use crate::error::DataError;
use crate::packing::Rows;
use crate::permutation::permutation;
use crate::replay::Replay;

/// Groups, step by step.
#[derive(Debug)]
pub(super) struct Groups {
    seed: u64,
    shuffle: bool,
    arrangement: Arrangement,
    groups_per_batch: usize,
    membership: Arc<Membership>,
    /// Groups after which the run ends; none: never.
    end: Option<u64>,
    epochs: Epochs,
    lines: Mutex<Replay<Lines>>,
}

impl Groups {
    /// The endless order of a dataset's groups. What a person should know is added to the notes.
    ///
    /// # Errors
    /// When there are fewer groups than a step reads.
    pub(super) fn new(
        dataset: &Dataset,
        parallel: &Parallel,
        (seed, shuffle): (u64, bool),
        notes: &mut Vec<String>,
    ) -> Result<Self, DataError> {
        let membership = Arc::new(Membership::new(dataset, parallel, (seed, shuffle), notes)?);
        let groups = Groups {
            seed,
            shuffle,
            arrangement: parallel.arrangement,
            groups_per_batch: parallel.groups_per_batch,
            end: None,
            epochs: Epochs::default(),
            lines: Mutex::new(Replay::new(Lines {
                seed,
                shuffle,
                rows: parallel.groups_per_batch * membership.per_group,
                waiting: vec![VecDeque::new(); membership.languages.len()],
                membership: membership.clone(),
                epoch: 0,
            })),
            membership,
        };
        groups.check()?;
        Ok(groups)
    }

    /// The same order, ending after this many epochs; see [`super::passes::Passes::ending_after`].
    pub(super) fn ending_after(mut self, epochs: f64) -> Self {
        self.end = self.shuffle.then(|| self.groups_in(epochs));
        self
    }

    fn check(&self) -> Result<(), DataError> {
        let groups = self.membership.len();
        if self.shuffle && groups < self.groups_per_batch {
            return Err(DataError::TooFewGroups {
                wanted: self.groups_per_batch,
                groups,
            });
        }
        let wanted = self.rows_per_batch() as usize;
        let fewest = self.membership.fewest();
        if self.shuffle && self.arrangement == Arrangement::SameLanguage && fewest.1 < wanted {
            return Err(DataError::TooFewInOneLanguage {
                wanted,
                language: fewest.0.to_owned(),
                groups: fewest.1,
            });
        }
        Ok(())
    }

    /// Rows of a batch of whole groups.
    fn rows_per_batch(&self) -> u64 {
        (self.groups_per_batch * self.membership.per_group) as u64
    }

    fn groups_in(&self, epochs: f64) -> u64 {
        (epochs.max(0.0) * self.membership.len() as f64).round() as u64
    }

    /// Steps that read this many epochs; the last one may be partly filled.
    pub(super) fn steps_for_epochs(&self, epochs: f64) -> u64 {
        let steps = if self.arrangement == Arrangement::SameLanguage {
            let rows = epochs.max(0.0) * self.membership.rows_per_epoch() as f64;
            (rows.round() as u64).div_ceil(self.rows_per_batch())
        } else {
            self.groups_in(epochs).div_ceil(self.groups_per_batch as u64)
        };
        steps.max(1)
    }

    /// The samples of a step, a row each.
    pub(super) fn step(&self, step: u64) -> Vec<u32> {
        if self.arrangement == Arrangement::SameLanguage {
            let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            return lines.get(step).cloned().unwrap_or_default();
        }
        let (per_batch, per_epoch) = (self.groups_per_batch as u64, self.membership.len() as u64);
        let end = self.end.unwrap_or(u64::MAX).min((step + 1) * per_batch);
        let mut rows = Vec::new();
        for group in step * per_batch..end {
            let epoch = self.epoch(group / per_epoch);
            rows.extend_from_slice(epoch.row((group % per_epoch) as usize));
        }
        rows
    }

    /// The samples of an epoch, in pieces of the sizes of its groups.
    fn epoch(&self, epoch: u64) -> Arc<Rows> {
        self.epochs.get(epoch, || {
            let groups = self.membership.epoch(epoch);
            let skipped = usize::from(self.arrangement == Arrangement::NoAnchor);
            let sample = |member: &Member| member.sample;
            if self.arrangement != Arrangement::Shuffled {
                let groups: Vec<Vec<u32>> = groups
                    .iter()
                    .map(|group| group[skipped..].iter().map(sample).collect())
                    .collect();
                return Rows::from_rows(groups.iter().map(Vec::as_slice));
            }
            let samples: Vec<u32> = groups.iter().flatten().map(sample).collect();
            let order = permutation(samples.len() as u32, self.seed, epoch, "samples of groups");
            let mut dealt = order.into_iter().map(|place| samples[place as usize]);
            let pieces: Vec<Vec<u32>> = groups
                .iter()
                .map(|group| dealt.by_ref().take(group.len()).collect())
                .collect();
            Rows::from_rows(pieces.iter().map(Vec::as_slice))
        })
    }
}

/// Batches in one language each.
#[derive(Debug, Clone)]
struct Lines {
    seed: u64,
    shuffle: bool,
    membership: Arc<Membership>,
    /// Rows of a batch.
    rows: usize,
    /// The samples that wait, by language.
    waiting: Vec<VecDeque<u32>>,
    /// The epoch whose samples join next.
    epoch: u64,
}

impl Lines {
    fn join(&mut self) {
        let mut joining: Vec<Vec<u32>> = vec![Vec::new(); self.waiting.len()];
        for member in self.membership.epoch(self.epoch).iter().flatten() {
            joining[member.language].push(member.sample);
        }
        for (language, samples) in joining.iter().enumerate() {
            let line = &mut self.waiting[language];
            if self.shuffle {
                // Each language in an order of its own, so that the next batch is not the translation of this one.
                let purpose = format!("groups in {}", self.membership.languages[language]);
                let order = permutation(samples.len() as u32, self.seed, self.epoch, &purpose);
                line.extend(order.into_iter().map(|place| samples[place as usize]));
            } else {
                line.extend(samples);
            }
        }
        self.epoch += 1;
    }
}

impl Iterator for Lines {
    type Item = Vec<u32>;

    fn next(&mut self) -> Option<Vec<u32>> {
        loop {
            let longest = self.waiting.iter_mut().rev().max_by_key(|line| line.len())?;
            if longest.len() >= self.rows {
                return Some(longest.drain(..self.rows).collect());
            }
            self.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Order;
    use super::super::testing::{LANGUAGES, dataset, recipe, sample, step};
    use super::*;
    use interlingua_recipes::{Missing, Mix, Recipe};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// A sample of each of these languages in each group.
    fn data(groups: &[Vec<u32>]) -> Dataset {
        let samples = groups.iter().zip(0_u64..).flat_map(|(languages, group)| {
            let own = languages.iter().map(move |&language| sample(language, group, 5));
            own.collect::<Vec<_>>()
        });
        dataset(&samples.collect::<Vec<_>>())
    }

    fn all_of(groups: usize) -> Dataset {
        data(&vec![vec![0, 1, 2, 3]; groups])
    }

    fn ask(arrangement: Arrangement, groups_per_batch: usize) -> Parallel {
        Parallel {
            arrangement,
            groups_per_batch,
            ..Parallel::default()
        }
    }

    fn epochs(parallel: Parallel, shuffle: bool, batch_size: usize, epochs: f64) -> Recipe {
        let mut recipe = recipe(Mix::default(), Some(parallel), shuffle, true, (batch_size, 1));
        recipe.train.epochs = Some(epochs);
        recipe
    }

    fn tags(data: &Dataset, samples: &[u32]) -> Vec<&'static str> {
        let language = |&sample: &u32| LANGUAGES[usize::from(data.language(sample as usize))];
        samples.iter().map(language).collect()
    }

    /// Steps as lists of samples.
    fn steps(data: &Dataset, recipe: &Recipe, world: usize) -> Vec<Vec<u32>> {
        let (order, steps) = Order::for_recipe(recipe, data, world).unwrap();
        (0..steps).map(|number| step(&order, number, world).concat()).collect()
    }

    #[test]
    fn the_anchor_comes_first_and_the_others_as_they_are_named() {
        let data = all_of(2);
        let parallel = Parallel {
            languages: vec!["SW".to_owned(), "en".to_owned(), "ar".to_owned()],
            ..ask(Arrangement::Groups, 1)
        };
        let seen = steps(&data, &epochs(parallel, false, 2, 1.0), 1);
        assert_eq!(tags(&data, &seen[0]), ["en", "sw", "ar"]);
        assert_eq!(seen.concat(), [1, 3, 0, 5, 7, 4]);
        let all = steps(&data, &epochs(ask(Arrangement::Groups, 2), false, 8, 1.0), 1);
        assert_eq!(tags(&data, &all[0][..4]), ["en", "ar", "hi", "sw"]);
        let without = steps(&data, &epochs(ask(Arrangement::NoAnchor, 2), false, 8, 1.0), 1);
        assert_eq!(tags(&data, &without[0][..3]), ["ar", "hi", "sw"]);
    }

    #[test]
    fn groups_that_lack_a_language_are_left_out_or_used_as_they_are() {
        let data = data(&[vec![0, 1, 3], vec![0, 3], vec![1, 3], vec![1], vec![0, 1, 3]]);
        let ask = |missing| {
            let parallel = Parallel {
                missing,
                ..ask(Arrangement::Groups, 1)
            };
            Order::for_recipe(&epochs(parallel, false, 8, 1.0), &data, 1).unwrap()
        };
        let (skipped, steps) = ask(Missing::Skip);
        assert_eq!(steps, 2);
        let note = &skipped.notes()[0];
        for part in [
            "uses 2 of 5",
            "1 of 5 groups lack the anchor en",
            "2 of the 4 groups that have it lack ar",
        ] {
            assert!(note.contains(part), "{note}");
        }
        let (allowed, steps) = ask(Missing::Allow);
        assert_eq!(steps, 3);
        assert_eq!(tags(&data, &step(&allowed, 1, 1).concat()), ["en", "sw"]);
        assert!(allowed.notes()[0].contains("uses 3 of 5"));
    }

    #[test]
    fn without_a_usable_group_the_counts_say_why() {
        let data = data(&[vec![0, 3], vec![1, 3], vec![1, 3]]);
        let refused = |parallel: Parallel| {
            let error = Order::for_recipe(&epochs(parallel, true, 8, 1.0), &data, 1).unwrap_err();
            error.to_string()
        };
        let message = refused(ask(Arrangement::Groups, 1));
        for part in [
            "data.parallel",
            "1 of 3 groups lack the anchor en",
            "2 of the 2 groups that have it lack ar",
        ] {
            assert!(message.contains(part), "{message}");
        }
        let allow = |arrangement, groups_per_batch| Parallel {
            missing: Missing::Allow,
            ..ask(arrangement, groups_per_batch)
        };
        assert!(refused(allow(Arrangement::Groups, 3)).contains("reads 3 groups, but there are only 2"));
        assert!(refused(allow(Arrangement::SameLanguage, 1)).contains("a batch has 3 rows, but only 2 groups have en"));
    }

    #[test]
    fn several_samples_of_a_language_take_turns() {
        let samples = [sample(1, 0, 5), sample(3, 0, 5), sample(3, 0, 6), sample(3, 0, 7)];
        let seen = steps(
            &dataset(&samples),
            &epochs(ask(Arrangement::Groups, 1), true, 2, 4.0),
            1,
        );
        assert_eq!(seen.concat(), [0, 1, 0, 2, 0, 3, 0, 1]);
    }

    #[test]
    fn batches_in_one_language_take_turns_and_leave_nothing_out() {
        let data = all_of(10);
        let recipe = epochs(ask(Arrangement::SameLanguage, 2), true, 3, 4.0);
        let seen = steps(&data, &recipe, 1);
        assert_eq!(seen.len(), 20);
        let mut counts = BTreeMap::<u32, u32>::new();
        let mut languages = Vec::new();
        for batch in &seen {
            let tags = tags(&data, batch);
            assert_eq!(tags.len(), 8);
            assert!(tags.iter().all(|tag| *tag == tags[0]));
            languages.push(tags[0]);
            batch.iter().for_each(|&sample| *counts.entry(sample).or_default() += 1);
        }
        assert_eq!(languages[..4], ["en", "ar", "hi", "sw"]);
        assert!(
            counts.len() == 40 && counts.values().all(|&count| count == 4),
            "{counts:?}"
        );
    }

    fn groups() -> impl Strategy<Value = Vec<Vec<u32>>> {
        let group = prop_oneof![
            Just(vec![0, 1, 2, 3]),
            Just(vec![1, 3]),
            Just(vec![1, 0, 3]),
            Just(vec![0, 3])
        ];
        prop::collection::vec(group, 6..30)
    }

    fn missing() -> impl Strategy<Value = Missing> {
        prop_oneof![Just(Missing::Skip), Just(Missing::Allow)]
    }

    proptest! {
        #[test]
        fn groups_are_whole_in_each_step_and_come_once_an_epoch(
            groups in groups(), missing in missing(), per_group in 2_usize..=4, per_batch in 1_usize..4, batch_size in 1_usize..6, world in 1_usize..4, passes in 1_usize..3,
        ) {
            let data = data(&groups);
            let parallel = Parallel { missing, languages_per_group: per_group, ..ask(Arrangement::Groups, per_batch) };
            let recipe = epochs(parallel, true, batch_size, passes as f64);
            let made = Order::for_recipe(&recipe, &data, world);
            prop_assume!(made.is_ok());
            let (order, steps) = made.unwrap();
            let mut counts = BTreeMap::<u64, usize>::new();
            let mut read = vec![0_u32; data.len()];
            for number in 0..steps {
                let rows = step(&order, number, world);
                let mut sizes = Vec::<(u64, usize)>::new();
                for row in &rows {
                    prop_assert_eq!(row.len(), 1);
                    read[row[0] as usize] += 1;
                    let group = data.group(row[0] as usize);
                    match sizes.last_mut() {
                        Some((last, size)) if *last == group && data.language(row[0] as usize) != 1 => *size += 1,
                        _ => {
                            prop_assert_eq!(data.language(row[0] as usize), 1, "a group begins with its anchor");
                            sizes.push((group, 1));
                        }
                    }
                }
                prop_assert!(sizes.len() == per_batch || number + 1 == steps);
                for (group, size) in sizes {
                    prop_assert_eq!(size, groups[group as usize].len().min(per_group));
                    *counts.entry(group).or_default() += 1;
                }
            }
            prop_assert!(step(&order, steps, world).is_empty());
            prop_assert!(counts.values().all(|&count| count == passes));
            let plan = order.plan_shares(&data, steps, world);
            let anchors = read.iter().enumerate().filter(|(sample, _)| data.language(*sample) == 1).map(|(_, &reads)| f64::from(reads)).sum::<f64>();
            let all = (0..data.len()).filter(|&sample| data.language(sample) == 1).count() as f64;
            prop_assert!((plan.languages["en"].epochs - anchors / all).abs() < 1e-9);
        }

        /// Ranks are dealt the rows of a step without overlap, whatever their number, and the rows are those of one rank.
        #[test]
        fn a_step_is_the_same_on_any_number_of_ranks(groups in groups(), per_batch in 1_usize..4, batch_size in 1_usize..6, world in 2_usize..4, number in 0_u64..20) {
            let data = data(&groups);
            let parallel = Parallel { missing: Missing::Allow, ..ask(Arrangement::Groups, per_batch) };
            let mut recipe = epochs(parallel, true, batch_size, 1.0);
            (recipe.train.epochs, recipe.train.steps) = (None, Some(20));
            let made = Order::for_recipe(&recipe, &data, world);
            prop_assume!(made.is_ok());
            let (order, _) = made.unwrap();
            let whole = step(&order, number, 1);
            prop_assert_eq!(&whole, &step(&order, number, world));
            for rank in 0..world {
                for batch in order.micro_batches(&data, number, rank, world) {
                    prop_assert!(batch.rows <= batch_size);
                }
            }
        }

        #[test]
        fn shuffled_deals_the_same_samples_in_steps_of_the_same_size(groups in groups(), missing in missing(), per_batch in 1_usize..4, shuffle: bool) {
            let data = data(&groups);
            let asked = |arrangement| epochs(Parallel { missing, ..ask(arrangement, per_batch) }, shuffle, 2, 1.0);
            let made = Order::for_recipe(&asked(Arrangement::Groups), &data, 1);
            prop_assume!(made.is_ok());
            let (_, count) = made.unwrap();
            let usable = steps(&data, &asked(Arrangement::Groups), 1);
            let dealt = steps(&data, &asked(Arrangement::Shuffled), 1);
            let sizes = |steps: &[Vec<u32>]| steps.iter().map(Vec::len).collect::<Vec<_>>();
            prop_assert_eq!(sizes(&usable), sizes(&dealt));
            prop_assert_eq!(usable.len() as u64, count);
            // In file order the last step goes on into the second epoch.
            prop_assume!(shuffle);
            let sorted = |steps: &[Vec<u32>]| {
                let mut all = steps.concat();
                all.sort_unstable();
                all
            };
            prop_assert_eq!(sorted(&usable), sorted(&dealt));
        }
    }
}
