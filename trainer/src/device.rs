//! Which device a run computes on, and in which number format.

#[cfg(feature = "nvidia")]
pub mod cuda;
pub mod gpu;
#[cfg(feature = "cuda")]
mod kernels;
#[cfg(any(feature = "cuda", test))]
mod mounts;

use std::path::Path;

use burn::tensor::{DType, Device};
use interlingua_checkpoints::dtype::Dtype as FileDtype;

use self::gpu::Gpu;
use crate::error::TrainError;
use crate::memory::host_bytes;
use crate::plan::settings::DeviceKind;

/// The device a recipe asks for. `auto` takes the first GPU where this binary can use one, else the CPU.
///
/// # Errors
/// When the device is not there, or this binary cannot use it: what is in the way, and what to do.
pub fn device(wanted: interlingua_recipes::Device) -> Result<Device, TrainError> {
    use interlingua_recipes::Device as Wanted;
    let found = match wanted {
        Wanted::Auto => Ok(auto()),
        Wanted::Cpu => Ok(Device::flex()),
        Wanted::Cuda(index) => cuda(index.unwrap_or(0)),
        Wanted::Tch => tch(),
        Wanted::TchCuda(index) => tch_cuda(index.unwrap_or(0)),
    };
    found.map_err(|reason| {
        TrainError::Device(format!(
            "the device \"{wanted}\" cannot be used: {reason}; or set model.device (--device) to another, such as \"cpu\". \
             `interlingua doctor` shows what there is"
        ))
    })
}

#[cfg(not(feature = "cuda"))]
fn auto() -> Device {
    Device::flex()
}

/// The first GPU. A machine that has one without being able to use it is told why.
#[cfg(feature = "cuda")]
fn auto() -> Device {
    match (cuda(0), cuda::driver()) {
        (Ok(device), _) => device,
        (Err(_), Err(gpu::NoDriver::Missing)) => Device::flex(),
        (Err(reason), _) => {
            tracing::warn!("computing on the CPU, since no GPU can be used: {reason}");
            Device::flex()
        }
    }
}

#[cfg(not(feature = "cuda"))]
fn cuda(_index: usize) -> Result<Device, String> {
    Err("this binary was built without CUDA; build it with --features cuda".into())
}

#[cfg(feature = "cuda")]
fn cuda(index: usize) -> Result<Device, String> {
    // A device that is not there ends the process when it is first used, so the driver is asked before.
    let needed = cuda::needed_driver();
    let gpu = gpu::choose(cuda::driver(), index, Some(needed))?;
    #[cfg(feature = "cuda-cpp")]
    gpu::choose(cuda::driver(), index, Some(needed.max(cuda::compiler()?)))?;
    kernels::set_up(gpu);
    Ok(Device::cuda(index))
}

#[cfg(not(feature = "tch"))]
fn tch() -> Result<Device, String> {
    Err(
        "this binary was built without LibTorch; build it with --features tch (README.md says how to install LibTorch)"
            .into(),
    )
}

#[cfg(feature = "tch")]
#[expect(clippy::unnecessary_wraps, reason = "without the feature it fails")]
#[expect(
    deprecated,
    reason = "Burn advises its own backends; this one is for those who ask for LibTorch"
)]
fn tch() -> Result<Device, String> {
    Ok(Device::libtorch())
}

#[cfg(not(feature = "tch"))]
fn tch_cuda(_index: usize) -> Result<Device, String> {
    tch()
}

#[cfg(feature = "tch")]
#[expect(deprecated, reason = "as above")]
fn tch_cuda(index: usize) -> Result<Device, String> {
    gpu::choose(cuda::driver(), index, None)?;
    let seen = libtorch_gpus();
    if index >= seen {
        return Err(format!(
            "LibTorch can use {seen} GPUs; a LibTorch for CPUs can use none, and README.md says how to install one for GPUs"
        ));
    }
    Ok(Device::libtorch_cuda(index))
}

/// How many GPUs LibTorch can use: a LibTorch for CPUs none.
#[cfg(feature = "tch")]
pub fn libtorch_gpus() -> usize {
    Device::enumerate(burn::tensor::DeviceType::LibTorch).into_vec().len()
}

