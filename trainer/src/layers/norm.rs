//! A norm of a model: RMSNorm or LayerNorm, over hidden states or over heads.

use burn::tensor::Tensor;
use interlingua_checkpoints::blocks::NormKind;

use crate::engine::pass::Pass;
use crate::ops::layer_norm::layer_norm;
use crate::ops::rms_norm::rms_norm;
use crate::parameters::ParameterId;

/// A norm: weight and bias `[size]`, or `[heads, size]` where each head has its own.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    /// The weight.
    pub weight: ParameterId,
    /// The bias.
    pub bias: Option<ParameterId>,
    /// How it computes.
    pub kind: NormKind,
    /// Epsilon.
    pub epsilon: f64,
    /// Numbers that are normed together.
    pub size: usize,
    /// How many heads have weights of their own; 1 where all share one.
    pub heads: usize,
}

impl Norm {
    /// x `[rows, size]` to `[rows, size]`; with weights by head, the rows of a token are its heads.
    pub fn forward(&self, x: Tensor<2>, pass: &Pass) -> Tensor<2> {
        if self.heads > 1 {
            return self.by_head(x, pass);
        }
        let weight = pass.vector(self.weight);
        match self.kind {
            NormKind::Rms { offset } => rms_norm(x, weight, self.epsilon, offset),
            NormKind::Layer { .. } => layer_norm(x, weight, self.bias.map(|bias| pass.vector(bias)), self.epsilon),
        }
    }

    /// The same over the heads of x `[tokens, heads * head_dim]`: each head by itself, or all of them at once, as the weight's
    /// size says.
    pub fn over_heads(&self, x: Tensor<2>, pass: &Pass) -> Tensor<2> {
        let [tokens, features] = x.dims();
        if features == self.size {
            return self.forward(x, pass);
        }
        let rows = x.reshape([tokens * (features / self.size), self.size]);
        self.forward(rows, pass).reshape([tokens, features])
    }

    fn by_head(&self, x: Tensor<2>, pass: &Pass) -> Tensor<2> {
        let [rows, size] = x.dims();
        let weight = pass.vector(self.weight);
        let ones = weight.clone().without_autodiff().narrow(0, 0, size).ones_like();
        let normed = match self.kind {
            NormKind::Rms { .. } => rms_norm(x, ones, self.epsilon, 0.0),
            NormKind::Layer { .. } => layer_norm(x, ones, None, self.epsilon),
        };
        let features = self.heads * size;
        let offset = match self.kind {
            NormKind::Rms { offset } => offset,
            NormKind::Layer { .. } => 0.0,
        };
        let weight = if offset == 0.0 { weight } else { weight + offset };
        let scaled = normed.reshape([rows / self.heads, features]) * weight.reshape([1, features]);
        let shifted = match self.bias {
            Some(bias) => scaled + pass.vector(bias).reshape([1, features]),
            None => scaled,
        };
        shifted.reshape([rows, size])
    }

    /// The parameters it reads.
    pub fn parameters(&self) -> impl Iterator<Item = ParameterId> + use<> {
        [self.weight].into_iter().chain(self.bias)
    }
}
