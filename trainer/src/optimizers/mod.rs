//! Optimizers and learning-rate schedules.

pub mod adamw;
pub mod moments;
pub mod schedule;
