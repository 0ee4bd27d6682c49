//! A model out of a folder, tensor by tensor, or out of its config alone with random weights.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};
use interlingua_checkpoints::config::ModelConfig;
use interlingua_checkpoints::model_folder::ModelFolder;
use interlingua_checkpoints::packed::Quantization;

use super::Model;
use super::decoder::Block;
use super::weights::{Role, WeightSource};
use crate::collectives::Collectives;
use crate::error::TrainError;
use crate::layers::linear::Linear;
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
        config,
        weights: WeightSource::new(config, weights, storage)?,
        parameters: Parameters::default(),
    };
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    let role = if config.tie_word_embeddings {
        Role::Head
    } else {
        Role::Embedding
    };
    let embedding = builder.parameter("model.embed_tokens.weight", vec![vocab, hidden], role)?;
    let blocks = (0..config.num_hidden_layers)
        .map(|index| builder.block(index))
        .collect::<Result<_, _>>()?;
    let norm = builder.parameter("model.norm.weight", vec![hidden], Role::Vector)?;
    let head = if config.tie_word_embeddings {
        Linear {
            name: "lm_head".into(),
            inputs: hidden,
            outputs: vocab,
            weight: embedding,
            bias: None,
            adapters: Vec::new(),
        }
    } else {
        builder.linear("lm_head".into(), [vocab, hidden], false, Role::Head)?
    };
    let parameters = builder.parameters;
    Ok(Model {
        config: config.clone(),
        device: storage.device.clone(),
        dtype: storage.dtype,
        parameters,
        embedding,
        blocks,
        norm,
        head,
    })
}

struct Builder<'a> {
    config: &'a ModelConfig,
    weights: WeightSource<'a>,
    parameters: Parameters,
}

impl Builder<'_> {
    fn parameter(&mut self, name: &str, shape: Vec<usize>, role: Role) -> Result<ParameterId, TrainError> {
        let value = self.weights.value(name, &shape, role)?;
        Ok(self.parameters.add(Parameter {
            name: name.to_owned(),
            shape,
            value,
            trainable: self.weights.trains(name),
            adapter: false,
            frozen: false,
        }))
    }

    fn vector(&mut self, name: &str, length: usize) -> Result<ParameterId, TrainError> {
        self.parameter(name, vec![length], Role::Vector)
    }

    fn linear(
        &mut self,
        name: String,
        [outputs, inputs]: [usize; 2],
        bias: bool,
        role: Role,
    ) -> Result<Linear, TrainError> {
        let weight = self.parameter(&format!("{name}.weight"), vec![outputs, inputs], role)?;
        let bias = bias
            .then(|| self.vector(&format!("{name}.bias"), outputs))
            .transpose()?;
        Ok(Linear {
            name,
            inputs,
            outputs,
            weight,
            bias,
            adapters: Vec::new(),
        })
    }

    fn block(&mut self, index: usize) -> Result<Block, TrainError> {
        let config = self.config;
        let path = |rest: &str| format!("model.layers.{index}.{rest}");
        let (hidden, intermediate, head_dim) = (config.hidden_size, config.intermediate_size, config.head_dim);
        let queries = config.num_attention_heads * head_dim;
        let keys = config.num_key_value_heads * head_dim;
        let (qkv_bias, output_bias) = (config.attention_bias, config.attention_output_bias);
        Ok(Block {
            input_layernorm: self.vector(&path("input_layernorm.weight"), hidden)?,
            q_proj: self.linear(path("self_attn.q_proj"), [queries, hidden], qkv_bias, Role::Linear)?,
            k_proj: self.linear(path("self_attn.k_proj"), [keys, hidden], qkv_bias, Role::Linear)?,
            v_proj: self.linear(path("self_attn.v_proj"), [keys, hidden], qkv_bias, Role::Linear)?,
            o_proj: self.linear(path("self_attn.o_proj"), [hidden, queries], output_bias, Role::Linear)?,
            qk_norm: if config.qk_norm {
                let q_norm = self.vector(&path("self_attn.q_norm.weight"), head_dim)?;
                Some((q_norm, self.vector(&path("self_attn.k_norm.weight"), head_dim)?))
            } else {
                None
            },
            post_attention_layernorm: self.vector(&path("post_attention_layernorm.weight"), hidden)?,
            gate_proj: self.linear(
                path("mlp.gate_proj"),
                [intermediate, hidden],
                config.mlp_bias,
                Role::Linear,
            )?,
            up_proj: self.linear(
                path("mlp.up_proj"),
                [intermediate, hidden],
                config.mlp_bias,
                Role::Linear,
            )?,
            down_proj: self.linear(
                path("mlp.down_proj"),
                [hidden, intermediate],
                config.mlp_bias,
                Role::Linear,
            )?,
            head_dim,
            window: config.sliding_window[index],
            norm_epsilon: config.rms_norm_eps,
            bottlenecks: Vec::new(),
            steering: Vec::new(),
        })
    }
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
