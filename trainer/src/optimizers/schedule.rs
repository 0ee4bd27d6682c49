//! Learning-rate schedules, each as `transformers.get_scheduler` computes it.

use std::f64::consts::PI;

use interlingua_recipes::{DecayType, Schedule, ScheduleKind};

/// The learning rate of an optimizer step, counted from 0, in a run of `total` steps whose full rate is `base`.
pub fn learning_rate(schedule: &Schedule, base: f64, step: u64, total: u64) -> f64 {
    base * factor(schedule, base, step as f64, total)
}

fn factor(schedule: &Schedule, base: f64, step: f64, total: u64) -> f64 {
    let warmup = schedule.warmup_steps(total) as f64;
    let decay = schedule.decay_steps(total) as f64;
    let total = total as f64;
    let with_minimum = |factor: f64| (factor * (1.0 - schedule.min_ratio) + schedule.min_ratio).max(0.0);
    if step < warmup {
        let factor = step / warmup.max(1.0);
        return if schedule.kind == ScheduleKind::Wsd {
            with_minimum(factor)
        } else {
            factor
        };
    }
    let progress = (step - warmup) / (total - warmup).max(1.0);
    match schedule.kind {
        ScheduleKind::Constant => 1.0,
        ScheduleKind::Linear => ((total - step) / (total - warmup).max(1.0)).max(0.0),
        ScheduleKind::Cosine => with_minimum(0.5 * (1.0 + (PI * progress).cos())),
        ScheduleKind::InverseSqrt => {
            let timescale = if warmup > 0.0 { warmup } else { 10_000.0 };
            1.0 / ((step + timescale - warmup) / timescale).sqrt()
        }
        ScheduleKind::Polynomial if step > total => schedule.lr_end / base,
        ScheduleKind::Polynomial => {
            let remaining = 1.0 - (step - warmup) / (total - warmup);
            ((base - schedule.lr_end) * remaining.powf(schedule.power) + schedule.lr_end) / base
        }
        ScheduleKind::Wsd => {
            let stable = total - warmup - decay;
            if step < warmup + stable {
                return 1.0;
            }
            if step >= warmup + stable + decay {
                return schedule.min_ratio;
            }
            let progress = (step - warmup - stable) / decay.max(1.0);
            with_minimum(match schedule.decay_type {
                DecayType::Linear => 1.0 - progress,
                DecayType::Cosine => 0.5 * (1.0 + (PI * progress).cos()),
                DecayType::OneMinusSqrt => 1.0 - progress.sqrt(),
            })
        }
    }
}
