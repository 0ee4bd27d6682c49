//! Auxiliary losses of a run, made ready once: their layers, their own data, and what they read of a step.

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::{DType, Tensor};
use interlingua_data::batch::MicroBatch;
use interlingua_data::dataset::Dataset;
use interlingua_data::order::Order;
use interlingua_data::pairs::{PairBatch, PairOrder, PairSettings};
use interlingua_data::prepare::Prepared;
use interlingua_recipes::{Auxiliary, AuxiliaryKind, Missing, Mix, Parallel, Recipe, Scope};

use super::step::{StepKey, dropout_inputs, inputs_and_targets};
use crate::engine::forward::Forward;
use crate::engine::gradients::Gradients;
use crate::engine::inputs::Inputs;
use crate::error::TrainError;
use crate::models::Model;
use crate::objectives::averages::averages;
use crate::objectives::lens::{Groups, Lens, Subspaces};
use crate::objectives::middle_layer::{Contrast, MiddleLayer};
use crate::objectives::word_alignment::{self, AlignedWords};

/// An auxiliary loss, ready to run.
pub struct AuxiliaryLoss {
    /// What it is called in metrics.
    pub name: String,
    /// Its weight.
    pub weight: f64,
    /// What samples it compares.
    pub scope: Scope,
    /// The loss.
    pub kind: Kind,
    /// Its own data; `None`: the batch itself.
    pub source: Option<Source>,
}

/// The loss, with the boundary that it reads.
pub enum Kind {
    /// InfoNCE of pooled states.
    MiddleLayer {
        /// With its numbers.
        loss: MiddleLayer,
        /// N as in `hidden_states.N`.
        layer: usize,
    },
    /// Distance of aligned words.
    WordAlignment {
        /// N as in `hidden_states.N`.
        layer: usize,
        /// Weight of the term that keeps the anchor.
        stay_close: f64,
    },
    /// Subspaces that languages share, and that set them apart.
    Lens {
        /// With its numbers and subspaces.
        loss: Box<Lens>,
        /// N as in `hidden_states.N`.
        layer: usize,
    },
    /// Divergence over options.
    Consistency,
}

/// Data that only an auxiliary loss reads.
pub struct Source {
    dataset: Dataset,
    order: SourceOrder,
    /// The index of the anchor's language, for losses that read whole groups.
    anchor: Option<u16>,
    /// Pairs, or groups, of a micro-batch.
    batch_size: u64,
    /// Sets the randomness of these samples apart from that of the main data's.
    sample_offset: u64,
}

/// How an auxiliary loss reads its data.
enum SourceOrder {
    /// Pairs of anchor and translation.
    Pairs(Box<PairOrder>),
    /// Whole groups, with how many there are.
    Groups(Box<Order>, u64),
}

impl SourceOrder {
    fn notes(&self) -> &[String] {
        match self {
            Self::Pairs(order) => order.notes(),
            Self::Groups(order, _) => order.notes(),
        }
    }
}

/// A micro-batch of an auxiliary loss's own data.
pub struct PairUnit {
    /// Pairs: anchors first, then their translations in the same order. Groups: each group's texts, the anchor's first.
    batch: MicroBatch,
    pairs: usize,
}

impl AuxiliaryLoss {
    /// Checks what can be checked without a model: layers and sources. Gives, for each loss, the micro-batches of one pass
    /// over its source (0 without one), and what a person should know, in whole sentences.
    ///
    /// # Errors
    /// When a layer is out of range in a model of so many blocks, or a source has no pairs.
    pub fn check(recipe: &Recipe, blocks: usize, data: &Prepared) -> Result<(Vec<u64>, Vec<String>), TrainError> {
        let (mut passes, mut notes) = (Vec::new(), Vec::new());
        for (index, auxiliary) in recipe.objective.auxiliary.iter().enumerate() {
            layer_of(index, auxiliary, blocks)?;
            passes.push(match &auxiliary.source {
                None => 0,
                Some(source) => {
                    let source = Source::open(recipe, index, auxiliary, source, data)?;
                    notes.extend_from_slice(source.order.notes());
                    source.units_per_epoch()
                }
            });
            if let Some(probe) = &auxiliary.probe {
                own_rows(index, "probe", probe, data)?;
            }
        }
        Ok((passes, notes))
    }

