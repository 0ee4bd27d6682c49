//! How each weight of a model gets from its file, or from nothing, to where it is kept: tensor by tensor, so that no more than
//! one of them exists in more bits than it is kept in.

use burn::tensor::{DType, Device};
use interlingua_checkpoints::blocks::{BlockConfig, TensorRole};
use interlingua_checkpoints::config::ModelConfig;
use interlingua_checkpoints::dtype::{Dtype, encode_f32};
use interlingua_checkpoints::packed::{Bytes, Packed, PackedCache, Scheme};
use rayon::prelude::*;

use super::load::{Storage, Weights, tensor};
use crate::error::TrainError;
use crate::ops::weight::PackedWeight;
use crate::parameters::Stored;
use crate::random::{key, normal, text_key};
use crate::spread::Spread;

/// What a parameter is for, which decides how it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// What is always kept as it is computed with: a norm, a bias, a router, learned positions.
    Vector,
    /// A number of the model's definition, which is never trained.
    Constant,
    /// An input embedding of its own, of which a batch reads some rows.
    Embedding,
    /// The head; also an embedding that is the head.
    Head,
    /// A linear layer of a block.
    Linear,
}

/// What random initial values a parameter has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Initial {
    /// Normal ones with the config's deviation.
    Normal,
    /// All the same.
    Constant(f32),
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
    /// Quantised weights of an earlier start.
    cache: Option<PackedCache>,
}

impl<'a> WeightSource<'a> {
    /// # Errors
    /// When weights that are to be quantised cannot be read.
    pub(super) fn new(
        config: &'a ModelConfig,
        weights: &'a Weights<'a>,
        storage: &'a Storage<'a>,
    ) -> Result<Self, TrainError> {
        let cache = match (weights, storage.cache, storage.quantization) {
            (Weights::Folder(folder), Some(path), Some(quantization)) if config.quantization.is_none() => {
                let matrices = quantised_matrices(config, storage);
                let mut say = |note: &str| tracing::warn!("{note}");
                PackedCache::open_or_make(path, folder, quantization.scheme, &matrices, &mut say)?
            }
            _ => None,
        };
        Ok(Self {
            config,
            weights,
            storage,
            cache,
        })
    }

    /// Whether a parameter is trained at some time.
    pub(super) fn trains(&self, name: &str) -> bool {
        (self.storage.trainable)(name)
    }

