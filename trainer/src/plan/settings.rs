//! What a recipe says that memory depends on, for one kind of device.

use std::path::Path;

use interlingua_checkpoints::blocks::{BlockConfig, TensorRole};
use interlingua_checkpoints::config::ModelConfig;
use interlingua_checkpoints::dtype::Dtype as FileDtype;
use interlingua_checkpoints::hub;
use interlingua_checkpoints::packed::{Quantization, Scheme};
use interlingua_checkpoints::quantization_config::StoredQuantization;
use interlingua_recipes::{
    AdapterKind, AuxiliaryKind, BlockInputs, Dtype, Format, Init, Layer, Offload, Recipe, Recompute, ReferenceAdapter,
    Route, Strategy,
};

use super::time;
use crate::engine::tiles::{CPU_TILE, GPU_TILE};
use crate::memory::second_level_cache;
use crate::optimizers::moments::MomentFormat;
use crate::train::setup::quantization;

/// Tokens of a batch of an evaluation.
const EVALUATION_TOKENS: usize = 4096;
/// Options of a multiple-choice row, where nothing is known of them.
const OPTIONS: usize = 4;
/// Bytes of a second-level cache that nothing is known of.
const CACHE: u64 = 1 << 20;

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// The processor, whose memory is the host's.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

impl DeviceKind {
    /// The name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

/// What tokenised data says, where it is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataFacts {
    /// Tokens of the longest sample, all its sequences counted.
    pub longest: usize,
    /// Tokens of all samples.
    pub tokens: u64,
    /// Languages.
    pub languages: usize,
    /// Tokens of the samples that are held out.
    pub heldout_tokens: u64,
}

/// What memory depends on beside the shapes of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where the run computes.
    pub device: DeviceKind,
    /// Rows of a micro-batch.
    pub rows: usize,
    /// Sequences of a row: several for pairs of answers and for options.
    pub sequences: usize,
    /// Tokens of a sequence, at most.
    pub length: usize,
    /// Tokens of a row, at most.
    pub row_tokens: usize,
    /// Tokens of all data, where they were counted.
    pub all_tokens: u64,
    /// Tokens of a micro-batch of auxiliary pairs; 0 without one.
    pub auxiliary_tokens: usize,
    /// Blocks that these run through.
    pub auxiliary_blocks: usize,
    /// Micro-batches of a step.
    pub accumulation: usize,
    /// Tokens of a batch of an evaluation; 0 without one.
    pub evaluation_tokens: usize,
    /// Bytes of a number that is computed with.
    pub number: u64,
    /// Bytes of a number in the model's file.
    pub file_number: u64,
    /// Whether weights come from a file, which can be mapped, rather than from a random generator.
    pub from_file: bool,
    /// How frozen linear layers are packed; `None`: not at all.
    pub quantization: Option<Quantization>,
    /// The format of the moments.
    pub moments: MomentFormat,
    /// Whether the backward pass makes the graphs of blocks again.
    pub recompute: bool,
    /// Bytes of a number of a block's input that is kept.
    pub block_input_number: u64,
    /// What lives in host memory.
    pub offload: Offload,
    /// Whether the adapter's forward pass drops anything.
    pub dropout: bool,
    /// Whether the adapter is a DoRA.
    pub dora: bool,
    /// Whether each row passes through the adapter of its language.
    pub routed: bool,
    /// Whether the log-probabilities of a reference are asked for in each micro-batch.
    pub reference: bool,
    /// Copies of what is trained, as it was at step 0.
    pub initial_copies: u64,
    /// Bytes of a reference of its own, and of frozen adapters.
    pub other_weights: u64,
    /// Whether checkpoints are written between steps.
    pub checkpoints: bool,
    /// Processes that share the run; a plan is of one of them.
    pub world: usize,
    /// What each of several processes holds.
    pub strategy: Strategy,
    /// Threads that compute.
    pub threads: u64,
    /// Bytes of the second-level cache that a thread has.
    pub cache: u64,
    /// Floating-point operations a second.
    pub rate: f64,
    /// Bytes of the host that are held beside tensors: tokenizer, data.
    pub held: u64,
}

