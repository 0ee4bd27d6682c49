//! A model out of a folder, tensor by tensor, or out of its config alone with random weights.

use burn::tensor::{DType, Device, Tensor, TensorData};
use interlingua_checkpoints::config::ModelConfig;
use interlingua_checkpoints::model_folder::ModelFolder;

use super::Model;
use super::decoder::Block;
use crate::error::TrainError;
use crate::layers::linear::Linear;
use crate::parameters::{Parameter, ParameterId, Parameters};
use crate::random::{key, normal, text_key};

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

/// Builds the model. Parameters that `trainable` names are kept in f32, the others in `dtype`.
pub fn load(
    config: &ModelConfig,
    weights: &Weights,
    dtype: DType,
    device: &Device,
    trainable: &dyn Fn(&str) -> bool,
) -> Result<Model, TrainError> {
    let mut builder = Builder {
        config,
        weights,
        dtype,
        device,
        trainable,
        parameters: Parameters::default(),
    };
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    let embedding = builder.parameter("model.embed_tokens.weight", vec![vocab, hidden])?;
    let blocks = (0..config.num_hidden_layers)
        .map(|index| builder.block(index))
        .collect::<Result<_, _>>()?;
    let norm = builder.parameter("model.norm.weight", vec![hidden])?;
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
        builder.linear("lm_head".into(), vocab, hidden, false)?
    };
    let parameters = builder.parameters;
    Ok(Model {
        config: config.clone(),
        device: device.clone(),
        dtype,
        parameters,
        embedding,
        blocks,
        norm,
        head,
    })
}

struct Builder<'a> {
    config: &'a ModelConfig,
    weights: &'a Weights<'a>,
    dtype: DType,
    device: &'a Device,
    trainable: &'a dyn Fn(&str) -> bool,
    parameters: Parameters,
}

impl Builder<'_> {
    fn parameter(&mut self, name: &str, shape: Vec<usize>) -> Result<ParameterId, TrainError> {
        let trainable = (self.trainable)(name);
        let values = match self.weights {
            Weights::Folder(folder) => folder.read_f32(name, &shape)?,
            Weights::Random { seed } => random_values(*seed, name, &shape, self.config.initializer_range),
        };
        let value = tensor(values, self.device, if trainable { DType::F32 } else { self.dtype });
        Ok(self.parameters.add(Parameter {
            name: name.to_owned(),
            shape,
            value,
            trainable,
            adapter: false,
            frozen: false,
        }))
    }

    fn linear(&mut self, name: String, outputs: usize, inputs: usize, bias: bool) -> Result<Linear, TrainError> {
        let weight = self.parameter(&format!("{name}.weight"), vec![outputs, inputs])?;
        let bias = if bias {
            Some(self.parameter(&format!("{name}.bias"), vec![outputs])?)
        } else {
            None
        };
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
            input_layernorm: self.parameter(&path("input_layernorm.weight"), vec![hidden])?,
            q_proj: self.linear(path("self_attn.q_proj"), queries, hidden, qkv_bias)?,
            k_proj: self.linear(path("self_attn.k_proj"), keys, hidden, qkv_bias)?,
            v_proj: self.linear(path("self_attn.v_proj"), keys, hidden, qkv_bias)?,
            o_proj: self.linear(path("self_attn.o_proj"), hidden, queries, output_bias)?,
            qk_norm: if config.qk_norm {
                let q_norm = self.parameter(&path("self_attn.q_norm.weight"), vec![head_dim])?;
                Some((
                    q_norm,
                    self.parameter(&path("self_attn.k_norm.weight"), vec![head_dim])?,
                ))
            } else {
                None
            },
            post_attention_layernorm: self.parameter(&path("post_attention_layernorm.weight"), vec![hidden])?,
            gate_proj: self.linear(path("mlp.gate_proj"), intermediate, hidden, config.mlp_bias)?,
            up_proj: self.linear(path("mlp.up_proj"), intermediate, hidden, config.mlp_bias)?,
            down_proj: self.linear(path("mlp.down_proj"), hidden, intermediate, config.mlp_bias)?,
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

fn random_values(seed: u64, name: &str, shape: &[usize], deviation: f64) -> Vec<f32> {
    let length = shape.iter().product::<usize>();
    if name.contains("norm") {
        return vec![1.0; length];
    }
    if name.ends_with(".bias") {
        return vec![0.0; length];
    }
    let key = key(&[seed, text_key(name)]);
    (0..length)
        .map(|index| normal(key, index as u64) * deviation as f32)
        .collect()
}
