//! Writes safetensors files and model folders, tensor by tensor, whole or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::{Value, json};

use crate::atomic::{write_atomically, write_through};
use crate::dtype::{Dtype, HostTensor};
use crate::error::CheckpointError;
use crate::model_folder::{INDEX, SINGLE};

/// What a tensor will be, before it is made.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// Its format.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bytes()
    }
}

/// Makes the tensor of a spec; called once for each, in order, so that only one is in memory.
pub type Produce<'a> = &'a mut dyn FnMut(&TensorSpec) -> Result<HostTensor, CheckpointError>;

/// Largest file of a model folder.
pub const MAX_SHARD_BYTES: usize = 5_000_000_000;

/// Files of a model folder that belong to the tokenizer or to generation, and go along with new weights.
const COMPANIONS: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
];

/// Writes a safetensors file with `{"format": "pt"}` and the given entries as its metadata.
pub fn write_safetensors(
    path: &Path,
    specs: &[TensorSpec],
    metadata: &BTreeMap<String, String>,
    produce: Produce,
) -> Result<(), CheckpointError> {
    let mut order: Vec<&TensorSpec> = specs.iter().collect();
    // The safetensors library's own order: wide formats first, then by name.
    let format = |spec: &TensorSpec| spec.dtype.to_safetensors();
    order.sort_by(|a, b| format(b).cmp(&format(a)).then_with(|| a.name.cmp(&b.name)));
    let mut header = serde_json::Map::new();
    let mut entries = serde_json::Map::from_iter([("format".to_owned(), json!("pt"))]);
    entries.extend(metadata.iter().map(|(key, value)| (key.clone(), json!(value))));
    header.insert("__metadata__".into(), Value::Object(entries));
    let mut offset = 0;
    for spec in &order {
        let end = offset + spec.bytes();
        let dtype = format!("{:?}", spec.dtype.to_safetensors());
        header.insert(
            spec.name.clone(),
            json!({"dtype": dtype, "shape": spec.shape, "data_offsets": [offset, end]}),
        );
        offset = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut failure = None;
    let written = write_through(path, |file| {
        let mut writer = BufWriter::new(file);
        writer.write_all(&(header.len() as u64).to_le_bytes())?;
        writer.write_all(&header)?;
        for spec in order {
            match produce(spec) {
                Ok(tensor)
                    if tensor.shape == spec.shape
                        && tensor.dtype == spec.dtype
                        && tensor.data.len() == spec.bytes() =>
                {
                    writer.write_all(&tensor.data)?;
                }
                Ok(tensor) => {
                    failure = Some(CheckpointError::Shape {
                        path: path.to_owned(),
                        tensor: spec.name.clone(),
                        expected: spec.shape.clone(),
                        found: tensor.shape,
                        advice: "this is a mistake of the program, please report it".into(),
                    });
                    return Err(std::io::ErrorKind::InvalidData.into());
                }
                Err(error) => {
                    failure = Some(error);
                    return Err(std::io::ErrorKind::InvalidData.into());
                }
            }
        }
        writer.flush()
    });
    match failure {
        Some(error) => Err(error),
        None => written,
    }
}

/// Writes tensors that are in memory already.
pub fn write_tensors(path: &Path, tensors: &BTreeMap<String, HostTensor>) -> Result<(), CheckpointError> {
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|(name, tensor)| TensorSpec {
            name: name.clone(),
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
        })
        .collect();
    write_safetensors(path, &specs, &BTreeMap::new(), &mut |spec| {
        let found = tensors.get(&spec.name).cloned();
        found.ok_or_else(|| CheckpointError::Other(format!("the tensor `{}` is gone", spec.name)))
    })
}

/// Writes a model folder: the config, the weights in files of at most `max_shard_bytes`, and the files of `source` that
/// belong to the tokenizer.
pub fn write_model_folder(
    out: &Path,
    config: &Value,
    specs: &[TensorSpec],
    max_shard_bytes: usize,
    source: &Path,
    produce: Produce,
) -> Result<(), CheckpointError> {
    std::fs::create_dir_all(out).map_err(|error| CheckpointError::io(out, error))?;
    for name in COMPANIONS {
        let from = source.join(name);
        if from.is_file() && source != out {
            let bytes = std::fs::read(&from).map_err(|error| CheckpointError::io(&from, error))?;
            write_atomically(&out.join(name), &bytes)?;
        }
    }
    let shards = shards(specs, max_shard_bytes);
    let mut written = BTreeSet::new();
    if let [shard] = shards.as_slice() {
        write_safetensors(&out.join(SINGLE), shard, &BTreeMap::new(), produce)?;
        written.insert(SINGLE.to_owned());
    } else {
        let mut weight_map = serde_json::Map::new();
        for (number, shard) in shards.iter().enumerate() {
            let name = format!("model-{:05}-of-{:05}.safetensors", number + 1, shards.len());
            write_safetensors(&out.join(&name), shard, &BTreeMap::new(), &mut *produce)?;
            weight_map.extend(shard.iter().map(|spec| (spec.name.clone(), json!(name))));
            written.insert(name);
        }
        let total: usize = specs.iter().map(TensorSpec::bytes).sum();
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        write_atomically(&out.join(INDEX), pretty(&index)?.as_bytes())?;
        written.insert(INDEX.to_owned());
    }
    remove_other_weights(out, &written)?;
    write_atomically(&out.join("config.json"), pretty(&with_dtype(config, specs))?.as_bytes())
}

/// Removes the weights of an earlier model that are left beside the new ones, where a reader could take them instead.
fn remove_other_weights(folder: &Path, written: &BTreeSet<String>) -> Result<(), CheckpointError> {
    let io = |error| CheckpointError::io(folder, error);
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_shard = name.starts_with("model-") && name.ends_with(".safetensors");
        if (is_shard || name == SINGLE || name == INDEX) && !written.contains(&name) {
            std::fs::remove_file(&path).map_err(|error| CheckpointError::io(&path, error))?;
        }
    }
    Ok(())
}

/// The config with the number format that most of the weights have, under the key it uses. They are floats, so that it says
/// nothing of quantisation.
fn with_dtype(config: &Value, specs: &[TensorSpec]) -> Value {
    let mut config = config.clone();
    if let Some(map) = config.as_object_mut() {
        map.shift_remove("quantization_config");
    }
    let Some(largest) = specs.iter().max_by_key(|spec| spec.shape.iter().product::<usize>()) else {
        return config;
    };
    let key = if config.get("dtype").is_some() {
        "dtype"
    } else {
        "torch_dtype"
    };
    if let Some(map) = config.as_object_mut() {
        map.insert(key.into(), json!(largest.dtype.name()));
    }
    config
}

fn shards(specs: &[TensorSpec], max_shard_bytes: usize) -> Vec<Vec<TensorSpec>> {
    let mut shards = vec![Vec::new()];
    let mut size = 0;
    for spec in specs {
        if size > 0 && size + spec.bytes() > max_shard_bytes {
            shards.push(Vec::new());
            size = 0;
        }
        size += spec.bytes();
        if let Some(shard) = shards.last_mut() {
            shard.push(spec.clone());
        }
    }
    shards
}

/// JSON with two spaces of indentation and a final newline.
pub fn pretty(json: &Value) -> Result<String, CheckpointError> {
    let text = serde_json::to_string_pretty(json);
    Ok(text.map_err(|error| CheckpointError::Other(format!("cannot be written as JSON: {error}")))? + "\n")
}
