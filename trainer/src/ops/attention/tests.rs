use super::*;
use crate::ops::testing::{check_equal, random};

/// Boundaries of sequences of these lengths.
fn boundaries(lengths: &[usize]) -> Arc<[usize]> {
    let mut sum = 0;
    std::iter::once(0)
        .chain(lengths.iter().map(|length| {
            sum += length;
            sum
        }))
        .collect()
}

fn largest_difference<const D: usize>(left: Tensor<D>, right: Tensor<D>) -> f32 {
    (left - right).abs().max().into_scalar()
}

/// Output and gradients of q, k and v, by the kernel or by the reference.
fn run(inputs: &[Tensor<3>; 3], weights: &Tensor<2>, layout: &AttentionLayout, reference: bool) -> [Tensor<3>; 4] {
    let [q, k, v] = inputs.clone().map(|x| x.autodiff().require_grad());
    let output = if reference {
        attention_reference(q.clone(), k.clone(), v.clone(), &layout.boundaries, layout)
    } else {
        attention(q.clone(), k.clone(), v.clone(), layout)
    };
    let grads = (output.clone() * weights.clone().autodiff()).sum().backward();
    let gradient = |x: &Tensor<3>| x.grad(&grads).unwrap();
    [
        output.inner().unsqueeze_dim(2),
        gradient(&q),
        gradient(&k),
        gradient(&v),
    ]
}

/// The slopes of BLOOM for six heads: those of four, and between them of eight (Press et al., 2022).
fn six_slopes() -> Option<Arc<[f32]>> {
    Some([2.0, 4.0, 6.0, 8.0, 1.0, 3.0].map(|power: f32| (-power).exp2()).into())
}

/// What scores go through between factor and softmax.
#[derive(Clone, Debug, Default)]
struct Bend {
    softcap: Option<f32>,
    slopes: Option<Arc<[f32]>>,
}

fn compare(lengths: &[usize], heads: usize, kv_heads: usize, head_dim: usize, window: Option<usize>) {
    compare_bent(lengths, heads, kv_heads, head_dim, window, Bend::default());
}

fn compare_bent(lengths: &[usize], heads: usize, kv_heads: usize, head_dim: usize, window: Option<usize>, bend: Bend) {
    let tokens = lengths.iter().sum();
    let what = format!("lengths {lengths:?}, heads {heads}/{kv_heads}, head_dim {head_dim}, {window:?} {bend:?}");
    let layout = AttentionLayout {
        boundaries: boundaries(lengths),
        window,
        scale: 0.3,
        softcap: bend.softcap,
        slopes: bend.slopes,
    };
    let inputs = [
        random([tokens, heads, head_dim]),
        random([tokens, kv_heads, head_dim]),
        random([tokens, kv_heads, head_dim]),
    ];
    let weights = random([tokens, heads * head_dim]);
    let kernel = run(&inputs, &weights, &layout, false);
    let reference = run(&inputs, &weights, &layout, true);
    for (name, (kernel, reference)) in ["output", "q", "k", "v"].iter().zip(kernel.into_iter().zip(reference)) {
        check_equal(kernel, reference, 2e-5, &format!("{name}: {what}"));
    }
}

#[test]
fn output_and_gradients_equal_the_reference() {
    compare(&[1], 1, 1, 1, None);
    compare(&[5], 2, 1, 3, None);
    compare(&[3, 1, 7], 4, 2, 8, None);
    compare(&[64, 65, 63], 2, 2, 16, None);
    compare(&[130, 1, 66], 6, 2, 20, None);
    compare(&[256], 8, 4, 64, None);
    compare(&[0, 9, 0], 2, 1, 4, None);
}

#[test]
fn sequences_longer_than_a_run_of_keys_equal_the_reference() {
    compare(&[700, 30], 2, 1, 8, None);
    compare(&[1100], 1, 1, 4, Some(600));
}

#[test]
fn a_sliding_window_equals_the_reference() {
    for window in [1, 2, 7, 64, 100, 1000] {
        compare(&[150, 20, 1], 2, 1, 8, Some(window));
    }
}

#[test]
fn bounded_scores_equal_the_reference() {
    for cap in [0.5, 3.0, 50.0] {
        let bend = Bend {
            softcap: Some(cap),
            slopes: None,
        };
        compare_bent(&[70, 3], 4, 2, 16, None, bend.clone());
        compare_bent(&[600], 1, 1, 8, Some(40), bend);
    }
}

#[test]
fn slopes_equal_the_reference() {
    let bend = Bend {
        softcap: None,
        slopes: six_slopes(),
    };
    compare_bent(&[1], 6, 6, 4, None, bend.clone());
    compare_bent(&[70, 3, 129], 6, 6, 16, None, bend.clone());
    compare_bent(&[700, 30], 6, 2, 8, None, bend.clone());
    compare_bent(&[150, 20, 1], 6, 3, 8, Some(64), bend);
}

/// Slopes are ALiBi: the distance, and so `slope * j`, is added to the scaled scores.
#[test]
fn slopes_add_what_lies_between() {
    let device = burn::tensor::Device::flex();
    let column = |values: [f32; 3]| Tensor::<3>::from_data([[[values[0]]], [[values[1]]], [[values[2]]]], &device);
    let layout = AttentionLayout {
        boundaries: boundaries(&[3]),
        window: None,
        scale: 2.0,
        softcap: None,
        slopes: Some([0.75].into()),
    };
    let output = attention(
        column([1.0; 3]),
        column([0.5, -0.25, 0.125]),
        column([1.0, 0.0, 2.0]),
        &layout,
    );
    // With `slope * j` in place of `slope * (j - i)`.
    let weight = |key: usize, position: f64| (2.0 * [0.5, -0.25, 0.125][key] + 0.75 * position).exp();
    let weights = [weight(0, 0.0), weight(1, 1.0), weight(2, 2.0)];
    let second = weights[0] / (weights[0] + weights[1]);
    let third = (weights[0] + 2.0 * weights[2]) / weights.iter().sum::<f64>();
    let expected = Tensor::<2>::from_data([[1.0], [second as f32], [third as f32]], &device);
    check_equal(output, expected, 1e-6, "output");
}

