//! Cohere's Command R and Aya 23, Aya Expanse 8B: attention and MLP side by side behind one LayerNorm without bias, interleaved
//! rotary pairs, scaled logits (`modeling_cohere.py`).

use super::Family;
use super::options::OptionName as Name;
use super::parts::{Defaults, Keys, llama_like, set_attention_biases, set_norms};
use crate::blocks::{NormConfig, NormKind};
use crate::config::ModelConfig;
use crate::config_reader::Reader;
use crate::error::CheckpointError;

pub(super) static FAMILY: Family = Family {
    architecture: "CohereForCausalLM",
    model_type: "cohere",
    models: "Command R, Aya 23, Aya Expanse",
    prefix: "model.",
    renamed: &[],
    options: &[
        (Name::Norm, "LayerNorm without bias; `layer_norm_eps` (1e-5)"),
        (Name::NormPlacement, "one for attention and MLP, always"),
        (
            Name::QkNorm,
            "`use_qk_norm`: LayerNorm over each head, with weights of its own",
        ),
        (Name::GroupedQueries, "`num_key_value_heads`"),
        (Name::HeadDim, "`head_dim`"),
        (Name::Biases, "`attention_bias` (all four)"),
        (Name::Positions, "rotary, neighbours as pairs; `rope_theta` (500000)"),
        (
            Name::RopeScaling,
            "`rope_scaling` or `rope_parameters`: linear, dynamic, yarn, llama3",
        ),
        (Name::Mlp, "gated; `hidden_act`"),
        (Name::Residual, "attention and MLP side by side, always"),
        (Name::Head, "`tie_word_embeddings` (true); `logit_scale` (0.0625)"),
    ],
    read,
};

/// Of both Coheres.
pub(super) const DEFAULTS: Defaults = Defaults {
    positions: 8192,
    theta: 500_000.0,
    epsilon: 1e-5,
    bos_token_id: Some(5),
    eos_token_id: Some(255_001),
    pad_token_id: Some(0),
    tied: true,
    ..Defaults::LLAMA
};

fn read(family: &'static Family, reader: &Reader) -> Result<ModelConfig, CheckpointError> {
    let (mut config, epsilon) = common(family, reader, &DEFAULTS)?;
    if reader.flag("use_qk_norm", false)? {
        for block in &mut config.blocks {
            let (attention, path) = (&mut block.attention, &block.path);
            let heads = [("q_norm", attention.heads), ("k_norm", attention.kv_heads)];
            attention.qk_norm = Some(heads.map(|(name, heads)| NormConfig {
                path: format!("{path}.self_attn.{name}"),
                shape: vec![heads, attention.head_dim],
                kind: NormKind::Layer { bias: false },
                epsilon,
            }));
        }
    }
    Ok(config)
}

/// What both Coheres share; also the epsilon of their norms.
pub(super) fn common(
    family: &'static Family,
    reader: &Reader,
    defaults: &Defaults,
) -> Result<(ModelConfig, f64), CheckpointError> {
    let keys = Keys {
        epsilon: "layer_norm_eps",
        ..Keys::USUAL
    };
    let (mut config, sizes) = llama_like(family, reader, &keys, defaults)?;
    set_norms(&mut config, NormKind::Layer { bias: false });
    let bias = reader.flag("attention_bias", false)?;
    set_attention_biases(&mut config, bias, bias);
    for block in &mut config.blocks {
        block.parallel = true;
        block.mlp_norm = None;
    }
    config.ropes.iter_mut().for_each(|rope| rope.interleaved = true);
    config.head.scale = Some(reader.number("logit_scale", Some(0.0625))?);
    Ok((config, sizes.epsilon))
}
