//! What the kernels in CubeCL share. CUDA runs them in production and CubeCL's CPU runtime in tests; the two differ in
//! how many units a cube has (thousands of threads at a time there, one per core here), so a kernel takes the shape of
//! its cubes as a constant of its compilation and asks for no more than the device has.
//!
//! Inputs are f32, bf16 or f16; sums are in f32.

use burn::backend::Cube;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::{DType, Device, Shape, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::client::Client;
use cubecl::prelude::{BufferArg, CubeCount, CubeDim, ElemType};

/// Units of a cube on a GPU.
const UNITS: usize = 256;

/// Bytes that a unit reads or writes at once.
const VECTOR_BYTES: usize = 16;

/// The tensor that a kernel works on, dense; copied only where it is a view.
#[cfg(not(feature = "fusion"))]
pub(super) fn open(tensor: FloatTensor<Cube>) -> CubeTensor {
    into_contiguous(tensor)
}

/// [`open`] for integers.
#[cfg(not(feature = "fusion"))]
pub(super) fn open_int(tensor: IntTensor<Cube>) -> CubeTensor {
    into_contiguous(tensor)
}

/// The tensor as Burn takes it back.
#[cfg(not(feature = "fusion"))]
pub(super) fn close(tensor: CubeTensor) -> FloatTensor<Cube> {
    tensor
}

/// The tensor that a kernel works on, dense. What has been recorded for it so far runs first: a kernel of our own ends
/// a fused block.
#[cfg(feature = "fusion")]
pub(super) fn open(tensor: FloatTensor<Cube>) -> CubeTensor {
    let client = tensor.client.clone();
    into_contiguous(client.resolve_tensor_float::<burn_cubecl::CubeBackend>(tensor))
}

/// [`open`] for integers.
#[cfg(feature = "fusion")]
pub(super) fn open_int(tensor: IntTensor<Cube>) -> CubeTensor {
    let client = tensor.client.clone();
    into_contiguous(client.resolve_tensor_int::<burn_cubecl::CubeBackend>(tensor))
}

/// The tensor as Burn takes it back: the start of a new block.
#[cfg(feature = "fusion")]
pub(super) fn close(tensor: CubeTensor) -> FloatTensor<Cube> {
    use burn::backend::ir::{BackendIr, InitOperationIr, OperationIr, OperationOutput};
    use burn_cubecl::CubeBackend;

    let client = burn_fusion::get_client::<CubeBackend>(&tensor.device);
    let (shape, dtype) = (tensor.meta.shape().clone(), tensor.dtype);
    let handle = CubeBackend::float_tensor_handle(tensor);
    let start = InitOperationIr::create(shape, dtype, || client.register_tensor_handle(handle));
    let operation = burn_fusion::NoOp::<CubeBackend>::new();
    let stream = burn_fusion::stream::StreamId::current();
    client.register(stream, OperationIr::Init(start), operation).output()
}

/// Whether a device is one of CubeCL's, for which there are kernels.
pub(super) fn is_cube(device: &Device) -> bool {
    let device = device.clone().without_autodiff();
    matches!(device.as_dispatch(), burn::backend::DispatchDevice::Cube(_))
}

/// A tensor without a graph as the kernels take it, dense; or as it came, where no kernel does.
pub(super) fn plain<const D: usize>(tensor: Tensor<D>) -> Result<CubeTensor, Box<Tensor<D>>> {
    let device = tensor.device();
    if !is_cube(&device) || device.is_autodiff() {
        return Err(Box::new(tensor));
    }
    match tensor.clone().try_into_primitive::<Cube>() {
        Ok(primitive) => {
            drop(tensor);
            Ok(open(primitive))
        }
        Err(_) => Err(Box::new(tensor)),
    }
}

/// The tensor of a kernel as a tensor without a graph.
pub(super) fn tensor<const D: usize>(tensor: CubeTensor) -> Tensor<D> {
    Tensor::from_primitive::<Cube>(close(tensor))
}

/// Numbers of the host as an argument of a kernel.
pub(super) fn upload<T: bytemuck::Pod>(client: &Client, values: &[T]) -> BufferArg {
    let handle = client.create_from_slice(bytemuck::cast_slice(values));
    // SAFETY: the buffer was made from these values.
    unsafe { BufferArg::from_raw_parts(handle, values.len()) }
}

/// A tensor as an argument of a kernel that reads or writes its elements in order.
pub(super) fn buffer(tensor: &CubeTensor) -> BufferArg {
    tensor.clone().into_buffer_arg()
}

/// A dense tensor beside `like`, without contents.
pub(super) fn empty<const D: usize>(like: &CubeTensor, shape: [usize; D], dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), Shape::new(shape), dtype)
}

