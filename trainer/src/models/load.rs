//! A model out of a folder, tensor by tensor, or out of its config alone with random weights.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};
use interlingua_checkpoints::blocks::{
    ActivationKind, AttentionConfig, BlockConfig, GatedConfig, LinearConfig, MlpConfig, NormConfig, NormKind,
    Positions, Projections as ProjectionsConfig,
};
use interlingua_checkpoints::config::{AddedPositions, ModelConfig};
use interlingua_checkpoints::model_folder::ModelFolder;
use interlingua_checkpoints::packed::Quantization;

use super::Model;
use super::attention::{Attention, Projections, alibi_slopes};
use super::decoder::Block;
use super::experts::Experts;
use super::mlp::{Gated, Mlp, PlainActivation, fixed};
use super::stem::{Stem, StemPositions};
use super::weights::{Initial, Role, WeightSource};
use crate::collectives::Collectives;
use crate::error::TrainError;
use crate::layers::linear::Linear;
use crate::layers::norm::Norm;
use crate::ops::activation::Activation;
use crate::parameters::{Parameter, ParameterId, Parameters};

/// Where the weights come from.
pub enum Weights<'a> {
    /// A folder's safetensors.
    Folder(&'a ModelFolder),
    /// Normal with the config's `initializer_range`, norms one and biases zero, as Transformers initialises.
    Random {
        /// Seed of the numbers.
        seed: u64,
    },
}

/// How the weights of a model are kept.
#[derive(Clone)]
pub struct Storage<'a> {
    /// What weights and activations compute in.
    pub dtype: DType,
    /// Where.
    pub device: Device,
    /// Which parameters are trained at some time: these are kept in f32.
    pub trainable: &'a dyn Fn(&str) -> bool,
    /// How the weights are quantised; absent: not at all, unless their files are.
    pub quantization: Option<Quantization>,
    /// Whether the frozen weights of blocks stay in their files, or in host memory.
    pub offload: bool,
    /// Where quantised weights are kept for later runs.
    pub cache: Option<&'a Path>,
    /// The processes among which the weights of blocks are spread; absent: this one keeps them whole.
    pub spread: Option<Arc<dyn Collectives>>,
}

impl Storage<'_> {
    /// Every weight frozen, on a device in a dtype.
    pub fn frozen(dtype: DType, device: &Device) -> Self {
        Self {
            dtype,
            device: device.clone(),
            trainable: &|_| false,
            quantization: None,
            offload: false,
            cache: None,
            spread: None,
        }
    }
}

/// Builds the model.
///
/// # Errors
/// When the weights cannot be read, or have other shapes than the config says.
pub fn load(config: &ModelConfig, weights: &Weights, storage: &Storage) -> Result<Model, TrainError> {
    let mut builder = Builder {
        weights: WeightSource::new(config, weights, storage)?,
        parameters: Parameters::default(),
    };
    let stem = builder.stem(config)?;
    let blocks = config
        .blocks
        .iter()
        .map(|block| builder.block(block))
        .collect::<Result<_, _>>()?;
    let norm = builder.norm(&config.norm)?;
    let head = if config.tie_word_embeddings {
        let LinearConfig {
            path, inputs, outputs, ..
        } = &config.head.layer;
        Linear {
            name: path.clone(),
            inputs: *inputs,
            outputs: *outputs,
            weight: stem.embedding,
            bias: None,
            adapters: Vec::new(),
        }
    } else {
        builder.linear(&config.head.layer, Role::Head)?
    };
    let parameters = builder.parameters;
    Ok(Model {
        config: config.clone(),
        device: storage.device.clone(),
        dtype: storage.dtype,
        parameters,
        stem,
        blocks,
        norm,
        head,
    })
}

struct Builder<'a> {
    weights: WeightSource<'a>,
    parameters: Parameters,
}

