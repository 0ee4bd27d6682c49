//! Objectives on pairs of a chosen and a rejected answer: each reads the summed log-probabilities of the two answers,
//! under the policy and under the reference, and gives a loss per pair with its derivatives. The loss of a step is their
//! mean over all its pairs, plus, where an objective has one, the likelihood of the chosen sequences per token.

mod cpo;
mod dpo;
mod hinge;
mod ipo;
mod orpo;
mod robust;
mod simpo;
mod slic;

use interlingua_recipes::{Nll, Objective, ObjectiveKind};

/// What the policy and the reference make of a pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// Σ log p of the chosen and the rejected answer under the policy.
    pub policy: [f64; 2],
    /// The same under the reference; zeros where there is none.
    pub reference: [f64; 2],
    /// Tokens of the two answers.
    pub tokens: [f64; 2],
}

impl Pair {
    /// How much more than the reference the policy prefers the chosen answer:
    /// `(log π(y+) - log ref(y+)) - (log π(y-) - log ref(y-))`.
    fn margin(&self) -> f64 {
        (self.policy[0] - self.reference[0]) - (self.policy[1] - self.reference[1])
    }

    /// The same with log-probabilities per token of the answers.
    fn mean_margin(&self) -> f64 {
        (self.policy[0] - self.reference[0]) / self.tokens[0] - (self.policy[1] - self.reference[1]) / self.tokens[1]
    }

    /// Mean log-probability per token of the two answers under the policy.
    fn means(&self) -> [f64; 2] {
        [self.policy[0] / self.tokens[0], self.policy[1] / self.tokens[1]]
    }
}

/// The loss of a pair, and its derivatives by the two sums of log-probabilities under the policy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairLoss {
    /// The loss.
    pub loss: f64,
    /// d loss / d (Σ log p of the chosen, of the rejected answer).
    pub gradient: [f64; 2],
}

impl PairLoss {
    /// A loss with its derivative by the margin of sums.
    fn by_margin(loss: f64, derivative: f64) -> Self {
        Self {
            loss,
            gradient: [derivative, -derivative],
        }
    }

    /// A loss with its derivatives by the means over the tokens of the answers.
    fn by_means(loss: f64, derivatives: [f64; 2], pair: &Pair) -> Self {
        Self {
            loss,
            gradient: [derivatives[0] / pair.tokens[0], derivatives[1] / pair.tokens[1]],
        }
    }
}

/// The pair objective of a recipe, with its numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairObjective {
    kind: ObjectiveKind,
    beta: f64,
    label_smoothing: f64,
    length_normalised: bool,
    average: bool,
    nll: Nll,
    gamma: f64,
    alpha: f64,
    delta: f64,
}

impl PairObjective {
    /// That of a recipe; `None` when its objective reads no pairs. Numbers are filled in when a recipe is loaded.
    pub fn of(objective: &Objective) -> Option<Self> {
        objective.kind.reads_pairs().then(|| Self {
            kind: objective.kind,
            beta: objective.beta.unwrap_or(0.1),
            label_smoothing: objective.label_smoothing.unwrap_or(0.0),
            length_normalised: objective.length_normalised.unwrap_or(false),
            average: objective.average.unwrap_or(true),
            nll: objective.nll.unwrap_or(Nll::All),
            gamma: objective.gamma.unwrap_or(0.0),
            alpha: objective.alpha.unwrap_or(0.0),
            delta: objective.delta.unwrap_or(0.0),
        })
    }

    /// The loss of a pair, without the likelihood of the chosen sequence.
    pub fn loss(&self, pair: &Pair) -> PairLoss {
        let beta = self.beta;
        match self.kind {
            ObjectiveKind::Robust => robust::loss(pair, beta, self.label_smoothing),
            ObjectiveKind::Hinge => hinge::loss(pair, beta),
            ObjectiveKind::Ipo => ipo::loss(pair, beta, self.average),
            ObjectiveKind::Orpo => orpo::loss(pair, beta),
            ObjectiveKind::Simpo => simpo::loss(pair, beta, self.gamma),
            ObjectiveKind::Cpo => cpo::loss(pair, beta),
            ObjectiveKind::Slic => slic::loss(pair, self.delta),
            _ => dpo::loss(pair, beta, self.label_smoothing, self.length_normalised),
        }
    }

    /// The weight of the negative log-likelihood of the chosen sequences, per token over the whole step, and which of
    /// their tokens count; `None` when it has no part in the objective.
    pub fn likelihood(&self) -> Option<(f64, Nll)> {
        match self.kind {
            ObjectiveKind::Orpo => Some((1.0, self.nll)),
            ObjectiveKind::Cpo | ObjectiveKind::Slic if self.alpha > 0.0 => Some((self.alpha, Nll::Completion)),
            _ => None,
        }
    }

    /// The implicit rewards of the two answers, as TRL reports them: β times the log-probability, less that of the
    /// reference where there is one; per token where the objective counts per token.
    pub fn rewards(&self, pair: &Pair) -> [f64; 2] {
        match self.kind {
            ObjectiveKind::Orpo | ObjectiveKind::Simpo => pair.means().map(|mean| self.beta * mean),
            ObjectiveKind::Cpo => pair.policy.map(|sum| self.beta * sum),
            ObjectiveKind::Slic => pair.policy,
            _ => [0, 1].map(|side| self.beta * (pair.policy[side] - pair.reference[side])),
        }
    }
}

/// log σ(x), without overflow.
pub(crate) fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

/// σ(x) = 1 / (1 + e^-x), without overflow.
pub(crate) fn sigmoid(x: f64) -> f64 {
    log_sigmoid(x).exp()
}
