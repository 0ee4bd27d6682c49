//! Auxiliary losses on the batch itself: what they read of a step's micro-batches, and what they give back to each.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use interlingua_data::batch::MicroBatch;
use interlingua_data::dataset::Dataset;
use interlingua_recipes::Scope;

use super::auxiliary::{AuxiliaryLoss, Kind, contrast_all, pool};
use super::main_loss::MainTargets;
use super::reference::sums_by_sequence;
use crate::engine::head::log_probs;
use crate::engine::inputs::Inputs;
use crate::models::Model;
use crate::objectives::consistency::divergence;
use crate::objectives::middle_layer::{Contrast, MiddleLayer};

/// What the losses on the batch give to one micro-batch.
#[derive(Debug, Default)]
pub struct Feedback {
    /// Gradients of the loss by the pooled states of the micro-batch's sequences, by index of the auxiliary loss.
    pub by_pooled: BTreeMap<usize, Tensor<2>>,
    /// Derivatives of the loss by the summed log-probability of each sequence.
    pub by_sequence: Vec<f64>,
}

/// The losses on the batch itself, with what a step of them is divided by.
pub struct BatchLosses<'a> {
    losses: Vec<(usize, &'a AuxiliaryLoss)>,
    dataset: &'a Dataset,
    /// The index of the anchor's language.
    anchor: Option<u16>,
    /// By index of the auxiliary loss: anchors, or languages of groups, in the step.
    totals: BTreeMap<usize, u64>,
}

