//! Which samples each step sees: a pure function of (seed, epoch, step), without any iterator state.
//!
//! Training reads an endless stream of rows. Epoch `e` takes the samples in an order keyed by (seed, e) (in file order when
//! `shuffle = false`), packs windows of them into rows first-fit-decreasing ([`crate::packing`]), or takes one sample a row when
//! `packing = false`, and then shuffles the rows, keyed the same way, so that a window's long and short rows mix. Rows of one
//! epoch follow those of the epoch before. With `B = batch_size × gradient_accumulation × world`, step `s` reads the rows
//! `s·B .. (s + 1)·B`, and micro-batch `m` of rank `r` the `batch_size` rows from `(m·world + r)·batch_size` on. So
//! (batch 8, accumulation 1), (1, 8) and two ranks of batch 4 see the same rows in a step.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use interlingua_recipes::Recipe;

use crate::batch::MicroBatch;
use crate::dataset::Dataset;
use crate::error::DataError;
use crate::packing::{Rows, pack};
use crate::permutation::permutation;

/// Samples that are packed together: large enough for rows of 99 % and more, small enough to pack in milliseconds.
const WINDOW: usize = 8192;
/// Epochs whose rows are kept; a step can lie across several when there are few rows.
const KEPT_EPOCHS: usize = 4;

/// What the order of samples depends on, besides the lengths of the samples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderSettings {
    /// The recipe's seed.
    pub seed: u64,
    /// `false`: file order, over and over.
    pub shuffle: bool,
    /// `false`: one sample a row.
    pub packing: bool,
    /// The most tokens of a row.
    pub max_length: usize,
    /// Rows per device and micro-batch.
    pub batch_size: usize,
    /// Micro-batches per step and device.
    pub gradient_accumulation: usize,
}

/// The order in which training reads a dataset.
#[derive(Debug)]
pub struct Order {
    settings: OrderSettings,
    lengths: Vec<u32>,
    /// Rows after which the run ends; none: never.
    end: Option<u64>,
    cache: Mutex<Cache>,
}

#[derive(Debug, Default)]
struct Cache {
    /// Global index of the first row of each epoch up to the furthest one asked for.
    starts: Vec<u64>,
    epochs: HashMap<u64, Arc<Rows>>,
}

impl OrderSettings {
    /// What a recipe says.
    pub fn from_recipe(recipe: &Recipe) -> Self {
        OrderSettings {
            seed: recipe.seed,
            shuffle: recipe.data.shuffle,
            packing: recipe.data.packing,
            max_length: recipe.data.max_length,
            batch_size: recipe.train.batch_size,
            gradient_accumulation: recipe.train.gradient_accumulation,
        }
    }
}

impl Order {
    /// The endless order of a dataset.
    pub fn new(dataset: &Dataset, settings: OrderSettings) -> Self {
        let lengths = (0..dataset.len()).map(|sample| dataset.length(sample) as u32).collect();
        Order {
            settings,
            lengths,
            end: None,
            cache: Mutex::default(),
        }
    }

    /// The same order, ending after this many epochs, so that each sample is seen exactly that often: the last step takes only the
    /// rows that are left, and some of its micro-batches can be empty. In file order (`shuffle = false`) batches are always full and nothing changes.
    pub fn ending_after(mut self, epochs: f64) -> Self {
        self.end = self.settings.shuffle.then(|| self.rows_in(epochs));
        self
    }

    /// Checks that a step has enough rows to read, none of them twice.
    ///
    /// # Errors
    /// When the data is shuffled and an epoch has fewer rows than a step reads.
    pub fn check(&self, world: usize) -> Result<(), DataError> {
        let (rows, wanted) = (self.rows_per_epoch(), self.rows_per_step(world));
        if !self.settings.shuffle || rows >= wanted {
            return Ok(());
        }
        let OrderSettings {
            batch_size,
            gradient_accumulation,
            ..
        } = self.settings;
        let samples = self.lengths.len();
        Err(DataError::BatchTooLarge {
            wanted,
            batch_size,
            gradient_accumulation,
            world,
            samples,
            rows,
        })
    }

