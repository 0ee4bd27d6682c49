//! A model in Hugging Face's layout: `config.json` and one or several safetensors files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::config::ModelConfig;
use crate::dtype::{Dtype, HostTensor, encode_f32};
use crate::error::CheckpointError;
use crate::packed::stored::{self, Header};
use crate::packed::{Bytes, Packed};
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
    /// Files by the names that they give their tensors.
    file_of: BTreeMap<String, usize>,
    /// Names of the model's parameters that the files spell otherwise.
    spelt: BTreeMap<String, String>,
    /// The tensors that are quantised, by their names in the files.
    packed: BTreeMap<String, Header>,
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
        let mut folder = Self {
            path: path.to_owned(),
            spelt: spellings(&config, &file_of),
            config,
            raw_config,
            files,
            file_of,
            packed: BTreeMap::new(),
        };
        for name in folder.file_of.keys() {
            if let Some(header) = stored::header(name, &|name| folder.file(name))? {
                folder.packed.insert(name.clone(), header);
            }
        }
        folder.check_tied_head()?;
        Ok(folder)
    }

    /// A head that the config calls the embedding, and that is another one in the files.
    fn check_tied_head(&self) -> Result<(), CheckpointError> {
        let (embedding, head) = (self.config.embedding_weight(), self.config.head.layer.weight());
        if !self.config.tie_word_embeddings {
            return Ok(());
        }
        let bytes = |name: &str| {
            let name = self.spelling(name);
            self.file(name)
                .and_then(|file| Some((file.dtype(name)?, file.bytes(name)?)))
        };
        match (bytes(&embedding), bytes(&head)) {
            (Some(one), Some(other)) if one != other => Err(CheckpointError::config(
                &self.path.join("config.json"),
                format!(
                    "`tie_word_embeddings` is true, so that the head is `{embedding}`, but the weights hold another \
                     `{head}`. Set it to false for the head of the file, or remove that tensor for the embedding"
                ),
            )),
            _ => Ok(()),
        }
    }

    /// A tensor's name in the files.
    pub(crate) fn spelling<'a>(&'a self, name: &'a str) -> &'a str {
        self.spelt.get(name).map_or(name, String::as_str)
    }

    fn file(&self, name: &str) -> Option<&Arc<TensorsFile>> {
        Some(&self.files[*self.file_of.get(name)?])
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

    /// Names of all tensors as the files spell them; what belongs to a quantised one has none of its own.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let is_part = |name: &&str| !self.packed.is_empty() && stored::is_part(name, &|name| self.file(name));
        self.file_of
            .keys()
            .map(String::as_str)
            .filter(move |name| !is_part(name))
    }

    /// Shape of a tensor; of a quantised one that of the matrix.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        let name = self.spelling(name);
        match self.packed.get(name) {
            Some(header) => Some(&header.shape),
            None => self.file(name)?.shape(name),
        }
    }

    /// Number format of a tensor; of a quantised one that which it had before.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        let name = self.spelling(name);
        match self.packed.get(name) {
            Some(header) => header.dtype.or_else(|| Some(self.main_dtype())),
            None => self.file(name)?.dtype(name),
        }
    }

    /// Whether a tensor is quantised in the file.
    pub fn is_packed(&self, name: &str) -> bool {
        self.packed.contains_key(self.spelling(name))
    }

    /// The number format that most of the weights have: that of the embedding.
    pub fn main_dtype(&self) -> Dtype {
        let embedding = self.config.embedding_weight();
        let name = self.spelling(&embedding);
        let stored = self.file(name).and_then(|file| file.dtype(name));
        stored.or(self.config.dtype).unwrap_or(Dtype::F32)
    }

    /// A tensor of an expected shape, as f32; a quantised one is decoded. Its pages leave memory again.
    pub fn read_f32(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        if self.is_packed(name) {
            return Ok(self.read(name, expected)?.to_f32());
        }
        let spelt = self.spelling(name);
        let read = self.file(spelt).map(|file| file.read_f32(spelt, expected, MISMATCH));
        read.transpose()?.flatten().ok_or_else(|| self.missing(name, expected))
    }

    /// The same in the format of the file; a quantised one in the format it had before.
    pub fn read(&self, name: &str, expected: &[usize]) -> Result<HostTensor, CheckpointError> {
        let spelt = self.spelling(name);
        if let (Some(header), Some(dtype)) = (self.packed.get(spelt), self.dtype(name)) {
            let packed = self.packed_of_shape(spelt, header, expected)?;
            let data = encode_f32(dtype, &packed.decode());
            packed.release();
            return Ok(HostTensor {
                dtype,
                shape: expected.to_vec(),
                data,
            });
        }
        let read = self.file(spelt).map(|file| file.read_stored(spelt, expected, MISMATCH));
        read.transpose()?.flatten().ok_or_else(|| self.missing(name, expected))
    }

    /// A matrix as it stands, whether floats or quantised, with its numbers left in the memory-mapped file;
    /// [`Packed::in_memory`] brings them in.
    pub fn read_packed(&self, name: &str, expected: [usize; 2]) -> Result<Packed, CheckpointError> {
        let spelt = self.spelling(name);
        if let Some(header) = self.packed.get(spelt) {
            return self.packed_of_shape(spelt, header, &expected);
        }
        let missing = || self.missing(name, &expected);
        let name = spelt;
        let file = self.file(name).ok_or_else(missing)?;
        self.check_shape(name, &expected)?;
        let dtype = file.float_dtype(name)?;
        let bytes = Bytes::Mapped {
            file: Arc::clone(file),
            range: file.range(name).ok_or_else(missing)?,
        };
        Ok(Packed::float(dtype, expected, bytes))
    }

    fn packed_of_shape(&self, name: &str, header: &Header, expected: &[usize]) -> Result<Packed, CheckpointError> {
        self.check_shape(name, expected)?;
        stored::read(name, header, &|name| self.file(name))
    }

    fn check_shape(&self, name: &str, expected: &[usize]) -> Result<(), CheckpointError> {
        let found = self.shape(name).unwrap_or_default();
        if found == expected {
            return Ok(());
        }
        Err(CheckpointError::Shape {
            path: self.file(name).map_or(&*self.path, |file| file.path()).to_owned(),
            tensor: name.to_owned(),
            expected: expected.to_vec(),
            found: found.to_vec(),
            advice: MISMATCH.to_owned(),
        })
    }

    fn missing(&self, name: &str, expected: &[usize]) -> CheckpointError {
        let advice = if name == self.config.head.layer.weight() && !self.config.tie_word_embeddings {
            "; if the head is the embedding, `tie_word_embeddings` in config.json should be true"
        } else if name.contains(".experts.") {
            "; the config says how many experts a block has"
        } else {
            ""
        };
        CheckpointError::MissingTensor {
            folder: self.path.clone(),
            tensor: self.spelling(&self.config.family.name_in_files(name)).to_owned(),
            advice: format!(
                "expected one of shape {expected:?}; the weights are not whole, or are another model's{advice}"
            ),
        }
    }

    /// Identifies the base, wherever it was copied to: a hash over the config, the headers of all files, and some bytes at
    /// the start, the end and between of every tensor, since two models of one shape have the same headers.
    pub fn fingerprint(&self) -> String {
        const PIECE: usize = 256;
        const GAPS: usize = 3;
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.raw_config.to_string().as_bytes());
        self.files.iter().for_each(|file| {
            hasher.update(file.header());
        });
        for (name, index) in &self.file_of {
            let file = &self.files[*index];
            let bytes = file.bytes(name).unwrap_or_default();
            if bytes.len() <= PIECE * (GAPS + 1) {
                hasher.update(bytes);
                continue;
            }
            for gap in 0..GAPS {
                let first = (bytes.len() - PIECE) / GAPS * gap;
                hasher.update(&bytes[first..first + PIECE]);
            }
            hasher.update(&bytes[bytes.len() - PIECE..]);
            file.forget(file.range(name).unwrap_or_default());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Sizes and times of change of the files, which change with any byte of them.
    pub fn stamp(&self) -> Result<String, CheckpointError> {
        let mut stamp = String::new();
        for file in &self.files {
            let io = |source| CheckpointError::io(file.path(), source);
            let metadata = std::fs::metadata(file.path()).map_err(io)?;
            let modified = metadata.modified().map_err(io)?;
            let since = modified.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            stamp += &format!("{} {} ", metadata.len(), since.as_nanos());
        }
        Ok(stamp)
    }
}

/// Which parameters of a model the files spell otherwise: with a name of the files' own, or without the prefix of the part that has
/// no head, as files of that part alone.
fn spellings(config: &ModelConfig, file_of: &BTreeMap<String, usize>) -> BTreeMap<String, String> {
    let family = config.family;
    let embedding = config.embedding_weight();
    let bare = |name: &str| {
        name.strip_prefix(family.prefix)
            .is_some_and(|rest| file_of.contains_key(rest))
    };
    let without_prefix = !file_of.contains_key(&embedding) && bare(&embedding);
    let mut spelt = BTreeMap::new();
    for name in file_of.keys() {
        let renamed = family.renamed.iter().find(|(_, there)| name.starts_with(there));
        if let Some((here, there)) = renamed {
            spelt.insert(format!("{here}{}", &name[there.len()..]), name.clone());
        } else if without_prefix && !name.starts_with(&format!("{}.", config.head.layer.path)) {
            spelt.insert(format!("{}{name}", family.prefix), name.clone());
        }
    }
    spelt
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
