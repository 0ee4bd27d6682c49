//! Forward pass of one micro-batch up to the highest boundary that a loss reads, and the backward pass down from there.

use std::collections::BTreeMap;

use burn::tensor::Tensor;

use super::gradients::Gradients;
use super::inputs::Inputs;
use super::keeping::{Keeping, KeptInput};
use super::pass::Pass;
use super::routing::Routing;
use super::tiles::{RoutedBackward, TiledBlock, backward_from_finished, routing};
use crate::models::Model;
use crate::models::decoder::Finished;
use crate::parameters::ParameterId;

/// What a block of the forward pass leaves for the backward pass.
enum Kept<'a> {
    /// Its input; the graph is made again from it.
    Input(Box<KeptInput>),
    /// Its graph.
    Graph(Box<Part<'a>>),
}

/// The graph of one part.
struct Part<'a> {
    /// A leaf when something below needs its gradient, else a constant.
    input: Tensor<2>,
    output: Finished,
    pass: Pass<'a>,
}

impl Part<'_> {
    /// Adds the gradients of the part's parameters, and returns that of its input where asked for.
    fn backward(
        self,
        gradient: Tensor<2>,
        by_probability: Option<&[f32]>,
        gradients: &mut Gradients,
    ) -> Option<Tensor<2>> {
        if !self.output.output.is_autodiff() {
            return None;
        }
        let mut graph = backward_from_finished(self.output, gradient, by_probability);
        self.pass.collect(&mut graph, gradients);
        if self.input.is_autodiff() {
            self.input.grad_remove(&mut graph)
        } else {
            None
        }
    }
}

/// A forward pass that a backward pass can follow. Boundaries are counted as hidden states are: 0 is the embedding's
/// output, N the output of block N - 1, and L, the number of blocks, what the final norm makes of the last block's output.
pub struct Forward<'a> {
    model: &'a Model,
    inputs: &'a Inputs,
    /// The lowest block that something is trained in or below; the number of blocks when there is none.
    lowest: usize,
    trains_stem: bool,
    /// For each block from the lowest one on.
    kept: Vec<Kept<'a>>,
    /// The final norm, where the pass reaches it.
    norm: Option<Part<'a>>,
    hidden: BTreeMap<usize, Tensor<2>>,
    /// What the routers of mixtures of experts made of the tokens, by block.
    routing: BTreeMap<usize, Routing>,
}

impl<'a> Forward<'a> {
    /// Runs the model up to the highest of the boundaries; the parts above do not run.
    pub fn run(model: &'a Model, inputs: &'a Inputs, boundaries: &[usize], keeping: Keeping) -> Self {
        let blocks = model.blocks.len();
        let last = boundaries.iter().copied().max().unwrap_or(0);
        let trains = |id: &ParameterId| model.parameters.get(*id).trainable;
        let trains_stem = model.stem.parameters().iter().any(trains);
        let lowest = if trains_stem {
            Some(0)
        } else {
            lowest_trainable_block(model)
        };
        let mut forward = Self {
            model,
            inputs,
            lowest: lowest.unwrap_or(blocks),
            trains_stem,
            kept: Vec::new(),
            norm: None,
            hidden: BTreeMap::new(),
            routing: BTreeMap::new(),
        };
        let mut x = model.embed(inputs, &forward.pass(false));
        for index in 0..blocks.min(last) {
            forward.keep_hidden(index, &x, boundaries);
            model.bring_ahead(index + 1);
            // Blocks below the lowest trainable parameter keep nothing.
            if index >= forward.lowest && !keeping.recompute {
                let part = forward.build(x, index);
                x = part.output.output.clone().without_autodiff();
                let routed = part.output.routed.as_ref().map(std::slice::from_ref);
                let routing = routed.and_then(|routed| routing(index, routed));
                forward.routing.extend(routing.map(|routing| (index, routing)));
                forward.kept.push(Kept::Graph(Box::new(part)));
            } else {
                let (output, routing) = TiledBlock::new(model, index, inputs).forward(&x);
                forward.routing.extend(routing.map(|routing| (index, routing)));
                if index >= forward.lowest {
                    forward.kept.push(Kept::Input(Box::new(KeptInput::new(x, keeping))));
                }
                x = output;
            }
        }
        if last == blocks {
            let (input, pass) = (forward.leaf(x, blocks), forward.pass(true));
            let output = model.final_norm(input.clone(), &pass);
            x = output.clone().without_autodiff();
            let output = Finished { output, routed: None };
            forward.norm = Some(Part { input, output, pass });
        }
        forward.keep_hidden(last, &x, boundaries);
        forward
    }

