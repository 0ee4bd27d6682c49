//! SmolLM 3: Llama without rotary embedding in every fourth block (Bakouch et al., 2025; Yang et al., "Rope to Nope and Back Again",
//! 2025; `modeling_smollm3.py`).

use serde_json::Value;

use super::options::OptionName as Name;
use super::parts::{Defaults, Keys, llama_like, set_windows, sliding, window};
use super::{Family, llama};
use crate::blocks::Positions;
use crate::config::ModelConfig;
use crate::config_reader::Reader;
use crate::error::CheckpointError;

pub(super) static FAMILY: Family = Family {
    architecture: "SmolLM3ForCausalLM",
    model_type: "smollm3",
    models: "SmolLM 3",
    prefix: "model.",
    renamed: &[],
    options: &[
        (Name::Norm, "RMSNorm; `rms_norm_eps`"),
        (Name::GroupedQueries, "`num_key_value_heads` (4)"),
        (Name::HeadDim, "`head_dim`"),
        (Name::Biases, "`attention_bias` (all four), `mlp_bias`"),
        (
            Name::Positions,
            "rotary in all but every `no_rope_layer_interval`th (4) block, or as `no_rope_layers` says; none in the others; \
             `rope_theta` (2000000)",
        ),
        (
            Name::RopeScaling,
            "`rope_scaling` or `rope_parameters`: linear, dynamic, yarn, llama3",
        ),
        (
            Name::Window,
            "`use_sliding_window`, `sliding_window` in the blocks without positions, or as `layer_types` says",
        ),
        (Name::Mlp, "gated; `hidden_act`"),
        (Name::Head, "`tie_word_embeddings` (true)"),
    ],
    read,
};

const DEFAULTS: Defaults = Defaults {
    key_value_heads: Some(4),
    positions: 32_768,
    theta: 2_000_000.0,
    bos_token_id: Some(128_000),
    eos_token_id: Some(128_001),
    pad_token_id: Some(128_004),
    tied: true,
    ..Defaults::LLAMA
};

fn read(family: &'static Family, reader: &Reader) -> Result<ModelConfig, CheckpointError> {
    let (mut config, sizes) = llama_like(family, reader, &Keys::USUAL, &DEFAULTS)?;
    llama::set_biases(&mut config, reader)?;
    let rotated = rotated(reader, sizes.layers)?;
    for (block, rotated) in config.blocks.iter_mut().zip(&rotated) {
        block.attention.positions = if *rotated { Positions::Rope(0) } else { Positions::None };
    }
    let window = window(reader, None)?;
    let switched_on = reader.flag("use_sliding_window", false)?;
    let without_rope = |layer: usize| rotated.get(layer) == Some(&false);
    let sliding = sliding(reader, sizes.layers, |layer| {
        switched_on && window.is_some() && without_rope(layer)
    })?;
    // Kernels of Transformers differ where `layer_types` slides and the switch is off: some follow the one, some the other.
    if sliding.contains(&true) && !switched_on {
        return Err(reader.error("use_sliding_window", "true, as `layer_types` has \"sliding_attention\""));
    }
    if sliding.contains(&true) && window.is_none() {
        return Err(reader.error(
            "sliding_window",
            "a whole number above 0, as `layer_types` has \"sliding_attention\"",
        ));
    }
    set_windows(&mut config, window, &sliding);
    Ok(config)
}

/// Which blocks have rotary embedding: those with 1 in `no_rope_layers`; without it, all but every n-th one.
fn rotated(reader: &Reader, layers: usize) -> Result<Vec<bool>, CheckpointError> {
    let Some(list) = reader.present("no_rope_layers") else {
        let interval = reader.size_or("no_rope_layer_interval", Some(4))?;
        return Ok((1..=layers).map(|layer| !layer.is_multiple_of(interval)).collect());
    };
    let wrong = || {
        let expected = format!("a list of at least {layers} entries, 1 for each layer with rotary embedding, else 0");
        reader.error("no_rope_layers", &expected)
    };
    let list = list.as_array().filter(|list| list.len() >= layers).ok_or_else(wrong)?;
    let rotates = |entry: &Value| match entry.as_u64() {
        Some(1) => Ok(true),
        Some(0) => Ok(false),
        _ => Err(wrong()),
    };
    list.iter().take(layers).map(rotates).collect()
}
