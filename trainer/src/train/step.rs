//! One optimizer step: the main loss over its micro-batches, and the auxiliary losses, forward and backward.

use std::collections::BTreeMap;
use std::sync::Arc;

use interlingua_data::batch::{MicroBatch, Sequence};
use interlingua_data::dataset::Dataset;

use super::auxiliary::{AuxiliaryLoss, PairUnit, UnitsOfStep, pool, unpool};
use super::batch_losses::{BatchLosses, Feedback, Turn};
use super::main_loss::{Company, Evaluated, MainLoss, MainTargets, Totals, boundaries};
use super::metrics::{LanguageLoss, Rewards};
use super::reference::{Reference, sequence_of, sums_by_sequence};
use crate::collectives::Collectives;
use crate::engine::forward::Forward;
use crate::engine::gradients::Gradients;
use crate::engine::head::{Targets, log_probs, log_probs_with_gradient};
use crate::engine::inputs::{Inputs, RopeLength};
use crate::engine::keeping::Keeping;
use crate::error::TrainError;
use crate::models::Model;
use crate::objectives::router::balance;

/// All losses of a run.
pub struct Losses {
    /// The main loss.
    pub main: MainLoss,
    /// What it is called in metrics.
    pub name: &'static str,
    /// Its weight.
    pub weight: f64,
    /// Whether its forward passes drop anything.
    pub dropout: bool,
    /// What preferences are compared with.
    pub reference: Option<Reference>,
    /// The same for held-out samples.
    pub heldout_reference: Option<Reference>,
    /// The auxiliary losses.
    pub auxiliary: Vec<AuxiliaryLoss>,
    /// The model before training, for losses that keep close to it.
    pub initial: Option<Model>,
    /// The language that the others are tied to in groups.
    pub anchor: Option<String>,
    /// What forward passes keep for the backward pass.
    pub keeping: Keeping,
    /// The processes that share the step.
    pub collectives: Arc<dyn Collectives>,
}

/// The data of a step.
#[derive(Default)]
pub struct StepData {
    /// What this process reads.
    pub own: RankData,
    /// What each process reads, by rank, where there are several and a loss compares the samples of all; else empty.
    pub all: Vec<RankData>,
}

/// What one process reads in a step.
#[derive(Default)]
pub struct RankData {
    /// Micro-batches of the main data; equally many on every rank, so that some can be empty.
    pub main: Vec<MicroBatch>,
    /// Micro-batches of pairs, for each auxiliary loss.
    pub auxiliary: Vec<Vec<PairUnit>>,
}

impl RankData {
    /// All tokens of it.
    fn tokens(&self) -> u64 {
        let main: usize = self.main.iter().map(MicroBatch::tokens).sum();
        let auxiliary: u64 = self.auxiliary.iter().flatten().map(PairUnit::tokens).sum();
        main as u64 + auxiliary
    }
}

/// What the passes over an optimizer step's micro-batches give.
pub struct Accumulated {
    /// Gradients of the step's loss.
    pub gradients: Gradients,
    /// The total: each loss times its weight.
    pub loss: f64,
    /// Each loss by name, weights not applied.
    pub losses: BTreeMap<String, f64>,
    /// Supervised tokens of the main data.
    pub tokens: u64,
    /// All tokens, those that only auxiliary losses read too.
    pub tokens_total: u64,
    /// Rewards of preferences.
    pub rewards: Option<Rewards>,
    /// By language of the main data.
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
    let boundaries = boundaries(batch);
    let targets = Targets::of_labels(&batch.labels, &boundaries);
    (inputs(model, batch, languages), targets)
}

fn inputs(model: &Model, batch: &MicroBatch, languages: &[String]) -> Inputs {
    let (ids, positions) = (&batch.input_ids, &batch.position_ids);
    let boundaries = boundaries(batch);
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
    inputs.with_languages(&languages)
}

