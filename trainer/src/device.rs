//! Which device a run computes on.

use burn::tensor::{DType, Device};
use interlingua_checkpoints::dtype::Dtype as FileDtype;

use crate::error::TrainError;
use crate::plan::settings::DeviceKind;

/// The device a recipe asks for. `auto` takes the first GPU where this binary can use one, else the CPU.
pub fn device(wanted: interlingua_recipes::Device) -> Result<Device, TrainError> {
    use interlingua_recipes::Device as Wanted;
    match wanted {
        Wanted::Cpu => Ok(Device::flex()),
        Wanted::Auto => Ok(cuda(0).unwrap_or_else(|_| Device::flex())),
        Wanted::Cuda(index) => cuda(index.unwrap_or(0)),
    }
}

#[cfg(not(feature = "cuda"))]
fn cuda(_index: usize) -> Result<Device, TrainError> {
    Err(TrainError::Device(
        "this binary was built without CUDA; build it with --features cuda, or set model.device = \"cpu\"".into(),
    ))
}

#[cfg(feature = "cuda")]
fn cuda(index: usize) -> Result<Device, TrainError> {
    // Using a CUDA device without a driver ends the process, so the devices are counted first.
    let found = Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec().len();
    if index < found {
        return Ok(Device::cuda(index));
    }
    Err(TrainError::Device(format!(
        "there is no CUDA device {index}: {found} found; set model.device to one of them, or to \"cpu\""
    )))
}

/// The kind of the device that a recipe asks for, which need not be there unless the recipe leaves the choice open.
pub fn kind(wanted: interlingua_recipes::Device) -> DeviceKind {
    use interlingua_recipes::Device as Wanted;
    match wanted {
        Wanted::Cpu => DeviceKind::Cpu,
        Wanted::Cuda(_) => DeviceKind::Cuda,
        Wanted::Auto if cuda(0).is_ok() => DeviceKind::Cuda,
        Wanted::Auto => DeviceKind::Cpu,
    }
}

/// Where a run computes, in words.
pub fn describe(device: &Device, dtype: DType) -> String {
    let place = if *device == Device::flex() {
        "CPU".to_owned()
    } else {
        format!("{device:?}")
    };
    format!("{place}, {dtype:?}")
}

/// What the frozen weights compute in. `auto`: f32 on a CPU, where bf16 is slower; bf16 on a GPU for files of 16 bits.
pub fn compute_dtype(wanted: interlingua_recipes::Dtype, file: FileDtype, device: &Device) -> DType {
    use interlingua_recipes::Dtype as Wanted;
    match wanted {
        Wanted::F32 => DType::F32,
        Wanted::Bf16 => DType::BF16,
        Wanted::F16 => DType::F16,
        Wanted::Auto if *device == Device::flex() || file == FileDtype::F32 => DType::F32,
        Wanted::Auto => DType::BF16,
    }
}
