//! The shape of a model, read from `config.json` as Transformers 4 and 5 write it.
//!
//! What each family has is in [`crate::families`]; what a model is made of in [`crate::blocks`].

use std::path::Path;

use serde_json::Value;

use crate::blocks::{BlockConfig, LinearConfig, NormConfig, TensorConfig, TensorRole};
use crate::config_reader::Reader;
use crate::dtype::Dtype;
use crate::error::CheckpointError;
use crate::families::{self, Family};
use crate::quantization_config::StoredQuantization;
use crate::rope::Rope;

/// The shape of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family.
    pub family: &'static Family,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Size of the hidden states.
    pub hidden_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: usize,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// What stands before the blocks.
    pub embedding: EmbeddingConfig,
    /// The blocks, the first one first.
    pub blocks: Vec<BlockConfig>,
    /// The norm behind them.
    pub norm: NormConfig,
    /// What makes logits.
    pub head: HeadConfig,
    /// Rotary embeddings; the blocks' attentions say which of them is theirs.
    pub ropes: Vec<Rope>,
    /// Token that begins a text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end one.
    pub eos_token_ids: Vec<u32>,
    /// Padding token.
    pub pad_token_id: Option<u32>,
    /// Deviation of random initial weights.
    pub initializer_range: f64,
    /// Number format the file names.
    pub dtype: Option<Dtype>,
    /// How the weights of linear layers are quantised in the files.
    pub quantization: Option<StoredQuantization>,
}

/// The embedding, and what happens to it before the first block.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbeddingConfig {
    /// Path of the module, such as `model.embed_tokens`.
    pub path: String,
    /// What it is multiplied with.
    pub scale: Option<f64>,
    /// Positions that are added.
    pub positions: AddedPositions,
    /// Norm of it.
    pub norm: Option<NormConfig>,
}

/// Positions that are added to the embedding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddedPositions {
    /// None.
    None,
    /// A learned row for each position.
    Learned {
        /// Path of the module, such as `transformer.wpe`.
        path: String,
        /// How many there are.
        count: usize,
    },
    /// Sines and cosines of geometrically falling frequencies, as XGLM has them (Vaswani et al., 2017).
    Sinusoidal {
        /// What is added to a position before its angles are taken.
        offset: usize,
        /// The row, counted with the offset, that is zero.
        zero: Option<usize>,
    },
}

/// What makes logits of the last hidden state.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadConfig {
    /// The linear layer.
    pub layer: LinearConfig,
    /// What logits are multiplied with.
    pub scale: Option<f64>,
    /// Bound of the logits: a logit l becomes `cap * tanh(l / cap)`.
    pub softcap: Option<f64>,
}

impl ModelConfig {
    /// Reads a folder's `config.json`.
    pub fn read(folder: &Path) -> Result<(Self, Value), CheckpointError> {
        let path = folder.join("config.json");
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && folder.is_dir() => {
                return Err(CheckpointError::MissingFile {
                    folder: folder.to_owned(),
                    file: "config.json".into(),
                    advice: "a model folder in Hugging Face's layout has one".into(),
                });
            }
            read => read.map_err(|source| CheckpointError::io(&path, source))?,
        };
        let json: Value = serde_json::from_str(&text)
            .map_err(|error| CheckpointError::config(&path, format!("this is not JSON: {error}")))?;
        let config = Self::from_json(&json, &path)?;
        Ok((config, json))
    }

    /// Reads the JSON of a `config.json`; `path` is for messages.
    pub fn from_json(json: &Value, path: &Path) -> Result<Self, CheckpointError> {
        let reader = Reader { path, json };
        let family = families::find(&reader)?;
        let config = (family.read)(family, &reader)?;
        config.check(&reader)?;
        Ok(config)
    }

    /// What must hold of every model.
    fn check(&self, reader: &Reader) -> Result<(), CheckpointError> {
        let refuse = |problem: String| Err(CheckpointError::config(reader.path, problem));
        for block in &self.blocks {
            let attention = &block.attention;
            if !attention.heads.is_multiple_of(attention.kv_heads) {
                return refuse(format!(
                    "the number of attention heads, {}, is not a multiple of the number of key and value heads, {}",
                    attention.heads, attention.kv_heads
                ));
            }
        }
        if let Some(rope) = self
            .ropes
            .iter()
            .find(|rope| !rope.dimensions.is_multiple_of(2) || rope.dimensions == 0)
        {
            return refuse(format!(
                "the rotary embedding turns {} features of a head, which should be an even number above 0 (`head_dim`, \
                 `partial_rotary_factor`)",
                rope.dimensions
            ));
        }
        Ok(())
    }

    /// Whether the rotary embedding depends on the length of the sequence.
    pub fn depends_on_length(&self) -> bool {
        self.ropes.iter().any(Rope::depends_on_length)
    }

    /// How many positions have a learned row, where positions are learned.
    pub fn learned_positions(&self) -> Option<usize> {
        match self.embedding.positions {
            AddedPositions::Learned { count, .. } => Some(count),
            AddedPositions::None | AddedPositions::Sinusoidal { .. } => None,
        }
    }

    /// Name of the embedding's weight.
    pub fn embedding_weight(&self) -> String {
        format!("{}.weight", self.embedding.path)
    }

    /// Parameters that are neither in a block nor the embedding nor the head, in the order in which they compute.
    pub fn tensors_outside(&self) -> Vec<TensorConfig> {
        let mut tensors = Vec::new();
        if let AddedPositions::Learned { path, count } = &self.embedding.positions {
            tensors.push(TensorConfig {
                name: format!("{path}.weight"),
                shape: vec![*count, self.hidden_size],
                role: TensorRole::Table,
            });
        }
        tensors.extend(self.embedding.norm.iter().flat_map(NormConfig::tensors));
        tensors.extend(self.norm.tensors());
        tensors
    }

    /// Whether some block is a mixture of experts.
    pub fn has_experts(&self) -> bool {
        self.blocks.iter().any(|block| block.mlp.experts().is_some())
    }

    /// Whether a linear layer is one that PEFT takes for "all-linear": every one but the head. In a model with mixtures of experts
    /// it leaves out the MLPs of the blocks that have none (`convert_peft_config_for_transformers` of PEFT 0.21).
    pub fn is_all_linear(&self, path: &str) -> bool {
        let is_dense_mlp = || {
            let dense = self.blocks.iter().filter(|block| block.mlp.experts().is_none());
            let mut linears = dense.flat_map(|block| block.mlp.linears());
            self.has_experts() && linears.any(|linear| linear.path == path)
        };
        path != self.head.layer.path && !is_dense_mlp()
    }
}
