//! A block in tiles of tokens. Only its attention mixes tokens; norms, projections and the MLP work token by token, so that
//! they run over one tile at a time, in both directions, and `[tokens, intermediate]` never exists whole.

use std::ops::Range;

use burn::tensor::{DType, Device, Gradients as BurnGradients, Tensor, TensorData};

use super::gradients::Gradients;
use super::inputs::Inputs;
use super::pass::Pass;
use super::routing::{Choices, Routing};
use crate::models::Model;
use crate::models::attention::Projected;
use crate::models::decoder::{Block, Finished};
use crate::models::experts::Routed;
use crate::ops::seed::backward_from;

/// Tokens of a tile on a CPU: enough that its matrix products run at full speed.
pub const CPU_TILE: usize = 1024;

/// Tokens of a tile on a GPU, where each tile brings every weight into its compute format once more.
pub const GPU_TILE: usize = 4096;

/// Tokens of a tile on a device.
pub fn tile_size(device: &Device) -> usize {
    if device.clone().without_autodiff() == Device::flex() {
        CPU_TILE
    } else {
        GPU_TILE
    }
}

/// A block of a model with what all passes through it read. Weights that are kept elsewhere are there while it lives.
pub struct TiledBlock<'a> {
    model: &'a Model,
    index: usize,
    block: &'a Block,
    inputs: &'a Inputs,
    /// The inputs of each tile, with its tokens.
    tiles: Vec<(Range<usize>, Inputs)>,
}

impl<'a> TiledBlock<'a> {
    /// Block `index`, in tiles of the device's size.
    pub fn new(model: &'a Model, index: usize, inputs: &'a Inputs) -> Self {
        Self::with_tiles(model, index, inputs, tile_size(&model.device))
    }

    /// Block `index`, in tiles of at most `size` tokens.
    pub fn with_tiles(model: &'a Model, index: usize, inputs: &'a Inputs, size: usize) -> Self {
        let tokens = inputs.tokens();
        let tiles = if tokens <= size {
            vec![(0..tokens, inputs.clone())]
        } else {
            let ranges = (0..tokens).step_by(size).map(|start| start..tokens.min(start + size));
            ranges.map(|tile| (tile.clone(), inputs.tile(tile))).collect()
        };
        model.bring(index);
        Self {
            model,
            index,
            block: &model.blocks[index],
            inputs,
            tiles,
        }
    }

