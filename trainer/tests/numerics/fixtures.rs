//! The fixtures, and comparisons with them.

use std::fs;
use std::path::PathBuf;

use burn::tensor::{DType, Device, Tensor};
use interlingua_checkpoints::model_folder::ModelFolder;
use interlingua_checkpoints::peft::AdapterFolder;
use interlingua_checkpoints::tensors::TensorsFile;
use interlingua_trainer::adapters::attach::attach_folder;
use interlingua_trainer::engine::gradients::Gradients;
use interlingua_trainer::engine::head::Targets;
use interlingua_trainer::engine::inputs::{Inputs, RopeLength};
use interlingua_trainer::engine::keeping::Keeping;
use interlingua_trainer::engine::step::forward_backward;
use interlingua_trainer::models::Model;
use interlingua_trainer::models::load::{Storage, Weights, load};
use interlingua_trainer::train::step::Accumulated;
use serde_json::Value;

/// The models that there are fixtures for.
pub(crate) const MODELS: [&str; 30] = [
    "apertus",
    "bloom",
    "bloom_residual",
    "cohere",
    "cohere2",
    "eurollm",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_pattern",
    "gpt_bigcode",
    "gpt_bigcode_mha",
    "gpt_neox",
    "gpt_neox_parallel",
    "llama",
    "llama_bias",
    "llama_dynamic",
    "llama_linear",
    "llama_yarn",
    "mistral",
    "mixtral",
    "olmo2",
    "phi3",
    "phi3_longrope",
    "qwen2",
    "qwen2_window",
    "qwen3",
    "qwen3_moe",
    "smollm3",
    "xglm",
];

/// A path below `tests/fixtures`.
pub(crate) fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures")
        .join(name)
}

/// A JSON file of the fixtures.
pub(crate) fn json(name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(path(name)).unwrap()).unwrap()
}

/// A safetensors file of the fixtures.
pub(crate) fn tensors(name: &str) -> TensorsFile {
    TensorsFile::open(&path(name)).unwrap()
}

/// The numbers of a tensor, whatever its shape.
pub(crate) fn values(file: &TensorsFile, name: &str) -> Vec<f32> {
    let shape = file
        .shape(name)
        .unwrap_or_else(|| panic!("{name} is not there"))
        .to_vec();
    file.read_f32(name, &shape, "").unwrap().unwrap()
}

/// A model of the fixtures in f32, all of it trainable or nothing.
pub(crate) fn model(name: &str, trainable: bool) -> Model {
    let folder = ModelFolder::open(&path(&format!("models/{name}"))).unwrap();
    load(
        folder.config(),
        &Weights::Folder(&folder),
        &Storage {
            trainable: &|_| trainable,
            ..Storage::frozen(DType::F32, &Device::flex())
        },
    )
    .unwrap()
}

/// A model with an adapter of the fixtures (`MODEL.VARIANT`) to be trained on.
pub(crate) fn adapted(name: &str, dropout: f32) -> Model {
    adapted_from(name.split('.').next().unwrap(), &format!("lora/{name}"), dropout)
}

/// A model with the adapter of a folder to be trained on.
pub(crate) fn adapted_from(name: &str, folder: &str, dropout: f32) -> Model {
    let mut model = model(name, false);
    let folder = AdapterFolder::open(&path(folder)).unwrap();
    attach_folder(&mut model, &folder, dropout, true).unwrap();
    model
}

/// The batch of a golden file, its padding taken out.
pub(crate) fn batch(model: &Model, file: &TensorsFile) -> (Inputs, Targets) {
    let (shape, ids) = file.read_integers("input_ids").unwrap();
    let (_, mask) = file.read_integers("attention_mask").unwrap();
    let (_, labels) = file.read_integers("labels").unwrap();
    let width = shape[1];
    let places: Vec<usize> = (0..ids.len()).filter(|place| mask[*place] == 1).collect();
    let ids: Vec<u32> = places.iter().map(|place| ids[*place] as u32).collect();
    let labels: Vec<i32> = places.iter().map(|place| labels[*place] as i32).collect();
    let positions: Vec<u32> = places.iter().map(|place| (place % width) as u32).collect();
    let rows = 0..=shape[0];
    let boundaries: Vec<usize> = rows
        .map(|row| places.partition_point(|place| *place < row * width))
        .collect();
    let length = RopeLength::Fixed(width);
    let inputs = Inputs::new(&model.config, &ids, &positions, &boundaries, length, &model.device);
    (inputs, Targets::of_labels(&labels, &boundaries))
}

/// Mean loss and gradients of a batch.
pub(crate) fn loss_and_gradients(
    model: &Model,
    (inputs, targets): &(Inputs, Targets),
    recompute: bool,
) -> (f64, Gradients) {
    let mut gradients = Gradients::default();
    let weights = vec![1.0 / targets.len() as f32; targets.len()];
    let log_probs = forward_backward(
        model,
        inputs,
        targets,
        &weights,
        Keeping {
            recompute,
            ..Keeping::default()
        },
        &mut gradients,
    );
    let sum: f64 = log_probs.iter().map(|log_prob| -f64::from(*log_prob)).sum();
    (sum / targets.len() as f64, gradients)
}

