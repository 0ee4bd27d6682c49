//! Rotary position embedding (Su et al., 2021) in both forms of Transformers' `rotate_half`: pairs of the two halves (Llama),
//! and pairs of neighbours (Cohere).

#[cfg(feature = "cube")]
mod cube;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{DType, Device, Tensor, TensorData};
use multiversion::multiversion;
use rayon::prelude::*;

use super::flex::{ROWS, dense, dimensions, for_each_task, values};
use super::has_kernel;

/// Cosines and sines of the angles of every token of a micro-batch, and what they turn.
#[derive(Clone, Debug)]
pub struct RotaryTable {
    /// `[tokens, rotary_dim / 2]`, f32.
    pub cos: Tensor<2>,
    /// `[tokens, rotary_dim / 2]`, f32.
    pub sin: Tensor<2>,
    /// Pair i of a head is `(x[2 i], x[2 i + 1])` (Cohere) instead of `(x[i], x[i + rotary_dim / 2])` (Llama).
    pub interleaved: bool,
}

impl RotaryTable {
    /// The angle of token t and pair i is `position_ids[t] * inv_freq[i]`; cosine and sine are multiplied with
    /// `attention_factor` (1 except for some scalings of the rope). The tables carry no gradient.
    pub fn new(
        inv_freq: &[f32],
        attention_factor: f32,
        position_ids: &[u32],
        interleaved: bool,
        device: &Device,
    ) -> Self {
        let pairs = inv_freq.len();
        // Packed sequences all count from 0: compute each position once.
        let mut positions = position_ids.to_vec();
        positions.sort_unstable();
        positions.dedup();
        let rows: Vec<Vec<(f32, f32)>> = positions
            .par_iter()
            .map(|position| {
                let angle = |frequency: &f32| {
                    // The angle is rounded to f32 as in Transformers.
                    let (sin, cos) = f64::from(*position as f32 * frequency).sin_cos();
                    (cos as f32 * attention_factor, sin as f32 * attention_factor)
                };
                inv_freq.iter().map(angle).collect()
            })
            .collect();
        let mut cos = Vec::with_capacity(position_ids.len() * pairs);
        let mut sin = Vec::with_capacity(position_ids.len() * pairs);
        for position in position_ids {
            let row = &rows[positions.partition_point(|other| other < position)];
            cos.extend(row.iter().map(|(cos, _)| cos));
            sin.extend(row.iter().map(|(_, sin)| sin));
        }
        let device = device.clone().without_autodiff();
        let table = |values: Vec<f32>| {
            Tensor::from_data(
                TensorData::new(values, [position_ids.len(), pairs]),
                (&device, DType::F32),
            )
        };
        Self {
            cos: table(cos),
            sin: table(sin),
            interleaved,
        }
    }
}

/// Rotates each pair of each head by the angle of its token; what lies behind rotary_dim stays. x and output
/// `[tokens, heads, head_dim]`. An x that nobody else holds is overwritten.
pub fn rotary(x: Tensor<3>, table: &RotaryTable) -> Tensor<3> {
    if !has_kernel(&x) {
        return rotary_reference(x, table);
    }
    let (cos, sin) = (table.cos.clone().into_dispatch(), table.sin.clone().into_dispatch());
    Tensor::from_dispatch(<Dispatch as RotaryOps>::rotary_forward(
        x.into_dispatch(),
        cos,
        sin,
        Rotation {
            inverse: false,
            interleaved: table.interleaved,
        },
    ))
}

/// The same in plain tensor operations.
pub fn rotary_reference(x: Tensor<3>, table: &RotaryTable) -> Tensor<3> {
    let [tokens, heads, head_dim] = x.dims();
    let half = table.cos.dims()[1];
    let cos = table.cos.clone().cast(x.dtype()).reshape([tokens, 1, half]);
    let sin = table.sin.clone().cast(x.dtype()).reshape([tokens, 1, half]);
    let (first, second) = if table.interleaved {
        let pairs = x.clone().slice([0..tokens, 0..heads, 0..2 * half]);
        let pairs = pairs.reshape([tokens, heads, half, 2]);
        (
            pairs.clone().narrow(3, 0, 1).squeeze_dim(3),
            pairs.narrow(3, 1, 1).squeeze_dim(3),
        )
    } else {
        (
            x.clone().slice([0..tokens, 0..heads, 0..half]),
            x.clone().slice([0..tokens, 0..heads, half..2 * half]),
        )
    };
    let rotated: [Tensor<3>; 2] = [
        first.clone() * cos.clone() - second.clone() * sin.clone(),
        second * cos + first * sin,
    ];
    let mut parts = if table.interleaved {
        vec![Tensor::stack::<4>(rotated.to_vec(), 3).reshape([tokens, heads, 2 * half])]
    } else {
        rotated.to_vec()
    };
    if 2 * half < head_dim {
        parts.push(x.slice([0..tokens, 0..heads, 2 * half..head_dim]));
    }
    Tensor::cat(parts, 2)
}