/// The model's inputs for a micro-batch with dropout on. `samples`: one global index per sequence; the sequences of one
/// sample differ in their number within it.
pub fn dropout_inputs(
    model: &Model,
    batch: &MicroBatch,
    languages: &[String],
    key: StepKey,
    samples: &[u64],
) -> Inputs {
    let parts = batch.sequences.iter().map(|sequence| u64::from(sequence.part) << 48);
    let keys: Vec<u64> = samples.iter().zip(parts).map(|(sample, part)| sample ^ part).collect();
    inputs(model, batch, languages).with_dropout(key.seed, key.step, &keys)
}

impl Losses {
    /// Runs this process's micro-batches of a step. Losses are normalised over the whole step, all processes included: token
    /// losses by supervised tokens, pair losses by pairs, contrastive ones by anchors. What comes back is the sum over all
    /// processes, but for the gradients, which are this one's. `loss_scale`: what gradients are multiplied by where backward
    /// passes begin; they come back with it.
    ///
    /// # Errors
    /// When the loss is not a finite number.
    pub fn accumulate(
        &self,
        model: &Model,
        dataset: &Dataset,
        data: &StepData,
        key: StepKey,
        loss_scale: f64,
    ) -> Result<Accumulated, TrainError> {
        let mut sum = Accumulated {
            gradients: Gradients::scaled(loss_scale),
            loss: 0.0,
            losses: BTreeMap::new(),
            tokens: 0,
            tokens_total: data.own.tokens(),
            rewards: None,
            by_language: BTreeMap::new(),
        };
        let (turns, totals) = self.turns(dataset, data);
        self.main_data(model, dataset, &turns, &totals, key, &mut sum);
        for (index, (auxiliary, units)) in self.auxiliary.iter().zip(&data.own.auxiliary).enumerate() {
            if !units.is_empty() {
                let of_all = data
                    .all
                    .iter()
                    .map(|data| &data.auxiliary[index][..])
                    .collect::<Vec<_>>();
                let units = UnitsOfStep { own: units, of_all };
                let (initial, gradients) = (self.initial.as_ref(), &mut sum.gradients);
                let pass = (self.keeping, key, &*self.collectives);
                let terms = auxiliary.accumulate(model, initial, &units, pass, gradients);
                sum.losses.extend(terms);
            }
        }
        self.add_up(&mut sum);
        let weight = |name: &str| match self.auxiliary.iter().find(|auxiliary| auxiliary.name == name) {
            Some(auxiliary) => auxiliary.weight,
            None if name == self.name => self.weight,
            // A term of a loss, named after it.
            None => 0.0,
        };
        sum.loss = sum.losses.iter().map(|(name, value)| weight(name) * value).sum();
        if !sum.loss.is_finite() {
            return Err(not_finite("loss", dataset, &data.own.main, key.step));
        }
        Ok(sum)
    }

    /// The micro-batches of the main data that some process has something in, and what their losses are divided by. All
    /// processes have equally many, so that what they do together is in step: one that has nothing computes a filler, which
    /// counts nothing.
    fn turns(&self, dataset: &Dataset, data: &StepData) -> (Vec<Turn>, Totals) {
        let mut totals = Totals::default();
        let own = &data.own.main;
        own.iter()
            .for_each(|batch| self.main.count(dataset, batch, &mut totals));
        let mut counts = vec![
            totals.tokens as f64,
            totals.pairs as f64,
            totals.likelihood_tokens as f64,
            totals.all_tokens as f64,
        ];
        let is_there = |batch: &MicroBatch| f64::from(u8::from(!batch.sequences.is_empty()));
        counts.extend(own.iter().map(is_there));
        self.collectives.sum(&mut counts);
        let turns = own.iter().enumerate().filter(|(index, _)| counts[4 + index] > 0.0);
        let turns = turns.map(|(index, batch)| {
            let is_filler = batch.sequences.is_empty();
            Turn {
                batch: if is_filler { self.main.filler() } else { batch.clone() },
                is_filler,
                of_all: data.all.iter().map(|data| data.main[index].clone()).collect(),
            }
        });
        let turns = turns.collect();
        let totals = Totals {
            tokens: counts[0] as u64,
            pairs: counts[1] as u64,
            likelihood_tokens: counts[2] as u64,
            all_tokens: counts[3] as u64,
        };
        (turns, totals)
    }