/// A steep slope hides all keys but the nearest, and nothing overflows on the way.
#[test]
fn steep_slopes_leave_the_nearest_key() {
    let layout = AttentionLayout {
        boundaries: boundaries(&[600, 50]),
        window: None,
        scale: 1.0,
        softcap: None,
        slopes: Some([1e6, 500.0].into()),
    };
    let inputs = [random([650, 2, 8]), random([650, 2, 8]), random([650, 2, 8])];
    let weights = random([650, 16]);
    let [output, q, k, v] = run(&inputs, &weights, &layout, false);
    check_equal(output, inputs[2].clone().reshape([650, 16, 1]), 1e-6, "output");
    check_equal(v, weights.reshape([650, 2, 8]), 1e-6, "gradient of v");
    for gradient in [q, k] {
        check_equal(gradient.clone(), gradient.zeros_like(), 1e-5, "gradients of q and k");
    }
}

/// With one key in sight the softmax is 1 whatever the score; with two, it follows the bounded scores.
#[test]
fn a_bound_is_the_hyperbolic_tangent() {
    let device = burn::tensor::Device::flex();
    let column = |values: [f32; 2]| Tensor::<3>::from_data([[[values[0]]], [[values[1]]]], &device);
    let layout = AttentionLayout {
        boundaries: boundaries(&[2]),
        window: None,
        scale: 2.0,
        softcap: Some(1.5),
        slopes: None,
    };
    let output = attention(column([1.0, 1.0]), column([3.0, 0.25]), column([1.0, 0.0]), &layout);
    let bounded = |score: f64| 1.5 * (score / 1.5).tanh();
    let expected = 1.0 / (1.0 + (bounded(0.5) - bounded(6.0)).exp());
    let expected = Tensor::<2>::from_data([[1.0], [expected as f32]], &device);
    check_equal(output, expected, 1e-6, "output");
}

#[test]
fn no_sequence_sees_another() {
    check_alone(None);
    check_alone(Some([0.5, 0.25, 0.125, 0.0625].into()));
}

fn check_alone(slopes: Option<Arc<[f32]>>) {
    let layout = AttentionLayout {
        boundaries: boundaries(&[40, 90, 25]),
        window: None,
        scale: 0.125,
        softcap: None,
        slopes,
    };
    let inputs = [random([155, 4, 16]), random([155, 2, 16]), random([155, 2, 16])];
    let weights = random([155, 64]);
    let packed = run(&inputs, &weights, &layout, false);
    let alone = AttentionLayout {
        boundaries: boundaries(&[90]),
        ..layout
    };
    let part = |x: &Tensor<3>| x.clone().narrow(0, 40, 90);
    let single = run(
        &[part(&inputs[0]), part(&inputs[1]), part(&inputs[2])],
        &weights.narrow(0, 40, 90),
        &alone,
        false,
    );
    for (packed, single) in packed.iter().zip(single) {
        assert_eq!(largest_difference(part(packed), single), 0.0);
    }
}

#[test]
fn cached_queries_are_the_last_positions() {
    let (heads, kv_heads, head_dim) = (4, 2, 16);
    for (window, slopes) in [
        (None, None),
        (Some(30), None),
        (None, Some([0.5, 0.25, 0.1, 0.01].into())),
    ] {
        let keys = boundaries(&[80, 3, 200]);
        let full = AttentionLayout {
            boundaries: keys.clone(),
            window,
            scale: 0.25,
            softcap: None,
            slopes,
        };
        let q = random([283, heads, head_dim]);
        let (k, v) = (random([283, kv_heads, head_dim]), random([283, kv_heads, head_dim]));
        let expected = attention(q.clone(), k.clone(), v.clone(), &full);
        for counts in [[1, 1, 1], [5, 2, 70], [0, 3, 1]] {
            let rows = |x: Tensor<2>| {
                let present = (0..3).filter(|index| counts[*index] > 0);
                let parts = present.map(|index| x.clone().narrow(0, keys[index + 1] - counts[index], counts[index]));
                Tensor::cat(parts.collect(), 0)
            };
            let queries = rows(q.clone().reshape([283, heads * head_dim])).reshape([-1, 4, 16]);
            let layout = AttentionLayout {
                boundaries: boundaries(&counts),
                ..full.clone()
            };
            let output = attention_cached(queries.clone(), k.clone(), v.clone(), &keys, &layout);
            check_equal(output, rows(expected.clone()), 1e-5, "kernel");
            let reference = attention_reference(queries, k.clone(), v.clone(), &keys, &layout);
            check_equal(reference, rows(expected.clone()), 1e-5, "reference");
        }
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let layout = AttentionLayout {
        boundaries: boundaries(&[300, 200]),
        window: None,
        scale: 0.125,
        softcap: None,
        slopes: None,
    };
    let inputs = [random([500, 4, 32]), random([500, 2, 32]), random([500, 2, 32])];
    let weights = random([500, 128]);
    let many = run(&inputs, &weights, &layout, false);
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let single = one.install(|| run(&inputs, &weights, &layout, false));
    for (many, single) in many.into_iter().zip(single) {
        assert_eq!(largest_difference(many, single), 0.0);
    }
}
