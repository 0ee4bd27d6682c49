//! Samples drawn so that languages, or sources, have the shares that a recipe asks for.
//!
//! A mixture is one sequence of draws without an end. Which class is next follows from the draws before ([`super::fair`]); which sample
//! of it, from an order keyed by (seed, how often the class was passed through, name of the class), or the order of the files when
//! `shuffle = false`. With packing, windows of draws are packed into rows, which come in the order of their earliest draw; else
//! each draw is a row. A phase of a schedule begins with a window of its own.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use interlingua_recipes::{Mix, MixUnit};

use super::classes::Classes;
use super::curriculum::Curriculum;
use super::fair::Credits;
use super::{COUNTED_ROWS, Layout, MEASURED_ROWS, estimate};

use super::shares::{Share, Shares, units};
use crate::dataset::Dataset;
use crate::packing::pack;
use crate::permutation::permutation;
use crate::replay::Replay;

/// Full rows' worth of tokens that are packed together.
const WINDOW_ROWS: usize = 64;

/// What tells how far the run is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Clock {
    /// Rows that the whole run reads.
    Rows(u64),
    /// Units that the whole run draws.
    Units(u64),
    /// Tokens that the whole run reads.
    Tokens(u64),
}

/// A mixture of classes.
#[derive(Debug)]
pub(super) struct Mixture {
    course: Arc<Course>,
    rows: Mutex<Replay<Draws>>,
    tally: Mutex<Tally>,
}

/// All that decides the draws.
#[derive(Debug)]
struct Course {
    layout: Layout,
    classes: Classes,
    curriculum: Curriculum,
    clock: Clock,
    /// Tokens and units of each sample.
    lengths: Vec<u32>,
    units: Vec<u32>,
    /// Class of each sample.
    class_of: Vec<u32>,
}

/// One row of a mixture.
#[derive(Debug, Clone)]
pub(super) struct MixedRow {
    pub(super) samples: Vec<u32>,
    /// The phase that all its samples were drawn in, and how far the run was at the earliest of them.
    phase: usize,
    progress: f64,
}

/// What was drawn since the start of a phase.
#[derive(Debug, Default)]
struct Tally {
    rows: u64,
    phase: usize,
    progress: f64,
    units: Vec<u64>,
}

/// Units drawn per epoch.
pub(super) fn units_per_epoch(classes: &Classes, mix: &Mix) -> u64 {
    match mix.budget {
        0 => classes.all_units(),
        budget => budget,
    }
}

impl Mixture {
    /// The mixture of these classes. A run whose length is in units ends when they are drawn.
    pub(super) fn new(
        dataset: &Dataset,
        classes: Classes,
        curriculum: Curriculum,
        (unit, clock): (MixUnit, Clock),
        layout: Layout,
    ) -> Self {
        let mut class_of = vec![0; dataset.len()];
        for (class, samples) in (0..).zip(&classes.samples) {
            samples.iter().for_each(|&sample| class_of[sample as usize] = class);
        }
        let course = Arc::new(Course {
            layout,
            curriculum,
            clock,
            lengths: (0..dataset.len()).map(|sample| dataset.length(sample) as u32).collect(),
            units: (0..dataset.len())
                .map(|sample| units(dataset, sample, unit) as u32)
                .collect(),
            class_of,
            classes,
        });
        Mixture {
            rows: Mutex::new(Replay::new(Draws::new(course.clone()))),
            course,
            tally: Mutex::default(),
        }
    }

    /// The samples of the rows with these numbers; fewer at the end.
    pub(super) fn rows(&self, rows: std::ops::Range<u64>) -> Vec<Vec<u32>> {
        let mut replay = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        rows.map_while(|row| replay.get(row).map(|row| row.samples.clone()))
            .collect()
    }

    /// All rows from the first on.
    pub(super) fn all_rows(&self) -> impl Iterator<Item = MixedRow> {
        Draws::new(self.course.clone())
    }

    /// Rows that hold so many units.
    pub(super) fn rows_for_units(&self, units: u64) -> u64 {
        self.rows_for(units, &self.course.units)
    }

