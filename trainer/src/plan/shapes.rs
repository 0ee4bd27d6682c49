//! The parameters of a model and of the adapters that a recipe puts on it, from shapes alone.

use std::collections::BTreeMap;

use interlingua_checkpoints::blocks::{
    BlockConfig, LinearConfig, MlpConfig, NormConfig, Projections, TensorConfig, TensorRole,
};
use interlingua_checkpoints::config::ModelConfig;
use interlingua_recipes::{AdapterKind, Recipe, Route};

use crate::adapters::steering::layer_of;
use crate::error::TrainError;
use crate::train::selection::Selection;

/// Where a parameter of the base stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The embedding, which is the head too where the two are tied.
    Embedding,
    /// A linear layer of a block.
    BlockLinear,
    /// A norm or a bias.
    Small,
    /// A head of its own.
    Head,
}

/// A parameter of the base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseParameter {
    /// Where it stands.
    pub place: Place,
    /// The block that reads it.
    pub block: Option<usize>,
    /// Rows and columns; 1 row for a vector.
    pub shape: [usize; 2],
    /// Whether it is trained at some time of the run.
    pub trained: bool,
}

impl BaseParameter {
    /// How many numbers it holds.
    pub fn elements(&self) -> u64 {
        self.shape[0] as u64 * self.shape[1] as u64
    }
}

/// A linear layer, with what is trained on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinearShape {
    /// Size of the input.
    pub inputs: usize,
    /// Size of the output.
    pub outputs: usize,
    /// Whether its own weight or bias is trained.
    pub trained: bool,
    /// Rank of the adapter on it; 0 without one.
    pub rank: usize,
}

impl LinearShape {
    /// Whether gradients of anything on it are asked for.
    pub fn trains(&self) -> bool {
        self.trained || self.rank > 0
    }

    /// What holds of a layer of this shape and of another: what is trained on either.
    fn with(self, other: Self) -> Self {
        Self {
            trained: self.trained || other.trained,
            rank: self.rank.max(other.rank),
            ..self
        }
    }
}

/// A block, with what is trained on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockShape {
    /// Layers of queries, keys and values: three, or one for all.
    pub projections: Vec<LinearShape>,
    /// Output of the attention.
    pub output: LinearShape,
    /// Layers that the MLP begins with: gate and up, one for both, or up alone; of one expert where there are several.
    pub mlp: Vec<LinearShape>,
    /// Output of the MLP, or of one expert.
    pub down: LinearShape,
    /// The router.
    pub router: Option<LinearShape>,
    /// How many experts a token passes through; 1 without experts.
    pub experts: usize,
    /// Whether the norms before the attention, over heads, and behind it are trained.
    pub norms_trained: [bool; 3],
    /// Inner size of a bottleneck adapter behind it.
    pub bottleneck: Option<usize>,
    /// Whether a trained vector is added behind it.
    pub steered: bool,
    /// Numbers that are trained in it, those of its adapters included.
    pub trained_elements: u64,
}

impl BlockShape {
    /// Whether anything is trained in it.
    pub fn trains(&self) -> bool {
        self.trained_elements > 0
    }

    /// The layers that a token passes through, each with how often.
    pub fn passed(&self) -> impl Iterator<Item = (&LinearShape, usize)> {
        let attention = self.projections.iter().chain([&self.output]).chain(&self.router);
        let mlp = self.mlp.iter().chain([&self.down]);
        attention
            .map(|linear| (linear, 1))
            .chain(mlp.map(|linear| (linear, self.experts)))
    }
}

/// Everything that a plan knows of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shapes {
    /// The parameters of the base.
    pub base: Vec<BaseParameter>,
    /// The sizes of the adapter's parameters, all copies counted.
    pub adapter: Vec<u64>,
    /// The blocks.
    pub blocks: Vec<BlockShape>,
    /// The head, with what is trained on it.
    pub head: LinearShape,
    /// Whether the embedding is trained.
    pub trains_embedding: bool,
    /// Whether that is, or positions or a norm that stand before the first block.
    pub trains_stem: bool,
    /// Whether the final norm is trained.
    pub trains_norm: bool,
}