    /// Rows of one step over all ranks.
    pub fn rows_per_step(&self, world: usize) -> u64 {
        (self.settings.batch_size * self.settings.gradient_accumulation * world) as u64
    }

    /// Rows of epoch 0. With fewer than [`Order::rows_per_step`] a step would see samples twice.
    pub fn rows_per_epoch(&self) -> u64 {
        self.epoch(0).len() as u64
    }

    /// Steps that read this many epochs; the last one may be partly filled (see [`Order::ending_after`]).
    pub fn steps_for_epochs(&self, epochs: f64, world: usize) -> u64 {
        self.rows_in(epochs).div_ceil(self.rows_per_step(world)).max(1)
    }

    /// Steps after which at least this many tokens have been read, supervised or not.
    pub fn steps_for_tokens(&self, tokens: u64, world: usize) -> u64 {
        let per_epoch: u64 = self.lengths.iter().map(|&length| u64::from(length)).sum();
        if per_epoch == 0 {
            return 1;
        }
        let whole = tokens / per_epoch;
        let mut left = tokens % per_epoch;
        let mut rows = self.start_of(whole);
        for row in self.epoch(whole).iter() {
            if left == 0 {
                break;
            }
            rows += 1;
            left = left.saturating_sub(self.row_tokens(row));
        }
        rows.div_ceil(self.rows_per_step(world)).max(1)
    }

    /// The epoch that a step begins in, as a number with a fraction: 1.5 is half-way through the second epoch.
    pub fn epoch_at(&self, step: u64, world: usize) -> f64 {
        if self.lengths.is_empty() {
            return 0.0;
        }
        let (epoch, row) = self.locate(step * self.rows_per_step(world));
        epoch as f64 + row as f64 / self.epoch(epoch).len() as f64
    }

    /// Share of the places of epoch 0's rows that hold a token: tokens / (rows × `max_length`). What is left of it costs nothing, as
    /// rows are not padded; it says how evenly full they are.
    pub fn fill_rate(&self) -> f64 {
        let rows = self.epoch(0);
        let tokens: u64 = rows.iter().map(|row| self.row_tokens(row)).sum();
        tokens as f64 / (rows.len().max(1) * self.settings.max_length) as f64
    }

    /// One micro-batch of one rank. `step` counts from 0, `micro` from 0 to `gradient_accumulation`. Past the end of the run it is empty.
    pub fn micro_batch(&self, dataset: &Dataset, step: u64, micro: usize, rank: usize, world: usize) -> MicroBatch {
        let mut batch = MicroBatch::default();
        for row in self.rows(step, micro, rank, world) {
            batch.rows += 1;
            for sample in row {
                batch.push_sample(dataset, sample as usize);
            }
        }
        batch
    }

    /// The samples of a micro-batch, row by row, as [`Order::micro_batch`] lays them out.
    pub fn rows(&self, step: u64, micro: usize, rank: usize, world: usize) -> Vec<Vec<u32>> {
        if self.lengths.is_empty() {
            return Vec::new();
        }
        let batch_size = self.settings.batch_size;
        let first = step * self.rows_per_step(world) + ((micro * world + rank) * batch_size) as u64;
        let end = self.end.unwrap_or(u64::MAX).min(first + batch_size as u64);
        (first..end)
            .map(|row| {
                let (epoch, row) = self.locate(row);
                self.epoch(epoch).row(row).to_vec()
            })
            .collect()
    }

    fn row_tokens(&self, row: &[u32]) -> u64 {
        row.iter().map(|&sample| u64::from(self.lengths[sample as usize])).sum()
    }

    /// Whether all epochs have the same number of rows.
    fn even(&self) -> bool {
        !self.settings.shuffle || !self.settings.packing
    }

