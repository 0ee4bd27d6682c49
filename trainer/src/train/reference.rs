//! The reference of preference objectives: a frozen model whose log-probabilities the policy's are compared with.

use std::collections::HashMap;
use std::sync::Arc;

use interlingua_checkpoints::dtype::HostTensor;
use interlingua_checkpoints::hub;
use interlingua_checkpoints::own_adapter::AnyAdapter;
use interlingua_checkpoints::tensors::TensorsFile;
use interlingua_checkpoints::write::write_tensors;
use interlingua_data::batch::MicroBatch;
use interlingua_data::dataset::Dataset;
use interlingua_recipes::{Recipe, ReferenceAdapter};

use super::ranks::Deal;
use super::setup::{Base, load_for_inference};
use super::step::inputs_and_targets;
use crate::adapters::attach::{Placement, attach};
use crate::engine::head::log_probs;
use crate::error::TrainError;
use crate::models::Model;

/// Tokens of one batch of the pass that fills the cache.
const BATCH_TOKENS: usize = 4096;

/// A frozen model, or what it said of every sample.
#[derive(Clone)]
pub enum Reference {
    /// Asked for each batch.
    Model(Arc<Model>),
    /// Σ log p of the answers, by sample and part.
    Cached(HashMap<(u64, u16), f64>),
}

impl Reference {
    /// Σ log p of the answer of each sequence of a batch. `languages`: what the batch's sequences count into.
    pub fn sums(&self, batch: &MicroBatch, languages: &[String]) -> Vec<f64> {
        match self {
            Self::Model(model) => answer_log_probs(model, batch, languages),
            Self::Cached(known) => {
                let sum = |key: (u64, u16)| known.get(&key).copied().unwrap_or(f64::NAN);
                let sequences = batch.sequences.iter();
                sequences
                    .map(|sequence| sum((sequence.sample, sequence.part)))
                    .collect()
            }
        }
    }

    /// The log-probabilities of all samples of a dataset in place of the model, read from the output folder where an earlier
    /// start of the run has left them; `name` tells datasets apart.
    ///
    /// `deal`: the processes that share the work; the first one writes the file.
    ///
    /// # Errors
    /// When the output folder cannot be written.
    pub fn cached(&self, recipe: &Recipe, dataset: &Dataset, name: &str, deal: Deal) -> Result<Self, TrainError> {
        let Self::Model(model) = &self else {
            return Ok(self.clone());
        };
        let path = recipe.output.join(format!("reference-{name}.safetensors"));
        let keys: Vec<(u64, u16)> = (0..dataset.len())
            .flat_map(|sample| {
                (0..)
                    .zip(dataset.parts(sample))
                    .map(move |(part, _)| (sample as u64, part))
            })
            .collect();
        let fingerprint = fingerprint(dataset);
        let known = match TensorsFile::open(&path) {
            Ok(file) => file.read_f32(&fingerprint, &[keys.len()], "")?,
            Err(_) => None,
        };
        // Where one of them does not see the file, all of them compute.
        let all_know = deal.all(known.is_some());
        if let Some(values) = known.filter(|_| all_know) {
            return Ok(Self::Cached(
                keys.into_iter().zip(values.into_iter().map(f64::from)).collect(),
            ));
        }
        let mut batches = Vec::new();
        let mut open = MicroBatch::default();
        for sample in 0..dataset.len() {
            if open.tokens() + dataset.length(sample) > BATCH_TOKENS && open.tokens() > 0 {
                batches.push(std::mem::take(&mut open));
            }
            open.push_sample(dataset, sample);
        }
        if open.tokens() > 0 {
            batches.push(open);
        }
        let mut sums = Vec::with_capacity(keys.len());
        for (number, batch) in batches.iter().enumerate() {
            if deal.is_mine(number) {
                sums.extend(answer_log_probs(model, batch, dataset.languages()));
            } else {
                sums.resize(sums.len() + batch.sequences.len(), 0.0);
            }
        }
        deal.add_up(&mut sums);
        let values: Vec<f32> = sums.iter().map(|sum| *sum as f32).collect();
        let tensor = HostTensor::from_f32(vec![values.len()], &values);
        if deal.is_first() {
            write_tensors(&path, &[(fingerprint, tensor)].into())?;
        }
        // What was written is what later starts read, so this one counts with the same digits.
        Ok(Self::Cached(
            keys.into_iter().zip(values.into_iter().map(f64::from)).collect(),
        ))
    }
}

/// Equal for the same tokens in the same order.
fn fingerprint(dataset: &Dataset) -> String {
    let mut state = 0u64;
    for sample in 0..dataset.len() {
        let (ids, labels) = dataset.tokens(sample);
        let words = ids
            .iter()
            .map(|id| u64::from(*id))
            .chain(labels.iter().map(|label| *label as u64));
        state = words.fold(crate::random::mix(state ^ 1), |state, word| {
            crate::random::mix(state ^ word)
        });
    }
    format!("answers.{state:016x}")
}