    /// Rows that hold so many tokens.
    pub(super) fn rows_for_tokens(&self, tokens: u64) -> u64 {
        self.rows_for(tokens, &self.course.lengths)
    }

    fn rows_for(&self, wanted: u64, of: &[u32]) -> u64 {
        let (mut sum, mut counted) = (0, 0);
        for row in self.all_rows() {
            if sum >= wanted {
                return counted;
            }
            if counted == COUNTED_ROWS {
                return estimate(wanted, sum, counted);
            }
            let samples = row.samples.iter();
            sum += samples.map(|&sample| u64::from(of[sample as usize])).sum::<u64>();
            counted += 1;
        }
        counted
    }

    /// Asked shares at the last of so many rows, and those reached since the start of the phase that it is in.
    pub(super) fn shares(&self, rows: u64) -> Shares {
        let course = &self.course;
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        if tally.rows > rows || tally.units.is_empty() {
            *tally = Tally::default();
            tally.units.resize(course.classes.names.len(), 0);
        }
        let mut replay = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        while tally.rows < rows
            && let Some(row) = replay.get(tally.rows)
        {
            if row.phase != tally.phase {
                tally.units.fill(0);
                tally.phase = row.phase;
            }
            tally.progress = row.progress;
            tally.rows += 1;
            for &sample in &row.samples {
                tally.units[course.class_of[sample as usize] as usize] += u64::from(course.units[sample as usize]);
            }
        }
        let mut asked = Vec::new();
        course.curriculum.shares(tally.phase, tally.progress, &mut asked);
        let all = tally.units.iter().sum::<u64>().max(1) as f64;
        let reached = tally.units.iter().map(|&units| units as f64 / all);
        let shares = asked
            .iter()
            .zip(reached)
            .map(|(&asked, reached)| Share { asked, reached });
        Shares {
            by: course.classes.names.iter().cloned().zip(shares).collect(),
        }
    }

    /// Draws of each sample, and the mean of the asked shares, that a run of so many rows is expected to have.
    pub(super) fn expected(&self, rows: u64) -> (Vec<f64>, Vec<(String, f64)>) {
        let course = &self.course;
        let units_of = |samples: &[u32]| -> u64 {
            let units = samples.iter().map(|&sample| u64::from(course.units[sample as usize]));
            units.sum()
        };
        let measured: u64 = self
            .all_rows()
            .take(MEASURED_ROWS)
            .map(|row| units_of(&row.samples))
            .sum();
        let all = measured as f64 / MEASURED_ROWS as f64 * rows as f64;
        let mut means = vec![0.0; course.classes.names.len()];
        let mut shares = Vec::new();
        for point in 0..MEASURED_ROWS {
            let progress = (point as f64 + 0.5) / MEASURED_ROWS as f64;
            course
                .curriculum
                .shares(course.curriculum.phase(progress), progress, &mut shares);
            for (mean, share) in means.iter_mut().zip(&shares) {
                *mean += share / MEASURED_ROWS as f64;
            }
        }
        let mut draws = vec![0.0; course.lengths.len()];
        for (samples, mean) in course.classes.samples.iter().zip(&means) {
            let epochs = mean * all / units_of(samples).max(1) as f64;
            samples.iter().for_each(|&sample| draws[sample as usize] = epochs);
        }
        (draws, course.classes.names.iter().cloned().zip(means).collect())
    }

    /// The mean of the asked shares over rows, weighted by their units, by class.
    pub(super) fn mean_asked(&self, rows: impl IntoIterator<Item = MixedRow>) -> Vec<(String, f64)> {
        let course = &self.course;
        let mut sums = vec![0.0; course.classes.names.len()];
        let (mut all, mut asked) = (0.0, Vec::new());
        for row in rows {
            course.curriculum.shares(row.phase, row.progress, &mut asked);
            let units: u64 = row
                .samples
                .iter()
                .map(|&sample| u64::from(course.units[sample as usize]))
                .sum();
            all += units as f64;
            for (sum, share) in sums.iter_mut().zip(&asked) {
                *sum += share * units as f64;
            }
        }
        let means = sums.into_iter().map(|sum| if all > 0.0 { sum / all } else { 0.0 });
        course.classes.names.iter().cloned().zip(means).collect()
    }
}