    /// Rows of so many epochs; a part of an epoch is rounded to the nearest row.
    fn rows_in(&self, epochs: f64) -> u64 {
        let whole = epochs.max(0.0).floor();
        let part = epochs.max(0.0) - whole;
        let mut rows = self.start_of(whole as u64);
        if part > 0.0 {
            rows += (part * self.epoch(whole as u64).len() as f64).round() as u64;
        }
        rows
    }

    /// Global index of the first row of an epoch.
    fn start_of(&self, epoch: u64) -> u64 {
        if self.even() {
            return epoch * self.epoch(0).len() as u64;
        }
        let known = {
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            if cache.starts.is_empty() {
                cache.starts.push(0);
            }
            cache.starts.len() as u64
        };
        for before in known.saturating_sub(1)..epoch {
            let rows = self.epoch(before).len() as u64;
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            if cache.starts.len() as u64 == before + 1 {
                let start = cache.starts[before as usize];
                cache.starts.push(start + rows);
            }
        }
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.starts[epoch as usize]
    }

    /// The epoch of a global row, and its index in that epoch.
    fn locate(&self, row: u64) -> (u64, usize) {
        if self.even() {
            let rows = self.epoch(0).len() as u64;
            return (row / rows, (row % rows) as usize);
        }
        let known = self.cache.lock().unwrap_or_else(PoisonError::into_inner).starts.clone();
        let mut epoch = known.partition_point(|&start| start <= row).saturating_sub(1) as u64;
        while self.start_of(epoch + 1) <= row {
            epoch += 1;
        }
        (epoch, (row - self.start_of(epoch)) as usize)
    }

    /// The rows of an epoch.
    fn epoch(&self, epoch: u64) -> Arc<Rows> {
        let epoch = if self.settings.shuffle { epoch } else { 0 };
        if let Some(rows) = self
            .cache
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .epochs
            .get(&epoch)
        {
            return rows.clone();
        }
        let rows = Arc::new(self.build(epoch));
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.epochs.len() >= KEPT_EPOCHS {
            let furthest = cache
                .epochs
                .keys()
                .copied()
                .filter(|&kept| kept != 0)
                .max_by_key(|kept| kept.abs_diff(epoch));
            furthest.and_then(|kept| cache.epochs.remove(&kept));
        }
        cache.epochs.insert(epoch, rows.clone());
        rows
    }

    fn build(&self, epoch: u64) -> Rows {
        let OrderSettings {
            seed,
            shuffle,
            packing,
            max_length,
            ..
        } = self.settings;
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
    use super::*;
    use crate::tokenized_file::TokenizedSample;
    use proptest::prelude::*;

    fn dataset(lengths: &[usize]) -> Dataset {
        let samples: Vec<TokenizedSample> = lengths
            .iter()
            .map(|&length| TokenizedSample {
                input_ids: vec![1; length],
                labels: vec![1; length],
                ..Default::default()
            })
            .collect();
        Dataset::in_memory(&["en"], &samples).unwrap()
    }

    fn order(
        lengths: &[usize],
        shuffle: bool,
        packing: bool,
        batch_size: usize,
        gradient_accumulation: usize,
    ) -> Order {
        let settings = OrderSettings {
            seed: 3,
            shuffle,
            packing,
            max_length: 32,
            batch_size,
            gradient_accumulation,
        };
        Order::new(&dataset(lengths), settings)
    }

    /// All rows of a step over micro-batches and ranks, in global order.
    fn step(order: &Order, step: u64, world: usize) -> Vec<Vec<u32>> {
        let micro_batches = order.settings.gradient_accumulation;
        let turns = (0..micro_batches).flat_map(|micro| (0..world).map(move |rank| (micro, rank)));
        turns
            .flat_map(|(micro, rank)| order.rows(step, micro, rank, world))
            .collect()
    }

    #[test]
    fn file_order_goes_over_and_over() {
        let order = order(&[4; 5], false, false, 3, 1).ending_after(2.0);
        let seen: Vec<u32> = (0..4).flat_map(|number| step(&order, number, 1)).flatten().collect();
        assert_eq!(seen, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]);
        assert_eq!(order.steps_for_epochs(2.0, 1), 4);
    }

