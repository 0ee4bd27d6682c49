//! Norms and activations of blocks.

use burn::tensor::Tensor;

use super::simple::gradients;
use super::{Differences, Place, Report, difference};
use crate::ops::activation::{Activation, activate, activate_reference, gated, gated_reference};
use crate::ops::layer_norm::{layer_norm, layer_norm_reference};
use crate::ops::rms_norm::{rms_norm, rms_norm_reference};
use crate::ops::seed::backward_from;
use crate::ops::xielu::{xielu, xielu_reference};

pub(super) fn run(place: &Place, report: &mut Report) {
    for shape in [[1, 1], [3, 5], [33, 31], [70, 96], [5, 512]] {
        for offset in [0.0, 1.0] {
            report.run("rms_norm", &format!("{shape:?} offset {offset}"), place, || {
                check_rms_norm(place, shape, offset)
            });
        }
    }
    for shape in [[1, 2], [3, 5], [33, 31], [70, 96], [5, 512]] {
        for (with, has_bias) in [("with", true), ("without", false)] {
            report.run("layer_norm", &format!("{shape:?} {with} a bias"), place, || {
                check_layer_norm(place, shape, has_bias)
            });
        }
    }
    for activation in [
        Activation::Silu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
    ] {
        for shape in [[1, 1], [3, 5], [17, 33], [64, 128]] {
            report.run("activation", &format!("{activation:?} {shape:?}"), place, || {
                check_activation(place, shape, activation)
            });
            report.run("gated", &format!("{activation:?} {shape:?}"), place, || {
                check_gated(place, shape, activation)
            });
        }
    }
    for shape in [[1, 1], [17, 33]] {
        report.run("xielu", &format!("{shape:?}"), place, || check_xielu(place, shape));
    }
}

fn check_rms_norm(place: &Place, [rows, size]: [usize; 2], offset: f32) -> Differences {
    let (x, outer) = (place.random(1, [rows, size], 3.0), place.random(2, [rows, size], 1.0));
    let weight = place.random(3, [size], 1.0);
    let run =
        |x: Tensor<2>, weight: Tensor<1>, outer: Tensor<2>, norm: fn(Tensor<2>, Tensor<1>, f64, f32) -> Tensor<2>| {
            let (x, weight) = (x.autodiff().require_grad(), weight.autodiff().require_grad());
            let output = norm(x.clone(), weight.clone(), 1e-5, offset);
            let grads = backward_from(output.clone(), outer);
            (output.inner(), x.grad(&grads), weight.grad(&grads))
        };
    let kernel = run(place.there(&x), place.there(&weight), place.there(&outer), rms_norm);
    let expected = run(x, weight, outer, rms_norm_reference);
    vec![
        ("output", difference(kernel.0, expected.0)),
        ("gradient of x", gradients(kernel.1, expected.1)),
        ("gradient of the weight", gradients(kernel.2, expected.2)),
    ]
}

/// One of the functions that are compared.
type LayerNorm = fn(Tensor<2>, Tensor<1>, Option<Tensor<1>>, f64) -> Tensor<2>;

fn check_layer_norm(place: &Place, [rows, size]: [usize; 2], has_bias: bool) -> Differences {
    let (x, outer) = (place.random(13, [rows, size], 3.0), place.random(14, [rows, size], 1.0));
    let (weight, bias) = (place.random(15, [size], 1.0), place.random(16, [size], 1.0));
    let bias = has_bias.then_some(bias);
    let run = |x: Tensor<2>, weight: Tensor<1>, bias: Option<Tensor<1>>, outer: Tensor<2>, norm: LayerNorm| {
        let (x, weight) = (x.autodiff().require_grad(), weight.autodiff().require_grad());
        let bias = bias.map(|bias| bias.autodiff().require_grad());
        let output = norm(x.clone(), weight.clone(), bias.clone(), 1e-5);
        let grads = backward_from(output.clone(), outer);
        let for_bias = bias.and_then(|bias| bias.grad(&grads));
        (output.inner(), x.grad(&grads), weight.grad(&grads), for_bias)
    };
    let there = (place.there(&x), place.there(&weight), place.there(&outer));
    let bias_there = bias.as_ref().map(|bias| place.there(bias));
    let kernel = run(there.0, there.1, bias_there, there.2, layer_norm);
    let expected = run(x, weight, bias, outer, layer_norm_reference);
    let mut differences = vec![
        ("output", difference(kernel.0, expected.0)),
        ("gradient of x", gradients(kernel.1, expected.1)),
        ("gradient of the weight", gradients(kernel.2, expected.2)),
    ];
    if has_bias {
        differences.push(("gradient of the bias", gradients(kernel.3, expected.3)));
    }
    differences
}

