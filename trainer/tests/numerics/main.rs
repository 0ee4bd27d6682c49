//! The numbers of the trainer against those of Transformers, PEFT and PyTorch (`tests/fixtures`), and what must not change them.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod adapters;
mod auxiliary;
mod engine;
mod families;
mod fixtures;
mod half_precision;
mod models;
mod objectives;
mod optimizers;
mod packed;
mod stacks;
