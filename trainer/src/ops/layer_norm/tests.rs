use burn::tensor::Device;

use super::*;
use crate::ops::testing::{check_equal, random};

/// Output and gradients of x, weight and bias.
fn run(
    x: &Tensor<2>,
    weight: &Tensor<1>,
    bias: Option<&Tensor<1>>,
    outer: &Tensor<2>,
    reference: bool,
) -> (Tensor<2>, Tensor<2>, [Option<Tensor<1>>; 2]) {
    let leaf = |vector: &Tensor<1>| vector.clone().autodiff().require_grad();
    let x = x.clone().autodiff().require_grad();
    let (weight, bias) = (leaf(weight), bias.map(leaf));
    let norm = if reference { layer_norm_reference } else { layer_norm };
    let output = norm(x.clone(), weight.clone(), bias.clone(), 1e-5);
    let grads = (output.clone() * outer.clone().autodiff()).sum().backward();
    let for_bias = bias.and_then(|bias| bias.grad(&grads));
    (output.inner(), x.grad(&grads).unwrap(), [weight.grad(&grads), for_bias])
}

#[test]
fn output_and_gradients_equal_the_reference() {
    for (rows, size) in [(1, 1), (3, 5), (1, 64), (33, 31), (70, 96), (300, 512), (1, 4096)] {
        let (x, outer) = (random([rows, size]) * 3.0 + 1.5, random([rows, size]));
        let (weight, bias) = (random([size]), random([size]));
        for bias in [Some(&bias), None] {
            let kernel = run(&x, &weight, bias, &outer, false);
            let reference = run(&x, &weight, bias, &outer, true);
            let what = format!("[{rows}, {size}], bias {}: ", bias.is_some());
            check_equal(kernel.0, reference.0, 2e-6, &(what.clone() + "output"));
            // One feature less its mean is nothing, and what is left of the gradient is rounding times 1 / sqrt(eps).
            let tolerance = if size == 1 { 1e-4 } else { 5e-6 };
            check_equal(kernel.1, reference.1, tolerance, &(what.clone() + "gradient of x"));
            let [weight, for_bias] = kernel.2;
            let [expected_weight, expected_bias] = reference.2;
            check_equal(
                weight.unwrap(),
                expected_weight.unwrap(),
                1e-5,
                &(what.clone() + "gradient of the weight"),
            );
            assert_eq!(for_bias.is_some(), bias.is_some());
            if let (Some(computed), Some(expected)) = (for_bias, expected_bias) {
                check_equal(computed, expected, 1e-5, &(what + "gradient of the bias"));
            }
        }
    }
}

/// Written by Python, in f64:
/// ```python
/// import torch
/// torch.set_default_dtype(torch.float64)
/// x = torch.tensor([[1.0, -2.0, 0.5, 4.0], [100.0, 101.0, 99.0, 100.5]], requires_grad=True)
/// norm = torch.nn.LayerNorm(4, eps=1e-5)
/// norm.weight.data = torch.tensor([1.0, 0.5, -2.0, 3.0]); norm.bias.data = torch.tensor([0.0, 1.0, 0.25, -1.0])
/// y = norm(x); y.square().sum().backward()
/// print(y.tolist(), x.grad.tolist(), norm.weight.grad.tolist(), norm.bias.grad.tolist())
/// ```
#[test]
fn numbers_are_those_of_pytorch() {
    let device = Device::flex();
    let x = Tensor::<2>::from_data([[1.0, -2.0, 0.5, 4.0], [100.0, 101.0, 99.0, 100.5]], &device);
    let weight = Tensor::<1>::from_data([1.0, 0.5, -2.0, 3.0], &device);
    let bias = Tensor::<1>::from_data([0.0, 1.0, 0.25, -1.0], &device);
    let leaf = x.autodiff().require_grad();
    let (weight, bias) = (weight.autodiff().require_grad(), bias.autodiff().require_grad());
    let output = layer_norm(leaf.clone(), weight.clone(), Some(bias.clone()), 1e-5);
    let grads = output.clone().square().sum().backward();
    let expected = [
        [0.058_620_974, 0.325_858_8, 0.601_725_8, 3.396_573],
        [-0.169_029_31, 1.591_602_6, 3.292_527_4, 0.521_263_8],
    ];
    check_equal(output.inner(), Tensor::from_data(expected, &device), 1e-6, "output");
    let expected = [
        [-2.309_307, 2.713_443_8, -2.672_230_5, 2.268_093_8],
        [3.860_404, -4.301_018, -2.720_761_3, 3.161_375_3],
    ];
    check_equal(
        leaf.grad(&grads).unwrap(),
        Tensor::from_data(expected, &device),
        1e-5,
        "gradient of x",
    );
    let expected = [0.064_014_65, 2.887_685_3, -10.229_248, 10.484_174];
    let computed = weight.grad(&grads).unwrap();
    check_equal(
        computed,
        Tensor::from_data(expected, &device),
        1e-6,
        "gradient of the weight",
    );
    let expected = [-0.220_816_67, 3.834_922_8, 7.788_506_5, 7.835_673_3];
    let computed = bias.grad(&grads).unwrap();
    check_equal(
        computed,
        Tensor::from_data(expected, &device),
        1e-6,
        "gradient of the bias",
    );
}