/// The GPU that a device is; none for a CPU.
pub fn gpu_of(device: &Device) -> Option<&'static Gpu> {
    #[cfg(feature = "nvidia")]
    {
        let device = device.clone().without_autodiff();
        let gpus = cuda::driver().as_ref().map_or(&[][..], |driver| &driver.gpus);
        gpus.iter().find(|gpu| is_gpu(&device, gpu.index))
    }
    #[cfg(not(feature = "nvidia"))]
    {
        let _ = device;
        None
    }
}

/// Whether a device is the GPU with this index.
#[cfg(feature = "nvidia")]
fn is_gpu(device: &Device, index: usize) -> bool {
    let mut is = false;
    #[cfg(feature = "cuda")]
    {
        is |= *device == Device::cuda(index);
    }
    #[cfg(feature = "tch")]
    {
        #[expect(deprecated, reason = "as above")]
        let same = *device == Device::libtorch_cuda(index);
        is |= same;
    }
    is
}

/// Whether LibTorch computes.
fn is_libtorch(device: &Device) -> bool {
    #[cfg(feature = "tch")]
    {
        #[expect(deprecated, reason = "as above")]
        let cpu = Device::libtorch();
        let gpu = gpu_of(device).is_some_and(|gpu| {
            #[expect(deprecated, reason = "as above")]
            let gpu = Device::libtorch_cuda(gpu.index);
            *device == gpu
        });
        *device == cpu || gpu
    }
    #[cfg(not(feature = "tch"))]
    {
        let _ = device;
        false
    }
}

/// Bytes that the device's memory pool holds, those that it keeps for reuse too; none for a device whose memory this process's
/// allocator counts.
pub(crate) fn pool_bytes(device: &Device) -> Option<u64> {
    if let Some(usage) = device.memory_pool_usage() {
        return Some(usage.bytes_reserved);
    }
    if !is_libtorch(device) {
        return None;
    }
    // LibTorch does not tell through Burn. On a GPU the driver does, all processes counted; on a CPU the system does.
    #[cfg(feature = "nvidia")]
    if let Some(gpu) = gpu_of(device) {
        return cuda::memory(gpu.index).map(|(free, total)| total - free);
    }
    resident_bytes()
}

/// The most memory this process has had, in bytes, mapped files counted.
fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// The kind of the device that a recipe asks for, which need not be there unless the recipe leaves the choice open.
pub fn kind(wanted: interlingua_recipes::Device) -> DeviceKind {
    use interlingua_recipes::Device as Wanted;
    match wanted {
        Wanted::Cpu | Wanted::Tch => DeviceKind::Cpu,
        Wanted::Cuda(_) | Wanted::TchCuda(_) => DeviceKind::Cuda,
        Wanted::Auto if cuda(0).is_ok() => DeviceKind::Cuda,
        Wanted::Auto => DeviceKind::Cpu,
    }
}

/// The GPU that a recipe asks for, where a driver can describe it.
pub fn wanted_gpu(wanted: interlingua_recipes::Device) -> Option<&'static Gpu> {
    use interlingua_recipes::Device as Wanted;
    let index = match wanted {
        Wanted::Cuda(index) | Wanted::TchCuda(index) => index.unwrap_or(0),
        Wanted::Auto => 0,
        Wanted::Cpu | Wanted::Tch => return None,
    };
    #[cfg(feature = "nvidia")]
    {
        cuda::driver().as_ref().ok()?.gpus.get(index)
    }
    #[cfg(not(feature = "nvidia"))]
    {
        let _ = index;
        None
    }
}

/// Memory that a run can have now where a recipe asks for it, in bytes; none where that is not known.
pub fn available_bytes(wanted: interlingua_recipes::Device) -> Option<u64> {
    match kind(wanted) {
        DeviceKind::Cpu => host_bytes().map(|host| host.available),
        #[cfg(feature = "nvidia")]
        DeviceKind::Cuda => cuda::memory(wanted_gpu(wanted)?.index).map(|(free, _)| free),
        #[cfg(not(feature = "nvidia"))]
        DeviceKind::Cuda => None,
    }
}

/// The name that this host has among others.
pub fn host_name() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = text.trim();
    if name.is_empty() { "localhost" } else { name }.to_owned()
}

/// Where a run computes, in words.
pub fn describe(device: &Device, dtype: DType) -> String {
    let place = match gpu_of(device) {
        Some(gpu) => gpu.to_string(),
        None if *device == Device::flex() || is_libtorch(device) => "CPU".to_owned(),
        None => format!("{device:?}"),
    };
    let through = if is_libtorch(device) { " through LibTorch" } else { "" };
    format!("{place}{through}, {dtype:?}")
}