/// How pairs are rotated.
#[derive(Clone, Copy, Debug)]
pub struct Rotation {
    /// By the negative angles.
    inverse: bool,
    /// Pairs of neighbours.
    interleaved: bool,
}

/// The rotation as an operation of a backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub trait RotaryOps: Backend {
    /// The output `[tokens, heads, head_dim]`.
    fn rotary_forward(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        rotation: Rotation,
    ) -> FloatTensor<Self>;
}

impl RotaryOps for Flex {
    fn rotary_forward(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        rotation: Rotation,
    ) -> FloatTensor<Self> {
        let (mut x, cos, sin) = (dense(x), dense(cos), dense(sin));
        let [tokens, heads, head_dim] = dimensions(&x);
        let [rows, half] = dimensions(&cos);
        assert_eq!(dimensions::<2>(&sin), [rows, half], "cosines and sines");
        assert!(
            rows == tokens && 2 * half <= head_dim,
            "table [{rows}, {half}] for [{tokens}, {heads}, {head_dim}]"
        );
        // A buffer that somebody else holds is copied here.
        let output = x.storage_mut::<f32>();
        let tables = values(&cos)
            .par_chunks(ROWS * half)
            .zip(values(&sin).par_chunks(ROWS * half));
        let tasks = output.par_chunks_mut(ROWS * heads * head_dim).zip(tables);
        for_each_task(tasks, tokens * heads * head_dim, |(x, (cos, sin))| {
            rotate(x, cos, sin, [heads, head_dim, half], rotation);
        });
        x
    }
}

/// Rotates all heads of some tokens.
#[multiversion(targets = "simd")]
fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32], [heads, head_dim, half]: [usize; 3], rotation: Rotation) {
    let sign = if rotation.inverse { -1.0 } else { 1.0 };
    let angles = cos.chunks_exact(half).zip(sin.chunks_exact(half));
    for (x, (cos, sin)) in x.chunks_exact_mut(heads * head_dim).zip(angles) {
        for head in x.chunks_exact_mut(head_dim) {
            let angles = cos.iter().zip(sin);
            if rotation.interleaved {
                for ([first, second], (cos, sin)) in head.as_chunks_mut::<2>().0.iter_mut().zip(angles) {
                    [*first, *second] = turn(*first, *second, *cos, sign * sin);
                }
            } else {
                let (first, rest) = head.split_at_mut(half);
                for ((first, second), (cos, sin)) in first.iter_mut().zip(rest).zip(angles) {
                    [*first, *second] = turn(*first, *second, *cos, sign * sin);
                }
            }
        }
    }
}

/// One pair.
#[inline(always)]
fn turn(x: f32, y: f32, cos: f32, sin: f32) -> [f32; 2] {
    [x * cos - y * sin, y * cos + x * sin]
}

