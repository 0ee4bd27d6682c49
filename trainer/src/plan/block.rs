//! What one block holds while it computes, per token: read off the operations' `Saved` states in `ops/`.

use interlingua_checkpoints::config::ModelConfig;

use super::settings::Settings;
use super::shapes::{BlockShape, LinearShape};

/// Numbers per token of a block's graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Graph {
    /// Kept until the backward pass, in the format of the computation, the block's input apart.
    pub kept: u64,
    /// Kept in f32: the inverse roots of norms, the log-sums of attention.
    pub kept_f32: u64,
    /// What the backward pass holds on top at its highest moment, its first operation: the gradient of the output, and the
    /// gradient of the MLP's inner state with what dropout makes of it.
    pub backward: u64,
    /// Of `kept`, what does not run in tiles of tokens: queries, keys, values and the attention's output.
    pub whole: u64,
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
}

impl Sizes {
    /// Those of a model.
    pub fn of(config: &ModelConfig) -> Self {
        Self {
            hidden: config.hidden_size as u64,
            inner: config.intermediate_size as u64,
            queries: (config.num_attention_heads * config.head_dim) as u64,
            keys: (config.num_key_value_heads * config.head_dim) as u64,
            heads: config.num_attention_heads as u64,
        }
    }

    /// What a block holds at most in a forward pass without a graph, its input apart: the residual stream, and gate, up and
    /// their product.
    pub fn forward(&self) -> u64 {
        self.hidden + 3 * self.inner
    }

    /// What a block that runs in tiles holds of all tokens at its highest moment, the backward pass of attention: the gradients
    /// of output and input; queries and output with their gradients; keys and values with theirs.
    pub fn tiled_backward(&self) -> u64 {
        2 * self.hidden + 4 * self.queries + 4 * self.keys
    }

    /// The same in a forward pass without a graph: the block's output, queries, keys, values and the attention's output.
    pub fn tiled_forward(&self) -> u64 {
        self.hidden + 2 * self.queries + 2 * self.keys
    }
}

/// The graph of a block. `input_tracked`: something below the block is trained.
pub fn graph(config: &ModelConfig, block: &BlockShape, settings: &Settings, input_tracked: bool) -> Graph {
    let Sizes {
        hidden,
        inner,
        queries,
        keys,
        heads,
    } = Sizes::of(config);
    let mut graph = Graph::default();
    let [q, k, v, o, gate, up, down] = block.linears.map(|shape| Linear { shape, settings });
    // A state is kept where a gradient flows through it, from the first place on that something is trained in or below.
    let normed = input_tracked || block.norms_trained[0];
    graph.kept_f32 += u64::from(normed);
    graph.kept += when([q, k, v].iter().any(Linear::keeps_input), hidden);
    graph.kept += q.own() + k.own() + v.own();
    let attention = normed || block.norms_trained[1] || [q, k, v].iter().any(|linear| linear.shape.trains());
    if attention {
        graph.whole = 2 * queries + 2 * keys;
        graph.kept_f32 += heads;
    } else if o.keeps_input() {
        graph.whole = queries;
    }
    graph.kept += graph.whole;
    if config.qk_norm && attention {
        graph.kept += queries + keys;
        graph.kept_f32 += heads + config.num_key_value_heads as u64;
    }
    graph.kept += o.own();
    let middle = attention || o.shape.trains() || block.norms_trained[2];
    graph.kept += when(middle, hidden);
    graph.kept_f32 += u64::from(middle);
    graph.kept += when(gate.keeps_input() || up.keeps_input(), hidden);
    graph.kept += gate.own() + up.own();
    graph.kept += when(middle || gate.shape.trains() || up.shape.trains(), 2 * inner);
    graph.kept += when(down.keeps_input(), inner);
    graph.kept += down.own();
    graph.backward = hidden + inner * (1 + down.backward_copies());
    if let Some(bottleneck) = block.bottleneck {
        // The normed output, the inner state before and after its nonlinearity, the output before the adapter, and the mask.
        graph.kept += 2 * hidden + 2 * bottleneck as u64 + when(settings.dropout, hidden);
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

    /// Whether the operation keeps its input for the gradient of its weight or adapter. The input itself is not kept where the
    /// adapter reads a copy of it: after dropout in a DoRA, by language in a routed adapter.
    fn keeps_input(&self) -> bool {
        let reads_a_copy = self.settings.routed || (self.settings.dora && self.settings.dropout);
        self.shape.trained || (self.has_adapter() && !reads_a_copy)
    }

    /// What it keeps beside its input: the low-rank state; the copies above, with the mask that made them; a DoRA's product
    /// before it is rescaled.
    fn own(&self) -> u64 {
        if !self.has_adapter() {
            return 0;
        }
        let (inputs, outputs) = (self.shape.inputs as u64, self.shape.outputs as u64);
        let Settings {
            routed, dora, dropout, ..
        } = *self.settings;
        let copies = match (routed || dora, dropout) {
            (true, true) => 2 * inputs,
            (true, false) if routed => inputs,
            _ => 0,
        };
        self.shape.rank as u64 + copies + when(dora, outputs)
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
