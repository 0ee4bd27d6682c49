//! End-to-end tests of the interlingua binary.

pub mod adapter_run;
pub mod binary;
pub mod hosts;
pub mod numbers;
pub mod ranks;
pub mod tiny;
