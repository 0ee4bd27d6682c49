//! A linear layer of a model, with an adapter or without.

use burn::tensor::Tensor;

use crate::adapters::Adapter;
use crate::engine::pass::Pass;
use crate::ops::linear::linear;
use crate::parameters::ParameterId;

/// A linear layer: weight `[outputs, inputs]`, bias `[outputs]` where the model has one.
#[derive(Clone, Debug)]
pub struct Linear {
    /// The module path, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Size of the input.
    pub inputs: usize,
    /// Size of the output.
    pub outputs: usize,
    /// The weight.
    pub weight: ParameterId,
    /// The bias.
    pub bias: Option<ParameterId>,
    /// The adapter that is trained or applied on top.
    pub adapter: Option<Adapter>,
}

impl Linear {
    /// x `[tokens, inputs]` to `[tokens, outputs]`.
    pub fn forward(&self, x: Tensor<2>, pass: &Pass) -> Tensor<2> {
        let bias = self.bias.map(|bias| pass.vector(bias));
        match &self.adapter {
            None => linear(x, pass.matrix(self.weight), bias, None),
            Some(Adapter::Lora(lora)) => {
                linear(x, pass.matrix(self.weight), bias, Some(lora.operands(&self.name, pass)))
            }
            Some(Adapter::Dora(dora)) => dora.forward(x, self.weight, bias, &self.name, pass),
        }
    }

    /// The parameters this layer reads, adapter included.
    pub fn parameters(&self) -> Vec<ParameterId> {
        let adapter = self.adapter.iter().flat_map(Adapter::parameters);
        [self.weight].into_iter().chain(self.bias).chain(adapter).collect()
    }
}
