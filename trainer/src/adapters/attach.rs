//! Puts the adapters of folders on a model, to use them or to train them on.

use burn::tensor::{DType, Device, Tensor};
use interlingua_checkpoints::dtype::{Dtype, HostTensor};
use interlingua_checkpoints::own_adapter::{AnyAdapter, OwnAdapter};
use interlingua_checkpoints::peft::{AdapterFolder, belongs_to};

use super::bottleneck::Bottleneck;
use super::dora::Dora;
use super::lora::{Lora, scale};
use super::steering::Steering;
use super::{Adapter, ForRows};
use crate::error::TrainError;
use crate::layers::linear::Linear;
use crate::models::Model;
use crate::models::load::tensor;
use crate::parameters::{Parameter, ParameterId, Parameters, Stored};

/// How an adapter stands on a model.
#[derive(Clone, Copy, Debug, Default)]
pub struct Placement<'a> {
    /// What tells the names of its parameters from those of others: its language, or its place in a stack.
    pub copy: Option<&'a str>,
    /// The language of the rows that it is for; absent: all rows.
    pub language: Option<&'a str>,
    /// Dropout while training.
    pub dropout: f32,
    /// Trained, or frozen for good.
    pub trainable: bool,
}

impl Placement<'_> {
    /// Runs what puts an adapter on the model, with its table of parameters at hand.
    pub(super) fn put(
        self,
        model: &mut Model,
        put: impl FnOnce(&mut Model, &mut Placing) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        let mut parameters = std::mem::take(&mut model.parameters);
        let device = model.device.clone();
        let mut placing = Placing {
            placement: self,
            device,
            head: model.head.name.clone(),
            parameters: &mut parameters,
        };
        let result = put(model, &mut placing);
        model.parameters = parameters;
        result
    }

    /// The adapter with its rows.
    pub(super) fn for_rows<T>(&self, adapter: T) -> ForRows<T> {
        ForRows {
            adapter,
            language: self.language.map(str::to_owned),
        }
    }
}

/// An adapter that is being put on a model.
pub(super) struct Placing<'a> {
    placement: Placement<'a>,
    device: Device,
    /// Path of the model's head.
    head: String,
    /// The model's parameters.
    pub(super) parameters: &'a mut Parameters,
}

impl Placing<'_> {
    /// Adds a parameter of the adapter; `part` is what follows the module's path in a file.
    pub(super) fn add(&mut self, module: &str, part: &str, shape: Vec<usize>, values: Vec<f32>) -> ParameterId {
        let value = tensor(values, &self.device, DType::F32);
        self.add_value(module, part, shape, value)
    }

    /// The same with values that are on the device.
    pub(super) fn add_value(&mut self, module: &str, part: &str, shape: Vec<usize>, value: Tensor<1>) -> ParameterId {
        let name = match (self.placement.copy, part.strip_suffix(".weight")) {
            (None, _) => format!("{module}.{part}"),
            (Some(copy), Some(part)) => format!("{module}.{part}.{copy}.weight"),
            (Some(copy), None) => format!("{module}.{part}.{copy}"),
        };
        self.parameters.add(Parameter {
            name,
            shape,
            value: Stored::Dense(value),
            trainable: self.placement.trainable,
            adapter: true,
            frozen: !self.placement.trainable,
        })
    }

    /// Puts an adapter on a linear layer.
    pub(super) fn push(&self, linear: &mut Linear, adapter: Adapter) -> Result<(), TrainError> {
        let adapter = self.placement.for_rows(adapter);
        if linear.name == self.head && adapter.language.is_some() {
            return Err(TrainError::Setup(format!(
                "an adapter for one language cannot sit on the head ({}); choose other adapter.targets",
                self.head
            )));
        }
        let is_dora = |adapter: &ForRows<Adapter>| matches!(adapter.adapter, Adapter::Dora(_));
        let shares_rows = |other: &ForRows<Adapter>| {
            other.language.is_none() || adapter.language.is_none() || other.language == adapter.language
        };
        if is_dora(&adapter) && linear.adapters.iter().any(|other| is_dora(other) && shares_rows(other)) {
            return Err(TrainError::Setup(format!(
                "two DoRA adapters on `{}` cannot be added up: each of them rescales the whole weight; use one of them",
                linear.name
            )));
        }
        linear.adapters.push(adapter);
        Ok(())
    }
}