    #[test]
    fn tokens_and_epochs_become_steps() {
        let order = order(&[10; 8], true, false, 2, 1);
        assert_eq!(order.steps_for_tokens(80, 1), 4);
        assert_eq!(order.steps_for_tokens(81, 1), 5);
        assert_eq!(order.steps_for_tokens(200, 1), 10);
        assert_eq!(order.steps_for_epochs(1.25, 1), 5);
        assert_eq!(order.steps_for_epochs(1.0, 4), 1);
        assert_eq!(order.epoch_at(6, 1), 1.5);
        assert!((order.fill_rate() - 10.0 / 32.0).abs() < 1e-12);
    }

    #[test]
    fn micro_batches_hold_the_samples_of_their_rows() {
        let data = dataset(&[3, 4, 5, 6]);
        let settings = OrderSettings {
            seed: 1,
            shuffle: true,
            packing: true,
            max_length: 9,
            batch_size: 2,
            gradient_accumulation: 1,
        };
        let order = Order::new(&data, settings);
        let batch = order.micro_batch(&data, 0, 0, 0, 1);
        assert_eq!((batch.rows, batch.sequences.len(), batch.tokens()), (2, 4, 18));
        assert_eq!(order.fill_rate(), 1.0);
        for sequence in &batch.sequences {
            assert_eq!(sequence.length, data.length(sequence.sample as usize));
        }
    }

    proptest! {
        #[test]
        fn each_sample_exactly_once_per_epoch(
            lengths in prop::collection::vec(1_usize..=32, 1..80), packing: bool, batch in 1_usize..5, accumulation in 1_usize..4, world in 1_usize..4, epochs in 1_u64..4,
        ) {
            let order = order(&lengths, true, packing, batch, accumulation).ending_after(epochs as f64);
            let steps = order.steps_for_epochs(epochs as f64, world);
            let mut counts = vec![0; lengths.len()];
            for number in 0..steps {
                let rows = step(&order, number, world);
                prop_assert!(number + 1 == steps || rows.len() as u64 == order.rows_per_step(world));
                prop_assert!(!rows.is_empty());
                rows.iter().flatten().for_each(|&sample| counts[sample as usize] += 1);
            }
            prop_assert!(step(&order, steps, world).is_empty());
            prop_assert!(counts.iter().all(|&count| count == epochs));
        }

        #[test]
        fn batch_accumulation_and_ranks_see_the_same_rows(lengths in prop::collection::vec(1_usize..=32, 1..120), shuffle: bool, packing: bool, number in 0_u64..40) {
            let whole = step(&order(&lengths, shuffle, packing, 8, 1), number, 1);
            prop_assert_eq!(whole.len(), 8);
            prop_assert_eq!(&whole, &step(&order(&lengths, shuffle, packing, 1, 8), number, 1));
            prop_assert_eq!(&whole, &step(&order(&lengths, shuffle, packing, 4, 1), number, 2));
            prop_assert_eq!(&whole, &step(&order(&lengths, shuffle, packing, 2, 2), number, 2));
        }

        #[test]
        fn asking_for_a_step_directly_equals_walking_to_it(lengths in prop::collection::vec(1_usize..=32, 1..120), packing: bool, number in 0_u64..60) {
            let walked = order(&lengths, true, packing, 3, 2);
            let walk: Vec<_> = (0..=number).map(|step_number| step(&walked, step_number, 1)).collect();
            prop_assert_eq!(&walk[number as usize], &step(&order(&lengths, true, packing, 3, 2), number, 1));
            prop_assert_eq!(&walk[0], &step(&walked, 0, 1));
        }
    }
}
