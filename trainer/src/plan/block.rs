//! What one block holds while it computes, per token: read off the operations' `Saved` states in `ops/`.

use interlingua_checkpoints::blocks::{BlockConfig, MlpConfig};
use interlingua_checkpoints::config::ModelConfig;

use super::plain;
use super::settings::{DeviceKind, Settings};
use super::shapes::{BlockShape, LinearShape};

/// Numbers per token of a block's graph, its input apart, in the format of the computation unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Graph {
    /// Kept of what stands before the attention, beside what the attention keeps.
    pub before: u64,
    /// Kept by the attention: queries, keys, values and its output.
    pub attention: u64,
    /// Kept of what stands behind it.
    pub behind: u64,
    /// Kept in f32: the inverse roots of norms, the log-sums of attention.
    pub kept_f32: u64,
    /// What the backward pass holds on top at its highest moment, its first operation: the gradient of the output, and the
    /// gradient of the MLP's inner state with what dropout makes of it.
    pub backward: u64,
    /// Whether a gradient flows through what stands before the attention.
    pub reaches_before: bool,
}

impl Graph {
    /// All that is kept but for the part in f32.
    pub fn kept(&self) -> u64 {
        self.before + self.attention + self.behind
    }
}

/// Sizes of a block's states.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sizes {
    /// Hidden state.
    pub hidden: u64,
    /// Inner state of the MLP that a token passes through; of all its experts where there are several.
    pub inner: u64,
    /// Whether the MLP has a gate.
    pub gated: bool,
    /// What a token's experts read and give, beside the hidden state: 0 without experts.
    pub gathered: u64,
    /// Queries.
    pub queries: u64,
    /// Keys; values are as many.
    pub keys: u64,
    /// Heads of queries.
    pub heads: u64,
    /// Heads of keys.
    pub kv_heads: u64,
    /// Tokens of a sequence.
    pub sequence: u64,
    /// Whether operations are made of plain tensor operations; see `plan/plain.rs`.
    pub plain: bool,
}

impl Sizes {
    /// The largest of a model's blocks under the settings of a run.
    pub fn of(config: &ModelConfig, settings: &Settings) -> Self {
        let sizes = config
            .blocks
            .iter()
            .map(|block| Self::of_block(block, config, settings));
        sizes
            .reduce(|one, other| Self {
                inner: one.inner.max(other.inner),
                gated: one.gated || other.gated,
                gathered: one.gathered.max(other.gathered),
                queries: one.queries.max(other.queries),
                keys: one.keys.max(other.keys),
                heads: one.heads.max(other.heads),
                kv_heads: one.kv_heads.max(other.kv_heads),
                ..one
            })
            .unwrap_or_default()
    }

    /// Those of one block.
    pub fn of_block(block: &BlockConfig, config: &ModelConfig, settings: &Settings) -> Self {
        let hidden = config.hidden_size as u64;
        let experts = block.mlp.experts().map_or(0, |experts| experts.top_k);
        let inner = experts.max(1) * block.mlp.inner_sizes().into_iter().max().unwrap_or(0);
        let gated = !matches!(block.mlp, MlpConfig::Plain { .. });
        let attention = &block.attention;
        Self {
            hidden,
            inner: inner as u64,
            gated,
            // The gathered inputs; the outputs, and the same weighted and in the order of tokens.
            gathered: 4 * hidden * experts as u64,
            queries: attention.query_size() as u64,
            keys: attention.key_size() as u64,
            heads: attention.heads as u64,
            kv_heads: attention.kv_heads as u64,
            sequence: settings.row_tokens.div_ceil(settings.sequences) as u64,
            plain: settings.is_plain(),
        }
    }

    /// What stands behind the attention holds at most in a forward pass without a graph, its inputs apart: the residual stream,
    /// and gate, up and their product.
    fn behind(&self) -> u64 {
        if self.plain {
            plain::behind(self)
        } else {
            self.hidden + self.gathered + if self.gated { 3 } else { 2 } * self.inner
        }
    }

