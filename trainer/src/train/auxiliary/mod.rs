//! Auxiliary losses of a run, made ready once: their layers, their own data, and what they read of a step.

mod contrast;
mod probe;
mod source;

use burn::tensor::Tensor;
use interlingua_data::prepare::Prepared;
use interlingua_recipes::{Auxiliary, AuxiliaryKind, Recipe, Scope};

use super::step::StepKey;
use crate::collectives::Collectives;
use crate::engine::forward::Forward;
use crate::engine::gradients::Gradients;
use crate::engine::inputs::Inputs;
use crate::engine::keeping::Keeping;
use crate::error::TrainError;
use crate::models::Model;
use crate::objectives::lens::{Groups, Lens, Subspaces};
use crate::objectives::middle_layer::{Contrast, MiddleLayer};
use crate::objectives::word_alignment::{self, AlignedWords};
use contrast::contrast_all;
use probe::probe;
use source::own_rows;

pub use contrast::{gather_rows, pool, unpool};
pub use source::{PairUnit, Source, anchor};

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
    /// Load balancing of experts.
    Router,
}

/// The micro-batches of pairs of a step.
pub struct UnitsOfStep<'a> {
    /// This process's.
    pub own: &'a [PairUnit],
    /// Those of all processes by rank, where there are several; else none.
    pub of_all: Vec<&'a [PairUnit]>,
}

impl AuxiliaryLoss {
    /// Checks what can be checked without a model: layers and sources. Gives, for each loss, the micro-batches of each of `world`
    /// processes in one pass over its source (0 without one), and what a person should know, in whole sentences.
    ///
    /// # Errors
    /// When a layer is out of range in a model of so many blocks, or a source has no pairs.
    pub fn check(
        recipe: &Recipe,
        blocks: usize,
        data: &Prepared,
        world: usize,
    ) -> Result<(Vec<u64>, Vec<String>), TrainError> {
        let (mut passes, mut notes) = (Vec::new(), Vec::new());
        for (index, auxiliary) in recipe.objective.auxiliary.iter().enumerate() {
            layer_of(index, auxiliary, blocks)?;
            passes.push(match &auxiliary.source {
                None => 0,
                Some(source) => {
                    let source = Source::open(recipe, index, auxiliary, source, data, world)?;
                    source.check(index, auxiliary.kind)?;
                    notes.extend_from_slice(source.notes());
                    source.units_per_epoch(world)
                }
            });
            if let Some(probe) = &auxiliary.probe {
                own_rows(index, "probe", probe, data)?;
            }
        }
        Ok((passes, notes))
    }

