//! The moments of a run at which memory is highest, and the parts at each.

use interlingua_checkpoints::config::ModelConfig;
use interlingua_recipes::Offload;

use super::block::{Graph, Sizes, graph};
use super::plain::PRODUCT;
use super::settings::{DeviceKind, Settings};
use super::shapes::{BaseParameter, Place, Shapes};
use super::shares::{BlockShare, Share, piece};
use super::weights::{self, F32, Gathered, WeightBytes};
use super::{DeviceMemory, HostMemory};
use crate::engine::head::chunk_rows_of;
use crate::optimizers::moments::MomentFormat;

/// What a thread that computes holds beside the buffer that the matrix multiplication packs into, which is as large as the
/// second-level cache: a tile of attention scores with its gradients.
const SCORES: u64 = 192 << 10;
/// Numbers of a column that the matrix multiplication packs at a time, and the most that it packs.
const PACKED_COLUMN: u64 = 512;
const PACKED_MOST: u64 = 64 << 20;
/// Bytes of the tile that a weight is decoded into on a CPU, at most.
const DECODED: u64 = 8 << 20;
/// Bytes of a token in a micro-batch and its targets: ids, labels and positions, twice, a key of dropout, and targets.
const BATCH_TOKEN: u64 = 45;

/// What a moment holds beside weights, moments of the optimizer and buffers.
#[derive(Clone, Copy, Debug, Default)]
struct Moment {
    gradients: u64,
    block_inputs: u64,
    activations: u64,
    logits: u64,
    other: u64,
}

impl Moment {
    fn total(&self) -> u64 {
        self.gradients + self.block_inputs + self.activations + self.logits + self.other
    }
}

/// Memory by part under these settings.
pub fn memory(config: &ModelConfig, shapes: &Shapes, settings: &Settings) -> (DeviceMemory, HostMemory) {
    let weights = weights::base(shapes, settings);
    let step = Step::new(config, shapes, settings, weights);
    let adapter: u64 = shapes.adapter.iter().map(|elements| F32 * elements).sum();
    // A copy of the model shares what is frozen, and keeps what is trained as it was.
    let copies = settings.initial_copies * F32 * step.share.kept;
    let optimizer = weights::optimizer(shapes, settings);
    let workspace = step.workspace();
    let mut device = DeviceMemory {
        weights: weights.device + settings.other_weights + copies,
        adapter,
        optimizer,
        workspace,
        ..DeviceMemory::default()
    };
    let mut highest = 0;
    for moment in step.moments() {
        highest = highest.max(moment.total());
        device.gradients = device.gradients.max(moment.gradients);
        device.block_inputs = device.block_inputs.max(moment.block_inputs);
        device.activations = device.activations.max(moment.activations);
        device.logits = device.logits.max(moment.logits);
    }
    device.total = device.weights + adapter + optimizer + workspace + highest;
    let mut host = HostMemory {
        data: settings.held,
        block_inputs: step.host_block_inputs(),
        weights: weights.host,
        total: 0,
    };
    host.total = host.data + host.block_inputs + host.weights;
    (device, host)
}

/// A step under its settings.
struct Step<'a> {
    config: &'a ModelConfig,
    shapes: &'a Shapes,
    settings: &'a Settings,
    sizes: Sizes,
    graphs: Vec<Graph>,
    lowest: usize,
    weights: WeightBytes,
    share: Share,
    block_shares: Vec<BlockShare>,
    gathered: Vec<Gathered>,
}

impl<'a> Step<'a> {
    fn new(config: &'a ModelConfig, shapes: &'a Shapes, settings: &'a Settings, weights: WeightBytes) -> Self {
        let lowest = shapes.lowest();
        let blocks = shapes.blocks.iter().enumerate();
        let graphs = blocks.map(|(index, block)| {
            if index < lowest {
                Graph::default()
            } else {
                let below = shapes.trains_stem || index > lowest;
                graph(config, (&config.blocks[index], block), settings, below)
            }
        });
        Self {
            config,
            shapes,
            settings,
            sizes: Sizes::of(config, settings),
            graphs: graphs.collect(),
            lowest,
            weights,
            share: Share::of(shapes, settings),
            block_shares: BlockShare::of(shapes, settings),
            gathered: weights::gathered(shapes, settings),
        }
    }

    /// Bytes of so many numbers per token, for these tokens.
    fn states(&self, tokens: u64, numbers: u64) -> u64 {
        tokens * numbers * self.settings.number
    }

