//! Packed weights: unpacked, and as a linear layer.

use burn::tensor::{DType, Device};

use super::simple::gradients;
use super::{Differences, Place, Report, difference};
use crate::ops::dequantize::{BLOCK, DevicePacked, NESTED_BLOCK, NF4, dequantize, dequantize_reference, packed_linear};
use crate::ops::seed::backward_from;
use crate::random::{mix, normal};

#[derive(Clone, Copy)]
enum Format {
    Nf4,
    Nf4Double,
    Int8,
}

pub(super) fn run(place: &Place, report: &mut Report) {
    let formats = [
        ("nf4", Format::Nf4),
        ("nf4, double", Format::Nf4Double),
        ("int8", Format::Int8),
    ];
    for (name, format) in formats {
        for shape in [[1, 1], [5, 33], [3, 64], [40, 96], [70, 300]] {
            report.run("dequantize", &format!("{name} {shape:?}"), place, || {
                check_weight(place, format, shape)
            });
        }
        // One shape: Burn tunes or compiles its product for each.
        let shape = [40, 96];
        report.run("packed_linear", &format!("{name} {shape:?}"), place, || {
            check_linear(place, format, shape)
        });
    }
}

fn check_weight(place: &Place, format: Format, shape: [usize; 2]) -> Differences {
    let expected = dequantize_reference(&packed(format, shape, &Device::flex()), DType::F32);
    let weight = dequantize(&packed(format, shape, &place.device), place.dtype);
    vec![("weight", difference(weight, expected))]
}

fn check_linear(place: &Place, format: Format, [rows, columns]: [usize; 2]) -> Differences {
    let there = packed(format, [rows, columns], &place.device);
    let weight = dequantize_reference(&packed(format, [rows, columns], &Device::flex()), DType::F32);
    let (x, outer, bias) = (
        place.random(20, [3, columns], 1.0),
        place.random(21, [3, rows], 1.0),
        place.random(22, [rows], 1.0),
    );
    let tracked = place.there(&x).autodiff().require_grad();
    let output = packed_linear(tracked.clone(), &there, Some(place.there(&bias).autodiff()));
    let grads = backward_from(output.clone(), place.there(&outer));
    let expected = x.matmul(weight.clone().transpose()) + bias.unsqueeze::<2>();
    vec![
        ("output", difference(output.inner(), expected)),
        (
            "gradient of x",
            gradients(tracked.grad(&grads), Some(outer.matmul(weight))),
        ),
    ]
}

/// A weight with random codes and scales.
fn packed(format: Format, shape: [usize; 2], device: &Device) -> DevicePacked {
    let elements = shape[0] * shape[1];
    let blocks = elements.div_ceil(BLOCK);
    let byte = |index: usize| mix(index as u64) as u8;
    let codes = || (0..elements.div_ceil(2)).map(byte).collect();
    let positive = |index: usize| normal(23, index as u64).abs() + 0.01;
    match format {
        Format::Nf4 => DevicePacked::nf4(codes(), (0..blocks).map(positive).collect(), &NF4, shape, device),
        Format::Nf4Double => DevicePacked::nf4_double(
            codes(),
            (0..blocks).map(|index| byte(index + 99)).collect(),
            (0..blocks.div_ceil(NESTED_BLOCK)).map(positive).collect(),
            &std::array::from_fn(|index| index as f32 / 127.5 - 1.0),
            0.3,
            &NF4,
            shape,
            device,
        ),
        Format::Int8 => DevicePacked::int8(
            (0..elements).map(|index| byte(index) as i8).collect(),
            (0..shape[0]).map(positive).collect(),
            shape,
            device,
        ),
    }
}
