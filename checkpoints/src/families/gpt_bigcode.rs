//! GPTBigCode (StarCoder, SantaCoder): GPT-2 with one head of keys and values (Li et al., 2023; `modeling_gpt_bigcode.py`).

use super::Family;
use super::options::OptionName as Name;
use super::parts::{Defaults, Keys, Sizes, activation, linear, model};
use crate::blocks::{FusedOrder, NormKind, Positions, Projections};
use crate::config::{AddedPositions, ModelConfig};
use crate::config_reader::Reader;
use crate::error::CheckpointError;

pub(super) static FAMILY: Family = Family {
    architecture: "GPTBigCodeForCausalLM",
    model_type: "gpt_bigcode",
    models: "StarCoder, StarCoderBase, SantaCoder",
    prefix: "transformer.",
    renamed: &[],
    options: &[
        (Name::Norm, "LayerNorm; `layer_norm_epsilon` (1e-5)"),
        (
            Name::GroupedQueries,
            "`multi_query` (true): one head of keys and values",
        ),
        (Name::Biases, "on all linear layers, always"),
        (
            Name::Fused,
            "queries, keys, values in one layer; head by head without `multi_query`",
        ),
        (Name::Positions, "learned; `n_positions` (1024)"),
        (
            Name::ScoreScale,
            "`scale_attn_weights` (true); false: scores are not scaled",
        ),
        (
            Name::Mlp,
            "not gated; `activation_function` (gelu_pytorch_tanh), `n_inner` (four times the hidden size)",
        ),
        (Name::Head, "`tie_word_embeddings` (true)"),
    ],
    read,
};

fn read(family: &'static Family, reader: &Reader) -> Result<ModelConfig, CheckpointError> {
    let keys = Keys {
        hidden: &["n_embd", "hidden_size"],
        layers: &["n_layer", "num_hidden_layers"],
        heads: &["n_head", "num_attention_heads"],
        positions: &["n_positions", "max_position_embeddings"],
        epsilon: "layer_norm_epsilon",
        deviation: "initializer_range",
    };
    let defaults = Defaults {
        positions: 1024,
        epsilon: 1e-5,
        bos_token_id: Some(50_256),
        eos_token_id: Some(50_256),
        tied: true,
        ..Defaults::LLAMA
    };
    if reader.flag("add_cross_attention", false)? {
        return Err(reader.error("add_cross_attention", "false: only decoders by themselves are trained"));
    }
    let mut sizes = Sizes::of_even_heads(reader, &keys, &defaults)?;
    let multi_query = reader.flag("multi_query", true)?;
    if multi_query {
        sizes.kv_heads = 1;
    }
    let inner = reader.size_or("n_inner", Some(4 * sizes.hidden))?;
    let activation = activation(reader, "activation_function", "gelu_pytorch_tanh")?;
    let scaled = reader.flag("scale_attn_weights", true)?;
    let layer_norm = NormKind::Layer { bias: true };
    let block = |index: usize| {
        let path = format!("transformer.h.{index}");
        let mut attention = sizes.attention(&format!("{path}.attn"), ["", "", "", "c_proj"], [true, true]);
        let outputs = attention.query_size() + 2 * attention.key_size();
        attention.positions = Positions::None;
        if !scaled {
            attention.scale = 1.0;
        }
        attention.projections = Projections::Fused {
            layer: linear(format!("{path}.attn.c_attn"), outputs, sizes.hidden, true),
            order: if multi_query {
                FusedOrder::ByKind
            } else {
                FusedOrder::ByHead
            },
        };
        sizes.gpt_block(
            path,
            attention,
            ["ln_1", "ln_2"],
            ["mlp.c_fc", "mlp.c_proj"],
            (inner, activation),
        )
    };
    let blocks = (0..sizes.layers).map(block).collect();
    let norm = sizes.norm("transformer.ln_f".to_owned(), layer_norm);
    let mut config = model(
        family,
        reader,
        &keys,
        &defaults,
        &sizes,
        ("transformer.wte", blocks, norm),
    )?;
    config.embedding.positions = AddedPositions::Learned {
        path: "transformer.wpe".to_owned(),
        count: config.max_position_embeddings,
    };
    Ok(config)
}
