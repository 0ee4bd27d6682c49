//! One rank's end of an NCCL communicator, with a CUDA stream of its own.

use std::ffi::{c_int, c_void};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use burn::tensor::DType;
use cubecl::cuda::CudaRuntime;
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError};
use cudarc::nccl::sys::{cudaStream_t, ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclResult_t, ncclUniqueId};

use super::library::{Code, Library, written};
use crate::collectives::on_device::{Carrier, Operation};
use crate::ops::raw::Memory;

/// How long a result is waited for without letting go of the processor: small sums are there sooner.
const SPIN: Duration = Duration::from_micros(200);
/// How long each look for a result waits after that.
const NAP: Duration = Duration::from_micros(50);
/// How often NCCL is asked whether something went wrong while a result is waited for.
const ASK: Duration = Duration::from_millis(100);
/// How long an abort waits for a call of NCCL to come back.
const ABORT_PATIENCE: Duration = Duration::from_secs(2);
/// How long an operation waits, after an abort, for the end of the process that the abort belongs to.
const END_PATIENCE: Duration = Duration::from_secs(30);

/// NCCL's own handle.
struct Handle(ncclComm_t);

// SAFETY: any thread may use a communicator, one at a time, which the mutex around the handle sees to.
unsafe impl Send for Handle {}

/// A communicator, which any thread may abort.
pub(super) struct Communicator {
    library: &'static Library,
    rank: usize,
    world_size: usize,
    /// None once the communicator has been aborted.
    handle: Mutex<Option<Handle>>,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
}

impl fmt::Debug for Communicator {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = written(self.library.version);
        write!(
            formatter,
            "rank {} of {} through NCCL {version}",
            self.rank, self.world_size
        )
    }
}

/// The driver's own words.
fn driver_words(error: DriverError) -> String {
    format!("the NVIDIA driver says: {error}")
}

impl Communicator {
    /// Joins the ranks that have the same identifier, on the GPU with an index; returns when all have come.
    ///
    /// # Errors
    /// The words of the driver or of NCCL.
    pub(super) fn new(
        library: &'static Library,
        rank: usize,
        world_size: usize,
        id: ncclUniqueId,
        gpu: usize,
    ) -> Result<Self, String> {
        // The context that tensors on this GPU are in, too.
        let context = CudaContext::new(gpu).map_err(driver_words)?;
        let stream = context.new_stream().map_err(driver_words)?;
        let mut handle: ncclComm_t = std::ptr::null_mut();
        // SAFETY: NCCL writes the handle, which outlives the call; the GPU's context is current on this thread.
        let code = unsafe { (library.comm_init_rank)(&mut handle, world_size as c_int, id, rank as c_int) };
        library.check(code, std::ptr::null_mut())?;
        Ok(Self {
            library,
            rank,
            world_size,
            handle: Mutex::new(Some(Handle(handle))),
            context,
            stream,
        })
    }

    /// The handle, for the time of one call.
    fn lock(&self) -> MutexGuard<'_, Option<Handle>> {
        // A thread that panicked while it had the handle was not inside NCCL, which does not panic.
        self.handle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends what is under way, from any thread: kernels that wait for another rank come back. Nothing can be carried out afterwards;
    /// the caller ends the process. Where a call of NCCL does not come back, the communicator is left as it is.
    pub(super) fn abort(&self) {
        let began = Instant::now();
        let handle = loop {
            match self.handle.try_lock() {
                Ok(mut handle) => break handle.take(),
                Err(TryLockError::Poisoned(poisoned)) => break poisoned.into_inner().take(),
                Err(TryLockError::WouldBlock) if began.elapsed() < ABORT_PATIENCE => std::thread::sleep(NAP),
                Err(TryLockError::WouldBlock) => {
                    tracing::warn!("NCCL does not come back from a call; its communicator is not aborted");
                    return;
                }
            }
        };
        let Some(Handle(communicator)) = handle else {
            return;
        };
        let bound = self.context.bind_to_thread().map_err(driver_words);
        // SAFETY: the handle is NCCL's, and has been taken from where others look for it.
        let abort = || unsafe { (self.library.comm_abort)(communicator) };
        if let Err(reason) = bound.and_then(|()| self.library.check(abort(), std::ptr::null_mut())) {
            tracing::debug!("the communicator was not aborted: {reason}");
        }
    }

    /// Waits until the work up to an event is done, and asks NCCL meanwhile whether another rank or the network has failed.
    fn wait(&self, event: &CudaEvent) -> Result<(), String> {
        let began = Instant::now();
        let mut asked = began;
        while !event.try_is_complete().map_err(driver_words)? {
            if began.elapsed() < SPIN {
                std::hint::spin_loop();
                continue;
            }
            std::thread::sleep(NAP);
            if asked.elapsed() >= ASK {
                self.ask()?;
                asked = Instant::now();
            }
        }
        Ok(())
    }