/// Puts the adapter of a folder in PEFT's layout on a model that has none, for all rows; [`attach`] makes stacks.
pub fn attach_folder(
    model: &mut Model,
    folder: &AdapterFolder,
    dropout: f32,
    trainable: bool,
) -> Result<(), TrainError> {
    let placement = Placement {
        dropout,
        trainable,
        ..Placement::default()
    };
    attach_peft(model, folder, placement)
}

/// Puts an adapter of any kind on top of what is on the model.
pub fn attach(model: &mut Model, adapter: &AnyAdapter, placement: Placement) -> Result<(), TrainError> {
    match adapter {
        AnyAdapter::Peft(folder) => attach_peft(model, folder, placement),
        AnyAdapter::Own(folder) if adapter.kind() == "bottleneck" => attach_bottlenecks(model, folder, placement),
        AnyAdapter::Own(folder) if adapter.kind() == "steering" => attach_steering(model, folder, placement),
        AnyAdapter::Own(folder) => Err(TrainError::Setup(format!(
            "{}: the adapter is of the kind \"{}\", which this version does not know",
            folder.path().display(),
            adapter.kind()
        ))),
    }
}

fn attach_peft(model: &mut Model, folder: &AdapterFolder, placement: Placement) -> Result<(), TrainError> {
    let folder = &folder.on(&model.config)?;
    let config = folder.config();
    if let (Some(language), false) = (placement.language, config.modules_to_save.is_empty()) {
        return Err(TrainError::Setup(format!(
            "an adapter for {language} alone cannot bring whole modules (modules_to_save: {}), which all rows share",
            config.modules_to_save.join(", ")
        )));
    }
    let modules = model.linears().map(|linear| linear.name.clone()).collect();
    folder.check_modules(&modules)?;
    placement.put(model, |model, placing| {
        for linear in model.linears_mut() {
            let Some(rank) = folder.rank_of(&linear.name) else {
                continue;
            };
            let name = linear.name.clone();
            let mut add = |part: &str, shape: Vec<usize>| -> Result<ParameterId, TrainError> {
                let values = folder.read_f32(&format!("{name}.{part}"), &shape)?;
                Ok(placing.add(&name, part, shape, values))
            };
            let lora = Lora {
                a: add("lora_A.weight", vec![rank, linear.inputs])?,
                b: add("lora_B.weight", vec![linear.outputs, rank])?,
                scale: scale(rank, config.alpha_of(&name), config.use_rslora),
                dropout: placement.dropout,
            };
            let adapter = if config.use_dora {
                let magnitude = add("lora_magnitude_vector", vec![linear.outputs])?;
                Adapter::Dora(Dora { lora, magnitude })
            } else {
                Adapter::Lora(lora)
            };
            placing.push(linear, adapter)?;
        }
        Ok(())
    })?;
    let (trainable, device) = (placement.trainable, model.device.clone());
    for id in saved_modules(model, &config.modules_to_save)? {
        let parameter = model.parameters.get(id);
        let values = folder.read_f32(&parameter.name, &parameter.shape)?;
        let dtype = if trainable { DType::F32 } else { model.dtype };
        model.parameters.set_value(id, tensor(values, &device, dtype));
        model.parameters.set_trainable(id, trainable);
    }
    Ok(())
}

