//! The feed-forward part of a block: gated or not, with one nonlinearity or another, or a mixture of experts.

use burn::tensor::Tensor;
use interlingua_checkpoints::blocks::ActivationKind;

use super::experts::{Experts, Routed};
use crate::engine::languages::LanguageRows;
use crate::engine::pass::Pass;
use crate::engine::routing::Choices;
use crate::layers::linear::Linear;
use crate::ops::activation::{self, Activation, activate};
use crate::ops::xielu::xielu;
use crate::parameters::ParameterId;

/// The feed-forward part of a block.
#[derive(Clone, Debug)]
pub enum Mlp {
    /// `down(act(gate(x)) * up(x))`.
    Gated(Gated),
    /// The same with gate and up, in this order, out of one layer.
    FusedGated {
        /// Gate and up, `[2 * intermediate, hidden]`.
        gate_up: Linear,
        /// Output, `[hidden, intermediate]`.
        down: Linear,
        /// Nonlinearity.
        activation: Activation,
    },
    /// `down(act(up(x)))`.
    Plain {
        /// Input, `[intermediate, hidden]`.
        up: Linear,
        /// Output, `[hidden, intermediate]`.
        down: Linear,
        /// Nonlinearity.
        activation: PlainActivation,
    },
    /// Several gated ones, of which each token passes through a few.
    Experts(Experts),
}

/// A gated MLP.
#[derive(Clone, Debug)]
pub struct Gated {
    /// Gate, `[intermediate, hidden]`.
    pub gate: Linear,
    /// Values, `[intermediate, hidden]`.
    pub up: Linear,
    /// Output, `[hidden, intermediate]`.
    pub down: Linear,
    /// Nonlinearity.
    pub activation: Activation,
}

/// The nonlinearity of an MLP without a gate.
#[derive(Clone, Copy, Debug)]
pub enum PlainActivation {
    /// One without numbers of its own.
    Fixed(Activation),
    /// xIELU.
    Xielu {
        /// `[1]`, of positive inputs.
        alpha_p: ParameterId,
        /// `[1]`, of negative inputs.
        alpha_n: ParameterId,
        /// Slope at zero.
        beta: f32,
        /// Inputs above this count as this in the exponential.
        epsilon: f32,
    },
}

impl Gated {
    /// x `[tokens, hidden]` to `[tokens, hidden]`.
    pub fn forward(&self, x: Tensor<2>, pass: &Pass, languages: Option<&LanguageRows>) -> Tensor<2> {
        let gate = self.gate.forward_by_language(x.clone(), pass, languages);
        let up = self.up.forward_by_language(x, pass, languages);
        let inner = activation::gated(gate, up, self.activation);
        self.down.forward_by_language(inner, pass, languages)
    }

    /// Gate, up, down.
    pub fn linears(&self) -> [&Linear; 3] {
        [&self.gate, &self.up, &self.down]
    }

    /// The same, to put adapters on.
    pub fn linears_mut(&mut self) -> [&mut Linear; 3] {
        [&mut self.gate, &mut self.up, &mut self.down]
    }
}

impl Mlp {
    /// x `[tokens, hidden]`, normed before, to `[tokens, hidden]`; from a mixture of experts also how it routed. `choices`: the
    /// experts that tokens pass through, where an earlier pass has chosen them.
    pub fn forward(
        &self,
        x: Tensor<2>,
        pass: &Pass,
        languages: Option<&LanguageRows>,
        choices: Option<&Choices>,
    ) -> (Tensor<2>, Option<Routed>) {
        match self {
            Self::Gated(gated) => (gated.forward(x, pass, languages), None),
            Self::FusedGated {
                gate_up,
                down,
                activation,
            } => {
                let both = gate_up.forward_by_language(x, pass, languages);
                let inner = down.inputs;
                let (gate, up) = (both.clone().narrow(1, 0, inner), both.narrow(1, inner, inner));
                let product = activation::gated(gate, up, *activation);
                (down.forward_by_language(product, pass, languages), None)
            }
            Self::Plain { up, down, activation } => {
                let inner = activation.forward(up.forward_by_language(x, pass, languages), pass);
                (down.forward_by_language(inner, pass, languages), None)
            }
            Self::Experts(experts) => {
                let (output, routed) = experts.forward(x, pass, languages, choices);
                (output, Some(routed))
            }
        }
    }

    /// Its linear layers, in the order in which they compute; a router is one of them.
    pub fn linears(&self) -> Vec<&Linear> {
        match self {
            Self::Gated(gated) => gated.linears().into(),
            Self::FusedGated { gate_up, down, .. } => vec![gate_up, down],
            Self::Plain { up, down, .. } => vec![up, down],
            Self::Experts(experts) => experts.linears(),
        }
    }

    /// The same, to put adapters on.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match self {
            Self::Gated(gated) => gated.linears_mut().into(),
            Self::FusedGated { gate_up, down, .. } => vec![gate_up, down],
            Self::Plain { up, down, .. } => vec![up, down],
            Self::Experts(experts) => experts.linears_mut(),
        }
    }

    /// Parameters beside those of the linear layers.
    pub fn own_parameters(&self) -> Vec<ParameterId> {
        match self {
            Self::Plain {
                activation: PlainActivation::Xielu { alpha_p, alpha_n, .. },
                ..
            } => vec![*alpha_p, *alpha_n],
            _ => Vec::new(),
        }
    }
}

impl PlainActivation {
    fn forward(self, x: Tensor<2>, pass: &Pass) -> Tensor<2> {
        match self {
            Self::Fixed(activation) => activate(x, activation),
            Self::Xielu {
                alpha_p,
                alpha_n,
                beta,
                epsilon,
            } => xielu(x, pass.vector(alpha_p), pass.vector(alpha_n), beta, epsilon),
        }
    }
}

/// The operation of a nonlinearity that has no numbers of its own; none of xIELU.
pub fn fixed(kind: ActivationKind) -> Option<Activation> {
    match kind {
        ActivationKind::Silu => Some(Activation::Silu),
        ActivationKind::Gelu => Some(Activation::Gelu),
        ActivationKind::GeluTanh => Some(Activation::GeluTanh),
        ActivationKind::Relu => Some(Activation::Relu),
        ActivationKind::Xielu => None,
    }
}
