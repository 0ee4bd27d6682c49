//! Models: a list of parts, stem (embedding), blocks, head.

pub mod decoder;
pub mod load;
pub mod model;

pub use model::Model;
