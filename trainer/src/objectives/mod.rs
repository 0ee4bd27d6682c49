//! Objectives, one file each.

pub mod sft;
