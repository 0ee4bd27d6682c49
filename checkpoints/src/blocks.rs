//! What a model is made of, as data: norms, projections, attention, MLP, and how a block joins them. Loading, the memory plan and
//! export all follow this description; [`crate::families`] makes it from a `config.json`.

/// A parameter of a model: its name in the files and its shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorConfig {
    /// Name, such as `model.norm.weight`.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// What it is.
    pub role: TensorRole,
}

/// What a parameter is, which decides how it is kept, trained and quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorRole {
    /// The weight of a linear layer in a block.
    Linear,
    /// A norm's weight or bias.
    Norm,
    /// A linear layer's bias.
    Bias,
    /// A small weight that is never quantised: a router, a trained number of an activation.
    Small,
    /// A number that belongs to the model's definition, and is never trained.
    Constant,
    /// A table of which a token reads one row: of learned positions.
    Table,
}

/// A linear layer: weight `[outputs, inputs]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearConfig {
    /// The module's path, such as `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// Size of the input.
    pub inputs: usize,
    /// Size of the output.
    pub outputs: usize,
    /// Whether it has a bias `[outputs]`.
    pub bias: bool,
}

/// How a norm computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NormKind {
    /// `x / sqrt(mean(x²) + eps) * (offset + weight)`; the offset is 1 in Gemma, else 0 (Zhang and Sennrich, 2019).
    Rms {
        /// What is added to the weight.
        offset: f32,
    },
    /// `(x - mean) / sqrt(variance + eps) * weight + bias` (Ba et al., 2016).
    Layer {
        /// Whether there is a bias.
        bias: bool,
    },
}

/// A norm.
#[derive(Clone, Debug, PartialEq)]
pub struct NormConfig {
    /// The module's path, such as `model.layers.0.input_layernorm`.
    pub path: String,
    /// Shape of its weight: `[size]`, or `[heads, head_dim]` where each head has its own.
    pub shape: Vec<usize>,
    /// How it computes.
    pub kind: NormKind,
    /// Epsilon.
    pub epsilon: f64,
}

/// The nonlinearity of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationKind {
    /// `x * sigmoid(x)`, also called swish.
    Silu,
    /// `x * Φ(x)`, by the error function.
    Gelu,
    /// The same, approximated with tanh: `gelu_new`, `gelu_pytorch_tanh`.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// xIELU, with two trained numbers (Huang and Schlag, 2024).
    Xielu,
}

impl ActivationKind {
    /// The name in a `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu_pytorch_tanh",
            Self::Relu => "relu",
            Self::Xielu => "xielu",
        }
    }
}

/// How queries, keys and values are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Projections {
    /// Each by a linear layer of its own.
    Separate {
        /// Queries.
        query: LinearConfig,
        /// Keys.
        key: LinearConfig,
        /// Values.
        value: LinearConfig,
    },
    /// All by one layer.
    Fused {
        /// The layer.
        layer: LinearConfig,
        /// What stands where in its output.
        order: FusedOrder,
    },
}

/// What stands where in the output of a layer for queries, keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FusedOrder {
    /// All queries, all keys, all values.
    ByKind,
    /// Head by head its query, its key and its value.
    ByHead,
}

/// How an attention knows where tokens stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// It does not.
    None,
    /// Queries and keys are rotated; the number of the rope in the model's list.
    Rope(usize),
    /// Scores fall with the distance, by head (Press et al., "ALiBi", 2022).
    Alibi,
}

/// The attention of a block.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionConfig {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Size of a head.
    pub head_dim: usize,
    /// Queries, keys and values.
    pub projections: Projections,
    /// The output's linear layer.
    pub output: LinearConfig,
    /// Norms of queries and keys, over each head or over all of them, as the weight's size says.
    pub qk_norm: Option<[NormConfig; 2]>,
    /// Positions.
    pub positions: Positions,
    /// Keys that a query sees, itself included; all before it where there is none.
    pub window: Option<usize>,
    /// What scores are multiplied with.
    pub scale: f64,
    /// Bound of the scores: a score s becomes `cap * tanh(s / cap)`.
    pub softcap: Option<f64>,
}

