//! One optimizer step: all micro-batches forward and backward, clipping, update.

use std::collections::BTreeMap;

use interlingua_data::batch::{MicroBatch, Sequence};
use interlingua_data::dataset::Dataset;

use super::metrics::LanguageLoss;
use crate::engine::gradients::Gradients;
use crate::engine::head::Targets;
use crate::engine::inputs::{Inputs, RopeLength};
use crate::engine::step::forward_backward;
use crate::error::TrainError;
use crate::models::Model;
use crate::objectives::sft;

/// What the passes over an optimizer step's micro-batches give.
pub struct Accumulated {
    /// Gradients of the step's loss.
    pub gradients: Gradients,
    /// Sum of the losses of all supervised tokens, divided by their number.
    pub loss: f64,
    /// Supervised tokens.
    pub tokens: u64,
    /// All tokens.
    pub tokens_total: u64,
    /// By language.
    pub by_language: BTreeMap<String, LanguageLoss>,
}

/// Keys of a step's randomness.
#[derive(Clone, Copy, Debug)]
pub struct StepKey {
    /// Seed of the run.
    pub seed: u64,
    /// The optimizer step, counted from 0.
    pub step: u64,
}

/// The model's inputs for a micro-batch, with the targets of its labels. `languages`: what the batch's sequences count into.
pub fn inputs_and_targets(model: &Model, batch: &MicroBatch, languages: &[String]) -> (Inputs, Targets) {
    let mut boundaries: Vec<usize> = batch.sequences.iter().map(|sequence| sequence.start).collect();
    boundaries.push(batch.input_ids.len());
    let targets = Targets::of_labels(&batch.labels, &boundaries);
    let (ids, positions) = (&batch.input_ids, &batch.position_ids);
    let inputs = Inputs::new(
        &model.config,
        ids,
        positions,
        &boundaries,
        RopeLength::Own,
        &model.device,
    );
    let language = |sequence: &Sequence| languages[usize::from(sequence.language)].as_str();
    let languages: Vec<&str> = batch.sequences.iter().map(language).collect();
    (inputs.with_languages(&languages), targets)
}

/// Runs all micro-batches of a step. Losses are normalised over the whole step: by its supervised tokens.
pub fn accumulate(
    model: &Model,
    dataset: &Dataset,
    batches: &[MicroBatch],
    weight: f64,
    recompute: bool,
    key: StepKey,
) -> Result<Accumulated, TrainError> {
    let tokens: u64 = batches.iter().map(|batch| batch.supervised_tokens() as u64).sum();
    let mut sums = BTreeMap::<String, LanguageLoss>::new();
    let mut gradients = Gradients::default();
    let mut total = 0.0;
    for batch in batches.iter().filter(|batch| !batch.sequences.is_empty()) {
        let (inputs, targets) = inputs_and_targets(model, batch, dataset.languages());
        let samples: Vec<u64> = batch.sequences.iter().map(|sequence| sequence.sample).collect();
        let inputs = inputs.with_dropout(key.seed, key.step, &samples);
        let weights = sft::token_weights(&targets, weight, tokens);
        let log_probs = forward_backward(model, &inputs, &targets, &weights, recompute, &mut gradients);
        total += add_by_language(&mut sums, dataset.languages(), batch, &targets, &log_probs);
    }
    for sum in sums.values_mut() {
        sum.loss /= (sum.tokens as f64).max(1.0);
    }
    let loss = total / (tokens as f64).max(1.0);
    if !loss.is_finite() {
        return Err(not_finite("loss", dataset, batches, key.step));
    }
    let tokens_total = batches.iter().map(|batch| batch.input_ids.len() as u64).sum();
    Ok(Accumulated {
        gradients,
        loss,
        tokens,
        tokens_total,
        by_language: sums,
    })
}

/// Adds a micro-batch's token losses to the sums of its languages, and returns their total. `languages`: what the
/// batch's sequences count into.
pub fn add_by_language(
    sums: &mut BTreeMap<String, LanguageLoss>,
    languages: &[String],
    batch: &MicroBatch,
    targets: &Targets,
    log_probs: &[f32],
) -> f64 {
    let mut losses = targets.positions.iter().zip(log_probs).peekable();
    let mut total = 0.0;
    for sequence in &batch.sequences {
        let end = (sequence.start + sequence.length) as u32;
        let sum = sums
            .entry(languages[usize::from(sequence.language)].clone())
            .or_default();
        sum.samples += 1;
        while let Some((_, log_prob)) = losses.next_if(|(position, _)| **position < end) {
            sum.loss -= f64::from(*log_prob);
            sum.tokens += 1;
            total -= f64::from(*log_prob);
        }
    }
    total
}

/// The error for a loss or gradient that is not a finite number, with the samples and languages of the step.
pub fn not_finite(what: &'static str, dataset: &Dataset, batches: &[MicroBatch], step: u64) -> TrainError {
    let sequences = || batches.iter().flat_map(|batch| &batch.sequences);
    let mut languages: Vec<&str> = sequences()
        .map(|sequence| dataset.languages()[usize::from(sequence.language)].as_str())
        .collect();
    languages.sort_unstable();
    languages.dedup();
    let mut samples: Vec<String> = sequences()
        .map(|sequence| dataset.describe(sequence.sample as usize))
        .collect();
    if samples.len() > 16 {
        let rest = samples.len() - 16;
        samples.truncate(16);
        samples.push(format!("and {rest} more"));
    }
    TrainError::NotFinite {
        step: step + 1,
        what,
        languages: languages.join(", "),
        samples: samples.join("; "),
    }
}
