//! LoRA on mixtures of experts, in the two layouts that PEFT reads (`peft/utils/transformers_weight_conversion.py` of PEFT 0.21):
//! experts one by one, as Transformers 4 has them, which is what is written here; and all experts of a block stacked, as
//! PEFT writes under Transformers 5, which is read.
//!
//! PEFT puts experts that are written one by one on its stacked form, and that has one rank and one scale, no dropout, and all
//! three projections of every expert or none. What an adapter lacks of that is filled in so that it computes the same.

use std::collections::{BTreeMap, BTreeSet};

use crate::blocks::{BlockConfig, ExpertsConfig, LinearConfig};
use crate::config::ModelConfig;
use crate::dtype::HostTensor;
use crate::error::CheckpointError;
use crate::peft::{AdapterConfig, AdapterFolder};

/// The tensors of an adapter by their names, without `base_model.model.`.
pub type Tensors = Vec<(String, HostTensor)>;

/// The parts of a stacked adapter on a model that has its experts one by one.
pub(crate) struct Unstacked {
    /// Tensors in the layout of experts one by one.
    pub(crate) tensors: Tensors,
    /// Names of stacked tensors, which they stand for.
    pub(crate) stacked: BTreeSet<String>,
    /// Alphas of modules, where they are not the adapter's.
    pub(crate) alphas: BTreeMap<String, f64>,
}

/// Finds what is stacked in an adapter.
pub(crate) fn unstack(folder: &AdapterFolder, model: &ModelConfig) -> Result<Unstacked, CheckpointError> {
    let mut found = Unstacked {
        tensors: Vec::new(),
        stacked: BTreeSet::new(),
        alphas: BTreeMap::new(),
    };
    for block in &model.blocks {
        if let Some(experts) = block.mlp.experts() {
            unstack_block(folder, block, experts, &mut found)?;
        }
    }
    Ok(found)
}

fn unstack_block(
    folder: &AdapterFolder,
    block: &BlockConfig,
    experts: &ExpertsConfig,
    found: &mut Unstacked,
) -> Result<(), CheckpointError> {
    // Transformers 5 calls the module `mlp` in every family.
    let module = format!("{}.mlp", block.path);
    let router = format!("{module}.gate");
    if router != experts.router.path {
        for part in ["lora_A.weight", "lora_B.weight"] {
            let name = format!("{router}.{part}");
            if let Some(shape) = folder.shape(&name).map(<[usize]>::to_vec) {
                let values = folder.read_f32(&name, &shape)?;
                let tensor = HostTensor::from_f32(shape, &values);
                found.tensors.push((format!("{}.{part}", experts.router.path), tensor));
                found.stacked.insert(name);
            }
        }
    }
    let (inner, outer) = (format!("{module}.experts.base_layer"), format!("{module}.experts"));
    let has = |path: &str| folder.shape(&format!("{path}.lora_A.weight")).is_some();
    if !has(&outer) {
        return Ok(());
    }
    // With one of the two parameters alone, only the list of targets says which.
    let targets = &folder.config().target_parameters;
    let named = |name: &str| targets.iter().any(|target| target.ends_with(name));
    let outer_is_gate_up = !has(&inner) && named("gate_up_proj") && !named("down_proj");
    if has(&inner) || outer_is_gate_up {
        let path = if outer_is_gate_up { &outer } else { &inner };
        let layers = experts.experts.iter().map(|expert| vec![&expert.gate, &expert.up]);
        split(folder, path, &format!("{outer}.gate_up_proj"), layers.collect(), found)?;
    }
    if !outer_is_gate_up {
        let layers = experts.experts.iter().map(|expert| vec![&expert.down]);
        split(folder, &outer, &format!("{outer}.down_proj"), layers.collect(), found)?;
    }
    Ok(())
}

/// One stacked parameter, whose layers are stacked along their outputs: A `[experts * rank, inputs]`, the rank fastest; B
/// `[outputs, rank * experts]`, the experts fastest.
fn split(
    folder: &AdapterFolder,
    path: &str,
    parameter: &str,
    layers: Vec<Vec<&LinearConfig>>,
    found: &mut Unstacked,
) -> Result<(), CheckpointError> {
    let count = layers.len();
    let name = |part: &str| format!("{path}.lora_{part}.weight");
    let rows = folder
        .shape(&name("A"))
        .and_then(|shape| shape.first().copied())
        .unwrap_or(0);
    if rows == 0 || !rows.is_multiple_of(count) {
        return Err(CheckpointError::config(
            folder.path(),
            format!(
                "tensor `{}` has {rows} rows, which is no multiple of the model's {count} experts; the adapter was trained on \
                 another model ({})",
                name("A"),
                folder.config().base_model
            ),
        ));
    }
    let rank = rows / count;
    let inputs = layers.iter().flatten().map(|layer| layer.inputs).next().unwrap_or(0);
    let outputs: usize = layers
        .first()
        .map_or(0, |layers| layers.iter().map(|layer| layer.outputs).sum());
    let a = folder.read_f32(&name("A"), &[rows, inputs])?;
    let b = folder.read_f32(&name("B"), &[outputs, rank * count])?;
    let alpha = folder.config().alpha_of(parameter);
    for (expert, layers) in layers.iter().enumerate() {
        let of_expert = &a[expert * rank * inputs..(expert + 1) * rank * inputs];
        let mut first = 0;
        for layer in layers {
            let rows = &b[first * rank * count..(first + layer.outputs) * rank * count];
            let values: Vec<f32> = rows.iter().skip(expert).step_by(count).copied().collect();
            first += layer.outputs;
            let mut add = |part: &str, shape: [usize; 2], values: &[f32]| {
                let tensor = HostTensor::from_f32(shape.to_vec(), values);
                found
                    .tensors
                    .push((format!("{}.lora_{part}.weight", layer.path), tensor));
            };
            add("A", [rank, inputs], of_expert);
            add("B", [layer.outputs, rank], &values);
            found.alphas.insert(layer.path.clone(), alpha);
        }
    }
    found.stacked.extend([name("A"), name("B")]);
    Ok(())
}

