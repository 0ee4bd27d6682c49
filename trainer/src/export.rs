//! What a run hands back: an adapter in PEFT's layout, a model folder, and adapters merged into models.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Tensor};
use interlingua_checkpoints::CheckpointError;
use interlingua_checkpoints::dtype::Dtype;
use interlingua_checkpoints::model_folder::ModelFolder;
use interlingua_checkpoints::peft::{AdapterConfig, AdapterFolder};
use interlingua_checkpoints::write::{TensorSpec, write_model_folder};
use interlingua_recipes::{AdapterKind, Device, Dtype as WantedDtype, Recipe};
use serde_json::{Value, json};

use crate::adapters::Adapter;
use crate::adapters::attach::{adapter_tensors, host_tensor};
use crate::engine::inputs::{Inputs, RopeLength};
use crate::error::TrainError;
use crate::models::Model;
use crate::parameters::ParameterId;
use crate::train::selection::Selection;
use crate::train::setup::{Base, load_for_inference};
use crate::train::summary::Summary;

/// Largest file of a model folder.
const MAX_SHARD_BYTES: usize = 5_000_000_000;

/// Writes `adapter/` when there is an adapter, and `model/` when weights of the base were trained.
pub fn write_results(
    recipe: &Recipe,
    base: &Base,
    model: &Model,
    selection: &Selection,
    summary: &Summary,
) -> Result<(), TrainError> {
    if recipe.adapter.kind != AdapterKind::None {
        let config = adapter_config(recipe, model)?;
        let tensors = adapter_tensors(model, &config)?;
        let readme = readme(recipe, summary);
        AdapterFolder::write(&recipe.output.join("adapter"), &config, tensors, &readme)?;
    }
    if selection.trains_base(model) {
        let dtype = base.dtype();
        let weight = |id: ParameterId| model.parameters.get(id).value.clone();
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

fn adapter_config(recipe: &Recipe, model: &Model) -> Result<AdapterConfig, TrainError> {
    let adapter = &recipe.adapter;
    let alpha_pattern = match &adapter.init_from {
        Some(path) => AdapterFolder::open(path)?.config().alpha_pattern.clone(),
        None => Default::default(),
    };
    let modules = model.linears().filter(|linear| linear.adapter.is_some());
    let names: BTreeSet<&str> = modules.filter_map(|linear| linear.name.rsplit('.').next()).collect();
    // Names are exact where every module of a name has an adapter; else the paths themselves are listed.
    let exact = model.linears().all(|linear| {
        let named = linear.name.rsplit('.').next().is_some_and(|name| names.contains(name));
        named == linear.adapter.is_some()
    });
    let targets: Value = if exact {
        json!(names)
    } else {
        let paths = model
            .linears()
            .filter(|linear| linear.adapter.is_some())
            .map(|linear| linear.name.as_str());
        json!(paths.collect::<Vec<_>>())
    };
    Ok(AdapterConfig {
        base_model: recipe.model.path.clone(),
        rank: adapter.rank,
        alpha: adapter.alpha,
        dropout: adapter.dropout,
        target_modules: targets,
        modules_to_save: adapter.modules_to_save.clone(),
        use_rslora: adapter.rslora,
        use_dora: adapter.kind == AdapterKind::Dora,
        alpha_pattern,
    })
}

/// The model card of an adapter: base, data, languages with their shares and scores.
fn readme(recipe: &Recipe, summary: &Summary) -> String {
    let total: u64 = summary.by_language.values().map(|loss| loss.tokens).sum();
    let languages: Vec<&str> = summary.by_language.keys().map(String::as_str).collect();
    let mut text = String::from("---\nlibrary_name: peft\n");
    text.push_str(&format!("base_model: {}\nlanguage:\n", recipe.model.path));
    languages
        .iter()
        .for_each(|language| text.push_str(&format!("- {language}\n")));
    text.push_str("tags:\n- interlingua\n---\n\n# Adapter\n\n");
    text.push_str(&format!(
        "Trained with Interlingua on `{}`: {} steps, {} supervised tokens.\n\n",
        recipe.model.path, summary.steps, summary.tokens
    ));
    text.push_str(
        "| language | samples | supervised tokens | share | training loss at the end |\n|---|---|---|---|---|\n",
    );
    for (language, loss) in &summary.by_language {
        let share = 100.0 * loss.tokens as f64 / (total as f64).max(1.0);
        let (samples, tokens, loss) = (loss.samples, loss.tokens, loss.loss);
        text.push_str(&format!(
            "| {language} | {samples} | {tokens} | {share:.1} % | {loss:.4} |\n"
        ));
    }
    if !summary.evaluations.is_empty() {
        text.push_str("\n| task | language | metric | before | after |\n|---|---|---|---|---|\n");
    }
    for (task, evaluation) in &summary.evaluations {
        for (language, metrics) in &evaluation.last.by_language {
            for (metric, after) in metrics {
                let before = evaluation
                    .first
                    .by_language
                    .get(language)
                    .and_then(|metrics| metrics.get(metric));
                let before = before.map_or_else(|| "-".to_owned(), |before| format!("{before:.4}"));
                text.push_str(&format!("| {task} | {language} | {metric} | {before} | {after:.4} |\n"));
            }
        }
    }
    text.push_str("\nData:\n");
    for source in &recipe.data.sources {
        let files = source.path.paths().map(|path| path.file_name().unwrap_or_default());
        let files: Vec<String> = files.map(|name| format!("`{}`", name.to_string_lossy())).collect();
        text.push_str(&format!("- {} ({})\n", source.name, files.join(", ")));
    }
    text
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
    let own = || model.parameters.iter().filter(|(_, parameter)| !parameter.adapter);
    let specs: Vec<TensorSpec> = own()
        .map(|(_, parameter)| TensorSpec {
            name: parameter.name.clone(),
            dtype,
            shape: parameter.shape.clone(),
        })
        .collect();
    let mut config = raw_config.clone();
    for key in ["dtype", "torch_dtype"] {
        if config.get(key).is_some() {
            config[key] = json!(dtype.name());
        }
    }
    write_model_folder(out, &config, &specs, MAX_SHARD_BYTES, source, &mut |spec| {
        let id = model.parameters.find(&spec.name);
        let id = id.ok_or_else(|| CheckpointError::Other(format!("the parameter `{}` is gone", spec.name)))?;
        let mut parameter = model.parameters.get(id).clone();
        parameter.value = weight(id);
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
    /// The number format that was written.
    pub dtype: Dtype,
}

/// Merges adapters into a model and writes the folder, in the number format of the base. The folder is read again and its
/// logits compared with those of base and adapter before this returns.
pub fn merge(model: &str, adapters: &[PathBuf], out: &Path, device: Device) -> Result<MergeReport, TrainError> {
    if out.join("config.json").exists() {
        return Err(TrainError::Setup(format!(
            "{}: there is a model in this folder already; choose another --out",
            out.display()
        )));
    }
    let (plain, folder) = load_for_inference(model, &[], WantedDtype::F32, device)?;
    let before = probe(&plain);
    drop(plain);
    let (adapted, _) = load_for_inference(model, adapters, WantedDtype::F32, device)?;
    if adapted.config.tie_word_embeddings && adapted.head.adapter.is_some() {
        return Err(TrainError::Setup(
            "this adapter sits on the head of a model whose head is its embedding (tie_word_embeddings), so it cannot be \
             merged without changing the embedding; use it as an adapter"
                .into(),
        ));
    }
    let expected = probe(&adapted);
    write_merged(&adapted, &folder, out)?;
    drop(adapted);
    let written = out.to_string_lossy();
    let (merged, reread) = load_for_inference(&written, &[], WantedDtype::F32, device)?;
    let found = probe(&merged);
    let largest = |a: &[f32], b: &[f32]| {
        a.iter()
            .zip(b)
            .map(|(a, b)| f64::from((a - b).abs()))
            .fold(0.0, f64::max)
    };
    let zeros = vec![0.0; expected.len()];
    Ok(MergeReport {
        max_logit_difference: largest(&found, &expected),
        max_logit: largest(&expected, &zeros),
        max_logit_change: largest(&expected, &before),
        dtype: reread.main_dtype(),
    })
}

fn write_merged(model: &Model, folder: &ModelFolder, out: &Path) -> Result<(), TrainError> {
    let weight = |id: ParameterId| {
        let parameter = model.parameters.get(id);
        let adapted = model
            .linears()
            .find(|linear| linear.weight == id)
            .and_then(|linear| linear.adapter.as_ref());
        let Some(adapter) = adapted else {
            return parameter.value.clone();
        };
        let shape = [parameter.shape[0], parameter.shape[1]];
        let base = parameter.value.clone().cast(DType::F32).reshape(shape);
        let merged = match adapter {
            Adapter::Lora(lora) => base + lora.delta(&model.parameters),
            Adapter::Dora(dora) => dora.merged(base, &model.parameters),
        };
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
