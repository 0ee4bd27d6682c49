//! What a checkpoint holds: every parameter that is trained, the optimizer's moments, and where the run stands. Sample
//! order and dropout need no state: they are pure functions of the seed and the step.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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
use crate::pieces::piece;
use crate::train::global_batch::GlobalBatch;
use crate::train::loss_scale::LossScale;

const PARAMETERS: &str = "parameters.safetensors";
const MOMENTS: &str = "optimizer.safetensors";
/// There only where moments have 8 bits.
const CODES: &str = "optimizer.codes.safetensors";
/// What the two moments are called in these files, after the parameter's name and a dot.
const PARTS: [&str; 2] = ["first", "second"];
const STATE: &str = "state.json";

/// Where a run stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// How a step's rows were dealt when the run began.
    #[serde(default)]
    pub batch: GlobalBatch,
    /// How many processes have written a file of moments each.
    #[serde(default = "one")]
    pub pieces: usize,
    /// The loss scale, where gradients are computed in f16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScale>,
}

impl Default for RunState {
    fn default() -> Self {
        Self {
            step: 0,
            updates: BTreeMap::new(),
            best: None,
            evaluations_without_improvement: 0,
            stopped_early: false,
            batch: GlobalBatch::default(),
            pieces: one(),
            loss_scale: None,
        }
    }
}

fn one() -> usize {
    1
}

/// A file's name as each of several processes writes one: with its number and that of all.
fn of_piece(name: &str, (rank, pieces): (usize, usize)) -> String {
    match name.strip_suffix(".safetensors") {
        Some(stem) if pieces > 1 => format!("{stem}-{:05}-of-{pieces:05}.safetensors", rank + 1),
        _ => name.to_owned(),
    }
}