    /// The hidden state `[tokens, hidden]` of a boundary that was asked for, without a graph.
    ///
    /// # Panics
    /// When the boundary was not asked for.
    pub fn hidden(&self, boundary: usize) -> &Tensor<2> {
        &self.hidden[&boundary]
    }

    /// What the routers of the blocks that ran made of the tokens; nothing without mixtures of experts.
    pub fn routing(&self) -> impl Iterator<Item = &Routing> {
        self.routing.values()
    }

    /// Goes back from gradients `[tokens, hidden]` of the loss by hidden states, and adds the gradients of all trainable
    /// parameters below them to `gradients`.
    pub fn backward(self, at: Vec<(usize, Tensor<2>)>, gradients: &mut Gradients) {
        self.backward_with_routers(at, None, gradients);
    }

    /// The same with the gradient of the loss by the probability of each expert, `[experts]`, which holds for all tokens and blocks.
    pub fn backward_with_routers(
        mut self,
        at: Vec<(usize, Tensor<2>)>,
        by_probability: Option<&[f32]>,
        gradients: &mut Gradients,
    ) {
        let mut by_boundary = BTreeMap::<usize, Tensor<2>>::new();
        for (boundary, gradient) in at {
            let sum = match by_boundary.remove(&boundary) {
                Some(sum) => sum + gradient,
                None => gradient,
            };
            by_boundary.insert(boundary, sum);
        }
        let blocks = self.model.blocks.len();
        let mut gradient = None;
        if let (Some(norm), Some(above)) = (self.norm.take(), by_boundary.remove(&blocks)) {
            gradient = norm.backward(above, None, gradients);
        }
        let kept = std::mem::take(&mut self.kept);
        for (index, kept) in (self.lowest..self.lowest + kept.len()).zip(kept).rev() {
            gradient = add(gradient, by_boundary.remove(&(index + 1)));
            let Some(above) = gradient.take() else { continue };
            if index > self.lowest {
                self.model.bring_ahead(index - 1);
            }
            gradient = match kept {
                Kept::Graph(part) => part.backward(above, by_probability, gradients),
                Kept::Input(x) => {
                    let x = x.restore(self.model.dtype);
                    let block = TiledBlock::new(self.model, index, self.inputs);
                    let routed = self.routing.get(&index).map(|routing| RoutedBackward {
                        choices: &routing.choices,
                        by_probability,
                    });
                    block.backward(&x, above, self.leads_further(index), routed, gradients)
                }
            };
            self.model.reduce_spread(index, gradients);
        }
        if self.trains_stem
            && let Some(gradient) = add(gradient, by_boundary.remove(&0))
        {
            let passes = (&self.pass(false), self.pass(true));
            let parameters = &self.model.parameters;
            let trains = |id| parameters.get(id).trainable;
            self.model
                .stem
                .backward(gradient, self.inputs, passes, trains, gradients);
        }
    }

    fn pass(&self, tracked: bool) -> Pass<'a> {
        let token_keys = self.inputs.token_keys.clone();
        Pass::new(&self.model.parameters, self.model.dtype, tracked, token_keys)
    }

    /// Whether something below part `index` is trained, so that its input needs a gradient.
    fn leads_further(&self, index: usize) -> bool {
        self.trains_stem || index > self.lowest
    }

    fn leaf(&self, x: Tensor<2>, index: usize) -> Tensor<2> {
        if self.leads_further(index) {
            x.autodiff().require_grad()
        } else {
            x
        }
    }

    fn build(&self, x: Tensor<2>, index: usize) -> Part<'a> {
        let (input, pass) = (self.leaf(x, index), self.pass(true));
        let output = self.model.blocks[index].forward(input.clone(), self.inputs, &pass, None);
        Part { input, output, pass }
    }

    fn keep_hidden(&mut self, boundary: usize, x: &Tensor<2>, boundaries: &[usize]) {
        if boundaries.contains(&boundary) {
            self.hidden.insert(boundary, x.clone());
        }
    }
}

fn add(one: Option<Tensor<2>>, other: Option<Tensor<2>>) -> Option<Tensor<2>> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one + other),
        (one, other) => one.or(other),
    }
}

fn lowest_trainable_block(model: &Model) -> Option<usize> {
    model.blocks.iter().position(|block| {
        block
            .parameters()
            .into_iter()
            .any(|id| model.parameters.get(id).trainable)
    })
}
