//! What a checkpoint holds: every parameter that is trained, the optimizer's moments, and where the run stands. Sample
//! order and dropout need no state: they are pure functions of the seed and the step.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{DType, Tensor};
use interlingua_checkpoints::CheckpointError;
use interlingua_checkpoints::atomic::write_atomically;
use interlingua_checkpoints::codes::write_codes;
use interlingua_checkpoints::dtype::{Dtype, HostTensor};
use interlingua_checkpoints::tensors::TensorsFile;
use interlingua_checkpoints::write::{TensorSpec, pretty, write_safetensors};
use serde::{Deserialize, Serialize};

use crate::adapters::attach::host_tensor;
use crate::error::TrainError;
use crate::models::Model;
use crate::models::load::tensor;
use crate::ops::adamw8bit::{BLOCK, Quantized};
use crate::optimizers::adamw::{AdamW, State};
use crate::optimizers::moments::{MomentFormat, Moments};
use crate::parameters::{Parameter, ParameterId};
use crate::train::loss_scale::LossScale;

const PARAMETERS: &str = "parameters.safetensors";
const MOMENTS: &str = "optimizer.safetensors";
/// There only where moments have 8 bits.
const CODES: &str = "optimizer.codes.safetensors";
/// What the two moments are called in these files, after the parameter's name and a dot.
const PARTS: [&str; 2] = ["first", "second"];
const STATE: &str = "state.json";

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Steps done.
    pub step: u64,
    /// Updates by parameter.
    pub updates: BTreeMap<String, u64>,
    /// Best value of the early-stop metric so far.
    pub best: Option<f64>,
    /// Evaluations since then.
    pub evaluations_without_improvement: usize,
    /// Whether early stopping has ended the run.
    pub stopped_early: bool,
    /// The loss scale, where gradients are computed in f16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScale>,
}

/// Fills a checkpoint's folder.
pub fn write(
    folder: &Path,
    model: &Model,
    trained: &[ParameterId],
    optimizer: &AdamW,
    state: &RunState,
) -> Result<(), TrainError> {
    let parameters = trained.iter().map(|id| model.parameters.get(*id));
    let parameters: BTreeMap<&str, &Parameter> = parameters
        .map(|parameter| (parameter.name.as_str(), parameter))
        .collect();
    let specs = parameters.values().map(|parameter| TensorSpec {
        name: parameter.name.clone(),
        dtype: Dtype::F32,
        shape: parameter.shape.clone(),
    });
    write_each(&folder.join(PARAMETERS), specs.collect(), |name| {
        parameters.get(name).map(|parameter| host_tensor(parameter, Dtype::F32))
    })?;
    let (mut floats, mut codes) = (BTreeMap::new(), BTreeMap::new());
    let mut state = state.clone();
    for (id, of_parameter) in &optimizer.states {
        let name = model.parameters.get(*id).name.clone();
        match &of_parameter.moments {
            Moments::Floats(moments) => {
                for (part, moment) in PARTS.iter().zip(moments.iter()) {
                    floats.insert(format!("{name}.{part}"), moment);
                }
            }
            Moments::Codes(moments) => {
                for (part, moment) in PARTS.iter().zip(moments.iter()) {
                    let bytes = moment.codes.clone().into_data().iter::<u8>().collect();
                    codes.insert(format!("{name}.{part}"), bytes);
                    floats.insert(format!("{name}.{part}.scales"), &moment.scales);
                }
            }
        }
        state.updates.insert(name, of_parameter.step);
    }
    let specs = floats.iter().map(|(name, tensor)| TensorSpec {
        name: name.clone(),
        dtype: file_dtype(tensor),
        shape: vec![tensor.dims()[0]],
    });
    write_each(&folder.join(MOMENTS), specs.collect(), |name| {
        floats.get(name).map(|tensor| host(tensor))
    })?;
    if !codes.is_empty() {
        write_codes(&folder.join(CODES), &codes)?;
    }
    let json = serde_json::to_value(&state).map_err(|source| TrainError::Encode {
        what: "the run's state",
        source,
    })?;
    Ok(write_atomically(&folder.join(STATE), pretty(&json)?.as_bytes())?)
}