    /// The auxiliary losses of a recipe, for its model before training.
    ///
    /// # Errors
    /// As [`AuxiliaryLoss::check`]; and when probing finds no subspaces.
    pub fn prepare(recipe: &Recipe, model: &Model, data: &Prepared) -> Result<Vec<Self>, TrainError> {
        let mut all: Vec<Self> = Vec::new();
        for (index, auxiliary) in recipe.objective.auxiliary.iter().enumerate() {
            let base = auxiliary.kind.name();
            let same = recipe.objective.auxiliary[..index]
                .iter()
                .filter(|other| other.kind == auxiliary.kind);
            let name = match same.count() {
                0 => base.to_owned(),
                before => format!("{base}-{}", before + 1),
            };
            let source = match &auxiliary.source {
                None => None,
                Some(source) => Some(Source::open(recipe, index, auxiliary, source, data)?),
            };
            all.push(Self {
                name,
                weight: auxiliary.weight,
                scope: auxiliary.scope,
                kind: Kind::of(index, auxiliary, model, source.as_ref(), data)?,
                source,
            });
        }
        Ok(all)
    }

    /// The pairs of the micro-steps with these numbers.
    pub fn units(&self, counters: &[u64]) -> Vec<PairUnit> {
        let Some(source) = &self.source else { return Vec::new() };
        let unit = |counter: &u64| match &source.order {
            SourceOrder::Pairs(order) => {
                let PairBatch { anchors, others } = order.micro_batch(&source.dataset, *counter, 0, 1);
                let pairs = anchors.sequences.len();
                let mut batch = anchors;
                append(&mut batch, &others);
                PairUnit { batch, pairs }
            }
            SourceOrder::Groups(order, _) => {
                let mut batch = MicroBatch::default();
                for part in order.micro_batches(&source.dataset, *counter, 0, 1) {
                    append(&mut batch, &part);
                }
                PairUnit { batch, pairs: 0 }
            }
        };
        counters.iter().map(unit).collect()
    }

    /// Forward and backward passes of a step's micro-batches of pairs, up to the loss's layer only. `initial`: the model
    /// before training, for losses that keep close to it. Gradients are those of weight × loss. Returns the terms of the
    /// loss by name.
    pub fn accumulate(
        &self,
        model: &Model,
        initial: Option<&Model>,
        units: &[PairUnit],
        recompute: bool,
        key: StepKey,
        gradients: &mut Gradients,
    ) -> Vec<(String, f64)> {
        let Some(source) = &self.source else { return Vec::new() };
        let inputs: Vec<Inputs> = units
            .iter()
            .map(|unit| source.inputs(model, &unit.batch, key))
            .collect();
        match &self.kind {
            Kind::MiddleLayer { loss, layer } => {
                let contrasts: Vec<Contrast> = units.iter().map(|unit| source.contrast(unit)).collect();
                let value = self.contrast_units(model, (loss, *layer), (&inputs, &contrasts), recompute, gradients);
                vec![(self.name.clone(), value)]
            }
            Kind::WordAlignment { layer, stay_close } => {
                let words: Vec<AlignedWords> = units.iter().map(|unit| source.words(unit)).collect();
                let totals = (
                    words.iter().map(|words| words.words.len() as u64).sum::<u64>().max(1),
                    words
                        .iter()
                        .map(|words| words.anchor_tokens() as u64)
                        .sum::<u64>()
                        .max(1),
                );
                let mut sums = [0.0; 2];
                for (inputs, words) in inputs.iter().zip(&words) {
                    let before = without_dropout(initial.unwrap_or(model), inputs, *layer);
                    let forward = Forward::run(model, inputs, &[*layer], recompute);
                    let states = forward.hidden(*layer);
                    let weights = (self.weight, *stay_close);
                    let (terms, gradient) = word_alignment::loss(states, &before, words, totals, weights);
                    sums = [sums[0] + terms[0], sums[1] + terms[1]];
                    let gradient = gradient.cast(states.dtype());
                    forward.backward(vec![(*layer, gradient)], gradients);
                }
                vec![
                    (self.name.clone(), sums[0] + stay_close * sums[1]),
                    (format!("{}/words", self.name), sums[0]),
                    (format!("{}/stay-close", self.name), sums[1]),
                ]
            }
            Kind::Lens { loss, layer } => {
                let texts: Vec<Groups> = units.iter().map(|unit| source.groups(unit)).collect();
                let groups = texts.iter().map(|texts| texts.len() as u64).sum::<u64>().max(1);
                let mut sums = [0.0; 3];
                for (inputs, texts) in inputs.iter().zip(&texts) {
                    let before = without_dropout(initial.unwrap_or(model), inputs, *layer);
                    let forward = Forward::run(model, inputs, &[*layer], recompute);
                    let states = forward.hidden(*layer);
                    let (terms, gradient) = loss.loss(states, &before, texts, groups, self.weight);
                    (0..3).for_each(|term| sums[term] += terms[term]);
                    let gradient = gradient.cast(states.dtype());
                    forward.backward(vec![(*layer, gradient)], gradients);
                }
                let names = ["retain", "align", "separate"].into_iter().zip(sums);
                let terms = names.map(|(term, value)| (format!("{}/{term}", self.name), value));
                [(self.name.clone(), loss.total(sums))]
                    .into_iter()
                    .chain(terms)
                    .collect()
            }
            Kind::Consistency => Vec::new(),
        }
    }

