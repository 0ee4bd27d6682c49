//! What the configurations of several families have in common.

use serde_json::Value;

use super::Family;
use crate::blocks::{
    ActivationKind, AttentionConfig, BlockConfig, GatedConfig, LinearConfig, MlpConfig, NormConfig, NormKind,
    Positions, Projections,
};
use crate::config::{AddedPositions, EmbeddingConfig, HeadConfig, ModelConfig};
use crate::config_reader::Reader;
use crate::dtype::Dtype;
use crate::error::CheckpointError;
use crate::quantization_config::StoredQuantization;
use crate::rope::Rope;
use crate::rope_config::RopeDefaults;

/// What stands where a configuration lacks a key: the defaults of the family's configuration class in Transformers.
#[derive(Clone, Copy)]
pub(super) struct Defaults {
    /// `num_key_value_heads`; absent: as many as query heads.
    pub key_value_heads: Option<usize>,
    /// `head_dim`; absent: hidden size by heads.
    pub head_dim: Option<usize>,
    /// `max_position_embeddings`.
    pub positions: usize,
    /// `rope_theta`.
    pub theta: f64,
    /// `rms_norm_eps` or `layer_norm_eps`.
    pub epsilon: f64,
    /// `bos_token_id`.
    pub bos_token_id: Option<u32>,
    /// `eos_token_id`.
    pub eos_token_id: Option<u32>,
    /// `pad_token_id`.
    pub pad_token_id: Option<u32>,
    /// `tie_word_embeddings`.
    pub tied: bool,
    /// `hidden_act`.
    pub activation: &'static str,
}

impl Defaults {
    /// Those of Llama.
    pub(super) const LLAMA: Self = Self {
        key_value_heads: None,
        head_dim: None,
        positions: 2048,
        theta: 10_000.0,
        epsilon: 1e-6,
        bos_token_id: Some(1),
        eos_token_id: Some(2),
        pad_token_id: None,
        tied: false,
        activation: "silu",
    };
}

/// The keys of sizes, in the spellings that a family knows.
pub(super) struct Keys {
    pub hidden: &'static [&'static str],
    pub layers: &'static [&'static str],
    pub heads: &'static [&'static str],
    pub positions: &'static [&'static str],
    pub epsilon: &'static str,
    pub deviation: &'static str,
}

impl Keys {
    /// As most families spell them.
    pub(super) const USUAL: Self = Self {
        hidden: &["hidden_size"],
        layers: &["num_hidden_layers"],
        heads: &["num_attention_heads"],
        positions: &["max_position_embeddings"],
        epsilon: "rms_norm_eps",
        deviation: "initializer_range",
    };
}

/// Sizes that every block has.
pub(super) struct Sizes {
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub epsilon: f64,
}