/// The numbers of a tensor on the host.
pub(crate) fn host<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor.clone().into_data().iter::<f32>().collect()
}

/// The gradient of a parameter by its name.
pub(crate) fn gradient(model: &Model, gradients: &Gradients, name: &str) -> Vec<f32> {
    // Files may leave the prefix out, or spell a name otherwise.
    let family = model.config.family;
    let full = format!("{}{name}", family.prefix);
    let is_it = |parameter: &str| [name, &full].contains(&parameter) || family.name_in_files(parameter) == name;
    let id = model.parameters.iter().find(|(_, parameter)| is_it(&parameter.name));
    let (id, _) = id.unwrap_or_else(|| panic!("there is no parameter {name}"));
    host(gradients.get(id).unwrap_or_else(|| panic!("{name} got no gradient")))
}

/// Every gradient by name, as bits.
pub(crate) fn gradient_bits(model: &Model, gradients: &Gradients) -> Vec<(String, Vec<u32>)> {
    let bits = |tensor| host(tensor).into_iter().map(f32::to_bits).collect();
    gradients
        .iter()
        .map(|(id, gradient)| (model.parameters.get(id).name.clone(), bits(gradient)))
        .collect()
}

/// Fails unless a loss times 4,096 has the same value, and 4,096 times the gradients, to the bit: powers of two are exact.
pub(crate) fn check_scaled(model: &Model, plain: &Accumulated, mut scaled: Accumulated) {
    assert_eq!((plain.loss, &plain.losses), (scaled.loss, &scaled.losses));
    let norm = plain.gradients.norm();
    assert!((scaled.gradients.norm() / (4096.0 * norm) - 1.0).abs() < 1e-12 || norm == 0.0);
    scaled.gradients.unscale();
    assert_eq!(
        gradient_bits(model, &plain.gradients),
        gradient_bits(model, &scaled.gradients)
    );
}

/// The l2 norm.
pub(crate) fn norm(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
}

/// The l2 norm of a difference.
pub(crate) fn distance(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let differences: Vec<f32> = found
        .iter()
        .zip(expected)
        .map(|(found, expected)| found - expected)
        .collect();
    norm(&differences)
}

/// Compares loss and every `grad.` tensor of a golden file. `prefix` stands before a parameter's name there.
pub(crate) fn check_loss_and_gradients(model: &Model, golden: &str, prefix: &str) -> Gradients {
    let (file, facts) = (
        tensors(&format!("{golden}.safetensors")),
        json(&format!("{golden}.json")),
    );
    let batch = batch(model, &file);
    let (loss, gradients) = loss_and_gradients(model, &batch, false);
    let expected = facts["loss"].as_f64().unwrap();
    let tolerance = facts["tolerance"]["loss"].as_f64().unwrap();
    assert!(
        (loss - expected).abs() <= tolerance,
        "{golden}: loss {loss}, expected {expected}"
    );
    let total = facts["gradient_norm"].as_f64().unwrap();
    let tolerance = facts["tolerance"]["gradient_relative"].as_f64().unwrap();
    let found = gradients.norm();
    assert!(
        (found / total - 1.0).abs() <= tolerance,
        "{golden}: gradient norm {found}, expected {total}"
    );
    let prefix = format!("grad.{prefix}");
    let names: Vec<String> = file.names().filter(|name| name.starts_with("grad.")).collect();
    for name in names {
        let expected = values(&file, &name);
        let found = gradient(model, &gradients, name.strip_prefix(&prefix).unwrap());
        let (off, limit) = (
            distance(&found, &expected),
            tolerance * norm(&expected).max(1e-3 * total),
        );
        assert!(off <= limit, "{golden}: {name} is off by {off}, at most {limit}");
    }
    gradients
}

/// The rows of a JSON lines file of the fixtures.
pub(crate) fn rows(name: &str) -> Vec<Value> {
    let text = fs::read_to_string(path(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Compares the norm of all gradients, and those of an adapter's matrices that a case stores as `CASE.gradient.NAME`.
pub(crate) fn check_gradients(
    model: &Model,
    gradients: &Gradients,
    (file, case): (&TensorsFile, &str),
    total: f64,
    tolerance: f64,
) {
    let found = gradients.norm();
    assert!(
        (found / total - 1.0).abs() <= tolerance,
        "{case}: gradient norm {found}, expected {total}"
    );
    let prefix = format!("{case}.gradient.base_model.model.");
    let names: Vec<String> = file.names().filter(|name| name.starts_with(&prefix)).collect();
    assert!(!names.is_empty(), "{case}: no gradient to compare with");
    for name in names {
        let expected = values(file, &name);
        let found = gradient(model, gradients, name.strip_prefix(&prefix).unwrap());
        let (off, limit) = (
            distance(&found, &expected),
            tolerance * norm(&expected).max(1e-3 * total),
        );
        assert!(off <= limit, "{name} is off by {off}, at most {limit}");
    }
}
