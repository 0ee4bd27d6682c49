//! Gradients of parameters, added up over parts, micro-batches and readers of one parameter.

use std::collections::BTreeMap;

use burn::tensor::Tensor;

use crate::ops::adamw::{scale_in_place, sum_of_squares};
use crate::parameters::ParameterId;

/// Gradients by parameter, flat and in f32. A parameter that got none is absent.
#[derive(Debug, Default)]
pub struct Gradients {
    by_parameter: BTreeMap<ParameterId, Tensor<1>>,
}

impl Gradients {
    /// Adds to what is there.
    pub fn add(&mut self, id: ParameterId, gradient: Tensor<1>) {
        let sum = match self.by_parameter.remove(&id) {
            Some(sum) => sum + gradient,
            None => gradient,
        };
        self.by_parameter.insert(id, sum);
    }

    /// The gradient of one parameter.
    pub fn get(&self, id: ParameterId) -> Option<&Tensor<1>> {
        self.by_parameter.get(&id)
    }

    /// Forgets the gradient of one parameter.
    pub fn remove(&mut self, id: ParameterId) {
        self.by_parameter.remove(&id);
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
            let scaled = std::mem::take(&mut self.by_parameter);
            self.by_parameter = scaled
                .into_iter()
                .map(|(id, gradient)| (id, scale_in_place(gradient, factor as f32)))
                .collect();
        }
    }
}
