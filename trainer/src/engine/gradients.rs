//! Gradients of parameters, added up over parts, micro-batches and readers of one parameter.

use std::collections::BTreeMap;

use burn::tensor::Tensor;

use crate::ops::adamw::{scale_in_place, sum_of_squares};
use crate::parameters::ParameterId;

/// Gradients by parameter, flat and in f32. A parameter that got none is absent.
#[derive(Debug)]
pub struct Gradients {
    by_parameter: BTreeMap<ParameterId, Tensor<1>>,
    /// Of parameters that lie in pieces: this process's piece of the sum over all of them.
    pieces: BTreeMap<ParameterId, Tensor<1>>,
    scale: f64,
}

impl Default for Gradients {
    fn default() -> Self {
        Self::scaled(1.0)
    }
}

impl Gradients {
    /// None yet, of a loss times `scale`.
    pub fn scaled(scale: f64) -> Self {
        Self {
            by_parameter: BTreeMap::new(),
            pieces: BTreeMap::new(),
            scale,
        }
    }

    /// What the loss is multiplied by: gradients of the loss by hidden states or log-probabilities, where backward passes
    /// into these gradients begin, are multiplied by it too.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Takes the scale off again.
    pub fn unscale(&mut self) {
        if self.scale != 1.0 {
            self.multiply((1.0 / self.scale) as f32);
            self.scale = 1.0;
        }
    }

    /// Adds to what is there.
    pub fn add(&mut self, id: ParameterId, gradient: Tensor<1>) {
        add(&mut self.by_parameter, id, gradient);
    }

    /// Adds to this process's piece of the gradient of a parameter that lies in pieces.
    pub fn add_piece(&mut self, id: ParameterId, piece: Tensor<1>) {
        add(&mut self.pieces, id, piece);
    }

    /// Takes the piece of a gradient out.
    pub fn take_piece(&mut self, id: ParameterId) -> Option<Tensor<1>> {
        self.pieces.remove(&id)
    }

    /// The gradient of one parameter.
    pub fn get(&self, id: ParameterId) -> Option<&Tensor<1>> {
        self.by_parameter.get(&id)
    }

    /// Takes the gradient of one parameter out.
    pub fn take(&mut self, id: ParameterId) -> Option<Tensor<1>> {
        self.by_parameter.remove(&id)
    }

    /// All of them in the order of the parameters.
    pub fn iter(&self) -> impl Iterator<Item = (ParameterId, &Tensor<1>)> {
        self.by_parameter.iter().map(|(id, gradient)| (*id, gradient))
    }

    /// The l2 norm over all of them, added up in f64.
    pub fn norm(&self) -> f64 {
        self.by_parameter.values().map(sum_of_squares).sum::<f64>().sqrt()
    }

    /// Global clipping as `torch.nn.utils.clip_grad_norm_`: all gradients times min(1, max / (norm + 1e-6)).
    pub fn clip(&mut self, norm: f64, max_norm: f64) {
        let factor = max_norm / (norm + 1e-6);
        if factor < 1.0 {
            self.multiply(factor as f32);
        }
    }

    fn multiply(&mut self, factor: f32) {
        for gradients in [&mut self.by_parameter, &mut self.pieces] {
            *gradients = std::mem::take(gradients)
                .into_iter()
                .map(|(id, gradient)| (id, scale_in_place(gradient, factor)))
                .collect();
        }
    }
}

fn add(to: &mut BTreeMap<ParameterId, Tensor<1>>, id: ParameterId, gradient: Tensor<1>) {
    let sum = match to.remove(&id) {
        Some(sum) => sum + gradient,
        None => gradient,
    };
    to.insert(id, sum);
}