    /// InfoNCE over micro-batches of pairs: each by itself, or all of a step together.
    fn contrast_units(
        &self,
        model: &Model,
        (loss, layer): (&MiddleLayer, usize),
        (inputs, contrasts): (&[Inputs], &[Contrast]),
        recompute: bool,
        gradients: &mut Gradients,
    ) -> f64 {
        let anchors: usize = contrasts.iter().map(|contrast| contrast.pairs.len()).sum();
        let share = 1.0 / anchors.max(1) as f64;
        let mut sum = 0.0;
        let mut prepared = Vec::new();
        if self.scope == Scope::Step {
            let pooled: Vec<Tensor<2>> = inputs
                .iter()
                .map(|inputs| pool(loss, &model.hidden_state(inputs, layer), inputs))
                .collect();
            let (value, pieces) = contrast_all(loss, &pooled, contrasts);
            sum = value;
            prepared = pieces;
        }
        for (index, (inputs, contrast)) in inputs.iter().zip(contrasts).enumerate() {
            let forward = Forward::run(model, inputs, &[layer], recompute);
            let states = forward.hidden(layer);
            let by_pooled = match prepared.get(index) {
                Some(gradient) => gradient.clone(),
                None => {
                    let (value, gradient) = loss.loss(&pool(loss, states, inputs), contrast);
                    sum += value;
                    gradient
                }
            };
            let gradient = unpool(loss, by_pooled * (share * self.weight), inputs, states);
            forward.backward(vec![(layer, gradient)], gradients);
        }
        sum * share
    }
}

/// The states `[tokens, hidden]` of the same micro-batch with nothing dropped.
fn without_dropout(model: &Model, inputs: &Inputs, layer: usize) -> Tensor<2> {
    let plain = Inputs {
        token_keys: None,
        ..inputs.clone()
    };
    model.hidden_state(&plain, layer)
}

/// The loss over the contrasts of several micro-batches as one, and its gradient by the pooled states of each.
pub fn contrast_all(loss: &MiddleLayer, pooled: &[Tensor<2>], contrasts: &[Contrast]) -> (f64, Vec<Tensor<2>>) {
    let sizes: Vec<usize> = pooled.iter().map(|pooled| pooled.dims()[0]).collect();
    let mut all = Contrast::default();
    let mut offset = 0;
    for (contrast, size) in contrasts.iter().zip(&sizes) {
        let moved = contrast
            .pairs
            .iter()
            .map(|(anchor, other)| (anchor + offset, other + offset));
        all.pairs.extend(moved);
        all.groups.extend(&contrast.groups);
        offset += size;
    }
    let (value, gradient) = loss.loss(&Tensor::cat(pooled.to_vec(), 0), &all);
    let mut start = 0;
    let pieces = sizes.iter().map(|size| {
        let piece = gradient.clone().narrow(0, start, *size);
        start += size;
        piece
    });
    (value, pieces.collect())
}

/// What stands for each sequence, `[sequences, hidden]` in f32.
pub fn pool(loss: &MiddleLayer, states: &Tensor<2>, inputs: &Inputs) -> Tensor<2> {
    let matrix = averages(
        &loss.pooled_ranges(&inputs.boundaries),
        inputs.tokens(),
        &states.device(),
    );
    matrix.matmul(states.clone().cast(DType::F32))
}

/// The gradient by the states `[tokens, hidden]` from that by what stands for each sequence.
pub fn unpool(loss: &MiddleLayer, by_pooled: Tensor<2>, inputs: &Inputs, states: &Tensor<2>) -> Tensor<2> {
    let matrix = averages(
        &loss.pooled_ranges(&inputs.boundaries),
        inputs.tokens(),
        &states.device(),
    );
    matrix.transpose().matmul(by_pooled).cast(states.dtype())
}

/// The boundary that a loss reads in a model of so many blocks.
fn layer_of(index: usize, auxiliary: &Auxiliary, blocks: usize) -> Result<usize, TrainError> {
    let Some(layer) = auxiliary.layer else {
        return Ok(blocks);
    };
    layer.of(blocks).ok_or_else(|| {
        TrainError::Setup(format!(
            "objective.auxiliary.{index}.layer is {layer}, but this model has {blocks} blocks, so layers go from 0 (the \
             embedding) to {blocks} (after the final norm); choose one of them, \"middle\" or \"last\""
        ))
    })
}