impl Settings {
    /// Those of a recipe for a model of this shape. With `recompute = "auto"` blocks keep their graphs; see
    /// [`super::Planner::decide`]. Of one process.
    pub fn of(
        recipe: &Recipe,
        config: &ModelConfig,
        file: FileDtype,
        device: DeviceKind,
        data: Option<DataFacts>,
    ) -> Self {
        let number = match (recipe.model.dtype, device) {
            (Dtype::F32, _) | (Dtype::Auto, DeviceKind::Cpu) => 4,
            (Dtype::Auto, DeviceKind::Cuda) if file == FileDtype::F32 => 4,
            _ => 2,
        };
        let objective = &recipe.objective;
        let keeps_close = objective
            .auxiliary
            .iter()
            .any(|auxiliary| matches!(auxiliary.kind, AuxiliaryKind::WordAlignment | AuxiliaryKind::Lens));
        let reference = recipe.reference.clone().unwrap_or_default();
        let compares = objective.kind.needs_reference();
        let shares = compares && reference.model.is_empty() && !reference.cache;
        let length = recipe.data.max_length;
        let whole = data.map_or(u64::MAX, |data| data.tokens);
        let row_tokens = row_tokens(recipe, data);
        let at_most = |tokens: usize| tokens.min(usize::try_from(whole).unwrap_or(usize::MAX));
        // Of tasks nothing is known here but that there are some.
        let evaluated = match data {
            _ if !recipe.eval.tasks.is_empty() => usize::MAX,
            Some(data) => usize::try_from(data.heldout_tokens).unwrap_or(usize::MAX),
            None if recipe.data.holdout > 0.0 => usize::MAX,
            None => 0,
        };
        let auxiliary = objective
            .auxiliary
            .iter()
            .filter(|auxiliary| auxiliary.source.is_some());
        let layers = auxiliary
            .clone()
            .map(|auxiliary| auxiliary.layer.unwrap_or(Layer::Middle));
        let auxiliary_blocks = layers
            .filter_map(|layer| layer.of(config.num_hidden_layers))
            .max()
            .unwrap_or(0);
        let auxiliary = auxiliary.map(|auxiliary| {
            let pairs = auxiliary.batch_size.unwrap_or(recipe.train.batch_size);
            at_most(2 * pairs * auxiliary.max_length.unwrap_or(length))
        });
        Self {
            device,
            rows: recipe.train.batch_size,
            sequences: sequences(recipe),
            length,
            row_tokens,
            all_tokens: whole,
            auxiliary_tokens: auxiliary.max().unwrap_or(0),
            auxiliary_blocks,
            accumulation: recipe.train.gradient_accumulation,
            evaluation_tokens: evaluated.min(EVALUATION_TOKENS.max(row_tokens)),
            number,
            file_number: file.bytes() as u64,
            quantization: quantization(recipe).or(config.quantization.map(stored)),
            moments: MomentFormat::of(&recipe.optimizer),
            recompute: recipe.memory.recompute == Recompute::Block,
            block_input_number: match recipe.memory.block_inputs {
                BlockInputs::Auto => number,
                BlockInputs::Bf16 => 2,
            },
            from_file: recipe.model.init == Init::Weights,
            offload: recipe.memory.offload,
            dropout: recipe.adapter.dropout > 0.0 && objective.dropout.unwrap_or(true),
            dora: recipe.adapter.kind == AdapterKind::Dora,
            routed: recipe.adapter.route == Route::Language,
            reference: compares && !reference.cache,
            initial_copies: u64::from(shares || keeps_close),
            other_weights: other_weights(recipe, number),
            checkpoints: checkpoints(recipe),
            world: 1,
            strategy: recipe.distributed.strategy,
            threads: threads(),
            cache: second_level_cache().unwrap_or(CACHE),
            rate: time::assumed_rate(device, threads()),
            held: 0,
        }
    }

    /// The same with other rows: so many, of sequences of so many tokens at most, and as many samples a step as before.
    #[must_use]
    pub fn with_rows(&self, rows: usize, length: usize) -> Self {
        Self {
            rows,
            length,
            row_tokens: self.row_tokens.min(self.sequences * length),
            accumulation: (self.rows * self.accumulation).div_ceil(rows),
            ..self.clone()
        }
    }

    /// Whether each process keeps only pieces of the weights of linear layers in blocks, which come together block by block.
    pub fn spreads_blocks(&self) -> bool {
        self.world > 1 && self.strategy == Strategy::Zero3
    }

