//! Models: a list of parts, stem (embedding), blocks, head.

pub mod decoder;
pub mod load;
pub mod model;
mod weights;

pub use model::Model;
