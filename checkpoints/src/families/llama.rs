//! Llama 2 and 3, and models of the same shape such as EuroLLM (Touvron et al., 2023; `modeling_llama.py`).

use super::Family;
use super::options::OptionName as Name;
use super::parts::{Defaults, Keys, llama_like, set_attention_biases};
use crate::blocks::MlpConfig;
use crate::config::ModelConfig;
use crate::config_reader::Reader;
use crate::error::CheckpointError;

pub(super) static FAMILY: Family = Family {
    architecture: "LlamaForCausalLM",
    model_type: "llama",
    models: "Llama 2, 3, 3.1, 3.2; EuroLLM; TinyLlama, SmolLM 2",
    prefix: "model.",
    renamed: &[],
    options: &[
        (Name::Norm, "RMSNorm; `rms_norm_eps`"),
        (Name::GroupedQueries, "`num_key_value_heads`"),
        (Name::HeadDim, "`head_dim`"),
        (Name::Biases, "`attention_bias` (all four), `mlp_bias`"),
        (Name::Positions, "rotary; `rope_theta`"),
        (
            Name::RopeScaling,
            "`rope_scaling` or `rope_parameters`: linear, dynamic, yarn, llama3",
        ),
        (Name::Mlp, "gated; `hidden_act`"),
        (Name::Head, "`tie_word_embeddings` (false)"),
    ],
    read,
};

fn read(family: &'static Family, reader: &Reader) -> Result<ModelConfig, CheckpointError> {
    let (mut config, _) = llama_like(family, reader, &Keys::USUAL, &Defaults::LLAMA)?;
    set_biases(&mut config, reader)?;
    Ok(config)
}

/// Biases as `attention_bias` and `mlp_bias` say.
pub(super) fn set_biases(config: &mut ModelConfig, reader: &Reader) -> Result<(), CheckpointError> {
    let bias = reader.flag("attention_bias", false)?;
    set_attention_biases(config, bias, bias);
    if reader.flag("mlp_bias", false)? {
        for block in &mut config.blocks {
            if let MlpConfig::Gated { layers, .. } = &mut block.mlp {
                let all = [&mut layers.gate, &mut layers.up, &mut layers.down];
                all.into_iter().for_each(|layer| layer.bias = true);
            }
        }
    }
    Ok(())
}