impl Sizes {
    /// Reads them.
    pub(super) fn read(reader: &Reader, keys: &Keys, defaults: &Defaults) -> Result<Self, CheckpointError> {
        let size = |names: &[&'static str]| reader.size(reader.spelling(names));
        let (hidden, layers, heads) = (size(keys.hidden)?, size(keys.layers)?, size(keys.heads)?);
        // Null means as many as query heads; absent, what the configuration class says.
        let absent = reader.json.get("num_key_value_heads").is_none();
        let kv_heads = defaults.key_value_heads.filter(|_| absent).unwrap_or(heads);
        let head_dim = match (reader.present("head_dim"), defaults.head_dim) {
            (None, None) if !hidden.is_multiple_of(heads) => {
                return Err(CheckpointError::config(
                    reader.path,
                    format!(
                        "`{}` {hidden} is not a multiple of `{}` {heads}, and there is no `head_dim`",
                        reader.spelling(keys.hidden),
                        reader.spelling(keys.heads)
                    ),
                ));
            }
            (None, default) => default.unwrap_or(hidden / heads),
            (Some(_), _) => reader.size("head_dim")?,
        };
        Ok(Self {
            hidden,
            layers,
            heads,
            kv_heads: reader.size_or("num_key_value_heads", Some(kv_heads))?,
            head_dim,
            epsilon: reader.number(keys.epsilon, Some(defaults.epsilon))?,
        })
    }

    /// The same of families whose query heads each have keys and values, and that share the hidden size: other keys are not read.
    pub(super) fn of_even_heads(reader: &Reader, keys: &Keys, defaults: &Defaults) -> Result<Self, CheckpointError> {
        let json = reader.without(&["num_key_value_heads", "head_dim"]);
        Self::read(&Reader { json: &json, ..*reader }, keys, defaults)
    }

    /// A norm of the hidden state.
    pub(super) fn norm(&self, path: String, kind: NormKind) -> NormConfig {
        NormConfig {
            path,
            shape: vec![self.hidden],
            kind,
            epsilon: self.epsilon,
        }
    }

    /// An attention with separate projections, by the names of queries, keys, values and output under `path`.
    pub(super) fn attention(&self, path: &str, names: [&str; 4], biases: [bool; 2]) -> AttentionConfig {
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let [query, key, value, output] = names.map(|name| format!("{path}.{name}"));
        let [projections, of_output] = biases;
        AttentionConfig {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            projections: Projections::Separate {
                query: linear(query, queries, self.hidden, projections),
                key: linear(key, keys, self.hidden, projections),
                value: linear(value, keys, self.hidden, projections),
            },
            output: linear(output, self.hidden, queries, of_output),
            qk_norm: None,
            positions: Positions::Rope(0),
            window: None,
            scale: (self.head_dim as f64).powf(-0.5),
            softcap: None,
        }
    }

    /// Norms over each head of queries and keys.
    pub(super) fn head_norms(&self, path: &str, kind: NormKind) -> [NormConfig; 2] {
        ["q_norm", "k_norm"].map(|name| NormConfig {
            path: format!("{path}.{name}"),
            shape: vec![self.head_dim],
            kind,
            epsilon: self.epsilon,
        })
    }

    /// A block of GPT's shape: LayerNorm with biases before attention and MLP, an MLP without a gate, by the names of norms and of
    /// the MLP's layers under `path`.
    pub(super) fn gpt_block(
        &self,
        path: String,
        attention: AttentionConfig,
        [input_norm, mlp_norm]: [&str; 2],
        [up, down]: [&str; 2],
        (inner, activation): (usize, ActivationKind),
    ) -> BlockConfig {
        let norm = |name: &str| Some(self.norm(format!("{path}.{name}"), NormKind::Layer { bias: true }));
        BlockConfig {
            input_norm: norm(input_norm),
            attention,
            attention_output_norm: None,
            mlp_norm: norm(mlp_norm),
            mlp: MlpConfig::Plain {
                up: linear(format!("{path}.{up}"), inner, self.hidden, true),
                down: linear(format!("{path}.{down}"), self.hidden, inner, true),
                activation,
                activation_path: format!("{path}.act"),
            },
            mlp_output_norm: None,
            parallel: false,
            residual_after_norm: false,
            path,
        }
    }

    /// Gate, up and down by their names under `path`.
    pub(super) fn gated(&self, path: &str, names: [&str; 3], inner: usize, bias: bool) -> GatedConfig {
        let [gate, up, down] = names.map(|name| format!("{path}.{name}"));
        GatedConfig {
            gate: linear(gate, inner, self.hidden, bias),
            up: linear(up, inner, self.hidden, bias),
            down: linear(down, self.hidden, inner, bias),
        }
    }
}

/// A linear layer with a bias or without.
pub(super) fn linear(path: String, outputs: usize, inputs: usize, bias: bool) -> LinearConfig {
    LinearConfig {
        path,
        inputs,
        outputs,
        bias,
    }
}

/// Names of a gated MLP as most families have them.
pub(super) const GATED: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// A model of Llama's shape, with the family's defaults and without biases; families change what they have otherwise.
pub(super) fn llama_like(
    family: &'static Family,
    reader: &Reader,
    keys: &Keys,
    defaults: &Defaults,
) -> Result<(ModelConfig, Sizes), CheckpointError> {
    let sizes = Sizes::read(reader, keys, defaults)?;
    let inner = reader.size("intermediate_size")?;
    let activation = activation(reader, "hidden_act", defaults.activation)?;
    let rms = NormKind::Rms { offset: 0.0 };
    let block = |index: usize| {
        let path = format!("model.layers.{index}");
        BlockConfig {
            input_norm: Some(sizes.norm(format!("{path}.input_layernorm"), rms)),
            attention: sizes.attention(
                &format!("{path}.self_attn"),
                ["q_proj", "k_proj", "v_proj", "o_proj"],
                [false, false],
            ),
            attention_output_norm: None,
            mlp_norm: Some(sizes.norm(format!("{path}.post_attention_layernorm"), rms)),
            mlp: MlpConfig::Gated {
                layers: sizes.gated(&format!("{path}.mlp"), GATED, inner, false),
                activation,
            },
            mlp_output_norm: None,
            parallel: false,
            residual_after_norm: false,
            path,
        }
    };
    let blocks = (0..sizes.layers).map(block).collect();
    let norm = sizes.norm("model.norm".to_owned(), rms);
    let mut config = model(
        family,
        reader,
        keys,
        defaults,
        &sizes,
        ("model.embed_tokens", blocks, norm),
    )?;
    config.ropes = vec![Rope::read(
        reader,
        &RopeDefaults::new(defaults.positions, defaults.theta, sizes.head_dim),
    )?];
    Ok((config, sizes))
}

/// A model around its blocks; without ropes, which are not every family's.
pub(super) fn model(
    family: &'static Family,
    reader: &Reader,
    keys: &Keys,
    defaults: &Defaults,
    sizes: &Sizes,
    (embedding, blocks, norm): (&str, Vec<BlockConfig>, NormConfig),
) -> Result<ModelConfig, CheckpointError> {
    let vocab_size = reader.size("vocab_size")?;
    Ok(ModelConfig {
        family,
        vocab_size,
        hidden_size: sizes.hidden,
        num_hidden_layers: sizes.layers,
        max_position_embeddings: reader.size_or(reader.spelling(keys.positions), Some(defaults.positions))?,
        tie_word_embeddings: reader.flag("tie_word_embeddings", defaults.tied)?,
        embedding: EmbeddingConfig {
            path: embedding.to_owned(),
            scale: None,
            positions: AddedPositions::None,
            norm: None,
        },
        blocks,
        norm,
        head: HeadConfig {
            layer: linear("lm_head".to_owned(), vocab_size, sizes.hidden, false),
            scale: None,
            softcap: None,
        },
        ropes: Vec::new(),
        bos_token_id: reader.tokens("bos_token_id", defaults.bos_token_id)?.first().copied(),
        eos_token_ids: reader.tokens("eos_token_id", defaults.eos_token_id)?,
        pad_token_id: reader.tokens("pad_token_id", defaults.pad_token_id)?.first().copied(),
        initializer_range: reader.number(keys.deviation, Some(0.02))?,
        dtype: ["dtype", "torch_dtype"]
            .iter()
            .find_map(|key| reader.present(key)?.as_str())
            .and_then(Dtype::from_name),
        quantization: StoredQuantization::read(reader)?,
    })
}

/// The nonlinearity that a key names; `default` where it is absent.
pub(super) fn activation(reader: &Reader, key: &str, default: &'static str) -> Result<ActivationKind, CheckpointError> {
    let name = match reader.present(key) {
        None => default,
        Some(value) => value
            .as_str()
            .ok_or_else(|| reader.error(key, "the name of an activation"))?,
    };
    Ok(match name {
        "silu" | "swish" => ActivationKind::Silu,
        "gelu" | "gelu_python" => ActivationKind::Gelu,
        "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" | "gelu_python_tanh" => ActivationKind::GeluTanh,
        "relu" => ActivationKind::Relu,
        _ => {
            let expected = "one of the activations that are supported: silu (swish), gelu, gelu_new (gelu_pytorch_tanh, \
                            gelu_fast), relu; xielu in Apertus";
            return Err(reader.error(key, expected));
        }
    })
}

/// Which blocks slide, from `layer_types`; without it, what `otherwise` says of a block.
pub(super) fn sliding(
    reader: &Reader,
    layers: usize,
    otherwise: impl Fn(usize) -> bool,
) -> Result<Vec<bool>, CheckpointError> {
    let Some(types) = reader.present("layer_types") else {
        return Ok((0..layers).map(otherwise).collect());
    };
    let types = types.as_array().filter(|types| types.len() == layers).ok_or_else(|| {
        reader.error(
            "layer_types",
            &format!("a list of {layers} entries, one for each layer"),
        )
    })?;
    let slides = |kind: &Value| match kind.as_str() {
        Some("sliding_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        _ => Err(reader.error("layer_types", "a list of \"sliding_attention\" and \"full_attention\"")),
    };
    types.iter().map(slides).collect()
}

