//! AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, algorithm 2), with the numbers of
//! `torch.optim.AdamW`.

use std::collections::BTreeMap;

use burn::tensor::Tensor;

use crate::engine::gradients::Gradients;
use crate::ops::adamw::{AdamWStep, adamw_step};
use crate::parameters::{ParameterId, Parameters};

/// Moments of one parameter.
#[derive(Clone, Debug)]
pub struct Moments {
    /// How many updates it has had.
    pub step: u64,
    /// Running mean of the gradient, flat.
    pub first: Tensor<1>,
    /// Running mean of its square, flat.
    pub second: Tensor<1>,
}

/// The optimizer and its state.
#[derive(Debug)]
pub struct AdamW {
    /// Decay rates of the two moments.
    pub betas: [f64; 2],
    /// Added to the denominator.
    pub epsilon: f64,
    /// Decoupled decay, as a share of the learning rate.
    pub weight_decay: f64,
    /// Moments by parameter; a parameter that never got a gradient has none.
    pub moments: BTreeMap<ParameterId, Moments>,
}

impl AdamW {
    /// Updates every parameter that got a gradient, and leaves the others alone: no moments, no decay.
    pub fn step(&mut self, parameters: &mut Parameters, gradients: &Gradients, learning_rate: f64) {
        for (id, gradient) in gradients.iter() {
            let moments = self.moments.remove(&id).unwrap_or_else(|| Moments {
                step: 0,
                first: gradient.zeros_like(),
                second: gradient.zeros_like(),
            });
            let settings = AdamWStep {
                learning_rate,
                beta1: self.betas[0],
                beta2: self.betas[1],
                epsilon: self.epsilon,
                weight_decay: if decays(&parameters.get(id).name) {
                    self.weight_decay
                } else {
                    0.0
                },
                step: moments.step + 1,
            };
            let value = parameters.take_value(id);
            let (value, first, second) = adamw_step(value, gradient.clone(), moments.first, moments.second, &settings);
            parameters.set_value(id, value);
            self.moments.insert(
                id,
                Moments {
                    step: moments.step + 1,
                    first,
                    second,
                },
            );
        }
    }
}

/// Whether weight decay touches a parameter: never names that end in `.bias` or contain `norm`.
pub fn decays(name: &str) -> bool {
    !(name.ends_with(".bias") || name.contains("norm"))
}
