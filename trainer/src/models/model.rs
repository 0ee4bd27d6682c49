//! A causal language model as the engine sees it.

use std::collections::BTreeSet;

use burn::tensor::{DType, Device, Tensor};
use interlingua_checkpoints::config::ModelConfig;

use super::attention::KeyValues;
use super::decoder::Block;
use super::stem::Stem;
use crate::engine::gradients::Gradients;
use crate::engine::inputs::Inputs;
use crate::engine::pass::Pass;
use crate::engine::routing::Routing;
use crate::engine::tiles::TiledBlock;
use crate::layers::linear::Linear;
use crate::layers::norm::Norm;
use crate::ops::weight::PackedWeight;
use crate::parameters::{ParameterId, Parameters, Stored};
use crate::spread::{self, Spread};

/// A decoder-only model: embedding, blocks, final norm, head.
#[derive(Clone, Debug)]
pub struct Model {
    /// Its shape.
    pub config: ModelConfig,
    /// Where it computes.
    pub device: Device,
    /// What it computes in.
    pub dtype: DType,
    /// All parameters, those of adapters included.
    pub parameters: Parameters,
    /// The embedding, and what happens to it.
    pub stem: Stem,
    /// The blocks, the first one first.
    pub blocks: Vec<Block>,
    /// The norm behind the blocks.
    pub norm: Norm,
    /// The linear layer of the head `[vocab, hidden]`; its weight is the embedding when the two are tied.
    pub head: Linear,
}

