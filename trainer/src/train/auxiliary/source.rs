//! The data that only an auxiliary loss reads, micro-batch by micro-batch.

use std::collections::BTreeSet;

use interlingua_data::batch::MicroBatch;
use interlingua_data::dataset::Dataset;
use interlingua_data::language::canonical;
use interlingua_data::order::Order;
use interlingua_data::pairs::{PairBatch, PairOrder, PairSettings};
use interlingua_data::prepare::Prepared;
use interlingua_recipes::{Auxiliary, AuxiliaryKind, Missing, Mix, Parallel, Recipe};

use crate::engine::inputs::Inputs;
use crate::error::TrainError;
use crate::models::Model;
use crate::objectives::lens::Groups;
use crate::objectives::middle_layer::Contrast;
use crate::objectives::word_alignment::AlignedWords;
use crate::train::step::{StepKey, dropout_inputs};

/// Data that only an auxiliary loss reads.
pub struct Source {
    pub(super) dataset: Dataset,
    order: SourceOrder,
    /// The index of the anchor's language, for losses that read whole groups.
    pub(super) anchor: Option<u16>,
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

/// A micro-batch of an auxiliary loss's own data.
pub struct PairUnit {
    /// Pairs: anchors first, then their translations in the same order. Groups: each group's texts, the anchor's first.
    batch: MicroBatch,
    pairs: usize,
}

impl PairUnit {
    /// Tokens of all its texts.
    pub fn tokens(&self) -> u64 {
        self.batch.tokens() as u64
    }
}

/// The rows of a source that only a loss reads.
pub(super) fn own_rows<'a>(
    index: usize,
    key: &str,
    source: &str,
    data: &'a Prepared,
) -> Result<&'a Dataset, TrainError> {
    data.auxiliary.get(source).ok_or_else(|| {
        TrainError::Setup(format!(
            "objective.auxiliary.{index}.{key} is {source:?}, which is trained on; set use = \"auxiliary\" in that source"
        ))
    })
}

impl Source {
    /// The micro-batch with this number of one of `world` ranks.
    pub(super) fn unit(&self, counter: u64, rank: usize, world: usize) -> PairUnit {
        match &self.order {
            SourceOrder::Pairs(order) => {
                let PairBatch { anchors, others } = order.micro_batch(&self.dataset, counter, rank, world);
                let pairs = anchors.sequences.len();
                let mut batch = anchors;
                batch.append(&others);
                PairUnit { batch, pairs }
            }
            SourceOrder::Groups(order, _) => {
                let mut batch = MicroBatch::default();
                // Groups stay whole: each rank's are a step of the order of their own.
                let number = counter * world as u64 + rank as u64;
                for part in order.micro_batches(&self.dataset, number, 0, 1) {
                    batch.append(&part);
                }
                PairUnit { batch, pairs: 0 }
            }
        }
    }

    pub(super) fn open(
        recipe: &Recipe,
        index: usize,
        auxiliary: &Auxiliary,
        source: &str,
        data: &Prepared,
        world: usize,
    ) -> Result<Self, TrainError> {
        let dataset = own_rows(index, "source", source, data)?;
        let anchor = anchor(recipe);
        let anchor = anchor.as_deref();
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
                world,
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
    pub(super) fn number(&self, tag: &str) -> Option<u16> {
        let found = self.dataset.languages().iter().position(|known| known == tag);
        found.map(|index| index as u16)
    }

    /// The texts of each group of a unit: a group begins with its anchor.
    pub(super) fn groups(&self, unit: &PairUnit) -> Groups {
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

    /// What a person should know about what is read, in whole sentences.
    pub(super) fn notes(&self) -> &[String] {
        match &self.order {
            SourceOrder::Pairs(order) => order.notes(),
            SourceOrder::Groups(order, _) => order.notes(),
        }
    }

    /// Checks that a loss finds in it what it reads.
    pub(super) fn check(&self, index: usize, kind: AuxiliaryKind) -> Result<(), TrainError> {
        let samples = 0..self.dataset.len();
        let problem = match kind {
            AuxiliaryKind::MiddleLayer
                if samples
                    .clone()
                    .all(|sample| self.dataset.group(sample) == self.dataset.group(0)) =>
            {
                "has one group of translations, and there is no other to tell it from; add rows"
            }
            AuxiliaryKind::WordAlignment if samples.clone().all(|sample| self.dataset.marks(sample).is_empty()) => {
                "has no aligned words; its rows need `alignment` (see docs/data.md)"
            }
            _ => return Ok(()),
        };
        Err(TrainError::Setup(format!(
            "objective.auxiliary.{index}.source {problem}"
        )))
    }

    /// Micro-batches of each of `world` ranks in one pass over the pairs, or groups.
    pub(super) fn units_per_epoch(&self, world: usize) -> u64 {
        let count = match &self.order {
            SourceOrder::Pairs(pairs) => pairs.len() as u64,
            SourceOrder::Groups(_, groups) => *groups,
        };
        count.div_ceil(self.batch_size * world as u64)
    }

    /// The model's inputs for a unit, with dropout.
    pub(super) fn inputs(&self, model: &Model, unit: &PairUnit, key: StepKey) -> Inputs {
        let batch = &unit.batch;
        let samples = batch.sequences.iter();
        let samples: Vec<u64> = samples.map(|sequence| sequence.sample + self.sample_offset).collect();
        dropout_inputs(model, batch, self.dataset.languages(), key, &samples)
    }

    pub(super) fn contrast(&self, unit: &PairUnit) -> Contrast {
        let group = |row: usize| self.dataset.group(unit.batch.sequences[row].sample as usize);
        Contrast {
            pairs: (0..unit.pairs).map(|row| (row, unit.pairs + row)).collect(),
            groups: (0..unit.pairs).map(group).collect(),
        }
    }

    /// The aligned words of each pair: its marks are the first token and the one after the last of each word, in the same
    /// order on both sides.
    pub(super) fn words(&self, unit: &PairUnit) -> AlignedWords {
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

/// The language that `[data.parallel]` ties the others to, as rows are tagged with it.
pub fn anchor(recipe: &Recipe) -> Option<String> {
    let anchor = &recipe.data.parallel.as_ref()?.anchor;
    Some(canonical(anchor).unwrap_or_else(|_| anchor.clone()))
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