/// The rows of a mixture, from the first on.
#[derive(Debug, Clone)]
struct Draws {
    course: Arc<Course>,
    /// Where each class stands.
    places: Vec<Passing>,
    credits: Credits,
    phase: usize,
    shares: Vec<f64>,
    /// Units, tokens and rows of all windows so far.
    units: u64,
    tokens: u64,
    rows: u64,
    /// Rows of the window that are not given out yet.
    window: VecDeque<MixedRow>,
}

/// A class being passed through.
#[derive(Debug, Clone, Default)]
struct Passing {
    /// How often it was passed through before.
    pass: u64,
    place: usize,
    /// The samples in the order of this pass; empty before the first draw.
    order: Vec<u32>,
}

impl Draws {
    fn new(course: Arc<Course>) -> Self {
        let classes = course.classes.names.len();
        Draws {
            course,
            places: vec![Passing::default(); classes],
            credits: Credits::new(classes),
            phase: 0,
            shares: Vec::new(),
            units: 0,
            tokens: 0,
            rows: 0,
            window: VecDeque::new(),
        }
    }

    /// How far the run is, from 0 to 1, `tokens` into a window.
    fn progress(&self, tokens: u64) -> f64 {
        let part = match self.course.clock {
            Clock::Rows(rows) => {
                let begun = tokens as f64 / self.course.layout.max_length as f64;
                (self.rows as f64 + begun) / rows as f64
            }
            Clock::Units(units) => self.units as f64 / units as f64,
            Clock::Tokens(all) => self.tokens as f64 / all as f64,
        };
        part.min(1.0)
    }

    /// Whether the run's epochs are over. In file order batches are always full, so that drawing goes on.
    fn ended(&self) -> bool {
        matches!(self.course.clock, Clock::Units(units) if self.units >= units && self.course.layout.shuffle)
    }

    /// Packs the next window.
    fn fill(&mut self) {
        let course = self.course.clone();
        let Layout {
            packing, max_length, ..
        } = course.layout;
        let full = if packing { (WINDOW_ROWS * max_length) as u64 } else { 1 };
        let mut drawn: Vec<(u32, f64)> = Vec::new();
        let mut tokens = 0;
        while tokens < full && !self.ended() {
            let progress = self.progress(tokens);
            let phase = course.curriculum.phase(progress);
            if phase != self.phase {
                if !drawn.is_empty() {
                    break;
                }
                self.phase = phase;
                self.credits.restart();
            }
            course.curriculum.shares(phase, progress, &mut self.shares);
            let sample = self.draw();
            tokens += u64::from(course.lengths[sample as usize]);
            self.tokens += u64::from(course.lengths[sample as usize]);
            drawn.push((sample, progress));
        }
        let places: Vec<u32> = (0..drawn.len() as u32).collect();
        let length = |place: u32| course.lengths[drawn[place as usize].0 as usize] as usize;
        let rows = pack(&places, length, max_length, places.len());
        self.window = rows
            .iter()
            .map(|row| MixedRow {
                samples: row.iter().map(|&place| drawn[place as usize].0).collect(),
                phase: self.phase,
                progress: drawn[row[0] as usize].1,
            })
            .collect();
        self.rows += self.window.len() as u64;
    }

    /// Draws one sample.
    fn draw(&mut self) -> u32 {
        for class in 0..self.places.len() {
            if self.shares[class] > 0.0 {
                self.open(class);
            }
        }
        let next = |class: usize| {
            let passing = &self.places[class];
            passing.order[passing.place]
        };
        let units = &self.course.units;
        let class = self
            .credits
            .choose(&self.shares, |class| f64::from(units[next(class) as usize]));
        let sample = next(class);
        let units = units[sample as usize];
        self.credits.draw(class, f64::from(units), &self.shares);
        self.units += u64::from(units);
        self.places[class].place += 1;
        sample
    }

