//! Cohere 2 (Command R7B, Command A): Cohere with a window in three of four blocks, and no positions in the fourth
//! (`modeling_cohere2.py`).

use super::options::OptionName as Name;
use super::parts::{Defaults, pattern, set_windows, sliding, window};
use super::{Family, cohere};
use crate::blocks::Positions;
use crate::config::ModelConfig;
use crate::config_reader::Reader;
use crate::error::CheckpointError;

pub(super) static FAMILY: Family = Family {
    architecture: "Cohere2ForCausalLM",
    model_type: "cohere2",
    models: "Command R7B, Command A, Tiny Aya",
    prefix: "model.",
    renamed: &[],
    options: &[
        (Name::Norm, "LayerNorm without bias; `layer_norm_eps` (1e-5)"),
        (Name::NormPlacement, "one for attention and MLP, always"),
        (Name::GroupedQueries, "`num_key_value_heads`"),
        (Name::HeadDim, "`head_dim`"),
        (Name::Biases, "`attention_bias` (all four)"),
        (
            Name::Positions,
            "rotary, neighbours as pairs, in the blocks that slide; none in the others; `rope_theta` (10000)",
        ),
        (
            Name::RopeScaling,
            "`rope_scaling` or `rope_parameters`: linear, dynamic, yarn, llama3",
        ),
        (
            Name::Window,
            "`sliding_window` (4096) in all but every `sliding_window_pattern`th (4) block, or as `layer_types` says",
        ),
        (Name::Mlp, "gated; `hidden_act`"),
        (Name::Residual, "attention and MLP side by side, always"),
        (Name::Head, "`tie_word_embeddings` (true); `logit_scale` (0.0625)"),
    ],
    read,
};

fn read(family: &'static Family, reader: &Reader) -> Result<ModelConfig, CheckpointError> {
    let defaults = Defaults {
        theta: 10_000.0,
        ..cohere::DEFAULTS
    };
    let (mut config, _) = cohere::common(family, reader, &defaults)?;
    let sliding = sliding(reader, config.num_hidden_layers, pattern(reader, 4)?)?;
    let window = window(reader, Some(4096))?;
    set_windows(&mut config, window, &sliding);
    for (block, slides) in config.blocks.iter_mut().zip(sliding) {
        // Transformers asks for the window, not for the type of the layer.
        let rotated = slides && window.is_some();
        block.attention.positions = if rotated { Positions::Rope(0) } else { Positions::None };
    }
    Ok(config)
}