impl AttentionConfig {
    /// Size of all queries.
    pub fn query_size(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Size of all keys; values are as many.
    pub fn key_size(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// The feed-forward part of a block.
#[derive(Clone, Debug, PartialEq)]
pub enum MlpConfig {
    /// `down(act(gate(x)) * up(x))`.
    Gated {
        /// The three layers.
        layers: GatedConfig,
        /// Nonlinearity.
        activation: ActivationKind,
    },
    /// The same with gate and up, in this order, out of one layer.
    FusedGated {
        /// Gate and up.
        gate_up: LinearConfig,
        /// Output.
        down: LinearConfig,
        /// Nonlinearity.
        activation: ActivationKind,
    },
    /// `down(act(up(x)))`.
    Plain {
        /// Input.
        up: LinearConfig,
        /// Output.
        down: LinearConfig,
        /// Nonlinearity.
        activation: ActivationKind,
        /// The path of the nonlinearity, where it has numbers of its own.
        activation_path: String,
    },
    /// Several gated MLPs, of which each token passes through a few.
    Experts(ExpertsConfig),
}

impl MlpConfig {
    /// The linear layers, in the order in which they compute; a router is one of them.
    pub fn linears(&self) -> Vec<&LinearConfig> {
        match self {
            Self::Gated { layers, .. } => layers.linears().into(),
            Self::FusedGated { gate_up, down, .. } => vec![gate_up, down],
            Self::Plain { up, down, .. } => vec![up, down],
            Self::Experts(experts) => {
                let of_experts = experts.experts.iter().flat_map(GatedConfig::linears);
                [&experts.router].into_iter().chain(of_experts).collect()
            }
        }
    }

    /// The sizes of inner states: one, or that of each expert.
    pub fn inner_sizes(&self) -> Vec<usize> {
        match self {
            Self::Gated { layers, .. } => vec![layers.up.outputs],
            Self::FusedGated { down, .. } => vec![down.inputs],
            Self::Plain { up, .. } => vec![up.outputs],
            Self::Experts(experts) => experts.experts.iter().map(|expert| expert.up.outputs).collect(),
        }
    }

    /// The mixture of experts, if it is one.
    pub fn experts(&self) -> Option<&ExpertsConfig> {
        match self {
            Self::Experts(experts) => Some(experts),
            Self::Gated { .. } | Self::FusedGated { .. } | Self::Plain { .. } => None,
        }
    }
}

/// Gate, up and down of a gated MLP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatedConfig {
    /// Gate.
    pub gate: LinearConfig,
    /// Values.
    pub up: LinearConfig,
    /// Output.
    pub down: LinearConfig,
}

/// A mixture of experts with top-k routing (Shazeer et al., 2017; Fedus et al., 2021).
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertsConfig {
    /// The router: scores `[experts]` of a token. Its weight is never quantised.
    pub router: LinearConfig,
    /// The experts.
    pub experts: Vec<GatedConfig>,
    /// How many each token passes through.
    pub top_k: usize,
    /// Whether the shares of the chosen ones are made to add up to 1.
    pub normalized: bool,
    /// Nonlinearity.
    pub activation: ActivationKind,
}

/// A block.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockConfig {
    /// Path of the module, such as `model.layers.0`.
    pub path: String,
    /// Norm before the attention.
    pub input_norm: Option<NormConfig>,
    /// The attention.
    pub attention: AttentionConfig,
    /// Norm of the attention's output, before it is added.
    pub attention_output_norm: Option<NormConfig>,
    /// Norm before the MLP. Where there is none and attention and MLP stand side by side, the MLP reads what the attention reads.
    pub mlp_norm: Option<NormConfig>,
    /// The MLP.
    pub mlp: MlpConfig,
    /// Norm of the MLP's output, before it is added.
    pub mlp_output_norm: Option<NormConfig>,
    /// Whether attention and MLP both read the block's input, and are added together.
    pub parallel: bool,
    /// Whether what is added to is the normed state rather than the state itself (BLOOM's
    /// `apply_residual_connection_post_layernorm`).
    pub residual_after_norm: bool,
}

impl BlockConfig {
    /// The linear layers, in the order in which they compute; a router is one of them.
    pub fn linears(&self) -> Vec<&LinearConfig> {
        let mut linears: Vec<&LinearConfig> = match &self.attention.projections {
            Projections::Separate { query, key, value } => vec![query, key, value],
            Projections::Fused { layer, .. } => vec![layer],
        };
        linears.push(&self.attention.output);
        linears.extend(self.mlp.linears());
        linears
    }