    /// What the attention of a block that is computed again keeps: queries, keys, values and its output.
    fn attention(&self) -> u64 {
        if self.plain {
            plain::attention(self) + 2 * self.keys
        } else {
            2 * self.queries + 2 * self.keys
        }
    }

    /// What a block holds at most of so many tokens in a forward pass without a graph, its input apart; it runs in tiles.
    pub fn forward(&self, tokens: u64, tile: u64) -> u64 {
        let Self {
            hidden, queries, keys, ..
        } = self;
        let attention = tokens * (2 * queries + 2 * keys);
        if tokens <= tile {
            return attention.max(tokens * (queries + self.behind()));
        }
        // The tiles' outputs add up beside the attention's; a tile's inputs are copies.
        let behind = highest(tokens, tile, |done, tile| {
            tokens * queries + done * hidden + tile * (self.behind() + hidden + queries)
        });
        // Tiles are joined into a new tensor.
        let joined = tokens * (queries + 2 * hidden);
        attention.max(behind).max(joined)
    }

    /// What the backward pass of a block that is computed again holds at most of so many tokens, its input apart: the gradient of
    /// its output first, and then that of its input.
    pub fn backward_again(&self, graph: &Graph, tokens: u64, tile: u64) -> u64 {
        let Self {
            hidden, queries, keys, ..
        } = self;
        let kept = self.attention();
        let behind = if tokens <= tile {
            tokens * (kept + graph.behind + graph.backward)
        } else {
            // The gradient of the output is there whole; those of the block's input and of the attention's output add up by tiles,
            // whose inputs are copies.
            highest(tokens, tile, |done, tile| {
                let copies = hidden + queries;
                tokens * (kept + hidden) + done * (hidden + queries) + tile * (graph.behind + graph.backward + copies)
            })
        };
        if !graph.reaches_before {
            return behind;
        }
        // The gradient along the residual connection; that of the attention's output, and those of queries, keys and values.
        let scores = if self.plain { plain::score_gradients(self) } else { 0 };
        let attention = tokens * (hidden + kept + 2 * queries + 2 * keys) + scores;
        // The gradients of queries, keys and values, of the input twice, and the graph of a tile with its outputs side by side.
        let before = highest(tokens, tile, |done, tile| {
            tokens * (hidden + queries + 2 * keys)
                + done * hidden
                + tile * (graph.before + 2 * hidden + 3 * (queries + 2 * keys))
        });
        behind.max(attention).max(before)
    }
}

/// The highest of all tiles, by the tokens of the tiles that are done and those of the tile itself.
fn highest(tokens: u64, tile: u64, held: impl Fn(u64, u64) -> u64) -> u64 {
    let (whole, rest) = (tokens / tile, tokens % tile);
    let last_whole = if whole == 0 { 0 } else { held((whole - 1) * tile, tile) };
    last_whole.max(held(whole * tile, rest))
}

