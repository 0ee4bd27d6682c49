//! GPT-NeoX and Pythia: LayerNorm and biases, attention and MLP side by side or one after the other, rotary embedding on part of
//! a head (Black et al., 2022; `modeling_gpt_neox.py`).

use super::Family;
use super::options::OptionName as Name;
use super::parts::{Defaults, Keys, Sizes, activation, linear, model};
use crate::blocks::{BlockConfig, FusedOrder, NormKind, Projections};
use crate::config::ModelConfig;
use crate::config_reader::Reader;
use crate::error::CheckpointError;
use crate::rope::Rope;
use crate::rope_config::RopeDefaults;

pub(super) static FAMILY: Family = Family {
    architecture: "GPTNeoXForCausalLM",
    model_type: "gpt_neox",
    models: "GPT-NeoX, Pythia, Polyglot-Ko",
    prefix: "gpt_neox.",
    // The module is `lm_head` since Transformers 5, the tensor `embed_out` in every file.
    renamed: &[("lm_head.", "embed_out.")],
    options: &[
        (Name::Norm, "LayerNorm; `layer_norm_eps` (1e-5)"),
        (Name::Biases, "`attention_bias` (true); on the MLP always"),
        (Name::Fused, "queries, keys, values head by head, always"),
        (
            Name::Positions,
            "rotary, on `rotary_pct` (0.25) of a head; `rotary_emb_base` (10000)",
        ),
        (
            Name::RopeScaling,
            "`rope_scaling` or `rope_parameters`: linear, dynamic, yarn, llama3",
        ),
        (Name::Mlp, "not gated; `hidden_act` (gelu)"),
        (
            Name::Residual,
            "`use_parallel_residual` (true): side by side, each behind a norm of its own",
        ),
        (Name::Head, "`tie_word_embeddings` (false)"),
    ],
    read,
};

fn read(family: &'static Family, reader: &Reader) -> Result<ModelConfig, CheckpointError> {
    let keys = Keys {
        epsilon: "layer_norm_eps",
        ..Keys::USUAL
    };
    let defaults = Defaults {
        epsilon: 1e-5,
        bos_token_id: Some(0),
        eos_token_id: Some(2),
        ..Defaults::LLAMA
    };
    let sizes = Sizes::of_even_heads(reader, &keys, &defaults)?;
    let inner = reader.size("intermediate_size")?;
    let activation = activation(reader, "hidden_act", "gelu")?;
    let bias = reader.flag("attention_bias", true)?;
    let parallel = reader.flag("use_parallel_residual", true)?;
    let layer_norm = NormKind::Layer { bias: true };
    let block = |index: usize| {
        let path = format!("gpt_neox.layers.{index}");
        let mut attention = sizes.attention(&format!("{path}.attention"), ["", "", "", "dense"], [bias, bias]);
        let outputs = 3 * attention.query_size();
        attention.projections = Projections::Fused {
            layer: linear(format!("{path}.attention.query_key_value"), outputs, sizes.hidden, bias),
            order: FusedOrder::ByHead,
        };
        BlockConfig {
            parallel,
            ..sizes.gpt_block(
                path,
                attention,
                ["input_layernorm", "post_attention_layernorm"],
                ["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"],
                (inner, activation),
            )
        }
    };
    let blocks = (0..sizes.layers).map(block).collect();
    let norm = sizes.norm("gpt_neox.final_layer_norm".to_owned(), layer_norm);
    let mut config = model(
        family,
        reader,
        &keys,
        &defaults,
        &sizes,
        ("gpt_neox.embed_in", blocks, norm),
    )?;
    config.ropes = vec![Rope::read(
        reader,
        &RopeDefaults {
            theta_key: "rotary_emb_base",
            partial_key: "rotary_pct",
            partial: Some(0.25),
            ..RopeDefaults::new(defaults.positions, defaults.theta, sizes.head_dim)
        },
    )?];
    Ok(config)
}
