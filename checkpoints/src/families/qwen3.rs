//! Qwen 3, dense: Llama with norms over each head of queries and keys (Yang et al., 2025; `modeling_qwen3.py`).

use super::options::OptionName as Name;
use super::parts::{Defaults, Keys, llama_like, set_attention_biases};
use super::{Family, qwen2};
use crate::blocks::NormKind;
use crate::config::ModelConfig;
use crate::config_reader::Reader;
use crate::error::CheckpointError;

pub(super) static FAMILY: Family = Family {
    architecture: "Qwen3ForCausalLM",
    model_type: "qwen3",
    models: "Qwen 3, dense",
    prefix: "model.",
    renamed: &[],
    options: &[
        (Name::Norm, "RMSNorm; `rms_norm_eps`"),
        (Name::QkNorm, "RMSNorm over each head, always"),
        (Name::GroupedQueries, "`num_key_value_heads` (32)"),
        (Name::HeadDim, "`head_dim` (128)"),
        (Name::Biases, "`attention_bias` (all four)"),
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

fn read(family: &'static Family, reader: &Reader) -> Result<ModelConfig, CheckpointError> {
    let defaults = Defaults {
        head_dim: Some(128),
        ..qwen2::DEFAULTS
    };
    let (mut config, sizes) = llama_like(family, reader, &Keys::USUAL, &defaults)?;
    let bias = reader.flag("attention_bias", false)?;
    set_attention_biases(&mut config, bias, bias);
    for block in &mut config.blocks {
        let path = format!("{}.self_attn", block.path);
        block.attention.qk_norm = Some(sizes.head_norms(&path, NormKind::Rms { offset: 0.0 }));
    }
    qwen2::slide(&mut config, reader, sizes.layers)?;
    Ok(config)
}