    fn graph_bytes(&self, tokens: u64, block: usize) -> u64 {
        let graph = &self.graphs[block];
        self.states(tokens, graph.kept()) + F32 * tokens * graph.kept_f32 + self.casts(block)
    }

    /// What is trained, in the format of the computation where that is another.
    fn casts(&self, block: usize) -> u64 {
        if self.settings.number == F32 {
            0
        } else {
            self.settings.number * self.shapes.blocks[block].trained_elements
        }
    }

    /// The inputs of blocks from the lowest one to before `end`.
    fn block_inputs(&self, tokens: u64, end: usize) -> u64 {
        let number = if self.settings.recompute {
            self.settings.block_input_number
        } else {
            self.settings.number
        };
        let count = end.saturating_sub(self.lowest) as u64;
        count * tokens * self.sizes.hidden * number
    }

    /// Whether block inputs live in host memory.
    fn offloads(&self) -> bool {
        self.settings.recompute
            && self.settings.offload == Offload::Activations
            && self.settings.device == DeviceKind::Cuda
    }

    fn host_block_inputs(&self) -> u64 {
        if self.offloads() {
            self.block_inputs(self.settings.tokens(), self.graphs.len())
        } else {
            0
        }
    }

    /// The block inputs that lie on the device; of those in host memory, the one that computes and the next.
    fn device_block_inputs(&self, tokens: u64, end: usize) -> u64 {
        let all = self.block_inputs(tokens, end);
        if self.offloads() {
            all.min(self.block_inputs(tokens, self.lowest + 2))
        } else {
            all
        }
    }

    /// Buffers of operations, and what all micro-batches of a step read: tokens, targets and rotations.
    fn workspace(&self) -> u64 {
        let settings = self.settings;
        let rotations = F32 * self.config.ropes.iter().map(|rope| rope.dimensions as u64).sum::<u64>();
        let all_tokens = settings.tokens() * settings.accumulation as u64;
        match settings.device {
            DeviceKind::Cpu => {
                let columns = self.columns().max(self.largest_trained_rows());
                let packed_columns = PACKED_COLUMN * F32 * columns;
                settings.threads * (settings.cache + SCORES)
                    + packed_columns.min(PACKED_MOST)
                    + (F32 * self.weights.decoded).min(DECODED)
                    + self.row_norms()
                    + self.product()
                    + all_tokens.min(settings.all_tokens) * (rotations + BATCH_TOKEN)
            }
            DeviceKind::Cuda => {
                settings.number * self.weights.decoded + all_tokens * (rotations + F32) + self.row_norms()
            }
        }
    }

    /// Tokens of a matrix product, at most.
    fn columns(&self) -> u64 {
        let tokens = self.settings.tokens();
        if self.settings.recompute {
            tokens.min(self.settings.tile())
        } else {
            tokens
        }
    }

    /// What a product without a kernel makes of the largest weight of a block.
    fn product(&self) -> u64 {
        if self.settings.is_plain() {
            PRODUCT * self.largest_linear()
        } else {
            0
        }
    }

    /// The largest linear layer of a block, in numbers.
    fn largest_linear(&self) -> u64 {
        let linears = self
            .shapes
            .base
            .iter()
            .filter(|parameter| parameter.place == Place::BlockLinear);
        linears.map(BaseParameter::elements).max().unwrap_or(0)
    }

    /// What the row norms of a DoRA's weight take: its squares in f32.
    fn row_norms(&self) -> u64 {
        if self.settings.dora {
            F32 * self.largest_linear()
        } else {
            0
        }
    }

    /// Rows of the largest weight that gradients are computed of.
    fn largest_trained_rows(&self) -> u64 {
        let trained = self.shapes.base.iter().filter(|parameter| parameter.trained);
        let rows = trained
            .filter(|parameter| parameter.shape[0] > 1)
            .map(|parameter| parameter.shape[0] as u64);
        rows.max().unwrap_or(0)
    }