    /// The values of a parameter, kept as its role asks for.
    pub(super) fn value(
        &self,
        name: &str,
        shape: &[usize],
        role: Role,
        initial: Initial,
    ) -> Result<Stored, TrainError> {
        let matrix = <[usize; 2]>::try_from(shape).ok();
        let Storage {
            dtype, device, offload, ..
        } = self.storage;
        if let Some(collectives) = self.storage.spread.as_ref().filter(|_| role == Role::Linear) {
            return Ok(match (self.kept(name, role), matrix) {
                (Kept::Quantised, Some(shape)) => {
                    let packed = self.quantised(name, shape, initial)?;
                    Stored::Packed(PackedWeight::spread(&packed, device, collectives))
                }
                _ => {
                    let dtype = if self.trains(name) { DType::F32 } else { *dtype };
                    let whole = tensor(self.numbers(name, shape, initial)?, device, dtype);
                    Stored::Spread(Box::new(Spread::cut(&whole, collectives)))
                }
            });
        }
        Ok(match (self.kept(name, role), matrix) {
            (Kept::Dense, _) | (_, None) => {
                let dtype = if self.trains(name) { DType::F32 } else { *dtype };
                Stored::Dense(tensor(self.numbers(name, shape, initial)?, device, dtype))
            }
            (Kept::Quantised, Some(shape)) => {
                let packed = self.quantised(name, shape, initial)?;
                Stored::Packed(if *offload && role == Role::Linear {
                    PackedWeight::offloaded(packed, device)
                } else {
                    PackedWeight::new(packed, device)
                })
            }
            (Kept::Stored, Some(shape)) => Stored::Packed(PackedWeight::on_host_for(
                self.stored(name, shape, initial)?.in_memory(),
                device,
            )),
            (Kept::Mapped, Some(shape)) => {
                let packed = self.stored(name, shape, initial)?;
                Stored::Packed(if role == Role::Linear {
                    PackedWeight::offloaded(packed, device)
                } else {
                    PackedWeight::on_host_for(packed, device)
                })
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
            Weights::Folder(folder) => (true, folder.is_packed(name)),
            Weights::Random { .. } => (false, false),
        };
        let on_cpu = *device == Device::flex();
        match role {
            _ if packed => Kept::Quantised,
            _ if role != Role::Constant && self.trains(name) => Kept::Dense,
            Role::Vector | Role::Constant => Kept::Dense,
            Role::Embedding if is_file => Kept::Mapped,
            Role::Linear if quantization.is_some() => Kept::Quantised,
            Role::Head if quantization.is_some_and(|it| it.head) && name == self.config.head.layer.weight() => {
                Kept::Quantised
            }
            Role::Linear if *offload => Kept::Mapped,
            // A GPU computes with them as they are; a CPU would need twice the memory for that.
            Role::Embedding | Role::Head if on_cpu && *offload => Kept::Mapped,
            Role::Embedding | Role::Head
                if on_cpu && (quantization.is_some() || self.config.quantization.is_some()) =>
            {
                Kept::Stored
            }
            _ => Kept::Dense,
        }
    }

    fn numbers(&self, name: &str, shape: &[usize], initial: Initial) -> Result<Vec<f32>, TrainError> {
        match self.weights {
            Weights::Folder(folder) => Ok(folder.read_f32(name, shape)?),
            Weights::Random { seed } => Ok(random_values(
                *seed,
                name,
                shape,
                initial,
                self.config.initializer_range,
            )),
        }
    }

    /// A matrix in the format of its file.
    fn stored(&self, name: &str, shape: [usize; 2], initial: Initial) -> Result<Packed, TrainError> {
        if let Weights::Folder(folder) = self.weights {
            return Ok(folder.read_packed(name, shape)?);
        }
        let dtype = self.config.dtype.unwrap_or(Dtype::F32);
        let bytes = encode_f32(dtype, &self.numbers(name, &shape, initial)?);
        Ok(Packed::float(dtype, shape, Bytes::Owned(bytes.into())))
    }

    fn quantised(&self, name: &str, shape: [usize; 2], initial: Initial) -> Result<Packed, TrainError> {
        let packed = match (self.weights, &self.cache, self.storage.quantization) {
            // Its file is quantised.
            (_, _, None) => self.stored(name, shape, initial)?,
            (Weights::Folder(_), Some(cache), _) => cache.read(name, shape)?,
            (Weights::Folder(folder), None, Some(quantization)) => folder.pack(name, shape, quantization.scheme)?,
            (Weights::Random { .. }, _, Some(quantization)) => {
                let values = self.numbers(name, &shape, initial)?;
                match quantization.scheme {
                    Scheme::Nf4 { block, double } => Packed::nf4(&values, shape, block, double),
                    Scheme::Int8 => Packed::int8(&values, shape),
                }
            }
        };
        Ok(if self.storage.offload {
            packed
        } else {
            packed.in_memory()
        })
    }
}

/// The matrices that a storage quantises, with their shapes.
fn quantised_matrices(config: &ModelConfig, storage: &Storage) -> Vec<(String, [usize; 2])> {
    let Some(quantization) = storage.quantization else {
        return Vec::new();
    };
    let of_blocks = config.blocks.iter().flat_map(BlockConfig::tensors);
    let linears = of_blocks.filter(|tensor| tensor.role == TensorRole::Linear);
    let matrices = linears.filter_map(|tensor| Some((tensor.name, <[usize; 2]>::try_from(tensor.shape).ok()?)));
    let head = (quantization.head && !config.tie_word_embeddings)
        .then(|| (config.head.layer.weight(), [config.vocab_size, config.hidden_size]));
    matrices
        .chain(head)
        .filter(|(name, _)| !(storage.trainable)(name))
        .collect()
}

/// Numbers as Transformers initialises.
fn random_values(seed: u64, name: &str, shape: &[usize], initial: Initial, deviation: f64) -> Vec<f32> {
    let length = shape.iter().product::<usize>();
    if let Initial::Constant(value) = initial {
        return vec![value; length];
    }
    let key = key(&[seed, text_key(name)]);
    let number = |index| normal(key, index as u64) * deviation as f32;
    (0..length).into_par_iter().map(number).collect()
}
