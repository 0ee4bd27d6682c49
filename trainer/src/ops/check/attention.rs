//! Attention over packed sequences, with its options, and while decoding.

use std::sync::Arc;

use burn::tensor::Tensor;

use super::simple::gradients;
use super::{Differences, Place, Report, difference};
use crate::ops::attention::{AttentionLayout, attention, attention_cached, attention_reference};
use crate::ops::seed::backward_from;

struct Case {
    lengths: &'static [usize],
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
    softcap: Option<f32>,
    slopes: bool,
}

pub(super) fn run(place: &Place, report: &mut Report) {
    let mut cases = Vec::new();
    let mut case = |lengths, [heads, kv_heads, head_dim]: [usize; 3], window, softcap| {
        cases.push(Case {
            lengths,
            heads,
            kv_heads,
            head_dim,
            window,
            softcap,
            slopes: false,
        });
    };
    case(&[64, 65, 63], [4, 2, 16], None, None);
    case(&[150, 20, 1], [2, 1, 16], Some(7), None);
    case(&[70, 3], [2, 2, 16], None, Some(3.0));
    if place.type_name() == "f32" {
        case(&[1], [2, 1, 3], None, None);
        case(&[5, 0, 9], [2, 1, 3], None, None);
        case(&[130, 1, 66], [2, 1, 16], Some(100), Some(0.5));
        case(&[40, 90], [2, 1, 64], None, None);
    }
    // BLOOM's six heads, and heads that share keys.
    for kv_heads in [6, 2] {
        cases.push(Case {
            lengths: &[70, 3, 20],
            heads: 6,
            kv_heads,
            head_dim: 16,
            window: None,
            softcap: None,
            slopes: true,
        });
    }
    for case in &cases {
        let slopes = if case.slopes { ", slopes" } else { "" };
        let name = format!(
            "lengths {:?}, heads {}/{} of {}, window {:?}, bound {:?}{slopes}",
            case.lengths, case.heads, case.kv_heads, case.head_dim, case.window, case.softcap
        );
        report.run("attention", &name, place, || check(place, case));
    }
    #[cfg(feature = "cube")]
    tiles::run(place, report);
    for window in [None, Some(30)] {
        let name = format!("decoding, window {window:?}");
        report.run("attention", &name, place, || check_decoding(place, window, None));
    }
    report.run("attention", "decoding, slopes", place, || {
        check_decoding(place, None, Some(slopes(4)))
    });
}

/// `1/2`, `1/4` and so on.
fn slopes(heads: usize) -> Arc<[f32]> {
    (1..=heads as i32).map(|head| 0.5f32.powi(head)).collect()
}

fn boundaries(lengths: &[usize]) -> Arc<[usize]> {
    let mut sum = 0;
    let ends = lengths.iter().map(|length| {
        sum += length;
        sum
    });
    std::iter::once(0).chain(ends).collect()
}

fn check(place: &Place, case: &Case) -> Differences {
    let tokens = case.lengths.iter().sum();
    let layout = AttentionLayout {
        boundaries: boundaries(case.lengths),
        window: case.window,
        scale: 0.3,
        softcap: case.softcap,
        slopes: case.slopes.then(|| slopes(case.heads)),
    };
    let (query_shape, key_shape) = (
        [tokens, case.heads, case.head_dim],
        [tokens, case.kv_heads, case.head_dim],
    );
    let inputs = [
        place.random(30, query_shape, 1.0),
        place.random(31, key_shape, 1.0),
        place.random(32, key_shape, 1.0),
    ];
    let outer = place.random(33, [tokens, case.heads * case.head_dim], 1.0);
    let run = |inputs: [Tensor<3>; 3], outer: Tensor<2>, reference: bool| {
        let [q, k, v] = inputs.map(|input| input.autodiff().require_grad());
        let output = if reference {
            attention_reference(q.clone(), k.clone(), v.clone(), &layout.boundaries, &layout)
        } else {
            attention(q.clone(), k.clone(), v.clone(), &layout)
        };
        let grads = backward_from(output.clone(), outer);
        (output.inner(), [q.grad(&grads), k.grad(&grads), v.grad(&grads)])
    };
    let there = [
        place.there(&inputs[0]),
        place.there(&inputs[1]),
        place.there(&inputs[2]),
    ];
    let (output, [q, k, v]) = run(there, place.there(&outer), false);
    let (expected, [expected_q, expected_k, expected_v]) = run(inputs, outer, true);
    vec![
        ("output", difference(output, expected)),
        ("gradient of q", gradients(q, expected_q)),
        ("gradient of k", gradients(k, expected_k)),
        ("gradient of v", gradients(v, expected_v)),
    ]
}

