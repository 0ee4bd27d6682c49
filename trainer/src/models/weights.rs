//! How each weight of a model gets from its file, or from nothing, to where it is kept: tensor by tensor, so that no more than
//! one of them exists in more bits than it is kept in.

use burn::tensor::{DType, Device};
use interlingua_checkpoints::config::ModelConfig;
use interlingua_checkpoints::dtype::{Dtype, encode_f32};
use interlingua_checkpoints::packed::{Bytes, Packed, Scheme};
use rayon::prelude::*;

use super::load::{Storage, Weights, tensor};
use crate::error::TrainError;
use crate::ops::weight::PackedWeight;
use crate::parameters::Stored;
use crate::random::{key, normal, text_key};

/// What a parameter is for, which decides how it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// A norm or a bias.
    Vector,
    /// An input embedding of its own, of which a batch reads some rows.
    Embedding,
    /// The head; also an embedding that is the head.
    Head,
    /// A linear layer of a block.
    Linear,
}

/// How a weight is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    /// On the device, in the dtype that is computed in.
    Dense,
    /// Quantised.
    Quantised,
    /// In its file's format, in memory.
    Stored,
    /// In its file.
    Mapped,
}

/// The weights of a model that is being built.
pub(super) struct WeightSource<'a> {
    config: &'a ModelConfig,
    weights: &'a Weights<'a>,
    storage: &'a Storage<'a>,
}

impl<'a> WeightSource<'a> {
    pub(super) fn new(config: &'a ModelConfig, weights: &'a Weights<'a>, storage: &'a Storage<'a>) -> Self {
        Self {
            config,
            weights,
            storage,
        }
    }

    /// Whether a parameter is trained at some time.
    pub(super) fn trains(&self, name: &str) -> bool {
        (self.storage.trainable)(name)
    }

    /// The values of a parameter, kept as its role asks for.
    pub(super) fn value(&self, name: &str, shape: &[usize], role: Role) -> Result<Stored, TrainError> {
        let matrix = <[usize; 2]>::try_from(shape).ok();
        let packed = match (self.kept(name, role), matrix) {
            (Kept::Dense, _) | (_, None) => None,
            (Kept::Quantised, Some(shape)) => Some(self.quantised(name, shape)?),
            (Kept::Stored, Some(shape)) => Some(self.stored(name, shape)?.in_memory()),
            (Kept::Mapped, Some(shape)) => Some(self.stored(name, shape)?),
        };
        let Storage { dtype, device, .. } = self.storage;
        Ok(match packed {
            Some(packed) => Stored::Packed(PackedWeight::new(packed, device)),
            None => {
                let dtype = if self.trains(name) { DType::F32 } else { *dtype };
                Stored::Dense(tensor(self.numbers(name, shape)?, device, dtype))
            }
        })
    }

    fn kept(&self, name: &str, role: Role) -> Kept {
        let Storage {
            quantization,
            offload,
            device,
            ..
        } = self.storage;
        let (is_file, packed) = match self.weights {
            Weights::Folder(_) => (true, false),
            Weights::Random { .. } => (false, false),
        };
        let on_cpu = *device == Device::flex();
        match role {
            _ if packed => Kept::Quantised,
            _ if self.trains(name) => Kept::Dense,
            Role::Vector => Kept::Dense,
            Role::Embedding if is_file => Kept::Mapped,
            Role::Linear if quantization.is_some() => Kept::Quantised,
            Role::Head if quantization.is_some_and(|it| it.head) && name == HEAD => Kept::Quantised,
            Role::Linear if *offload => Kept::Mapped,
            // A GPU computes with them as they are; a CPU would need twice the memory for that.
            Role::Embedding | Role::Head if on_cpu && *offload => Kept::Mapped,
            Role::Embedding | Role::Head if on_cpu && (quantization.is_some() || self.is_quantised_folder()) => {
                Kept::Stored
            }
            _ => Kept::Dense,
        }
    }

    fn is_quantised_folder(&self) -> bool {
        match self.weights {
            Weights::Folder(_) => false,
            Weights::Random { .. } => false,
        }
    }

    fn numbers(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, TrainError> {
        match self.weights {
            Weights::Folder(folder) => Ok(folder.read_f32(name, shape)?),
            Weights::Random { seed } => Ok(random_values(*seed, name, shape, self.config.initializer_range)),
        }
    }

    /// A matrix in the format of its file.
    fn stored(&self, name: &str, shape: [usize; 2]) -> Result<Packed, TrainError> {
        if let Weights::Folder(folder) = self.weights {
            return Ok(folder.map(name, shape)?);
        }
        let dtype = self.config.dtype.unwrap_or(Dtype::F32);
        let bytes = encode_f32(dtype, &self.numbers(name, &shape)?);
        Ok(Packed::float(dtype, shape, Bytes::Owned(bytes.into())))
    }

    fn quantised(&self, name: &str, shape: [usize; 2]) -> Result<Packed, TrainError> {
        let values = || self.numbers(name, &shape);
        match self.storage.quantization.map(|it| it.scheme) {
            Some(Scheme::Nf4 { block, double }) => Ok(Packed::nf4(&values()?, shape, block, double)),
            Some(Scheme::Int8) => Ok(Packed::int8(&values()?, shape)),
            // Its file is quantised.
            None => self.stored(name, shape),
        }
    }
}

/// Name of the head where it is not the embedding.
const HEAD: &str = "lm_head.weight";

/// Numbers as Transformers initialises.
fn random_values(seed: u64, name: &str, shape: &[usize], deviation: f64) -> Vec<f32> {
    let length = shape.iter().product::<usize>();
    if name.contains("norm") {
        return vec![1.0; length];
    }
    if name.ends_with(".bias") {
        return vec![0.0; length];
    }
    let key = key(&[seed, text_key(name)]);
    let number = |index| normal(key, index as u64) * deviation as f32;
    (0..length).into_par_iter().map(number).collect()
}