/// The same elements in another shape.
pub(super) fn reshaped<const D: usize>(tensor: CubeTensor, shape: [usize; D]) -> CubeTensor {
    burn_cubecl::ops::reshape(tensor, Shape::new(shape))
}

/// The tensor itself if nobody else holds its buffer, else a copy: what a kernel may overwrite.
pub(super) fn own(tensor: CubeTensor) -> CubeTensor {
    if tensor.can_mut() { tensor } else { tensor.copy() }
}

/// The extents of a tensor of D dimensions.
pub(super) fn dimensions<const D: usize>(tensor: &CubeTensor) -> [usize; D] {
    let shape = tensor.meta.shape();
    std::array::from_fn(|axis| shape[axis])
}

/// How a kernel names an element type.
pub(super) fn element(dtype: DType) -> ElemType {
    dtype_to_storage_type(dtype)
}

/// Elements that a unit reads or writes at once, so that neighbouring units together take whole cache lines: a power of
/// two that divides `size`.
pub(super) fn lanes(dtype: DType, size: usize) -> usize {
    let mut lanes = (VECTOR_BYTES / dtype.size()).max(1);
    while !size.is_multiple_of(lanes) {
        lanes /= 2;
    }
    lanes
}

/// The most units of a cube that the device takes, a power of two.
pub(super) fn most_units(client: &Client) -> usize {
    let hardware = &client.properties().hardware;
    let most = (hardware.max_units_per_cube as usize).min(hardware.max_cube_dim.0 as usize);
    1 << most.clamp(1, UNITS).ilog2()
}

/// Cubes for a kernel with one unit per element.
pub(super) fn per_element(client: &Client, elements: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new(client, elements);
    (calculate_cube_count_elemwise(client, elements, dim), dim)
}

/// Cubes for a kernel that sums over rows: `width` units side by side share a row, `height` rows share a cube.
#[derive(Clone, Copy)]
pub(super) struct RowCubes {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) count: usize,
}

impl RowCubes {
    /// For `rows` rows of `size` vectors each.
    pub(super) fn new(client: &Client, rows: usize, size: usize) -> Self {
        let most = most_units(client);
        let width = most.min(size.next_power_of_two());
        let height = (most / width).clamp(1, client.properties().hardware.max_cube_dim.1 as usize);
        Self {
            width,
            height,
            count: rows.div_ceil(height),
        }
    }

    pub(super) fn count(self) -> CubeCount {
        CubeCount::Static(self.count as u32, 1, 1)
    }

    pub(super) fn dim(self) -> CubeDim {
        CubeDim::new_2d(self.width as u32, self.height as u32)
    }
}

pub(super) use reductions::{lane_sum, row_maximum, row_sum};

mod reductions {
    use cubecl::prelude::*;

    /// The sum of the elements of a vector.
    #[cube]
    pub fn lane_sum<N: Size>(vector: Vector<f32, N>) -> f32 {
        let mut sum = 0.0f32;
        #[unroll]
        for lane in 0..N::value() {
            sum += vector.extract(lane);
        }
        sum
    }

    /// The sum of a value over the `width` units of a row of the cube, by halving: the same order on every device. All
    /// units of the cube call it.
    #[cube]
    pub fn row_sum(value: f32, #[comptime] width: usize, #[comptime] height: usize) -> f32 {
        let mut partial = Shared::<[f32]>::new_slice(comptime!(width * height));
        let unit = UNIT_POS_X as usize;
        let first = UNIT_POS_Y as usize * width;
        partial[first + unit] = value;
        sync_cube();
        let mut stride = comptime!(width / 2).runtime();
        while stride > 0 {
            if unit < stride {
                let other = partial[first + unit + stride];
                partial[first + unit] += other;
            }
            sync_cube();
            stride /= 2;
        }
        partial[first]
    }

    /// The largest value among the `width` units of a row of the cube. All units of the cube call it.
    #[cube]
    pub fn row_maximum(value: f32, #[comptime] width: usize, #[comptime] height: usize) -> f32 {
        let mut partial = Shared::<[f32]>::new_slice(comptime!(width * height));
        let unit = UNIT_POS_X as usize;
        let first = UNIT_POS_Y as usize * width;
        partial[first + unit] = value;
        sync_cube();
        let mut stride = comptime!(width / 2).runtime();
        while stride > 0 {
            if unit < stride {
                let other = partial[first + unit + stride];
                if other > partial[first + unit] {
                    partial[first + unit] = other;
                }
            }
            sync_cube();
            stride /= 2;
        }
        partial[first]
    }
}