    /// Adds up over all processes what the metrics say of a step.
    fn add_up(&self, sum: &mut Accumulated) {
        let mut values: Vec<f64> = sum.losses.values().copied().collect();
        values.push(sum.tokens_total as f64);
        self.collectives.sum(&mut values);
        sum.tokens_total = values.pop().unwrap_or(0.0) as u64;
        sum.losses
            .values_mut()
            .zip(values)
            .for_each(|(loss, value)| *loss = value);
    }

    /// The main loss, and the auxiliary losses on its batches.
    fn main_data(
        &self,
        model: &Model,
        dataset: &Dataset,
        turns: &[Turn],
        totals: &Totals,
        key: StepKey,
        sum: &mut Accumulated,
    ) {
        if turns.is_empty() {
            return;
        }
        let collectives = &*self.collectives;
        let on_batch = BatchLosses::new(&self.auxiliary, dataset, self.anchor.as_deref(), turns, collectives);
        sum.tokens = totals.tokens;
        let prepared: Vec<(&Turn, Inputs, MainTargets)> = turns
            .iter()
            .map(|turn| {
                let batch = &turn.batch;
                let boundaries = boundaries(batch);
                let samples: Vec<u64> = batch.sequences.iter().map(|sequence| sequence.sample).collect();
                let inputs = if self.dropout {
                    dropout_inputs(model, batch, dataset.languages(), key, &samples)
                } else {
                    inputs(model, batch, dataset.languages())
                };
                let targets = self.main.targets(dataset, batch, &boundaries, on_batch.reads_options());
                (turn, inputs, targets)
            })
            .collect();
        let mut feedback = on_batch.over_the_step(model, &prepared, &mut sum.losses);
        let mut tally = Tally::default();
        let mut loss = 0.0;
        for ((turn, inputs, targets), feedback) in prepared.iter().zip(&mut feedback) {
            let evaluated = self.micro_batch(
                model,
                dataset,
                (turn, inputs, targets),
                totals,
                &on_batch,
                feedback,
                sum,
            );
            if !turn.is_filler {
                loss += evaluated.loss;
                tally.add(dataset, &turn.batch, targets, &evaluated.samples);
            }
        }
        if self.main != MainLoss::None {
            sum.losses.insert(self.name.to_owned(), loss);
        }
        tally.add_up(dataset.languages(), collectives);
        (sum.by_language, sum.rewards) = tally.finish(!self.main.is_linear());
    }

