//! Causal attention over packed sequences (Dao, "FlashAttention-2", 2023): no sequence sees another, keys and values of
//! grouped-query attention are not repeated, and no [tokens, tokens] matrix is formed.

#[cfg(feature = "cube")]
mod cube;
mod kernel;

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{Bool, DType, Tensor, TensorData, activation};

#[cfg(feature = "cube")]
pub(in crate::ops) use cube::attention_in_tiles;
pub use kernel::Spans;

use super::flex::{dense, dimensions, tensor, values};
use super::has_kernel;

/// Which keys a query sees.
#[derive(Clone, Debug)]
pub struct AttentionLayout {
    /// Where each sequence starts, ascending: first 0, last the number of tokens.
    pub boundaries: Arc<[usize]>,
    /// Sliding window: the query at position i sees keys j with `i - window < j <= i`; everything before it without.
    pub window: Option<usize>,
    /// What scores are multiplied with before the softmax, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Bound of the scores: a score s becomes `cap * tanh(s / cap)` (Gemma 2).
    pub softcap: Option<f32>,
    /// One number per query head (ALiBi, Press et al., 2022): `slope * (j - i)` is added to the scaled score of the query
    /// at position i and the key at position j. BLOOM adds `slope * j`, which is the same to a softmax. Slopes carry no
    /// gradient, and there is no bound beside them.
    pub slopes: Option<Arc<[f32]>>,
}

/// Causal attention within each sequence. q `[tokens, heads, head_dim]`, k and v `[tokens, kv_heads, head_dim]`, output
/// `[tokens, heads * head_dim]`. Query head h uses key head `h / (heads / kv_heads)`.
pub fn attention(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, layout: &AttentionLayout) -> Tensor<2> {
    attention_cached(q, k, v, &layout.boundaries, layout)
}

/// Attention while decoding: the queries of a sequence are its last positions, its keys and values all of them.
/// `layout.boundaries` divides the queries, `key_boundaries` the keys.
pub fn attention_cached(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    key_boundaries: &Arc<[usize]>,
    layout: &AttentionLayout,
) -> Tensor<2> {
    if !has_kernel(&q) {
        return attention_reference(q, k, v, key_boundaries, layout);
    }
    let [_, heads, head_dim] = q.dims();
    let spans = Spans {
        queries: layout.boundaries.clone(),
        keys: key_boundaries.clone(),
        window: layout.window,
        scale: layout.scale,
        softcap: layout.softcap,
        slopes: layout.slopes.clone(),
        heads,
        kv_heads: k.dims()[1],
        head_dim,
    };
    let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    Tensor::from_dispatch(<Dispatch as AttentionOps>::attention_forward(q, k, v, spans))
}

/// Both in plain tensor operations, sequence by sequence, with the softmax in f32.
pub fn attention_reference(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    key_boundaries: &[usize],
    layout: &AttentionLayout,
) -> Tensor<2> {
    let [_, heads, head_dim] = q.dims();
    let [_, kv_heads, _] = k.dims();
    let (device, dtype) = (q.device().without_autodiff(), q.dtype());
    let mut outputs = Vec::with_capacity(key_boundaries.len());
    for (queries, keys) in layout.boundaries.windows(2).zip(key_boundaries.windows(2)) {
        let (query_count, key_count) = (queries[1] - queries[0], keys[1] - keys[0]);
        if query_count == 0 {
            continue;
        }
        let q = q
            .clone()
            .slice([queries[0]..queries[1], 0..heads, 0..head_dim])
            .swap_dims(0, 1);
        let group = heads / kv_heads;
        let repeat = |x: &Tensor<3>| {
            let x = x
                .clone()
                .slice([keys[0]..keys[1], 0..kv_heads, 0..head_dim])
                .swap_dims(0, 1);
            let x = x.unsqueeze_dim::<4>(1).expand([kv_heads, group, key_count, head_dim]);
            x.reshape([heads, key_count, head_dim])
        };
        let mut hidden = vec![false; query_count * key_count];
        for (query, row) in hidden.chunks_mut(key_count).enumerate() {
            let position = key_count - query_count + query;
            for (key, hidden) in row.iter_mut().enumerate() {
                *hidden = key > position || layout.window.is_some_and(|window| key + window <= position);
            }
        }
        let distances = || {
            let position = |query: usize| (key_count - query_count + query) as f32;
            let rows = (0..query_count).flat_map(|query| (0..key_count).map(move |key| key as f32 - position(query)));
            TensorData::new(rows.collect::<Vec<f32>>(), [1, query_count, key_count])
        };
        let hidden = Tensor::<3, Bool>::from_data(TensorData::new(hidden, [1, query_count, key_count]), &device);
        let scores = q.matmul(repeat(&k).swap_dims(1, 2)) * layout.scale;
        let scores = match layout.softcap {
            Some(cap) => (scores.cast(DType::F32) / cap).tanh() * cap,
            None => scores.cast(DType::F32),
        };
        let scores = match &layout.slopes {
            Some(slopes) => {
                let slopes = TensorData::new(slopes.to_vec(), [heads, 1, 1]);
                let slopes = Tensor::<3>::from_data(slopes, (&device, DType::F32));
                scores + slopes * Tensor::<3>::from_data(distances(), (&device, DType::F32))
            }
            None => scores,
        };
        let scores = scores.mask_fill(hidden.expand([heads, query_count, key_count]), f32::NEG_INFINITY);
        let probabilities = activation::softmax(scores, 2).cast(dtype);
        let output = probabilities.matmul(repeat(&v)).swap_dims(0, 1);
        outputs.push(output.reshape([query_count, heads * head_dim]));
    }
    Tensor::cat(outputs, 0)
}