/// The graph of a block. `input_tracked`: something below the block is trained.
pub fn graph(
    config: &ModelConfig,
    (of, block): (&BlockConfig, &BlockShape),
    settings: &Settings,
    input_tracked: bool,
) -> Graph {
    let sizes = Sizes::of_block(of, config, settings);
    if settings.is_plain() {
        return plain::graph(&sizes, block, settings);
    }
    let Sizes {
        hidden,
        inner,
        queries,
        keys,
        heads,
        kv_heads,
        ..
    } = sizes;
    let mut graph = Graph::default();
    let layer = |shape: &LinearShape| Linear {
        shape: *shape,
        settings,
    };
    let projections: Vec<Linear> = block.projections.iter().map(layer).collect();
    let first: Vec<Linear> = block.mlp.iter().map(layer).collect();
    let (o, down) = (layer(&block.output), layer(&block.down));
    let experts = block.experts as u64;
    // A state is kept where a gradient flows through it, from the first place on that something is trained in or below.
    let normed = input_tracked || block.norms_trained[0];
    graph.kept_f32 += u64::from(normed);
    graph.before += when(projections.iter().any(Linear::keeps_input), hidden);
    graph.before += projections.iter().map(Linear::own).sum::<u64>();
    let attention = normed || block.norms_trained[1] || block.projections.iter().any(LinearShape::trains);
    graph.reaches_before = attention;
    if attention {
        graph.attention = 2 * queries + 2 * keys;
        graph.kept_f32 += heads;
    } else if o.keeps_input() {
        graph.attention = queries;
    }
    if of.attention.qk_norm.is_some() && attention {
        graph.before += queries + keys;
        graph.kept_f32 += heads + kv_heads;
    }
    let middle = attention || o.shape.trains() || block.norms_trained[2];
    // Side by side, the MLP's norm reads the block's input.
    graph.behind += o.own() + when(middle && !of.parallel, hidden);
    graph.kept_f32 += u64::from(middle);
    let outputs = [&of.attention_output_norm, &of.mlp_output_norm];
    let normed_outputs = outputs.into_iter().flatten().count() as u64;
    graph.behind += when(middle, normed_outputs * hidden);
    graph.kept_f32 += when(middle, normed_outputs);
    graph.behind += when(first.iter().any(Linear::keeps_input), experts * hidden);
    graph.behind += experts * first.iter().map(Linear::own).sum::<u64>();
    let tracked = middle || block.mlp.iter().any(LinearShape::trains);
    graph.behind += when(tracked, if sizes.gated { 2 } else { 1 } * inner);
    graph.behind += when(down.keeps_input(), inner);
    graph.behind += experts * down.own();
    // What experts give, each and weighted, in both orders.
    graph.behind += when(tracked && block.router.is_some(), sizes.gathered);
    graph.backward = hidden + inner * (1 + down.backward_copies());
    if let Some(bottleneck) = block.bottleneck {
        // The normed output, the inner state before and after its nonlinearity, and the output before the adapter.
        graph.behind += 2 * hidden + 2 * bottleneck as u64;
    }
    graph
}

fn when(condition: bool, numbers: u64) -> u64 {
    if condition { numbers } else { 0 }
}

/// A linear layer under the settings of a run.
#[derive(Clone, Copy)]
struct Linear<'a> {
    shape: LinearShape,
    settings: &'a Settings,
}

impl Linear<'_> {
    fn has_adapter(&self) -> bool {
        self.shape.rank > 0
    }

    /// Whether the adapter reads a copy of the input: after dropout where that is an operation of its own, as in a DoRA and on a
    /// GPU, and by language in a routed adapter.
    fn reads_a_copy(&self) -> bool {
        let Settings {
            routed, dora, dropout, ..
        } = *self.settings;
        routed || (dropout && (dora || self.settings.device == DeviceKind::Cuda))
    }

    /// Whether the operation keeps its input for the gradient of its weight or adapter.
    fn keeps_input(&self) -> bool {
        self.shape.trained || (self.has_adapter() && !self.reads_a_copy())
    }

    /// What it keeps beside its input: the low-rank state; the copy above; a DoRA's product before it is rescaled.
    fn own(&self) -> u64 {
        if !self.has_adapter() {
            return 0;
        }
        let (inputs, outputs) = (self.shape.inputs as u64, self.shape.outputs as u64);
        let copies = when(self.reads_a_copy(), inputs);
        self.shape.rank as u64 + copies + when(self.settings.dora, outputs)
    }

    /// How many copies of its input's gradient a backward pass holds on top of the gradient: the path through dropout, before
    /// and after the mask.
    fn backward_copies(&self) -> u64 {
        if self.has_adapter() && self.settings.dropout {
            2
        } else {
            0
        }
    }
}