fn check_decoding(place: &Place, window: Option<usize>, slopes: Option<Arc<[f32]>>) -> Differences {
    let (keys, queries) = (boundaries(&[80, 3, 50]), boundaries(&[5, 0, 1]));
    let layout = AttentionLayout {
        boundaries: queries,
        window,
        scale: 0.25,
        softcap: None,
        slopes,
    };
    let (q, k, v) = (
        place.random(34, [6, 4, 16], 1.0),
        place.random(35, [133, 2, 16], 1.0),
        place.random(36, [133, 2, 16], 1.0),
    );
    let output = attention_cached(place.there(&q), place.there(&k), place.there(&v), &keys, &layout);
    vec![(
        "output",
        difference(output, attention_reference(q, k, v, &keys, &layout)),
    )]
}

/// Cubes of other shapes than the device's own, so that what a GPU does with many units is also seen on a CPU with few.
#[cfg(feature = "cube")]
mod tiles {
    use burn::tensor::Tensor;

    use super::super::{Differences, Place, Report, difference};
    use super::{boundaries, gradients};
    use crate::ops::attention::{AttentionLayout, Spans, attention_in_tiles, attention_reference};
    use crate::ops::seed::backward_from;

    pub(super) fn run(place: &Place, report: &mut Report) {
        for tiles in [[2, 1], [1, 2], [4, 2], [2, 8], [8, 8]] {
            let name = format!("cubes of {tiles:?} units");
            report.run("attention", &name, place, || check(place, tiles));
        }
    }

    fn check(place: &Place, tiles: [usize; 2]) -> Differences {
        let layout = AttentionLayout {
            boundaries: boundaries(&[37, 2, 11]),
            window: Some(20),
            scale: 0.3,
            softcap: None,
            slopes: None,
        };
        let spans = Spans {
            queries: layout.boundaries.clone(),
            keys: layout.boundaries.clone(),
            window: layout.window,
            scale: layout.scale,
            softcap: None,
            slopes: None,
            heads: 4,
            kv_heads: 2,
            head_dim: 20,
        };
        let inputs: [Tensor<3>; 3] = [
            place.random(37, [50, 4, 20], 1.0),
            place.random(38, [50, 2, 20], 1.0),
            place.random(39, [50, 2, 20], 1.0),
        ];
        let outer = place.random(40, [50, 80], 1.0);
        let there = inputs.each_ref().map(|input| place.there(input));
        let Some((output, [q, k, v])) = attention_in_tiles(there, place.there(&outer), &spans, tiles) else {
            // The device has fewer units: nothing to check.
            return Vec::new();
        };
        let [expected_q, expected_k, expected_v] = inputs.map(|input| input.autodiff().require_grad());
        let expected = attention_reference(
            expected_q.clone(),
            expected_k.clone(),
            expected_v.clone(),
            &layout.boundaries,
            &layout,
        );
        let grads = backward_from(expected.clone(), outer);
        vec![
            ("output", difference(output, expected.inner())),
            ("gradient of q", gradients(Some(q), expected_q.grad(&grads))),
            ("gradient of k", gradients(Some(k), expected_k.grad(&grads))),
            ("gradient of v", gradients(Some(v), expected_v.grad(&grads))),
        ]
    }
}
