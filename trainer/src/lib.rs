//! Training: models, adapters, objectives, the block-wise engine, optimizers, the run loop, generation and export.

pub mod adapters;
pub mod collectives;
pub mod device;
pub mod engine;
pub mod error;
pub mod evaluate;
pub mod export;
pub mod generate;
pub mod layers;
pub mod memory;
pub mod models;
pub mod objectives;
pub mod ops;
pub mod optimizers;
pub mod parameters;
pub mod pieces;
pub mod plan;
pub mod random;
pub mod spread;
pub mod train;
pub mod verify;

pub use error::TrainError;