/// The rows of a source that only a loss reads.
fn own_rows<'a>(index: usize, key: &str, source: &str, data: &'a Prepared) -> Result<&'a Dataset, TrainError> {
    data.auxiliary.get(source).ok_or_else(|| {
        TrainError::Setup(format!(
            "objective.auxiliary.{index}.{key} is {source:?}, which is trained on; set use = \"auxiliary\" in that source"
        ))
    })
}

impl Kind {
    fn of(
        index: usize,
        auxiliary: &Auxiliary,
        model: &Model,
        source: Option<&Source>,
        data: &Prepared,
    ) -> Result<Self, TrainError> {
        let layer = layer_of(index, auxiliary, model.blocks.len())?;
        Ok(match auxiliary.kind {
            AuxiliaryKind::MiddleLayer => Self::MiddleLayer {
                loss: MiddleLayer::of(auxiliary),
                layer,
            },
            AuxiliaryKind::WordAlignment => Self::WordAlignment {
                layer,
                stay_close: auxiliary.stay_close.unwrap_or(1.0),
            },
            AuxiliaryKind::Consistency => Self::Consistency,
            AuxiliaryKind::Lens => {
                let probed = match (&auxiliary.probe, source) {
                    (Some(probe), _) => own_rows(index, "probe", probe, data)?,
                    (None, Some(source)) => &source.dataset,
                    (None, None) => &data.train,
                };
                let means = probe(model, probed, auxiliary, layer);
                // Sources count languages by numbers of their own.
                let number = |tag: &str| source.and_then(|source| source.number(tag));
                let means = means
                    .into_iter()
                    .filter_map(|(tag, mean)| Some((number(&tag)?, mean)))
                    .collect();
                let anchor = source.and_then(|source| source.anchor).unwrap_or_default();
                let subspaces = Subspaces::of(&means, anchor).ok_or_else(|| {
                    TrainError::Setup(format!(
                        "objective.auxiliary.{index}: probing found no subspaces; it needs rows of the anchor and of \
                         another language, in `probe` as in `source`"
                    ))
                })?;
                let weight = |number: Option<f64>| number.unwrap_or(1.0);
                let weights = (weight(auxiliary.retain), weight(auxiliary.align));
                let separate = weight(auxiliary.separate);
                Self::Lens {
                    loss: Box::new(Lens::new(&subspaces, weights, |_| separate, &model.device)),
                    layer,
                }
            }
        })
    }
}

/// The mean state of the last token over the first rows of each language, by its tag.
fn probe(model: &Model, dataset: &Dataset, auxiliary: &Auxiliary, layer: usize) -> BTreeMap<String, Vec<f64>> {
    let rows = auxiliary.probe_rows.unwrap_or(300) as u64;
    let longest = auxiliary.probe_length.unwrap_or(64);
    let mut sums = BTreeMap::<u16, (Vec<f64>, u64)>::new();
    for sample in 0..dataset.len() {
        let language = dataset.language(sample);
        let (sum, count) = sums.entry(language).or_default();
        if *count == rows {
            continue;
        }
        let (ids, labels) = dataset.tokens(sample);
        let length = ids.len().min(longest);
        let mut batch = MicroBatch::default();
        batch.push(&ids[..length], &labels[..length], language, sample as u64, 0);
        let (inputs, _) = inputs_and_targets(model, &batch, dataset.languages());
        let state = model.hidden_state(&inputs, layer).narrow(0, length - 1, 1);
        let state: Vec<f64> = state.cast(DType::F32).into_data().iter::<f64>().collect();
        sum.resize(state.len(), 0.0);
        sum.iter_mut().zip(state).for_each(|(sum, value)| *sum += value);
        *count += 1;
    }
    let means = sums.into_iter().map(|(language, (sum, count))| {
        let mean = sum.into_iter().map(|value| value / count as f64).collect();
        (dataset.languages()[usize::from(language)].clone(), mean)
    });
    means.collect()
}

