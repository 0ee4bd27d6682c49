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