impl<'a> BatchLosses<'a> {
    /// Those of a run, for a step of these micro-batches.
    pub fn new(all: &'a [AuxiliaryLoss], dataset: &'a Dataset, anchor: Option<&str>, batches: &[MicroBatch]) -> Self {
        let losses = all.iter().enumerate().filter(|(_, loss)| loss.source.is_none());
        let anchor = anchor.and_then(|anchor| dataset.languages().iter().position(|tag| tag == anchor));
        let mut this = Self {
            losses: losses.collect(),
            dataset,
            anchor: anchor.map(|index| index as u16),
            totals: BTreeMap::new(),
        };
        for (index, loss) in &this.losses {
            let count = match loss.scope {
                Scope::Step => this.count(loss, &batches.iter().collect::<Vec<_>>()),
                Scope::MicroStep => batches.iter().map(|batch| this.count(loss, &[batch])).sum(),
            };
            this.totals.insert(*index, count);
        }
        this
    }

    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        self.losses.is_empty()
    }

    /// The boundaries that they read.
    pub fn layers(&self) -> impl Iterator<Item = usize> + '_ {
        self.losses.iter().filter_map(|(_, loss)| match &loss.kind {
            Kind::MiddleLayer { layer, .. } => Some(*layer),
            _ => None,
        })
    }

    /// Whether one of them reads the log-probabilities of options.
    pub fn reads_options(&self) -> bool {
        self.losses
            .iter()
            .any(|(_, loss)| matches!(loss.kind, Kind::Consistency))
    }

    /// The middle-layer loss with this index, and the boundary that it reads.
    pub fn middle_layer(&self, index: usize) -> Option<(&'a MiddleLayer, usize)> {
        self.losses.iter().find_map(|(number, loss)| match &loss.kind {
            Kind::MiddleLayer { loss, layer } if *number == index => Some((loss, *layer)),
            _ => None,
        })
    }

    /// The losses that compare the samples of a whole step: a first pass over all micro-batches, without gradients.
    /// `values` gets their share of the step's loss, by name, weights not applied.
    pub fn over_the_step(
        &self,
        model: &Model,
        prepared: &[(&MicroBatch, Inputs, MainTargets)],
        values: &mut BTreeMap<String, f64>,
    ) -> Vec<Feedback> {
        let mut feedback: Vec<Feedback> = prepared.iter().map(|_| Feedback::default()).collect();
        let batches: Vec<&MicroBatch> = prepared.iter().map(|(batch, ..)| *batch).collect();
        for (index, loss) in self.losses.iter().filter(|(_, loss)| loss.scope == Scope::Step) {
            match &loss.kind {
                Kind::MiddleLayer { loss: numbers, layer } => {
                    let pooled: Vec<Tensor<2>> = prepared
                        .iter()
                        .map(|(_, inputs, _)| pool(numbers, &model.hidden_state(inputs, *layer), inputs))
                        .collect();
                    let value = self.contrast((*index, loss, numbers), &batches, &pooled, &mut feedback);
                    *values.entry(loss.name.clone()).or_default() += value;
                }
                _ => {
                    let sums: Vec<Vec<f64>> = prepared
                        .iter()
                        .map(|(batch, inputs, targets)| {
                            let hidden = model.hidden_state(inputs, model.blocks.len());
                            let log_probs = log_probs(model, &hidden, &targets.targets);
                            sums_by_sequence(batch, &targets.targets.positions, &log_probs)
                        })
                        .collect();
                    let value = self.diverge((*index, loss), &batches, &sums, &mut feedback);
                    *values.entry(loss.name.clone()).or_default() += value;
                }
            }
        }
        feedback
    }

    /// The losses that compare the samples of one micro-batch.
    pub fn over_a_batch(
        &self,
        batch: &MicroBatch,
        pooled: impl Fn(&MiddleLayer, usize) -> Tensor<2>,
        sums: impl Fn() -> Vec<f64>,
        feedback: &mut Feedback,
        values: &mut BTreeMap<String, f64>,
    ) {
        let mut own = std::mem::take(feedback);
        for (index, loss) in self.losses.iter().filter(|(_, loss)| loss.scope == Scope::MicroStep) {
            let one = std::slice::from_mut(&mut own);
            let value = match &loss.kind {
                Kind::MiddleLayer { loss: numbers, layer } => {
                    self.contrast((*index, loss, numbers), &[batch], &[pooled(numbers, *layer)], one)
                }
                _ => self.diverge((*index, loss), &[batch], &[sums()], one),
            };
            *values.entry(loss.name.clone()).or_default() += value;
        }
        *feedback = own;
    }

    fn contrast(
        &self,
        (index, loss, numbers): (usize, &AuxiliaryLoss, &MiddleLayer),
        batches: &[&MicroBatch],
        pooled: &[Tensor<2>],
        feedback: &mut [Feedback],
    ) -> f64 {
        let share = 1.0 / self.totals[&index].max(1) as f64;
        let mut value = 0.0;
        for contrasts in self.contrasts(batches) {
            let (sum, gradients) = contrast_all(numbers, pooled, &contrasts);
            value += sum * share;
            for (gradient, feedback) in gradients.into_iter().zip(feedback.iter_mut()) {
                let gradient = gradient * (share * loss.weight);
                let sum = match feedback.by_pooled.remove(&index) {
                    Some(sum) => sum + gradient,
                    None => gradient,
                };
                feedback.by_pooled.insert(index, sum);
            }
        }
        value
    }

    fn diverge(
        &self,
        (index, loss): (usize, &AuxiliaryLoss),
        batches: &[&MicroBatch],
        sums: &[Vec<f64>],
        feedback: &mut [Feedback],
    ) -> f64 {
        let share = 1.0 / self.totals[&index].max(1) as f64;
        for (feedback, sums) in feedback.iter_mut().zip(sums) {
            feedback.by_sequence.resize(sums.len(), 0.0);
        }
        let mut value = 0.0;
        for (anchor, others) in self.option_sets(batches) {
            let of = |places: &[(usize, usize)]| -> Vec<f64> {
                places.iter().map(|(batch, sequence)| sums[*batch][*sequence]).collect()
            };
            let anchor = of(&anchor);
            for other in others {
                let (divergence, derivatives) = divergence(&anchor, &of(&other));
                value += divergence * share;
                for ((batch, sequence), derivative) in other.iter().zip(derivatives) {
                    feedback[*batch].by_sequence[*sequence] += derivative * share * loss.weight;
                }
            }
        }
        value
    }

    fn count(&self, loss: &AuxiliaryLoss, batches: &[&MicroBatch]) -> u64 {
        match loss.kind {
            Kind::MiddleLayer { .. } => {
                let contrasts = self.contrasts(batches);
                let pairs = contrasts.iter().flatten().map(|contrast| contrast.pairs.len() as u64);
                pairs.sum()
            }
            _ => self
                .option_sets(batches)
                .iter()
                .map(|(_, others)| others.len() as u64)
                .sum(),
        }
    }

    /// For each language but the anchor's, and each micro-batch, the pairs of anchor and translation. A pair whose sides lie
    /// in different micro-batches cannot be contrasted by rows of one matrix, so its anchor's side is looked up in the
    /// batches that are contrasted together; those that would be alone are left out.
    fn contrasts(&self, batches: &[&MicroBatch]) -> Vec<Vec<Contrast>> {
        let offsets: Vec<usize> = batches
            .iter()
            .scan(0, |offset, batch| {
                let start = *offset;
                *offset += batch.sequences.len();
                Some(start)
            })
            .collect();
        let mut anchors = BTreeMap::<u64, usize>::new();
        let mut others = BTreeMap::<u16, Vec<(u64, usize)>>::new();
        for (batch, offset) in batches.iter().zip(&offsets) {
            for (row, sequence) in batch
                .sequences
                .iter()
                .enumerate()
                .filter(|(_, sequence)| sequence.part == 0)
            {
                let group = self.dataset.group(sequence.sample as usize);
                if Some(sequence.language) == self.anchor {
                    anchors.insert(group, offset + row);
                } else {
                    others.entry(sequence.language).or_default().push((group, offset + row));
                }
            }
        }
        let contrasts = others.into_values().map(|others| {
            // All pairs stand in the first micro-batch's contrast, with rows counted over all of them.
            let mut contrast = Contrast::default();
            for (group, row) in others {
                if let Some(anchor) = anchors.get(&group) {
                    contrast.pairs.push((*anchor, row));
                    contrast.groups.push(group);
                }
            }
            contrast
        });
        let empty = || vec![Contrast::default(); batches.len().saturating_sub(1)];
        contrasts
            .filter(|contrast| contrast.pairs.len() > 1)
            .map(|contrast| [vec![contrast], empty()].concat())
            .collect()
    }

    /// For each group with its anchor: the places (micro-batch, sequence) of the anchor's options, and those of each other
    /// language.
    fn option_sets(&self, batches: &[&MicroBatch]) -> Vec<OptionSets> {
        type Places = Vec<(usize, usize)>;
        let mut samples = BTreeMap::<u64, BTreeMap<(u16, u64), Places>>::new();
        for (number, batch) in batches.iter().enumerate() {
            for (row, sequence) in batch.sequences.iter().enumerate() {
                let group = self.dataset.group(sequence.sample as usize);
                let key = (sequence.language, sequence.sample);
                samples
                    .entry(group)
                    .or_default()
                    .entry(key)
                    .or_default()
                    .push((number, row));
            }
        }
        let sets = samples.into_values().filter_map(|samples| {
            let is_anchor = |(language, _): &(u16, u64)| Some(*language) == self.anchor;
            let anchor = samples
                .iter()
                .find(|(key, _)| is_anchor(key))
                .map(|(_, places)| places.clone())?;
            let others = samples
                .into_iter()
                .filter(|(key, places)| !is_anchor(key) && places.len() == anchor.len());
            let others = others.map(|(_, places)| places).collect();
            Some((anchor, others))
        });
        sets.collect()
    }
}

/// Places of the anchor's options, and of each other language's.
type OptionSets = (Vec<(usize, usize)>, Vec<Vec<(usize, usize)>>);