impl Shapes {
    /// Those of a recipe's model. `languages`: how many copies an adapter by language has.
    ///
    /// # Errors
    /// When a pattern of the recipe is none, or its adapter does not fit the model.
    pub fn of(recipe: &Recipe, config: &ModelConfig, languages: usize) -> Result<Self, TrainError> {
        let selection = Selection::of(recipe)?;
        let targets = recipe
            .adapter
            .targets
            .selector()
            .map_err(|error| TrainError::Setup(format!("adapter.targets: {error}")))?;
        let is_target = |name: &str| match (&targets, recipe.adapter.kind) {
            (None, AdapterKind::Lora | AdapterKind::Dora) => config.is_all_linear(name),
            (Some(targets), AdapterKind::Lora | AdapterKind::Dora) => targets.selects(name),
            _ => false,
        };
        let mut builder = Builder {
            selection: &selection,
            is_target: &is_target,
            recipe,
            copies: match recipe.adapter.route {
                Route::None => 1,
                Route::Language => languages.max(1),
            },
            base: Vec::new(),
            adapter: Vec::new(),
        };
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let trains_embedding = builder.base(Place::Embedding, None, &config.embedding_weight(), [vocab, hidden]) > 0;
        let mut trains_stem = trains_embedding;
        let norm = config.norm.tensors();
        let mut trains_norm = false;
        for tensor in config.tensors_outside() {
            let trained = builder.tensor(None, &tensor) > 0;
            if norm.contains(&tensor) {
                trains_norm |= trained;
            } else {
                trains_stem |= trained;
            }
        }
        let mut blocks = config
            .blocks
            .iter()
            .enumerate()
            .map(|(index, block)| builder.block(config, index, block))
            .collect::<Vec<_>>();
        let layer = &config.head.layer;
        let head = if config.tie_word_embeddings {
            let mut head = builder.linear(&layer.path, [vocab, hidden], None);
            head.trained = trains_embedding;
            head
        } else {
            let trained = builder.base(Place::Head, None, &layer.weight(), [vocab, hidden]) > 0;
            LinearShape {
                trained,
                ..builder.linear(&layer.path, [vocab, hidden], None)
            }
        };
        if recipe.adapter.kind == AdapterKind::Steering {
            let block = &mut blocks[layer_of(&recipe.adapter, config)? - 1];
            block.steered = true;
            block.trained_elements += builder.adapter("", &[hidden as u64]);
        }
        Ok(Self {
            base: builder.base,
            adapter: builder.adapter,
            blocks,
            head,
            trains_embedding,
            trains_stem,
            trains_norm,
        })
    }

    /// How many numbers are trained.
    pub fn trained_elements(&self) -> u64 {
        self.trained().sum()
    }

    /// The sizes of all parameters that are trained.
    pub fn trained(&self) -> impl Iterator<Item = u64> + '_ {
        self.trained_linears().chain(self.trained_elsewhere())
    }

    /// The sizes of those that are weights of the base's linear layers in blocks.
    pub fn trained_linears(&self) -> impl Iterator<Item = u64> + '_ {
        self.trained_base(true)
    }

    /// The sizes of the others: embedding, head, norms and biases, and the adapter's.
    pub fn trained_elsewhere(&self) -> impl Iterator<Item = u64> + '_ {
        self.trained_base(false).chain(self.adapter.iter().copied())
    }

    fn trained_base(&self, linear: bool) -> impl Iterator<Item = u64> + '_ {
        let base = self.base.iter();
        let trained =
            base.filter(move |parameter| parameter.trained && (parameter.place == Place::BlockLinear) == linear);
        trained.map(BaseParameter::elements)
    }

    /// The lowest block that something is trained in or below; the number of blocks when there is none.
    pub fn lowest(&self) -> usize {
        if self.trains_stem {
            return 0;
        }
        let lowest = self.blocks.iter().position(BlockShape::trains);
        lowest.unwrap_or(self.blocks.len())
    }
}

struct Builder<'a> {
    selection: &'a Selection,
    is_target: &'a dyn Fn(&str) -> bool,
    recipe: &'a Recipe,
    copies: usize,
    base: Vec<BaseParameter>,
    adapter: Vec<u64>,
}