    /// Forward and backward pass of one micro-batch.
    #[expect(
        clippy::too_many_arguments,
        reason = "a pass reads the micro-batch, the step and the losses"
    )]
    fn micro_batch(
        &self,
        model: &Model,
        dataset: &Dataset,
        (turn, inputs, targets): (&Turn, &Inputs, &MainTargets),
        totals: &Totals,
        on_batch: &BatchLosses,
        feedback: &mut Feedback,
        sum: &mut Accumulated,
    ) -> Evaluated {
        let batch = &turn.batch;
        let last = model.blocks.len();
        let reads_head = self.main != MainLoss::None || on_batch.reads_options();
        let mut wanted: Vec<usize> = on_batch.layers().collect();
        let router = on_batch.router();
        if reads_head || router.is_some() {
            wanted.push(last);
        }
        let forward = Forward::run(model, inputs, &wanted, self.keeping);
        let early = (!self.main.is_linear() || on_batch.reads_options())
            .then(|| log_probs(model, forward.hidden(last), &targets.targets));
        if !on_batch.is_empty() {
            let positions = &targets.targets.positions;
            on_batch.over_a_batch(
                turn,
                |numbers, layer| pool(numbers, forward.hidden(layer), inputs),
                || sums_by_sequence(batch, positions, early.as_deref().unwrap_or_default()),
                feedback,
                &mut sum.losses,
            );
        }
        let mut at = Vec::new();
        let mut evaluated = Evaluated::default();
        if reads_head {
            let (reference, whole) = (self.reference.as_ref(), (dataset, batch));
            let evaluate = |log_probs: &[f32]| {
                let models = (model, reference);
                let company = Company {
                    of_all: &turn.of_all,
                    collectives: &*self.collectives,
                    is_filler: turn.is_filler,
                };
                self.main
                    .evaluate(models, whole, (targets, log_probs), self.weight, (totals, &company))
            };
            let mut weights = match &early {
                Some(log_probs) => {
                    evaluated = evaluate(log_probs);
                    std::mem::take(&mut evaluated.weights)
                }
                None => self
                    .main
                    .linear_weights(dataset, batch, &targets.targets, self.weight, totals),
            };
            let scale = sum.gradients.scale() as f32;
            for (weight, position) in weights.iter_mut().zip(&targets.targets.positions) {
                let sequence = sequence_of(batch, *position);
                *weight -= feedback.by_sequence.get(sequence).copied().unwrap_or(0.0) as f32;
                *weight *= if turn.is_filler { 0.0 } else { scale };
            }
            let (hidden, token_keys) = (forward.hidden(last), inputs.token_keys.as_deref());
            let gradients = &mut sum.gradients;
            let (log_probs, gradient) =
                log_probs_with_gradient(model, hidden, &targets.targets, &weights, token_keys, gradients);
            if early.is_none() {
                evaluated = evaluate(&log_probs);
            }
            at.push((last, gradient));
        }
        for (index, by_pooled) in std::mem::take(&mut feedback.by_pooled) {
            let Some((numbers, layer)) = on_batch.middle_layer(index) else {
                continue;
            };
            let states = forward.hidden(layer);
            let gradient = match by_pooled {
                Some(by_pooled) => unpool(numbers, by_pooled * sum.gradients.scale(), inputs, states),
                None => states.zeros_like(),
            };
            at.push((layer, gradient));
        }
        let mut by_probability = None;
        if let Some(loss) = router {
            if !reads_head {
                at.push((last, forward.hidden(last).zeros_like()));
            }
            // Each micro-batch counts by its tokens in the step.
            let share = batch.tokens() as f64 / totals.all_tokens.max(1) as f64;
            if let Some((value, derivative)) = balance(forward.routing()).filter(|_| !turn.is_filler) {
                *sum.losses.entry(loss.name.clone()).or_default() += share * value;
                let factor = share * loss.weight * sum.gradients.scale();
                by_probability = Some(
                    derivative
                        .iter()
                        .map(|value| (value * factor) as f32)
                        .collect::<Vec<f32>>(),
                );
            } else {
                sum.losses.entry(loss.name.clone()).or_default();
            }
        }
        forward.backward_with_routers(at, by_probability.as_deref(), &mut sum.gradients);
        evaluated
    }
}

/// Numbers of a language in a [`Tally`].
const TALLIED: usize = 9;

/// Sums by language, and the rewards of all.
#[derive(Debug, Default)]
pub struct Tally {
    by_language: BTreeMap<String, (LanguageLoss, RewardSums)>,
}

/// Sums of rewards.
#[derive(Clone, Copy, Debug, Default)]
struct RewardSums {
    sums: [f64; 2],
    counts: [u64; 2],
    wins: u64,
    /// Whether the two answers of a pair were compared.
    pairs: bool,
}