    fn pass(&self, tile: &Inputs, tracked: bool) -> Pass<'a> {
        Pass::new(
            &self.model.parameters,
            self.model.dtype,
            tracked,
            tile.token_keys.clone(),
        )
    }

    /// x `[tokens, hidden]` to the block's output, without a graph; and what its router made of the tokens, where it has one.
    pub fn forward(&self, x: &Tensor<2>) -> (Tensor<2>, Option<Routing>) {
        let attended = self.project(x).attend(&self.block.attention.layout(self.inputs));
        let mut routed = Vec::new();
        let output = joined(self.tiles.iter().map(|(tokens, inputs)| {
            let (x, attended) = (rows(x, tokens), rows(&attended, tokens));
            let finished = self.block.finish(x, attended, inputs, &self.pass(inputs, false), None);
            routed.extend(finished.routed);
            finished.output
        }));
        (output, routing(self.index, &routed))
    }

    /// Adds the gradients of the block's parameters, made from its input x and the gradient of its output (both
    /// `[tokens, hidden]`), and returns the gradient of its input where that is asked for. `routed`: the experts that the forward
    /// pass chose, and the gradient of the loss by each expert's probability, the same for all tokens, where a loss asks for it.
    pub fn backward(
        &self,
        x: &Tensor<2>,
        gradient: Tensor<2>,
        input_wanted: bool,
        routed: Option<RoutedBackward>,
        gradients: &mut Gradients,
    ) -> Option<Tensor<2>> {
        let trains = |id: &_| self.model.parameters.get(*id).trainable;
        let before = input_wanted || self.block.projecting_parameters().iter().any(trains);
        let (attended, leaves) = self.attend(x, before);
        let (by_input, by_attended) =
            self.finish_backward(x, &attended, gradient, [input_wanted, before], routed, gradients);
        let (Some(leaves), Some(by_attended)) = (leaves, by_attended) else {
            return by_input;
        };
        let mut graph = backward_from(attended, by_attended);
        let Projected { q, k, v } = leaves;
        let by_projected = [
            q.grad_remove(&mut graph)?,
            k.grad_remove(&mut graph)?,
            v.grad_remove(&mut graph)?,
        ];
        drop((graph, q, k, v));
        let before = self.project_backward(x, by_projected, input_wanted, gradients);
        match (by_input, before) {
            (Some(one), Some(other)) => Some(one + other),
            (one, other) => one.or(other),
        }
    }

    fn project(&self, x: &Tensor<2>) -> Projected {
        let mut parts = [Vec::new(), Vec::new(), Vec::new()];
        for (tokens, inputs) in &self.tiles {
            let projected = self.block.project(rows(x, tokens), inputs, &self.pass(inputs, false));
            let [q, k, v] = &mut parts;
            q.push(projected.q);
            k.push(projected.k);
            v.push(projected.v);
        }
        let [q, k, v] = parts.map(|parts| joined(parts.into_iter()));
        Projected { q, k, v }
    }

    /// The attention's output over x; with its graph, and the leaves below it, where its gradient is needed.
    fn attend(&self, x: &Tensor<2>, tracked: bool) -> (Tensor<2>, Option<Projected>) {
        let projected = self.project(x);
        let layout = self.block.attention.layout(self.inputs);
        if !tracked {
            return (projected.attend(&layout), None);
        }
        let leaf = |x: Tensor<3>| x.autodiff().require_grad();
        let leaves = Projected {
            q: leaf(projected.q),
            k: leaf(projected.k),
            v: leaf(projected.v),
        };
        (leaves.clone().attend(&layout), Some(leaves))
    }

    /// From the gradient of the output to those of the block's input, along the residual connection, and of the attention's
    /// output.
    fn finish_backward(
        &self,
        x: &Tensor<2>,
        attended: &Tensor<2>,
        gradient: Tensor<2>,
        [input_wanted, attended_wanted]: [bool; 2],
        routed: Option<RoutedBackward>,
        gradients: &mut Gradients,
    ) -> (Option<Tensor<2>>, Option<Tensor<2>>) {
        let attended = plain(attended);
        let (mut by_input, mut by_attended) = (Vec::new(), Vec::new());
        for (tokens, inputs) in &self.tiles {
            let pass = self.pass(inputs, true);
            let x = leaf_if(rows(x, tokens), input_wanted);
            let attended = leaf_if(rows(&attended, tokens), attended_wanted);
            let choices = routed.map(|routed| routed.choices.tile(tokens));
            let finished = self
                .block
                .finish(x.clone(), attended.clone(), inputs, &pass, choices.as_ref());
            if !finished.output.is_autodiff() {
                return (None, None);
            }
            let by_probability = routed.and_then(|routed| routed.by_probability);
            let mut graph = backward_from_finished(finished, rows(&gradient, tokens), by_probability);
            pass.collect(&mut graph, gradients);
            by_input.extend(input_wanted.then(|| x.grad_remove(&mut graph)).flatten());
            by_attended.extend(attended_wanted.then(|| attended.grad_remove(&mut graph)).flatten());
        }
        drop(gradient);
        (whole(by_input), whole(by_attended))
    }

    /// From the gradients of queries, keys and values to that of the block's input.
    fn project_backward(
        &self,
        x: &Tensor<2>,
        by_projected: [Tensor<3>; 3],
        input_wanted: bool,
        gradients: &mut Gradients,
    ) -> Option<Tensor<2>> {
        let mut by_input = Vec::new();
        let by_projected = by_projected.map(flat);
        for (tokens, inputs) in &self.tiles {
            let pass = self.pass(inputs, true);
            let x = leaf_if(rows(x, tokens), input_wanted);
            let projected = self.block.project(x.clone(), inputs, &pass);
            // One root for the three of them; those that nothing trainable leads to have no graph.
            let outputs = [projected.q, projected.k, projected.v].map(flat);
            let tracked = outputs
                .into_iter()
                .zip(&by_projected)
                .filter(|(output, _)| output.is_autodiff());
            let (outputs, seeds): (Vec<_>, Vec<_>) = tracked
                .map(|(output, gradient)| (output, rows(gradient, tokens)))
                .unzip();
            if outputs.is_empty() {
                return None;
            }
            let mut graph = backward_from(Tensor::cat(outputs, 1), Tensor::cat(seeds, 1));
            pass.collect(&mut graph, gradients);
            by_input.extend(input_wanted.then(|| x.grad_remove(&mut graph)).flatten());
        }
        whole(by_input)
    }
}

