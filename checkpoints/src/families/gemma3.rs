//! Gemma 3, the text model: Gemma 2 with norms over heads in place of the score soft-cap, two ropes, and a window in all but every
//! sixth block (Gemma Team, 2025; `modeling_gemma3.py`).

use super::options::OptionName as Name;
use super::parts::{Defaults, Keys, activation, llama_like, pattern, set_windows, sliding, window};
use super::{Family, gemma, gemma2};
use crate::blocks::{NormKind, Positions};
use crate::config::ModelConfig;
use crate::config_reader::Reader;
use crate::error::CheckpointError;
use crate::rope::Rope;
use crate::rope_config::RopeDefaults;

pub(super) static FAMILY: Family = Family {
    architecture: "Gemma3ForCausalLM",
    model_type: "gemma3_text",
    models: "Gemma 3 270M and 1B (text)",
    prefix: "model.",
    renamed: &[],
    options: &[
        (Name::Norm, "RMSNorm with `1 + weight`; `rms_norm_eps`"),
        (Name::NormPlacement, "before and behind attention and MLP, always"),
        (Name::QkNorm, "RMSNorm over each head, always"),
        (Name::GroupedQueries, "`num_key_value_heads` (4)"),
        (Name::HeadDim, "`head_dim` (256)"),
        (Name::Biases, "`attention_bias` (all four)"),
        (
            Name::Positions,
            "rotary, one rope for blocks that see all keys (`rope_theta`, 1000000) and one for those that slide (`rope_local_base_freq`, 10000); or `rope_parameters` by type of layer",
        ),
        (
            Name::RopeScaling,
            "`rope_scaling` of the blocks that see all keys; `rope_parameters` of either",
        ),
        (
            Name::Window,
            "`sliding_window` (4096) in all but every `sliding_window_pattern`th (6) block, or as `layer_types` says",
        ),
        (Name::ScoreScale, "`query_pre_attn_scalar` (256) to the power of -1/2"),
        (Name::Mlp, "gated; `hidden_activation` (gelu_pytorch_tanh)"),
        (Name::Embedding, "times sqrt(`hidden_size`), always"),
        (
            Name::Head,
            "`tie_word_embeddings` (true); `final_logit_softcapping` (none)",
        ),
    ],
    read,
};

fn read(family: &'static Family, reader: &Reader) -> Result<ModelConfig, CheckpointError> {
    let defaults = Defaults {
        key_value_heads: Some(4),
        positions: 131_072,
        ..gemma::DEFAULTS
    };
    // The two ropes are read below, by the type of layer.
    let flat = reader.without(&["rope_parameters", "rope_scaling"]);
    let (mut config, sizes) = llama_like(family, &Reader { json: &flat, ..*reader }, &Keys::USUAL, &defaults)?;
    for block in &mut config.blocks {
        let path = format!("{}.self_attn", block.path);
        block.attention.qk_norm = Some(sizes.head_norms(&path, NormKind::Rms { offset: 1.0 }));
    }
    gemma::common(
        &mut config,
        reader,
        activation(reader, "hidden_activation", defaults.activation)?,
    )?;
    gemma2::norms_behind(&mut config);
    let sliding = sliding(reader, sizes.layers, pattern(reader, 6)?)?;
    set_windows(&mut config, window(reader, Some(4096))?, &sliding);
    gemma2::scale_scores(&mut config, reader)?;
    config.head.softcap = gemma2::cap(reader, "final_logit_softcapping", None)?;

    let rope = |theta| RopeDefaults::new(defaults.positions, theta, sizes.head_dim);
    let everywhere = Rope::read_of_layers(reader, "full_attention", "rope_theta", &rope(1_000_000.0))?;
    let local = Rope::read_of_layers(reader, "sliding_attention", "rope_local_base_freq", &rope(10_000.0))?;
    config.ropes = vec![everywhere, local];
    for (block, slides) in config.blocks.iter_mut().zip(sliding) {
        block.attention.positions = Positions::Rope(usize::from(slides));
    }
    Ok(config)
}
