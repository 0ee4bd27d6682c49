//! The shape of a model, read from `config.json` as Transformers 4 and 5 write it.
//!
//! A new family of Llama-like models is a variant of [`Architecture`] and its line in [`ModelConfig::from_json`].

use std::path::Path;

use serde_json::Value;

use crate::config_reader::Reader;
use crate::dtype::Dtype;
use crate::error::CheckpointError;
use crate::quantization_config::StoredQuantization;
use crate::rope::Rope;

/// The model families that are supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 2 and 3, and models of the same shape such as EuroLLM.
    Llama,
    /// Qwen2 and Qwen2.5.
    Qwen2,
    /// Qwen3, dense.
    Qwen3,
    /// Mistral.
    Mistral,
}

impl Architecture {
    const ALL: [(&'static str, Self); 4] = [
        ("LlamaForCausalLM", Self::Llama),
        ("Qwen2ForCausalLM", Self::Qwen2),
        ("Qwen3ForCausalLM", Self::Qwen3),
        ("MistralForCausalLM", Self::Mistral),
    ];

    /// The name in `config.json`.
    pub fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(_, architecture)| *architecture == self)
            .map_or("", |(name, _)| name)
    }
}

/// The shape of a model. Fields are named as in `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Size of the hidden states.
    pub hidden_size: usize,
    /// Size of the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Size of a head.
    pub head_dim: usize,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: usize,
    /// Epsilon of the norms.
    pub rms_norm_eps: f64,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Biases on queries, keys and values.
    pub attention_bias: bool,
    /// Bias on the output of the attention.
    pub attention_output_bias: bool,
    /// Biases in the MLP.
    pub mlp_bias: bool,
    /// Norms over each head of queries and keys.
    pub qk_norm: bool,
    /// Sliding window of each block's attention.
    pub sliding_window: Vec<Option<usize>>,
    /// Rotary embedding.
    pub rope: Rope,
    /// Token that begins a text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end one.
    pub eos_token_ids: Vec<u32>,
    /// Padding token.
    pub pad_token_id: Option<u32>,
    /// Deviation of random initial weights.
    pub initializer_range: f64,
    /// Number format the file names.
    pub dtype: Option<Dtype>,
    /// How the weights of linear layers are quantised in the files.
    pub quantization: Option<StoredQuantization>,
}

