use burn::tensor::Device;

use super::*;
use crate::ops::testing::{check_equal, random};

const ALL: [Activation; 4] = [
    Activation::Silu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Relu,
];

fn row<const N: usize>(values: [f32; N]) -> Tensor<2> {
    Tensor::from_data([values], &Device::flex())
}

/// Output and gradients of the gated unit.
fn run_gated(inputs: [&Tensor<2>; 3], activation: Activation, reference: bool) -> [Tensor<2>; 3] {
    let [gate, up, outer] = inputs.map(|input| input.clone().autodiff());
    let (gate, up) = (gate.require_grad(), up.require_grad());
    let unit = if reference { gated_reference } else { gated };
    let output = unit(gate.clone(), up.clone(), activation);
    let grads = (output.clone() * outer).sum().backward();
    [output.inner(), gate.grad(&grads).unwrap(), up.grad(&grads).unwrap()]
}

/// Output and gradient of the activation alone.
fn run(x: &Tensor<2>, outer: &Tensor<2>, activation: Activation, reference: bool) -> [Tensor<2>; 2] {
    let x = x.clone().autodiff().require_grad();
    let function = if reference { activate_reference } else { activate };
    let output = function(x.clone(), activation);
    let grads = (output.clone() * outer.clone().autodiff()).sum().backward();
    [output.inner(), x.grad(&grads).unwrap()]
}

#[test]
fn output_and_gradients_equal_the_reference() {
    for shape in [[0, 3], [1, 1], [3, 5], [17, 33], [64, 1408], [700, 129]] {
        let (gate, up, outer) = (random(shape) * 4.0, random(shape), random(shape));
        for activation in ALL {
            let kernel = run_gated([&gate, &up, &outer], activation, false);
            let reference = run_gated([&gate, &up, &outer], activation, true);
            for (name, (kernel, reference)) in ["output", "gate", "up"].iter().zip(kernel.into_iter().zip(reference)) {
                check_equal(kernel, reference, 2e-6, &format!("{activation:?} gated: {name}"));
            }
            let kernel = run(&gate, &outer, activation, false);
            let reference = run(&gate, &outer, activation, true);
            for (name, (kernel, reference)) in ["output", "gradient"].iter().zip(kernel.into_iter().zip(reference)) {
                check_equal(kernel, reference, 2e-6, &format!("{activation:?}: {name}"));
            }
        }
    }
}

/// Written by Python, in f64, value and derivative:
/// ```python
/// import torch
/// F = torch.nn.functional
/// functions = [F.silu, F.gelu, lambda x: F.gelu(x, approximate="tanh"), F.relu]
/// for f in functions:
///     x = torch.tensor([-8, -3, -1, -0.25, 0, 0.001, 0.5, 1.5, 4, 9]).double().requires_grad_()
///     f(x).sum().backward()
///     print(f(x).float().tolist(), x.grad.float().tolist())
/// ```
#[test]
fn values_and_slopes_are_those_of_pytorch() {
    let x = row([-8.0, -3.0, -1.0, -0.25, 0.0, 0.001, 0.5, 1.5, 4.0, 9.0]);
    #[rustfmt::skip]
    let tables = [
        (Activation::Silu, [
            [-0.002_682_801, -0.142_277_61, -0.268_941_43, -0.109_455_876, 0.0, 0.000_500_25, 0.311_229_68, 1.226_361_8,
                3.928_055, 8.998_89],
            [-0.002_346_551_3, -0.088_104_11, 0.072_329_49, 0.376_289_96, 0.5, 0.500_5, 0.739_961_2, 1.041_294_1,
                1.052_664_6, 1.000_987],
        ]),
        (Activation::Gelu, [
            [-4.884_981_3e-15, -0.004_049_694, -0.158_655_26, -0.100_323_42, 0.0, 0.000_500_399, 0.345_731_23,
                1.399_789_2, 3.999_873_4, 9.0],
            [-3.980_754_7e-14, -0.011_945_647, -0.083_315_47, 0.304_626_64, 0.5, 0.500_797_9, 0.867_495_1, 1.127_469_2,
                1.000_503_7, 1.0],
        ]),
        (Activation::GeluTanh, [
            [0.0, -0.003_637_392, -0.158_808, -0.100_324_646, 0.0, 0.000_500_399, 0.345_714, 1.399_571_5, 3.999_929_7, 9.0],
            [0.0, -0.011_584_166, -0.082_964_085, 0.304_645_9, 0.5, 0.500_797_9, 0.867_369_9, 1.127_710_8, 1.000_335_1, 1.0],
        ]),
        (Activation::Relu, [
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.001, 0.5, 1.5, 4.0, 9.0],
            [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        ]),
    ];
    for (activation, [value, slope]) in tables {
        let [output, gradient] = run(&x, &x.ones_like(), activation, false);
        // Relative to the largest value, 9; then below it, where values are at most 1.
        check_equal(output.clone(), row(value), 1e-6 / 9.0, "value");
        check_equal(gradient, row(slope), 1e-6, "slope");
        let [reference, _] = run(&x, &x.ones_like(), activation, true);
        check_equal(reference, row(value), 1e-6 / 9.0, "reference");
    }
}

#[test]
fn extreme_inputs_saturate() {
    let x = row([-f32::MAX, -1e20, -200.0, -90.0, 90.0, 200.0, 1e18, 0.0]);
    let ones = x.ones_like();
    for activation in ALL {
        let at_zero = if activation == Activation::Relu { 0.0 } else { 0.5 };
        let [output, gate_gradient, up_gradient] = run_gated([&x, &ones, &ones], activation, false);
        let values = [0.0, 0.0, 0.0, 0.0, 90.0, 200.0, 1e18, 0.0];
        let slopes = [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, at_zero];
        // Divided where values are large, so that all of them count.
        let scale = row([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1e-18, 1.0]);
        check_equal(output * scale.clone(), row(values) * scale.clone(), 1e-6, "value");
        check_equal(
            up_gradient * scale.clone(),
            row(values) * scale.clone(),
            1e-6,
            "gradient of up",
        );
        check_equal(gate_gradient, row(slopes), 1e-6, "slope");
        let [_, gradient] = run(&x, &ones, activation, false);
        check_equal(gradient, row(slopes), 1e-6, "slope");
    }
}

/// A number that is none must show in the loss.
#[test]
fn nan_passes() {
    for activation in ALL {
        let output = activate(row([f32::NAN]), activation).into_scalar::<f32>();
        assert!(output.is_nan(), "{activation:?}");
    }
}

#[test]
fn the_inputs_are_left_alone() {
    let (gate, up) = (random([40, 30]), random([40, 30]));
    let before = (gate.clone().into_data(), up.clone().into_data());
    for activation in ALL {
        run_gated([&gate, &up, &up], activation, false);
        run(&gate, &up, activation, false);
        let _ = activate(gate.clone(), activation);
    }
    gate.into_data().assert_eq(&before.0, true);
    up.into_data().assert_eq(&before.1, true);
}