    fn moments(&self) -> Vec<Moment> {
        let settings = self.settings;
        let all_gradients = F32 * self.share.kept;
        // The gradients of micro-batches before this one.
        let before = if settings.accumulation > 1 { all_gradients } else { 0 };
        let mut moments = vec![Moment {
            gradients: all_gradients,
            ..Moment::default()
        }];
        if settings.world > 1 {
            moments.extend(self.processes_meet());
        }
        moments.extend(self.evaluation());
        if settings.checkpoints {
            moments.push(self.checkpoint());
        }
        moments.extend(self.head(settings.tokens(), before));
        moments.extend(self.backward(settings.tokens(), before, self.graphs.len()));
        if settings.auxiliary_tokens > 0 {
            let tokens = settings.auxiliary_tokens as u64;
            moments.extend(self.backward(tokens, all_gradients, settings.auxiliary_blocks));
        }
        if self.shapes.trains_embedding {
            moments.push(self.embedding(all_gradients));
        }
        moments
    }

    /// The end of a step of several processes: all gradients, and a bucket of them as it is sent and as it comes; and, where each
    /// process updates pieces, a bucket of new values, as it came and as parameters.
    fn processes_meet(&self) -> [Moment; 2] {
        let Share {
            kept, updated, bucket, ..
        } = self.share;
        let values = if self.settings.moment_pieces() > 1 {
            2 * bucket
        } else {
            0
        };
        [
            Moment {
                gradients: F32 * (kept + 2 * bucket),
                ..Moment::default()
            },
            Moment {
                gradients: F32 * updated,
                other: F32 * values,
                ..Moment::default()
            },
        ]
    }

    /// A block's weights on their way from all processes: as they came, beside what they become.
    fn comes_together(&self, tokens: u64, block: usize, gradients: u64) -> Option<Moment> {
        let bytes = self.gathered[block].bytes;
        (bytes > 0).then(|| Moment {
            gradients,
            block_inputs: self.device_block_inputs(tokens, block + 1),
            activations: self.states(tokens, 2 * self.sizes.hidden),
            other: bytes,
            ..Moment::default()
        })
    }

    /// A reference at work, and the head: all that was kept, the last hidden state with its gradient, and a chunk of logits.
    fn head(&self, tokens: u64, before: u64) -> [Moment; 2] {
        let blocks = self.graphs.len();
        let kept = if self.settings.recompute {
            0
        } else {
            (self.lowest..blocks).map(|block| self.graph_bytes(tokens, block)).sum()
        };
        let (logits, trained) = self.logits(tokens);
        // The input of the final norm and its output; the gradient of that.
        let states = self.states(tokens, 2 * self.sizes.hidden);
        let hidden_gradient = self.states(tokens, self.sizes.hidden);
        let reference = Moment {
            gradients: before,
            block_inputs: self.device_block_inputs(tokens, blocks),
            activations: kept
                + states
                + if self.settings.reference {
                    self.forward(tokens)
                } else {
                    0
                },
            ..Moment::default()
        };
        let own = Moment {
            gradients: before + trained,
            activations: kept + states + hidden_gradient,
            logits,
            ..reference
        };
        [reference, own]
    }

    /// A chunk of logits at its highest moment, and the gradient of the head's own weight.
    fn logits(&self, tokens: u64) -> (u64, u64) {
        let settings = self.settings;
        let (vocabulary, hidden) = (self.config.vocab_size as u64, self.sizes.hidden);
        let rows = (chunk_rows_of(self.config.vocab_size) as u64).min(tokens);
        let logits = rows * vocabulary * F32;
        let states = self.states(rows, 2 * hidden);
        let has_graph = self.shapes.head.trains();
        // What a bound makes of the logits is kept for its gradient.
        let bent = if self.config.head.softcap.is_some() { 2 } else { 0 };
        let gradient = if self.shapes.head.trained {
            F32 * vocabulary * hidden
        } else {
            0
        };
        let decoded = F32 * self.weights.decoded_head;
        match self.settings.device {
            // Three times in f32: the logits, their softmax and the targets. Or the product: the weight in f32 and the logits twice.
            DeviceKind::Cpu if self.settings.is_plain() => {
                let product = PRODUCT * (rows * vocabulary + vocabulary * hidden);
                ((3 * logits).max(product) + states, gradient)
            }
            // The weight's gradient is made when the bound's is done.
            DeviceKind::Cpu if has_graph => {
                let bending = (2 * logits).max((1 + bent) * logits);
                (bending.max(logits + gradient) - gradient + states, gradient)
            }
            DeviceKind::Cpu => ((1 + bent) * logits + states + decoded.min(DECODED), 0),
            // Their gradient takes the place of the logits, unless a graph holds these.
            DeviceKind::Cuda => {
                let logits = logits / F32 * settings.number;
                let decoded = settings.number * self.weights.decoded_head;
                (
                    logits * (bent + if has_graph { 2 } else { 1 }) + states + decoded,
                    gradient,
                )
            }
        }
    }

