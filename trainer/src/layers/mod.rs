//! Layers that blocks are built of.

pub mod linear;
pub mod norm;
