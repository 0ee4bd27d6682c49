use super::*;
use crate::ops::testing::{check_equal, random};
use crate::random::normal;

/// Random weights in all formats, on the host.
fn packed(shape: [usize; 2]) -> Vec<(&'static str, Packed)> {
    let values: Vec<f32> = (0..shape[0] * shape[1]).map(|index| normal(7, index as u64)).collect();
    vec![
        ("plain scales", Packed::nf4(&values, shape, 64, false)),
        ("double quantisation", Packed::nf4(&values, shape, 64, true)),
        ("larger blocks", Packed::nf4(&values, shape, 256, true)),
        ("int8", Packed::int8(&values, shape)),
    ]
}

/// The same on the device.
fn weights(shape: [usize; 2]) -> Vec<(&'static str, DevicePacked)> {
    let upload = |packed: &Packed| DevicePacked::upload(packed, &Device::flex()).unwrap();
    packed(shape)
        .iter()
        .map(|(name, packed)| (*name, upload(packed)))
        .collect()
}

#[test]
fn what_was_uploaded_is_decoded_as_on_the_host() {
    for shape in [[1, 1], [5, 33], [40, 96], [300, 130]] {
        for (name, packed) in packed(shape) {
            let expected = Tensor::<2>::from_data(TensorData::new(packed.decode(), shape), &Device::flex());
            let uploaded = DevicePacked::upload(&packed, &Device::flex()).unwrap();
            check_equal(dequantize(&uploaded, DType::F32), expected, 1e-6, name);
        }
    }
}

#[test]
fn equals_the_reference() {
    for shape in [[1, 1], [5, 33], [3, 64], [40, 96], [300, 130]] {
        for (name, packed) in weights(shape) {
            let reference = dequantize_reference(&packed, DType::F32);
            check_equal(dequantize(&packed, DType::F32), reference.clone(), 1e-6, name);
            let half = dequantize(&packed, DType::BF16).cast(DType::F32);
            check_equal(half, reference, 5e-3, name);
        }
    }
}

/// Codes 7 and 15 are 0 and 1, the first in the high half; a block goes on in the next row.
#[test]
fn a_small_weight_is_known() {
    let device = Device::flex();
    let mut codes = vec![0x77; 33];
    codes[0] = 0xF7;
    codes[32] = 0x7F;
    let scales = Scales::Plain(floats(vec![2.0, 3.0], &device));
    let packed = DevicePacked::nf4(codes, scales, 64, [2, 33], &device);
    let values: Vec<f32> = dequantize(&packed, DType::F32).into_data().try_into_vec().unwrap();
    let mut expected = vec![0.0; 66];
    expected[0] = 2.0;
    expected[65] = 3.0;
    assert_eq!(values, expected);
    let packed = DevicePacked::int8(vec![127, -127, 0, 64], vec![0.5, 2.0], [2, 2], &device);
    let values: Vec<f32> = dequantize(&packed, DType::F32).into_data().try_into_vec().unwrap();
    let one = 127.0 * INT8_STEP;
    assert_eq!(values, [0.5 * one, -0.5 * one, 0.0, 64.0 * 2.0 * INT8_STEP]);
}

#[test]
fn product_and_gradient_equal_those_of_the_dense_weight() {
    for (name, packed) in weights([20, 36]) {
        let (x, outer, bias) = (random([7, 36]), random([7, 20]), random([20]));
        let tracked = x.clone().autodiff().require_grad();
        let output = packed_linear(tracked.clone(), &packed, Some(bias.clone().autodiff()));
        let gradient = tracked
            .grad(&(output.clone() * outer.clone().autodiff()).sum().backward())
            .unwrap();
        let dense = dequantize_reference(&packed, DType::F32);
        let expected = x.clone().matmul(dense.clone().transpose()) + bias.clone().unsqueeze::<2>();
        check_equal(output.inner(), expected.clone(), 1e-5, name);
        check_equal(gradient, outer.matmul(dense), 1e-5, name);
        check_equal(packed_linear(x, &packed, Some(bias)), expected, 1e-5, name);
    }
}

#[test]
fn bytes_are_those_of_the_parts() {
    let [plain, double, int8] = [0, 1, 3].map(|index| weights([64, 512])[index].1.bytes());
    assert_eq!(plain, 64 * 512 / 2 + 512 * 4 + 64);
    assert_eq!(double, 64 * 512 / 2 + 512 + 2 * 4 + 256 * 4 + 64);
    assert_eq!(int8, 64 * 512 + 64 * 4);
}
