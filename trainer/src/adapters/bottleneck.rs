//! Bottleneck adapters after each block: `y = x + dropout(W_up gelu(W_down norm(x)))`, x the block's output (Houlsby et al.,
//! "Parameter-Efficient Transfer Learning for NLP", 2019; language adapters: Pfeiffer et al., "MAD-X", 2020, and "Lifting the
//! Curse of Multilinguality", 2022, the model X-Mod).
//!
//! The norm is the block's own before its MLP, as X-Mod uses a norm of the layer again. There are no biases. W_down starts as
//! PEFT draws LoRA's A, W_up at zero, so that a new adapter changes nothing: both are choices of this project.

use burn::tensor::Tensor;
use burn::tensor::activation::gelu;

use crate::engine::languages::Rows;
use crate::engine::pass::Pass;
use crate::ops::dropout::dropout as drop_out;
use crate::ops::linear::linear;
use crate::parameters::ParameterId;

/// One block's bottleneck: W_down `[inner, hidden]`, W_up `[hidden, inner]`.
#[derive(Clone, Debug)]
pub struct Bottleneck {
    /// The module path, such as `model.layers.0.adapter`.
    pub name: String,
    /// W_down.
    pub down: ParameterId,
    /// W_up.
    pub up: ParameterId,
    /// Probability of an output element to be dropped while training.
    pub dropout: f32,
}

impl Bottleneck {
    /// What is added to the block's output: `[rows, hidden]` out of the normed output `[rows, hidden]` of these rows.
    pub fn change(&self, normed: Tensor<2>, pass: &Pass, rows: Rows) -> Tensor<2> {
        let inner = gelu(linear(normed, pass.matrix(self.down), None, None));
        let change = linear(inner, pass.matrix(self.up), None, None);
        match rows.dropout(pass.dropout(&self.name, self.dropout)) {
            Some(dropout) => drop_out(change, &dropout),
            None => change,
        }
    }

    /// The parameters it reads besides the norm.
    pub fn parameters(&self) -> [ParameterId; 2] {
        [self.down, self.up]
    }
}