impl ModelConfig {
    /// Reads a folder's `config.json`.
    pub fn read(folder: &Path) -> Result<(Self, Value), CheckpointError> {
        let path = folder.join("config.json");
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && folder.is_dir() => {
                return Err(CheckpointError::MissingFile {
                    folder: folder.to_owned(),
                    file: "config.json".into(),
                    advice: "a model folder in Hugging Face's layout has one".into(),
                });
            }
            read => read.map_err(|source| CheckpointError::io(&path, source))?,
        };
        let json: Value = serde_json::from_str(&text)
            .map_err(|error| CheckpointError::config(&path, format!("this is not JSON: {error}")))?;
        let config = Self::from_json(&json, &path)?;
        Ok((config, json))
    }

    /// Reads the JSON of a `config.json`; `path` is for messages.
    pub fn from_json(json: &Value, path: &Path) -> Result<Self, CheckpointError> {
        let reader = Reader { path, json };
        let architecture = architecture(json, path)?;
        if let Some(activation) = reader
            .present("hidden_act")
            .filter(|value| *value != "silu" && *value != "swish")
        {
            return Err(CheckpointError::config(
                path,
                format!("`hidden_act` {activation} is not supported, only \"silu\""),
            ));
        }
        let (hidden_size, heads) = (reader.size("hidden_size")?, reader.size("num_attention_heads")?);
        let layers = reader.size("num_hidden_layers")?;
        let family = Family::of(architecture);
        let attention_bias = match family.biases {
            Biases::None => false,
            Biases::QueryKeyValue => true,
            Biases::Configured => reader.flag("attention_bias", false)?,
        };
        // Null means as many as query heads; absent, what the configuration class says.
        let key_value_heads = reader
            .json
            .get("num_key_value_heads")
            .map_or(family.key_value_heads, |_| None);
        let config = Self {
            architecture,
            vocab_size: reader.size("vocab_size")?,
            hidden_size,
            intermediate_size: reader.size("intermediate_size")?,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: reader.size_or("num_key_value_heads", key_value_heads.or(Some(heads)))?,
            head_dim: reader.size_or("head_dim", Some(family.head_dim.unwrap_or(hidden_size / heads)))?,
            max_position_embeddings: reader.size_or("max_position_embeddings", Some(family.max_positions))?,
            rms_norm_eps: reader.number("rms_norm_eps", Some(1e-6))?,
            tie_word_embeddings: reader.flag("tie_word_embeddings", false)?,
            attention_bias,
            attention_output_bias: attention_bias && family.biases == Biases::Configured,
            mlp_bias: architecture == Architecture::Llama && reader.flag("mlp_bias", false)?,
            qk_norm: family.qk_norm,
            sliding_window: sliding_windows(&reader, architecture, layers)?,
            rope: Rope::read(&reader, family.max_positions)?,
            bos_token_id: reader.tokens("bos_token_id", family.bos_token_id)?.first().copied(),
            eos_token_ids: reader.tokens("eos_token_id", family.eos_token_id)?,
            pad_token_id: reader.tokens("pad_token_id", None)?.first().copied(),
            initializer_range: reader.number("initializer_range", Some(0.02))?,
            dtype: ["dtype", "torch_dtype"]
                .iter()
                .find_map(|key| reader.present(key)?.as_str())
                .and_then(Dtype::from_name),
            quantization: StoredQuantization::read(&reader)?,
        };
        if !config.num_attention_heads.is_multiple_of(config.num_key_value_heads) {
            let problem = format!(
                "`num_attention_heads` {} is not a multiple of `num_key_value_heads` {}",
                config.num_attention_heads, config.num_key_value_heads
            );
            return Err(CheckpointError::config(path, problem));
        }
        if !config.head_dim.is_multiple_of(2) {
            return Err(CheckpointError::config(
                path,
                format!("`head_dim` {} is not even", config.head_dim),
            ));
        }
        Ok(config)
    }
}

/// Which projections of the attention have a bias.
#[derive(Clone, Copy, PartialEq)]
enum Biases {
    /// None, whatever the config says.
    None,
    /// Queries, keys and values, whatever the config says.
    QueryKeyValue,
    /// All four where `attention_bias` is true.
    Configured,
}

/// What a family has whatever its config says, and the defaults of its configuration class in Transformers.
struct Family {
    biases: Biases,
    qk_norm: bool,
    key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_positions: usize,
    bos_token_id: Option<u32>,
    eos_token_id: Option<u32>,
}

impl Family {
    fn of(architecture: Architecture) -> Self {
        let llama = Self {
            biases: Biases::Configured,
            qk_norm: false,
            key_value_heads: None,
            head_dim: None,
            max_positions: 2048,
            bos_token_id: Some(1),
            eos_token_id: Some(2),
        };
        let qwen = Self {
            biases: Biases::QueryKeyValue,
            key_value_heads: Some(32),
            max_positions: 32_768,
            bos_token_id: None,
            eos_token_id: None,
            ..llama
        };
        match architecture {
            Architecture::Llama => llama,
            Architecture::Qwen2 => qwen,
            Architecture::Qwen3 => Self {
                biases: Biases::Configured,
                qk_norm: true,
                head_dim: Some(128),
                ..qwen
            },
            Architecture::Mistral => Self {
                biases: Biases::None,
                key_value_heads: Some(8),
                max_positions: 131_072,
                ..llama
            },
        }
    }
}

fn architecture(json: &Value, path: &Path) -> Result<Architecture, CheckpointError> {
    let named = json
        .get("architectures")
        .and_then(|list| list.get(0))
        .and_then(Value::as_str);
    let model_type = json.get("model_type").and_then(Value::as_str);
    let known = Architecture::ALL.iter().find(|(name, _)| {
        // A config without `architectures` is still told apart by its `model_type`.
        named.map_or_else(
            || model_type.is_some_and(|kind| name.to_lowercase() == format!("{kind}forcausallm")),
            |named| named == *name,
        )
    });
    known.map(|(_, architecture)| *architecture).ok_or_else(|| {
        let supported: Vec<&str> = Architecture::ALL.iter().map(|(name, _)| *name).collect();
        let found = named.or(model_type).unwrap_or("none");
        CheckpointError::config(
            path,
            format!(
                "the architecture {found} is not supported; supported are {}",
                supported.join(", ")
            ),
        )
    })
}

