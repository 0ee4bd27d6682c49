//! Model folders in Hugging Face's layout.

use std::path::{Path, PathBuf};

use interlingua_checkpoints::config::ModelConfig;
use interlingua_checkpoints::families::options;
use serde_json::{Value, json};

use super::tensors::Totals;
use super::{Facts, facts as object, folder_size, get, read_json, tokenizer};
use crate::exit::Failure;

/// What a model folder holds.
///
/// # Errors
/// When its config or its weights cannot be read.
pub(super) fn facts(folder: &Path) -> Result<Facts, Failure> {
    let config = read_json(&folder.join("config.json"))?;
    let first = |key: &str| get(&config, key).get(0).cloned().unwrap_or(Value::Null);
    // Transformers 5 keeps theta and scaling together and writes `dtype` for `torch_dtype`.
    let either = |new: &str, old: &str| {
        Some(get(&config, new))
            .filter(|value| !value.is_null())
            .unwrap_or_else(|| get(&config, old))
    };
    // An architecture that is not supported is shown as its file has it, and the refusal with it.
    let known = ModelConfig::from_json(&config, &folder.join("config.json"));
    let mut facts = object([
        ("kind", json!("model")),
        ("path", json!(folder)),
        ("architecture", first("architectures")),
        ("model_type", get(&config, "model_type")),
        ("layers", get(&config, "num_hidden_layers")),
        ("hidden_size", get(&config, "hidden_size")),
        ("intermediate_size", get(&config, "intermediate_size")),
        ("heads", get(&config, "num_attention_heads")),
        ("key_value_heads", get(&config, "num_key_value_heads")),
        ("vocabulary", get(&config, "vocab_size")),
        ("positions", get(&config, "max_position_embeddings")),
        ("rope", either("rope_parameters", "rope_scaling")),
        (
            "tied_head",
            json!(get(&config, "tie_word_embeddings").as_bool().unwrap_or(false)),
        ),
        ("stored_as", either("dtype", "torch_dtype")),
    ]);
    match &known {
        Ok(known) => {
            facts.extend(shape(known));
            facts.insert("options".to_owned(), options_of(known));
        }
        Err(problem) => {
            facts.insert("not_supported".to_owned(), json!(problem.to_string()));
        }
    }
    if let Some(quantised) = quantised(&get(&config, "quantization_config")) {
        facts.insert("quantised".to_owned(), json!(quantised));
    }
    let files = weight_files(folder)?;
    if files.is_empty() {
        facts.insert(
            "weights".to_owned(),
            json!("none: model.init = \"random\" can start from this folder"),
        );
    } else {
        facts.insert("weight_files".to_owned(), json!(files.len()));
        facts.extend(Totals::read(&files)?.facts());
    }
    facts.insert("tokenizer".to_owned(), json!(folder.join("tokenizer.json").is_file()));
    facts.insert("chat_template".to_owned(), json!(tokenizer::has_chat_template(folder)));
    facts.insert("folder".to_owned(), json!({ "bytes": folder_size(folder) }));
    Ok(facts)
}

/// Sizes as the family reads them: by whatever names its files have, and with its defaults.
fn shape(config: &ModelConfig) -> Facts {
    let attention = config.blocks.first().map(|block| &block.attention);
    let mut inner: Vec<usize> = config.blocks.iter().flat_map(|block| block.mlp.inner_sizes()).collect();
    inner.sort_unstable();
    inner.dedup();
    object([
        ("layers", json!(config.num_hidden_layers)),
        ("hidden_size", json!(config.hidden_size)),
        (
            "intermediate_size",
            if inner.len() == 1 {
                json!(inner[0])
            } else {
                json!(inner)
            },
        ),
        ("heads", json!(attention.map(|attention| attention.heads))),
        ("key_value_heads", json!(attention.map(|attention| attention.kv_heads))),
        ("vocabulary", json!(config.vocab_size)),
        ("positions", json!(config.max_position_embeddings)),
        ("tied_head", json!(config.tie_word_embeddings)),
    ])
}

/// The options of the family that the model uses (docs/support-matrix.md).
fn options_of(config: &ModelConfig) -> Value {
    let options = options::of(config).into_iter();
    let options = options.map(|(name, value)| json!({"option": name.to_string(), "value": value}));
    Value::Array(options.collect())
}

/// How the weights are quantised, from the config's word on it.
fn quantised(config: &Value) -> Option<String> {
    let is = |key: &str| get(config, key).as_bool() == Some(true);
    let method = config.as_object().map(|_| {
        get(config, "quant_method")
            .as_str()
            .unwrap_or("bitsandbytes")
            .to_owned()
    })?;
    let form = match get(config, "bnb_4bit_quant_type").as_str() {
        Some(form) if is("load_in_4bit") => form.to_owned(),
        _ if is("load_in_8bit") => "int8".to_owned(),
        _ => return Some(method),
    };
    let double = is("load_in_4bit") && is("bnb_4bit_use_double_quant");
    let double = if double { ", double quantisation" } else { "" };
    Some(format!("{method} {form}{double}"))
}

/// The files that the weights are in.
///
/// # Errors
/// When the index names a file that is not there.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let index = folder.join("model.safetensors.index.json");
    if !index.is_file() {
        let single = folder.join("model.safetensors");
        return Ok(if single.is_file() { vec![single] } else { Vec::new() });
    }
    let map = get(&read_json(&index)?, "weight_map");
    let mut names: Vec<&str> = map
        .as_object()
        .into_iter()
        .flat_map(|map| map.values())
        .filter_map(Value::as_str)
        .collect();
    names.sort_unstable();
    names.dedup();
    let files: Vec<PathBuf> = names.iter().map(|name| folder.join(name)).collect();
    match files.iter().find(|file| !file.is_file()) {
        Some(missing) => Err(Failure::usage(format!(
            "{} is named in {} and is not there. Copy or download it.",
            missing.display(),
            index.display()
        ))),
        None => Ok(files),
    }
}
