//! Model folders merged, tensor by tensor.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Distance, Kind, Options, Report, Settings, blend, readme};
use crate::atomic::write_atomically;
use crate::dtype::{HostTensor, decode_f32, encode_f32};
use crate::error::CheckpointError;
use crate::hub;
use crate::model_folder::ModelFolder;
use crate::write::{MAX_SHARD_BYTES, TensorSpec, write_model_folder};

/// Keys of `config.json` that say nothing about what a model computes.
const FREE_KEYS: [&str; 6] = [
    "_name_or_path",
    "architectures",
    "dtype",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
];

/// Models that fit together.
#[derive(Debug)]
pub(super) struct ModelMerge {
    models: Vec<ModelFolder>,
    base: Option<ModelFolder>,
    specs: Vec<TensorSpec>,
}

impl ModelMerge {
    pub(super) fn open(
        inputs: &[PathBuf],
        base: Option<&Path>,
        settings: &Settings,
        options: &Options,
        notes: &mut Vec<String>,
    ) -> Result<Self, CheckpointError> {
        let refuse = |problem: String| Err(CheckpointError::Merge(problem));
        if options.combination.is_some() {
            return refuse("a combination is for adapters, and these are models; leave it out".to_owned());
        }
        let method = settings.method.name();
        match (settings.method.has_base(), base) {
            (true, None) => {
                return refuse(format!(
                    "{method} merges what models learnt, so it needs the model that all of them started from; name it with --base"
                ));
            }
            (false, Some(_)) => {
                return refuse(format!(
                    "a base is for ties and dare-ties, and {method} has none; leave it out"
                ));
            }
            _ => {}
        }
        let open = |path: &Path| ModelFolder::open(&hub::resolve(&path.to_string_lossy())?);
        let models = inputs.iter().map(|path| open(path)).collect::<Result<Vec<_>, _>>()?;
        let base = base.map(open).transpose()?;
        let first = &models[0];
        for other in models[1..].iter().chain(&base) {
            check_same(first, other)?;
            notes.extend(differences(first, other));
        }
        let specs = first.names().map(|name| spec(first, name)).collect::<Result<_, _>>()?;
        Ok(Self { models, base, specs })
    }

    pub(super) fn write(&self, folder: &Path, settings: &Settings) -> Result<Report, CheckpointError> {
        let first = &self.models[0];
        let mut distances = vec![Distance::default(); self.models.len()];
        let mut produce = |spec: &TensorSpec| {
            let read = |model: &ModelFolder| model.read_f32(&spec.name, &spec.shape);
            let tensors = self.models.iter().map(read).collect::<Result<Vec<_>, _>>()?;
            let base = self.base.as_ref().map(read).transpose()?;
            let slices: Vec<&[f32]> = tensors.iter().map(Vec::as_slice).collect();
            let merged = blend(&spec.name, base.as_deref(), &slices, settings);
            let data = encode_f32(spec.dtype, &merged);
            let rounded = decode_f32(spec.dtype, &data);
            for (distance, parent) in distances.iter_mut().zip(&tensors) {
                distance.add(&rounded, parent);
            }
            Ok(HostTensor {
                dtype: spec.dtype,
                shape: spec.shape.clone(),
                data,
            })
        };
        let source = first.path();
        write_model_folder(
            folder,
            first.raw_config(),
            &self.specs,
            MAX_SHARD_BYTES,
            source,
            &mut produce,
        )?;
        let parents = self.models.iter().map(|model| model.path().display());
        let text = readme("Merged model", "library_name: transformers\n", parents, settings);
        write_atomically(&folder.join("README.md"), text.as_bytes())?;
        Ok(Report {
            kind: Kind::Models,
            tensors: self.specs.len(),
            distances: distances.iter().map(Distance::relative).collect(),
        })
    }
}

fn spec(model: &ModelFolder, name: &str) -> Result<TensorSpec, CheckpointError> {
    let dtype = model.dtype(name).ok_or_else(|| {
        CheckpointError::Merge(format!(
            "{}: tensor `{name}` is not in f32, bf16 or f16; only weights in these formats can be merged",
            model.path().display()
        ))
    })?;
    Ok(TensorSpec {
        name: name.to_owned(),
        dtype,
        shape: model.shape(name).unwrap_or_default().to_vec(),
    })
}

/// An error unless two models have the same tensors in the same shapes.
fn check_same(first: &ModelFolder, other: &ModelFolder) -> Result<(), CheckpointError> {
    let paths = [first.path().display(), other.path().display()];
    let lacks = |lacking: usize, tensor: &str| {
        Err(CheckpointError::Merge(format!(
            "{}: there is no tensor `{tensor}`, which {} has; models are merged when they have the same parts",
            paths[lacking],
            paths[1 - lacking]
        )))
    };
    for name in other.names() {
        if first.shape(name).is_none() {
            return lacks(0, name);
        }
    }
    for name in first.names() {
        let shape = first.shape(name).unwrap_or_default();
        let Some(found) = other.shape(name) else {
            return lacks(1, name);
        };
        if found == shape {
            continue;
        }
        let vocabulary = [first.config().embedding_weight(), first.config().head.layer.weight()];
        let is_vocabulary = vocabulary.iter().any(|own| first.spelling(own) == name);
        let advice = if is_vocabulary && found.get(1..) == shape.get(1..) {
            "the vocabularies are of different sizes, so that rows mean different tokens: merge models of one tokenizer"
        } else {
            "models are merged when they are of one architecture and size"
        };
        return Err(CheckpointError::Merge(format!(
            "tensor `{name}` has the shape {shape:?} in {} and {found:?} in {}; {advice}",
            paths[0], paths[1]
        )));
    }
    Ok(())
}

/// What differs beside the weights, and which of the two goes into the result.
fn differences(first: &ModelFolder, other: &ModelFolder) -> Vec<String> {
    let mut notes = Vec::new();
    let mut note = |what: &str| {
        let (first, other) = (first.path().display(), other.path().display());
        notes.push(format!(
            "{first} and {other} differ in {what}; the result has that of {first}"
        ));
    };
    let (one, two) = (first.raw_config(), other.raw_config());
    let keys = |config: &Value| -> Vec<String> {
        let entries = config.as_object().into_iter().flatten();
        entries.map(|(key, _)| key.clone()).collect()
    };
    let keys: BTreeSet<String> = keys(one).into_iter().chain(keys(two)).collect();
    let changed: Vec<&str> = keys
        .iter()
        .map(String::as_str)
        .filter(|key| !FREE_KEYS.contains(key) && one.get(key) != two.get(key))
        .collect();
    if !changed.is_empty() {
        note(&format!("config.json ({})", changed.join(", ")));
    }
    let tokenizer = |model: &ModelFolder| std::fs::read(model.path().join("tokenizer.json")).ok();
    if let (Some(one), Some(two)) = (tokenizer(first), tokenizer(other))
        && one != two
    {
        note("tokenizer.json");
    }
    notes
}
