//! Qwen 2 and 2.5: Llama with biases on queries, keys and values (Yang et al., 2024; `modeling_qwen2.py`).

use super::Family;
use super::options::OptionName as Name;
use super::parts::{Defaults, Keys, llama_like, set_attention_biases, set_windows, sliding, window};
use crate::config::ModelConfig;
use crate::config_reader::Reader;
use crate::error::CheckpointError;

pub(super) static FAMILY: Family = Family {
    architecture: "Qwen2ForCausalLM",
    model_type: "qwen2",
    models: "Qwen 2, 2.5; Sailor 2",
    prefix: "model.",
    renamed: &[],
    options: &[
        (Name::Norm, "RMSNorm; `rms_norm_eps`"),
        (Name::GroupedQueries, "`num_key_value_heads` (32)"),
        (Name::HeadDim, "`head_dim`"),
        (Name::Biases, "on queries, keys and values, always"),
        (Name::Positions, "rotary; `rope_theta`"),
        (
            Name::RopeScaling,
            "`rope_scaling` or `rope_parameters`: linear, dynamic, yarn, llama3",
        ),
        (
            Name::Window,
            "`use_sliding_window`, `sliding_window` (4096), `layer_types` or `max_window_layers` (28)",
        ),
        (Name::Mlp, "gated; `hidden_act`"),
        (Name::Head, "`tie_word_embeddings` (false)"),
    ],
    read,
};

/// Of both Qwens.
pub(super) const DEFAULTS: Defaults = Defaults {
    key_value_heads: Some(32),
    positions: 32_768,
    bos_token_id: None,
    eos_token_id: None,
    ..Defaults::LLAMA
};

fn read(family: &'static Family, reader: &Reader) -> Result<ModelConfig, CheckpointError> {
    let (mut config, sizes) = llama_like(family, reader, &Keys::USUAL, &DEFAULTS)?;
    set_attention_biases(&mut config, true, false);
    slide(&mut config, reader, sizes.layers)?;
    Ok(config)
}

/// A sliding window where it is switched on, in the blocks that `layer_types` or `max_window_layers` say.
pub(super) fn slide(config: &mut ModelConfig, reader: &Reader, layers: usize) -> Result<(), CheckpointError> {
    if !reader.flag("use_sliding_window", false)? {
        return Ok(());
    }
    let first = reader.count_or("max_window_layers", 28)?;
    let sliding = sliding(reader, layers, |layer| layer >= first)?;
    set_windows(config, window(reader, Some(4096))?, &sliding);
    Ok(())
}
