//! Mistral: Llama with a sliding window in every block (Jiang et al., 2023; `modeling_mistral.py`).

use super::Family;
use super::options::OptionName as Name;
use super::parts::{Defaults, Keys, llama_like, set_windows, window};
use crate::config::ModelConfig;
use crate::config_reader::Reader;
use crate::error::CheckpointError;

pub(super) static FAMILY: Family = Family {
    architecture: "MistralForCausalLM",
    model_type: "mistral",
    models: "Mistral 7B, Mistral Nemo, Ministral",
    prefix: "model.",
    renamed: &[],
    options: &[
        (Name::Norm, "RMSNorm; `rms_norm_eps`"),
        (Name::GroupedQueries, "`num_key_value_heads` (8)"),
        (Name::HeadDim, "`head_dim`"),
        (Name::Positions, "rotary; `rope_theta`"),
        (
            Name::RopeScaling,
            "`rope_scaling` or `rope_parameters`: linear, dynamic, yarn, llama3",
        ),
        (Name::Window, "`sliding_window` (4096) in all blocks; null: none"),
        (Name::Mlp, "gated; `hidden_act`"),
        (Name::Head, "`tie_word_embeddings` (false)"),
    ],
    read,
};

fn read(family: &'static Family, reader: &Reader) -> Result<ModelConfig, CheckpointError> {
    let defaults = Defaults {
        key_value_heads: Some(8),
        positions: 131_072,
        ..Defaults::LLAMA
    };
    let (mut config, sizes) = llama_like(family, reader, &Keys::USUAL, &defaults)?;
    set_windows(&mut config, window(reader, Some(4096))?, &vec![true; sizes.layers]);
    Ok(config)
}
