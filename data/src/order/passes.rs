//! Samples as they come: all of them once per epoch.
//!
//! Epoch `e` takes the samples in an order keyed by (seed, e) (in file order when `shuffle = false`), packs windows of them into
//! rows first-fit-decreasing ([`crate::packing`]), or takes one sample a row when `packing = false`, and then shuffles the rows,
//! keyed the same way, so that a window's long and short rows mix. Rows of one epoch follow those of the epoch before.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::epochs::Epochs;
use super::{Layout, estimate};
use crate::dataset::Dataset;
use crate::packing::{Rows, pack};
use crate::permutation::permutation;

/// Samples that are packed together: large enough for rows of 99 % and more, small enough to pack in milliseconds.
const WINDOW: usize = 8192;
/// Epochs up to which rows are counted one by one; longer runs are estimated from so many.
const COUNTED_EPOCHS: u64 = 1 << 10;

/// All samples, over and over.
#[derive(Debug)]
pub(super) struct Passes {
    layout: Layout,
    lengths: Vec<u32>,
    /// Rows after which the run ends; none: never.
    end: Option<u64>,
    epochs: Epochs,
    /// Global index of the first row of each epoch up to the furthest one asked for.
    starts: Mutex<Vec<u64>>,
}

impl Passes {
    /// The endless order of a dataset.
    pub(super) fn new(dataset: &Dataset, layout: Layout) -> Self {
        Passes {
            layout,
            lengths: (0..dataset.len()).map(|sample| dataset.length(sample) as u32).collect(),
            end: None,
            epochs: Epochs::default(),
            starts: Mutex::default(),
        }
    }

    /// The same order, ending after this many epochs, so that each sample is seen exactly that often: the last step takes only the
    /// rows that are left. In file order (`shuffle = false`) batches are always full and nothing changes.
    pub(super) fn ending_after(mut self, epochs: f64) -> Self {
        self.end = self.layout.shuffle.then(|| self.rows_in(epochs));
        self
    }

    /// Rows of epoch 0.
    pub(super) fn rows_per_epoch(&self) -> u64 {
        self.epoch(0).len() as u64
    }

    /// Rows of so many epochs; a part of an epoch is rounded to the nearest row.
    pub(super) fn rows_in(&self, epochs: f64) -> u64 {
        let whole = epochs.max(0.0).floor();
        let part = epochs.max(0.0) - whole;
        let mut rows = self.start_of(whole as u64);
        if part > 0.0 {
            rows += (part * self.epoch(whole as u64).len() as f64).round() as u64;
        }
        rows
    }

    /// Rows that hold so many tokens.
    pub(super) fn rows_for_tokens(&self, tokens: u64) -> u64 {
        let per_epoch: u64 = self.lengths.iter().map(|&length| u64::from(length)).sum();
        if per_epoch == 0 {
            return 1;
        }
        let whole = tokens / per_epoch;
        if whole > COUNTED_EPOCHS && !self.even() {
            return estimate(tokens, COUNTED_EPOCHS * per_epoch, self.start_of(COUNTED_EPOCHS));
        }
        let mut left = tokens % per_epoch;
        let mut rows = self.start_of(whole);
        for row in self.epoch(whole).iter() {
            if left == 0 {
                break;
            }
            rows += 1;
            left = left.saturating_sub(self.row_tokens(row));
        }
        rows
    }

    /// The samples of the rows with these numbers; fewer at the end.
    pub(super) fn rows(&self, rows: Range<u64>) -> Vec<Vec<u32>> {
        if self.lengths.is_empty() {
            return Vec::new();
        }
        (rows.start..rows.end.min(self.end.unwrap_or(u64::MAX)))
            .map(|row| {
                let (epoch, row) = self.locate(row);
                self.epoch(epoch).row(row).to_vec()
            })
            .collect()
    }

    /// How often each sample is drawn in so many rows.
    pub(super) fn draws(&self, rows: u64) -> Vec<f64> {
        if self.lengths.is_empty() {
            return Vec::new();
        }
        let first = self.epoch(0).len() as u64;
        if !self.even() && rows / first.max(1) > COUNTED_EPOCHS {
            let epochs = rows as f64 * COUNTED_EPOCHS as f64 / self.start_of(COUNTED_EPOCHS) as f64;
            return vec![epochs; self.lengths.len()];
        }
        let (epoch, row) = self.locate(rows.min(self.end.unwrap_or(u64::MAX)));
        let mut draws = vec![epoch as f64; self.lengths.len()];
        if row > 0 {
            let last = self.epoch(epoch);
            for &sample in last.iter().take(row).flatten() {
                draws[sample as usize] += 1.0;
            }
        }
        draws
    }

