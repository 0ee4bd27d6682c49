//! Gemma: Llama with `1 + weight` in its norms, a scaled embedding and GeGLU (Gemma Team, 2024; `modeling_gemma.py`).

use super::Family;
use super::options::OptionName as Name;
use super::parts::{Defaults, Keys, activation, llama_like, set_attention_biases, set_norms};
use crate::blocks::{ActivationKind, MlpConfig, NormKind};
use crate::config::ModelConfig;
use crate::config_reader::Reader;
use crate::error::CheckpointError;

pub(super) static FAMILY: Family = Family {
    architecture: "GemmaForCausalLM",
    model_type: "gemma",
    models: "Gemma 2B and 7B",
    prefix: "model.",
    renamed: &[],
    options: &[
        (Name::Norm, "RMSNorm with `1 + weight`; `rms_norm_eps`"),
        (Name::GroupedQueries, "`num_key_value_heads` (16)"),
        (Name::HeadDim, "`head_dim` (256)"),
        (Name::Biases, "`attention_bias` (all four)"),
        (Name::Positions, "rotary; `rope_theta`"),
        (
            Name::RopeScaling,
            "`rope_scaling` or `rope_parameters`: linear, dynamic, yarn, llama3",
        ),
        (
            Name::Mlp,
            "gated; `hidden_act` (gelu_pytorch_tanh, which \"gelu\" means here too)",
        ),
        (Name::Embedding, "times sqrt(`hidden_size`), always"),
        (Name::Head, "`tie_word_embeddings` (true)"),
    ],
    read,
};

/// Of all Gemmas.
pub(super) const DEFAULTS: Defaults = Defaults {
    key_value_heads: Some(16),
    head_dim: Some(256),
    positions: 8192,
    bos_token_id: Some(2),
    eos_token_id: Some(1),
    pad_token_id: Some(0),
    tied: true,
    activation: "gelu_pytorch_tanh",
    ..Defaults::LLAMA
};

fn read(family: &'static Family, reader: &Reader) -> Result<ModelConfig, CheckpointError> {
    let (mut config, _) = llama_like(family, reader, &Keys::USUAL, &DEFAULTS)?;
    let named = activation(reader, "hidden_act", DEFAULTS.activation)?;
    // The first files say "gelu" and mean the approximation.
    let meant = if named == ActivationKind::Gelu {
        ActivationKind::GeluTanh
    } else {
        named
    };
    common(&mut config, reader, meant)?;
    Ok(config)
}

/// What all Gemmas share: norms, scaled embedding, biases.
pub(super) fn common(
    config: &mut ModelConfig,
    reader: &Reader,
    activation: ActivationKind,
) -> Result<(), CheckpointError> {
    set_norms(config, NormKind::Rms { offset: 1.0 });
    config.embedding.scale = Some((config.hidden_size as f64).sqrt());
    let bias = reader.flag("attention_bias", false)?;
    set_attention_biases(config, bias, bias);
    for block in &mut config.blocks {
        if let MlpConfig::Gated { activation: own, .. } = &mut block.mlp {
            *own = activation;
        }
    }
    if reader.flag("use_bidirectional_attention", false)? {
        return Err(reader.error("use_bidirectional_attention", "false: only causal models are trained"));
    }
    Ok(())
}
