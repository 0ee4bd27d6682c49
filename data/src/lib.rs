//! Data for Interlingua: files of many formats become samples, samples become tokens, tokens become packed micro-batches.
//!
//! Host data only: nothing here knows of devices or tensors. A micro-batch ([`batch::MicroBatch`]) is a flat list of tokens with
//! sequence boundaries, without padding, and which samples a step sees ([`order::Order`]) is a pure function of recipe and data.

pub mod batch;
mod builders;
pub mod cache;
pub mod dataset;
pub mod error;
mod formats;
mod holdout;
pub mod language;
pub mod language_name;
pub mod mask;
pub mod normalize;
pub mod order;
pub mod packing;
pub mod pairs;
mod permutation;
pub mod prepare;
pub mod preview;
mod python_json;
mod readers;
mod replay;
pub mod report;
mod representation;
pub mod sample;
pub mod source;
pub mod task;
pub mod template;
pub mod tokenize;
mod tokenized_file;
pub mod tokenizer;

pub use error::DataError;