/// Makes an adapter with experts one that PEFT computes as it was trained: one rank and scale for routers and experts, all
/// projections of every expert of a block, no dropout; MLPs of blocks without experts as parameters. Others are left as they are.
pub fn for_peft(config: &mut AdapterConfig, tensors: Tensors, model: &ModelConfig) -> Tensors {
    let mut tensors: BTreeMap<String, HostTensor> = tensors.into_iter().collect();
    let rank_of = |tensors: &BTreeMap<String, HostTensor>, module: &str| {
        let a = tensors.get(&format!("{module}.lora_A.weight"))?;
        a.shape.first().copied()
    };
    let adapted =
        |tensors: &BTreeMap<String, HostTensor>, linear: &LinearConfig| rank_of(tensors, &linear.path).is_some();
    let mut routed: Vec<&LinearConfig> = Vec::new();
    let mut dense = BTreeSet::new();
    for block in &model.blocks {
        match block.mlp.experts() {
            Some(experts) => {
                routed.extend(adapted(&tensors, &experts.router).then_some(&experts.router));
                let of_experts = experts.experts.iter().flat_map(|expert| expert.linears());
                if of_experts.clone().any(|linear| adapted(&tensors, linear)) {
                    routed.extend(of_experts);
                }
            }
            None => {
                let linears = block.mlp.linears().into_iter();
                let adapted = linears.filter(|linear| adapted(&tensors, linear));
                dense.extend(adapted.map(|linear| linear.path.clone()));
            }
        }
    }
    if !model.has_experts() {
        return tensors.into_iter().collect();
    }
    let last_two = |path: &str| {
        let mut parts: Vec<&str> = path.rsplit('.').take(2).collect();
        parts.reverse();
        format!("{}.weight", parts.join("."))
    };
    let parameters: BTreeSet<String> = dense.iter().map(|path| last_two(path)).collect();
    config.target_parameters = parameters.into_iter().collect();
    if routed.is_empty() {
        return tensors.into_iter().collect();
    }
    let scale_of = |config: &AdapterConfig, rank: usize, module: &str| {
        let alpha = config.alpha_of(module);
        alpha
            / if config.use_rslora {
                (rank as f64).sqrt()
            } else {
                rank as f64
            }
    };
    let ranks = routed.iter().filter_map(|linear| rank_of(&tensors, &linear.path));
    let rank = ranks.max().unwrap_or(config.rank);
    let scale = scale_of(config, config.rank, "");
    let mut alphas = BTreeMap::new();
    let others: BTreeSet<String> = tensors
        .keys()
        .filter_map(|name| Some(name.strip_suffix(".lora_A.weight")?.to_owned()))
        .collect();
    for module in &others {
        let own = rank_of(&tensors, module).unwrap_or(rank);
        alphas.insert(module.clone(), scale_of(config, own, module) * own as f64);
    }
    for linear in &routed {
        let own_scale = rank_of(&tensors, &linear.path).map(|own| scale_of(config, own, &linear.path));
        pad(
            &mut tensors,
            linear,
            rank,
            own_scale.map_or(0.0, |own| (own / scale) as f32),
        );
        alphas.remove(&linear.path);
    }
    (config.rank, config.alpha, config.use_rslora, config.dropout) = (rank, scale * rank as f64, false, 0.0);
    alphas.retain(|_, alpha| (*alpha - config.alpha).abs() > 1e-9 * config.alpha.abs());
    config.alpha_pattern = alphas
        .into_iter()
        .map(|(module, alpha)| (regex::escape(&module), alpha))
        .collect();
    tensors.into_iter().collect()
}

/// A with rows of zeros and B with columns of zeros up to a rank, B times a factor; zeros where there is no adapter.
fn pad(tensors: &mut BTreeMap<String, HostTensor>, linear: &LinearConfig, rank: usize, factor: f32) {
    let names = ["A", "B"].map(|part| format!("{}.lora_{part}.weight", linear.path));
    let values = |tensor: Option<&HostTensor>| tensor.map(HostTensor::to_f32).unwrap_or_default();
    let (a, b) = (values(tensors.get(&names[0])), values(tensors.get(&names[1])));
    let own = a.len() / linear.inputs.max(1);
    if own == rank && factor == 1.0 {
        return;
    }
    let mut wide = vec![0.0; linear.outputs * rank];
    for (row, values) in wide.chunks_exact_mut(rank).zip(b.chunks_exact(own.max(1))) {
        row.iter_mut().zip(values).for_each(|(to, value)| *to = value * factor);
    }
    let mut tall = a;
    tall.resize(rank * linear.inputs, 0.0);
    let [of_a, of_b] = names;
    tensors.insert(of_a, HostTensor::from_f32(vec![rank, linear.inputs], &tall));
    tensors.insert(of_b, HostTensor::from_f32(vec![linear.outputs, rank], &wide));
}
