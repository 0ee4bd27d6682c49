//! What `doctor` says about NVIDIA GPUs and LibTorch.

use super::{Check, check};
use crate::machine;

/// What this binary, the driver and the GPUs can do for `cuda`.
pub(super) fn cuda() -> Vec<Check> {
    let compiled = cfg!(feature = "cuda");
    let mut checks = vec![check(
        "cuda",
        "in this binary",
        compiled,
        if compiled { "yes" } else { "no" }.to_owned(),
        "Build with `cargo build --release --features cuda` for NVIDIA GPUs; CONTRIBUTING.md says what that needs.",
    )];
    checks.extend(driver());
    checks
}

/// What this binary and LibTorch can do for `tch`.
#[cfg(not(feature = "tch"))]
pub(super) fn libtorch() -> Vec<Check> {
    let library = machine::shared_library("libtorch_cpu.so");
    let found = library.map_or_else(
        || "no".to_owned(),
        |path| format!("no, though LibTorch is at {}", path.display()),
    );
    vec![check(
        "tch",
        "in this binary",
        false,
        found,
        "Build with `cargo build --release --features tch` to compute through LibTorch; README.md says how to install it.",
    )]
}

/// What this binary and LibTorch can do for `tch`.
#[cfg(feature = "tch")]
pub(super) fn libtorch() -> Vec<Check> {
    use interlingua_trainer::device;

    let gpus = device::libtorch_gpus();
    let driver = device::cuda::driver().as_ref().map_or(0, |driver| driver.gpus.len());
    let sees_all = gpus >= driver;
    vec![
        check("tch", "in this binary", true, "yes, LibTorch 2.9.0".to_owned(), ""),
        check(
            "tch",
            "GPUs",
            sees_all,
            format!("LibTorch can use {gpus} of {driver}"),
            "This LibTorch is for CPUs, or for other GPUs: README.md says how to install one for NVIDIA GPUs.",
        ),
    ]
}

/// The driver, where this binary cannot talk to it.
#[cfg(not(feature = "nvidia"))]
fn driver() -> Vec<Check> {
    let library = machine::shared_library("libcuda.so.1");
    let found = match (&library, machine::nvidia_driver_version()) {
        (Some(path), Some(version)) => format!("{} (driver {version})", path.display()),
        (Some(path), None) => path.display().to_string(),
        (None, _) => "libcuda.so.1 was not found".to_owned(),
    };
    vec![check("cuda", "driver", library.is_some(), found, INSTALL)]
}

const INSTALL: &str =
    "Install the NVIDIA driver of your distribution, or make it visible in the container (`--gpus all`).";

/// The driver and its GPUs.
#[cfg(feature = "nvidia")]
fn driver() -> Vec<Check> {
    use interlingua_trainer::device::cuda;
    use interlingua_trainer::device::gpu::NoDriver;

    let driver = match cuda::driver() {
        Ok(driver) => driver,
        Err(NoDriver::Missing) => {
            let found = "libcuda.so was not found".to_owned();
            return vec![check("cuda", "driver", false, found, INSTALL)];
        }
        Err(NoDriver::Refuses(reason)) => {
            let advice = "`nvidia-smi` says more; after an update of the driver the machine has to be started again.";
            return vec![check("cuda", "driver", false, reason.clone(), advice)];
        }
    };
    // LibTorch brings what it needs; CubeCL calls the driver.
    let needed = cfg!(feature = "cuda").then(cuda::needed_driver);
    let version = machine::nvidia_driver_version().map_or_else(String::new, |version| format!("{version}, "));
    let needs = needed.map_or_else(String::new, |needed| format!(", {needed} is needed"));
    let new_enough = needed.is_none_or(|needed| driver.version >= needed);
    let mut checks = vec![
        check(
            "cuda",
            "driver",
            new_enough,
            format!("{version}up to CUDA {}{needs}", driver.version),
            "Update the driver.",
        ),
        check(
            "cuda",
            "GPUs",
            !driver.gpus.is_empty(),
            driver.gpus.len().to_string(),
            "`nvidia-smi` lists the GPUs of the machine; CUDA_VISIBLE_DEVICES hides some of them.",
        ),
    ];
    checks.extend(driver.gpus.iter().map(gpu));
    #[cfg(feature = "cuda-cpp")]
    checks.push(match cuda::compiler() {
        Ok(version) => check(
            "cuda",
            "NVRTC",
            driver.version >= version,
            version.to_string(),
            "Update the driver, or install an older CUDA toolkit: the driver has to be as new as NVRTC.",
        ),
        Err(missing) => {
            let advice = "A binary built without the feature cuda-cpp needs no CUDA toolkit.";
            check("cuda", "NVRTC", false, missing, advice)
        }
    });
    if driver.gpus.len() > 1 {
        checks.push(nccl());
    }
    checks
}

/// The library that carries numbers between GPUs, which only runs on several of them need.
#[cfg(feature = "cuda")]
fn nccl() -> Check {
    match interlingua_trainer::collectives::nccl::Nccl::version() {
        Ok(version) => check("cuda", "NCCL", true, version, ""),
        Err(reason) => check(
            "cuda",
            "NCCL",
            true,
            format!("none; runs on several GPUs need it. {reason}"),
            "",
        ),
    }
}

#[cfg(all(feature = "nvidia", not(feature = "cuda")))]
fn nccl() -> Check {
    let library = machine::shared_library("libnccl.so.2");
    let found = library.map_or_else(|| "not found".to_owned(), |path| path.display().to_string());
    check("cuda", "NCCL", true, found, "")
}

#[cfg(feature = "nvidia")]
fn gpu(gpu: &interlingua_trainer::device::gpu::Gpu) -> Check {
    use crate::table;

    let memory = match interlingua_trainer::device::cuda::memory(gpu.index) {
        Some((free, total)) => format!("{} free of {}", table::bytes(free), table::bytes(total)),
        None => table::bytes(gpu.memory),
    };
    let formats = if gpu.has_bf16() { "bf16" } else { "f16, no bf16" };
    check(
        "cuda",
        &format!("GPU {}", gpu.index),
        true,
        format!("{gpu}, {memory}, {formats}"),
        "",
    )
}