impl Model {
    /// A pass without gradients.
    pub fn plain_pass(&self) -> Pass<'_> {
        Pass::new(&self.parameters, self.dtype, false, None)
    }

    /// The stem: `hidden_states.0`, `[tokens, hidden]`.
    pub fn embed(&self, inputs: &Inputs, pass: &Pass) -> Tensor<2> {
        self.stem.forward(inputs, pass)
    }

    /// The final norm, `[tokens, hidden]`: `hidden_states.L`.
    pub fn final_norm(&self, x: Tensor<2>, pass: &Pass) -> Tensor<2> {
        self.norm.forward(x, pass)
    }

    /// All hidden states without gradients: `hidden_states.0` to `.L`, the last one after the final norm.
    pub fn hidden_states(&self, inputs: &Inputs) -> Vec<Tensor<2>> {
        let mut states = Vec::with_capacity(self.blocks.len() + 1);
        self.visit_hidden_states(inputs, |_, state| states.push(state));
        states
    }

    /// Hands the same states over one by one, each with its N, so that they need not be there all at once.
    pub fn visit_hidden_states(&self, inputs: &Inputs, mut visit: impl FnMut(usize, Tensor<2>)) {
        let pass = self.plain_pass();
        let mut x = self.embed(inputs, &pass);
        for index in 0..self.blocks.len() {
            visit(index, x.clone());
            self.bring_ahead(index + 1);
            x = TiledBlock::new(self, index, inputs).forward(&x).0;
        }
        visit(self.blocks.len(), self.final_norm(x, &pass));
    }

    /// The last hidden state after the final norm, `[tokens, hidden]`, without gradients. `seen` holds, block by block,
    /// one entry per sequence, and is extended.
    pub fn last_hidden_state(&self, inputs: &Inputs, seen: Option<&mut [Vec<KeyValues>]>) -> Tensor<2> {
        let Some(seen) = seen else {
            return self.hidden_state(inputs, self.blocks.len());
        };
        let pass = self.plain_pass();
        let mut x = self.embed(inputs, &pass);
        let together = self.is_spread();
        for (index, (block, seen)) in self.blocks.iter().zip(seen).enumerate() {
            if together {
                self.bring(index);
            }
            x = block.forward(x, inputs, &pass, Some(seen)).output;
            if together {
                self.let_go(index);
            }
        }
        self.final_norm(x, &pass)
    }

    /// The same of whole sequences, and what the routers of mixtures of experts made of the tokens.
    pub fn routed_hidden_state(&self, inputs: &Inputs) -> (Tensor<2>, Vec<Routing>) {
        let pass = self.plain_pass();
        let mut routings = Vec::new();
        let mut x = self.embed(inputs, &pass);
        for index in 0..self.blocks.len() {
            self.bring_ahead(index + 1);
            let (output, routing) = TiledBlock::new(self, index, inputs).forward(&x);
            routings.extend(routing);
            x = output;
        }
        (self.final_norm(x, &pass), routings)
    }

    /// Logits `[rows, vocab]` of hidden states `[rows, hidden]` after the final norm, without gradients.
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        self.logits_in(hidden, &self.plain_pass())
    }

    /// The same in a pass, with its gradients.
    pub fn logits_in(&self, hidden: Tensor<2>, pass: &Pass) -> Tensor<2> {
        let logits = self.head.forward(hidden, pass);
        let logits = match self.config.head.scale {
            Some(scale) => logits * scale,
            None => logits,
        };
        match self.config.head.softcap {
            Some(cap) => (logits / cap).tanh() * cap,
            None => logits,
        }
    }

    /// The hidden states of one boundary, `[tokens, hidden]`, without gradients; the parts above do not run.
    pub fn hidden_state(&self, inputs: &Inputs, boundary: usize) -> Tensor<2> {
        let x = self.output_of_blocks(inputs, boundary);
        if boundary == self.blocks.len() {
            self.final_norm(x, &self.plain_pass())
        } else {
            x
        }
    }

    /// Asks for the weights of a block that are kept elsewhere; none where there is no such block.
    pub fn bring(&self, index: usize) {
        spread::bring(&self.spread_weights(index).map(|(_, weight)| weight).collect::<Vec<_>>());
        self.packed_weights(index).for_each(PackedWeight::bring);
    }

    /// The same while another block computes. Weights that lie in pieces on all processes are left for [`Model::bring`]: nothing is
    /// sent while something is computed.
    pub fn bring_ahead(&self, index: usize) {
        let weights = self.packed_weights(index).filter(|weight| !weight.is_spread());
        weights.for_each(PackedWeight::bring);
    }

    /// Lets the weights of a block that are kept elsewhere go again.
    pub fn let_go(&self, index: usize) {
        self.spread_weights(index).for_each(|(_, weight)| weight.let_go());
        self.packed_weights(index).for_each(PackedWeight::let_go);
    }

    /// Whether some weights lie in pieces on all processes, so that every pass needs all of them.
    pub fn is_spread(&self) -> bool {
        self.parameters.iter().any(|(_, parameter)| match &parameter.value {
            Stored::Dense(_) => false,
            Stored::Packed(weight) => weight.is_spread(),
            Stored::Spread(_) => true,
        })
    }

    /// The weights of a block's linear layers that lie in pieces.
    fn spread_weights(&self, index: usize) -> impl Iterator<Item = (ParameterId, &Spread)> {
        let linears = self.blocks.get(index).map(Block::linears).into_iter().flatten();
        linears.filter_map(|linear| Some((linear.weight, self.parameters.spread(linear.weight)?)))
    }

    /// Adds up over all processes what a block's backward pass gave for trained weights that lie in pieces, and keeps this process's
    /// piece of it.
    pub fn reduce_spread(&self, index: usize, gradients: &mut Gradients) {
        for (id, weight) in self.spread_weights(index) {
            if !self.parameters.get(id).trainable {
                continue;
            }
            let gradient = gradients
                .take(id)
                .unwrap_or_else(|| Tensor::zeros([weight.len()], (&self.device, DType::F32)));
            if let Some(piece) = weight.reduce(&gradient) {
                gradients.add_piece(id, piece);
            }
        }
    }

    /// Puts every parameter that lies in pieces together, in the host memory of one process, to be written. All processes take part.
    pub fn put_together(&mut self, keeps: bool) {
        let ids: Vec<ParameterId> = self.parameters.iter().map(|(id, _)| id).collect();
        for id in ids {
            if let Some(vector) = self.parameters.spread(id) {
                let data = vector.values().into_data();
                if keeps {
                    let dtype = data.dtype();
                    self.parameters
                        .set_value(id, Tensor::from_data(data, (&Device::flex(), dtype)));
                }
            }
        }
    }

    fn packed_weights(&self, index: usize) -> impl Iterator<Item = &PackedWeight> {
        let linears = self.blocks.get(index).map(Block::linears).into_iter().flatten();
        linears.filter_map(|linear| match &self.parameters.get(linear.weight).value {
            Stored::Packed(weight) => Some(weight),
            Stored::Dense(_) | Stored::Spread(_) => None,
        })
    }

    /// What the first `count` blocks make of the embedding, `[tokens, hidden]`, without gradients or the final norm.
    pub fn output_of_blocks(&self, inputs: &Inputs, count: usize) -> Tensor<2> {
        let embedded = self.embed(inputs, &self.plain_pass());
        (0..count).fold(embedded, |x, index| {
            self.bring_ahead(index + 1);
            TiledBlock::new(self, index, inputs).forward(&x).0
        })
    }

    /// The same model without the adapter that is trained; the weights are shared, not copied. Frozen adapters stay.
    #[must_use]
    pub fn without_adapter(&self) -> Self {
        let mut bare = self.clone();
        let frozen = |id: ParameterId| self.parameters.get(id).frozen;
        bare.linears_mut()
            .for_each(|linear| linear.adapters.retain(|adapter| frozen(adapter.adapter.lora().a)));
        for block in &mut bare.blocks {
            block.bottlenecks.retain(|bottleneck| frozen(bottleneck.adapter.down));
            block.steering.retain(|steering| frozen(steering.adapter.vector));
        }
        bare
    }

    /// Marks every parameter as frozen.
    pub fn freeze(&mut self) {
        let ids: Vec<ParameterId> = self.parameters.trainable().map(|(id, _)| id).collect();
        ids.into_iter().for_each(|id| self.parameters.set_trainable(id, false));
    }

    /// Every linear layer that an adapter may sit on: those of the blocks, then the head.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.blocks.iter().flat_map(|block| block.linears()).chain([&self.head])
    }

    /// The same, to put adapters on.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.blocks
            .iter_mut()
            .flat_map(|block| block.linears_mut())
            .chain([&mut self.head])
    }

    /// The languages that adapters on it are for; empty when all of them are for all rows.
    pub fn adapter_languages(&self) -> BTreeSet<&str> {
        let on_linears = self.linears().flat_map(|linear| &linear.adapters);
        let bottlenecks = self.blocks.iter().flat_map(|block| &block.bottlenecks);
        let steering = self.blocks.iter().flat_map(|block| &block.steering);
        let languages = on_linears.map(|adapter| &adapter.language);
        let languages = languages.chain(bottlenecks.map(|adapter| &adapter.language));
        let languages = languages.chain(steering.map(|adapter| &adapter.language));
        languages.filter_map(Option::as_deref).collect()
    }
}
