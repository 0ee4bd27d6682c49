//! NVIDIA's collectives, on the memory of CubeCL's tensors.
//!
//! An operation waits for the device, runs on a stream of its own, and is waited for: nothing overlaps yet, because CubeCL does not
//! hand out the stream that its kernels run on (`docs/architecture.md` says what it would take). All ranks get the same bits: a sum is
//! formed once and sent on unchanged (NVIDIA/nccl, issues 434 and 855). Whether two runs get the same depends on the way that NCCL
//! chooses by length and topology; `NCCL_ALGO=Ring` and `NCCL_PROTO=Simple` fix it.

mod communicator;
mod library;

use std::ffi::c_char;
use std::fmt;
use std::sync::Arc;

use burn::tensor::Device;
use cudarc::nccl::sys::ncclUniqueId;

use self::communicator::Communicator;
use super::on_device::OnDevice;
use super::{Collectives, OnFailure};
use crate::device::gpu_of;
use crate::error::TrainError;

/// Bytes of what names a communicator.
pub const ID_BYTES: usize = 128;

/// One rank's connection to the others.
#[derive(Clone)]
pub struct Nccl {
    collectives: Arc<dyn Collectives>,
    communicator: Arc<Communicator>,
}

impl fmt::Debug for Nccl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.communicator.fmt(formatter)
    }
}

impl Nccl {
    /// The version of the library, as in 2.23.4.
    ///
    /// # Errors
    /// When the library is not there or too old: what to do.
    pub fn version() -> Result<String, TrainError> {
        let library = library::library().map_err(TrainError::Collectives)?;
        Ok(library::written(library.version))
    }

    /// What names a new communicator. One rank asks for it and tells the others, then all connect.
    ///
    /// # Errors
    /// When the library is not there or too old, or finds no network interface to listen on (`NCCL_SOCKET_IFNAME`).
    pub fn unique_id() -> Result<[u8; ID_BYTES], TrainError> {
        let library = library::library().map_err(TrainError::Collectives)?;
        let mut id = ncclUniqueId {
            internal: [0; ID_BYTES],
        };
        // SAFETY: the function writes the identifier, which outlives the call.
        let code = unsafe { (library.get_unique_id)(&mut id) };
        library
            .check(code, std::ptr::null_mut())
            .map_err(|reason| TrainError::Collectives(format!("no communicator can be named: {reason}")))?;
        Ok(id.internal.map(|byte| byte as u8))
    }

    /// Connects rank `rank` of `world_size` with the others, which compute on other GPUs. Returns when all have called it.
    ///
    /// `on_failure` is called when an operation cannot be completed, on the thread that asked for it.
    ///
    /// # Errors
    /// When the library is not there, the device is no NVIDIA GPU of CubeCL's, or NCCL cannot connect: what to do.
    pub fn connect(
        rank: usize,
        world_size: usize,
        id: [u8; ID_BYTES],
        device: &Device,
        on_failure: OnFailure,
    ) -> Result<Self, TrainError> {
        let library = library::library().map_err(TrainError::Collectives)?;
        let gpu = gpu_of(device).filter(|gpu| device.clone().without_autodiff() == Device::cuda(gpu.index));
        let Some(gpu) = gpu else {
            return Err(TrainError::Collectives(format!(
                "NCCL connects NVIDIA GPUs, and rank {rank} computes on {device:?}; set model.device = \"cuda\", or \
                 distributed.backend = \"mpi\" for CPUs"
            )));
        };
        let id = ncclUniqueId {
            internal: id.map(|byte| byte as c_char),
        };
        let communicator = Communicator::new(library, rank, world_size, id, gpu.index).map_err(|reason| {
            TrainError::Collectives(format!(
                "rank {rank} of {world_size}, on {gpu} with the index {}, cannot be connected through NCCL: {reason}. Each rank needs a \
                 GPU of its own, and all need a network between their hosts (NCCL_SOCKET_IFNAME names its interface)",
                gpu.index
            ))
        })?;
        let communicator = Arc::new(communicator);
        Ok(Self {
            collectives: Arc::new(OnDevice::new(communicator.clone(), device, on_failure)),
            communicator,
        })
    }

    /// The operations.
    pub fn collectives(&self) -> Arc<dyn Collectives> {
        self.collectives.clone()
    }

    /// Ends what is under way, from any thread, so that it does not wait for a rank that is lost. Whoever calls this ends the process.
    pub fn abort(&self) {
        self.communicator.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_is_refused_whether_or_not_there_is_a_library() {
        let fail: OnFailure = Box::new(|message| panic!("{message}"));
        let refusal = Nccl::connect(0, 1, [0; ID_BYTES], &Device::flex(), fail).unwrap_err();
        assert_eq!(refusal.exit_code(), 2);
        let text = refusal.to_string();
        assert!(text.contains("libnccl2") || text.contains("model.device"), "{text}");
    }
}
