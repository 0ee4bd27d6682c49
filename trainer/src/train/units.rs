//! Which micro-steps of a step run the main loss, and which an auxiliary loss in its place: arithmetic on numbers of
//! micro-steps, so that any step can be computed without those before it.

use interlingua_recipes::{EveryUnit, Recipe};

/// The plan of a run's micro-steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Units {
    micro_steps: u64,
    /// Whether there is a main loss.
    main: bool,
    /// `every` and `unit` of each auxiliary loss.
    auxiliary: Vec<(u64, EveryUnit)>,
    /// Main micro-steps before each micro-step of a period, and of the whole period as its last element.
    before: Vec<u64>,
}

impl Units {
    /// The plan of a recipe.
    pub fn of(recipe: &Recipe) -> Self {
        let auxiliary = recipe.objective.auxiliary.iter();
        Self::new(
            recipe.train.gradient_accumulation as u64,
            recipe.objective.reads_main_data(),
            auxiliary.map(|auxiliary| (auxiliary.every, auxiliary.unit)).collect(),
        )
    }

    fn new(micro_steps: u64, main: bool, auxiliary: Vec<(u64, EveryUnit)>) -> Self {
        let mut units = Self {
            micro_steps,
            main,
            auxiliary,
            before: vec![0],
        };
        let periods = units.auxiliary.iter().map(|(every, unit)| match unit {
            EveryUnit::Step => every.max(&1) * micro_steps,
            EveryUnit::MicroStep => *every.max(&1),
        });
        let period = periods.fold(micro_steps, least_common_multiple);
        let mut count = 0;
        for unit in 0..period {
            count += u64::from(units.is_main(unit));
            units.before.push(count);
        }
        units
    }

    fn replaces(&self, auxiliary: usize, unit: u64) -> bool {
        let (every, of) = self.auxiliary[auxiliary];
        let number = match of {
            EveryUnit::Step => unit / self.micro_steps,
            EveryUnit::MicroStep => unit,
        };
        every > 0 && (number + 1).is_multiple_of(every)
    }

    fn is_main(&self, unit: u64) -> bool {
        self.main && !(0..self.auxiliary.len()).any(|auxiliary| self.replaces(auxiliary, unit))
    }

    fn main_before(&self, unit: u64) -> u64 {
        let period = self.before.len() as u64 - 1;
        unit / period * self.before[period as usize] + self.before[(unit % period) as usize]
    }

    fn units_of(&self, step: u64) -> std::ops::Range<u64> {
        step * self.micro_steps..(step + 1) * self.micro_steps
    }

    /// For each micro-step of a step that runs the main loss: how many main micro-steps came before it in the run.
    pub fn main(&self, step: u64) -> Vec<u64> {
        let units = self.units_of(step).filter(|unit| self.is_main(*unit));
        units.map(|unit| self.main_before(unit)).collect()
    }

    /// Steps before this one that ran the main loss, where losses alternate by whole steps.
    pub fn main_steps_before(&self, step: u64) -> u64 {
        self.main_before(step * self.micro_steps) / self.micro_steps
    }

    /// For each micro-step of a step that runs an auxiliary loss on its own source: how many such came before it.
    pub fn auxiliary(&self, index: usize, step: u64) -> Vec<u64> {
        let (every, of) = self.auxiliary[index];
        let units = self
            .units_of(step)
            .filter(|unit| every == 0 || self.replaces(index, *unit));
        let number = |unit: u64| match of {
            _ if every == 0 => unit,
            EveryUnit::MicroStep => unit / every,
            EveryUnit::Step => unit / self.micro_steps / every * self.micro_steps + unit % self.micro_steps,
        };
        units.map(number).collect()
    }

    /// Steps after which the main loss has run for so many steps' worth of micro-steps.
    pub fn steps_for(&self, main_steps: u64) -> u64 {
        let period = self.before.len() as u64 - 1;
        let per_period = self.before[period as usize];
        if per_period == 0 || per_period == period {
            return main_steps;
        }
        let wanted = main_steps * self.micro_steps;
        // Whole periods before the one in which the last wanted micro-step lies.
        let whole = wanted.saturating_sub(1) / per_period;
        let left = wanted - whole * per_period;
        let rest = self.before.iter().position(|before| *before >= left).unwrap_or(0) as u64;
        (whole * period + rest).div_ceil(self.micro_steps)
    }

    /// Of the first `steps` steps of a run, how many steps' worth of micro-steps run the main loss.
    pub fn main_steps_in(&self, steps: u64) -> u64 {
        self.main_before(steps * self.micro_steps).div_ceil(self.micro_steps)
    }
}

fn least_common_multiple(one: u64, other: u64) -> u64 {
    let (mut a, mut b) = (one, other);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    one / a * other
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_auxiliary_losses_every_micro_step_is_main() {
        let units = Units::new(4, true, Vec::new());
        assert_eq!(units.main(3), [12, 13, 14, 15]);
        assert_eq!(units.steps_for(7), 7);
    }

    #[test]
    fn every_second_micro_step_aligns_and_the_main_data_stands_still_meanwhile() {
        let units = Units::new(4, true, vec![(2, EveryUnit::MicroStep)]);
        assert_eq!(units.main(0), [0, 1]);
        assert_eq!(units.auxiliary(0, 0), [0, 1]);
        assert_eq!(units.main(1), [2, 3]);
        assert_eq!(units.auxiliary(0, 5), [10, 11]);
        assert_eq!((units.steps_for(10), units.main_steps_in(20)), (20, 10));
    }

    #[test]
    fn every_third_step_aligns_as_a_whole() {
        let units = Units::new(2, true, vec![(3, EveryUnit::Step), (0, EveryUnit::Step)]);
        assert_eq!(
            [units.main(0), units.main(1), units.main(2)],
            [vec![0, 1], vec![2, 3], vec![]]
        );
        assert_eq!(units.main(3), [4, 5]);
        assert_eq!([units.auxiliary(0, 1), units.auxiliary(0, 2)], [vec![], vec![0, 1]]);
        assert_eq!(units.auxiliary(0, 5), [2, 3]);
        assert_eq!(units.auxiliary(1, 2), [4, 5]);
        assert_eq!((units.main_steps_before(3), units.main_steps_before(6)), (2, 4));
        assert_eq!((units.steps_for(2), units.steps_for(3), units.steps_for(4)), (2, 4, 5));
    }

    #[test]
    fn a_run_of_auxiliary_losses_alone_has_no_main_steps() {
        let units = Units::new(2, false, vec![(1, EveryUnit::Step)]);
        assert!(units.main(0).is_empty());
        assert_eq!(units.auxiliary(0, 4), [8, 9]);
        assert_eq!(units.steps_for(6), 6);
    }
}
