//! The same as [`super::block`] for operations without a kernel, in bf16 or f16 on a CPU: read off their references in `ops/` and
//! what Burn keeps of each tensor operation. A number in f32 counts as two.

use super::block::{Graph, Sizes};
use super::settings::Settings;
use super::shapes::{BlockShape, LinearShape};

/// What is made of a weight while it is multiplied: a transposed copy, and that in f32. Bytes of a number.
pub(super) const PRODUCT: u64 = 6;

/// What the attention keeps: queries, keys and values repeated for each head, its output; of the scores, which exist whole, the
/// exponentials and what they were made of in f32, and the probabilities.
pub(super) fn attention(sizes: &Sizes) -> u64 {
    4 * sizes.queries + 5 * sizes.heads * sizes.sequence
}

/// The gradients of one sequence's scores and of what they were made of, in f32.
pub(super) fn score_gradients(sizes: &Sizes) -> u64 {
    6 * sizes.heads * sizes.sequence * sizes.sequence
}

/// Behind the attention without a graph: the residual stream and its norm in f32; gate, its sigmoid and their product, up, and all
/// of it once more.
pub(super) fn behind(sizes: &Sizes) -> u64 {
    3 * sizes.hidden + 2 * sizes.gathered + 5 * sizes.inner
}

/// The graph of a block. The norms keep their input in f32, the gated unit keeps gate, sigmoid, their product and up, and a linear
/// layer under dropout keeps the mask and what it makes of the input.
pub(super) fn graph(sizes: &Sizes, block: &BlockShape, settings: &Settings) -> Graph {
    let Sizes {
        hidden, inner, queries, ..
    } = *sizes;
    let copies = |linear: &LinearShape| {
        let has_adapter = linear.rank > 0;
        let dropped = if has_adapter && settings.dropout {
            2 * linear.inputs
        } else {
            0
        };
        let product = if settings.dora { linear.outputs } else { 0 };
        (dropped + product + linear.rank) as u64
    };
    let keeps = |linears: &[LinearShape], numbers: u64| {
        let keeps = |linear: &LinearShape| linear.trained || (linear.rank > 0 && !settings.dropout);
        if linears.iter().any(keeps) { numbers } else { 0 }
    };
    let experts = block.experts as u64;
    let of_all = |linears: &[LinearShape]| linears.iter().map(copies).sum::<u64>();
    Graph {
        before: 2 * hidden + of_all(&block.projections) + keeps(&block.projections, hidden),
        attention: attention(sizes),
        behind: 2 * hidden
            + 4 * inner
            + 2 * sizes.gathered
            + copies(&block.output)
            + experts * (of_all(&block.mlp) + copies(&block.down))
            + keeps(&[block.output], queries)
            + keeps(&block.mlp, experts * hidden)
            + keeps(&[block.down], inner),
        kept_f32: 0,
        // The gradients of the output and of what dropout left of the inner state, and a product in f32.
        backward: 3 * hidden + 4 * inner,
        reaches_before: true,
    }
}