/// A window's size: the default where the key is absent, none where it is null.
pub(super) fn window(reader: &Reader, default: Option<usize>) -> Result<Option<usize>, CheckpointError> {
    match reader.json.get("sliding_window") {
        None => Ok(default),
        Some(_) => reader
            .present("sliding_window")
            .map(|_| reader.size("sliding_window"))
            .transpose(),
    }
}

/// Every n-th block sees all keys, the others slide; n from `sliding_window_pattern`.
pub(super) fn pattern(reader: &Reader, default: usize) -> Result<impl Fn(usize) -> bool + use<>, CheckpointError> {
    let pattern = reader.size_or("sliding_window_pattern", Some(default))?;
    Ok(move |layer: usize| !(layer + 1).is_multiple_of(pattern))
}

/// Gives the blocks that slide their window.
pub(super) fn set_windows(config: &mut ModelConfig, window: Option<usize>, sliding: &[bool]) {
    for (block, slides) in config.blocks.iter_mut().zip(sliding) {
        block.attention.window = window.filter(|_| *slides);
    }
}

/// Gives queries, keys, values and the output their biases.
pub(super) fn set_attention_biases(config: &mut ModelConfig, projections: bool, of_output: bool) {
    for block in &mut config.blocks {
        if let Projections::Separate { query, key, value } = &mut block.attention.projections {
            [query, key, value]
                .into_iter()
                .for_each(|layer| layer.bias = projections);
        }
        block.attention.output.bias = of_output;
    }
}

/// Makes every norm of a model one of this kind.
pub(super) fn set_norms(config: &mut ModelConfig, kind: NormKind) {
    config.norm.kind = kind;
    for block in &mut config.blocks {
        let own = [
            &mut block.input_norm,
            &mut block.attention_output_norm,
            &mut block.mlp_norm,
            &mut block.mlp_output_norm,
        ];
        own.into_iter().flatten().for_each(|norm| norm.kind = kind);
        block
            .attention
            .qk_norm
            .iter_mut()
            .flatten()
            .for_each(|norm| norm.kind = kind);
    }
}