/// Writes tensors that are made one at a time, so that no more than one of them is in memory twice.
fn write_each(
    path: &Path,
    specs: Vec<TensorSpec>,
    tensor: impl Fn(&str) -> Option<HostTensor>,
) -> Result<(), CheckpointError> {
    write_safetensors(path, &specs, &BTreeMap::new(), &mut |spec| {
        tensor(&spec.name).ok_or_else(|| CheckpointError::Other(format!("the tensor `{}` is gone", spec.name)))
    })
}

/// The format that a vector has in a file: its own.
fn file_dtype(tensor: &Tensor<1>) -> Dtype {
    if tensor.dtype() == DType::BF16 {
        Dtype::BF16
    } else {
        Dtype::F32
    }
}

/// A vector in its own format. What was bf16 stays exact.
fn host(tensor: &Tensor<1>) -> HostTensor {
    let values: Vec<f32> = tensor.clone().into_data().iter::<f32>().collect();
    HostTensor::from_f32(vec![values.len()], &values).cast(file_dtype(tensor))
}

/// Puts a checkpoint's values into model and optimizer, and returns where the run stands.
pub fn restore(
    folder: &Path,
    model: &mut Model,
    trained: &[ParameterId],
    optimizer: &mut AdamW,
) -> Result<RunState, TrainError> {
    let path = folder.join(STATE);
    let text = std::fs::read_to_string(&path).map_err(|source| TrainError::io(&path, source))?;
    let state: RunState = serde_json::from_str(&text)
        .map_err(|error| CheckpointError::config(&path, format!("this is not the state of a run: {error}")))?;
    let parameters = TensorsFile::open(&folder.join(PARAMETERS))?;
    let moments = TensorsFile::open(&folder.join(MOMENTS))?;
    let codes_path = folder.join(CODES);
    let codes = codes_path
        .is_file()
        .then(|| TensorsFile::open(&codes_path))
        .transpose()?;
    let device = model.device.clone();
    let advice = "the checkpoint belongs to another recipe or model";
    let missing = |name: &str| CheckpointError::MissingTensor {
        folder: folder.to_owned(),
        tensor: name.to_owned(),
        advice: advice.to_owned(),
    };
    let read = |file: &TensorsFile, name: &str, shape: &[usize]| -> Result<Vec<f32>, TrainError> {
        let values = file.read_f32(name, shape, advice)?;
        Ok(values.ok_or_else(|| missing(name))?)
    };
    for id in trained {
        let parameter = model.parameters.get(*id).clone();
        let values = read(&parameters, &parameter.name, &parameter.shape)?;
        model.parameters.set_value(*id, tensor(values, &device, DType::F32));
        let Some(step) = state.updates.get(&parameter.name).copied() else {
            continue;
        };
        let length = parameter.len();
        let names = PARTS.map(|part| format!("{}.{part}", parameter.name));
        let [first, second] = &names;
        let floats = |dtype| -> Result<_, TrainError> {
            let moment = |name: &str| Ok::<_, TrainError>(tensor(read(&moments, name, &[length])?, &device, dtype));
            Ok(Moments::Floats(Box::new([moment(first)?, moment(second)?])))
        };
        let quantized = |name: &String| -> Result<_, TrainError> {
            let codes = codes.as_ref().and_then(|file| file.bytes(name));
            let codes = codes
                .filter(|codes| codes.len() == length)
                .ok_or_else(|| missing(name))?;
            let scales = read(&moments, &format!("{name}.scales"), &[length.div_ceil(BLOCK)])?;
            Ok(Quantized::new(codes.to_vec(), scales, &device))
        };
        let moments = match optimizer.format.for_length(length) {
            MomentFormat::F32 => floats(DType::F32)?,
            MomentFormat::Bf16 => floats(DType::BF16)?,
            MomentFormat::EightBits => Moments::Codes(Box::new([quantized(first)?, quantized(second)?])),
        };
        optimizer.states.insert(*id, State { step, moments });
    }
    Ok(state)
}
