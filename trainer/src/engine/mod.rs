//! The block-wise engine: no autodiff graph ever spans more than one part (embedding, block, head).
//!
//! The forward pass runs part by part; the backward pass visits the parts in reverse, each with its small graph kept
//! (`recompute = none`) or made again from the part's input (`recompute = block`).

pub mod forward;
pub mod gradients;
pub mod head;
pub mod inputs;
pub mod keeping;
pub mod languages;
pub mod pass;
pub mod routing;
pub mod step;
pub mod tiles;
