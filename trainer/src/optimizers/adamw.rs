//! AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, algorithm 2): with the numbers of
//! `torch.optim.AdamW` where moments are kept in f32, and of bitsandbytes' `AdamW8bit` where they have 8 bits.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use interlingua_recipes::Optimizer;

use super::moments::{MomentFormat, Moments};
use crate::engine::gradients::Gradients;
use crate::ops::adamw::AdamWStep;
use crate::parameters::{ParameterId, Parameters};

/// The state of one parameter.
#[derive(Clone, Debug)]
pub struct State {
    /// How many updates it has had.
    pub step: u64,
    /// Its moments.
    pub moments: Moments,
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
    /// In what format moments are kept.
    pub format: MomentFormat,
    /// State by parameter; a parameter that never got a gradient has none.
    pub states: BTreeMap<ParameterId, State>,
}

impl AdamW {
    /// That of a recipe, before its first step.
    pub fn of(optimizer: &Optimizer) -> Self {
        Self {
            betas: optimizer.betas,
            epsilon: optimizer.eps,
            weight_decay: optimizer.weight_decay,
            format: MomentFormat::of(optimizer),
            states: BTreeMap::new(),
        }
    }

    /// Updates every parameter that got a gradient, and leaves the others alone: no moments, no decay.
    pub fn step(&mut self, parameters: &mut Parameters, gradients: &Gradients, learning_rate: f64) {
        for (id, gradient) in gradients.iter() {
            let value = parameters.take_value(id);
            let parameter = parameters.get(id);
            let named = (id, parameter.name.as_str(), parameter.len());
            let value = self.update(named, value, gradient.clone(), learning_rate);
            parameters.set_value(id, value);
        }
    }

    /// New values of a parameter, or of a piece of it: then its state is that of the piece. `length`: numbers of the whole
    /// parameter.
    pub fn update(
        &mut self,
        (id, name, length): (ParameterId, &str, usize),
        value: Tensor<1>,
        gradient: Tensor<1>,
        learning_rate: f64,
    ) -> Tensor<1> {
        let format = self.format.for_length(length);
        let state = self.states.remove(&id).unwrap_or_else(|| State {
            step: 0,
            moments: Moments::zeros(format, gradient.dims()[0], &gradient.device()),
        });
        let step = state.step + 1;
        let settings = AdamWStep {
            learning_rate,
            beta1: self.betas[0],
            beta2: self.betas[1],
            epsilon: self.epsilon,
            weight_decay: if decays(name) { self.weight_decay } else { 0.0 },
            step,
        };
        let (value, moments) = state.moments.step(value, gradient, &settings);
        self.states.insert(id, State { step, moments });
        value
    }

    /// Bytes that the moments take.
    pub fn bytes(&self) -> usize {
        self.states.values().map(|state| state.moments.bytes()).sum()
    }
}

/// Whether weight decay touches a parameter: never names that end in `.bias` or contain `norm`, nor the norms that GPT-2 and its kin
/// call `ln_1`, `ln_2` and `ln_f`.
pub fn decays(name: &str) -> bool {
    let is_norm = name.contains("norm") || name.split('.').any(|part| part.starts_with("ln_"));
    !(name.ends_with(".bias") || is_norm)
}