impl Builder<'_> {
    fn parameter(
        &mut self,
        name: &str,
        shape: Vec<usize>,
        role: Role,
        initial: Initial,
    ) -> Result<ParameterId, TrainError> {
        let value = self.weights.value(name, &shape, role, initial)?;
        let constant = role == Role::Constant;
        Ok(self.parameters.add(Parameter {
            name: name.to_owned(),
            shape,
            value,
            trainable: !constant && self.weights.trains(name),
            adapter: false,
            frozen: constant,
        }))
    }

    /// A small vector with its initial value.
    fn vector(&mut self, name: &str, shape: Vec<usize>, initial: f32) -> Result<ParameterId, TrainError> {
        self.parameter(name, shape, Role::Vector, Initial::Constant(initial))
    }

    fn stem(&mut self, config: &ModelConfig) -> Result<Stem, TrainError> {
        let role = if config.tie_word_embeddings {
            Role::Head
        } else {
            Role::Embedding
        };
        let shape = vec![config.vocab_size, config.hidden_size];
        let embedding = self.parameter(&config.embedding_weight(), shape, role, Initial::Normal)?;
        let positions = match &config.embedding.positions {
            AddedPositions::None => StemPositions::None,
            AddedPositions::Learned { path, count } => StemPositions::Learned {
                table: self.parameter(
                    &format!("{path}.weight"),
                    vec![*count, config.hidden_size],
                    Role::Vector,
                    Initial::Normal,
                )?,
                count: *count,
            },
            AddedPositions::Sinusoidal { offset, zero } => StemPositions::Sinusoidal {
                offset: *offset,
                zero: *zero,
            },
        };
        Ok(Stem {
            embedding,
            scale: config.embedding.scale.map(|scale| scale as f32),
            positions,
            norm: self.optional_norm(config.embedding.norm.as_ref())?,
        })
    }

    fn norm(&mut self, norm: &NormConfig) -> Result<Norm, TrainError> {
        let (initial, has_bias) = match norm.kind {
            NormKind::Rms { offset } => (1.0 - offset, false),
            NormKind::Layer { bias } => (1.0, bias),
        };
        let weight = self.vector(&format!("{}.weight", norm.path), norm.shape.clone(), initial)?;
        let bias = has_bias
            .then(|| self.vector(&format!("{}.bias", norm.path), norm.shape.clone(), 0.0))
            .transpose()?;
        Ok(Norm {
            weight,
            bias,
            kind: norm.kind,
            epsilon: norm.epsilon,
            size: norm.shape.last().copied().unwrap_or(0),
            heads: norm.shape[..norm.shape.len() - 1].iter().product(),
        })
    }

    fn optional_norm(&mut self, norm: Option<&NormConfig>) -> Result<Option<Norm>, TrainError> {
        norm.map(|norm| self.norm(norm)).transpose()
    }

    fn linear(&mut self, linear: &LinearConfig, role: Role) -> Result<Linear, TrainError> {
        let shape = vec![linear.outputs, linear.inputs];
        let weight = self.parameter(&linear.weight(), shape, role, Initial::Normal)?;
        let bias = linear
            .bias
            .then(|| self.vector(&format!("{}.bias", linear.path), vec![linear.outputs], 0.0))
            .transpose()?;
        Ok(Linear {
            name: linear.path.clone(),
            inputs: linear.inputs,
            outputs: linear.outputs,
            weight,
            bias,
            adapters: Vec::new(),
        })
    }

    fn block(&mut self, block: &BlockConfig) -> Result<Block, TrainError> {
        Ok(Block {
            path: block.path.clone(),
            input_norm: self.optional_norm(block.input_norm.as_ref())?,
            attention: self.attention(&block.attention)?,
            attention_output_norm: self.optional_norm(block.attention_output_norm.as_ref())?,
            mlp_norm: self.optional_norm(block.mlp_norm.as_ref())?,
            mlp: self.mlp(&block.mlp)?,
            mlp_output_norm: self.optional_norm(block.mlp_output_norm.as_ref())?,
            parallel: block.parallel,
            residual_after_norm: block.residual_after_norm,
            bottlenecks: Vec::new(),
            steering: Vec::new(),
        })
    }

    fn attention(&mut self, attention: &AttentionConfig) -> Result<Attention, TrainError> {
        let projections = match &attention.projections {
            ProjectionsConfig::Separate { query, key, value } => Projections::Separate {
                query: self.linear(query, Role::Linear)?,
                key: self.linear(key, Role::Linear)?,
                value: self.linear(value, Role::Linear)?,
            },
            ProjectionsConfig::Fused { layer, order } => Projections::Fused {
                layer: self.linear(layer, Role::Linear)?,
                order: *order,
            },
        };
        let output = self.linear(&attention.output, Role::Linear)?;
        let qk_norm = match &attention.qk_norm {
            Some([query, key]) => Some([self.norm(query)?, self.norm(key)?]),
            None => None,
        };
        let alibi = attention.positions == Positions::Alibi;
        Ok(Attention {
            projections,
            output,
            qk_norm,
            heads: attention.heads,
            kv_heads: attention.kv_heads,
            head_dim: attention.head_dim,
            positions: attention.positions,
            slopes: alibi.then(|| alibi_slopes(attention.heads).into()),
            window: attention.window,
            scale: attention.scale as f32,
            softcap: attention.softcap.map(|cap| cap as f32),
        })
    }

    fn mlp(&mut self, mlp: &MlpConfig) -> Result<Mlp, TrainError> {
        Ok(match mlp {
            MlpConfig::Gated { layers, activation } => Mlp::Gated(self.gated(layers, *activation)?),
            MlpConfig::FusedGated {
                gate_up,
                down,
                activation,
            } => Mlp::FusedGated {
                gate_up: self.linear(gate_up, Role::Linear)?,
                down: self.linear(down, Role::Linear)?,
                activation: of_gate(*activation)?,
            },
            MlpConfig::Plain {
                up,
                down,
                activation,
                activation_path,
            } => Mlp::Plain {
                up: self.linear(up, Role::Linear)?,
                activation: match fixed(*activation) {
                    Some(activation) => PlainActivation::Fixed(activation),
                    None => self.xielu(activation_path)?,
                },
                down: self.linear(down, Role::Linear)?,
            },
            MlpConfig::Experts(experts) => Mlp::Experts(Experts {
                router: self.linear(&experts.router, Role::Vector)?,
                experts: experts
                    .experts
                    .iter()
                    .map(|layers| self.gated(layers, experts.activation))
                    .collect::<Result<_, _>>()?,
                top_k: experts.top_k,
                normalized: experts.normalized,
            }),
        })
    }

    fn gated(&mut self, layers: &GatedConfig, activation: ActivationKind) -> Result<Gated, TrainError> {
        Ok(Gated {
            gate: self.linear(&layers.gate, Role::Linear)?,
            up: self.linear(&layers.up, Role::Linear)?,
            down: self.linear(&layers.down, Role::Linear)?,
            activation: of_gate(activation)?,
        })
    }

    /// xIELU's numbers, which begin so that both slopes are 0.8 (`XIELUActivation` in Transformers).
    fn xielu(&mut self, path: &str) -> Result<PlainActivation, TrainError> {
        const BETA: f32 = 0.5;
        const EPSILON: f32 = -1e-6;
        let inverse_softplus = |value: f32| value.exp_m1().ln();
        let mut constant = |name: &str, initial: f32| -> Result<f32, TrainError> {
            let id = self.parameter(
                &format!("{path}.{name}"),
                Vec::new(),
                Role::Constant,
                Initial::Constant(initial),
            )?;
            let values = self.parameters.get(id).values().cast(DType::F32).into_data();
            Ok(values.iter::<f32>().next().unwrap_or(initial))
        };
        let (beta, epsilon) = (constant("beta", BETA)?, constant("eps", EPSILON)?);
        Ok(PlainActivation::Xielu {
            alpha_p: self.vector(&format!("{path}.alpha_p"), vec![1], inverse_softplus(0.8))?,
            alpha_n: self.vector(&format!("{path}.alpha_n"), vec![1], inverse_softplus(0.8 - BETA))?,
            beta,
            epsilon,
        })
    }
}

fn of_gate(activation: ActivationKind) -> Result<Activation, TrainError> {
    fixed(activation)
        .ok_or_else(|| TrainError::Setup(format!("a gate cannot have the activation {}", activation.name())))
}

/// A flat tensor around values, in a dtype.
pub fn tensor(values: Vec<f32>, device: &Device, dtype: DType) -> Tensor<1> {
    let length = values.len();
    let tensor = Tensor::from_data(TensorData::new(values, [length]), (device, DType::F32));
    if dtype == DType::F32 {
        tensor
    } else {
        tensor.cast(dtype)
    }
}
