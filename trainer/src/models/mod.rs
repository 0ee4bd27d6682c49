//! Models: a list of parts, stem (embedding), blocks, head.

pub mod attention;
pub mod decoder;
pub mod experts;
pub mod load;
pub mod mlp;
pub mod model;
pub mod stem;
mod weights;

pub use model::Model;
