//! Files of models and runs, in and out, on the host: Hugging Face model folders, PEFT adapters, checkpoints of a run.
//!
//! Nothing here knows of tensors on a device. [`model_folder`] reads models, [`config`] their shape, which [`families`] fill in, [`peft`] and [`own_adapter`] adapters,
//! [`hub`] finds a model by its id, [`merge`] makes one model or adapter of several, [`packed`] keeps matrices in few
//! bits, [`mod@write`] writes safetensors,
//! [`run_state`] keeps checkpoints complete or absent.

pub mod atomic;
pub mod blocks;
pub mod codes;
pub mod config;
mod config_reader;
pub mod dtype;
pub mod error;
pub mod families;
#[cfg(feature = "hub")]
mod fetch;
pub mod hub;
pub mod merge;
pub mod model_folder;
pub mod own_adapter;
pub mod packed;
pub mod peft;
pub mod peft_experts;
pub mod quantization_config;
pub mod rope;
mod rope_config;
pub mod run_state;
pub mod tensors;
pub mod write;

pub use error::CheckpointError;
