//! Mixtral: Mistral with a mixture of experts in every block (Jiang et al., 2024; `modeling_mixtral.py`).

use super::options::OptionName as Name;
use super::parts::{Defaults, Keys, activation, linear, llama_like, set_windows, window};
use super::{Family, qwen3_moe};
use crate::blocks::{ExpertsConfig, MlpConfig};
use crate::config::ModelConfig;
use crate::config_reader::Reader;
use crate::error::CheckpointError;

pub(super) static FAMILY: Family = Family {
    architecture: "MixtralForCausalLM",
    model_type: "mixtral",
    models: "Mixtral 8x7B and 8x22B",
    prefix: "model.",
    renamed: &[],
    options: &[
        (Name::Norm, "RMSNorm; `rms_norm_eps` (1e-5)"),
        (Name::GroupedQueries, "`num_key_value_heads` (8)"),
        (Name::HeadDim, "`head_dim`"),
        (Name::Positions, "rotary; `rope_theta` (1000000)"),
        (
            Name::RopeScaling,
            "`rope_scaling` or `rope_parameters`: linear, dynamic, yarn, llama3",
        ),
        (Name::Window, "`sliding_window` (none) in all blocks"),
        (
            Name::Experts,
            "`num_experts_per_tok` (2) of `num_local_experts` (8), shares normalised, always; `hidden_act`",
        ),
        (Name::Head, "`tie_word_embeddings` (false)"),
    ],
    read,
};

fn read(family: &'static Family, reader: &Reader) -> Result<ModelConfig, CheckpointError> {
    let defaults = Defaults {
        key_value_heads: Some(8),
        positions: 131_072,
        theta: 1_000_000.0,
        epsilon: 1e-5,
        ..Defaults::LLAMA
    };
    let (mut config, sizes) = llama_like(family, reader, &Keys::USUAL, &defaults)?;
    set_windows(&mut config, window(reader, None)?, &vec![true; sizes.layers]);
    let inner = reader.size("intermediate_size")?;
    let activation = activation(reader, "hidden_act", defaults.activation)?;
    let experts = reader.size_or(reader.spelling(&["num_local_experts", "num_experts"]), Some(8))?;
    let top_k = qwen3_moe::top_k(reader, 2, experts)?;
    for block in &mut config.blocks {
        let path = format!("{}.block_sparse_moe", block.path);
        let expert = |index: usize| sizes.gated(&format!("{path}.experts.{index}"), ["w1", "w3", "w2"], inner, false);
        block.mlp = MlpConfig::Experts(ExpertsConfig {
            router: linear(format!("{path}.gate"), experts, sizes.hidden, false),
            experts: (0..experts).map(expert).collect(),
            top_k,
            normalized: true,
            activation,
        });
    }
    Ok(config)
}
