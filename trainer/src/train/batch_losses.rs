//! Auxiliary losses on the batch itself: what they read of a step's micro-batches, and what they give back to each.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use interlingua_data::batch::MicroBatch;
use interlingua_data::dataset::Dataset;
use interlingua_recipes::Scope;

use super::auxiliary::{AuxiliaryLoss, Kind, gather_rows, pool};
use super::main_loss::MainTargets;
use super::reference::sums_by_sequence;
use crate::collectives::Collectives;
use crate::engine::head::log_probs;
use crate::engine::inputs::Inputs;
use crate::models::Model;
use crate::objectives::consistency::divergence;
use crate::objectives::middle_layer::{Contrast, MiddleLayer};

/// A micro-batch of this process, and what the others compute at the same time.
pub struct Turn {
    /// This process's.
    pub batch: MicroBatch,
    /// Whether it is there only so that this process keeps in step with the others: it counts nothing.
    pub is_filler: bool,
    /// Those of all processes by rank, empty ones too, where there are several and a loss compares their samples; else none.
    pub of_all: Vec<MicroBatch>,
}

impl Turn {
    /// The micro-batches whose samples are compared.
    fn compared(&self) -> Vec<&MicroBatch> {
        if self.of_all.is_empty() {
            vec![&self.batch]
        } else {
            self.of_all.iter().collect()
        }
    }
}

/// What the losses on the batch give to one micro-batch.
#[derive(Debug, Default)]
pub struct Feedback {
    /// Gradients of the loss by the pooled states of the micro-batch's sequences, by index of the auxiliary loss; none for a
    /// filler.
    pub by_pooled: BTreeMap<usize, Option<Tensor<2>>>,
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
    collectives: &'a dyn Collectives,
}

impl<'a> BatchLosses<'a> {
    /// Those of a run, for a step of these micro-batches.
    pub fn new(
        all: &'a [AuxiliaryLoss],
        dataset: &'a Dataset,
        anchor: Option<&str>,
        turns: &[Turn],
        collectives: &'a dyn Collectives,
    ) -> Self {
        let losses = all.iter().enumerate().filter(|(_, loss)| loss.source.is_none());
        let anchor = anchor.and_then(|anchor| dataset.languages().iter().position(|tag| tag == anchor));
        let mut this = Self {
            losses: losses.collect(),
            dataset,
            anchor: anchor.map(|index| index as u16),
            totals: BTreeMap::new(),
            collectives,
        };
        let counts = this.comparing().map(|(index, loss)| {
            let count = match loss.scope {
                Scope::Step => this.count(loss, &turns.iter().flat_map(Turn::compared).collect::<Vec<_>>()),
                Scope::MicroStep => turns.iter().map(|turn| this.count(loss, &turn.compared())).sum(),
            };
            (*index, count)
        });
        this.totals = counts.collect();
        this
    }

    /// Whether there are any that compare samples.
    pub fn is_empty(&self) -> bool {
        self.comparing().next().is_none()
    }

    /// Those that compare samples: all but the routers'.
    fn comparing(&self) -> impl Iterator<Item = &(usize, &'a AuxiliaryLoss)> {
        let losses = self.losses.iter();
        losses.filter(|(_, loss)| !matches!(loss.kind, Kind::Router))
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

    /// The loss of routers.
    pub fn router(&self) -> Option<&'a AuxiliaryLoss> {
        let mut losses = self.losses.iter();
        losses.find_map(|(_, loss)| matches!(loss.kind, Kind::Router).then_some(*loss))
    }

    /// The middle-layer loss with this index, and the boundary that it reads.
    pub fn middle_layer(&self, index: usize) -> Option<(&'a MiddleLayer, usize)> {
        self.losses.iter().find_map(|(number, loss)| match &loss.kind {
            Kind::MiddleLayer { loss, layer } if *number == index => Some((loss, *layer)),
            _ => None,
        })
    }