impl Source {
    fn open(
        recipe: &Recipe,
        index: usize,
        auxiliary: &Auxiliary,
        source: &str,
        data: &Prepared,
    ) -> Result<Self, TrainError> {
        let dataset = own_rows(index, "source", source, data)?;
        let anchor = recipe.data.parallel.as_ref().map(|parallel| parallel.anchor.as_str());
        let batch_size = auxiliary.batch_size.unwrap_or(recipe.train.batch_size);
        let number = |tag: &str| dataset.languages().iter().position(|known| known == tag);
        let order = if auxiliary.kind == AuxiliaryKind::Lens {
            let groups: BTreeSet<u64> = (0..dataset.len()).map(|sample| dataset.group(sample)).collect();
            let order = Order::for_recipe(&in_groups(recipe, anchor, batch_size), dataset, 1)?.0;
            SourceOrder::Groups(Box::new(order), groups.len() as u64)
        } else {
            let settings = PairSettings {
                seed: recipe.seed,
                shuffle: recipe.data.shuffle,
                batch_size,
                world: 1,
            };
            SourceOrder::Pairs(Box::new(PairOrder::new(dataset, anchor, settings)?))
        };
        Ok(Self {
            anchor: number(anchor.unwrap_or("en")).map(|index| index as u16),
            dataset: dataset.clone(),
            order,
            batch_size: batch_size as u64,
            sample_offset: (index as u64 + 1) << 40,
        })
    }

    /// The number that this source's rows have for a language.
    fn number(&self, tag: &str) -> Option<u16> {
        let found = self.dataset.languages().iter().position(|known| known == tag);
        found.map(|index| index as u16)
    }

    /// The texts of each group of a unit: a group begins with its anchor.
    fn groups(&self, unit: &PairUnit) -> Groups {
        let mut groups = Groups::new();
        for sequence in &unit.batch.sequences {
            if Some(sequence.language) == self.anchor {
                groups.push((sequence.range(), Vec::new()));
            } else if let Some((_, others)) = groups.last_mut() {
                others.push((sequence.language, sequence.range()));
            }
        }
        groups
    }

    /// Micro-batches of one pass over the pairs, or groups.
    fn units_per_epoch(&self) -> u64 {
        let count = match &self.order {
            SourceOrder::Pairs(pairs) => pairs.len() as u64,
            SourceOrder::Groups(_, groups) => *groups,
        };
        count.div_ceil(self.batch_size)
    }

    fn inputs(&self, model: &Model, batch: &MicroBatch, key: StepKey) -> Inputs {
        let samples = batch.sequences.iter();
        let samples: Vec<u64> = samples.map(|sequence| sequence.sample + self.sample_offset).collect();
        dropout_inputs(model, batch, self.dataset.languages(), key, &samples)
    }

    fn contrast(&self, unit: &PairUnit) -> Contrast {
        let group = |row: usize| self.dataset.group(unit.batch.sequences[row].sample as usize);
        Contrast {
            pairs: (0..unit.pairs).map(|row| (row, unit.pairs + row)).collect(),
            groups: (0..unit.pairs).map(group).collect(),
        }
    }

    /// The aligned words of each pair: its marks are the first token and the one after the last of each word, in the same
    /// order on both sides.
    fn words(&self, unit: &PairUnit) -> AlignedWords {
        let mut aligned = AlignedWords::default();
        for row in 0..unit.pairs {
            let sides = [row, unit.pairs + row].map(|row| {
                let sequence = &unit.batch.sequences[row];
                let marks = self.dataset.marks(sequence.sample as usize);
                let words = marks.chunks_exact(2);
                words
                    .map(|word| sequence.start + word[0] as usize..sequence.start + word[1] as usize)
                    .collect::<Vec<_>>()
            });
            let [anchors, others] = sides;
            aligned.words.extend(anchors.into_iter().zip(others));
            aligned.anchors.push(unit.batch.sequences[row].range());
        }
        aligned
    }
}

/// Lays the sequences of one micro-batch behind those of another.
fn append(batch: &mut MicroBatch, more: &MicroBatch) {
    for sequence in &more.sequences {
        let (ids, labels) = (&more.input_ids[sequence.range()], &more.labels[sequence.range()]);
        batch.push(ids, labels, sequence.language, sequence.sample, sequence.part);
    }
    batch.rows += more.rows;
}

/// The recipe of a run that reads whole groups, so many in each step, all in one micro-batch.
fn in_groups(recipe: &Recipe, anchor: Option<&str>, groups: usize) -> Recipe {
    let mut recipe = recipe.clone();
    let parallel = Parallel {
        groups_per_batch: groups,
        missing: Missing::Allow,
        ..Parallel::default()
    };
    recipe.data.mix = Mix::default();
    recipe.data.parallel = Some(Parallel {
        anchor: anchor.map_or(parallel.anchor.clone(), str::to_owned),
        ..parallel
    });
    (recipe.train.steps, recipe.train.epochs, recipe.train.tokens) = (Some(u64::MAX), None, None);
    recipe
}
