//! The main loss of a micro-batch: which log-probabilities it reads, and the factor of each in the step's loss.

use interlingua_data::batch::{MicroBatch, UNSUPERVISED};
use interlingua_data::dataset::Dataset;
use interlingua_recipes::{Nll, Objective, ObjectiveKind};

use super::reference::{Reference, answer_log_probs, sequence_of, sums_by_sequence};
use crate::collectives::{Alone, Collectives};
use crate::engine::head::Targets;
use crate::models::Model;
use crate::objectives::goldfish;
use crate::objectives::kto::{Kto, mismatched};
use crate::objectives::preference::{Pair, PairObjective};
use crate::objectives::sft;

/// The main loss of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MainLoss {
    /// None.
    None,
    /// Cross-entropy of the supervised tokens.
    Tokens,
    /// The same without the tokens that a hash chooses: one in k, by the h tokens that end with it.
    Goldfish {
        /// One in how many.
        k: usize,
        /// Tokens that decide.
        h: usize,
    },
    /// A loss of pairs.
    Pairs(PairObjective),
    /// KTO.
    Kto(Kto),
}

/// What the losses of a step are divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Supervised tokens that the main loss counts.
    pub tokens: u64,
    /// Pairs, or samples of KTO.
    pub pairs: u64,
    /// Tokens whose likelihood a pair objective counts.
    pub likelihood_tokens: u64,
    /// All tokens that are read.
    pub all_tokens: u64,
}

/// The targets of a micro-batch.
pub struct MainTargets {
    /// What the head is asked for.
    pub targets: Targets,
    /// For each target whether it belongs to the answer, which all losses but a likelihood over whole sequences count.
    pub in_answer: Vec<bool>,
}

/// What the other processes have beside a micro-batch.
pub struct Company<'a> {
    /// The micro-batches of all of them at this point, by rank, where the loss compares samples; else empty.
    pub of_all: &'a [MicroBatch],
    /// The processes.
    pub collectives: &'a dyn Collectives,
    /// Whether the micro-batch is there only so that this process keeps in step.
    pub is_filler: bool,
}

impl Company<'_> {
    /// That of a process alone.
    pub const NONE: Company<'static> = Company {
        of_all: &[],
        collectives: &Alone,
        is_filler: false,
    };
}

/// What the main loss makes of a micro-batch's log-probabilities.
#[derive(Debug, Default)]
pub struct Evaluated {
    /// The micro-batch's part of the step's loss, already divided.
    pub loss: f64,
    /// For each target the factor of `- log p` in the step's loss, the objective's weight included.
    pub weights: Vec<f32>,
    /// For each sequence that counts as a sample: its loss and, for preferences, the rewards. `None` for a rejected answer.
    pub samples: Vec<Option<SampleLoss>>,
}

/// The loss of a sample.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SampleLoss {
    /// The sum over its tokens, or the loss of the pair.
    pub loss: f64,
    /// The sum of its negative log-likelihood, where a pair objective counts that too, by tokens of the step.
    pub likelihood: f64,
    /// Rewards of the chosen (desirable) and rejected (undesirable) answer; what is not there is not a number.
    pub rewards: Option<[f64; 2]>,
}

impl MainLoss {
    /// That of a recipe.
    pub fn of(objective: &Objective) -> Self {
        if let Some(pairs) = PairObjective::of(objective) {
            return Self::Pairs(pairs);
        }
        if let Some(kto) = Kto::of(objective) {
            return Self::Kto(kto);
        }
        match objective.kind {
            ObjectiveKind::None => Self::None,
            ObjectiveKind::Goldfish => Self::Goldfish {
                k: objective.k.unwrap_or(50),
                h: objective.h.unwrap_or(50),
            },
            _ => Self::Tokens,
        }
    }

    /// Whether the factor of each log-probability is known before the forward pass.
    pub fn is_linear(self) -> bool {
        matches!(self, Self::None | Self::Tokens | Self::Goldfish { .. })
    }