    /// The losses that compare the samples of a whole step: a first pass over all micro-batches, without gradients.
    /// `values` gets their share of the step's loss, by name, weights not applied; on the first process only, as every process
    /// computes the whole of it.
    pub fn over_the_step(
        &self,
        model: &Model,
        prepared: &[(&Turn, Inputs, MainTargets)],
        values: &mut BTreeMap<String, f64>,
    ) -> Vec<Feedback> {
        let mut feedback: Vec<Feedback> = prepared.iter().map(|_| Feedback::default()).collect();
        let turns: Vec<&Turn> = prepared.iter().map(|(turn, ..)| *turn).collect();
        for (index, loss) in self.comparing().filter(|(_, loss)| loss.scope == Scope::Step) {
            let value = match &loss.kind {
                Kind::MiddleLayer { loss: numbers, layer } => {
                    let pooled = prepared
                        .iter()
                        .map(|(_, inputs, _)| pool(numbers, &model.hidden_state(inputs, *layer), inputs));
                    self.contrast((*index, loss, numbers), &turns, pooled.collect(), &mut feedback)
                }
                _ => {
                    let sums = prepared.iter().map(|(turn, inputs, targets)| {
                        let hidden = model.hidden_state(inputs, model.blocks.len());
                        let log_probs = log_probs(model, &hidden, &targets.targets);
                        sums_by_sequence(&turn.batch, &targets.targets.positions, &log_probs)
                    });
                    self.diverge((*index, loss), &turns, sums.collect(), &mut feedback)
                }
            };
            self.count_once(loss, value, values);
        }
        feedback
    }

    /// The losses that compare the samples of one micro-batch, over all processes.
    pub fn over_a_batch(
        &self,
        turn: &Turn,
        pooled: impl Fn(&MiddleLayer, usize) -> Tensor<2>,
        sums: impl Fn() -> Vec<f64>,
        feedback: &mut Feedback,
        values: &mut BTreeMap<String, f64>,
    ) {
        let mut own = std::mem::take(feedback);
        for (index, loss) in self.comparing().filter(|(_, loss)| loss.scope == Scope::MicroStep) {
            let one = std::slice::from_mut(&mut own);
            let value = match &loss.kind {
                Kind::MiddleLayer { loss: numbers, layer } => {
                    let pooled = vec![pooled(numbers, *layer)];
                    self.contrast((*index, loss, numbers), &[turn], pooled, one)
                }
                _ => self.diverge((*index, loss), &[turn], vec![sums()], one),
            };
            self.count_once(loss, value, values);
        }
        *feedback = own;
    }

    fn count_once(&self, loss: &AuxiliaryLoss, value: f64, values: &mut BTreeMap<String, f64>) {
        let counted = if self.collectives.rank() == 0 { value } else { 0.0 };
        *values.entry(loss.name.clone()).or_default() += counted;
    }

    /// `pooled`: what stands for each sequence of this process's micro-batches.
    fn contrast(
        &self,
        (index, loss, numbers): (usize, &AuxiliaryLoss, &MiddleLayer),
        turns: &[&Turn],
        pooled: Vec<Tensor<2>>,
        feedback: &mut [Feedback],
    ) -> f64 {
        let batches: Vec<&MicroBatch> = turns.iter().flat_map(|turn| turn.compared()).collect();
        let mut rows = Vec::new();
        for (turn, pooled) in turns.iter().zip(pooled) {
            let counts: Vec<usize> = turn.compared().iter().map(|batch| batch.sequences.len()).collect();
            rows.extend(gather_rows(self.collectives, pooled, &counts));
        }
        let share = 1.0 / self.totals[&index].max(1) as f64;
        let mut value = 0.0;
        for contrast in self.contrasts(&batches) {
            let (sum, gradient) = numbers.loss(&Tensor::cat(rows.clone(), 0), &contrast);
            value += sum * share;
            let gradient = gradient * (share * loss.weight);
            let mut start = 0;
            for (turn, feedback) in turns.iter().zip(feedback.iter_mut()) {
                for (rank, batch) in turn.compared().iter().enumerate() {
                    let count = batch.sequences.len();
                    if rank == self.place(turn) {
                        let own = (!turn.is_filler).then(|| gradient.clone().narrow(0, start, count));
                        let sum = match (feedback.by_pooled.remove(&index).flatten(), own) {
                            (Some(sum), Some(own)) => Some(sum + own),
                            (sum, own) => sum.or(own),
                        };
                        feedback.by_pooled.insert(index, sum);
                    }
                    start += count;
                }
            }
        }
        value
    }

