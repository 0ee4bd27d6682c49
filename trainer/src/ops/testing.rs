//! What the tests of the operations share.

use burn::tensor::{Device, Distribution, Tensor};

/// Normal random numbers.
pub(crate) fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex())
}

/// Fails unless the largest difference is at most `tolerance` times the largest expected element (at least 1).
pub(super) fn check_equal<const D: usize>(computed: Tensor<D>, expected: Tensor<D>, tolerance: f32, what: &str) {
    assert_eq!(computed.dims(), expected.dims(), "{what}");
    if expected.shape().num_elements() == 0 {
        return;
    }
    let size: f32 = expected.clone().abs().max().into_scalar();
    let difference: f32 = (computed - expected.clone()).abs().max().into_scalar();
    let relative = difference / size.max(1.0);
    assert!(relative <= tolerance, "{what} {:?} off by {relative}", expected.dims());
}
