//! The parameters of a model and of the adapters that a recipe puts on it, from shapes alone.

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
}

/// A block, with what is trained on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockShape {
    /// q, k, v, o, gate, up, down.
    pub linears: [LinearShape; 7],
    /// Whether the norms before the attention, over heads, and before the MLP are trained.
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
            (None, AdapterKind::Lora | AdapterKind::Dora) => name != "lm_head",
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
        let embedding = "model.embed_tokens.weight";
        let trains_embedding = builder.base(Place::Embedding, None, embedding, [vocab, hidden]) > 0;
        let mut blocks = (0..config.num_hidden_layers)
            .map(|index| builder.block(config, index))
            .collect::<Vec<_>>();
        let trains_norm = builder.base(Place::Small, None, "model.norm.weight", [1, hidden]) > 0;
        let head = if config.tie_word_embeddings {
            let mut head = builder.linear("lm_head", [vocab, hidden], None);
            head.trained = trains_embedding;
            head
        } else {
            let trained = builder.base(Place::Head, None, "lm_head.weight", [vocab, hidden]) > 0;
            LinearShape {
                trained,
                ..builder.linear("lm_head", [vocab, hidden], None)
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
        if self.trains_embedding {
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

    fn block(&mut self, config: &ModelConfig, index: usize) -> BlockShape {
        let (hidden, inner, head) = (config.hidden_size, config.intermediate_size, config.head_dim);
        let queries = config.num_attention_heads * head;
        let keys = config.num_key_value_heads * head;
        let (bias, output_bias) = (config.attention_bias, config.attention_output_bias);
        let mut block = BlockShape::default();
        let at = Some(index);
        let linears = [
            ("self_attn.q_proj", [queries, hidden], bias),
            ("self_attn.k_proj", [keys, hidden], bias),
            ("self_attn.v_proj", [keys, hidden], bias),
            ("self_attn.o_proj", [hidden, queries], output_bias),
            ("mlp.gate_proj", [inner, hidden], config.mlp_bias),
            ("mlp.up_proj", [inner, hidden], config.mlp_bias),
            ("mlp.down_proj", [hidden, inner], config.mlp_bias),
        ];
        for (number, (name, shape, bias)) in linears.into_iter().enumerate() {
            let module = format!("model.layers.{index}.{name}");
            let mut own = self.base(Place::BlockLinear, at, &format!("{module}.weight"), shape);
            if bias {
                own += self.base(Place::Small, at, &format!("{module}.bias"), [1, shape[0]]);
            }
            let linear = self.linear(&module, shape, Some(&mut block.trained_elements));
            block.linears[number] = LinearShape {
                trained: own > 0,
                ..linear
            };
            block.trained_elements += own;
        }
        let mut norms = vec![(0, "input_layernorm", hidden), (2, "post_attention_layernorm", hidden)];
        if config.qk_norm {
            norms.extend([(1, "self_attn.q_norm", head), (1, "self_attn.k_norm", head)]);
        }
        for (kind, name, size) in norms {
            let own = self.base(
                Place::Small,
                at,
                &format!("model.layers.{index}.{name}.weight"),
                [1, size],
            );
            block.norms_trained[kind] |= own > 0;
            block.trained_elements += own;
        }
        if self.recipe.adapter.kind == AdapterKind::Bottleneck {
            let inner = (hidden / self.recipe.adapter.reduction.unwrap_or(1)).max(1);
            let size = (hidden * inner) as u64;
            block.bottleneck = Some(inner);
            block.trained_elements += self.adapter(&format!("model.layers.{index}.adapter_down.weight"), &[size, size]);
        }
        block
    }
}
