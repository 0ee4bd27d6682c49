//! Phi-3 and Phi-4-mini: Llama with fused projections, partial rotary embedding and longrope (Abdin et al., 2024; `modeling_phi3.py`).

use super::Family;
use super::options::OptionName as Name;
use super::parts::{Defaults, Keys, linear, llama_like, set_windows, window};
use crate::blocks::{FusedOrder, MlpConfig, Projections};
use crate::config::ModelConfig;
use crate::config_reader::Reader;
use crate::error::CheckpointError;
use crate::rope::Rope;
use crate::rope_config::RopeDefaults;

pub(super) static FAMILY: Family = Family {
    architecture: "Phi3ForCausalLM",
    model_type: "phi3",
    models: "Phi-3 mini and medium, Phi-3.5 mini, Phi-4, Phi-4 mini",
    prefix: "model.",
    renamed: &[],
    options: &[
        (Name::Norm, "RMSNorm; `rms_norm_eps` (1e-5)"),
        (Name::GroupedQueries, "`num_key_value_heads`"),
        (Name::HeadDim, "`head_dim`"),
        (
            Name::Fused,
            "queries, keys, values in one layer, gate and up in one, always",
        ),
        (
            Name::Positions,
            "rotary, on `partial_rotary_factor` (1) of a head; `rope_theta`",
        ),
        (
            Name::RopeScaling,
            "`rope_scaling` or `rope_parameters`: longrope (also spelt su, yarn) with `short_factor`, `long_factor`; `original_max_position_embeddings` (4096)",
        ),
        (Name::Window, "`sliding_window` (none) in all blocks"),
        (Name::Mlp, "gated; `hidden_act`"),
        (Name::Head, "`tie_word_embeddings` (false)"),
    ],
    read,
};

fn read(family: &'static Family, reader: &Reader) -> Result<ModelConfig, CheckpointError> {
    let defaults = Defaults {
        positions: 4096,
        epsilon: 1e-5,
        eos_token_id: Some(32_000),
        pad_token_id: Some(32_000),
        ..Defaults::LLAMA
    };
    let flat = reader.without(&["rope_parameters", "rope_scaling", "partial_rotary_factor"]);
    let (mut config, sizes) = llama_like(family, &Reader { json: &flat, ..*reader }, &Keys::USUAL, &defaults)?;
    config.ropes = vec![Rope::read(
        reader,
        &RopeDefaults {
            partial: Some(1.0),
            longrope: Some(4096),
            ..RopeDefaults::new(defaults.positions, defaults.theta, sizes.head_dim)
        },
    )?];
    for block in &mut config.blocks {
        let (path, attention) = (&block.path, &mut block.attention);
        let outputs = attention.query_size() + 2 * attention.key_size();
        attention.projections = Projections::Fused {
            layer: linear(format!("{path}.self_attn.qkv_proj"), outputs, sizes.hidden, false),
            order: FusedOrder::ByKind,
        };
        if let MlpConfig::Gated { layers, activation } = &block.mlp {
            block.mlp = MlpConfig::FusedGated {
                gate_up: linear(
                    format!("{path}.mlp.gate_up_proj"),
                    2 * layers.up.outputs,
                    sizes.hidden,
                    false,
                ),
                down: layers.down.clone(),
                activation: *activation,
            };
        }
    }
    set_windows(&mut config, window(reader, None)?, &vec![true; sizes.layers]);
    Ok(config)
}
