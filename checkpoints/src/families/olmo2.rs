//! OLMo 2: Llama with norms behind attention and MLP in place of those before, and norms of all queries and keys (OLMo Team, 2024;
//! `modeling_olmo2.py`).

use super::Family;
use super::options::OptionName as Name;
use super::parts::{Defaults, Keys, llama_like, set_attention_biases};
use crate::blocks::{NormConfig, NormKind};
use crate::config::ModelConfig;
use crate::config_reader::Reader;
use crate::error::CheckpointError;

pub(super) static FAMILY: Family = Family {
    architecture: "Olmo2ForCausalLM",
    model_type: "olmo2",
    models: "OLMo 2",
    prefix: "model.",
    renamed: &[],
    options: &[
        (Name::Norm, "RMSNorm; `rms_norm_eps` (1e-5)"),
        (Name::NormPlacement, "behind attention and MLP, always"),
        (Name::QkNorm, "RMSNorm over all heads at once, always"),
        (Name::GroupedQueries, "`num_key_value_heads`"),
        (Name::HeadDim, "`head_dim`"),
        (Name::Biases, "`attention_bias` (all four)"),
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
    let defaults = Defaults {
        epsilon: 1e-5,
        bos_token_id: None,
        eos_token_id: Some(50_279),
        pad_token_id: Some(1),
        ..Defaults::LLAMA
    };
    let (mut config, sizes) = llama_like(family, reader, &Keys::USUAL, &defaults)?;
    let bias = reader.flag("attention_bias", false)?;
    set_attention_biases(&mut config, bias, bias);
    for block in &mut config.blocks {
        block.input_norm = None;
        block.attention_output_norm = block.mlp_norm.take();
        let behind = format!("{}.post_feedforward_layernorm", block.path);
        block.mlp_output_norm = Some(sizes.norm(behind, NormKind::Rms { offset: 0.0 }));
        let (queries, keys) = (block.attention.query_size(), block.attention.key_size());
        block.attention.qk_norm = Some([("q_norm", queries), ("k_norm", keys)].map(|(name, size)| NormConfig {
            path: format!("{}.self_attn.{name}", block.path),
            shape: vec![size],
            kind: NormKind::Rms { offset: 0.0 },
            epsilon: sizes.epsilon,
        }));
    }
    Ok(config)
}