/// Fills a checkpoint's folder with what this process writes: the first one with everything that is the same on all, each with its
/// own moments where there are several `pieces` of them.
pub fn write(
    folder: &Path,
    (model, trained, optimizer): (&Model, &[ParameterId], &AdamW),
    state: &RunState,
    piece: (usize, usize),
) -> Result<(), TrainError> {
    let is_first = piece.0 == 0;
    if is_first {
        let whole = trained.iter().filter(|id| model.parameters.spread(**id).is_none());
        let parameters: BTreeMap<&str, &Parameter> = whole
            .map(|id| model.parameters.get(*id))
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
    }
    let spread = trained
        .iter()
        .filter_map(|id| Some((*id, model.parameters.spread(*id)?.own()?)));
    let spread: BTreeMap<&str, Tensor<1>> = spread
        .map(|(id, own)| (model.parameters.get(id).name.as_str(), own))
        .collect();
    if trained.iter().any(|id| model.parameters.spread(*id).is_some()) {
        let specs = spread.iter().map(|(name, own)| TensorSpec {
            name: (*name).to_owned(),
            dtype: Dtype::F32,
            shape: vec![own.dims()[0]],
        });
        write_each(&folder.join(of_piece(PARAMETERS, piece)), specs.collect(), |name| {
            spread.get(name).map(host)
        })?;
    }
    let (mut floats, mut codes) = (BTreeMap::new(), BTreeMap::new());
    let mut state = RunState {
        pieces: piece.1,
        ..state.clone()
    };
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
    write_each(&folder.join(of_piece(MOMENTS, piece)), specs.collect(), |name| {
        floats.get(name).map(|tensor| host(tensor))
    })?;
    if !codes.is_empty() {
        write_codes(&folder.join(of_piece(CODES, piece)), &codes)?;
    }
    if !is_first {
        return Ok(());
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

/// How the rows of a step were dealt when the run of a checkpoint began.
///
/// # Errors
/// When the checkpoint cannot be read.
pub fn global_batch(folder: &Path) -> Result<GlobalBatch, TrainError> {
    Ok(read_state(folder)?.batch)
}

fn read_state(folder: &Path) -> Result<RunState, TrainError> {
    let path = folder.join(STATE);
    let text = std::fs::read_to_string(&path).map_err(|source| TrainError::io(&path, source))?;
    let state = serde_json::from_str(&text)
        .map_err(|error| CheckpointError::config(&path, format!("this is not the state of a run: {error}")))?;
    Ok(state)
}

/// What is said where a checkpoint lacks something.
const ADVICE: &str = "the checkpoint belongs to another recipe or model";

/// What a process wrote into a checkpoint for itself.
struct SavedPiece {
    moments: TensorsFile,
    codes: Option<TensorsFile>,
    /// Its pieces of parameters.
    parameters: Option<TensorsFile>,
}

/// What the processes wrote into a checkpoint, each for itself.
struct Saved {
    folder: PathBuf,
    pieces: Vec<SavedPiece>,
}

impl Saved {
    fn open(folder: &Path, pieces: usize) -> Result<Self, TrainError> {
        let files = (0..pieces).map(|rank| {
            let path = |name: &str| folder.join(of_piece(name, (rank, pieces)));
            let open = |name: &str| {
                let path = path(name);
                path.is_file().then(|| TensorsFile::open(&path)).transpose()
            };
            Ok(SavedPiece {
                moments: TensorsFile::open(&path(MOMENTS))?,
                codes: open(CODES)?,
                parameters: open(PARAMETERS)?,
            })
        });
        Ok(Self {
            folder: folder.to_owned(),
            pieces: files.collect::<Result<_, TrainError>>()?,
        })
    }

    fn missing(&self, name: &str) -> CheckpointError {
        CheckpointError::MissingTensor {
            folder: self.folder.clone(),
            tensor: name.to_owned(),
            advice: ADVICE.to_owned(),
        }
    }

    /// The pieces of a vector of so many numbers, put together.
    fn joined<T>(
        &self,
        length: usize,
        read: impl Fn(&SavedPiece, usize) -> Result<Vec<T>, TrainError>,
    ) -> Result<Vec<T>, TrainError> {
        let mut values = Vec::new();
        for (rank, files) in self.pieces.iter().enumerate() {
            let range = piece(length, rank, self.pieces.len());
            if !range.is_empty() {
                values.extend(read(files, range.len())?);
            }
        }
        Ok(values)
    }

    /// The values of a parameter that was saved in pieces.
    fn parameter(&self, name: &str, length: usize) -> Result<Vec<f32>, TrainError> {
        self.joined(length, |saved, count| {
            let file = saved.parameters.as_ref().ok_or_else(|| self.missing(name))?;
            let values = file.read_f32(name, &[count], ADVICE)?;
            Ok(values.ok_or_else(|| self.missing(name))?)
        })
    }

    fn floats(&self, name: &str, length: usize) -> Result<Vec<f32>, TrainError> {
        self.joined(length, |saved, count| {
            let values = saved.moments.read_f32(name, &[count], ADVICE)?;
            Ok(values.ok_or_else(|| self.missing(name))?)
        })
    }

    fn scales(&self, name: &str, length: usize) -> Result<Vec<f32>, TrainError> {
        let name = format!("{name}.scales");
        self.joined(length, |saved, count| {
            let values = saved.moments.read_f32(&name, &[count.div_ceil(BLOCK)], ADVICE)?;
            Ok(values.ok_or_else(|| self.missing(&name))?)
        })
    }

    fn codes(&self, name: &str, length: usize) -> Result<Vec<u8>, TrainError> {
        self.joined(length, |saved, count| {
            let codes = saved.codes.as_ref().and_then(|file| file.bytes(name));
            let codes = codes.filter(|codes| codes.len() == count);
            Ok(codes.ok_or_else(|| self.missing(name))?.to_vec())
        })
    }
}

/// Puts a checkpoint's values into model and optimizer, of the moments this process's piece, and returns where the run stands.
pub fn restore(
    folder: &Path,
    model: &mut Model,
    trained: &[ParameterId],
    optimizer: &mut AdamW,
    (rank, world): (usize, usize),
) -> Result<RunState, TrainError> {
    let state = read_state(folder)?;
    let parameters = TensorsFile::open(&folder.join(PARAMETERS))?;
    let saved = Saved::open(folder, state.pieces)?;
    let device = model.device.clone();
    for id in trained {
        let parameter = model.parameters.get(*id).clone();
        let length = parameter.len();
        let values = match parameters.read_f32(&parameter.name, &parameter.shape, ADVICE)? {
            Some(values) => values,
            None => saved.parameter(&parameter.name, length)?,
        };
        let own = piece(length, rank, world);
        if model.parameters.spread(*id).is_none() {
            model.parameters.set_value(*id, tensor(values, &device, DType::F32));
        } else if !own.is_empty() {
            let values = values[own.clone()].to_vec();
            model.parameters.set_piece(*id, tensor(values, &device, DType::F32));
        }
        let Some(step) = state.updates.get(&parameter.name).copied() else {
            continue;
        };
        if own.is_empty() {
            continue;
        }
        let names = PARTS.map(|part| format!("{}.{part}", parameter.name));
        let [first, second] = &names;
        let floats = |dtype| -> Result<_, TrainError> {
            let moment = |name: &str| -> Result<_, TrainError> {
                let values = saved.floats(name, length)?;
                Ok(tensor(values[own.clone()].to_vec(), &device, dtype))
            };
            Ok(Moments::Floats(Box::new([moment(first)?, moment(second)?])))
        };
        let quantized = |name: &String| -> Result<_, TrainError> {
            let (codes, scales) = (saved.codes(name, length)?, saved.scales(name, length)?);
            let blocks = own.start / BLOCK..own.end.div_ceil(BLOCK);
            Ok(Quantized::new(
                codes[own.clone()].to_vec(),
                scales[blocks].to_vec(),
                &device,
            ))
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
