//! The parameters of a model and its adapters: one table, so that optimizer, checkpoint and export see the same names.

use std::collections::HashMap;

use burn::tensor::{DType, Tensor};

use crate::ops::weight::PackedWeight;
use crate::spread::Spread;

/// Index of a parameter in its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParameterId(usize);

/// The values of a parameter.
#[derive(Clone, Debug)]
pub enum Stored {
    /// On the device, flat: f32 when trainable, else in the compute dtype.
    Dense(Tensor<1>),
    /// A frozen matrix in fewer bits, or in a file.
    Packed(PackedWeight),
    /// The same as dense, in pieces on all processes.
    Spread(Box<Spread>),
}

/// One parameter. Vectors and matrices alike are stored flat, in row-major order.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Hugging Face's name for weights of the model, such as `model.layers.0.mlp.up_proj.weight`; for adapters PEFT's
    /// without the leading `base_model.model.`, such as `model.layers.0.mlp.up_proj.lora_A.weight`, and with the language of
    /// a copy, such as `model.layers.0.mlp.up_proj.lora_A.sw.weight`.
    pub name: String,
    /// Its shape in the file.
    pub shape: Vec<usize>,
    /// The values.
    pub value: Stored,
    /// Whether it is trained now.
    pub trainable: bool,
    /// Whether it belongs to an adapter rather than to the model.
    pub adapter: bool,
    /// Whether it is never trained, whatever a recipe selects: it belongs to an adapter below the trained one.
    pub frozen: bool,
}

impl Parameter {
    /// The values, flat; those of a packed matrix are decoded to f32.
    pub fn values(&self) -> Tensor<1> {
        match &self.value {
            Stored::Dense(value) => value.clone(),
            Stored::Packed(weight) => weight.dense(DType::F32).reshape([self.len()]),
            Stored::Spread(vector) => vector.values(),
        }
    }

    /// The values as the matrix that the shape says, in f32.
    pub fn matrix(&self) -> Tensor<2> {
        self.values().cast(DType::F32).reshape([self.shape[0], self.shape[1]])
    }

    /// How many numbers it holds.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// All parameters, in the order they were added.
#[derive(Clone, Debug, Default)]
pub struct Parameters {
    list: Vec<Parameter>,
    by_name: HashMap<String, ParameterId>,
}

impl Parameters {
    /// Adds one and returns its index.
    pub fn add(&mut self, parameter: Parameter) -> ParameterId {
        let id = ParameterId(self.list.len());
        self.by_name.entry(parameter.name.clone()).or_insert(id);
        self.list.push(parameter);
        id
    }

    /// The parameter of an index.
    pub fn get(&self, id: ParameterId) -> &Parameter {
        &self.list[id.0]
    }

    /// Takes the values out, so that nobody else holds them and an update can happen in place; `set_value` follows.
    pub fn take_value(&mut self, id: ParameterId) -> Tensor<1> {
        let parameter = &mut self.list[id.0];
        let value = parameter.values();
        let device = value.device();
        parameter.value = Stored::Dense(Tensor::zeros([1], &device));
        value
    }

    /// Gives a parameter its values.
    pub fn set_value(&mut self, id: ParameterId, value: Tensor<1>) {
        self.list[id.0].value = Stored::Dense(value);
    }

    /// The values of a parameter that lies in pieces.
    pub fn spread(&self, id: ParameterId) -> Option<&Spread> {
        match &self.list[id.0].value {
            Stored::Spread(vector) => Some(vector),
            Stored::Dense(_) | Stored::Packed(_) => None,
        }
    }

    /// Gives this process's piece of a parameter its values; of one that does not lie in pieces, nothing happens.
    pub fn set_piece(&mut self, id: ParameterId, piece: Tensor<1>) {
        if let Stored::Spread(vector) = &mut self.list[id.0].value {
            vector.set_own(piece);
        }
    }

    /// The index of a name.
    pub fn find(&self, name: &str) -> Option<ParameterId> {
        self.by_name.get(name).copied()
    }

    /// All of them with their indices.
    pub fn iter(&self) -> impl Iterator<Item = (ParameterId, &Parameter)> {
        self.list
            .iter()
            .enumerate()
            .map(|(index, parameter)| (ParameterId(index), parameter))
    }

    /// Those that are trained now.
    pub fn trainable(&self) -> impl Iterator<Item = (ParameterId, &Parameter)> {
        self.iter().filter(|(_, parameter)| parameter.trainable)
    }

    /// Marks a parameter as trained or frozen. What is trained is kept in f32, its master copy.
    pub fn set_trainable(&mut self, id: ParameterId, trainable: bool) {
        let parameter = &mut self.list[id.0];
        parameter.trainable = trainable;
        if trainable {
            parameter.value = match &parameter.value {
                Stored::Spread(vector) => Stored::Spread(Box::new(vector.to_f32())),
                Stored::Dense(_) | Stored::Packed(_) => Stored::Dense(parameter.values().cast(DType::F32)),
            };
        }
    }
}
