//! Puts adapters on a model: new ones as a recipe says, or those of a folder.

use burn::tensor::DType;
use interlingua_checkpoints::dtype::{Dtype, HostTensor};
use interlingua_checkpoints::peft::{AdapterConfig, AdapterFolder, belongs_to};
use interlingua_recipes::{Adapter as AdapterRecipe, AdapterKind, Selector};

use super::Adapter;
use super::dora::{Dora, row_norm};
use super::lora::{Lora, initial_a, scale};
use crate::error::TrainError;
use crate::layers::linear::Linear;
use crate::models::Model;
use crate::models::load::tensor;
use crate::parameters::{Parameter, ParameterId, Parameters};

/// Puts new adapters on every linear layer that the recipe's targets name, initialised as PEFT does.
pub fn attach_new(model: &mut Model, recipe: &AdapterRecipe, seed: u64) -> Result<(), TrainError> {
    let selector = recipe
        .targets
        .selector()
        .map_err(|error| TrainError::Setup(format!("adapter.targets: {error}")))?;
    let scale = scale(recipe.rank, recipe.alpha, recipe.rslora);
    let device = model.device.clone();
    let mut parameters = std::mem::take(&mut model.parameters);
    let mut found = 0;
    for linear in model
        .linears_mut()
        .filter(|linear| is_target(linear, selector.as_ref()))
    {
        found += 1;
        let name = format!("{}.lora_A.weight", linear.name);
        let a = initial_a(seed, &name, recipe.rank, linear.inputs);
        let b = vec![0.0; linear.outputs * recipe.rank];
        let mut add = |name: String, shape: Vec<usize>, values: Vec<f32>| {
            let value = tensor(values, &device, DType::F32);
            parameters.add(Parameter {
                name,
                shape,
                value,
                trainable: true,
                adapter: true,
            })
        };
        let a = add(name, vec![recipe.rank, linear.inputs], a);
        let b = add(
            format!("{}.lora_B.weight", linear.name),
            vec![linear.outputs, recipe.rank],
            b,
        );
        let lora = Lora {
            a,
            b,
            scale,
            dropout: recipe.dropout as f32,
        };
        linear.adapter = Some(match recipe.kind {
            AdapterKind::Dora => {
                let norm = current_row_norm(linear, &lora, &parameters);
                let name = format!("{}.lora_magnitude_vector", linear.name);
                let shape = vec![linear.outputs];
                let value = norm;
                let magnitude = parameters.add(Parameter {
                    name,
                    shape,
                    value,
                    trainable: true,
                    adapter: true,
                });
                Adapter::Dora(Dora { lora, magnitude })
            }
            AdapterKind::Lora | AdapterKind::None => Adapter::Lora(lora),
        });
    }
    model.parameters = parameters;
    if found == 0 {
        let names: Vec<&str> = model.linears().take(7).map(|linear| linear.name.as_str()).collect();
        return Err(TrainError::Setup(format!(
            "adapter.targets names none of the model's linear layers; the first block has {}",
            names.join(", ")
        )));
    }
    save_modules(model, &recipe.modules_to_save)
}

/// "all-linear" is every linear layer but the head, as in PEFT.
fn is_target(linear: &Linear, selector: Option<&Selector>) -> bool {
    match selector {
        None => linear.name != "lm_head",
        Some(selector) => selector.selects(&linear.name),
    }
}

fn current_row_norm(linear: &Linear, lora: &Lora, parameters: &Parameters) -> burn::tensor::Tensor<1> {
    let matrix = |id: ParameterId| {
        let parameter = parameters.get(id);
        parameter
            .value
            .clone()
            .cast(DType::F32)
            .reshape([parameter.shape[0], parameter.shape[1]])
    };
    row_norm(matrix(linear.weight), matrix(lora.a), matrix(lora.b), lora.scale)
}