impl Tally {
    /// Adds a micro-batch's samples to the sums of their languages.
    pub fn add(
        &mut self,
        dataset: &Dataset,
        batch: &MicroBatch,
        targets: &MainTargets,
        samples: &[Option<super::main_loss::SampleLoss>],
    ) {
        let mut tokens = vec![0u64; batch.sequences.len()];
        for (position, in_answer) in targets.targets.positions.iter().zip(&targets.in_answer) {
            tokens[sequence_of(batch, *position)] += u64::from(*in_answer);
        }
        for (index, (sequence, sample)) in batch.sequences.iter().zip(samples).enumerate() {
            let language = dataset.languages()[usize::from(sequence.language)].clone();
            let Some(sample) = sample else {
                // A rejected answer's tokens belong to its pair; a wrong option's to nobody.
                if samples
                    .get(index.wrapping_sub(1))
                    .is_some_and(|before| before.is_some_and(|s| s.rewards.is_some()))
                {
                    self.by_language.entry(language).or_default().0.tokens += tokens[index];
                }
                continue;
            };
            let (loss, rewards) = self.by_language.entry(language).or_default();
            loss.samples += 1;
            loss.tokens += tokens[index];
            loss.loss += sample.loss + sample.likelihood;
            if let Some(of) = sample.rewards {
                rewards.add(of);
            }
        }
    }

    /// Adds up over all processes. `languages`: all there are, in the same order everywhere.
    pub fn add_up(&mut self, languages: &[String], collectives: &dyn Collectives) {
        if collectives.world_size() == 1 {
            return;
        }
        let mut values = Vec::with_capacity(languages.len() * TALLIED);
        for language in languages {
            let (loss, rewards) = self.by_language.get(language).copied().unwrap_or_default();
            values.extend([loss.loss, loss.tokens as f64, loss.samples as f64]);
            values.extend(rewards.sums);
            values.extend(rewards.counts.map(|count| count as f64));
            values.extend([rewards.wins as f64, f64::from(u8::from(rewards.pairs))]);
        }
        collectives.sum(&mut values);
        self.by_language.clear();
        for (language, values) in languages.iter().zip(values.chunks(TALLIED)) {
            let &[loss, tokens, samples, chosen, rejected, some, others, wins, pairs] = values else {
                continue;
            };
            if tokens + samples == 0.0 {
                continue;
            }
            let loss = LanguageLoss {
                loss,
                tokens: tokens as u64,
                samples: samples as u64,
                rewards: None,
            };
            let rewards = RewardSums {
                sums: [chosen, rejected],
                counts: [some as u64, others as u64],
                wins: wins as u64,
                pairs: pairs > 0.0,
            };
            self.by_language.insert(language.clone(), (loss, rewards));
        }
    }

    /// Means: losses per sample when `by_samples`, else per supervised token.
    pub fn finish(self, by_samples: bool) -> (BTreeMap<String, LanguageLoss>, Option<Rewards>) {
        let mut all = RewardSums::default();
        let mut languages = BTreeMap::new();
        for (language, (mut loss, rewards)) in self.by_language {
            let count = if by_samples { loss.samples } else { loss.tokens };
            loss.loss /= (count as f64).max(1.0);
            loss.rewards = rewards.means();
            all.merge(&rewards);
            languages.insert(language, loss);
        }
        (languages, all.means())
    }
}

impl RewardSums {
    fn add(&mut self, rewards: [f64; 2]) {
        for (side, reward) in rewards.into_iter().enumerate() {
            if !reward.is_nan() {
                self.sums[side] += reward;
                self.counts[side] += 1;
            }
        }
        if rewards.iter().all(|reward| !reward.is_nan()) {
            self.pairs = true;
            self.wins += u64::from(rewards[0] > rewards[1]);
        }
    }

    fn merge(&mut self, other: &Self) {
        for side in 0..2 {
            self.sums[side] += other.sums[side];
            self.counts[side] += other.counts[side];
        }
        self.wins += other.wins;
        self.pairs |= other.pairs;
    }

    /// Means over what there is; of KTO's samples, which are no pairs, the accuracy is left out.
    fn means(&self) -> Option<Rewards> {
        if self.counts == [0, 0] {
            return None;
        }
        let mean = |side: usize| (self.counts[side] > 0).then(|| self.sums[side] / self.counts[side] as f64);
        let (chosen, rejected) = (mean(0), mean(1));
        Some(Rewards {
            chosen,
            rejected,
            margin: chosen.zip(rejected).map(|(chosen, rejected)| chosen - rejected),
            accuracy: self.pairs.then(|| self.wins as f64 / self.counts[0] as f64),
        })
    }
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