fn sliding_windows(
    reader: &Reader,
    architecture: Architecture,
    layers: usize,
) -> Result<Vec<Option<usize>>, CheckpointError> {
    // The default of the configuration classes where the key is absent; null is no window.
    let window = match reader.json.get("sliding_window") {
        None => Some(4096),
        Some(_) => reader
            .present("sliding_window")
            .map(|_| reader.size("sliding_window"))
            .transpose()?,
    };
    match architecture {
        Architecture::Llama => Ok(vec![None; layers]),
        Architecture::Mistral => Ok(vec![window; layers]),
        Architecture::Qwen2 | Architecture::Qwen3 => {
            if !reader.flag("use_sliding_window", false)? {
                return Ok(vec![None; layers]);
            }
            if let Some(types) = reader.present("layer_types").and_then(Value::as_array) {
                if types.len() != layers {
                    return Err(reader.error(
                        "layer_types",
                        &format!("a list of {layers} entries, one for each layer"),
                    ));
                }
                let slides = |kind: &Value| *kind == "sliding_attention";
                return Ok(types.iter().map(|kind| window.filter(|_| slides(kind))).collect());
            }
            let first = match reader.present("max_window_layers") {
                None => 28,
                Some(value) => value
                    .as_u64()
                    .ok_or_else(|| reader.error("max_window_layers", "a whole number"))?
                    as usize,
            };
            Ok((0..layers).map(|layer| window.filter(|_| layer >= first)).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn llama() -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
            "num_hidden_layers": 2,
            "vocab_size": 100, "intermediate_size": 128, "rope_theta": 5e5, "torch_dtype": "bfloat16",
            "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 32}, "eos_token_id": [3, 0]
        })
    }

    fn read(json: &Value) -> Result<ModelConfig, String> {
        ModelConfig::from_json(json, Path::new("config.json")).map_err(|error| error.to_string())
    }

    #[test]
    fn both_spellings_give_the_same_config() {
        let old = llama();
        let mut new = llama();
        let map = new.as_object_mut().unwrap();
        map.remove("rope_theta");
        map.remove("torch_dtype");
        let mut rope = map.remove("rope_scaling").unwrap();
        rope["rope_theta"] = json!(5e5);
        map.insert("rope_parameters".into(), rope);
        map.insert("dtype".into(), json!("bfloat16"));
        assert_eq!(read(&old).unwrap(), read(&new).unwrap());
        assert_eq!(read(&old).unwrap().eos_token_ids, [3, 0]);
    }

    #[test]
    fn messages_name_the_key_and_what_is_supported() {
        let mut json = llama();
        json["architectures"] = json!(["BloomForCausalLM"]);
        assert!(
            read(&json)
                .unwrap_err()
                .contains("BloomForCausalLM is not supported; supported are LlamaForCausalLM")
        );
        let mut json = llama();
        json["hidden_size"] = json!("64");
        assert_eq!(
            read(&json).unwrap_err(),
            "config.json: `hidden_size` should be a whole number above 0, found \"64\""
        );
        let mut json = llama();
        json["rope_scaling"]["rope_type"] = json!("longrope");
        assert!(
            read(&json)
                .unwrap_err()
                .contains("one of default, linear, dynamic, yarn, llama3")
        );
    }

    #[test]
    fn sliding_windows_follow_the_family() {
        let mut json = llama();
        json["architectures"] = json!(["MistralForCausalLM"]);
        json["sliding_window"] = json!(8);
        assert_eq!(read(&json).unwrap().sliding_window, [Some(8), Some(8)]);
        json["architectures"] = json!(["Qwen2ForCausalLM"]);
        assert_eq!(read(&json).unwrap().sliding_window, [None, None]);
        json["use_sliding_window"] = json!(true);
        json["max_window_layers"] = json!(1);
        assert_eq!(read(&json).unwrap().sliding_window, [None, Some(8)]);
        json["layer_types"] = json!(["sliding_attention", "full_attention"]);
        assert_eq!(read(&json).unwrap().sliding_window, [Some(8), None]);
    }
}
