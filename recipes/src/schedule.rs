//! `[schedule]`: the learning rate over the run, as `transformers.get_scheduler` has it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The learning rate over the run. Every kind is as in `transformers.get_scheduler`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// The curve after warm-up.
    pub kind: ScheduleKind,
    /// Linear warm-up from 0: a fraction below 1 of the run, or a whole number of steps.
    #[schemars(range(min = 0.0))]
    pub warmup: f64,
    /// Where cosine and wsd end, as a share of the learning rate.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_ratio: f64,
    /// polynomial: the exponent.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub power: f64,
    /// polynomial: the learning rate at the end (a rate, not a share).
    #[schemars(range(min = 0.0))]
    pub lr_end: f64,
    /// wsd: length of the decay at the end: a fraction below 1 of the run, or a whole number of steps.
    #[schemars(range(min = 0.0))]
    pub num_decay_steps: f64,
    /// wsd: the curve of the decay.
    pub decay_type: DecayType,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            kind: ScheduleKind::Cosine,
            warmup: 0.03,
            min_ratio: 0.0,
            power: 1.0,
            lr_end: 1e-7,
            num_decay_steps: 0.1,
            decay_type: DecayType::Cosine,
        }
    }
}

impl Schedule {
    /// Steps of warm-up in a run of `total_steps`; a fraction is rounded up, as in `TrainingArguments.get_warmup_steps`.
    #[must_use]
    pub fn warmup_steps(&self, total_steps: u64) -> u64 {
        fraction_or_steps(self.warmup, total_steps)
    }

    /// Steps of the final decay of `wsd` in a run of `total_steps`; a fraction is rounded up.
    #[must_use]
    pub fn decay_steps(&self, total_steps: u64) -> u64 {
        fraction_or_steps(self.num_decay_steps, total_steps)
    }
}

fn fraction_or_steps(value: f64, total_steps: u64) -> u64 {
    if value < 1.0 {
        (value * total_steps as f64).ceil() as u64
    } else {
        value as u64
    }
}

/// The curves after warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// The full rate to the end.
    Constant,
    /// A straight line to 0.
    Linear,
    /// Half a cosine wave, down to min_ratio.
    Cosine,
    /// Falls with the root of the step.
    InverseSqrt,
    /// A power of the remaining share, down to lr_end.
    Polynomial,
    /// Warm-up, stable, decay: the full rate, then a decay over num_decay_steps at the end.
    Wsd,
}

/// The curves of the final decay of `wsd`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DecayType {
    /// A straight line.
    #[serde(rename = "linear")]
    Linear,
    /// Half a cosine wave.
    #[serde(rename = "cosine")]
    Cosine,
    /// One minus the root of the share of the decay that is done.
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
}

#[cfg(test)]
mod tests {
    use super::Schedule;

    #[test]
    fn fractions_are_rounded_up_and_steps_are_steps() {
        let steps = |warmup, total| {
            Schedule {
                warmup,
                ..Schedule::default()
            }
            .warmup_steps(total)
        };
        assert_eq!(steps(0.0, 100), 0);
        assert_eq!(steps(0.03, 100), 3);
        assert_eq!(steps(0.03, 101), 4);
        assert_eq!(steps(1.0, 100), 1);
        assert_eq!(steps(500.0, 100), 500);
    }
}
