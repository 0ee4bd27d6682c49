//! What a checkpoint holds: every parameter that is trained, the optimizer's moments, and where the run stands. Sample
//! order and dropout need no state: they are pure functions of the seed and the step.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::DType;
use interlingua_checkpoints::CheckpointError;
use interlingua_checkpoints::atomic::write_atomically;
use interlingua_checkpoints::dtype::{Dtype, HostTensor};
use interlingua_checkpoints::tensors::TensorsFile;
use interlingua_checkpoints::write::{pretty, write_tensors};
use serde::{Deserialize, Serialize};

use crate::adapters::attach::host_tensor;
use crate::error::TrainError;
use crate::models::Model;
use crate::models::load::tensor;
use crate::optimizers::adamw::{AdamW, Moments};
use crate::parameters::ParameterId;

const PARAMETERS: &str = "parameters.safetensors";
const MOMENTS: &str = "optimizer.safetensors";
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
}

/// Fills a checkpoint's folder.
pub fn write(
    folder: &Path,
    model: &Model,
    trained: &[ParameterId],
    optimizer: &AdamW,
    state: &RunState,
) -> Result<(), TrainError> {
    let name = |id: &ParameterId| model.parameters.get(*id).name.clone();
    let parameters = trained
        .iter()
        .map(|id| (name(id), host_tensor(model.parameters.get(*id), Dtype::F32)));
    write_tensors(&folder.join(PARAMETERS), &parameters.collect())?;
    let mut moments = BTreeMap::new();
    let mut state = state.clone();
    for (id, values) in &optimizer.moments {
        let host = |tensor: &burn::tensor::Tensor<1>| {
            let values: Vec<f32> = tensor.clone().into_data().iter::<f32>().collect();
            HostTensor::from_f32(vec![values.len()], &values)
        };
        moments.insert(format!("{}.first", name(id)), host(&values.first));
        moments.insert(format!("{}.second", name(id)), host(&values.second));
        state.updates.insert(name(id), values.step);
    }
    write_tensors(&folder.join(MOMENTS), &moments)?;
    let json = serde_json::to_value(&state).map_err(|source| TrainError::Encode {
        what: "the run's state",
        source,
    })?;
    Ok(write_atomically(&folder.join(STATE), pretty(&json)?.as_bytes())?)
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
    let device = model.device.clone();
    let read = |file: &TensorsFile, name: &str, shape: &[usize]| -> Result<Vec<f32>, TrainError> {
        let advice = "the checkpoint belongs to another recipe or model";
        let values = file.read_f32(name, shape, advice)?;
        Ok(values.ok_or_else(|| CheckpointError::MissingTensor {
            folder: folder.to_owned(),
            tensor: name.to_owned(),
            advice: advice.to_owned(),
        })?)
    };
    for id in trained {
        let parameter = model.parameters.get(*id).clone();
        let values = read(&parameters, &parameter.name, &parameter.shape)?;
        model.parameters.set_value(*id, tensor(values, &device, DType::F32));
        let Some(step) = state.updates.get(&parameter.name).copied() else {
            continue;
        };
        let moment = |part: &str| -> Result<_, TrainError> {
            let values = read(&moments, &format!("{}.{part}", parameter.name), &[parameter.len()])?;
            Ok(tensor(values, &device, DType::F32))
        };
        optimizer.moments.insert(
            *id,
            Moments {
                step,
                first: moment("first")?,
                second: moment("second")?,
            },
        );
    }
    Ok(state)
}