/// Rows far from 0: a variance out of the mean of squares would be lost.
#[test]
fn a_large_mean_does_not_matter() {
    let x = random([5, 64]);
    let (weight, bias) = (random([64]), random([64]));
    let moved = (x.clone() * 1024.0).int().float() / 1024.0;
    let near = layer_norm(moved.clone(), weight.clone(), Some(bias.clone()), 1e-5);
    let far = layer_norm(moved + 4096.0, weight, Some(bias), 1e-5);
    check_equal(far, near, 1e-3, "output");
}

#[test]
fn extreme_rows_stay_numbers() {
    let x = Tensor::<2>::from_data([[1e18, -1e18, 3e17, 0.0], [0.0; 4], [-7.0; 4]], &Device::flex());
    let (weight, bias) = (random([4]), random([4]));
    let (output, gradient, [for_weight, for_bias]) = run(&x, &weight, Some(&bias), &random([3, 4]), false);
    let constant = output.clone().narrow(0, 1, 2) - bias.unsqueeze::<2>();
    check_equal(constant.clone(), constant.zeros_like(), 1e-6, "rows of one value");
    for tensor in [
        output,
        gradient,
        for_weight.unwrap().unsqueeze(),
        for_bias.unwrap().unsqueeze(),
    ] {
        let sum: f32 = tensor.sum().into_scalar();
        assert!(sum.is_finite());
    }
}

/// Only what is trained gets a gradient.
#[test]
fn a_frozen_weight_and_a_view_are_no_obstacle() {
    let (x, weight, bias) = (random([7, 40]), random([7]), random([7]));
    let run = |norm: fn(Tensor<2>, Tensor<1>, Option<Tensor<1>>, f64) -> Tensor<2>| {
        let (x, bias) = (
            x.clone().autodiff().require_grad(),
            bias.clone().autodiff().require_grad(),
        );
        let output = norm(
            x.clone().transpose(),
            weight.clone().autodiff(),
            Some(bias.clone()),
            1e-6,
        );
        let grads = output.square().sum().backward();
        (x.grad(&grads).unwrap(), bias.grad(&grads).unwrap())
    };
    let (gradient, for_bias) = run(layer_norm);
    let (expected, expected_bias) = run(layer_norm_reference);
    check_equal(gradient, expected, 1e-5, "gradient of x");
    check_equal(for_bias, expected_bias, 1e-5, "gradient of the bias");
}

#[test]
fn the_input_is_left_alone() {
    let (x, weight) = (random([50, 16]), random([16]));
    let before = x.clone().into_data();
    let tracked = x.clone().autodiff().require_grad();
    layer_norm(tracked, weight.autodiff(), None, 1e-6).sum().backward();
    x.into_data().assert_eq(&before, true);
}
