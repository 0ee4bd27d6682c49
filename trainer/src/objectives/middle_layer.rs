//! Middle-layer alignment: InfoNCE between the pooled hidden states of translations at one boundary (Liu and Niehues,
//! "Middle-Layer Representation Alignment for Cross-Lingual Transfer in Fine-Tuned LLMs", 2025, equation 3; with the last
//! token of an early layer: Li et al., "Align after Pre-train", 2024, equation 1):
//! `- log exp(cos(a_j, b_j) / τ) / Σ_k exp(cos(a_j, b_k) / τ)` for anchor j, k over the other sides of the contrast. The
//! loss of a step is the mean over all its anchors.

use std::ops::Range;

use burn::tensor::{DType, Device, Int, Tensor, TensorData, activation};
use interlingua_recipes::{Auxiliary, Detach, Direction, Pool};

/// The loss with its numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MiddleLayer {
    /// What stands for a sentence.
    pub pool: Pool,
    /// Who looks for whom.
    pub direction: Direction,
    /// Through which side no gradient flows.
    pub detach: Detach,
    /// τ.
    pub temperature: f64,
}

/// Sentences that are contrasted with one another.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contrast {
    /// For each pair the rows of anchor and translation in the pooled states.
    pub pairs: Vec<(usize, usize)>,
    /// For each pair its group. Another pair of the same group says the same, so it is no negative.
    pub groups: Vec<u64>,
}

impl MiddleLayer {
    /// That of a recipe's table; numbers are filled in when a recipe is loaded.
    pub fn of(auxiliary: &Auxiliary) -> Self {
        Self {
            pool: auxiliary.pool.unwrap_or(Pool::Mean),
            direction: auxiliary.direction.unwrap_or(Direction::OneWay),
            detach: auxiliary.detach.unwrap_or(Detach::None),
            temperature: auxiliary.temperature.unwrap_or(0.1),
        }
    }

    /// The sum of the loss over the anchors of a contrast, and its gradient by the pooled states `[sequences, hidden]`,
    /// in f32.
    pub fn loss(&self, pooled: &Tensor<2>, contrast: &Contrast) -> (f64, Tensor<2>) {
        let pooled = pooled.clone().cast(DType::F32);
        let device = pooled.device();
        let leaf = pooled.autodiff().require_grad();
        let (anchors, others) = contrast.pairs.iter().copied().unzip();
        let [anchors, others] = [anchors, others].map(|rows| unit(leaf.clone().select(0, indices(rows, &device))));
        let mask = same_group(&contrast.groups, &device);
        let one_way = |asking: Tensor<2>, asked: Tensor<2>| {
            let asked = match self.detach {
                Detach::None => asked,
                Detach::Target => asked.detach(),
            };
            let similarities = asking.matmul(asked.transpose()) / self.temperature + mask.clone();
            let positives = activation::log_softmax(similarities, 1) * diagonal(contrast.pairs.len(), &device);
            positives.sum().neg()
        };
        let forth = one_way(anchors.clone(), others.clone());
        let loss = match self.direction {
            Direction::OneWay => forth,
            Direction::Symmetric => (forth + one_way(others, anchors)) / 2.0,
        };
        let value = loss.clone().into_data().iter::<f64>().sum();
        let mut graph = loss.backward();
        let gradient = leaf.grad_remove(&mut graph);
        (value, gradient.unwrap_or_else(|| leaf.without_autodiff().zeros_like()))
    }
}

/// The tokens that stand for each sequence between `boundaries`.
pub fn pooled_ranges(pool: Pool, boundaries: &[usize]) -> Vec<Range<usize>> {
    let of = |range: &[usize]| match pool {
        Pool::Mean => range[0]..range[1],
        Pool::Last => range[1] - 1..range[1],
        Pool::First => range[0]..range[0] + 1,
    };
    boundaries.windows(2).map(of).collect()
}

/// Rows of length one: `x / max(‖x‖, 1e-12)`.
fn unit(rows: Tensor<2>) -> Tensor<2> {
    let norms = rows.clone().powi_scalar(2).sum_dim(1).sqrt().clamp_min(1e-12);
    rows / norms
}

fn indices(rows: Vec<usize>, device: &Device) -> Tensor<1, Int> {
    let rows: Vec<i32> = rows.into_iter().map(|row| row as i32).collect();
    let count = rows.len();
    Tensor::from_data(TensorData::new(rows, [count]), device)
}

/// `[pairs, pairs]`: minus a huge number where two different pairs are of one group, else 0.
fn same_group(groups: &[u64], device: &Device) -> Tensor<2> {
    let value = |row: usize, column: usize| {
        if row != column && groups[row] == groups[column] {
            -1e30f32
        } else {
            0.0
        }
    };
    square(groups.len(), value, device)
}

fn diagonal(count: usize, device: &Device) -> Tensor<2> {
    square(count, |row, column| f32::from(u8::from(row == column)), device)
}

fn square(count: usize, value: impl Fn(usize, usize) -> f32, device: &Device) -> Tensor<2> {
    let values: Vec<f32> = (0..count * count)
        .map(|place| value(place / count, place % count))
        .collect();
    Tensor::from_data(TensorData::new(values, [count, count]), (device, DType::F32))
}