    /// Where this process's micro-batch stands among those that a turn compares.
    fn place(&self, turn: &Turn) -> usize {
        if turn.of_all.is_empty() {
            0
        } else {
            self.collectives.rank()
        }
    }

    /// `sums`: the summed log-probability of each sequence of this process's micro-batches.
    fn diverge(
        &self,
        (index, loss): (usize, &AuxiliaryLoss),
        turns: &[&Turn],
        sums: Vec<Vec<f64>>,
        feedback: &mut [Feedback],
    ) -> f64 {
        let share = 1.0 / self.totals[&index].max(1) as f64;
        let batches: Vec<&MicroBatch> = turns.iter().flat_map(|turn| turn.compared()).collect();
        let mut all = Vec::with_capacity(batches.len());
        // For each of the batches, which of this process's it is.
        let mut owned = Vec::with_capacity(batches.len());
        for (number, (turn, sums)) in turns.iter().zip(sums).enumerate() {
            feedback[number].by_sequence.resize(sums.len(), 0.0);
            let count = turn.compared().len();
            owned.extend((0..count).map(|place| (place == self.place(turn) && !turn.is_filler).then_some(number)));
            if turn.of_all.is_empty() {
                all.push(sums);
            } else {
                let said: &[f64] = if turn.is_filler { &[] } else { &sums };
                let heard = self.collectives.gather(bytemuck::cast_slice(said));
                all.extend(heard.iter().map(|bytes| bytemuck::pod_collect_to_vec::<u8, f64>(bytes)));
            }
        }
        let mut value = 0.0;
        for (anchor, others) in self.option_sets(&batches) {
            let of = |places: &[(usize, usize)]| -> Vec<f64> {
                places.iter().map(|(batch, sequence)| all[*batch][*sequence]).collect()
            };
            let anchor = of(&anchor);
            for other in others {
                let (divergence, derivatives) = divergence(&anchor, &of(&other));
                value += divergence * share;
                for ((batch, sequence), derivative) in other.iter().zip(derivatives) {
                    if let Some(own) = owned[*batch] {
                        feedback[own].by_sequence[*sequence] += derivative * share * loss.weight;
                    }
                }
            }
        }
        value
    }

    fn count(&self, loss: &AuxiliaryLoss, batches: &[&MicroBatch]) -> u64 {
        match loss.kind {
            Kind::MiddleLayer { .. } => {
                let contrasts = self.contrasts(batches);
                let pairs = contrasts.iter().map(|contrast| contrast.pairs.len() as u64);
                pairs.sum()
            }
            _ => self
                .option_sets(batches)
                .iter()
                .map(|(_, others)| others.len() as u64)
                .sum(),
        }
    }

    /// For each language but the anchor's the pairs of anchor and translation, with rows counted over all micro-batches; those
    /// that would be alone are left out.
    fn contrasts(&self, batches: &[&MicroBatch]) -> Vec<Contrast> {
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
            let mut contrast = Contrast::default();
            for (group, row) in others {
                if let Some(anchor) = anchors.get(&group) {
                    contrast.pairs.push((*anchor, row));
                    contrast.groups.push(group);
                }
            }
            contrast
        });
        contrasts.filter(|contrast| contrast.pairs.len() > 1).collect()
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
