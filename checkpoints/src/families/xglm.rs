//! XGLM: LayerNorm and biases, sinusoidal positions, a scaled embedding (Lin et al., 2021; `modeling_xglm.py`).

use super::Family;
use super::options::OptionName as Name;
use super::parts::{Defaults, Keys, Sizes, activation, model};
use crate::blocks::{NormKind, Positions};
use crate::config::{AddedPositions, ModelConfig};
use crate::config_reader::Reader;
use crate::error::CheckpointError;

pub(super) static FAMILY: Family = Family {
    architecture: "XGLMForCausalLM",
    model_type: "xglm",
    models: "XGLM 564M to 7.5B",
    prefix: "model.",
    renamed: &[],
    options: &[
        (Name::Norm, "LayerNorm, epsilon 1e-5, always"),
        (Name::Biases, "on all linear layers, always"),
        (
            Name::Positions,
            "sinusoidal, counted from 2; the row of `pad_token_id` (1) is zero",
        ),
        (Name::Mlp, "not gated; `activation_function` (gelu), `ffn_dim`"),
        (Name::Embedding, "`scale_embedding` (true): times sqrt(`d_model`)"),
        (Name::Head, "`tie_word_embeddings` (true)"),
    ],
    read,
};

/// Positions are counted from here.
const FIRST_POSITION: usize = 2;

fn read(family: &'static Family, reader: &Reader) -> Result<ModelConfig, CheckpointError> {
    let keys = Keys {
        hidden: &["d_model", "hidden_size"],
        layers: &["num_layers", "num_hidden_layers"],
        heads: &["attention_heads", "num_attention_heads"],
        positions: &["max_position_embeddings"],
        epsilon: "",
        deviation: "init_std",
    };
    let defaults = Defaults {
        epsilon: 1e-5,
        bos_token_id: Some(0),
        eos_token_id: Some(2),
        pad_token_id: Some(1),
        tied: true,
        ..Defaults::LLAMA
    };
    if reader.flag("add_cross_attention", false)? {
        return Err(reader.error("add_cross_attention", "false: only decoders by themselves are trained"));
    }
    let sizes = Sizes::of_even_heads(reader, &keys, &defaults)?;
    let inner = reader.size_or("ffn_dim", Some(4096))?;
    let activation = activation(reader, "activation_function", "gelu")?;
    let layer_norm = NormKind::Layer { bias: true };
    let block = |index: usize| {
        let path = format!("model.layers.{index}");
        let names = ["q_proj", "k_proj", "v_proj", "out_proj"];
        let mut attention = sizes.attention(&format!("{path}.self_attn"), names, [true, true]);
        attention.positions = Positions::None;
        sizes.gpt_block(
            path,
            attention,
            ["self_attn_layer_norm", "final_layer_norm"],
            ["fc1", "fc2"],
            (inner, activation),
        )
    };
    let blocks = (0..sizes.layers).map(block).collect();
    let norm = sizes.norm("model.layer_norm".to_owned(), layer_norm);
    let mut config = model(
        family,
        reader,
        &keys,
        &defaults,
        &sizes,
        ("model.embed_tokens", blocks, norm),
    )?;
    if reader.flag("scale_embedding", true)? {
        config.embedding.scale = Some((sizes.hidden as f64).sqrt());
    }
    config.embedding.positions = AddedPositions::Sinusoidal {
        offset: FIRST_POSITION,
        zero: config.pad_token_id.map(|id| id as usize),
    };
    Ok(config)
}
