//! The decoder block of Llama, Qwen2, Qwen3 and Mistral, with what sets them apart as parameters: biases, grouped
//! queries, QK-norm, sliding window. Which family has what is read in `checkpoints::config`.

use burn::tensor::Tensor;

use crate::adapters::ForRows;
use crate::adapters::bottleneck::Bottleneck;
use crate::adapters::steering::Steering;
use crate::engine::inputs::Inputs;
use crate::engine::pass::Pass;
use crate::layers::linear::Linear;
use crate::ops::activation::{Activation, gated};
use crate::ops::attention::{AttentionLayout, attention, attention_cached};
use crate::ops::rms_norm::rms_norm;
use crate::ops::rotary::rotary;
use crate::parameters::ParameterId;

/// One block: `h = x + attention(norm(x))`, `y = h + mlp(norm(h))`, and what adapters do to y.
#[derive(Clone, Debug)]
pub struct Block {
    /// Norm before the attention.
    pub input_layernorm: ParameterId,
    /// Queries, `[heads * head_dim, hidden]`.
    pub q_proj: Linear,
    /// Keys, `[kv_heads * head_dim, hidden]`.
    pub k_proj: Linear,
    /// Values, `[kv_heads * head_dim, hidden]`.
    pub v_proj: Linear,
    /// Output of the attention, `[hidden, heads * head_dim]`.
    pub o_proj: Linear,
    /// Norm over each head of queries and keys (Qwen3).
    pub qk_norm: Option<(ParameterId, ParameterId)>,
    /// Norm before the MLP.
    pub post_attention_layernorm: ParameterId,
    /// Gate of the MLP, `[intermediate, hidden]`.
    pub gate_proj: Linear,
    /// Values of the MLP, `[intermediate, hidden]`.
    pub up_proj: Linear,
    /// Output of the MLP, `[hidden, intermediate]`.
    pub down_proj: Linear,
    /// Size of a head.
    pub head_dim: usize,
    /// Sliding window of the attention.
    pub window: Option<usize>,
    /// Epsilon of the norms.
    pub norm_epsilon: f64,
    /// Bottleneck adapters after the block, each over what the one before gives.
    pub bottlenecks: Vec<ForRows<Bottleneck>>,
    /// Vectors added to the block's output.
    pub steering: Vec<ForRows<Steering>>,
}

/// Keys and values of the tokens a block has seen, `[tokens, kv_heads, head_dim]`, for one sequence.
#[derive(Clone, Debug, Default)]
pub struct KeyValues {
    keys: Option<Tensor<3>>,
    values: Option<Tensor<3>>,
}

impl KeyValues {
    /// Appends and returns all of them.
    fn extend(&mut self, keys: Tensor<3>, values: Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        let join = |seen: Option<Tensor<3>>, new| match seen {
            Some(seen) => Tensor::cat(vec![seen, new], 0),
            None => new,
        };
        let (keys, values) = (join(self.keys.take(), keys), join(self.values.take(), values));
        self.keys = Some(keys.clone());
        self.values = Some(values.clone());
        (keys, values)
    }
}

/// Queries `[tokens, heads, head_dim]`, keys and values `[tokens, kv_heads, head_dim]` of a block, rotated.
#[derive(Clone, Debug)]
pub struct Projected {
    /// Queries.
    pub q: Tensor<3>,
    /// Keys.
    pub k: Tensor<3>,
    /// Values.
    pub v: Tensor<3>,
}

impl Projected {
    /// The attention's output `[tokens, heads * head_dim]`, each sequence by itself.
    pub fn attend(self, layout: &AttentionLayout) -> Tensor<2> {
        attention(self.q, self.k, self.v, layout)
    }

    /// The same for sequences that go on after what they have seen.
    fn attend_after(self, seen: &mut [KeyValues], layout: &AttentionLayout) -> Tensor<2> {
        let (mut keys, mut values, mut boundaries) = (Vec::new(), Vec::new(), vec![0]);
        for (seen, range) in seen.iter_mut().zip(layout.boundaries.windows(2)) {
            let (start, length) = (range[0], range[1] - range[0]);
            let of_sequence = |x: &Tensor<3>| x.clone().narrow(0, start, length);
            let (k, v) = seen.extend(of_sequence(&self.k), of_sequence(&self.v));
            boundaries.push(boundaries[boundaries.len() - 1] + k.dims()[0]);
            keys.push(k);
            values.push(v);
        }
        let (keys, values) = (Tensor::cat(keys, 0), Tensor::cat(values, 0));
        attention_cached(self.q, keys, values, &boundaries.into(), layout)
    }
}

impl Block {
    /// x `[tokens, hidden]` to `[tokens, hidden]`. With `seen`, one for each sequence, the sequences go on after it.
    pub fn forward(&self, x: Tensor<2>, inputs: &Inputs, pass: &Pass, seen: Option<&mut [KeyValues]>) -> Tensor<2> {
        let projected = self.project(x.clone(), inputs, pass);
        let layout = self.attention(inputs);
        let attended = match seen {
            None => projected.attend(&layout),
            Some(seen) => projected.attend_after(seen, &layout),
        };
        self.finish(x, attended, inputs, pass)
    }

