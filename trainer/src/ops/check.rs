//! Checks of the kernels of a device against their references on the CPU, over odd shapes and in every type that the
//! device computes in. They are part of the binary, so that a machine with a GPU can run them without Rust.

mod attention;
mod block;
mod packed;
mod simple;

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::{DType, Device, Tensor, TensorData};
use half::{bf16, f16};

use crate::random::normal;

/// One comparison of a kernel with its reference.
#[derive(Clone, Debug)]
pub struct KernelCheck {
    /// Which operation.
    pub name: &'static str,
    /// Shape, type and what was compared, in words.
    pub case: String,
    /// The largest difference relative to the largest expected value (at least 1); infinite where the kernel failed.
    pub max_difference: f64,
    /// What rounding may account for.
    pub allowed: f64,
}

impl KernelCheck {
    /// Whether the kernel agrees with its reference.
    pub fn passed(&self) -> bool {
        self.max_difference <= self.allowed
    }
}

/// Runs every kernel of a device over odd shapes and compares output and gradients with the references, which run on
/// the CPU in f32 on the same inputs. A kernel that panics is reported as one that differs infinitely.
pub fn kernel_checks(device: &Device) -> Vec<KernelCheck> {
    let mut checks = Vec::new();
    for_each_kernel_check(device, &mut |check| checks.push(check));
    checks
}

/// [`kernel_checks`] one by one, as they are done: the first use of a kernel compiles it, which may take seconds.
pub fn for_each_kernel_check(device: &Device, found: &mut dyn FnMut(KernelCheck)) {
    let mut report = Report { found };
    let device = device.clone().without_autodiff();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        if device.supports_dtype(dtype) {
            let place = Place {
                device: device.clone(),
                dtype,
            };
            simple::run(&place, &mut report);
            block::run(&place, &mut report);
            attention::run(&place, &mut report);
            packed::run(&place, &mut report);
        }
    }
}

/// Where the kernels under test run.
struct Place {
    device: Device,
    dtype: DType,
}

impl Place {
    /// Standard normal numbers times `size` on the CPU, rounded to the type under test, so that both sides get the same.
    fn random<const D: usize>(&self, key: u64, shape: [usize; D], size: f32) -> Tensor<D> {
        let count = shape.iter().product::<usize>() as u64;
        let values = (0..count).map(|index| self.rounded(normal(key, index) * size));
        let data = TensorData::new(values.collect::<Vec<f32>>(), shape);
        Tensor::from_data(data, (&Device::flex(), DType::F32))
    }

    fn rounded(&self, value: f32) -> f32 {
        match self.dtype {
            DType::BF16 => bf16::from_f32(value).to_f32(),
            DType::F16 => f16::from_f32(value).to_f32(),
            _ => value,
        }
    }

    /// The same numbers on the device, in the type under test.
    fn there<const D: usize>(&self, tensor: &Tensor<D>) -> Tensor<D> {
        self.there_in_f32(tensor).cast(self.dtype)
    }

    /// The same numbers on the device.
    fn there_in_f32<const D: usize>(&self, tensor: &Tensor<D>) -> Tensor<D> {
        Tensor::from_data(tensor.to_data(), (&self.device, DType::F32))
    }

    /// What rounding to the type under test may account for, in results that pass through it a few times.
    fn allowed(&self) -> f64 {
        match self.dtype {
            DType::BF16 => 0.02,
            DType::F16 => 0.003,
            _ => 2e-5,
        }
    }

    fn type_name(&self) -> &'static str {
        match self.dtype {
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            _ => "f32",
        }
    }
}

/// Where checks go.
struct Report<'a> {
    found: &'a mut dyn FnMut(KernelCheck),
}

/// What a case found: what was compared, and the difference.
type Differences = Vec<(&'static str, f64)>;

impl Report<'_> {
    /// Runs one case; `case` says its shape.
    fn run(&mut self, name: &'static str, case: &str, place: &Place, compare: impl FnOnce() -> Differences) {
        let failed = vec![("failed", f64::INFINITY)];
        let differences = catch_unwind(AssertUnwindSafe(compare)).unwrap_or(failed);
        for (what, max_difference) in differences {
            (self.found)(KernelCheck {
                name,
                case: format!("{case}, {}: {what}", place.type_name()),
                max_difference,
                allowed: if what == MASK { 0.0 } else { place.allowed() },
            });
        }
    }
}

/// A comparison that allows no difference.
const MASK: &str = "mask";

/// The largest difference relative to the largest expected value, or to 1 if that is larger.
fn difference<const D: usize>(computed: Tensor<D>, expected: Tensor<D>) -> f64 {
    let values = |tensor: Tensor<D>| -> Vec<f64> { tensor.into_data().iter::<f64>().collect() };
    difference_of(&values(computed), &values(expected))
}

fn difference_of(computed: &[f64], expected: &[f64]) -> f64 {
    if computed.len() != expected.len() {
        return f64::INFINITY;
    }
    let size = expected.iter().fold(1.0f64, |size, value| size.max(value.abs()));
    let mut largest = 0.0f64;
    for (computed, expected) in computed.iter().zip(expected) {
        let difference = (computed - expected).abs();
        if difference.is_nan() {
            return f64::INFINITY;
        }
        largest = largest.max(difference);
    }
    largest / size
}
