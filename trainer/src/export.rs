//! What a run hands back: an adapter in PEFT's layout, a model folder, and adapters merged into models.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use interlingua_checkpoints::CheckpointError;
use interlingua_checkpoints::dtype::Dtype;
use interlingua_checkpoints::model_folder::ModelFolder;
use interlingua_checkpoints::own_adapter::Description;
use interlingua_checkpoints::packed::Quantization;
use interlingua_checkpoints::write::{MAX_SHARD_BYTES, TensorSpec, write_model_folder};
use interlingua_recipes::{AdapterKind, Device, Dtype as WantedDtype, Recipe};
use serde_json::{Value, json};

use crate::adapters::Adapter;
use crate::adapters::attach::host_tensor;
use crate::adapters::write::write_adapter;
use crate::engine::inputs::{Inputs, RopeLength};
use crate::error::TrainError;
use crate::models::Model;
use crate::models::decoder::Block;
use crate::parameters::{ParameterId, Stored};
use crate::train::selection::Selection;
use crate::train::setup::{Base, load_for_inference};
use crate::train::summary::Summary;

/// Writes `adapter/` when there is an adapter, and `model/` when weights of the base were trained.
pub fn write_results(
    recipe: &Recipe,
    base: &Base,
    model: &Model,
    selection: &Selection,
    summary: &Summary,
) -> Result<(), TrainError> {
    if recipe.adapter.kind != AdapterKind::None {
        write_adapter(recipe, model, summary)?;
    }
    if selection.trains_base(model) {
        let dtype = base.dtype();
        let weight = |id: ParameterId| model.parameters.get(id).values();
        write_model(
            &recipe.output.join("model"),
            model,
            &base.raw_config,
            &base.path,
            dtype,
            &weight,
        )?;
    }
    Ok(())
}

/// Writes the model's own weights as a model folder; `weight` gives the values of a parameter, flat.
fn write_model(
    out: &Path,
    model: &Model,
    raw_config: &Value,
    source: &Path,
    dtype: Dtype,
    weight: &dyn Fn(ParameterId) -> Tensor<1>,
) -> Result<(), TrainError> {
    let own = model.parameters.iter().filter(|(_, parameter)| !parameter.adapter);
    let in_files: BTreeMap<String, ParameterId> = own
        .map(|(id, parameter)| (model.config.family.name_in_files(&parameter.name), id))
        .collect();
    let specs: Vec<TensorSpec> = in_files
        .iter()
        .map(|(name, id)| TensorSpec {
            name: name.clone(),
            dtype,
            shape: model.parameters.get(*id).shape.clone(),
        })
        .collect();
    let mut config = raw_config.clone();
    if let Some(config) = config.as_object_mut() {
        // What is written is not quantised.
        config.remove("quantization_config");
    }
    for key in ["dtype", "torch_dtype"] {
        if config.get(key).is_some() {
            config[key] = json!(dtype.name());
        }
    }
    write_model_folder(out, &config, &specs, MAX_SHARD_BYTES, source, &mut |spec| {
        let id = in_files.get(&spec.name).copied();
        let id = id.ok_or_else(|| CheckpointError::Other(format!("the parameter `{}` is gone", spec.name)))?;
        let mut parameter = model.parameters.get(id).clone();
        parameter.value = Stored::Dense(weight(id));
        Ok(host_tensor(&parameter, dtype))
    })?;
    Ok(())
}

/// How a merged folder compares with the adapter on its base.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MergeReport {
    /// Largest difference of a logit, the folder read again from disk.
    pub max_logit_difference: f64,
    /// Largest logit, for scale.
    pub max_logit: f64,
    /// How far the adapter had moved the logits.
    pub max_logit_change: f64,
    /// How far the merged logits are from those of the quantised base with the adapter, which is what was trained; absent where
    /// the base was not quantised.
    pub max_logit_shift: Option<f64>,
    /// The number format that was written.
    pub dtype: Dtype,
}

/// Which base an adapter that was trained on a quantised one is merged into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MergeBase {
    /// The quantised weights, decoded: what the adapter was trained on.
    #[default]
    Dequantised,
    /// The weights as they are in the folder.
    Original,
}

