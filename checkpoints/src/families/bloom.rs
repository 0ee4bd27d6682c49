//! BLOOM: LayerNorm with biases everywhere, fused projections head by head, ALiBi, a normed embedding (BigScience, 2022;
//! `modeling_bloom.py`).

use super::Family;
use super::options::OptionName as Name;
use super::parts::{Defaults, Keys, Sizes, linear, model};
use crate::blocks::{ActivationKind, BlockConfig, FusedOrder, NormKind, Positions, Projections};
use crate::config::ModelConfig;
use crate::config_reader::Reader;
use crate::error::CheckpointError;

pub(super) static FAMILY: Family = Family {
    architecture: "BloomForCausalLM",
    model_type: "bloom",
    models: "BLOOM, BLOOMZ",
    prefix: "transformer.",
    renamed: &[],
    options: &[
        (Name::Norm, "LayerNorm; `layer_norm_epsilon` (1e-5)"),
        (Name::Biases, "on all linear layers, always"),
        (Name::Fused, "queries, keys, values head by head, always"),
        (Name::Positions, "ALiBi, always; any number of heads"),
        (Name::Mlp, "not gated, gelu (tanh), four times the hidden size, always"),
        (Name::Residual, "`apply_residual_connection_post_layernorm` (false)"),
        (Name::Embedding, "LayerNorm, always"),
        (Name::Head, "`tie_word_embeddings` (true)"),
    ],
    read,
};

fn read(family: &'static Family, reader: &Reader) -> Result<ModelConfig, CheckpointError> {
    let keys = Keys {
        hidden: &["n_embed", "hidden_size"],
        layers: &["n_layer", "num_hidden_layers"],
        heads: &["n_head", "num_attention_heads"],
        // There is no such key: ALiBi has no longest length. 2048 is what the models were trained with.
        positions: &["seq_length"],
        epsilon: "layer_norm_epsilon",
        deviation: "initializer_range",
    };
    let defaults = Defaults {
        epsilon: 1e-5,
        tied: true,
        ..Defaults::LLAMA
    };
    let sizes = Sizes::of_even_heads(reader, &keys, &defaults)?;
    let residual_after_norm = reader.flag("apply_residual_connection_post_layernorm", false)?;
    let layer_norm = NormKind::Layer { bias: true };
    let block = |index: usize| {
        let path = format!("transformer.h.{index}");
        let mut attention = sizes.attention(&format!("{path}.self_attention"), ["", "", "", "dense"], [true, true]);
        attention.positions = Positions::Alibi;
        attention.projections = Projections::Fused {
            layer: linear(
                format!("{path}.self_attention.query_key_value"),
                3 * sizes.hidden,
                sizes.hidden,
                true,
            ),
            order: FusedOrder::ByHead,
        };
        BlockConfig {
            residual_after_norm,
            ..sizes.gpt_block(
                path,
                attention,
                ["input_layernorm", "post_attention_layernorm"],
                ["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"],
                (4 * sizes.hidden, ActivationKind::GeluTanh),
            )
        }
    };
    let blocks = (0..sizes.layers).map(block).collect();
    let norm = sizes.norm("transformer.ln_f".to_owned(), layer_norm);
    let parts = ("transformer.word_embeddings", blocks, norm);
    let mut config = model(family, reader, &keys, &defaults, &sizes, parts)?;
    let name = "transformer.word_embeddings_layernorm".to_owned();
    config.embedding.norm = Some(sizes.norm(name, layer_norm));
    Ok(config)
}