/// What the backward pass through a mixture of experts reads of the forward pass.
#[derive(Clone, Copy)]
pub struct RoutedBackward<'a> {
    /// The experts that were chosen.
    pub choices: &'a Choices,
    /// The gradient of the loss by each expert's probability, `[experts]`, the same for all tokens.
    pub by_probability: Option<&'a [f32]>,
}

/// The backward pass from a block's output, and from its router's probabilities where a loss reads them.
pub fn backward_from_finished(
    finished: Finished,
    gradient: Tensor<2>,
    by_probability: Option<&[f32]>,
) -> BurnGradients {
    let probabilities = finished.routed.map(|routed| routed.probabilities);
    match (probabilities.filter(Tensor::is_autodiff), by_probability) {
        (Some(probabilities), Some(by_probability)) => {
            // One root for both of them.
            let [tokens, experts] = probabilities.dims();
            let (device, dtype) = (gradient.device(), gradient.dtype());
            let row = TensorData::new(by_probability.to_vec(), [1, experts]);
            let row = Tensor::<2>::from_data(row, (&device, DType::F32)).cast(dtype);
            let seeds = vec![gradient, row.expand([tokens, experts])];
            backward_from(
                Tensor::cat(vec![finished.output, probabilities.cast(dtype)], 1),
                Tensor::cat(seeds, 1),
            )
        }
        _ => backward_from(finished.output, gradient),
    }
}

/// What is kept of how a block's tiles were routed.
pub fn routing(block: usize, tiles: &[Routed]) -> Option<Routing> {
    let choices: Vec<Choices> = tiles.iter().map(|routed| routed.choices.clone()).collect();
    let mut sums: Vec<f64> = Vec::new();
    for routed in tiles {
        let [_, experts] = routed.probabilities.dims();
        sums.resize(experts, 0.0);
        let values = routed.probabilities.clone().without_autodiff().into_data();
        for (index, value) in values.iter::<f32>().enumerate() {
            sums[index % experts] += f64::from(value);
        }
    }
    Some(Routing {
        block,
        choices: Choices::joined(&choices)?,
        probabilities: sums,
    })
}

impl Drop for TiledBlock<'_> {
    fn drop(&mut self) {
        self.model.let_go(self.index);
    }
}

fn leaf_if(x: Tensor<2>, wanted: bool) -> Tensor<2> {
    if wanted { x.autodiff().require_grad() } else { x }
}

fn plain(x: &Tensor<2>) -> Tensor<2> {
    if x.is_autodiff() { x.clone().inner() } else { x.clone() }
}

fn rows(x: &Tensor<2>, tokens: &Range<usize>) -> Tensor<2> {
    if tokens.len() == x.dims()[0] {
        x.clone()
    } else {
        x.clone().narrow(0, tokens.start, tokens.len())
    }
}

fn flat(x: Tensor<3>) -> Tensor<2> {
    let [tokens, heads, size] = x.dims();
    x.reshape([tokens, heads * size])
}

/// The tiles of a tensor, one after another.
fn joined<const D: usize>(tiles: impl Iterator<Item = Tensor<D>>) -> Tensor<D> {
    let mut tiles: Vec<Tensor<D>> = tiles.collect();
    if tiles.len() == 1 {
        return tiles.remove(0);
    }
    Tensor::cat(tiles, 0)
}

fn whole(tiles: Vec<Tensor<2>>) -> Option<Tensor<2>> {
    (!tiles.is_empty()).then(|| joined(tiles.into_iter()))
}
