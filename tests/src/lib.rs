//! End-to-end tests of the interlingua binary.

pub mod binary;
pub mod tiny;
