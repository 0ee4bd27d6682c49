//! What one block holds while it computes, per token: read off the operations' `Saved` states in `ops/`.

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
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Hidden state.
    pub hidden: u64,
    /// Inner state of the MLP.
    pub inner: u64,
    /// Queries.
    pub queries: u64,
    /// Keys; values are as many.
    pub keys: u64,
    /// Heads of queries.
    pub heads: u64,
    /// Tokens of a sequence.
    pub sequence: u64,
    /// Whether operations are made of plain tensor operations; see `plan/plain.rs`.
    pub plain: bool,
}

impl Sizes {
    /// Those of a model under the settings of a run.
    pub fn of(config: &ModelConfig, settings: &Settings) -> Self {
        Self {
            hidden: config.hidden_size as u64,
            inner: config.intermediate_size as u64,
            queries: (config.num_attention_heads * config.head_dim) as u64,
            keys: (config.num_key_value_heads * config.head_dim) as u64,
            heads: config.num_attention_heads as u64,
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
            self.hidden + 3 * self.inner
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
pub fn graph(config: &ModelConfig, block: &BlockShape, settings: &Settings, input_tracked: bool) -> Graph {
    if settings.is_plain() {
        return plain::graph(&Sizes::of(config, settings), block, settings);
    }
    let Sizes {
        hidden,
        inner,
        queries,
        keys,
        heads,
        ..
    } = Sizes::of(config, settings);
    let mut graph = Graph::default();
    let [q, k, v, o, gate, up, down] = block.linears.map(|shape| Linear { shape, settings });
    // A state is kept where a gradient flows through it, from the first place on that something is trained in or below.
    let normed = input_tracked || block.norms_trained[0];
    graph.kept_f32 += u64::from(normed);
    graph.before += when([q, k, v].iter().any(Linear::keeps_input), hidden);
    graph.before += q.own() + k.own() + v.own();
    let attention = normed || block.norms_trained[1] || [q, k, v].iter().any(|linear| linear.shape.trains());
    graph.reaches_before = attention;
    if attention {
        graph.attention = 2 * queries + 2 * keys;
        graph.kept_f32 += heads;
    } else if o.keeps_input() {
        graph.attention = queries;
    }
    if config.qk_norm && attention {
        graph.before += queries + keys;
        graph.kept_f32 += heads + config.num_key_value_heads as u64;
    }
    let middle = attention || o.shape.trains() || block.norms_trained[2];
    graph.behind += o.own() + when(middle, hidden);
    graph.kept_f32 += u64::from(middle);
    graph.behind += when(gate.keeps_input() || up.keeps_input(), hidden);
    graph.behind += gate.own() + up.own();
    graph.behind += when(middle || gate.shape.trains() || up.shape.trains(), 2 * inner);
    graph.behind += when(down.keeps_input(), inner);
    graph.behind += down.own();
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