/// Merges adapters into a model and writes the folder, in the number format of the base. The folder is read again and its
/// logits compared with those of base and adapter before this returns.
///
/// # Errors
/// When model and adapters are wrong or do not fit, or the folder cannot be written.
pub fn merge(
    model: &str,
    adapters: &[PathBuf],
    out: &Path,
    base: MergeBase,
    device: Device,
) -> Result<MergeReport, TrainError> {
    if out.join("config.json").exists() {
        return Err(TrainError::Setup(format!(
            "{}: there is a model in this folder already; choose another --out",
            out.display()
        )));
    }
    let trained_on = trained_on(adapters)?;
    let quantization = trained_on.filter(|_| base == MergeBase::Dequantised);
    let open = |adapters: &[PathBuf], quantization| {
        load_for_inference(model, adapters, WantedDtype::F32, device, quantization)
    };
    let (plain, folder) = open(&[], quantization)?;
    if folder.config().quantization.is_some() && base == MergeBase::Original {
        return Err(TrainError::Setup(format!(
            "{}: these weights are quantised themselves, so there are no others to merge into; name the folder of the 16-bit \
             weights, or merge into the dequantised ones",
            folder.path().display()
        )));
    }
    let before = probe(&plain);
    drop(plain);
    let (adapted, _) = open(adapters, quantization)?;
    check_can_be_merged(&adapted)?;
    if adapted.config.tie_word_embeddings && !adapted.head.adapters.is_empty() {
        return Err(TrainError::Setup(
            "this adapter sits on the head of a model whose head is its embedding (tie_word_embeddings), so it cannot be \
             merged without changing the embedding; use it as an adapter"
                .into(),
        ));
    }
    let expected = probe(&adapted);
    write_merged(&adapted, &folder, out)?;
    drop(adapted);
    let (merged, reread) = load_for_inference(&out.to_string_lossy(), &[], WantedDtype::F32, device, None)?;
    let found = probe(&merged);
    drop(merged);
    let trained = match trained_on {
        Some(_) if quantization.is_none() => Some(probe(&open(adapters, trained_on)?.0)),
        Some(_) => Some(expected.clone()),
        None => None,
    };
    let zeros = vec![0.0; expected.len()];
    Ok(MergeReport {
        max_logit_difference: largest_difference(&found, &expected),
        max_logit: largest_difference(&expected, &zeros),
        max_logit_change: largest_difference(&expected, &before),
        max_logit_shift: trained.map(|trained| largest_difference(&found, &trained)),
        dtype: reread.main_dtype(),
    })
}

fn largest_difference(one: &[f32], other: &[f32]) -> f64 {
    let differences = one.iter().zip(other).map(|(one, other)| f64::from((one - other).abs()));
    differences.fold(0.0, f64::max)
}

/// How the base was quantised that the adapters were trained on.
fn trained_on(adapters: &[PathBuf]) -> Result<Option<Quantization>, TrainError> {
    let mut known = None;
    for adapter in adapters {
        let Some(found) = Description::read(adapter)?.and_then(|description| description.quantization) else {
            continue;
        };
        if known.is_some_and(|known| known != found) {
            return Err(TrainError::Setup(format!(
                "{}: this adapter was trained on a base that was quantised in another way than that of the one before it; merge \
                 them one after another",
                adapter.display()
            )));
        }
        known = Some(found);
    }
    Ok(known)
}

/// An error when an adapter is no change of a weight that holds for all rows.
fn check_can_be_merged(model: &Model) -> Result<(), TrainError> {
    let languages = model.adapter_languages();
    if !languages.is_empty() {
        return Err(TrainError::Setup(format!(
            "this adapter has a copy for each of {}, and one set of weights holds one of them; merge the folder of one language",
            languages.into_iter().collect::<Vec<_>>().join(", ")
        )));
    }
    let has = |part: fn(&Block) -> bool| model.blocks.iter().any(part);
    let kind = if has(|block| !block.bottlenecks.is_empty()) {
        "a bottleneck adapter is layers of its own"
    } else if has(|block| !block.steering.is_empty()) {
        "a steering vector is added between blocks"
    } else {
        return Ok(());
    };
    Err(TrainError::Setup(format!(
        "{kind}, which no weight of the model can hold, so that it cannot be merged; use it with --adapter"
    )))
}

fn write_merged(model: &Model, folder: &ModelFolder, out: &Path) -> Result<(), TrainError> {
    let weight = |id: ParameterId| {
        let parameter = model.parameters.get(id);
        let linear = model.linears().find(|linear| linear.weight == id);
        let adapters: Vec<&Adapter> = linear
            .iter()
            .flat_map(|linear| &linear.adapters)
            .map(|adapter| &adapter.adapter)
            .collect();
        if adapters.is_empty() {
            return parameter.values();
        }
        let base = parameter.matrix();
        // Every adapter adds its own change of the base.
        let mut merged = base.clone();
        for adapter in adapters {
            merged = merged
                + match adapter {
                    Adapter::Lora(lora) => lora.delta(&model.parameters),
                    Adapter::Dora(dora) => dora.merged(base.clone(), &model.parameters) - base.clone(),
                };
        }
        merged.reshape([parameter.len()])
    };
    write_model(
        out,
        model,
        folder.raw_config(),
        folder.path(),
        folder.main_dtype(),
        &weight,
    )
}

/// Logits of a fixed input, spread over the vocabulary.
fn probe(model: &Model) -> Vec<f32> {
    let vocabulary = model.config.vocab_size as u32;
    let length = 32u32;
    let ids: Vec<u32> = (0..length).map(|index| (index * 7919 + 1) % vocabulary).collect();
    let positions: Vec<u32> = (0..length).collect();
    let boundaries = [0, length as usize];
    let inputs = Inputs::new(
        &model.config,
        &ids,
        &positions,
        &boundaries,
        RopeLength::Own,
        &model.device,
    );
    model
        .logits(model.last_hidden_state(&inputs, None))
        .into_data()
        .iter::<f32>()
        .collect()
}