    /// Whether a sequence is learnt from: of multiple-choice rows only the right option is.
    pub fn learns(self, dataset: &Dataset, batch: &MicroBatch, sequence: usize) -> bool {
        let sequence = &batch.sequences[sequence];
        if !self.is_linear() {
            return true;
        }
        let sample = sequence.sample as usize;
        dataset.parts(sample).nth(1).is_none() || dataset.marks(sample).first() == Some(&u32::from(sequence.part))
    }

    /// The targets of a micro-batch whose sequences begin at `boundaries`. `options`: those of wrong options too.
    pub fn targets(self, dataset: &Dataset, batch: &MicroBatch, boundaries: &[usize], options: bool) -> MainTargets {
        let mut labels = batch.labels.clone();
        for (index, sequence) in batch.sequences.iter().enumerate() {
            if !options && !self.learns(dataset, batch, index) {
                labels[sequence.range()].fill(UNSUPERVISED);
            }
            if self.counts_prompt() && sequence.part == 0 {
                let ids = batch.input_ids[sequence.range()].iter().map(|id| *id as i32);
                labels.splice(sequence.range(), ids);
            }
        }
        let mut targets = Targets::of_labels(&labels, boundaries);
        if let Self::Goldfish { k, h } = self {
            targets = goldfish::keep(targets, &batch.input_ids, boundaries, k, h);
        }
        let positions = targets.positions.iter();
        let in_answer = positions.map(|position| batch.labels[*position as usize + 1] != UNSUPERVISED);
        MainTargets {
            in_answer: in_answer.collect(),
            targets,
        }
    }

    /// Whether the likelihood of the prompt counts too.
    fn counts_prompt(self) -> bool {
        matches!(self, Self::Pairs(pairs) if matches!(pairs.likelihood(), Some((_, Nll::All))))
    }

    /// What a micro-batch adds to the totals of its step.
    pub fn count(self, dataset: &Dataset, batch: &MicroBatch, totals: &mut Totals) {
        let boundaries = boundaries(batch);
        let MainTargets { targets, in_answer } = self.targets(dataset, batch, &boundaries, false);
        totals.all_tokens += batch.tokens() as u64;
        let chosen = |position: &u32| batch.sequences[sequence_of(batch, *position)].part == 0;
        totals.tokens += in_answer.iter().filter(|in_answer| **in_answer).count() as u64;
        match self {
            Self::Pairs(pairs) => {
                totals.pairs += batch.sequences.iter().filter(|sequence| sequence.part == 0).count() as u64;
                let all = matches!(pairs.likelihood(), Some((_, Nll::All)));
                let counted = targets.positions.iter().zip(&in_answer);
                let counted = counted.filter(|(position, in_answer)| chosen(position) && (all || **in_answer));
                totals.likelihood_tokens += counted.count() as u64;
            }
            Self::Kto(_) => totals.pairs += batch.sequences.len() as u64,
            _ => {}
        }
    }

    /// The micro-batch of a process that has none while others do: two short sequences of the first sample.
    pub fn filler(self) -> MicroBatch {
        let mut batch = MicroBatch::default();
        for part in 0..2 {
            let part = if matches!(self, Self::Pairs(_)) { part } else { 0 };
            batch.push(&[0, 0], &[UNSUPERVISED, 0], 0, 0, part);
        }
        batch
    }

    /// The factors of a loss that is known to be linear, the same for all targets that are learnt from.
    pub fn linear_weights(
        self,
        dataset: &Dataset,
        batch: &MicroBatch,
        targets: &Targets,
        weight: f64,
        totals: &Totals,
    ) -> Vec<f32> {
        if self == Self::None {
            return vec![0.0; targets.len()];
        }
        let factor = sft::factor(weight, totals.tokens);
        let learns: Vec<bool> = (0..batch.sequences.len())
            .map(|sequence| self.learns(dataset, batch, sequence))
            .collect();
        let of = |position: &u32| {
            if learns[sequence_of(batch, *position)] {
                factor
            } else {
                0.0
            }
        };
        targets.positions.iter().map(of).collect()
    }