    /// Among how many processes the optimizer's moments are cut.
    pub fn moment_pieces(&self) -> usize {
        match self.strategy {
            Strategy::Ddp => 1,
            Strategy::Zero1 | Strategy::Zero3 => self.world,
        }
    }

    /// Whether operations are made of plain tensor operations: the kernels of the CPU are for f32.
    pub fn is_plain(&self) -> bool {
        self.device == DeviceKind::Cpu && self.number != 4
    }

    /// Tokens that a block works on at a time where it runs in tiles.
    pub fn tile(&self) -> u64 {
        match self.device {
            DeviceKind::Cpu => CPU_TILE as u64,
            DeviceKind::Cuda => GPU_TILE as u64,
        }
    }

    /// Tokens of a micro-batch, at most.
    pub fn tokens(&self) -> u64 {
        (self.rows as u64 * self.row_tokens as u64).min(self.all_tokens)
    }
}

/// Sequences of a row: several for pairs of answers and for options.
fn sequences(recipe: &Recipe) -> usize {
    let reads = |format| recipe.data.sources.iter().any(|source| source.format == format);
    if reads(Format::Preference) || recipe.objective.kind.reads_pairs() {
        2
    } else if reads(Format::Choice) {
        OPTIONS
    } else {
        1
    }
}

/// Tokens of a row: of a packed one those of the longest sequence that is allowed, of a sample those of all its sequences.
fn row_tokens(recipe: &Recipe, data: Option<DataFacts>) -> usize {
    let (length, sequences) = (recipe.data.max_length, sequences(recipe));
    let packs = recipe.data.packing && sequences == 1 && !recipe.objective.kind.is_preference();
    match data {
        Some(data) if packs => length.max(data.longest),
        Some(data) => data.longest,
        None => sequences * length,
    }
}

/// How a model's files are quantised, as if a recipe had said it.
fn stored(quantization: StoredQuantization) -> Quantization {
    let scheme = match quantization {
        StoredQuantization::Nf4 { double } => Scheme::Nf4 { block: 64, double },
        StoredQuantization::Int8 => Scheme::Int8,
    };
    Quantization { scheme, head: false }
}

/// Threads that compute on this machine.
fn threads() -> u64 {
    rayon::current_num_threads() as u64
}

/// Whether a checkpoint is written before the last step.
fn checkpoints(recipe: &Recipe) -> bool {
    let every = recipe.train.checkpoint_every;
    every > 0 && recipe.train.steps.is_none_or(|steps| steps > every)
}

/// Bytes of the frozen weights beside the model's own: a reference of its own, and adapters below the trained one. What is
/// not there yet counts nothing; the run itself will say that it is missing.
fn other_weights(recipe: &Recipe, number: u64) -> u64 {
    let below = recipe.adapter.under.iter().map(|under| safetensors_bytes(&under.path));
    let mut bytes = below.sum::<u64>();
    let Some(reference) = recipe
        .reference
        .as_ref()
        .filter(|_| recipe.objective.kind.needs_reference())
    else {
        return bytes;
    };
    if let ReferenceAdapter::Folder(folder) = reference.adapter() {
        bytes += safetensors_bytes(folder);
    }
    if !reference.model.is_empty()
        && let Ok(folder) = hub::resolve_config(&reference.model)
        && let Ok((config, _)) = ModelConfig::read(&folder)
    {
        bytes += number * elements(&config);
    }
    bytes
}

/// The sizes of a folder's safetensors files.
fn safetensors_bytes(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let tensors = files.filter(|file| file.path().extension().is_some_and(|ending| ending == "safetensors"));
    tensors.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
}

/// Numbers of a model, norms and biases apart.
fn elements(config: &ModelConfig) -> u64 {
    let tensors = config.blocks.iter().flat_map(BlockConfig::tensors);
    let linears = tensors.filter(|tensor| tensor.role == TensorRole::Linear);
    let blocks: u64 = linears
        .map(|tensor| tensor.shape.iter().product::<usize>() as u64)
        .sum();
    let ends = if config.tie_word_embeddings { 1 } else { 2 };
    blocks + ends * config.hidden_size as u64 * config.vocab_size as u64
}
