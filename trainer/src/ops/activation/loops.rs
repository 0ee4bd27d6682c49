//! The loops of the CPU kernel. The activation is chosen outside of them, so that each becomes vector instructions.

use std::mem::MaybeUninit;

use multiversion::multiversion;

use super::{Activation, DENSITY_AT_ZERO, GELU_BOUND, GELU_CUBIC, GELU_FACTOR};
use crate::ops::vector;

/// An activation function. A type of its own for each, and not a closure, because only a named function can be told to
/// be inlined whatever its size, and a loop with a call in it is not vectorised.
trait Function {
    /// Value and derivative at a point.
    fn point(x: f32) -> [f32; 2];
}

struct Silu;
struct Gelu;
struct GeluTanh;
struct Relu;

impl Function for Silu {
    /// With s the sigmoid: `x s` and `s (1 + x (1 - s))`.
    #[inline(always)]
    fn point(x: f32) -> [f32; 2] {
        let sigmoid = vector::sigmoid(x);
        [x * sigmoid, sigmoid * (1.0 + x * (1.0 - sigmoid))]
    }
}

impl Function for Gelu {
    /// `x Φ(x)` and `Φ(x) + x φ(x)`, φ the density.
    #[inline(always)]
    fn point(x: f32) -> [f32; 2] {
        let [distribution, density] = vector::normal_distribution(x);
        [x * distribution, distribution + x * density * DENSITY_AT_ZERO]
    }
}

impl Function for GeluTanh {
    /// With u the argument of the hyperbolic tangent, `(1 + tanh(u)) / 2` is the sigmoid s of 2u, so these are `x s` and
    /// `s + x s (1 - s) 2u'`.
    #[inline(always)]
    fn point(x: f32) -> [f32; 2] {
        // Comparisons and not f32::clamp's maximum, so that NaN passes; beyond the bound s is 0 or 1.
        let bounded = if x < -GELU_BOUND { -GELU_BOUND } else { x };
        let bounded = if bounded > GELU_BOUND { GELU_BOUND } else { bounded };
        let cubic = GELU_CUBIC * bounded * bounded;
        let sigmoid = vector::sigmoid(2.0 * GELU_FACTOR * bounded * (1.0 + cubic));
        let slope = 2.0 * GELU_FACTOR * (1.0 + 3.0 * cubic);
        [x * sigmoid, sigmoid + x * sigmoid * (1.0 - sigmoid) * slope]
    }
}

impl Function for Relu {
    /// `max(x, 0)`, NaN for NaN; the derivative at 0 is 0, as PyTorch's.
    #[inline(always)]
    fn point(x: f32) -> [f32; 2] {
        [if x < 0.0 { 0.0 } else { x }, if x > 0.0 { 1.0 } else { 0.0 }]
    }
}

/// The activation of each element.
#[multiversion(targets = "simd")]
pub(super) fn activate(x: &[f32], output: &mut [MaybeUninit<f32>], activation: Activation) {
    match activation {
        Activation::Silu => activate_by::<Silu>(x, output),
        Activation::Gelu => activate_by::<Gelu>(x, output),
        Activation::GeluTanh => activate_by::<GeluTanh>(x, output),
        Activation::Relu => activate_by::<Relu>(x, output),
    }
}

#[inline(always)]
fn activate_by<F: Function>(x: &[f32], output: &mut [MaybeUninit<f32>]) {
    for (x, output) in x.iter().zip(output) {
        let [value, _] = F::point(*x);
        output.write(value);
    }
}

/// x becomes its gradient.
#[multiversion(targets = "simd")]
pub(super) fn differentiate(gradient: &[f32], x: &mut [f32], activation: Activation) {
    match activation {
        Activation::Silu => differentiate_by::<Silu>(gradient, x),
        Activation::Gelu => differentiate_by::<Gelu>(gradient, x),
        Activation::GeluTanh => differentiate_by::<GeluTanh>(gradient, x),
        Activation::Relu => differentiate_by::<Relu>(gradient, x),
    }
}

#[inline(always)]
fn differentiate_by<F: Function>(gradient: &[f32], x: &mut [f32]) {
    for (gradient, x) in gradient.iter().zip(x) {
        let [_, slope] = F::point(*x);
        *x = gradient * slope;
    }
}

/// `activation(gate) * up`.
#[multiversion(targets = "simd")]
pub(super) fn gate(gate: &[f32], up: &[f32], output: &mut [MaybeUninit<f32>], activation: Activation) {
    match activation {
        Activation::Silu => gate_by::<Silu>(gate, up, output),
        Activation::Gelu => gate_by::<Gelu>(gate, up, output),
        Activation::GeluTanh => gate_by::<GeluTanh>(gate, up, output),
        Activation::Relu => gate_by::<Relu>(gate, up, output),
    }
}

#[inline(always)]
fn gate_by<F: Function>(gate: &[f32], up: &[f32], output: &mut [MaybeUninit<f32>]) {
    for ((gate, up), output) in gate.iter().zip(up).zip(output) {
        let [value, _] = F::point(*gate);
        output.write(value * up);
    }
}

/// gate and up become their gradients.
#[multiversion(targets = "simd")]
pub(super) fn differentiate_gate(gradient: &[f32], gate: &mut [f32], up: &mut [f32], activation: Activation) {
    match activation {
        Activation::Silu => differentiate_gate_by::<Silu>(gradient, gate, up),
        Activation::Gelu => differentiate_gate_by::<Gelu>(gradient, gate, up),
        Activation::GeluTanh => differentiate_gate_by::<GeluTanh>(gradient, gate, up),
        Activation::Relu => differentiate_gate_by::<Relu>(gradient, gate, up),
    }
}

#[inline(always)]
fn differentiate_gate_by<F: Function>(gradient: &[f32], gate: &mut [f32], up: &mut [f32]) {
    for ((gradient, gate), up) in gradient.iter().zip(gate).zip(up) {
        let [value, slope] = F::point(*gate);
        *gate = gradient * *up * slope;
        *up = gradient * value;
    }
}
