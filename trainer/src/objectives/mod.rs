//! Objectives, one file each. The token losses know the factor of each log-probability beforehand; preference
//! objectives read the summed log-probabilities of whole answers; the auxiliary losses read hidden states at one
//! boundary, or distributions over options.

pub mod averages;
pub mod consistency;
pub mod goldfish;
pub mod kto;
pub mod lens;
pub mod middle_layer;
pub mod preference;
pub mod router;
pub mod sft;
pub mod word_alignment;
