//! Dynamic loss scaling (Micikevicius et al., "Mixed Precision Training", 2018), with the numbers of `torch.amp.GradScaler`:
//! gradients below 6e-8 are zero in f16, so the loss is multiplied by as much as gradients bear without overflowing.

use serde::{Deserialize, Serialize};

/// Good steps after which the scale grows.
const GROWTH_INTERVAL: u64 = 2000;
/// Below this, gradients overflow whatever they are multiplied by: the run has diverged.
const LEAST: f64 = 1.0 / 1024.0;
/// Above this, a scale would not be a number of f32.
const LARGEST: f64 = (1u128 << 126) as f64;

/// The loss scale of a run, and what it has met.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    /// What the loss is multiplied by.
    pub scale: f64,
    /// Steps since the scale last changed.
    pub good_steps: u64,
    /// Steps of the whole run that were skipped.
    pub skipped_steps: u64,
}

impl Default for LossScale {
    fn default() -> Self {
        Self {
            scale: 65_536.0,
            good_steps: 0,
            skipped_steps: 0,
        }
    }
}

impl LossScale {
    /// After a step whose gradients are finite: every 2,000 of them in a row, the scale doubles.
    pub fn keep(&mut self) {
        self.good_steps += 1;
        if self.good_steps == GROWTH_INTERVAL {
            self.good_steps = 0;
            self.scale = (2.0 * self.scale).min(LARGEST);
        }
    }

    /// After a step whose gradients are not: the scale is halved and the step counts as skipped. False when the scale has
    /// become too small for that to help; then nothing is changed.
    pub fn back_off(&mut self) -> bool {
        if self.scale / 2.0 < LEAST {
            return false;
        }
        self.scale /= 2.0;
        self.good_steps = 0;
        self.skipped_steps += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_after_two_thousand_good_steps_in_a_row() {
        let mut scale = LossScale::default();
        (0..1999).for_each(|_| scale.keep());
        assert_eq!(scale.scale, 65_536.0);
        assert!(scale.back_off());
        assert_eq!((scale.scale, scale.skipped_steps), (32_768.0, 1));
        (0..1999).for_each(|_| scale.keep());
        assert_eq!(scale.scale, 32_768.0);
        scale.keep();
        assert_eq!((scale.scale, scale.good_steps), (65_536.0, 0));
    }

    #[test]
    fn ends_at_its_floor() {
        let mut scale = LossScale::default();
        let halvings = (0..100).take_while(|_| scale.back_off()).count();
        assert_eq!((halvings, scale.scale, scale.skipped_steps), (26, 1.0 / 1024.0, 26));
    }

    #[test]
    fn never_exceeds_what_f32_holds() {
        let mut scale = LossScale {
            scale: LARGEST,
            ..LossScale::default()
        };
        (0..2000).for_each(|_| scale.keep());
        assert!((scale.scale as f32).is_finite());
    }
}