    /// Loss, factors and rewards of a micro-batch from its log-probabilities.
    pub fn evaluate(
        self,
        (model, reference): (&Model, Option<&Reference>),
        (dataset, batch): (&Dataset, &MicroBatch),
        (targets, log_probs): (&MainTargets, &[f32]),
        weight: f64,
        (totals, company): (&Totals, &Company),
    ) -> Evaluated {
        match self {
            Self::Pairs(objective) => {
                let reference = reference.map(|reference| reference.sums(batch, dataset.languages()));
                pairs(objective, batch, (targets, log_probs), reference, weight, totals)
            }
            Self::Kto(objective) => {
                let reference = reference.map(|reference| (reference.sums(batch, dataset.languages()), reference));
                kto(
                    objective,
                    model,
                    (dataset, batch),
                    (targets, log_probs),
                    reference,
                    weight,
                    (totals, company),
                )
            }
            _ => {
                let weights = self.linear_weights(dataset, batch, &targets.targets, weight, totals);
                let counted: Vec<f32> = log_probs
                    .iter()
                    .zip(&weights)
                    .map(|(log_prob, weight)| if *weight == 0.0 { 0.0 } else { *log_prob })
                    .collect();
                let sums = sums_by_sequence(batch, &targets.targets.positions, &counted);
                let loss = -sums.iter().sum::<f64>() / totals.tokens.max(1) as f64;
                let sample = |(index, sum): (usize, &f64)| {
                    (self != Self::None && self.learns(dataset, batch, index)).then(|| SampleLoss {
                        loss: -sum,
                        ..SampleLoss::default()
                    })
                };
                Evaluated {
                    loss,
                    samples: sums.iter().enumerate().map(sample).collect(),
                    weights,
                }
            }
        }
    }
}

/// Where the sequences of a micro-batch begin; last, its number of tokens.
pub fn boundaries(batch: &MicroBatch) -> Vec<usize> {
    let starts = batch.sequences.iter().map(|sequence| sequence.start);
    starts.chain([batch.input_ids.len()]).collect()
}

fn answers(log_probs: &[f32], in_answer: &[bool]) -> Vec<f32> {
    let pairs = log_probs.iter().zip(in_answer);
    pairs
        .map(|(log_prob, in_answer)| if *in_answer { *log_prob } else { 0.0 })
        .collect()
}

/// Answer tokens of each sequence.
fn answer_tokens(batch: &MicroBatch, targets: &MainTargets) -> Vec<f64> {
    let ones = answers(&vec![1.0; targets.targets.len()], &targets.in_answer);
    sums_by_sequence(batch, &targets.targets.positions, &ones)
}

fn pairs(
    objective: PairObjective,
    batch: &MicroBatch,
    (targets, log_probs): (&MainTargets, &[f32]),
    reference: Option<Vec<f64>>,
    weight: f64,
    totals: &Totals,
) -> Evaluated {
    let positions = &targets.targets.positions;
    let sums = sums_by_sequence(batch, positions, &answers(log_probs, &targets.in_answer));
    let tokens = answer_tokens(batch, targets);
    let reference = reference.unwrap_or_else(|| vec![0.0; sums.len()]);
    let likelihood = objective.likelihood();
    let whole = matches!(likelihood, Some((_, Nll::All)));
    let likelihoods = if whole {
        sums_by_sequence(batch, positions, log_probs)
    } else {
        sums.clone()
    };
    let pair_share = 1.0 / totals.pairs.max(1) as f64;
    let token_share = likelihood.map_or(0.0, |(weight, _)| weight / totals.likelihood_tokens.max(1) as f64);
    let mut by_sequence = vec![0.0; sums.len()];
    let mut evaluated = Evaluated::default();
    // The two answers of a pair lie side by side.
    for (index, pair) in batch.sequences.chunks(2).enumerate() {
        let (chosen, rejected) = (2 * index, 2 * index + 1);
        debug_assert!(pair[0].part == 0 && pair.len() == 2);
        let pair = Pair {
            policy: [sums[chosen], sums[rejected]],
            reference: [reference[chosen], reference[rejected]],
            tokens: [tokens[chosen].max(1.0), tokens[rejected].max(1.0)],
        };
        let loss = objective.loss(&pair);
        evaluated.loss += loss.loss * pair_share - likelihoods[chosen] * token_share;
        by_sequence[chosen] = -loss.gradient[0] * pair_share * weight;
        by_sequence[rejected] = -loss.gradient[1] * pair_share * weight;
        evaluated.samples.push(Some(SampleLoss {
            loss: loss.loss,
            likelihood: -likelihoods[chosen] * token_share * totals.pairs as f64,
            rewards: Some(objective.rewards(&pair)),
        }));
        evaluated.samples.push(None);
    }
    let factor = |(position, in_answer): (&u32, &bool)| {
        let sequence = sequence_of(batch, *position);
        let mut factor = if *in_answer { by_sequence[sequence] } else { 0.0 };
        if batch.sequences[sequence].part == 0 && (whole || *in_answer) {
            factor += token_share * weight;
        }
        factor as f32
    };
    evaluated.weights = positions.iter().zip(&targets.in_answer).map(factor).collect();
    evaluated
}