/// Σ log p of the supervised tokens of each sequence, without gradients or dropout.
pub fn answer_log_probs(model: &Model, batch: &MicroBatch, languages: &[String]) -> Vec<f64> {
    let (inputs, targets) = inputs_and_targets(model, batch, languages);
    let hidden = model.last_hidden_state(&inputs, None);
    let log_probs = log_probs(model, &hidden, &targets);
    sums_by_sequence(batch, &targets.positions, &log_probs)
}

/// Sums of values at positions, by the sequence that the position lies in.
pub fn sums_by_sequence(batch: &MicroBatch, positions: &[u32], values: &[f32]) -> Vec<f64> {
    let mut sums = vec![0.0; batch.sequences.len()];
    for (position, value) in positions.iter().zip(values) {
        sums[sequence_of(batch, *position)] += f64::from(*value);
    }
    sums
}

/// The sequence that a position lies in.
pub fn sequence_of(batch: &MicroBatch, position: u32) -> usize {
    batch
        .sequences
        .partition_point(|sequence| sequence.start <= position as usize)
        - 1
}

/// Checks what can be checked of a recipe's reference without a model, and gives what a person should know.
///
/// # Errors
/// When a model or adapter that it names is not there, or has another vocabulary.
pub fn check(recipe: &Recipe, base: &Base) -> Result<Option<String>, TrainError> {
    if !recipe.objective.kind.needs_reference() {
        return Ok(None);
    }
    let Some(reference) = &recipe.reference else {
        let note = "The run goes on from an adapter, but there is no [reference]: preferences are compared with the bare \
                    base, not with that adapter. Write reference.adapter = \"initial\" to compare with it.";
        return Ok(recipe.adapter.init_from.is_some().then(|| note.to_owned()));
    };
    if !reference.model.is_empty() {
        check_vocabulary(recipe, &reference.model, base)?;
    }
    if let ReferenceAdapter::Folder(folder) = reference.adapter() {
        AnyAdapter::open(folder)?;
    }
    Ok(None)
}

/// The reference that a recipe names, made from the model as it stands before the first step.
///
/// # Errors
/// When a model or adapter it names is not there, or has another vocabulary.
pub fn reference(recipe: &Recipe, base: &Base, model: &Model) -> Result<Model, TrainError> {
    let wanted = recipe.reference.clone().unwrap_or_default();
    let mut reference = if !wanted.model.is_empty() {
        load_for_inference(&wanted.model, &[], recipe.model.dtype, recipe.model.device, None)?.0
    } else if wanted.adapter() == ReferenceAdapter::Initial {
        model.clone()
    } else if recipe.adapter.init_from.is_some() && !recipe.adapter.modules_to_save.is_empty() {
        // The adapter has replaced modules of the base, so the bare base is read again.
        base.load_bare(recipe)?
    } else {
        model.without_adapter()
    };
    if let ReferenceAdapter::Folder(folder) = wanted.adapter() {
        for (language, adapter) in AnyAdapter::open(folder)? {
            let placement = Placement {
                copy: language.as_deref(),
                language: language.as_deref(),
                ..Placement::default()
            };
            attach(&mut reference, &adapter, placement)?;
        }
    }
    reference.freeze();
    Ok(reference)
}

/// Checks that a reference of its own speaks the same tokens.
fn check_vocabulary(recipe: &Recipe, reference: &str, base: &Base) -> Result<(), TrainError> {
    let path = hub::resolve(reference)?;
    let (config, _) = interlingua_checkpoints::config::ModelConfig::read(&path)?;
    let differs = |what: String| {
        Err(TrainError::Setup(format!(
            "reference.model = {reference:?} has {what} than model.path = {:?}, so their log-probabilities cannot be \
             compared; use a reference with the same vocabulary, or leave reference.model out",
            recipe.model.path
        )))
    };
    if config.vocab_size != base.config.vocab_size {
        return differs(format!(
            "another vocabulary ({} tokens, not {})",
            config.vocab_size, base.config.vocab_size
        ));
    }
    let vocabulary = |folder: &std::path::Path| -> Option<serde_json::Value> {
        let text = std::fs::read_to_string(folder.join("tokenizer.json")).ok()?;
        let json: serde_json::Value = serde_json::from_str(&text).ok()?;
        json.pointer("/model/vocab").cloned()
    };
    match (vocabulary(&path), vocabulary(&base.path)) {
        (Some(one), Some(other)) if one != other => differs("another tokenizer".into()),
        _ => Ok(()),
    }
}
