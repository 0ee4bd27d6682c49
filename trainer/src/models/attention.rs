//! The attention of a block: projections, positions, and which keys a query sees.

use std::sync::Arc;

use burn::tensor::Tensor;
use interlingua_checkpoints::blocks::{FusedOrder, Positions};

use crate::engine::inputs::Inputs;
use crate::engine::pass::Pass;
use crate::layers::linear::Linear;
use crate::layers::norm::Norm;
use crate::ops::attention::{AttentionLayout, attention, attention_cached};
use crate::ops::rotary::rotary;
use crate::parameters::ParameterId;

/// How queries, keys and values are made.
#[derive(Clone, Debug)]
pub enum Projections {
    /// Each by a layer of its own: queries `[heads * head_dim, hidden]`, keys and values `[kv_heads * head_dim, hidden]`.
    Separate {
        /// Queries.
        query: Linear,
        /// Keys.
        key: Linear,
        /// Values.
        value: Linear,
    },
    /// All by one layer.
    Fused {
        /// The layer.
        layer: Linear,
        /// What stands where in its output.
        order: FusedOrder,
    },
}

/// The attention of a block.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Queries, keys and values.
    pub projections: Projections,
    /// Output, `[hidden, heads * head_dim]`.
    pub output: Linear,
    /// Norms of queries and of keys.
    pub qk_norm: Option<[Norm; 2]>,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Size of a head.
    pub head_dim: usize,
    /// How it knows where tokens stand.
    pub positions: Positions,
    /// ALiBi's slope of each head.
    pub slopes: Option<Arc<[f32]>>,
    /// Sliding window.
    pub window: Option<usize>,
    /// What scores are multiplied with.
    pub scale: f32,
    /// Bound of the scores.
    pub softcap: Option<f32>,
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
    pub fn attend_after(self, seen: &mut [KeyValues], layout: &AttentionLayout) -> Tensor<2> {
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

impl Attention {
    /// Queries, keys and values of x `[tokens, hidden]`, normed before.
    pub fn project(&self, x: Tensor<2>, inputs: &Inputs, pass: &Pass) -> Projected {
        let languages = inputs.languages.as_deref();
        let [q, k, v] = match &self.projections {
            Projections::Separate { query, key, value } => {
                let q = query.forward_by_language(x.clone(), pass, languages);
                let k = key.forward_by_language(x.clone(), pass, languages);
                [q, k, value.forward_by_language(x, pass, languages)]
            }
            Projections::Fused { layer, order } => self.split(layer.forward_by_language(x, pass, languages), *order),
        };
        let [q, k] = match &self.qk_norm {
            Some([of_queries, of_keys]) => [of_queries.over_heads(q, pass), of_keys.over_heads(k, pass)],
            None => [q, k],
        };
        let tokens = q.dims()[0];
        let heads = |x: Tensor<2>, heads| x.reshape([tokens, heads, self.head_dim]);
        let (q, k, v) = (heads(q, self.heads), heads(k, self.kv_heads), heads(v, self.kv_heads));
        match self.positions {
            Positions::Rope(index) => {
                let table = &inputs.rotary[index];
                Projected {
                    q: rotary(q, table),
                    k: rotary(k, table),
                    v,
                }
            }
            Positions::None | Positions::Alibi => Projected { q, k, v },
        }
    }

    /// The output of a fused layer as queries, keys and values, `[tokens, heads * head_dim]` each.
    fn split(&self, x: Tensor<2>, order: FusedOrder) -> [Tensor<2>; 3] {
        let [tokens, _] = x.dims();
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        match order {
            FusedOrder::ByKind => [(0, queries), (queries, keys), (queries + keys, keys)]
                .map(|(start, length)| x.clone().narrow(1, start, length)),
            FusedOrder::ByHead => {
                let heads = x.reshape([tokens, self.heads, 3 * self.head_dim]);
                [0, 1, 2].map(|part| {
                    let of_part = heads.clone().narrow(2, part * self.head_dim, self.head_dim);
                    of_part.reshape([tokens, queries])
                })
            }
        }
    }

    /// Which keys the queries see.
    pub fn layout(&self, inputs: &Inputs) -> AttentionLayout {
        AttentionLayout {
            boundaries: inputs.boundaries.clone(),
            window: self.window,
            scale: self.scale,
            softcap: self.softcap,
            slopes: self.slopes.clone(),
        }
    }

    /// The parameters that [`Self::project`] reads.
    pub fn projecting_parameters(&self) -> Vec<ParameterId> {
        let norms = self.qk_norm.iter().flatten().flat_map(Norm::parameters);
        let linears = self.projecting().into_iter().flat_map(Linear::parameters);
        linears.chain(norms).collect()
    }

    /// The layers of queries, keys and values.
    pub fn projecting(&self) -> Vec<&Linear> {
        match &self.projections {
            Projections::Separate { query, key, value } => vec![query, key, value],
            Projections::Fused { layer, .. } => vec![layer],
        }
    }
}

impl Projections {
    /// The layers, to put adapters on.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match self {
            Self::Separate { query, key, value } => vec![query, key, value],
            Self::Fused { layer, .. } => vec![layer],
        }
    }
}

/// ALiBi's slopes (Press et al., 2022): for n heads, n a power of two, `2^(-8 i / n)` for i from 1; for others those of the largest
/// power of two below, and then every other one of twice that many.
pub fn alibi_slopes(heads: usize) -> Vec<f32> {
    let of_power = |count: usize| (1..=count).map(move |index| 2f64.powf(-8.0 * index as f64 / count as f64));
    let below = 1 << heads.ilog2();
    let more = of_power(2 * below).step_by(2).take(heads - below);
    of_power(below).chain(more).map(|slope| slope as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_of_a_power_of_two_are_a_geometric_series_and_others_lie_between() {
        assert_eq!(alibi_slopes(4), [0.25, 0.0625, 0.015_625, 0.003_906_25]);
        let six = alibi_slopes(6);
        assert_eq!(six[..4], alibi_slopes(4));
        assert_eq!(six[4..], [0.5, 0.125]);
        assert_eq!(alibi_slopes(1), [0.003_906_25]);
    }
}
