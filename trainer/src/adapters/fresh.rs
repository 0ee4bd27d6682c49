//! Puts new adapters on a model, as a recipe says.

use burn::tensor::Tensor;
use interlingua_checkpoints::blocks::BlockConfig;
use interlingua_checkpoints::config::ModelConfig;
use interlingua_recipes::{Adapter as AdapterRecipe, AdapterKind, Selector};

use super::Adapter;
use super::attach::{Placement, save_modules};
use super::bottleneck::Bottleneck;
use super::dora::{Dora, row_norm};
use super::lora::{Lora, initial_a, scale};
use super::steering::{Steering, layer_of};
use crate::error::TrainError;
use crate::layers::linear::Linear;
use crate::models::Model;
use crate::parameters::{ParameterId, Parameters};

/// Puts a new adapter on the model, for the rows of a language or for all. What is drawn depends on seed and module alone, so
/// that the copies of all languages start equal.
pub fn attach_new(
    model: &mut Model,
    recipe: &AdapterRecipe,
    seed: u64,
    language: Option<&str>,
) -> Result<(), TrainError> {
    let placement = Placement {
        copy: language,
        language,
        dropout: recipe.dropout as f32,
        trainable: true,
    };
    match recipe.kind {
        AdapterKind::Lora | AdapterKind::Dora => on_linears(model, recipe, seed, placement),
        AdapterKind::Bottleneck => bottlenecks(model, recipe, seed, placement),
        AdapterKind::Steering => steering(model, recipe, placement),
        AdapterKind::None => Ok(()),
    }
}

/// LoRA and DoRA as PEFT begins them: A drawn, B zero, magnitudes those of the weight.
fn on_linears(model: &mut Model, recipe: &AdapterRecipe, seed: u64, placement: Placement) -> Result<(), TrainError> {
    let selector = recipe
        .targets
        .selector()
        .map_err(|error| TrainError::Setup(format!("adapter.targets: {error}")))?;
    let scale = scale(recipe.rank, recipe.alpha, recipe.rslora);
    let mut found = 0;
    placement.put(model, |model, placing| {
        let config = model.config.clone();
        let targets = model
            .linears_mut()
            .filter(|linear| is_target(&config, linear, selector.as_ref()));
        for linear in targets {
            found += 1;
            check_dora(&config, linear, recipe.kind)?;
            let (name, rank) = (linear.name.clone(), recipe.rank);
            let a = initial_a(seed, &format!("{name}.lora_A.weight"), rank, linear.inputs);
            let a = placing.add(&name, "lora_A.weight", vec![rank, linear.inputs], a);
            let b = vec![0.0; linear.outputs * rank];
            let b = placing.add(&name, "lora_B.weight", vec![linear.outputs, rank], b);
            let lora = Lora {
                a,
                b,
                scale,
                dropout: placement.dropout,
            };
            let adapter = if recipe.kind == AdapterKind::Dora {
                let norm = current_row_norm(linear, &lora, placing.parameters);
                let magnitude = placing.add_value(&name, "lora_magnitude_vector", vec![linear.outputs], norm);
                Adapter::Dora(Dora { lora, magnitude })
            } else {
                Adapter::Lora(lora)
            };
            placing.push(linear, adapter)?;
        }
        Ok(())
    })?;
    if found == 0 {
        let names: Vec<&str> = model.linears().take(7).map(|linear| linear.name.as_str()).collect();
        return Err(TrainError::Setup(format!(
            "adapter.targets names none of the model's linear layers; the first block has {}",
            names.join(", ")
        )));
    }
    save_modules(model, &recipe.modules_to_save)
}

fn bottlenecks(model: &mut Model, recipe: &AdapterRecipe, seed: u64, placement: Placement) -> Result<(), TrainError> {
    let hidden = model.config.hidden_size;
    let inner = (hidden / recipe.reduction.unwrap_or(1)).max(1);
    placement.put(model, |model, placing| {
        for block in &mut model.blocks {
            let module = block.path.clone();
            let down = initial_a(seed, &format!("{module}.adapter_down.weight"), inner, hidden);
            let bottleneck = Bottleneck {
                name: format!("{module}.adapter"),
                down: placing.add(&module, "adapter_down.weight", vec![inner, hidden], down),
                up: placing.add(
                    &module,
                    "adapter_up.weight",
                    vec![hidden, inner],
                    vec![0.0; hidden * inner],
                ),
                dropout: placement.dropout,
            };
            block.bottlenecks.push(placement.for_rows(bottleneck));
        }
        Ok(())
    })
}

fn steering(model: &mut Model, recipe: &AdapterRecipe, placement: Placement) -> Result<(), TrainError> {
    let (hidden, layer) = (model.config.hidden_size, layer_of(recipe, &model.config)?);
    placement.put(model, |model, placing| {
        let module = model.blocks[layer - 1].path.clone();
        let vector = placing.add(&module, "steering_vector", vec![hidden], vec![0.0; hidden]);
        let scale = recipe.scale.unwrap_or(1.0) as f32;
        let steering = placement.for_rows(Steering { vector, scale });
        model.blocks[layer - 1].steering.push(steering);
        Ok(())
    })
}

/// PEFT knows no DoRA on what routes and on experts, so that nobody could load one.
fn check_dora(config: &ModelConfig, linear: &Linear, kind: AdapterKind) -> Result<(), TrainError> {
    let mut mlps = config.blocks.iter().filter(|block| block.mlp.experts().is_some());
    let is_routed = |block: &BlockConfig| block.mlp.linears().iter().any(|own| own.path == linear.name);
    if kind != AdapterKind::Dora || !mlps.any(is_routed) {
        return Ok(());
    }
    Err(TrainError::Setup(format!(
        "adapter.kind is \"dora\", and `{}` belongs to a mixture of experts, where PEFT and vLLM read LoRA alone; set adapter.kind \
         = \"lora\", or choose adapter.targets without experts and routers, such as the projections of the attention",
        linear.name
    )))
}

/// Without a selector, the targets are those of "all-linear".
fn is_target(config: &ModelConfig, linear: &Linear, selector: Option<&Selector>) -> bool {
    match selector {
        None => config.is_all_linear(&linear.name),
        Some(selector) => selector.selects(&linear.name),
    }
}

fn current_row_norm(linear: &Linear, lora: &Lora, parameters: &Parameters) -> Tensor<1> {
    let matrix = |id: ParameterId| parameters.get(id).matrix();
    row_norm(matrix(linear.weight), matrix(lora.a), matrix(lora.b), lora.scale)
}
