//! The decoder block of every family, with what sets them apart as parts that are there or not: norms before and behind, fused or
//! separate projections, kinds of MLP, residual connections. Which family has what is read in `checkpoints::families`.

use burn::tensor::Tensor;

use super::attention::{Attention, KeyValues, Projected};
use super::experts::Routed;
use super::mlp::Mlp;
use crate::adapters::ForRows;
use crate::adapters::bottleneck::Bottleneck;
use crate::adapters::steering::Steering;
use crate::engine::inputs::Inputs;
use crate::engine::pass::Pass;
use crate::engine::routing::Choices;
use crate::layers::linear::Linear;
use crate::layers::norm::Norm;
use crate::parameters::ParameterId;

/// One block. One after the other: `h = x + attention(norm(x))`, `y = h + mlp(norm(h))`. Side by side:
/// `y = x + attention(norm(x)) + mlp(norm(x))`. Then what adapters do to y.
#[derive(Clone, Debug)]
pub struct Block {
    /// Path of the module, such as `model.layers.0`.
    pub path: String,
    /// Norm before the attention.
    pub input_norm: Option<Norm>,
    /// The attention.
    pub attention: Attention,
    /// Norm of the attention's output.
    pub attention_output_norm: Option<Norm>,
    /// Norm before the MLP. Without one a block whose parts stand side by side gives its MLP what its attention reads.
    pub mlp_norm: Option<Norm>,
    /// The MLP.
    pub mlp: Mlp,
    /// Norm of the MLP's output.
    pub mlp_output_norm: Option<Norm>,
    /// Whether attention and MLP stand side by side.
    pub parallel: bool,
    /// Whether the residual connections begin behind the norms.
    pub residual_after_norm: bool,
    /// Bottleneck adapters after the block, each over what the one before gives.
    pub bottlenecks: Vec<ForRows<Bottleneck>>,
    /// Vectors added to the block's output.
    pub steering: Vec<ForRows<Steering>>,
}

/// A block's output `[tokens, hidden]`, and from a mixture of experts how it routed.
pub struct Finished {
    /// The output.
    pub output: Tensor<2>,
    /// How tokens were routed.
    pub routed: Option<Routed>,
}

fn normed(norm: Option<&Norm>, x: Tensor<2>, pass: &Pass) -> Tensor<2> {
    match norm {
        Some(norm) => norm.forward(x, pass),
        None => x,
    }
}

impl Block {
    /// x `[tokens, hidden]` to `[tokens, hidden]`. With `seen`, one for each sequence, the sequences go on after it.
    pub fn forward(&self, x: Tensor<2>, inputs: &Inputs, pass: &Pass, seen: Option<&mut [KeyValues]>) -> Finished {
        let projected = self.project(x.clone(), inputs, pass);
        let layout = self.attention.layout(inputs);
        let attended = match seen {
            None => projected.attend(&layout),
            Some(seen) => projected.attend_after(seen, &layout),
        };
        self.finish(x, attended, inputs, pass, None)
    }

    /// What stands before the attention, token by token: x `[tokens, hidden]` to queries, keys and values.
    pub fn project(&self, x: Tensor<2>, inputs: &Inputs, pass: &Pass) -> Projected {
        let input = match &self.input_norm {
            Some(norm) => norm.forward(x, pass),
            // A step of its own in the graph: what projections give back adds up before the residual connection's gradient
            // comes to it, as it does where the block is computed again.
            None if x.is_autodiff() => x * 1.0,
            None => x,
        };
        self.attention.project(input, inputs, pass)
    }

    /// What stands behind the attention, token by token: the block's input x and the attention's output
    /// `[tokens, heads * head_dim]` to the block's output `[tokens, hidden]`. `choices`: the experts, where an earlier pass has
    /// chosen them.
    pub fn finish(
        &self,
        x: Tensor<2>,
        attended: Tensor<2>,
        inputs: &Inputs,
        pass: &Pass,
        choices: Option<&Choices>,
    ) -> Finished {
        let languages = inputs.languages.as_deref();
        let attended = self.attention.output.forward_by_language(attended, pass, languages);
        let attended = normed(self.attention_output_norm.as_ref(), attended, pass);
        let (residual, input) = if self.parallel {
            let norm = self.mlp_norm.as_ref().or(self.input_norm.as_ref());
            let input = normed(norm, x.clone(), pass);
            (x + attended, input)
        } else {
            let residual = if self.residual_after_norm {
                normed(self.input_norm.as_ref(), x, pass)
            } else {
                x
            };
            let h = residual + attended;
            let input = normed(self.mlp_norm.as_ref(), h.clone(), pass);
            (if self.residual_after_norm { input.clone() } else { h }, input)
        };
        let (change, routed) = self.mlp.forward(input, pass, languages, choices);
        let output = residual + normed(self.mlp_output_norm.as_ref(), change, pass);
        Finished {
            output: self.adapted(output, inputs, pass),
            routed,
        }
    }

    /// What the adapters behind the block make of its output.
    fn adapted(&self, mut output: Tensor<2>, inputs: &Inputs, pass: &Pass) -> Tensor<2> {
        let languages = inputs.languages.as_deref();
        for bottleneck in &self.bottlenecks {
            if let Some(rows) = bottleneck.rows(languages) {
                let input = normed(self.norm_of_bottleneck(), rows.select(&output), pass);
                let change = bottleneck.adapter.change(input, pass, rows);
                output = rows.add(output, change);
            }
        }
        for steering in &self.steering {
            if let Some(rows) = steering.rows(languages) {
                let change = steering.adapter.change(&rows.select(&output), pass);
                output = rows.add(output, change);
            }
        }
        output
    }

    /// The norm through which a bottleneck adapter reads the output: that before the MLP, or what the block has in its place.
    fn norm_of_bottleneck(&self) -> Option<&Norm> {
        let norms = [&self.mlp_norm, &self.input_norm, &self.mlp_output_norm];
        norms.into_iter().flatten().next()
    }

    /// The parameters that [`Self::project`] reads.
    pub fn projecting_parameters(&self) -> Vec<ParameterId> {
        let norm = self.input_norm.iter().flat_map(Norm::parameters);
        norm.chain(self.attention.projecting_parameters()).collect()
    }

    /// The linear layers, in the order in which they compute.
    pub fn linears(&self) -> Vec<&Linear> {
        let mut linears = self.attention.projecting();
        linears.push(&self.attention.output);
        linears.extend(self.mlp.linears());
        linears
    }

    /// The same, to put adapters on.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let Attention {
            projections, output, ..
        } = &mut self.attention;
        let mut linears = projections.linears_mut();
        linears.push(output);
        linears.extend(self.mlp.linears_mut());
        linears
    }

    /// The norms.
    pub fn norms(&self) -> impl Iterator<Item = &Norm> {
        let own = [
            &self.input_norm,
            &self.attention_output_norm,
            &self.mlp_norm,
            &self.mlp_output_norm,
        ];
        let of_heads = self.attention.qk_norm.iter().flatten();
        own.into_iter().flatten().chain(of_heads)
    }

    /// Every parameter the block reads.
    pub fn parameters(&self) -> Vec<ParameterId> {
        let bottlenecks = self.bottlenecks.iter();
        self.norms()
            .flat_map(Norm::parameters)
            .chain(self.linears().into_iter().flat_map(Linear::parameters))
            .chain(self.mlp.own_parameters())
            .chain(bottlenecks.flat_map(|bottleneck| bottleneck.adapter.parameters()))
            .chain(self.steering.iter().map(|steering| steering.adapter.vector))
            .collect()
    }
}
