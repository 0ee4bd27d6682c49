//! Apertus: Llama with QK-norm and an MLP without a gate under xIELU (Apertus project, 2025; `modeling_apertus.py`).

use serde_json::json;

use super::Family;
use super::options::OptionName as Name;
use super::parts::{Defaults, Keys, activation, llama_like, set_attention_biases};
use crate::blocks::{ActivationKind, MlpConfig, NormKind};
use crate::config::ModelConfig;
use crate::config_reader::Reader;
use crate::error::CheckpointError;

pub(super) static FAMILY: Family = Family {
    architecture: "ApertusForCausalLM",
    model_type: "apertus",
    models: "Apertus 8B and 70B",
    prefix: "model.",
    renamed: &[],
    options: &[
        (Name::Norm, "RMSNorm; `rms_norm_eps` (1e-5)"),
        (Name::QkNorm, "RMSNorm over each head, always"),
        (Name::GroupedQueries, "`num_key_value_heads`"),
        (Name::HeadDim, "`head_dim`"),
        (Name::Biases, "`attention_bias` (all four)"),
        (Name::Positions, "rotary; `rope_theta` (12000000)"),
        (
            Name::RopeScaling,
            "`rope_scaling` or `rope_parameters`: linear, dynamic, yarn, llama3; without either llama3 with factor 8, original length 8192",
        ),
        (Name::Mlp, "not gated; `hidden_act` (xielu)"),
        (Name::Head, "`tie_word_embeddings` (false)"),
    ],
    read,
};

fn read(family: &'static Family, reader: &Reader) -> Result<ModelConfig, CheckpointError> {
    let defaults = Defaults {
        positions: 65_536,
        theta: 12_000_000.0,
        epsilon: 1e-5,
        pad_token_id: Some(3),
        ..Defaults::LLAMA
    };
    let mut json = reader.without(&["hidden_act"]);
    if let (None, Some(map)) = (
        reader.present("rope_parameters").or(reader.present("rope_scaling")),
        json.as_object_mut(),
    ) {
        let usual = json!({"rope_type": "llama3", "rope_theta": defaults.theta, "factor": 8.0, "low_freq_factor": 1.0,
                           "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
        map.insert("rope_parameters".to_owned(), usual);
    }
    let (mut config, sizes) = llama_like(family, &Reader { json: &json, ..*reader }, &Keys::USUAL, &defaults)?;
    let activation = match reader.present("hidden_act").map_or(Some("xielu"), |name| name.as_str()) {
        Some("xielu") => ActivationKind::Xielu,
        _ => activation(reader, "hidden_act", "xielu")?,
    };
    let bias = reader.flag("attention_bias", false)?;
    set_attention_biases(&mut config, bias, bias);
    for block in &mut config.blocks {
        let path = &block.path;
        let norms = [
            (&mut block.input_norm, "attention_layernorm"),
            (&mut block.mlp_norm, "feedforward_layernorm"),
        ];
        for (norm, name) in norms {
            *norm = Some(sizes.norm(format!("{path}.{name}"), NormKind::Rms { offset: 0.0 }));
        }
        let head_norms = sizes.head_norms(&format!("{path}.self_attn"), NormKind::Rms { offset: 0.0 });
        block.attention.qk_norm = Some(head_norms);
        if let MlpConfig::Gated { layers, .. } = &block.mlp {
            block.mlp = MlpConfig::Plain {
                up: layers.up.clone(),
                down: layers.down.clone(),
                activation,
                activation_path: format!("{path}.mlp.act_fn"),
            };
        }
    }
    Ok(config)
}