    /// Makes sure that a class has a next sample.
    fn open(&mut self, class: usize) {
        let passing = &mut self.places[class];
        if passing.place < passing.order.len() {
            return;
        }
        if !passing.order.is_empty() {
            passing.pass += 1;
            passing.place = 0;
        }
        let samples = &self.course.classes.samples[class];
        let Layout { seed, shuffle, .. } = self.course.layout;
        if shuffle {
            let purpose = format!("mix {}", self.course.classes.names[class]);
            let order = permutation(samples.len() as u32, seed, passing.pass, &purpose);
            passing.order = order.into_iter().map(|place| samples[place as usize]).collect();
        } else if passing.order.is_empty() {
            passing.order.clone_from(samples);
        }
    }
}

impl Iterator for Draws {
    type Item = MixedRow;

    fn next(&mut self) -> Option<MixedRow> {
        if self.window.is_empty() {
            self.fill();
        }
        self.window.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Order;
    use super::super::testing::{LANGUAGES, dataset, recipe, sample, step};
    use super::*;
    use crate::tokenized_file::TokenizedSample;
    use interlingua_recipes::{MixPhase, Recipe};
    use proptest::prelude::*;

    /// Samples of a language and a length; the first of each language is there in any case.
    fn samples(rows: &[(u32, usize)]) -> Vec<TokenizedSample> {
        let first = (0..LANGUAGES.len() as u32).map(|language| (language, 7));
        first
            .chain(rows.iter().copied())
            .zip(0..)
            .map(|((language, tokens), group)| sample(language, group, tokens))
            .collect()
    }

    fn mix(ratios: [f64; 4], unit: MixUnit) -> Mix {
        let ratios = LANGUAGES.iter().map(|&name| name.to_owned()).zip(ratios).collect();
        Mix {
            ratios,
            unit,
            ..Mix::default()
        }
    }

    fn steps(mix: Mix, shuffle: bool, packing: bool, batch: (usize, usize), steps: u64) -> Recipe {
        let mut recipe = recipe(mix, None, shuffle, packing, batch);
        recipe.train.epochs = None;
        recipe.train.steps = Some(steps);
        recipe
    }

    fn unit() -> impl Strategy<Value = MixUnit> {
        prop_oneof![
            Just(MixUnit::Tokens),
            Just(MixUnit::SupervisedTokens),
            Just(MixUnit::Samples)
        ]
    }

    fn rows() -> impl Strategy<Value = Vec<(u32, usize)>> {
        prop::collection::vec((0_u32..4, 2_usize..=32), 1..60)
    }

    #[test]
    fn a_class_is_seen_whole_before_it_is_seen_again() {
        let data = dataset(&samples(&[(0, 5), (0, 5), (0, 5), (1, 5)]));
        let recipe = steps(mix([0.5, 0.5, 0.0, 0.0], MixUnit::Samples), true, false, (2, 1), 8);
        let (order, _) = Order::for_recipe(&recipe, &data, 1).unwrap();
        let seen: Vec<u32> = (0..8).flat_map(|number| step(&order, number, 1)).flatten().collect();
        let of = |language| -> Vec<u32> {
            let mut seen = seen.clone();
            seen.retain(|&sample| data.language(sample as usize) == language);
            seen
        };
        for (language, count) in [(0, 4), (1, 2)] {
            for pass in of(language).chunks(count) {
                let mut pass = pass.to_vec();
                pass.sort_unstable();
                pass.dedup();
                assert_eq!(pass.len(), count);
            }
        }
        assert_ne!(of(0)[..4], of(0)[4..], "the second pass is in the order of the first");
        let plan = order.plan_shares(&data, 8, 1);
        assert_eq!((plan.languages["ar"].epochs, plan.languages["en"].epochs), (2.0, 4.0));
        assert_eq!(plan.languages["ar"].asked, Some(0.5));
        assert_eq!((plan.languages["ar"].reached, plan.languages["hi"].reached), (0.5, 0.0));
        assert_eq!(
            (plan.sources["memory"].asked, plan.sources["memory"].reached),
            (None, 1.0)
        );
    }

    #[test]
    fn file_order_stays() {
        let data = dataset(&samples(&[(0, 5), (1, 5), (0, 5)]));
        let recipe = steps(mix([1.0, 0.0, 0.0, 0.0], MixUnit::Tokens), false, false, (4, 1), 2);
        let (order, _) = Order::for_recipe(&recipe, &data, 1).unwrap();
        let seen: Vec<u32> = (0..2).flat_map(|number| step(&order, number, 1)).flatten().collect();
        assert_eq!(seen, [0, 4, 6, 0, 4, 6, 0, 4]);
    }

    #[test]
    fn an_epoch_is_the_budget_or_what_the_rows_hold() {
        let data = dataset(&samples(&[(0, 13), (1, 20)]));
        for (budget, epochs, units) in [(0, 1.0, 61), (0, 2.0, 122), (40, 1.0, 40), (1000, 0.5, 500)] {
            let mix = Mix {
                budget,
                ..mix([0.25; 4], MixUnit::Tokens)
            };
            let mut recipe = recipe(mix, None, true, true, (2, 1));
            recipe.train.epochs = Some(epochs);
            let (order, steps) = Order::for_recipe(&recipe, &data, 1).unwrap();
            let seen: Vec<Vec<Vec<u32>>> = (0..=steps).map(|number| step(&order, number, 1)).collect();
            assert!(seen[steps as usize].is_empty() && !seen[steps as usize - 1].is_empty());
            let tokens: usize = seen
                .iter()
                .flatten()
                .flatten()
                .map(|&sample| data.length(sample as usize))
                .sum();
            assert!((units..units + 20).contains(&tokens), "{tokens} of {units}");
        }
    }

    #[test]
    fn a_schedule_changes_the_shares_and_counts_anew() {
        let data = dataset(&samples(&[(0, 9), (1, 11), (0, 30), (1, 4)]));
        let phase = MixPhase {
            from: 0.5,
            ramp: 0.0,
            ratios: mix([0.0, 1.0, 0.0, 0.0], MixUnit::Tokens).ratios,
        };
        let mix = Mix {
            schedule: vec![phase],
            ..mix([0.75, 0.25, 0.0, 0.0], MixUnit::Tokens)
        };
        for packing in [false, true] {
            let recipe = steps(mix.clone(), true, packing, (4, 2), 200);
            let (order, _) = Order::for_recipe(&recipe, &data, 1).unwrap();
            let before = &order.shares(90, 1).unwrap().by["ar"];
            assert_eq!(before.asked, 0.75);
            assert!((before.reached - 0.75).abs() < 0.02, "{before:?}");
            let after = &order.shares(199, 1).unwrap().by["ar"];
            assert_eq!((after.asked, after.reached), (0.0, 0.0));
            assert_eq!(&order.shares(90, 1).unwrap().by["ar"], before);
            let planned = order.plan_shares(&data, 200, 1).languages["ar"];
            assert!((0.3..0.5).contains(&planned.reached), "{planned:?}");
            assert!((planned.asked.unwrap() - planned.reached).abs() < 0.02, "{planned:?}");
        }
    }

    #[test]
    fn a_ramp_moves_the_shares_over_the_run() {
        let data = dataset(&samples(&[(0, 9), (1, 11), (0, 30), (1, 4)]));
        let phase = MixPhase {
            from: 0.0,
            ramp: 1.0,
            ratios: mix([0.0, 1.0, 0.0, 0.0], MixUnit::Tokens).ratios,
        };
        let mix = Mix {
            schedule: vec![phase],
            ..mix([1.0, 0.0, 0.0, 0.0], MixUnit::Tokens)
        };
        let recipe = steps(mix, true, true, (4, 2), 300);
        let (order, _) = Order::for_recipe(&recipe, &data, 1).unwrap();
        let mut last = 1.0;
        for number in 0..300 {
            let share = order.shares(number, 1).unwrap().by["ar"];
            assert!(share.asked <= last && (share.asked - (1.0 - number as f64 / 300.0)).abs() < 0.05);
            last = share.asked;
        }
        let half = order.shares(149, 1).unwrap().by["ar"];
        assert!((half.reached - 0.75).abs() < 0.02, "{half:?}");
    }

    proptest! {
        /// After each draw of an unpacked mixture, in every unit, with samples of any length.
        #[test]
        fn no_language_is_further_from_its_share_than_one_row(rows in rows(), ratios in prop::array::uniform4(0.0_f64..1.0), unit in unit(), shuffle: bool) {
            prop_assume!(ratios.iter().sum::<f64>() > 0.1);
            let data = dataset(&samples(&rows));
            let recipe = steps(mix(ratios, unit), shuffle, false, (1, 1), 400);
            let (order, _) = Order::for_recipe(&recipe, &data, 1).unwrap();
            let mut drawn = [0.0; 4];
            let longest = (0..data.len()).map(|sample| units(&data, sample, unit)).max().unwrap() as f64;
            for number in 0..400 {
                let sample = step(&order, number, 1)[0][0] as usize;
                drawn[usize::from(data.language(sample))] += units(&data, sample, unit) as f64;
                let all: f64 = drawn.iter().sum();
                for (drawn, ratio) in drawn.iter().zip(ratios) {
                    let share = ratio / ratios.iter().sum::<f64>();
                    prop_assert!((drawn - share * all).abs() <= longest + 1e-6);
                }
            }
        }

        #[test]
        fn batch_accumulation_and_ranks_see_the_same_rows(rows in rows(), ratios in prop::array::uniform4(0.1_f64..1.0), unit in unit(), shuffle: bool, packing: bool, number in 0_u64..40) {
            let data = dataset(&samples(&rows));
            let order = |batch, world| {
                let phase = MixPhase { from: 0.3, ramp: 0.4, ratios: mix([0.1, 0.2, 0.3, 0.4], unit).ratios };
                let mix = Mix { schedule: vec![phase], ..mix(ratios, unit) };
                Order::for_recipe(&steps(mix, shuffle, packing, batch, 40), &data, world).unwrap().0
            };
            let walked = order((8, 1), 1);
            let walk: Vec<_> = (0..=number).map(|number| step(&walked, number, 1)).collect();
            let whole = &walk[number as usize];
            prop_assert_eq!(whole.len(), 8);
            prop_assert_eq!(whole, &step(&order((8, 1), 1), number, 1));
            prop_assert_eq!(whole, &step(&order((1, 8), 1), number, 1));
            prop_assert_eq!(whole, &step(&order((4, 1), 2), number, 2));
            prop_assert_eq!(whole, &step(&order((2, 2), 2), number, 2));
            prop_assert_eq!(&walk[0], &step(&walked, 0, 1));
            for row in whole {
                prop_assert!(row.len() == 1 || row.iter().map(|&sample| data.length(sample as usize)).sum::<usize>() <= 32);
            }
        }
    }

    #[test]
    fn what_a_very_long_run_reads_is_estimated() {
        let data = dataset(&samples(&[(0, 5), (1, 5)]));
        let mut asked = mix([0.2, 0.8, 0.0, 0.0], MixUnit::Tokens);
        asked.schedule = vec![MixPhase {
            from: 0.5,
            ramp: 0.0,
            ratios: [("ar".to_owned(), 0.6), ("en".to_owned(), 0.4)].into(),
        }];
        let mut recipe = recipe(asked, None, true, false, (8, 4));
        (recipe.train.epochs, recipe.train.tokens) = (None, Some(1_000_000_000_000));
        let (order, steps) = Order::for_recipe(&recipe, &data, 1).unwrap();
        // Rows of six tokens as a mean, 32 in a step.
        let expected = 1e12 / 6.0 / 32.0;
        assert!(
            (steps as f64 / expected - 1.0).abs() < 1e-3,
            "{steps} steps, expected {expected}"
        );
        let plan = order.plan_shares(&data, steps, 1);
        let ar = plan.languages["ar"];
        assert!(
            (ar.asked.unwrap() - 0.4).abs() < 1e-3 && (ar.reached - 0.4).abs() < 1e-3,
            "{ar:?}"
        );
        assert!((ar.epochs / (0.4 * 1e12 / 12.0) - 1.0).abs() < 1e-2, "{ar:?}");
    }
}