    /// The path of the router, where there is one.
    pub fn router(&self) -> Option<&str> {
        self.mlp.experts().map(|experts| experts.router.path.as_str())
    }

    /// The norms.
    pub fn norms(&self) -> impl Iterator<Item = &NormConfig> {
        let qk_norm = self.attention.qk_norm.iter().flatten();
        let before = self.input_norm.iter().chain(qk_norm);
        let behind = [&self.attention_output_norm, &self.mlp_norm, &self.mlp_output_norm];
        before.chain(behind.into_iter().flatten())
    }

    /// Every parameter of the block.
    pub fn tensors(&self) -> Vec<TensorConfig> {
        let router = self.router();
        let of_linear = |linear: &LinearConfig| {
            let is_router = router == Some(linear.path.as_str());
            linear.tensors(if is_router {
                TensorRole::Small
            } else {
                TensorRole::Linear
            })
        };
        let mut tensors: Vec<TensorConfig> = self.linears().into_iter().flat_map(of_linear).collect();
        tensors.extend(self.norms().flat_map(NormConfig::tensors));
        if let MlpConfig::Plain {
            activation: ActivationKind::Xielu,
            activation_path,
            ..
        } = &self.mlp
        {
            tensors.extend(xielu_tensors(activation_path));
        }
        tensors
    }
}

/// The trained numbers of xIELU `[1]`, and its constants.
pub fn xielu_tensors(path: &str) -> [TensorConfig; 4] {
    [
        ("alpha_p", vec![1], TensorRole::Small),
        ("alpha_n", vec![1], TensorRole::Small),
        ("beta", Vec::new(), TensorRole::Constant),
        ("eps", Vec::new(), TensorRole::Constant),
    ]
    .map(|(name, shape, role)| TensorConfig {
        name: format!("{path}.{name}"),
        shape,
        role,
    })
}

impl GatedConfig {
    /// Gate, up, down.
    pub fn linears(&self) -> [&LinearConfig; 3] {
        [&self.gate, &self.up, &self.down]
    }
}

impl LinearConfig {
    /// Name of its weight.
    pub fn weight(&self) -> String {
        format!("{}.weight", self.path)
    }

    /// Weight, and bias where there is one.
    pub fn tensors(&self, role: TensorRole) -> Vec<TensorConfig> {
        let weight = TensorConfig {
            name: self.weight(),
            shape: vec![self.outputs, self.inputs],
            role,
        };
        let bias = self.bias.then(|| TensorConfig {
            name: format!("{}.bias", self.path),
            shape: vec![self.outputs],
            role: TensorRole::Bias,
        });
        [weight].into_iter().chain(bias).collect()
    }
}

impl NormConfig {
    /// Weight, and bias where there is one.
    pub fn tensors(&self) -> Vec<TensorConfig> {
        let tensor = |part: &str| TensorConfig {
            name: format!("{}.{part}", self.path),
            shape: self.shape.clone(),
            role: TensorRole::Norm,
        };
        let bias = self.kind == NormKind::Layer { bias: true };
        [tensor("weight")]
            .into_iter()
            .chain(bias.then(|| tensor("bias")))
            .collect()
    }
}
