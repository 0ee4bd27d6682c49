//! Vectors on a device of CubeCL for libraries that read and write their memory themselves.

use burn::backend::Cube;
use burn::tensor::{DType, Int, Tensor};
use burn_cubecl::tensor::CubeTensor;
use cubecl_runtime::runtime::Runtime;
use cubecl_runtime::server::ServerStorage;
use cubecl_runtime::storage::{ComputeStorage, ManagedResource};

use super::cube::{close, empty, is_cube, open, open_int, own};

/// What a runtime of CubeCL knows about a piece of memory: its address, and how far it reaches.
pub(crate) type Resource<R> = <<<R as Runtime>::Server as ServerStorage>::Storage as ComputeStorage>::Resource;

/// A piece of memory that stays where it is, and is not given to anybody else, while this is held.
pub(crate) type Memory<R> = ManagedResource<Resource<R>>;

/// A dense vector, reached below Burn.
pub(crate) struct RawVector {
    tensor: CubeTensor,
}

impl RawVector {
    /// A vector; none where it is not on a device of CubeCL. What has been recorded for it runs, and a view is copied.
    pub(crate) fn of(vector: Tensor<1>) -> Option<Self> {
        if !is_cube(&vector.device()) {
            return None;
        }
        let primitive = vector.inner().try_into_primitive::<Cube>().ok()?;
        Some(Self {
            tensor: open(primitive),
        })
    }

    /// A vector of integers.
    pub(crate) fn of_integers(vector: Tensor<1, Int>) -> Option<Self> {
        if !is_cube(&vector.device()) {
            return None;
        }
        let primitive = vector.inner().try_into_primitive::<Cube>().ok()?;
        Some(Self {
            tensor: open_int(primitive),
        })
    }

    /// How many elements it has.
    pub(crate) fn length(&self) -> usize {
        self.tensor.meta.shape()[0]
    }

    /// What its elements are.
    pub(crate) fn dtype(&self) -> DType {
        self.tensor.dtype
    }

    /// A vector of the same elements on the same device, without contents.
    pub(crate) fn beside(&self, length: usize) -> Self {
        Self {
            tensor: empty(&self.tensor, [length], self.tensor.dtype),
        }
    }

    /// A vector with these contents that may be written: itself if nobody else holds its memory, else a copy.
    pub(crate) fn writable(self) -> Self {
        Self {
            tensor: own(self.tensor),
        }
    }

    /// The memory of its elements. It holds them once [`RawVector::wait`] has returned.
    ///
    /// # Errors
    /// CubeCL's words, when the device is of another runtime, or what was to fill the vector has failed.
    pub(crate) fn memory<R: Runtime>(&self) -> Result<Memory<R>, String> {
        let memory = self.tensor.client.get_resource::<R::Server>(self.tensor.handle.clone());
        memory.map_err(|error| error.to_string())
    }

    /// Waits until the device has done all that it was given to do. CubeCL's streams are its own, so nothing less tells that a
    /// vector's memory holds what the vector is, and that no kernel reads what lay there before.
    ///
    /// # Errors
    /// CubeCL's words, when the device has failed.
    pub(crate) fn wait(&self) -> Result<(), String> {
        cubecl::future::block_on(self.tensor.client.sync()).map_err(|error| error.to_string())
    }

    /// The vector as Burn has it, without a graph.
    pub(crate) fn into_tensor(self) -> Tensor<1> {
        Tensor::from_primitive::<Cube>(close(self.tensor))
    }

    /// The same of integers.
    pub(crate) fn into_integers(self) -> Tensor<1, Int> {
        Tensor::from_primitive::<Cube>(close(self.tensor))
    }
}