    /// The backward pass at each block, from the highest down: what is kept of the blocks below it, its own graph and what the
    /// backward pass adds. Gradients of its weights are added to those of earlier micro-batches when it is done.
    fn backward(&self, tokens: u64, before: u64, last: usize) -> Vec<Moment> {
        let mut done = 0;
        let hidden = self.states(tokens, self.sizes.hidden);
        let blocks = (self.lowest..last).rev().flat_map(|block| {
            let share = self.block_shares[block];
            let own = F32 * self.shapes.blocks[block].trained_elements;
            let stays = own - F32 * (share.whole - share.pieces);
            let graph = self.graphs[block];
            let activations = if self.settings.recompute {
                let again = self.sizes.backward_again(&graph, tokens, self.settings.tile());
                self.settings.number * again
                    + F32 * tokens * graph.kept_f32
                    + self.casts(block)
                    + self.block_input_copy(tokens)
            } else {
                let kept: u64 = (self.lowest..=block).map(|block| self.graph_bytes(tokens, block)).sum();
                kept + self.states(tokens, graph.backward)
            };
            let earlier = before.max(done);
            let gradients = earlier + own;
            done += stays;
            let computes = Moment {
                gradients,
                block_inputs: self.device_block_inputs(tokens, block + 1),
                // The last hidden state stays until the end of the pass.
                activations: activations + hidden,
                logits: 0,
                other: 0,
            };
            // Where processes keep pieces, the block's gradients are added up behind it, layer by layer; the gradient of its input is
            // there too.
            let adds_up = (share.layers > 0).then_some(Moment {
                gradients: gradients + F32 * share.largest,
                activations: 2 * hidden,
                ..computes
            });
            let together = self.comes_together(tokens, block, earlier);
            together.into_iter().chain([computes]).chain(adds_up)
        });
        blocks.collect()
    }

    /// A block's input in the format of the computation, where it is kept in another or elsewhere.
    fn block_input_copy(&self, tokens: u64) -> u64 {
        if self.offloads() || self.settings.block_input_number != self.settings.number {
            self.states(tokens, self.sizes.hidden)
        } else {
            0
        }
    }

    /// The gradient of the embedding, made in full before it is added to that of the head or of earlier micro-batches.
    fn embedding(&self, all_gradients: u64) -> Moment {
        let own = F32 * self.config.vocab_size as u64 * self.sizes.hidden;
        let settings = self.settings;
        let is_first = settings.accumulation == 1 && !self.config.tie_word_embeddings;
        Moment {
            gradients: if is_first { all_gradients } else { all_gradients + own },
            activations: self.states(settings.tokens(), 2 * self.sizes.hidden),
            ..Moment::default()
        }
    }

    /// The highest moment of a forward pass without a graph: a block at work, and its input.
    fn forward(&self, tokens: u64) -> u64 {
        self.states(tokens, self.sizes.hidden) + self.settings.number * self.sizes.forward(tokens, self.settings.tile())
    }

    /// A forward pass without a graph over a batch of an evaluation, and its logits.
    fn evaluation(&self) -> [Moment; 2] {
        let tokens = self.settings.evaluation_tokens as u64;
        [
            Moment {
                activations: self.forward(tokens),
                ..Moment::default()
            },
            Moment {
                activations: self.states(tokens, self.sizes.hidden),
                logits: self.logits(tokens).0,
                ..Moment::default()
            },
        ]
    }

    /// A tensor on its way into a checkpoint: its values as bytes, as numbers, and as bytes of the file. Codes of moments are
    /// written together.
    fn checkpoint(&self) -> Moment {
        let linears = self.shapes.trained_linears();
        let linears = linears.map(|elements| {
            if self.settings.spreads_blocks() {
                piece(elements, self.settings.world)
            } else {
                elements
            }
        });
        let largest = linears.chain(self.shapes.trained_elsewhere()).max().unwrap_or(0);
        let codes = match self.settings.moments {
            MomentFormat::EightBits => 2 * self.share.updated,
            MomentFormat::F32 | MomentFormat::Bf16 => 0,
        };
        match self.settings.device {
            DeviceKind::Cpu => Moment {
                other: 3 * F32 * largest + codes,
                ..Moment::default()
            },
            // That is in host memory.
            DeviceKind::Cuda => Moment::default(),
        }
    }
}
