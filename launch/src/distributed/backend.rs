//! What carries numbers from rank to rank, and the device that a rank computes on.

use interlingua_recipes::{CollectiveBackend, Device, Recipe};

use crate::exit::Failure;

/// What carries numbers from rank to rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// NVIDIA's library, between GPUs.
    Nccl,
    /// MPI, between CPUs.
    Mpi,
}

/// What to do without the feature `mpi`.
pub(super) const WITHOUT_MPI: &str = "Several processes on CPUs speak through MPI, and this binary was built without it. Install Open MPI \
    (libopenmpi-dev, openmpi-bin) or MPICH, and libclang (libclang-dev), then build it with: cargo build --release --features mpi";

/// What to do without the feature `cuda`.
pub(super) const WITHOUT_CUDA: &str = "Several processes on NVIDIA GPUs speak through NCCL, and this binary was built without CUDA. Build \
    it with: cargo build --release --features cuda; or set distributed.backend = \"mpi\" for CPUs.";

impl Backend {
    /// The backend of a recipe: the one that it names, else that of its device.
    pub(crate) fn of(recipe: &Recipe) -> Self {
        match recipe.distributed.backend {
            CollectiveBackend::Nccl => Self::Nccl,
            CollectiveBackend::Mpi => Self::Mpi,
            CollectiveBackend::Auto => Self::of_device(recipe.model.device),
        }
    }

    /// The backend between devices of a kind.
    pub(crate) fn of_device(device: Device) -> Self {
        if is_cuda(device) { Self::Nccl } else { Self::Mpi }
    }

    /// Whether this binary has it.
    ///
    /// # Errors
    /// With exit code 2 when it has not, saying how to build it.
    pub(crate) fn is_built_in(self) -> Result<(), Failure> {
        match self {
            Self::Nccl if !cfg!(feature = "cuda") => Err(Failure::usage(WITHOUT_CUDA)),
            Self::Mpi if !cfg!(feature = "mpi") => Err(Failure::usage(WITHOUT_MPI)),
            Self::Nccl | Self::Mpi => Ok(()),
        }
    }
}

fn is_cuda(device: Device) -> bool {
    match device {
        Device::Cuda(_) => true,
        Device::Auto => visible_gpus() > 0,
        Device::Cpu | Device::Tch | Device::TchCuda(_) => false,
    }
}

/// How many NVIDIA GPUs this binary could compute on.
#[cfg(feature = "cuda")]
pub(crate) fn visible_gpus() -> usize {
    interlingua_trainer::device::cuda::driver()
        .as_ref()
        .map_or(0, |driver| driver.gpus.len())
}

/// How many NVIDIA GPUs this binary could compute on.
#[cfg(not(feature = "cuda"))]
pub(crate) fn visible_gpus() -> usize {
    0
}

/// The device of a rank: of GPUs that the recipe does not number, the one with the rank's number on its host. Where a launcher shows each
/// rank a single GPU, that one.
pub(super) fn device_of_rank(wanted: Device, local_rank: usize) -> Device {
    let gpus = visible_gpus();
    let index = if gpus == 1 { 0 } else { local_rank };
    match wanted {
        Device::Auto if gpus > 0 => Device::Cuda(Some(index)),
        Device::Cuda(None) => Device::Cuda(Some(index)),
        Device::TchCuda(None) => Device::TchCuda(Some(index)),
        other => other,
    }
}

/// What tells a rank's GPU from all others: the driver's name for it; without one, the number by which it alone is visible on its host.
pub(super) fn device_id(device: Device, host: &str) -> Option<String> {
    if !matches!(device, Device::Cuda(_) | Device::TchCuda(_)) {
        return None;
    }
    uuid(device).or_else(|| {
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok()?;
        (!visible.is_empty() && !visible.contains(',')).then(|| format!("{host}/{visible}"))
    })
}

#[cfg(feature = "nvidia")]
fn uuid(device: Device) -> Option<String> {
    use interlingua_trainer::device::{cuda, wanted_gpu};

    cuda::uuid(wanted_gpu(device)?.index)
}

#[cfg(not(feature = "nvidia"))]
fn uuid(_: Device) -> Option<String> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_without_a_number_are_those_of_the_rank() {
        // Without CUDA no GPU is visible, and the one of the rank is asked for all the same.
        if visible_gpus() == 0 {
            assert_eq!(device_of_rank(Device::Cuda(None), 3), Device::Cuda(Some(3)));
            assert_eq!(device_of_rank(Device::Cuda(Some(1)), 3), Device::Cuda(Some(1)));
            assert_eq!(device_of_rank(Device::Auto, 3), Device::Auto);
            assert_eq!(device_of_rank(Device::Cpu, 3), Device::Cpu);
        }
    }
}
