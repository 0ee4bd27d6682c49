//! DoRA (Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024, equation 5):
//! `W' = m · (W + s B A) / ‖W + s B A‖`, the norm per output, detached in the backward pass (section 4.3) as PEFT does.
//!
//! The dense `W + s B A` is never formed: its row norms follow from `‖W‖²`, `⟨W, B A⟩` and `‖B A‖²`.

use burn::tensor::Tensor;

use super::lora::Lora;
use crate::engine::languages::Rows;
use crate::engine::pass::Pass;
use crate::ops::dropout::dropout as drop_out;
use crate::ops::linear::{LowRank, linear};
use crate::parameters::{ParameterId, Parameters};

/// A low-rank adapter with a magnitude m `[outputs]`.
#[derive(Clone, Debug)]
pub struct Dora {
    /// A, B, s and dropout.
    pub lora: Lora,
    /// m.
    pub magnitude: ParameterId,
}

impl Dora {
    /// x `[rows, inputs]` of these rows, under a weight `[outputs, inputs]`, to `[rows, outputs]`. With dropout, the adapter's share reads
    /// the dropped input and the base's share the whole one, as in PEFT.
    pub fn forward(
        &self,
        x: Tensor<2>,
        weight: ParameterId,
        bias: Option<Tensor<1>>,
        module: &str,
        pass: &Pass,
        rows: Rows,
    ) -> Tensor<2> {
        let norm = row_norm(
            pass.detached_matrix(weight),
            pass.detached_matrix(self.lora.a),
            pass.detached_matrix(self.lora.b),
            self.lora.scale,
        );
        let weight = pass.weight(weight);
        let factor = (pass.vector(self.magnitude) / norm.cast(x.dtype())).unsqueeze::<2>();
        let LowRank { a, b, scale, dropout } = self.lora.operands(module, pass, rows);
        let adapter = LowRank {
            a,
            b,
            scale,
            dropout: None,
        };
        let output = match dropout {
            None => linear(x, weight, None, Some(adapter)) * factor,
            Some(dropout) => {
                let dropped = drop_out(x.clone(), &dropout);
                let base = linear(x, weight.clone(), None, None) - linear(dropped.clone(), weight.clone(), None, None);
                base + linear(dropped, weight, None, Some(adapter)) * factor
            }
        };
        match bias {
            Some(bias) => output + bias.unsqueeze::<2>(),
            None => output,
        }
    }

    /// The merged weight `m · (W + s B A) / ‖W + s B A‖`, `[outputs, inputs]`, in f32.
    pub fn merged(&self, weight: Tensor<2>, parameters: &Parameters) -> Tensor<2> {
        let sum = weight + self.lora.delta(parameters);
        let norm = sum.clone().powi_scalar(2).sum_dim(1).sqrt();
        let magnitude = parameters.get(self.magnitude).values().unsqueeze_dim::<2>(1);
        sum * (magnitude / norm)
    }
}

/// `‖W + s B A‖` per output, `[outputs]`, in f32: W `[outputs, inputs]`, A `[rank, inputs]`, B `[outputs, rank]`.
pub fn row_norm(weight: Tensor<2>, a: Tensor<2>, b: Tensor<2>, scale: f32) -> Tensor<1> {
    let base = weight.clone().powi_scalar(2).sum_dim(1);
    let cross = (weight.matmul(a.clone().transpose()) * b.clone()).sum_dim(1);
    let square = (b.clone().matmul(a.clone().matmul(a.transpose())) * b).sum_dim(1);
    (base + cross * (2.0 * scale) + square * (scale * scale))
        .sqrt()
        .squeeze_dim::<1>(1)
}