    fn row_tokens(&self, row: &[u32]) -> u64 {
        row.iter().map(|&sample| u64::from(self.lengths[sample as usize])).sum()
    }

    /// Whether all epochs have the same number of rows.
    fn even(&self) -> bool {
        !self.layout.shuffle || !self.layout.packing
    }

    /// Global index of the first row of an epoch.
    fn start_of(&self, epoch: u64) -> u64 {
        if self.even() {
            return epoch * self.epoch(0).len() as u64;
        }
        let mut starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
        if starts.is_empty() {
            starts.push(0);
        }
        while starts.len() as u64 <= epoch {
            let before = starts.len() - 1;
            let start = starts[before] + self.epoch(before as u64).len() as u64;
            starts.push(start);
        }
        starts[epoch as usize]
    }

    /// The epoch of a global row, and its index in that epoch.
    fn locate(&self, row: u64) -> (u64, usize) {
        if self.even() {
            let rows = self.epoch(0).len() as u64;
            return (row / rows, (row % rows) as usize);
        }
        let known = {
            let starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
            starts.partition_point(|&start| start <= row)
        };
        let mut epoch = known.saturating_sub(1) as u64;
        while self.start_of(epoch + 1) <= row {
            epoch += 1;
        }
        (epoch, (row - self.start_of(epoch)) as usize)
    }

    /// The rows of an epoch.
    fn epoch(&self, epoch: u64) -> Arc<Rows> {
        let epoch = if self.layout.shuffle { epoch } else { 0 };
        self.epochs.get(epoch, || self.build(epoch))
    }

