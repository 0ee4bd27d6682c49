//! Gemma 2: Gemma with norms behind attention and MLP too, soft-caps and a window in every other block (Gemma Team, 2024;
//! `modeling_gemma2.py`).

use super::options::OptionName as Name;
use super::parts::{Defaults, Keys, activation, llama_like, set_windows, sliding, window};
use super::{Family, gemma};
use crate::blocks::NormConfig;
use crate::config::ModelConfig;
use crate::config_reader::Reader;
use crate::error::CheckpointError;

pub(super) static FAMILY: Family = Family {
    architecture: "Gemma2ForCausalLM",
    model_type: "gemma2",
    models: "Gemma 2; BgGPT",
    prefix: "model.",
    renamed: &[],
    options: &[
        (Name::Norm, "RMSNorm with `1 + weight`; `rms_norm_eps`"),
        (Name::NormPlacement, "before and behind attention and MLP, always"),
        (Name::GroupedQueries, "`num_key_value_heads` (4)"),
        (Name::HeadDim, "`head_dim` (256)"),
        (Name::Biases, "`attention_bias` (all four)"),
        (Name::Positions, "rotary; `rope_theta`"),
        (
            Name::RopeScaling,
            "`rope_scaling` or `rope_parameters`: linear, dynamic, yarn, llama3",
        ),
        (
            Name::Window,
            "`sliding_window` (4096) in every other block, or as `layer_types` says",
        ),
        (Name::ScoreScale, "`query_pre_attn_scalar` (256) to the power of -1/2"),
        (Name::ScoreSoftcap, "`attn_logit_softcapping` (50)"),
        (Name::Mlp, "gated; `hidden_activation` (gelu_pytorch_tanh)"),
        (Name::Embedding, "times sqrt(`hidden_size`), always"),
        (
            Name::Head,
            "`tie_word_embeddings` (true); `final_logit_softcapping` (30)",
        ),
    ],
    read,
};

fn read(family: &'static Family, reader: &Reader) -> Result<ModelConfig, CheckpointError> {
    let defaults = Defaults {
        key_value_heads: Some(4),
        ..gemma::DEFAULTS
    };
    let (mut config, sizes) = llama_like(family, reader, &Keys::USUAL, &defaults)?;
    gemma::common(
        &mut config,
        reader,
        activation(reader, "hidden_activation", defaults.activation)?,
    )?;
    norms_behind(&mut config);
    let sliding = sliding(reader, sizes.layers, |layer| layer.is_multiple_of(2))?;
    set_windows(&mut config, window(reader, Some(4096))?, &sliding);
    scale_scores(&mut config, reader)?;
    let softcap = cap(reader, "attn_logit_softcapping", Some(50.0))?;
    for block in &mut config.blocks {
        block.attention.softcap = softcap;
    }
    config.head.softcap = cap(reader, "final_logit_softcapping", Some(30.0))?;
    Ok(config)
}

/// `post_attention_layernorm` stands behind the attention here, and two norms of their own around the MLP.
pub(super) fn norms_behind(config: &mut ModelConfig) {
    for block in &mut config.blocks {
        let named = |norm: &Option<NormConfig>, name: &str| {
            norm.clone().map(|norm| NormConfig {
                path: format!("{}.{name}", block.path),
                ..norm
            })
        };
        let (before, behind) = (
            named(&block.mlp_norm, "pre_feedforward_layernorm"),
            named(&block.mlp_norm, "post_feedforward_layernorm"),
        );
        block.attention_output_norm = block.mlp_norm.take();
        (block.mlp_norm, block.mlp_output_norm) = (before, behind);
    }
}

/// Scores are scaled with `query_pre_attn_scalar` rather than the head's size.
pub(super) fn scale_scores(config: &mut ModelConfig, reader: &Reader) -> Result<(), CheckpointError> {
    let scalar = reader.number("query_pre_attn_scalar", Some(256.0))?;
    if scalar <= 0.0 {
        return Err(reader.error("query_pre_attn_scalar", "a number above 0"));
    }
    for block in &mut config.blocks {
        block.attention.scale = scalar.powf(-0.5);
    }
    Ok(())
}

/// A soft-cap: the default where the key is absent, none where it is null.
pub(super) fn cap(reader: &Reader, key: &str, default: Option<f64>) -> Result<Option<f64>, CheckpointError> {
    let cap = match reader.json.get(key) {
        None => default,
        Some(_) => reader.optional_number(key)?,
    };
    match cap {
        Some(cap) if cap <= 0.0 => Err(reader.error(key, "a number above 0, or null")),
        cap => Ok(cap),
    }
}