fn kto(
    objective: Kto,
    model: &Model,
    (dataset, batch): (&Dataset, &MicroBatch),
    (targets, log_probs): (&MainTargets, &[f32]),
    reference: Option<(Vec<f64>, &Reference)>,
    weight: f64,
    (totals, company): (&Totals, &Company),
) -> Evaluated {
    let sums = sums_by_sequence(batch, &targets.targets.positions, log_probs);
    let (reference, divergence) = match reference {
        None => (vec![0.0; sums.len()], 0.0),
        Some((reference, frozen)) => (reference, moved(model, frozen, dataset, batch, company)),
    };
    let share = 1.0 / totals.pairs.max(1) as f64;
    let mut evaluated = Evaluated::default();
    let mut by_sequence = Vec::with_capacity(sums.len());
    for ((sequence, policy), reference) in batch.sequences.iter().zip(&sums).zip(&reference) {
        let desirable = dataset.marks(sequence.sample as usize).first() == Some(&1);
        let (loss, derivative) = objective.loss(policy - reference, divergence, desirable);
        let reward = objective.beta * (policy - reference);
        evaluated.loss += loss * share;
        by_sequence.push(-derivative * share * weight);
        evaluated.samples.push(Some(SampleLoss {
            loss,
            likelihood: 0.0,
            rewards: Some(if desirable {
                [reward, f64::NAN]
            } else {
                [f64::NAN, reward]
            }),
        }));
    }
    let factor = |position: &u32| by_sequence[sequence_of(batch, *position)] as f32;
    evaluated.weights = targets.targets.positions.iter().map(factor).collect();
    evaluated
}

/// The mean of `log π - log ref` over the mismatched completions of a micro-batch on all processes, at least 0. A sample alone has
/// none to be mismatched with, as can be at the end of an epoch.
fn moved(model: &Model, reference: &Reference, dataset: &Dataset, batch: &MicroBatch, company: &Company) -> f64 {
    let mut whole = MicroBatch::default();
    let mut first = 0;
    for (rank, part) in company.of_all.iter().enumerate() {
        if rank == company.collectives.rank() {
            first = whole.sequences.len();
        }
        whole.append(part);
    }
    let (whole, rows) = match company.of_all.is_empty() || company.is_filler {
        true => (batch, 0..batch.sequences.len()),
        false => (&whole, first..first + batch.sequences.len()),
    };
    let count = match company.of_all.is_empty() {
        true => batch.sequences.len(),
        false => company.of_all.iter().map(|part| part.sequences.len()).sum(),
    };
    if count < 2 {
        return 0.0;
    }
    let mixed = mismatched(whole, rows);
    let languages = dataset.languages();
    let policy = answer_log_probs(model, &mixed, languages);
    let other = reference.sums(&mixed, languages);
    let sum: f64 = policy.iter().zip(&other).map(|(policy, other)| policy - other).sum();
    let mut sum = [if company.is_filler { 0.0 } else { sum }];
    company.collectives.sum(&mut sum);
    (sum[0] / count as f64).max(0.0)
}