impl<B: RotaryOps, C: CheckpointStrategy> RotaryOps for Autodiff<B, C> {
    fn rotary_forward(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        rotation: Rotation,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct RotaryStep;
        impl<B: RotaryOps> Backward<B, 1> for RotaryStep {
            type State = (FloatTensor<B>, FloatTensor<B>, Rotation);

            fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
                let gradient = grads.consume::<B>(&ops.node);
                let (cos, sin, rotation) = ops.state;
                let [x] = ops.parents;
                let back = Rotation {
                    inverse: !rotation.inverse,
                    ..rotation
                };
                if let Some(node) = x {
                    grads.register::<B>(node.id, B::rotary_forward(gradient, cos, sin, back));
                }
            }
        }
        let prepared = RotaryStep.prepare::<C>([x.node()]).compute_bound().stateful();
        let (x, cos, sin) = (x.into_primitive(), cos.into_primitive(), sin.into_primitive());
        match prepared {
            OpsKind::Tracked(prepared) => {
                let output = B::rotary_forward(x, cos.clone(), sin.clone(), rotation);
                prepared.finish((cos, sin, rotation), output)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::rotary_forward(x, cos, sin, rotation)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_equal, random};

    fn frequencies(half: usize) -> Vec<f32> {
        (0..half)
            .map(|pair| 10_000f32.powf(-(pair as f32) / half as f32))
            .collect()
    }

    fn run(x: &Tensor<3>, table: &RotaryTable, outer: &Tensor<3>, reference: bool) -> [Tensor<3>; 2] {
        let x = x.clone().autodiff().require_grad();
        let embed = if reference { rotary_reference } else { rotary };
        let output = embed(x.clone(), table);
        let grads = (output.clone() * outer.clone().autodiff()).sum().backward();
        [output.inner(), x.grad(&grads).unwrap()]
    }

    #[test]
    fn output_and_gradient_equal_the_reference() {
        for (tokens, heads, head_dim, half) in [
            (1, 1, 2, 1),
            (5, 3, 8, 4),
            (40, 2, 12, 4),
            (100, 8, 64, 32),
            (7, 4, 6, 2),
            (9, 2, 7, 3),
        ] {
            let position_ids: Vec<u32> = (0..tokens as u32).map(|token| token % 17).collect();
            let shape = [tokens, heads, head_dim];
            let (x, outer) = (random(shape), random(shape));
            for interleaved in [false, true] {
                let frequencies = frequencies(half);
                let table = RotaryTable::new(&frequencies, 1.25, &position_ids, interleaved, &Device::flex());
                let [output, gradient] = run(&x, &table, &outer, false);
                let [reference_output, reference_gradient] = run(&x, &table, &outer, true);
                check_equal(output, reference_output, 1e-6, "output");
                check_equal(gradient, reference_gradient, 1e-6, "gradient");
            }
        }
    }

    #[test]
    fn a_rotation_keeps_lengths_and_position_zero_changes_nothing() {
        let x = random([4, 2, 16]);
        let table = RotaryTable::new(&frequencies(8), 1.0, &[0, 1, 500, 100_000], false, &Device::flex());
        let output = rotary(x.clone(), &table);
        check_equal(
            output.clone().narrow(0, 0, 1),
            x.clone().narrow(0, 0, 1),
            0.0,
            "position 0",
        );
        check_equal(output.square().sum_dim(2), x.square().sum_dim(2), 1e-5, "length");
    }

    /// The interleaved form is the other one on features in another order: evens before odds.
    #[test]
    fn neighbours_are_pairs_when_interleaved() {
        let (half, positions) = (3, [5, 0, 11]);
        let table = |interleaved| RotaryTable::new(&frequencies(half), 1.0, &positions, interleaved, &Device::flex());
        let x = random([3, 2, 8]);
        let order = |x: Tensor<3>, places: [i32; 8]| x.select(2, Tensor::from_data(places, &Device::flex()));
        let halves = rotary(order(x.clone(), [0, 2, 4, 1, 3, 5, 6, 7]), &table(false));
        let neighbours = rotary(x.clone(), &table(true));
        check_equal(
            order(halves, [0, 3, 1, 4, 2, 5, 6, 7]),
            neighbours.clone(),
            0.0,
            "output",
        );
        check_equal(neighbours.narrow(2, 6, 2), x.narrow(2, 6, 2), 0.0, "behind the pairs");
    }

    #[test]
    fn the_table_follows_the_positions() {
        let table = RotaryTable::new(&[1.0, 0.5], 2.0, &[3, 0, 3], false, &Device::flex());
        let cos: Vec<f32> = table.cos.into_data().try_into_vec().unwrap();
        let expected = [
            3.0f32.cos() * 2.0,
            1.5f32.cos() * 2.0,
            2.0,
            2.0,
            3.0f32.cos() * 2.0,
            1.5f32.cos() * 2.0,
        ];
        assert!(
            cos.iter()
                .zip(expected)
                .all(|(computed, expected)| (computed - expected).abs() < 1e-6)
        );
    }

    #[test]
    fn a_shared_input_is_left_alone() {
        let x = random([6, 2, 8]);
        let before = x.clone().into_data();
        let table = RotaryTable::new(&frequencies(4), 1.0, &[1, 2, 3, 4, 5, 6], false, &Device::flex());
        let _ = rotary(x.clone(), &table);
        x.into_data().assert_eq(&before, true);
    }
}