    fn build(&self, epoch: u64) -> Rows {
        let Layout {
            seed,
            shuffle,
            packing,
            max_length,
        } = self.layout;
        let count = self.lengths.len() as u32;
        let samples = if shuffle {
            permutation(count, seed, epoch, "samples")
        } else {
            (0..count).collect()
        };
        if !packing {
            return Rows::one_each(samples);
        }
        let rows = pack(
            &samples,
            |sample| self.lengths[sample as usize] as usize,
            max_length,
            WINDOW,
        );
        if !shuffle {
            return rows;
        }
        let places = permutation(rows.len() as u32, seed, epoch, "rows");
        Rows::from_rows(places.iter().map(|&row| rows.row(row as usize)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Order;
    use super::super::testing::{dataset, recipe, sample, step};
    use crate::dataset::Dataset;
    use interlingua_recipes::{Mix, Recipe};
    use proptest::prelude::*;

    fn samples(lengths: &[usize]) -> Dataset {
        dataset(&lengths.iter().map(|&length| sample(1, 0, length)).collect::<Vec<_>>())
    }

    fn plain(shuffle: bool, packing: bool, batch_size: usize, gradient_accumulation: usize) -> Recipe {
        recipe(
            Mix::default(),
            None,
            shuffle,
            packing,
            (batch_size, gradient_accumulation),
        )
    }

    /// The order without an end.
    fn endless(lengths: &[usize], mut recipe: Recipe) -> Order {
        (recipe.train.epochs, recipe.train.steps) = (None, Some(1000));
        let batch = (recipe.train.batch_size, recipe.train.gradient_accumulation);
        (recipe.train.batch_size, recipe.train.gradient_accumulation) = (1, 1);
        let (mut order, _) = Order::for_recipe(&recipe, &samples(lengths), 1).unwrap();
        // However few rows there are.
        (order.batch_size, order.gradient_accumulation) = batch;
        order
    }

    fn ending(lengths: &[usize], mut recipe: Recipe, epochs: f64, world: usize) -> Option<(Order, u64)> {
        recipe.train.epochs = Some(epochs);
        Order::for_recipe(&recipe, &samples(lengths), world).ok()
    }

    #[test]
    fn file_order_goes_over_and_over() {
        let (order, steps) = ending(&[4; 5], plain(false, false, 3, 1), 2.0, 1).unwrap();
        let seen: Vec<u32> = (0..4).flat_map(|number| step(&order, number, 1)).flatten().collect();
        assert_eq!(seen, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]);
        assert_eq!(steps, 4);
    }

    #[test]
    fn tokens_and_epochs_become_steps() {
        let lengths = [10; 8];
        for (tokens, steps) in [(80, 4), (81, 5), (200, 10)] {
            let mut recipe = plain(true, false, 2, 1);
            (recipe.train.epochs, recipe.train.tokens) = (None, Some(tokens));
            let (order, counted) = Order::for_recipe(&recipe, &samples(&lengths), 1).unwrap();
            assert_eq!(counted, steps);
            assert!((order.fill_rate() - 10.0 / 32.0).abs() < 1e-12);
        }
        assert_eq!(ending(&lengths, plain(true, false, 2, 1), 1.25, 1).unwrap().1, 5);
        assert_eq!(ending(&lengths, plain(true, false, 2, 1), 1.0, 4).unwrap().1, 1);
        assert!(ending(&lengths, plain(true, false, 2, 1), 1.0, 5).is_none());
    }

    #[test]
    fn micro_batches_hold_the_samples_of_their_rows() {
        let data = samples(&[3, 4, 5, 6]);
        let mut recipe = plain(true, true, 2, 1);
        recipe.data.max_length = 9;
        let (order, _) = Order::for_recipe(&recipe, &data, 1).unwrap();
        let batch = &order.micro_batches(&data, 0, 0, 1)[0];
        assert_eq!((batch.rows, batch.sequences.len(), batch.tokens()), (2, 4, 18));
        assert_eq!(order.fill_rate(), 1.0);
        assert_eq!(batch, &order.micro_batch_at(&data, 0, 0, 1));
        for sequence in &batch.sequences {
            assert_eq!(sequence.length, data.length(sequence.sample as usize));
        }
    }

    #[test]
    fn samples_of_several_sequences_are_never_packed() {
        let pair = crate::tokenized_file::TokenizedSample {
            parts: vec![2, 3],
            ..sample(1, 0, 5)
        };
        let data = dataset(&[sample(1, 0, 4), pair, sample(1, 0, 6)]);
        let (order, steps) = Order::for_recipe(&plain(false, true, 3, 1), &data, 1).unwrap();
        let batch = &order.micro_batches(&data, 0, 0, 1)[0];
        assert_eq!((steps, batch.rows, batch.sequences.len()), (1, 3, 4));
    }

    proptest! {
        #[test]
        fn each_sample_exactly_once_per_epoch(
            lengths in prop::collection::vec(1_usize..=32, 1..80), packing: bool, batch in 1_usize..5, accumulation in 1_usize..4, world in 1_usize..4, epochs in 1_u64..4,
        ) {
            let made = ending(&lengths, plain(true, packing, batch, accumulation), epochs as f64, world);
            prop_assume!(made.is_some());
            let (order, steps) = made.unwrap();
            let mut counts = vec![0_u32; lengths.len()];
            for number in 0..steps {
                let rows = step(&order, number, world);
                prop_assert!(number + 1 == steps || rows.len() == batch * accumulation * world);
                prop_assert!(!rows.is_empty());
                rows.iter().flatten().for_each(|&sample| counts[sample as usize] += 1);
            }
            prop_assert!(step(&order, steps, world).is_empty());
            prop_assert!(counts.iter().all(|&count| u64::from(count) == epochs));
            let plan = order.plan_shares(&samples(&lengths), steps, world);
            prop_assert_eq!(plan.languages["en"].epochs, epochs as f64);
        }

        #[test]
        fn the_plan_counts_what_the_steps_read(lengths in prop::collection::vec(1_usize..=32, 1..80), shuffle: bool, packing: bool, steps in 1_u64..40) {
            let order = endless(&lengths, plain(shuffle, packing, 3, 2));
            let read: usize = (0..steps).flat_map(|number| step(&order, number, 1)).map(|row| row.len()).sum();
            let plan = order.plan_shares(&samples(&lengths), steps, 1);
            prop_assert!((plan.languages["en"].epochs - read as f64 / lengths.len() as f64).abs() < 1e-9);
        }

        #[test]
        fn batch_accumulation_and_ranks_see_the_same_rows(lengths in prop::collection::vec(1_usize..=32, 1..120), shuffle: bool, packing: bool, number in 0_u64..40) {
            let order = |batch, accumulation| endless(&lengths, plain(shuffle, packing, batch, accumulation));
            let whole = step(&order(8, 1), number, 1);
            prop_assert_eq!(whole.len(), 8);
            prop_assert_eq!(&whole, &step(&order(1, 8), number, 1));
            prop_assert_eq!(&whole, &step(&order(4, 1), number, 2));
            prop_assert_eq!(&whole, &step(&order(2, 2), number, 2));
        }

        #[test]
        fn asking_for_a_step_directly_equals_walking_to_it(lengths in prop::collection::vec(1_usize..=32, 1..120), packing: bool, number in 0_u64..60) {
            let order = || endless(&lengths, plain(true, packing, 3, 2));
            let walked = order();
            let walk: Vec<_> = (0..=number).map(|number| step(&walked, number, 1)).collect();
            prop_assert_eq!(&walk[number as usize], &step(&order(), number, 1));
            prop_assert_eq!(&walk[0], &step(&walked, 0, 1));
        }
    }
}