    /// What NCCL has noticed outside its calls.
    fn ask(&self) -> Result<(), String> {
        let handle = self.lock();
        let Some(Handle(communicator)) = *handle else {
            drop(handle);
            return Err(aborted());
        };
        let mut noticed: Code = ncclResult_t::ncclSuccess as Code;
        // SAFETY: the handle is NCCL's, held by the lock, and the code outlives the call.
        let code = unsafe { (self.library.comm_get_async_error)(communicator, &mut noticed) };
        self.library.check(code, communicator)?;
        if noticed == ncclResult_t::ncclInProgress as Code {
            return Ok(());
        }
        self.library.check(noticed, communicator)
    }
}

/// Whoever aborts a communicator says why and ends the process; this waits for that, and is an error where it does not happen.
fn aborted() -> String {
    std::thread::sleep(END_PATIENCE);
    "the communicator was aborted".to_owned()
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // Not destroyed, which would wait for the other ranks of this host: one that fails must not. Ranks that are done leave together,
        // so that nothing is under way that an abort could cut off.
        self.abort();
    }
}

/// NCCL's name for an element. Operations that only move elements have one for every width.
fn data_type(operation: Operation, dtype: DType) -> Result<ncclDataType_t, String> {
    use ncclDataType_t as Nccl;
    Ok(match (operation, dtype) {
        (_, DType::F64) => Nccl::ncclFloat64,
        (_, DType::F32) => Nccl::ncclFloat32,
        (_, DType::F16) => Nccl::ncclFloat16,
        (_, DType::BF16) => Nccl::ncclBfloat16,
        (_, DType::I64) => Nccl::ncclInt64,
        (_, DType::I32) => Nccl::ncclInt32,
        (_, DType::I8) => Nccl::ncclInt8,
        (_, DType::U64) => Nccl::ncclUint64,
        (_, DType::U32) => Nccl::ncclUint32,
        (_, DType::U8) => Nccl::ncclUint8,
        // Two bytes, whatever they mean.
        (Operation::AllGather | Operation::Broadcast { .. }, DType::I16 | DType::U16) => Nccl::ncclFloat16,
        (_, other) => return Err(format!("NCCL has no numbers like {other:?}")),
    })
}

impl Carrier for Arc<Communicator> {
    type Runtime = CudaRuntime;

    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn carry(
        &self,
        operation: Operation,
        from: &Memory<CudaRuntime>,
        into: &Memory<CudaRuntime>,
        length: usize,
        dtype: DType,
    ) -> Result<(), String> {
        let nccl_type = data_type(operation, dtype)?;
        let (source, target) = (from.resource(), into.resource());
        let wanted = match operation {
            Operation::AllReduce | Operation::Broadcast { .. } => (length, length),
            Operation::AllGather => (length, length * self.world_size),
            Operation::ReduceScatter => (length * self.world_size, length),
        };
        let room = |resource_bytes: u64, elements: usize| resource_bytes >= (elements * dtype.size()) as u64;
        if !room(source.size, wanted.0) || !room(target.size, wanted.1) {
            return Err("the memory of a vector is shorter than the vector".to_owned());
        }
        self.context.bind_to_thread().map_err(driver_words)?;
        let (from, into) = (source.ptr as *const c_void, target.ptr as *mut c_void);
        let stream = self.stream.cu_stream() as cudaStream_t;
        let sum = ncclRedOp_t::ncclSum;
        let handle = self.lock();
        let Some(Handle(communicator)) = *handle else {
            drop(handle);
            return Err(aborted());
        };
        // SAFETY: the handle is NCCL's, held by the lock. Both pieces of memory are held by the caller until this function has
        // returned, lie in the communicator's context, and are as long as the operation takes, as was just checked; CubeCL does
        // nothing with them meanwhile, since the caller has waited for it and gives it nothing to do.
        let code = unsafe {
            match operation {
                Operation::AllReduce => {
                    (self.library.all_reduce)(from, into, length, nccl_type, sum, communicator, stream)
                }
                Operation::ReduceScatter => {
                    (self.library.reduce_scatter)(from, into, length, nccl_type, sum, communicator, stream)
                }
                Operation::AllGather => (self.library.all_gather)(from, into, length, nccl_type, communicator, stream),
                Operation::Broadcast { root } => {
                    (self.library.broadcast)(from, into, length, nccl_type, root as c_int, communicator, stream)
                }
            }
        };
        self.library.check(code, communicator)?;
        drop(handle);
        let event = self.stream.record_event(None).map_err(driver_words)?;
        self.wait(&event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_of_what_nccl_can_add_and_anything_can_be_moved() {
        let bf16 = data_type(Operation::ReduceScatter, DType::BF16).unwrap();
        assert_eq!(bf16, ncclDataType_t::ncclBfloat16);
        assert_eq!(
            data_type(Operation::AllGather, DType::U8).unwrap(),
            ncclDataType_t::ncclUint8
        );
        assert!(data_type(Operation::AllGather, DType::U16).is_ok());
        let refusal = data_type(Operation::AllReduce, DType::I16).unwrap_err();
        assert!(refusal.contains("I16"), "{refusal}");
    }
}