fn attach_bottlenecks(model: &mut Model, folder: &OwnAdapter, placement: Placement) -> Result<(), TrainError> {
    let hidden = model.config.hidden_size;
    let blocks = model.blocks.len();
    // The blocks' paths differ in their numbers alone.
    let behind = model.blocks.last().and_then(|block| block.path.rsplit_once('.'));
    let behind = behind.map(|(path, _)| format!("{path}.{blocks}.adapter_down.weight"));
    if behind.is_some_and(|behind| folder.shape(&behind).is_some()) {
        return Err(TrainError::Setup(format!(
            "{}: the adapter has more blocks than this model, which has {blocks}; it was trained on another one ({})",
            folder.path().display(),
            folder.description().base_model
        )));
    }
    placement.put(model, |model, placing| {
        for block in &mut model.blocks {
            let module = block.path.clone();
            let inner = folder
                .shape(&format!("{module}.adapter_down.weight"))
                .and_then(|shape| shape.first().copied())
                .unwrap_or(0);
            let mut add = |part: &str, shape: Vec<usize>| -> Result<ParameterId, TrainError> {
                let values = folder.read_f32(&format!("{module}.{part}"), &shape)?;
                Ok(placing.add(&module, part, shape, values))
            };
            let bottleneck = Bottleneck {
                name: format!("{module}.adapter"),
                down: add("adapter_down.weight", vec![inner, hidden])?,
                up: add("adapter_up.weight", vec![hidden, inner])?,
                dropout: placement.dropout,
            };
            block.bottlenecks.push(placement.for_rows(bottleneck));
        }
        Ok(())
    })
}

fn attach_steering(model: &mut Model, folder: &OwnAdapter, placement: Placement) -> Result<(), TrainError> {
    let (hidden, blocks) = (model.config.hidden_size, model.blocks.len());
    let description = folder.description();
    let layer = description.layer.filter(|layer| (1..=blocks).contains(layer)).ok_or_else(|| {
        TrainError::Setup(format!(
            "{}: the vector belongs to layer {}, and this model has {blocks} blocks; it was made for another one ({})",
            folder.path().display(),
            description.layer.unwrap_or(0),
            description.base_model
        ))
    })?;
    placement.put(model, |model, placing| {
        let module = model.blocks[layer - 1].path.clone();
        let values = folder.read_f32(&format!("{module}.steering_vector"), &[hidden])?;
        let vector = placing.add(&module, "steering_vector", vec![hidden], values);
        let scale = description.scale.unwrap_or(1.0) as f32;
        model.blocks[layer - 1]
            .steering
            .push(placement.for_rows(Steering { vector, scale }));
        Ok(())
    })
}

/// The parameters of modules that PEFT's `modules_to_save` names.
pub fn saved_modules(model: &Model, modules: &[String]) -> Result<Vec<ParameterId>, TrainError> {
    let mut all = Vec::new();
    for module in modules {
        let is_an_end = |path: &str| path == module || path.rsplit('.').next() == Some(module);
        let config = &model.config;
        let ends = [&config.embedding.path, &config.head.layer.path];
        if config.tie_word_embeddings && ends.into_iter().any(|path| is_an_end(path)) {
            return Err(TrainError::Setup(format!(
                "adapter.modules_to_save: `{module}` is tied to the other end of this model (tie_word_embeddings); \
                 train it with train.parameters instead"
            )));
        }
        let parameters = model.parameters.iter().filter(|(_, parameter)| !parameter.adapter);
        let found: Vec<ParameterId> = parameters
            .filter(|(_, parameter)| belongs_to(&parameter.name, module))
            .map(|(id, _)| id)
            .collect();
        if found.is_empty() {
            return Err(TrainError::Setup(format!(
                "adapter.modules_to_save: the model has no module `{module}`"
            )));
        }
        all.extend(found);
    }
    Ok(all)
}

pub(super) fn save_modules(model: &mut Model, modules: &[String]) -> Result<(), TrainError> {
    for id in saved_modules(model, modules)? {
        model.parameters.set_trainable(id, true);
    }
    Ok(())
}

/// A parameter on the host, in a dtype.
pub fn host_tensor(parameter: &Parameter, dtype: Dtype) -> HostTensor {
    let values: Vec<f32> = parameter.values().cast(DType::F32).into_data().iter::<f32>().collect();
    HostTensor::from_f32(parameter.shape.clone(), &values).cast(dtype)
}