impl Builder<'_> {
    /// Adds a parameter of the base, and returns how many of its numbers are trained.
    fn base(&mut self, place: Place, block: Option<usize>, name: &str, shape: [usize; 2]) -> u64 {
        let parameter = BaseParameter {
            place,
            block,
            shape,
            trained: self.selection.selects(name, false),
        };
        let elements = if parameter.trained { parameter.elements() } else { 0 };
        self.base.push(parameter);
        elements
    }

    /// Adds parameters of the adapter, and returns how many numbers they hold. An adapter whose parameters the recipe does
    /// not train is there all the same.
    fn adapter(&mut self, name: &str, sizes: &[u64]) -> u64 {
        for _ in 0..self.copies {
            self.adapter.extend_from_slice(sizes);
        }
        if self.selection.selects(name, true) {
            sizes.iter().sum::<u64>() * self.copies as u64
        } else {
            0
        }
    }

    /// The adapter on a linear layer; `trained` counts what is trained.
    fn linear(&mut self, module: &str, [outputs, inputs]: [usize; 2], trained: Option<&mut u64>) -> LinearShape {
        let mut linear = LinearShape {
            inputs,
            outputs,
            trained: false,
            rank: 0,
        };
        if !(self.is_target)(module) {
            return linear;
        }
        linear.rank = self.recipe.adapter.rank;
        let mut sizes = vec![(linear.rank * inputs) as u64, (linear.rank * outputs) as u64];
        if self.recipe.adapter.kind == AdapterKind::Dora {
            sizes.push(outputs as u64);
        }
        let elements = self.adapter(&format!("{module}.lora_A.weight"), &sizes);
        if let Some(trained) = trained {
            *trained += elements;
        }
        linear
    }

    /// Adds a tensor of the base, and returns how many of its numbers are trained.
    fn tensor(&mut self, block: Option<usize>, tensor: &TensorConfig) -> u64 {
        let place = match tensor.role {
            TensorRole::Linear => Place::BlockLinear,
            TensorRole::Norm | TensorRole::Bias | TensorRole::Small | TensorRole::Constant | TensorRole::Table => {
                Place::Small
            }
        };
        let columns = tensor.shape.last().copied().unwrap_or(1);
        let rows = tensor.shape.iter().rev().skip(1).product();
        if tensor.role == TensorRole::Constant {
            self.base.push(BaseParameter {
                place,
                block,
                shape: [rows, columns],
                trained: false,
            });
            return 0;
        }
        self.base(place, block, &tensor.name, [rows, columns])
    }

    fn block(&mut self, config: &ModelConfig, index: usize, of: &BlockConfig) -> BlockShape {
        let mut block = BlockShape {
            experts: of.mlp.experts().map_or(1, |experts| experts.top_k),
            ..BlockShape::default()
        };
        let mut trained = BTreeMap::new();
        for tensor in of.tensors() {
            let own = self.tensor(Some(index), &tensor);
            block.trained_elements += own;
            trained.insert(tensor.name, own > 0);
        }
        let is_trained = |module: &str| {
            let part = |part: &str| trained.get(&format!("{module}.{part}")) == Some(&true);
            part("weight") || part("bias")
        };
        let mut shape = |linear: &LinearConfig| {
            let adapted = self.linear(
                &linear.path,
                [linear.outputs, linear.inputs],
                Some(&mut block.trained_elements),
            );
            LinearShape {
                trained: is_trained(&linear.path),
                ..adapted
            }
        };
        block.projections = match &of.attention.projections {
            Projections::Separate { query, key, value } => [query, key, value].map(&mut shape).into(),
            Projections::Fused { layer, .. } => vec![shape(layer)],
        };
        block.output = shape(&of.attention.output);
        let mut mlp: Vec<LinearShape> = match &of.mlp {
            MlpConfig::Experts(experts) => {
                block.router = Some(shape(&experts.router));
                let all = experts.experts.iter().map(|expert| expert.linears().map(&mut shape));
                all.reduce(|one, other| [0, 1, 2].map(|index| one[index].with(other[index])))
                    .into_iter()
                    .flatten()
                    .collect()
            }
            dense => dense.linears().into_iter().map(shape).collect(),
        };
        block.down = mlp.pop().unwrap_or_default();
        block.mlp = mlp;
        let any = |norms: Vec<&NormConfig>| norms.into_iter().any(|norm| is_trained(&norm.path));
        let behind = [&of.attention_output_norm, &of.mlp_norm, &of.mlp_output_norm];
        block.norms_trained = [
            any(of.input_norm.iter().collect()),
            any(of.attention.qk_norm.iter().flatten().collect()),
            any(behind.into_iter().flatten().collect()),
        ];
        if self.recipe.adapter.kind == AdapterKind::Bottleneck {
            let hidden = config.hidden_size;
            let inner = (hidden / self.recipe.adapter.reduction.unwrap_or(1)).max(1);
            let size = (hidden * inner) as u64;
            block.bottleneck = Some(inner);
            block.trained_elements += self.adapter(&format!("{}.adapter_down.weight", of.path), &[size, size]);
        }
        block
    }
}