/// Attention as an operation of a backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub trait AttentionOps: Backend {
    /// The output `[queries, heads * head_dim]`.
    fn attention_forward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spans: Spans,
    ) -> FloatTensor<Self>;
}

/// Attention with a backward pass.
pub trait AttentionBackward: AttentionOps {
    /// The output, and the log-sum-exp of the scores `[heads, queries]` for the backward pass.
    fn attention_saving(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spans: &Spans,
    ) -> [FloatTensor<Self>; 2];

    /// The gradients of q, k and v out of the gradient of the output.
    fn attention_backward(gradient: FloatTensor<Self>, saved: Saved<Self>, spans: &Spans) -> [FloatTensor<Self>; 3];
}

/// What the backward pass keeps.
#[derive(Clone, Debug)]
pub struct Saved<B: Backend> {
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    output: FloatTensor<B>,
    log_sums: FloatTensor<B>,
}

impl AttentionOps for Flex {
    fn attention_forward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spans: Spans,
    ) -> FloatTensor<Self> {
        let [output, _] = Self::attention_saving(q, k, v, &spans);
        output
    }
}

impl AttentionBackward for Flex {
    fn attention_saving(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spans: &Spans,
    ) -> [FloatTensor<Self>; 2] {
        let (q, k, v) = (dense(q), dense(k), dense(v));
        let [queries, heads, head_dim] = dimensions(&q);
        let (output, log_sums) = kernel::forward(values(&q), values(&k), values(&v), spans);
        [
            tensor(output, [queries, heads * head_dim]),
            tensor(log_sums, [heads, queries]),
        ]
    }

    fn attention_backward(gradient: FloatTensor<Self>, saved: Saved<Self>, spans: &Spans) -> [FloatTensor<Self>; 3] {
        let Saved {
            q,
            k,
            v,
            output,
            log_sums,
        } = saved;
        let (gradient, q, k, v) = (dense(gradient), dense(q), dense(k), dense(v));
        let (query_shape, key_shape) = (dimensions::<3>(&q), dimensions::<3>(&k));
        let (q, k, v) = kernel::backward(
            values(&gradient),
            values(&q),
            values(&k),
            values(&v),
            values(&output),
            values(&log_sums),
            spans,
        );
        [tensor(q, query_shape), tensor(k, key_shape), tensor(v, key_shape)]
    }
}

impl<B: AttentionBackward, C: CheckpointStrategy> AttentionOps for Autodiff<B, C> {
    fn attention_forward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spans: Spans,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct AttentionStep;
        impl<B: AttentionBackward> Backward<B, 3> for AttentionStep {
            type State = (Saved<B>, Spans);

            fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
                let gradient = grads.consume::<B>(&ops.node);
                let (saved, spans) = ops.state;
                let gradients = B::attention_backward(gradient, saved, &spans);
                for (node, gradient) in ops.parents.into_iter().zip(gradients) {
                    if let Some(node) = node {
                        grads.register::<B>(node.id, gradient);
                    }
                }
            }
        }
        let prepared = AttentionStep
            .prepare::<C>([q.node(), k.node(), v.node()])
            .compute_bound()
            .stateful();
        let (q, k, v) = (q.into_primitive(), k.into_primitive(), v.into_primitive());
        match prepared {
            OpsKind::Tracked(prepared) => {
                let [output, log_sums] = B::attention_saving(q.clone(), k.clone(), v.clone(), &spans);
                let saved = Saved {
                    q,
                    k,
                    v,
                    output: output.clone(),
                    log_sums,
                };
                prepared.finish((saved, spans), output)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::attention_forward(q, k, v, spans)),
        }
    }
}

#[cfg(test)]
mod tests;
