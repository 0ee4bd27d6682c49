use super::*;
use crate::ops::testing::{check_equal, random};
use crate::random::{mix, normal};

/// Weights of all formats with random codes and scales.
fn weights(shape: [usize; 2]) -> Vec<(&'static str, DevicePacked)> {
    let device = Device::flex();
    let elements = shape[0] * shape[1];
    let blocks = elements.div_ceil(BLOCK);
    let byte = |index: usize| mix(index as u64) as u8;
    let codes: Vec<u8> = (0..elements.div_ceil(2)).map(byte).collect();
    let positive = |index: usize| normal(7, index as u64).abs() + 0.01;
    let nested_table: [f32; 256] = std::array::from_fn(|index| index as f32 / 127.5 - 1.0);
    vec![
        (
            "plain scales",
            DevicePacked::nf4(codes.clone(), (0..blocks).map(positive).collect(), &NF4, shape, &device),
        ),
        (
            "double quantisation",
            DevicePacked::nf4_double(
                codes,
                (0..blocks).map(|index| byte(index + 99)).collect(),
                (0..blocks.div_ceil(NESTED_BLOCK)).map(positive).collect(),
                &nested_table,
                0.3,
                &NF4,
                shape,
                &device,
            ),
        ),
        (
            "int8",
            DevicePacked::int8(
                (0..elements).map(|index| byte(index) as i8).collect(),
                (0..shape[0]).map(positive).collect(),
                shape,
                &device,
            ),
        ),
    ]
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
    let packed = DevicePacked::nf4(codes, vec![2.0, 3.0], &NF4, [2, 33], &device);
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
    let [plain, double, int8] = [0, 1, 2].map(|index| weights([64, 512])[index].1.bytes());
    assert_eq!(plain, 64 * 512 / 2 + 512 * 4 + 64);
    assert_eq!(double, 64 * 512 / 2 + 512 + 2 * 4 + 256 * 4 + 64);
    assert_eq!(int8, 64 * 512 + 64 * 4);
}
