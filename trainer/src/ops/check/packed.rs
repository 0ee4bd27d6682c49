//! Packed weights: unpacked, and as a linear layer.

use burn::tensor::{DType, Device};
use interlingua_checkpoints::packed::Packed;

use super::simple::gradients;
use super::{Differences, Place, Report, difference};
use crate::ops::dequantize::{DevicePacked, dequantize, dequantize_reference, packed_linear};
use crate::ops::seed::backward_from;
use crate::random::normal;

#[derive(Clone, Copy)]
enum Format {
    Nf4,
    Nf4Double,
    Nf4Large,
    Int8,
}

pub(super) fn run(place: &Place, report: &mut Report) {
    let formats = [
        ("nf4", Format::Nf4),
        ("nf4, double", Format::Nf4Double),
        ("nf4, blocks of 256", Format::Nf4Large),
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

/// A random weight.
fn packed(format: Format, shape: [usize; 2], device: &Device) -> DevicePacked {
    let values: Vec<f32> = (0..shape[0] * shape[1]).map(|index| normal(23, index as u64)).collect();
    let packed = match format {
        Format::Nf4 => Packed::nf4(&values, shape, 64, false),
        Format::Nf4Double => Packed::nf4(&values, shape, 64, true),
        Format::Nf4Large => Packed::nf4(&values, shape, 256, true),
        Format::Int8 => Packed::int8(&values, shape),
    };
    DevicePacked::upload(&packed, device).unwrap_or_else(|| unreachable!("only floats are not uploaded"))
}
