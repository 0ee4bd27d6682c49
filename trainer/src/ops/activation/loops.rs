//! The loops of the CPU kernel. The activation is chosen outside of them, so that each becomes vector instructions.

use std::mem::MaybeUninit;

use multiversion::multiversion;

use super::{Activation, DENSITY_AT_ZERO, GELU_BOUND, GELU_CUBIC, GELU_FACTOR};
use crate::ops::vector;

/// Value and derivative at a point.
type Point = [f32; 2];

/// With s the sigmoid: `x s` and `s (1 + x (1 - s))`.
#[inline(always)]
fn silu(x: f32) -> Point {
    let sigmoid = vector::sigmoid(x);
    [x * sigmoid, sigmoid * (1.0 + x * (1.0 - sigmoid))]
}

/// `x Φ(x)` and `Φ(x) + x φ(x)`, φ the density.
#[inline(always)]
fn gelu(x: f32) -> Point {
    let [distribution, density] = vector::normal_distribution(x);
    [x * distribution, distribution + x * density * DENSITY_AT_ZERO]
}

/// With u the argument of the hyperbolic tangent, `(1 + tanh(u)) / 2` is the sigmoid s of 2u, so these are `x s` and
/// `s + x s (1 - s) 2u'`.
#[inline(always)]
fn gelu_tanh(x: f32) -> Point {
    // Comparisons and not f32::clamp's maximum, so that NaN passes; beyond the bound s is 0 or 1.
    let bounded = if x < -GELU_BOUND { -GELU_BOUND } else { x };
    let bounded = if bounded > GELU_BOUND { GELU_BOUND } else { bounded };
    let cubic = GELU_CUBIC * bounded * bounded;
    let sigmoid = vector::sigmoid(2.0 * GELU_FACTOR * bounded * (1.0 + cubic));
    let slope = 2.0 * GELU_FACTOR * (1.0 + 3.0 * cubic);
    [x * sigmoid, sigmoid + x * sigmoid * (1.0 - sigmoid) * slope]
}

/// `max(x, 0)`, NaN for NaN; the derivative at 0 is 0, as PyTorch's.
#[inline(always)]
fn relu(x: f32) -> Point {
    [if x < 0.0 { 0.0 } else { x }, if x > 0.0 { 1.0 } else { 0.0 }]
}

/// The activation of each element.
#[multiversion(targets = "simd")]
pub(super) fn activate(x: &[f32], output: &mut [MaybeUninit<f32>], activation: Activation) {
    match activation {
        Activation::Silu => activate_by(x, output, silu),
        Activation::Gelu => activate_by(x, output, gelu),
        Activation::GeluTanh => activate_by(x, output, gelu_tanh),
        Activation::Relu => activate_by(x, output, relu),
    }
}

#[inline(always)]
fn activate_by(x: &[f32], output: &mut [MaybeUninit<f32>], point: impl Fn(f32) -> Point) {
    for (x, output) in x.iter().zip(output) {
        let [value, _] = point(*x);
        output.write(value);
    }
}

/// x becomes its gradient.
#[multiversion(targets = "simd")]
pub(super) fn differentiate(gradient: &[f32], x: &mut [f32], activation: Activation) {
    match activation {
        Activation::Silu => differentiate_by(gradient, x, silu),
        Activation::Gelu => differentiate_by(gradient, x, gelu),
        Activation::GeluTanh => differentiate_by(gradient, x, gelu_tanh),
        Activation::Relu => differentiate_by(gradient, x, relu),
    }
}

#[inline(always)]
fn differentiate_by(gradient: &[f32], x: &mut [f32], point: impl Fn(f32) -> Point) {
    for (gradient, x) in gradient.iter().zip(x) {
        let [_, slope] = point(*x);
        *x = gradient * slope;
    }
}

/// `activation(gate) * up`.
#[multiversion(targets = "simd")]
pub(super) fn gate(gate: &[f32], up: &[f32], output: &mut [MaybeUninit<f32>], activation: Activation) {
    match activation {
        Activation::Silu => gate_by(gate, up, output, silu),
        Activation::Gelu => gate_by(gate, up, output, gelu),
        Activation::GeluTanh => gate_by(gate, up, output, gelu_tanh),
        Activation::Relu => gate_by(gate, up, output, relu),
    }
}

#[inline(always)]
fn gate_by(gate: &[f32], up: &[f32], output: &mut [MaybeUninit<f32>], point: impl Fn(f32) -> Point) {
    for ((gate, up), output) in gate.iter().zip(up).zip(output) {
        let [value, _] = point(*gate);
        output.write(value * up);
    }
}

/// gate and up become their gradients.
#[multiversion(targets = "simd")]
pub(super) fn differentiate_gate(gradient: &[f32], gate: &mut [f32], up: &mut [f32], activation: Activation) {
    match activation {
        Activation::Silu => differentiate_gate_by(gradient, gate, up, silu),
        Activation::Gelu => differentiate_gate_by(gradient, gate, up, gelu),
        Activation::GeluTanh => differentiate_gate_by(gradient, gate, up, gelu_tanh),
        Activation::Relu => differentiate_gate_by(gradient, gate, up, relu),
    }
}

#[inline(always)]
fn differentiate_gate_by(gradient: &[f32], gate: &mut [f32], up: &mut [f32], point: impl Fn(f32) -> Point) {
    for ((gradient, gate), up) in gradient.iter().zip(gate).zip(up) {
        let [value, slope] = point(*gate);
        *gate = gradient * *up * slope;
        *up = gradient * value;
    }
}
