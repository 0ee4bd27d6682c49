//! What the NVIDIA driver says, through cudarc, which opens its library at run time: a machine without one is no error here.

use std::mem::MaybeUninit;
use std::sync::OnceLock;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute, CUresult};

use super::gpu::{CudaVersion, Driver, Gpu, NoDriver};

/// The driver and its GPUs, asked once.
pub fn driver() -> &'static Result<Driver, NoDriver> {
    static DRIVER: OnceLock<Result<Driver, NoDriver>> = OnceLock::new();
    DRIVER.get_or_init(probe)
}

/// The driver that CubeCL's kernels need: cudarc's bindings of CUDA 13 measure time with a function that came with 12.8, those of
/// CUDA 12 need what came with 12.0.
pub fn needed_driver() -> CudaVersion {
    CudaVersion(if sys::CUDA_VERSION >= 13_000 { 12_080 } else { 12_000 })
}

/// The version of NVRTC, which compiles kernels written in CUDA C++; its results need a driver of this version at least.
///
/// # Errors
/// What is missing, as a part of a sentence: the library, or the headers that kernels include.
#[cfg(feature = "cuda-cpp")]
pub fn compiler() -> Result<CudaVersion, String> {
    use cudarc::nvrtc::sys as nvrtc;

    // SAFETY: as for the driver's library.
    if !unsafe { nvrtc::is_culib_present() } {
        return Err(
            "this binary compiles its kernels with NVRTC, and libnvrtc.so was not found; install the CUDA toolkit"
                .into(),
        );
    }
    if cubecl::cuda::install::cuda_path().is_none() {
        return Err("NVRTC needs the headers of the CUDA toolkit, which were not found; install it, and set CUDA_PATH to its folder".into());
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the function writes two integers, which outlive the call.
    unsafe { nvrtc::nvrtcVersion(&mut major, &mut minor) }
        .result()
        .map_err(|error| format!("NVRTC does not say its version: {error:?}; install the CUDA toolkit anew"))?;
    Ok(CudaVersion(major * 1000 + minor * 10))
}

fn probe() -> Result<Driver, NoDriver> {
    // SAFETY: opens the driver's library by its usual names and closes it again; NVIDIA's initialisers run, as they would later.
    if !unsafe { sys::is_culib_present() } {
        return Err(NoDriver::Missing);
    }
    let mut version = 0;
    // SAFETY: the function writes one integer, which outlives the call; it needs no initialised driver.
    let found = unsafe { sys::cuDriverGetVersion(&mut version) }.result();
    found.map_err(refuses)?;
    let version = CudaVersion(version);
    match result::init() {
        Ok(()) => {}
        Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => {
            return Ok(Driver {
                version,
                gpus: Vec::new(),
            });
        }
        Err(error) => return Err(refuses(error)),
    }
    let count = result::device::get_count().map_err(refuses)?;
    let gpus = (0..count).map(gpu).collect::<Result<_, _>>().map_err(refuses)?;
    Ok(Driver { version, gpus })
}

fn gpu(index: i32) -> Result<Gpu, DriverError> {
    let device = result::device::get(index)?;
    // SAFETY: `device` comes from the driver.
    let attribute = |attribute| unsafe { result::device::get_attribute(device, attribute) };
    let major = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    // SAFETY: as above.
    let memory = unsafe { result::device::total_mem(device) }?;
    Ok(Gpu {
        index: index as usize,
        name: result::device::get_name(device)?,
        capability: (major.max(0) as u32, minor.max(0) as u32),
        memory: memory as u64,
    })
}

/// The driver's own words for an error.
fn refuses(error: DriverError) -> NoDriver {
    let words = error.error_string().map(|words| words.to_string_lossy().into_owned());
    NoDriver::Refuses(words.unwrap_or_else(|_| format!("{:?}", error.0)))
}

/// What tells a GPU from all others, whatever index a process sees it under; none when the driver does not say.
pub fn uuid(index: usize) -> Option<String> {
    driver().as_ref().ok()?.gpus.get(index)?;
    let uuid = result::device::get(index as i32)
        .and_then(result::device::get_uuid)
        .ok()?;
    Some(uuid.bytes.iter().map(|byte| format!("{:02x}", *byte as u8)).collect())
}

/// Free and total bytes of a GPU's memory, all processes counted; none when the driver does not say. Takes the context that
/// tensors on this GPU share, and lets it go.
pub fn memory(index: usize) -> Option<(u64, u64)> {
    driver().as_ref().ok()?.gpus.get(index)?;
    // On a thread of its own: which context is current is a property of the thread.
    std::thread::spawn(move || context_memory(index as i32).ok())
        .join()
        .ok()?
}

fn context_memory(index: i32) -> Result<(u64, u64), DriverError> {
    let device = result::device::get(index)?;
    let mut context = MaybeUninit::uninit();
    // SAFETY: the driver writes the context where it says that it did; `device` comes from the driver.
    let context = unsafe {
        sys::cuDevicePrimaryCtxRetain(context.as_mut_ptr(), device).result()?;
        context.assume_init()
    };
    // SAFETY: the context is held until the release below, and this thread ends with this function.
    let memory = unsafe { result::ctx::set_current(context) }.and_then(|()| result::mem_get_info());
    // SAFETY: releases what was retained above.
    unsafe { result::primary_ctx::release(device) }?;
    memory.map(|(free, total)| (free as u64, total as u64))
}