fn check_activation(place: &Place, shape: [usize; 2], activation: Activation) -> Differences {
    let (x, outer) = (place.random(17, shape, 4.0), place.random(18, shape, 1.0));
    let run = |x: Tensor<2>, outer: Tensor<2>, function: fn(Tensor<2>, Activation) -> Tensor<2>| {
        let x = x.autodiff().require_grad();
        let output = function(x.clone(), activation);
        let grads = backward_from(output.clone(), outer);
        (output.inner(), x.grad(&grads))
    };
    let kernel = run(place.there(&x), place.there(&outer), activate);
    let expected = run(x, outer, activate_reference);
    vec![
        ("output", difference(kernel.0, expected.0)),
        ("gradient", gradients(kernel.1, expected.1)),
    ]
}

/// One of the functions that are compared.
type Gated = fn(Tensor<2>, Tensor<2>, Activation) -> Tensor<2>;

fn check_gated(place: &Place, shape: [usize; 2], activation: Activation) -> Differences {
    let [gate, up, outer] = [(6, 4.0), (7, 1.0), (8, 1.0)].map(|(key, size)| place.random(key, shape, size));
    let run = |gate: Tensor<2>, up: Tensor<2>, outer: Tensor<2>, unit: Gated| {
        let (gate, up) = (gate.autodiff().require_grad(), up.autodiff().require_grad());
        let output = unit(gate.clone(), up.clone(), activation);
        let grads = backward_from(output.clone(), outer);
        (output.inner(), gate.grad(&grads), up.grad(&grads))
    };
    let kernel = run(place.there(&gate), place.there(&up), place.there(&outer), gated);
    let expected = run(gate, up, outer, gated_reference);
    vec![
        ("output", difference(kernel.0, expected.0)),
        ("gradient of the gate", gradients(kernel.1, expected.1)),
        ("gradient of up", gradients(kernel.2, expected.2)),
    ]
}

/// One of the functions that are compared.
type Xielu = fn(Tensor<2>, Tensor<1>, Tensor<1>, f32, f32) -> Tensor<2>;

fn check_xielu(place: &Place, shape: [usize; 2]) -> Differences {
    let (x, outer) = (place.random(41, shape, 3.0), place.random(42, shape, 1.0));
    let alphas = place.random(43, [2], 1.0);
    let run = |x: Tensor<2>, alphas: Tensor<1>, outer: Tensor<2>, function: Xielu| {
        let (x, alphas) = (x.autodiff().require_grad(), alphas.autodiff().require_grad());
        let (alpha_p, alpha_n) = (alphas.clone().narrow(0, 0, 1), alphas.clone().narrow(0, 1, 1));
        let output = function(x.clone(), alpha_p, alpha_n, 0.5, -1e-6);
        let grads = backward_from(output.clone(), outer);
        (output.inner(), x.grad(&grads), alphas.grad(&grads))
    };
    let kernel = run(place.there(&x), place.there(&alphas), place.there(&outer), xielu);
    let expected = run(x, alphas, outer, xielu_reference);
    vec![
        ("output", difference(kernel.0, expected.0)),
        ("gradient of x", gradients(kernel.1, expected.1)),
        ("gradients of the alphas", gradients(kernel.2, expected.2)),
    ]
}
