//! Qwen3-MoE: Qwen 3 with a mixture of experts in some blocks (Yang et al., 2025; `modeling_qwen3_moe.py`).

use serde_json::Value;

use super::options::OptionName as Name;
use super::parts::{Defaults, GATED, Keys, activation, linear, llama_like, set_attention_biases, set_windows, window};
use super::{Family, qwen2};
use crate::blocks::{ExpertsConfig, MlpConfig, NormKind};
use crate::config::ModelConfig;
use crate::config_reader::Reader;
use crate::error::CheckpointError;

pub(super) static FAMILY: Family = Family {
    architecture: "Qwen3MoeForCausalLM",
    model_type: "qwen3_moe",
    models: "Qwen3-30B-A3B, Qwen3-235B-A22B",
    prefix: "model.",
    renamed: &[],
    options: &[
        (Name::Norm, "RMSNorm; `rms_norm_eps`"),
        (Name::QkNorm, "RMSNorm over each head, always"),
        (Name::GroupedQueries, "`num_key_value_heads` (4)"),
        (Name::HeadDim, "`head_dim`"),
        (Name::Biases, "`attention_bias` (all four)"),
        (Name::Positions, "rotary; `rope_theta`"),
        (
            Name::RopeScaling,
            "`rope_scaling` or `rope_parameters`: linear, dynamic, yarn, llama3",
        ),
        (
            Name::Window,
            "`use_sliding_window`, `sliding_window` (4096), in all blocks",
        ),
        (
            Name::Mlp,
            "gated; `hidden_act`; in the blocks of `mlp_only_layers` and those that `decoder_sparse_step` leaves",
        ),
        (
            Name::Experts,
            "`num_experts_per_tok` (8) of `num_experts` (128) of `moe_intermediate_size` (768); `norm_topk_prob` (false)",
        ),
        (Name::Head, "`tie_word_embeddings` (false)"),
    ],
    read,
};

fn read(family: &'static Family, reader: &Reader) -> Result<ModelConfig, CheckpointError> {
    let defaults = Defaults {
        key_value_heads: Some(4),
        ..qwen2::DEFAULTS
    };
    let (mut config, sizes) = llama_like(family, reader, &Keys::USUAL, &defaults)?;
    let bias = reader.flag("attention_bias", false)?;
    set_attention_biases(&mut config, bias, bias);
    if reader.flag("use_sliding_window", false)? {
        set_windows(&mut config, window(reader, Some(4096))?, &vec![true; sizes.layers]);
    }
    let dense = dense_layers(reader)?;
    let step = reader.size_or("decoder_sparse_step", Some(1))?;
    let inner = reader.size_or("moe_intermediate_size", Some(768))?;
    let experts = reader.size_or(reader.spelling(&["num_experts", "num_local_experts"]), Some(128))?;
    let top_k = top_k(reader, 8, experts)?;
    let normalized = reader.flag("norm_topk_prob", false)?;
    let activation = activation(reader, "hidden_act", defaults.activation)?;
    for (index, block) in config.blocks.iter_mut().enumerate() {
        let attention = format!("{}.self_attn", block.path);
        block.attention.qk_norm = Some(sizes.head_norms(&attention, NormKind::Rms { offset: 0.0 }));
        if dense.contains(&index) || !(index + 1).is_multiple_of(step) {
            continue;
        }
        let path = format!("{}.mlp", block.path);
        let expert = |index: usize| sizes.gated(&format!("{path}.experts.{index}"), GATED, inner, false);
        block.mlp = MlpConfig::Experts(ExpertsConfig {
            router: linear(format!("{path}.gate"), experts, sizes.hidden, false),
            experts: (0..experts).map(expert).collect(),
            top_k,
            normalized,
            activation,
        });
    }
    Ok(config)
}

/// How many experts a token passes through; no more than there are.
pub(super) fn top_k(reader: &Reader, default: usize, experts: usize) -> Result<usize, CheckpointError> {
    let top_k = reader.size_or("num_experts_per_tok", Some(default))?;
    if top_k > experts {
        return Err(reader.error(
            "num_experts_per_tok",
            &format!("at most the number of experts, {experts}"),
        ));
    }
    Ok(top_k)
}

fn dense_layers(reader: &Reader) -> Result<Vec<usize>, CheckpointError> {
    let Some(value) = reader.present("mlp_only_layers") else {
        return Ok(Vec::new());
    };
    let layers = value
        .as_array()
        .map(|list| list.iter().map(Value::as_u64).collect::<Option<Vec<u64>>>());
    let layers = layers
        .flatten()
        .ok_or_else(|| reader.error("mlp_only_layers", "a list of layers, counted from 0"))?;
    Ok(layers.into_iter().map(|layer| layer as usize).collect())
}