/// What the frozen weights compute in. `auto`: f32 on a CPU, where bf16 is slower; on a GPU, for files of 16 bits, bf16, or f16
/// where the GPU has no bf16.
///
/// # Errors
/// When bf16 is asked for on a GPU that lacks it.
pub fn compute_dtype(
    wanted: interlingua_recipes::Dtype,
    file: FileDtype,
    device: &Device,
) -> Result<DType, TrainError> {
    dtype_on(wanted, file, gpu_of(device))
}

/// The same, given the GPU.
fn dtype_on(wanted: interlingua_recipes::Dtype, file: FileDtype, gpu: Option<&Gpu>) -> Result<DType, TrainError> {
    use interlingua_recipes::Dtype as Wanted;
    match (wanted, gpu) {
        (Wanted::Bf16, Some(gpu)) if !gpu.has_bf16() => Err(TrainError::Device(format!(
            "model.dtype (--dtype) is \"bf16\", which {gpu} lacks: it comes with compute capability 8.0; set it to \"f16\" or \"f32\", \
             or leave \"auto\", which takes f16 here"
        ))),
        (Wanted::Bf16, _) => Ok(DType::BF16),
        (Wanted::F16, _) => Ok(DType::F16),
        (Wanted::Auto, Some(gpu)) if file != FileDtype::F32 => {
            Ok(if gpu.has_bf16() { DType::BF16 } else { DType::F16 })
        }
        (Wanted::F32 | Wanted::Auto, _) => Ok(DType::F32),
    }
}

/// The folder that keeps compiled kernels, when kernels have to be compiled for this device first; none otherwise.
pub fn compiles_into(device: &Device) -> Option<&'static Path> {
    #[cfg(feature = "cuda")]
    {
        let kernels = kernels::kernels().filter(|kernels| kernels.new)?;
        (gpu_of(device).is_some() && !is_libtorch(device)).then_some(kernels.folder.as_path())
    }
    #[cfg(not(feature = "cuda"))]
    {
        let _ = device;
        None
    }
}

#[cfg(test)]
mod tests {
    #[cfg(not(any(feature = "cuda", feature = "tch")))]
    use interlingua_recipes::Device as Wanted;
    use interlingua_recipes::Dtype as WantedDtype;

    use super::*;

    fn gpu(capability: (u32, u32)) -> Gpu {
        Gpu {
            index: 0,
            name: "Card".into(),
            capability,
            memory: 0,
        }
    }

    #[test]
    fn a_cpu_computes_in_f32_unless_told_otherwise() {
        let on_cpu = |wanted, file| dtype_on(wanted, file, None).unwrap();
        assert_eq!(on_cpu(WantedDtype::Auto, FileDtype::BF16), DType::F32);
        assert_eq!(on_cpu(WantedDtype::Bf16, FileDtype::F32), DType::BF16);
    }

    #[test]
    fn a_gpu_computes_in_what_it_has() {
        let (turing, ampere) = (gpu((7, 5)), gpu((8, 6)));
        let auto = |gpu, file| dtype_on(WantedDtype::Auto, file, Some(gpu)).unwrap();
        assert_eq!(auto(&ampere, FileDtype::BF16), DType::BF16);
        assert_eq!(auto(&turing, FileDtype::BF16), DType::F16);
        assert_eq!(auto(&ampere, FileDtype::F32), DType::F32);
        let refusal = dtype_on(WantedDtype::Bf16, FileDtype::BF16, Some(&turing)).unwrap_err();
        assert_eq!(refusal.exit_code(), 2);
        let text = refusal.to_string();
        assert!(text.contains("capability 7.5") && text.contains("\"f16\""), "{text}");
    }

    #[cfg(not(any(feature = "cuda", feature = "tch")))]
    #[test]
    fn a_device_that_this_binary_cannot_use_is_an_error_that_says_so() {
        for (wanted, feature) in [
            (Wanted::Cuda(None), "--features cuda"),
            (Wanted::Cuda(Some(3)), "--features cuda"),
            (Wanted::Tch, "--features tch"),
            (Wanted::TchCuda(Some(1)), "--features tch"),
        ] {
            let error = device(wanted).unwrap_err();
            let text = error.to_string();
            assert_eq!(error.exit_code(), 2);
            assert!(text.contains(feature) && text.contains(&wanted.to_string()), "{text}");
        }
        assert_eq!(device(Wanted::Auto).unwrap(), Device::flex());
    }
}
