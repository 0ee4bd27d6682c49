//! Shares as a function of how far the run is.

use interlingua_recipes::Mix;

use super::classes::Classes;
use crate::error::DataError;

/// The shares of every phase of the run.
#[derive(Debug)]
pub(super) struct Curriculum(Vec<Phase>);

#[derive(Debug)]
struct Phase {
    /// Progress at which it begins.
    from: f64,
    /// Part of the run over which shares move from `before` to `shares`.
    ramp: f64,
    before: Vec<f64>,
    shares: Vec<f64>,
}

impl Curriculum {
    /// What a recipe asks for. What a person should know is added to the notes.
    ///
    /// # Errors
    /// When it asks for a share of what is not there.
    pub(super) fn new(classes: &Classes, mix: &Mix, notes: &mut Vec<String>) -> Result<Self, DataError> {
        let shares = if mix.ratios.is_empty() {
            classes.at_temperature(mix.temperature.unwrap_or(1.0))
        } else {
            classes.of_ratios(&mix.ratios, "data.mix.ratios", notes)?
        };
        let mut curriculum = Curriculum(vec![Phase {
            from: 0.0,
            ramp: 0.0,
            before: shares.clone(),
            shares,
        }]);
        for (index, phase) in mix.schedule.iter().enumerate() {
            let key = format!("data.mix.schedule.{index}.ratios");
            let mut before = Vec::new();
            curriculum.shares(curriculum.0.len() - 1, phase.from, &mut before);
            curriculum.0.push(Phase {
                from: phase.from,
                ramp: phase.ramp,
                before,
                shares: classes.of_ratios(&phase.ratios, &key, notes)?,
            });
        }
        Ok(curriculum)
    }

    /// The phase at a progress between 0 and 1; 0 is the one before the first of the schedule.
    pub(super) fn phase(&self, progress: f64) -> usize {
        let later = self.0[1..].iter().take_while(|phase| phase.from <= progress);
        later.count()
    }

    /// The shares at a progress that lies in a phase; they sum to 1.
    pub(super) fn shares(&self, phase: usize, progress: f64, shares: &mut Vec<f64>) {
        let phase = &self.0[phase];
        let done = if phase.ramp > 0.0 {
            ((progress - phase.from) / phase.ramp).clamp(0.0, 1.0)
        } else {
            1.0
        };
        shares.clear();
        let both = phase.before.iter().zip(&phase.shares);
        shares.extend(both.map(|(before, after)| before + done * (after - before)));
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{dataset, sample};
    use super::*;
    use interlingua_recipes::MixPhase;

    #[test]
    fn shares_move_linearly_and_a_later_phase_starts_from_where_they_are() {
        let samples = [sample(0, 0, 5), sample(1, 0, 5)];
        let ratios = |ar: f64| [("ar".to_owned(), ar), ("en".to_owned(), 1.0 - ar)].into();
        let phase = |from, ramp, ar| MixPhase {
            from,
            ramp,
            ratios: ratios(ar),
        };
        let mix = Mix {
            ratios: ratios(0.0),
            schedule: vec![phase(0.2, 0.4, 1.0), phase(0.4, 0.2, 0.0), phase(0.8, 0.0, 1.0)],
            ..Mix::default()
        };
        let classes = Classes::new(&dataset(&samples), &mix);
        let curriculum = Curriculum::new(&classes, &mix, &mut Vec::new()).unwrap();
        let at = |progress| {
            let mut shares = Vec::new();
            curriculum.shares(curriculum.phase(progress), progress, &mut shares);
            shares[0]
        };
        for (progress, share) in [
            (0.0, 0.0),
            (0.19, 0.0),
            (0.2, 0.0),
            (0.3, 0.25),
            (0.4, 0.5),
            (0.5, 0.25),
            (0.7, 0.0),
            (0.8, 1.0),
            (1.0, 1.0),
        ] {
            assert!((at(progress) - share).abs() < 1e-9, "{progress}: {}", at(progress));
        }
    }
}
