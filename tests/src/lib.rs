//! End-to-end tests of the interlingua binary.

pub mod binary;
