//! What stands before the first block: the embedding, scaled, with positions added, and normed, as the model has it.

use burn::tensor::{DType, Device, IndexingUpdateOp, Int, Tensor, TensorData};

use crate::engine::gradients::Gradients;
use crate::engine::inputs::Inputs;
use crate::engine::pass::Pass;
use crate::layers::norm::Norm;
use crate::ops::seed::backward_from;
use crate::ops::weight::Weight;
use crate::parameters::ParameterId;

/// Embedding, and what happens to it.
#[derive(Clone, Debug)]
pub struct Stem {
    /// `[vocab, hidden]`.
    pub embedding: ParameterId,
    /// What the embedding is multiplied with.
    pub scale: Option<f32>,
    /// Positions that are added.
    pub positions: StemPositions,
    /// Norm of the sum.
    pub norm: Option<Norm>,
}

/// Positions that are added to the embedding.
#[derive(Clone, Debug)]
pub enum StemPositions {
    /// None.
    None,
    /// Rows of a table `[count, hidden]`.
    Learned {
        /// The table.
        table: ParameterId,
        /// Its rows.
        count: usize,
    },
    /// Sines and cosines; see `AddedPositions::Sinusoidal`.
    Sinusoidal {
        /// What is added to a position before its angles are taken.
        offset: usize,
        /// The row, counted with the offset, that is zero.
        zero: Option<usize>,
    },
}

/// The rows that a micro-batch reads of the tables, `[tokens, hidden]` each.
struct Rows {
    embedding: Tensor<2>,
    positions: Option<Tensor<2>>,
}

impl Stem {
    /// `hidden_states.0`, `[tokens, hidden]`.
    pub fn forward(&self, inputs: &Inputs, pass: &Pass) -> Tensor<2> {
        let rows = self.rows(inputs, pass);
        self.join(rows, pass)
    }

    fn rows(&self, inputs: &Inputs, pass: &Pass) -> Rows {
        let embedding = match pass.weight(self.embedding) {
            Weight::Dense(embedding) => embedding.select(0, inputs.input_ids.clone()),
            Weight::Packed(embedding) => embedding.rows(&inputs.token_ids, pass.dtype()),
        };
        let positions = match &self.positions {
            StemPositions::None => None,
            StemPositions::Learned { table, count } => {
                let index = position_index(inputs, *count, &embedding.device());
                Some(pass.matrix(*table).select(0, index))
            }
            StemPositions::Sinusoidal { offset, zero } => {
                let (device, dtype) = (embedding.device().without_autodiff(), embedding.dtype());
                let [_, hidden] = embedding.dims();
                Some(sinusoids(&inputs.position_ids, *offset, *zero, hidden, &device).cast(dtype))
            }
        };
        Rows { embedding, positions }
    }

    fn join(&self, rows: Rows, pass: &Pass) -> Tensor<2> {
        let scaled = match self.scale {
            Some(scale) => rows.embedding * scale,
            None => rows.embedding,
        };
        let sum = match rows.positions {
            Some(positions) => scaled + positions,
            None => scaled,
        };
        match &self.norm {
            Some(norm) => norm.forward(sum, pass),
            None => sum,
        }
    }

    /// Adds the gradients of the stem's trainable parameters, made from that of its output `[tokens, hidden]`. `untracked` and
    /// `pass`: passes without and with gradients.
    pub fn backward(
        &self,
        gradient: Tensor<2>,
        inputs: &Inputs,
        (untracked, pass): (&Pass, Pass),
        trains: impl Fn(ParameterId) -> bool,
        gradients: &mut Gradients,
    ) {
        let (by_embedding, by_positions) = if self.is_the_embedding() {
            (Some(gradient), None)
        } else {
            let Rows { embedding, positions } = self.rows(inputs, untracked);
            let leaf = |x: Tensor<2>| x.autodiff().require_grad();
            let (embedding, positions) = (leaf(embedding), positions.map(leaf));
            let rows = Rows {
                embedding: embedding.clone(),
                positions: positions.clone(),
            };
            let mut graph = backward_from(self.join(rows, &pass), gradient);
            pass.collect(&mut graph, gradients);
            let by_positions = positions.and_then(|positions| positions.grad_remove(&mut graph));
            (embedding.grad_remove(&mut graph), by_positions)
        };
        let mut scatter = |gradient: Option<Tensor<2>>, index: Tensor<1, Int>, id: ParameterId| {
            let Some(gradient) = gradient.filter(|_| trains(id)) else {
                return;
            };
            let (rows, hidden) = (untracked.rows_of(id), gradient.dims()[1]);
            let zeros = Tensor::<2>::zeros([rows, hidden], (&gradient.device(), DType::F32));
            let sum = zeros.select_assign(0, index, gradient.cast(DType::F32), IndexingUpdateOp::Add);
            gradients.add(id, sum.reshape([rows * hidden]));
        };
        scatter(by_embedding, inputs.input_ids.clone(), self.embedding);
        if let StemPositions::Learned { table, count } = &self.positions {
            let index = position_index(inputs, *count, &inputs.input_ids.device());
            scatter(by_positions, index, *table);
        }
    }

    /// Whether its output is the embedding's rows as they are.
    fn is_the_embedding(&self) -> bool {
        self.scale.is_none() && self.norm.is_none() && matches!(self.positions, StemPositions::None)
    }

    /// The parameters it reads.
    pub fn parameters(&self) -> Vec<ParameterId> {
        let table = match &self.positions {
            StemPositions::Learned { table, .. } => Some(*table),
            StemPositions::None | StemPositions::Sinusoidal { .. } => None,
        };
        let norm = self.norm.iter().flat_map(Norm::parameters);
        [self.embedding].into_iter().chain(table).chain(norm).collect()
    }
}

/// Rows of the table of positions; what lies behind its end has the last row.
fn position_index(inputs: &Inputs, count: usize, device: &Device) -> Tensor<1, Int> {
    let rows: Vec<i32> = inputs
        .position_ids
        .iter()
        .map(|position| (*position as usize).min(count - 1) as i32)
        .collect();
    let length = rows.len();
    Tensor::from_data(TensorData::new(rows, [length]), &device.clone().without_autodiff())
}

/// Sines in the first half of the features, cosines in the second; the frequency of feature i is `10000^(-i / (half - 1))`.
fn sinusoids(positions: &[u32], offset: usize, zero: Option<usize>, hidden: usize, device: &Device) -> Tensor<2> {
    let half = hidden / 2;
    let step = (10_000f64.ln() / (half as f64 - 1.0)) as f32;
    let frequencies: Vec<f32> = (0..half).map(|index| (index as f32 * -step).exp()).collect();
    let mut values = vec![0.0; positions.len() * hidden];
    for (row, position) in values.chunks_exact_mut(hidden.max(1)).zip(positions) {
        let position = *position as usize + offset;
        if zero == Some(position) {
            continue;
        }
        for (index, frequency) in frequencies.iter().enumerate() {
            let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
            (row[index], row[half + index]) = (sin as f32, cos as f32);
        }
    }
    Tensor::from_data(TensorData::new(values, [positions.len(), hidden]), (device, DType::F32))
}