/// The parameters of modules that PEFT's `modules_to_save` names.
fn saved_modules(model: &Model, modules: &[String]) -> Result<Vec<ParameterId>, TrainError> {
    let mut all = Vec::new();
    for module in modules {
        if model.config.tie_word_embeddings
            && ["lm_head", "embed_tokens", "model.embed_tokens"].contains(&module.as_str())
        {
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

fn save_modules(model: &mut Model, modules: &[String]) -> Result<(), TrainError> {
    for id in saved_modules(model, modules)? {
        model.parameters.set_trainable(id, true);
    }
    Ok(())
}

/// Puts the adapter of a folder on the model, to train it on or to use it.
pub fn attach_folder(
    model: &mut Model,
    folder: &AdapterFolder,
    dropout: f32,
    trainable: bool,
) -> Result<(), TrainError> {
    let config = folder.config();
    let device = model.device.clone();
    let mut parameters = std::mem::take(&mut model.parameters);
    let result = read_adapters(model, folder, dropout, trainable, &device, &mut parameters);
    model.parameters = parameters;
    result?;
    for id in saved_modules(model, &config.modules_to_save)? {
        let parameter = model.parameters.get(id);
        let values = folder.read_f32(&parameter.name, &parameter.shape)?;
        let dtype = if trainable { DType::F32 } else { model.dtype };
        model.parameters.set_value(id, tensor(values, &device, dtype));
        model.parameters.set_trainable(id, trainable);
    }
    Ok(())
}

fn read_adapters(
    model: &mut Model,
    folder: &AdapterFolder,
    dropout: f32,
    trainable: bool,
    device: &burn::tensor::Device,
    parameters: &mut Parameters,
) -> Result<(), TrainError> {
    let config = folder.config();
    let modules = model.linears().map(|linear| linear.name.clone()).collect();
    folder.check_modules(&modules)?;
    for linear in model.linears_mut() {
        let Some(rank) = folder.rank_of(&linear.name) else {
            continue;
        };
        let mut add = |part: &str, shape: Vec<usize>| -> Result<ParameterId, TrainError> {
            let name = format!("{}.{part}", linear.name);
            let value = tensor(folder.read_f32(&name, &shape)?, device, DType::F32);
            Ok(parameters.add(Parameter {
                name,
                shape,
                value,
                trainable,
                adapter: true,
            }))
        };
        let a = add("lora_A.weight", vec![rank, linear.inputs])?;
        let b = add("lora_B.weight", vec![linear.outputs, rank])?;
        let scale = scale(rank, config.alpha_of(&linear.name), config.use_rslora);
        let lora = Lora { a, b, scale, dropout };
        linear.adapter = Some(if config.use_dora {
            Adapter::Dora(Dora {
                lora,
                magnitude: add("lora_magnitude_vector", vec![linear.outputs])?,
            })
        } else {
            Adapter::Lora(lora)
        });
    }
    Ok(())
}

/// The tensors of an adapter folder: adapter parameters and saved modules, by PEFT's names without the leading
/// `base_model.model.`.
pub fn adapter_tensors(model: &Model, config: &AdapterConfig) -> Result<Vec<(String, HostTensor)>, TrainError> {
    let saved = saved_modules(model, &config.modules_to_save)?;
    let parameters = model.parameters.iter();
    let wanted = parameters.filter(|(id, parameter)| parameter.adapter || saved.contains(id));
    Ok(wanted
        .map(|(_, parameter)| (parameter.name.clone(), host_tensor(parameter, Dtype::F32)))
        .collect())
}

/// A parameter on the host, in a dtype.
pub fn host_tensor(parameter: &Parameter, dtype: Dtype) -> HostTensor {
    let values: Vec<f32> = parameter
        .value
        .clone()
        .cast(DType::F32)
        .into_data()
        .iter::<f32>()
        .collect();
    HostTensor::from_f32(parameter.shape.clone(), &values).cast(dtype)
}