    /// The auxiliary losses of a recipe, for its model before training, as one of `world` processes computes them.
    ///
    /// # Errors
    /// As [`AuxiliaryLoss::check`]; and when probing finds no subspaces.
    pub fn prepare(recipe: &Recipe, model: &Model, data: &Prepared, world: usize) -> Result<Vec<Self>, TrainError> {
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
                Some(source) => Some(Source::open(recipe, index, auxiliary, source, data, world)?),
            };
            all.push(Self {
                name,
                weight: auxiliary.weight(),
                scope: auxiliary.scope,
                kind: Kind::of(index, auxiliary, model, source.as_ref(), data)?,
                source,
            });
        }
        Ok(all)
    }

    /// The pairs of one of `world` ranks in the micro-steps with these numbers.
    pub fn units(&self, counters: &[u64], rank: usize, world: usize) -> Vec<PairUnit> {
        let Some(source) = &self.source else { return Vec::new() };
        let unit = |counter: &u64| source.unit(*counter, rank, world);
        counters.iter().map(unit).collect()
    }

    /// Forward and backward passes of a step's micro-batches of pairs, up to the loss's layer only. `initial`: the model
    /// before training, for losses that keep close to it. Gradients are those of weight × loss, times their scale. Returns
    /// this process's part of the terms of the loss, by name.
    pub fn accumulate(
        &self,
        model: &Model,
        initial: Option<&Model>,
        units: &UnitsOfStep,
        (keeping, key, collectives): (Keeping, StepKey, &dyn Collectives),
        gradients: &mut Gradients,
    ) -> Vec<(String, f64)> {
        let Some(source) = &self.source else { return Vec::new() };
        let of_all = &units.of_all;
        let units = units.own;
        let inputs: Vec<Inputs> = units.iter().map(|unit| source.inputs(model, unit, key)).collect();
        match &self.kind {
            Kind::MiddleLayer { loss, layer } => {
                let contrasts = |units: &[PairUnit]| units.iter().map(|unit| source.contrast(unit)).collect::<Vec<_>>();
                let contrasts = match of_all.is_empty() {
                    true => vec![contrasts(units)],
                    false => of_all.iter().map(|units| contrasts(units)).collect(),
                };
                let data = (&inputs[..], &contrasts[..]);
                let value = self.contrast_units(model, (loss, *layer), data, (keeping, collectives), gradients);
                vec![(self.name.clone(), value)]
            }
            Kind::WordAlignment { layer, stay_close } => {
                let words: Vec<AlignedWords> = units.iter().map(|unit| source.words(unit)).collect();
                let mut totals = [
                    words.iter().map(|words| words.words.len()).sum::<usize>() as f64,
                    words.iter().map(AlignedWords::anchor_tokens).sum::<usize>() as f64,
                ];
                collectives.sum(&mut totals);
                let totals = (totals[0].max(1.0) as u64, totals[1].max(1.0) as u64);
                let mut sums = [0.0; 2];
                for (inputs, words) in inputs.iter().zip(&words) {
                    let before = without_dropout(initial.unwrap_or(model), inputs, *layer);
                    let forward = Forward::run(model, inputs, &[*layer], keeping);
                    let states = forward.hidden(*layer);
                    let weights = (self.weight * gradients.scale(), *stay_close);
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
                let mut groups = [texts.iter().map(Vec::len).sum::<usize>() as f64];
                collectives.sum(&mut groups);
                let groups = groups[0].max(1.0) as u64;
                let mut sums = [0.0; 3];
                for (inputs, texts) in inputs.iter().zip(&texts) {
                    let before = without_dropout(initial.unwrap_or(model), inputs, *layer);
                    let forward = Forward::run(model, inputs, &[*layer], keeping);
                    let states = forward.hidden(*layer);
                    let (terms, gradient) = loss.loss(states, &before, texts, groups, self.weight * gradients.scale());
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
            Kind::Consistency | Kind::Router => Vec::new(),
        }
    }

    /// InfoNCE over micro-batches of pairs: each by itself, or all of a step together, over all processes. `contrasts`: by rank,
    /// those of each micro-batch. Every process computes the whole value, and the first one counts it.
    fn contrast_units(
        &self,
        model: &Model,
        (loss, layer): (&MiddleLayer, usize),
        (inputs, contrasts): (&[Inputs], &[Vec<Contrast>]),
        (keeping, collectives): (Keeping, &dyn Collectives),
        gradients: &mut Gradients,
    ) -> f64 {
        let anchors: usize = contrasts.iter().flatten().map(|contrast| contrast.pairs.len()).sum();
        let share = 1.0 / anchors.max(1) as f64;
        let rank = if contrasts.len() > 1 { collectives.rank() } else { 0 };
        // Rows of each rank in a micro-batch, and where this rank's begin.
        let counts = |unit: usize| -> Vec<usize> { contrasts.iter().map(|of| 2 * of[unit].pairs.len()).collect() };
        let before = |unit: usize| -> usize { counts(unit)[..rank].iter().sum() };
        let gather = |unit: usize, pooled: Tensor<2>| gather_rows(collectives, pooled, &counts(unit));
        let of_unit = |unit: usize| contrasts.iter().map(move |of| &of[unit]);
        let own = |gradient: &Tensor<2>, unit: usize, start: usize| {
            gradient.clone().narrow(0, start + before(unit), counts(unit)[rank])
        };
        let mut sum = 0.0;
        let mut prepared = Vec::new();
        if self.scope == Scope::Step {
            let pooled = inputs.iter().enumerate().flat_map(|(unit, inputs)| {
                let pooled = pool(loss, &model.hidden_state(inputs, layer), inputs);
                gather(unit, pooled)
            });
            let pooled = pooled.collect();
            let (value, gradient) = contrast_all(loss, pooled, (0..inputs.len()).flat_map(of_unit));
            sum = value;
            let mut start = 0;
            for unit in 0..inputs.len() {
                prepared.push(own(&gradient, unit, start));
                start += counts(unit).iter().sum::<usize>();
            }
        }
        for (unit, inputs) in inputs.iter().enumerate() {
            let forward = Forward::run(model, inputs, &[layer], keeping);
            let states = forward.hidden(layer);
            let by_pooled = match prepared.get(unit) {
                Some(gradient) => gradient.clone(),
                None => {
                    let pooled = gather(unit, pool(loss, states, inputs));
                    let (value, gradient) = contrast_all(loss, pooled, of_unit(unit));
                    sum += value;
                    own(&gradient, unit, 0)
                }
            };
            let factor = share * self.weight * gradients.scale();
            let gradient = unpool(loss, by_pooled * factor, inputs, states);
            forward.backward(vec![(layer, gradient)], gradients);
        }
        if rank == 0 { sum * share } else { 0.0 }
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
            AuxiliaryKind::Router => Self::Router,
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
                let anchor = source.and_then(|source| source.anchor);
                let subspaces = anchor.and_then(|anchor| Subspaces::of(&means, anchor)).ok_or_else(|| {
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
