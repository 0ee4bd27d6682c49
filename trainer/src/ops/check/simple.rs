//! Operations that work row by row or element by element.

use burn::tensor::{Device, Tensor};

use super::{Differences, MASK, Place, Report, difference, difference_of};
use crate::ops::adamw::{AdamWStep, adamw_step, adamw_step_reference};
use crate::ops::cross_entropy::{
    softmax_cross_entropy, softmax_cross_entropy_reference, target_log_probs, target_log_probs_reference,
};
use crate::ops::dropout::{Dropout, dropout, dropout_reference};
use crate::ops::rotary::{RotaryTable, rotary, rotary_reference};
use crate::ops::seed::backward_from;

pub(super) fn run(place: &Place, report: &mut Report) {
    for [tokens, heads, head_dim, half] in [[1, 1, 2, 1], [5, 3, 8, 4], [7, 2, 12, 4], [3, 2, 7, 3], [40, 4, 64, 32]] {
        for (form, interleaved) in [("", false), (", interleaved", true)] {
            let case = format!("[{tokens}, {heads}, {head_dim}] half {half}{form}");
            report.run("rotary", &case, place, || {
                check_rotary(place, [tokens, heads, head_dim], half, interleaved)
            });
        }
    }
    for shape in [[1, 1], [3, 2], [5, 33], [20, 1000]] {
        report.run("cross_entropy", &format!("{shape:?}"), place, || {
            check_cross_entropy(place, shape)
        });
    }
    for shape in [[1, 1], [9, 37], [40, 64]] {
        report.run("dropout", &format!("{shape:?}"), place, || check_dropout(place, shape));
    }
    if place.type_name() == "f32" {
        for shape in [[1, 1], [3, 7], [50, 101]] {
            report.run("adamw", &format!("{shape:?}"), place, || check_adamw(place, shape));
        }
    }
}

fn check_rotary(place: &Place, [tokens, heads, head_dim]: [usize; 3], half: usize, interleaved: bool) -> Differences {
    let (x, outer) = (
        place.random(4, [tokens, heads, head_dim], 1.0),
        place.random(5, [tokens, heads * head_dim], 1.0),
    );
    let frequencies: Vec<f32> = (0..half).map(|pair| 0.7f32.powi(pair as i32)).collect();
    let positions: Vec<u32> = (0..tokens as u32).map(|token| token % 17).collect();
    let table = |device: &Device| RotaryTable::new(&frequencies, 1.25, &positions, interleaved, device);
    let run = |x: Tensor<3>, outer: Tensor<2>, embed: fn(Tensor<3>, &RotaryTable) -> Tensor<3>| {
        let table = table(&x.device());
        let x = x.autodiff().require_grad();
        let output = embed(x.clone(), &table).reshape([tokens, heads * head_dim]);
        let grads = backward_from(output.clone(), outer);
        (output.inner(), x.grad(&grads))
    };
    let kernel = run(place.there(&x), place.there(&outer), rotary);
    let expected = run(x, outer, rotary_reference);
    vec![
        ("output", difference(kernel.0, expected.0)),
        ("gradient", gradients(kernel.1, expected.1)),
    ]
}

fn check_cross_entropy(place: &Place, [rows, vocabulary]: [usize; 2]) -> Differences {
    let logits = place.random(9, [rows, vocabulary], 5.0);
    let targets: Vec<u32> = (0..rows).map(|row| ((row * 7919) % vocabulary) as u32).collect();
    let scale: Vec<f32> = (0..rows).map(|row| row as f32 * 0.25 - 1.0).collect();
    let (log_probs, gradient) = softmax_cross_entropy(place.there(&logits), &targets, &scale);
    let alone = target_log_probs(place.there(&logits), &targets);
    let (expected_log_probs, expected) = softmax_cross_entropy_reference(logits.clone(), &targets, &scale);
    let expected_alone = target_log_probs_reference(logits, &targets);
    let wide = |values: Vec<f32>| -> Vec<f64> { values.into_iter().map(f64::from).collect() };
    vec![
        ("gradient", difference(gradient, expected)),
        (
            "log-probabilities",
            difference_of(&wide(log_probs), &wide(expected_log_probs)),
        ),
        (
            "log-probabilities alone",
            difference_of(&wide(alone), &wide(expected_alone)),
        ),
    ]
}

fn check_dropout(place: &Place, [tokens, features]: [usize; 2]) -> Differences {
    let mask = Dropout {
        token_keys: (0..tokens)
            .map(|token| Dropout::token_key(42, 3, 17, token as u32))
            .collect(),
        module_key: 0xFEDC_BA98_7654_3210,
        probability: 0.3,
    };
    let (x, outer) = (
        place.random(10, [tokens, features], 1.0),
        place.random(11, [tokens, features], 1.0),
    );
    let run = |x: Tensor<2>, outer: Tensor<2>, drop_out: fn(Tensor<2>, &Dropout) -> Tensor<2>| {
        let x = x.autodiff().require_grad();
        let output = drop_out(x.clone(), &mask);
        let grads = backward_from(output.clone(), outer);
        (output.inner(), x.grad(&grads))
    };
    let ones = dropout(place.there(&x.ones_like()), &mask);
    let kept = |value: f64| f64::from(u8::from(value != 0.0));
    let computed: Vec<f64> = ones.into_data().iter::<f64>().map(kept).collect();
    let expected: Vec<f64> = mask
        .factors(features)
        .into_iter()
        .map(|factor| kept(factor.into()))
        .collect();
    let mask_difference = difference_of(&computed, &expected);
    let kernel = run(place.there(&x), place.there(&outer), dropout);
    let expected = run(x, outer, dropout_reference);
    vec![
        (MASK, mask_difference),
        ("output", difference(kernel.0, expected.0)),
        ("gradient", gradients(kernel.1, expected.1)),
    ]
}

fn check_adamw(place: &Place, shape: [usize; 2]) -> Differences {
    let start = place.random(12, shape, 1.0);
    let zeros = start.zeros_like();
    let mut expected = (start.clone(), zeros.clone(), zeros.clone());
    let mut kernel = (place.there(&start), place.there(&zeros), place.there(&zeros));
    for step in 1..=3 {
        let gradient = place.random(100 + step, shape, 0.1);
        let step = AdamWStep {
            learning_rate: 0.01,
            beta1: 0.9,
            beta2: 0.99,
            epsilon: 1e-8,
            weight_decay: 0.1,
            step,
        };
        kernel = adamw_step(kernel.0, place.there(&gradient), kernel.1, kernel.2, &step);
        expected = adamw_step_reference(expected.0, gradient, expected.1, expected.2, &step);
    }
    vec![
        ("parameter", difference(kernel.0, expected.0)),
        ("first moment", difference(kernel.1, expected.1)),
        ("second moment", difference(kernel.2, expected.2)),
    ]
}

/// Infinite where a gradient is missing.
pub(super) fn gradients<const D: usize>(computed: Option<Tensor<D>>, expected: Option<Tensor<D>>) -> f64 {
    match (computed, expected) {
        (Some(computed), Some(expected)) => difference(computed, expected),
        _ => f64::INFINITY,
    }
}