    /// What stands before the attention, token by token: x `[tokens, hidden]` to queries, keys and values.
    pub fn project(&self, x: Tensor<2>, inputs: &Inputs, pass: &Pass) -> Projected {
        let languages = inputs.languages.as_deref();
        let normed = rms_norm(x, pass.vector(self.input_layernorm), self.norm_epsilon, 0.0);
        let q = self.heads(
            self.q_proj.forward_by_language(normed.clone(), pass, languages),
            self.qk_norm.map(|norms| norms.0),
            pass,
        );
        let k = self.heads(
            self.k_proj.forward_by_language(normed.clone(), pass, languages),
            self.qk_norm.map(|norms| norms.1),
            pass,
        );
        let v = self.heads(self.v_proj.forward_by_language(normed, pass, languages), None, pass);
        Projected {
            q: rotary(q, &inputs.rotary),
            k: rotary(k, &inputs.rotary),
            v,
        }
    }

    /// Which keys the queries of this block see.
    pub fn attention(&self, inputs: &Inputs) -> AttentionLayout {
        inputs.attention(self.window, (self.head_dim as f32).powf(-0.5))
    }

    /// What stands behind the attention, token by token: the block's input x and the attention's output
    /// `[tokens, heads * head_dim]` to the block's output `[tokens, hidden]`.
    pub fn finish(&self, x: Tensor<2>, attended: Tensor<2>, inputs: &Inputs, pass: &Pass) -> Tensor<2> {
        let languages = inputs.languages.as_deref();
        let h = x + self.o_proj.forward_by_language(attended, pass, languages);
        let norm = |x: Tensor<2>| rms_norm(x, pass.vector(self.post_attention_layernorm), self.norm_epsilon, 0.0);
        let normed = norm(h.clone());
        let inner = gated(
            self.gate_proj.forward_by_language(normed.clone(), pass, languages),
            self.up_proj.forward_by_language(normed, pass, languages),
            Activation::Silu,
        );
        let mut output = h + self.down_proj.forward_by_language(inner, pass, languages);
        for bottleneck in &self.bottlenecks {
            if let Some(rows) = bottleneck.rows(languages) {
                let change = bottleneck.adapter.change(norm(rows.select(&output)), pass, rows);
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

    /// The parameters that [`Self::project`] reads.
    pub fn projecting_parameters(&self) -> Vec<ParameterId> {
        let head_norms = self.qk_norm.iter().flat_map(|(q, k)| [*q, *k]);
        [self.input_layernorm]
            .into_iter()
            .chain(head_norms)
            .chain(
                [&self.q_proj, &self.k_proj, &self.v_proj]
                    .into_iter()
                    .flat_map(Linear::parameters),
            )
            .collect()
    }

    /// `[tokens, heads * head_dim]` to `[tokens, heads, head_dim]`, each head normed where the model does that.
    fn heads(&self, x: Tensor<2>, norm: Option<ParameterId>, pass: &Pass) -> Tensor<3> {
        let [tokens, features] = x.dims();
        let heads = features / self.head_dim;
        match norm {
            None => x.reshape([tokens, heads, self.head_dim]),
            Some(norm) => {
                let rows = x.reshape([tokens * heads, self.head_dim]);
                rms_norm(rows, pass.vector(norm), self.norm_epsilon, 0.0).reshape([tokens, heads, self.head_dim])
            }
        }
    }

    /// The linear layers by their path within the block.
    pub fn linears(&self) -> [&Linear; 7] {
        [
            &self.q_proj,
            &self.k_proj,
            &self.v_proj,
            &self.o_proj,
            &self.gate_proj,
            &self.up_proj,
            &self.down_proj,
        ]
    }

    /// The same, to put adapters on.
    pub fn linears_mut(&mut self) -> [&mut Linear; 7] {
        [
            &mut self.q_proj,
            &mut self.k_proj,
            &mut self.v_proj,
            &mut self.o_proj,
            &mut self.gate_proj,
            &mut self.up_proj,
            &mut self.down_proj,
        ]
    }

    /// Every parameter the block reads.
    pub fn parameters(&self) -> Vec<ParameterId> {
        let norms = [self.input_layernorm, self.post_attention_layernorm].into_iter();
        let head_norms = self.qk_norm.iter().flat_map(|(q, k)| [*q, *k]);
        norms
            .chain(head_norms)
            .chain(self.linears().into_iter().flat_map(Linear::parameters))
            .chain(
                self.bottlenecks
                    .iter()
                    .flat_map(|bottleneck| bottleneck.adapter.parameters()),
            )
            .chain(self.steering.iter().map(|steering| steering.adapter.vector))
            .collect()
    }
}
