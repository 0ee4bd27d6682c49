//! LoRA: `y = x Wᵀ + s · dropout(x) Aᵀ Bᵀ` (Hu et al., "LoRA", 2021, equation 3), with s = alpha / rank, or alpha / √rank
//! for rsLoRA (Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", 2023, theorem 3.2).

use burn::tensor::Tensor;

use crate::engine::languages::Rows;
use crate::engine::pass::Pass;
use crate::ops::dropout::dropout as drop_out;
use crate::ops::linear::{LowRank, linear};
use crate::parameters::{ParameterId, Parameters};
use crate::random::{key, text_key, uniform};

/// A low-rank adapter: A `[rank, inputs]`, B `[outputs, rank]`.
#[derive(Clone, Debug)]
pub struct Lora {
    /// A.
    pub a: ParameterId,
    /// B.
    pub b: ParameterId,
    /// s.
    pub scale: f32,
    /// Probability of an input element to be dropped while training.
    pub dropout: f32,
}

impl Lora {
    /// What the linear operation over these rows takes.
    pub fn operands(&self, module: &str, pass: &Pass, rows: Rows) -> LowRank {
        LowRank {
            a: pass.matrix(self.a),
            b: pass.matrix(self.b),
            scale: self.scale,
            dropout: rows.dropout(pass.dropout(module, self.dropout)),
        }
    }

    /// `s · dropout(x) Aᵀ Bᵀ`, `[rows, outputs]`: what is added over x `[rows, inputs]` of these rows.
    pub fn change(&self, x: Tensor<2>, module: &str, pass: &Pass, rows: Rows) -> Tensor<2> {
        let LowRank { a, b, scale, dropout } = self.operands(module, pass, rows);
        let x = match dropout {
            Some(dropout) => drop_out(x, &dropout),
            None => x,
        };
        linear(linear(x, a, None, None), b, None, None) * scale
    }

    /// `s · B A`, `[outputs, inputs]`, in f32: what merging adds to the weight.
    pub fn delta(&self, parameters: &Parameters) -> Tensor<2> {
        parameters.get(self.b).matrix().matmul(parameters.get(self.a).matrix()) * self.scale
    }
}

/// The scale s of an adapter.
pub fn scale(rank: usize, alpha: f64, rslora: bool) -> f32 {
    let rank = rank as f64;
    (alpha / if rslora { rank.sqrt() } else { rank }) as f32
}

/// A's first values as PEFT draws them: Kaiming-uniform with a = √5, that is uniform in ±1/√inputs. B starts at zero.
pub fn initial_a(seed: u64, name: &str, rank: usize, inputs: usize) -> Vec<f32> {
    let key = key(&[seed, text_key(name)]);
    let bound = 1.0 / (inputs as f32).sqrt();
    (0..rank * inputs)
        .map(|index| (2.0 * uniform(key, index as u64) - 1.0) * bound)
        .collect()
}
