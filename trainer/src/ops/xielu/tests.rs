use burn::tensor::Device;

use super::*;
use crate::ops::testing::{check_equal, random};

const BETA: f32 = 0.5;
const EPS: f32 = -1e-6;

fn single(value: f32) -> Tensor<1> {
    Tensor::from_data([value], &Device::flex())
}

/// Output and gradients of x and both alphas.
fn run(x: &Tensor<2>, alphas: [f32; 2], outer: &Tensor<2>, reference: bool) -> (Tensor<2>, Tensor<2>, [f32; 2]) {
    let x = x.clone().autodiff().require_grad();
    let [alpha_p, alpha_n] = alphas.map(|alpha| single(alpha).autodiff().require_grad());
    let function = if reference { xielu_reference } else { xielu };
    let output = function(x.clone(), alpha_p.clone(), alpha_n.clone(), BETA, EPS);
    let grads = (output.clone() * outer.clone().autodiff()).sum().backward();
    let alphas = [alpha_p, alpha_n].map(|alpha| alpha.grad(&grads).unwrap().into_scalar());
    (output.inner(), x.grad(&grads).unwrap(), alphas)
}

#[test]
fn output_and_gradients_equal_the_reference() {
    for shape in [[1, 1], [3, 5], [17, 33], [64, 1408], [700, 129]] {
        let (x, outer) = (random(shape) * 3.0, random(shape));
        for alphas in [[0.3, -0.7], [-4.0, 25.0]] {
            let kernel = run(&x, alphas, &outer, false);
            let reference = run(&x, alphas, &outer, true);
            check_equal(kernel.0, reference.0, 2e-6, "output");
            check_equal(kernel.1, reference.1, 2e-6, "gradient of x");
            for (kernel, reference) in kernel.2.into_iter().zip(reference.2) {
                check_equal(single(kernel), single(reference), 2e-5, "gradient of an alpha");
            }
        }
    }
}

/// Written by Python, in f64:
/// ```python
/// import torch
/// torch.set_default_dtype(torch.float64)
/// from transformers.activations import XIELUActivation
/// f = XIELUActivation(dtype=torch.float64)
/// f.alpha_p.data.fill_(0.3); f.alpha_n.data.fill_(-0.7)
/// x = torch.tensor([-30.0, -2.0, -0.5, -0.01, -1e-7, 0.0, 1e-3, 0.5, 3.0], requires_grad=True)
/// y = f._xielu_python(x); (y * torch.arange(1.0, 10.0)).sum().backward()
/// print(y.tolist(), x.grad.tolist(), f.alpha_p.grad.tolist(), f.alpha_n.grad.tolist())
/// ```
#[test]
fn numbers_are_those_of_transformers() {
    let row = |values: [f32; 9]| Tensor::<2>::from_data([values], &Device::flex());
    let x = row([-30.0, -2.0, -0.5, -0.01, -1e-7, 0.0, 1e-3, 0.5, 3.0]);
    let outer = row([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
    let values = row([
        11.192_395,
        0.025_418_99,
        -0.153_783,
        -0.004_954_991,
        -8.628_67e-7,
        -9.031_856e-7,
        0.000_500_854_4,
        0.463_588_8,
        9.189_198,
    ]);
    let slopes = row([
        -0.403_186_08,
        -0.561_906_2,
        0.433_871_95,
        1.964_052_6,
        -2.015_930_2,
        -2.419_116_3,
        3.511_961,
        10.834_842,
        50.635_18,
    ]);
    for reference in [false, true] {
        let (output, gradient, [alpha_p, alpha_n]) = run(&x, [0.3, -0.7], &outer, reference);
        check_equal(
            output.narrow(1, 1, 7),
            values.clone().narrow(1, 1, 7),
            2e-7,
            "small values",
        );
        let (output, ..) = run(&x, [0.3, -0.7], &outer, reference);
        check_equal(output, values.clone(), 2e-7, "values");
        check_equal(gradient, slopes.clone(), 2e-7, "gradient of x");
        check_equal(single(alpha_p), single(47.678_734), 1e-6, "gradient of alpha_p");
        check_equal(single(alpha_n), single(10.482_098), 1e-6, "gradient of alpha_n");
    }
}

#[test]
fn extreme_inputs_stay_numbers() {
    let x = Tensor::<2>::from_data([[-f32::MAX, -1e20, -100.0, 0.0, -0.0, 100.0, 1e18]], &Device::flex());
    for alphas in [[0.3, -0.7], [-200.0, -200.0]] {
        let (output, gradient, alphas) = run(&x, alphas, &x.ones_like(), false);
        let sums: [f32; 2] = [output, gradient].map(|tensor| (tensor * 1e-5).sum().into_scalar());
        assert!(sums.into_iter().chain(alphas).all(f32::is_finite));
    }
    let nan = x.zeros_like() + f32::NAN;
    let sum: f32 = xielu(nan, single(0.0), single(0.0), BETA, EPS).sum().into_scalar();
    assert!(sum.is_nan());
}

#[test]
fn frozen_alphas_are_no_obstacle_and_the_input_is_left_alone() {
    let x = random([40, 50]);
    let before = x.clone().into_data();
    let tracked = x.clone().autodiff().require_grad();
    let output = xielu(
        tracked.clone(),
        single(0.1).autodiff(),
        single(0.2).autodiff(),
        BETA,
        EPS,
    );
    let gradient = tracked.grad(&output.sum().backward()).unwrap();
    let (_, expected, _) = run(&x, [0.1, 0.2], &x.ones_like(), true);
    check_equal(gradient, expected, 2e-6, "gradient of x");
    x.into_data().assert_eq(&before, true);
}
