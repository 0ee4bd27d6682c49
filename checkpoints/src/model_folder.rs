//! A model in Hugging Face's layout: `config.json` and one or several safetensors files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::config::ModelConfig;
use crate::dtype::{Dtype, HostTensor};
use crate::error::CheckpointError;
use crate::packed::Packed;
use crate::tensors::TensorsFile;

/// Name of the weights of a model in one file.
pub const SINGLE: &str = "model.safetensors";

/// Name of the index of a model in several files.
pub const INDEX: &str = "model.safetensors.index.json";

/// What to do about a tensor of another shape.
const MISMATCH: &str = "config.json belongs to another model, or the weights do";

/// An open model folder.
#[derive(Debug)]
pub struct ModelFolder {
    path: PathBuf,
    config: ModelConfig,
    raw_config: Value,
    files: Vec<Arc<TensorsFile>>,
    file_of: BTreeMap<String, usize>,
}

impl ModelFolder {
    /// Opens a folder, with every shard's header checked.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let (config, raw_config) = ModelConfig::read(path)?;
        let index = path.join(INDEX);
        let single = path.join(SINGLE);
        let (files, file_of) = if single.is_file() {
            let file = TensorsFile::open(&single)?;
            let names = file.names().map(|name| (name, 0)).collect();
            (vec![Arc::new(file)], names)
        } else if index.is_file() {
            open_shards(path, &index)?
        } else {
            let pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
            let advice = if pickled.iter().any(|name| path.join(name).is_file()) {
                "its weights are pickled (pytorch_model.bin), which is not read: load and save the model once with \
                 Transformers' save_pretrained"
            } else {
                "the folder has a config and no weights; fetch them, or set model.init = \"random\""
            };
            return Err(CheckpointError::MissingFile {
                folder: path.to_owned(),
                file: format!("{SINGLE} or {INDEX}"),
                advice: advice.into(),
            });
        };
        Ok(Self {
            path: path.to_owned(),
            config,
            raw_config,
            files,
            file_of,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// `config.json` as it stands.
    pub fn raw_config(&self) -> &Value {
        &self.raw_config
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.file_of.keys().map(String::as_str)
    }

    /// Shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.files[*self.file_of.get(name)?].shape(name)
    }

    /// Number format of a tensor.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.files[*self.file_of.get(name)?].dtype(name)
    }

    /// The number format that most of the weights have: that of the embedding.
    pub fn main_dtype(&self) -> Dtype {
        self.dtype("model.embed_tokens.weight").unwrap_or(Dtype::F32)
    }

    /// A tensor of an expected shape, as f32. Its pages leave memory again.
    pub fn read_f32(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        let read = self
            .file_of
            .get(name)
            .map(|index| self.files[*index].read_f32(name, expected, MISMATCH));
        read.transpose()?.flatten().ok_or_else(|| self.missing(name, expected))
    }

    /// The same in the format of the file.
    pub fn read(&self, name: &str, expected: &[usize]) -> Result<HostTensor, CheckpointError> {
        let read = self
            .file_of
            .get(name)
            .map(|index| self.files[*index].read_stored(name, expected, MISMATCH));
        read.transpose()?.flatten().ok_or_else(|| self.missing(name, expected))
    }

    /// Whether its weights are quantised.
    pub fn is_quantised(&self) -> bool {
        false
    }

    /// A matrix of an expected shape where it lies in its file, decoded where it is used.
    pub fn map(&self, name: &str, expected: [usize; 2]) -> Result<Packed, CheckpointError> {
        let mapped = self
            .file_of
            .get(name)
            .map(|index| TensorsFile::map(&self.files[*index], name, expected, MISMATCH));
        mapped
            .transpose()?
            .flatten()
            .ok_or_else(|| self.missing(name, &expected))
    }

    fn missing(&self, name: &str, expected: &[usize]) -> CheckpointError {
        CheckpointError::MissingTensor {
            folder: self.path.clone(),
            tensor: name.to_owned(),
            advice: format!("expected one of shape {expected:?}; the weights are not whole, or are another model's"),
        }
    }

    /// Identifies the base: a hash over the config and the headers of all files.
    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.raw_config.to_string().as_bytes());
        self.files.iter().for_each(|file| {
            hasher.update(file.header());
        });
        hasher.finalize().to_hex().to_string()
    }
}

/// The files of a model, and which of them each tensor is in.
type Shards = (Vec<Arc<TensorsFile>>, BTreeMap<String, usize>);

fn open_shards(folder: &Path, index: &Path) -> Result<Shards, CheckpointError> {
    let text = std::fs::read_to_string(index).map_err(|source| CheckpointError::io(index, source))?;
    let json: Value = serde_json::from_str(&text)
        .map_err(|error| CheckpointError::config(index, format!("this is not JSON: {error}")))?;
    let weight_map = json.get("weight_map").and_then(Value::as_object);
    let weight_map = weight_map.ok_or_else(|| CheckpointError::config(index, "there is no object `weight_map`"))?;
    let mut files: Vec<Arc<TensorsFile>> = Vec::new();
    let mut file_of = BTreeMap::new();
    for (tensor, shard) in weight_map {
        let name = shard
            .as_str()
            .filter(|name| !name.contains(['/', '\\']))
            .ok_or_else(|| {
                CheckpointError::config(
                    index,
                    format!("`{tensor}` should name a file of this folder, found {shard}"),
                )
            })?;
        let path = folder.join(name);
        let position = match files.iter().position(|file| file.path() == path) {
            Some(position) => position,
            None if !path.is_file() => {
                return Err(CheckpointError::MissingFile {
                    folder: folder.to_owned(),
                    file: name.to_owned(),
                    advice: format!("{INDEX} names it; fetch the model again"),
                });
            }
            None => {
                files.push(Arc::new(TensorsFile::open(&path)?));
                files.len() - 1
            }
        };
        if files[position].shape(tensor).is_none() {
            return Err(CheckpointError::MissingTensor {
                folder: path,
                tensor: tensor.clone(),
                advice: format!("{INDEX} says that it is in this file; fetch the model again"),
            });
        }
        file_of.insert(tensor.clone(), position);
    }
    Ok((files, file_of))
}
