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
                check(place, format, shape)
            });
        }
    }
}

fn check(place: &Place, format: Format, [rows, columns]: [usize; 2]) -> Differences {
    let (here, there) = (
        packed(format, [rows, columns], &Device::flex()),
        packed(format, [rows, columns], &place.device),
    );
    let expected = dequantize_reference(&here, DType::F32);
    let weight = difference(dequantize(&there, place.dtype), expected.clone());
    let (x, outer, bias) = (
        place.random(20, [3, columns], 1.0),
        place.random(21, [3, rows], 1.0),
        place.random(22, [rows], 1.0),
    );
    let tracked = place.there(&x).autodiff().require_grad();
    let output = packed_linear(tracked.clone(), &there, Some(place.there(&bias).autodiff()));
    let grads = backward_from(output.clone(), place.there(&outer));
    let expected_output = x.matmul(expected.clone().transpose()) + bias.unsqueeze::<2>();
    vec![
        ("weight", weight),
        ("output", difference(output.inner(), expected_output)),
        (
            "gradient of x",
            gradients(tracked.grad(&grads), Some(outer.matmul(expected))),
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
