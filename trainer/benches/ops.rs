//! Times every operation that has a kernel of its own against its reference in plain tensor operations, at the shapes of
//! a Llama of 30 million parameters and a micro-batch of 4 sequences of 256 tokens:
//! `cargo bench -p interlingua-trainer --bench ops`.

use std::sync::{Arc, OnceLock};

use burn::tensor::{DType, Device, Distribution, Tensor, TensorData};
use divan::{Bencher, black_box};
use interlingua_trainer::ops::activation::{Activation, gated, gated_reference};
use interlingua_trainer::ops::adamw::{
    AdamWStep, adamw_step, adamw_step_reference, sum_of_squares, sum_of_squares_reference,
};
use interlingua_trainer::ops::adamw_bf16::{adamw_step_bf16, adamw_step_bf16_reference};
use interlingua_trainer::ops::adamw8bit::{BLOCK, Quantized, adamw8bit_step, adamw8bit_step_reference};
use interlingua_trainer::ops::attention::{AttentionLayout, attention, attention_cached, attention_reference};
use interlingua_trainer::ops::cross_entropy::{
    softmax_cross_entropy, softmax_cross_entropy_reference, target_log_probs, target_log_probs_reference,
};
use interlingua_trainer::ops::layer_norm::{layer_norm, layer_norm_reference};
use interlingua_trainer::ops::rms_norm::{rms_norm, rms_norm_reference};
use interlingua_trainer::ops::rotary::{RotaryTable, rotary, rotary_reference};
use interlingua_trainer::ops::seed::backward_from;
use interlingua_trainer::ops::xielu::{xielu, xielu_reference};

const SEQUENCES: usize = 4;
const LENGTH: usize = 256;
const TOKENS: usize = SEQUENCES * LENGTH;
const HIDDEN: usize = 512;
const HEADS: usize = 8;
const KV_HEADS: usize = 4;
const HEAD_DIM: usize = 64;
const FEED_FORWARD: usize = 1408;
const VOCABULARY: usize = 8192;
const EPSILON: f64 = 1e-5;

fn main() {
    // As the trainer does, so that fresh pages do not count.
    interlingua_trainer::memory::keep_freed_blocks();
    divan::main();
}

/// A step of the optimizer.
const ADAMW: AdamWStep = AdamWStep {
    learning_rate: 1e-3,
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
    weight_decay: 0.01,
    step: 10,
};

/// Which of the two is timed.
const VERSIONS: [&str; 2] = ["kernel", "reference"];

/// Numbers of about standard normal size in a buffer of their own, cheaper than true random ones.
fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    static VALUES: OnceLock<Vec<f32>> = OnceLock::new();
    let values = VALUES.get_or_init(|| {
        let values = Tensor::<1>::random([1 << 20], Distribution::Normal(0.0, 1.0), &Device::flex());
        values.into_data().iter::<f32>().collect()
    });
    let count = shape.iter().product();
    let values = values.iter().copied().cycle().take(count).collect::<Vec<_>>();
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

/// A leaf of a new graph, its buffer not shared with anything that lives.
fn leaf<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    random(shape).autodiff().require_grad()
}

#[divan::bench(args = VERSIONS)]
fn rms_norm_forward_backward(bencher: Bencher, version: &str) {
    let norm = if version == "kernel" {
        rms_norm
    } else {
        rms_norm_reference
    };
    bencher
        .with_inputs(|| {
            (
                leaf([TOKENS, HIDDEN]),
                random([HIDDEN]).autodiff(),
                random([TOKENS, HIDDEN]),
            )
        })
        .bench_local_values(|(x, weight, gradient)| backward_from(norm(x, weight, EPSILON, 0.0), gradient));
}

#[divan::bench(args = VERSIONS)]
fn layer_norm_forward_backward(bencher: Bencher, version: &str) {
    let norm = if version == "kernel" {
        layer_norm
    } else {
        layer_norm_reference
    };
    let vector = || random([HIDDEN]).autodiff();
    bencher
        .with_inputs(|| (leaf([TOKENS, HIDDEN]), vector(), vector(), random([TOKENS, HIDDEN])))
        .bench_local_values(|(x, weight, bias, gradient)| {
            backward_from(norm(x, weight, Some(bias), EPSILON), gradient)
        });
}

#[divan::bench(args = VERSIONS)]
fn rotary_forward(bencher: Bencher, version: &str) {
    let embed = if version == "kernel" { rotary } else { rotary_reference };
    let table = table();
    bencher
        .with_inputs(|| random([TOKENS, HEADS, HEAD_DIM]))
        .bench_local_values(|x| embed(x, black_box(&table)));
}

#[divan::bench]
fn rotary_table() -> RotaryTable {
    table()
}

fn table() -> RotaryTable {
    let inv_freq: Vec<f32> = (0..HEAD_DIM / 2)
        .map(|pair| 10_000f32.powf(-(pair as f32) / 32.0))
        .collect();
    let position_ids: Vec<u32> = (0..TOKENS).map(|token| (token % LENGTH) as u32).collect();
    RotaryTable::new(&inv_freq, 1.0, &position_ids, false, &Device::flex())
}

#[divan::bench(args = VERSIONS)]
fn swiglu_forward_backward(bencher: Bencher, version: &str) {
    bench_gated(bencher, version, Activation::Silu);
}

#[divan::bench(args = VERSIONS)]
fn gated_gelu_forward_backward(bencher: Bencher, version: &str) {
    bench_gated(bencher, version, Activation::Gelu);
}

#[divan::bench(args = VERSIONS)]
fn gated_gelu_tanh_forward_backward(bencher: Bencher, version: &str) {
    bench_gated(bencher, version, Activation::GeluTanh);
}

fn bench_gated(bencher: Bencher, version: &str, activation: Activation) {
    let unit = if version == "kernel" { gated } else { gated_reference };
    let shape = [TOKENS, FEED_FORWARD];
    bencher
        .with_inputs(|| (leaf(shape), leaf(shape), random(shape)))
        .bench_local_values(|(gate, up, gradient)| backward_from(unit(gate, up, activation), gradient));
}

#[divan::bench(args = VERSIONS)]
fn xielu_forward_backward(bencher: Bencher, version: &str) {
    let function = if version == "kernel" { xielu } else { xielu_reference };
    let shape = [TOKENS, FEED_FORWARD];
    bencher
        .with_inputs(|| (leaf(shape), leaf([1]), leaf([1]), random(shape)))
        .bench_local_values(|(x, alpha_p, alpha_n, gradient)| {
            backward_from(function(x, alpha_p, alpha_n, 0.5, -1e-6), gradient)
        });
}

fn layout() -> AttentionLayout {
    let boundaries: Arc<[usize]> = (0..=SEQUENCES).map(|sequence| sequence * LENGTH).collect();
    AttentionLayout {
        boundaries,
        window: None,
        scale: (HEAD_DIM as f32).powf(-0.5),
        softcap: None,
        slopes: None,
    }
}

fn attend(version: &str, q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, layout: &AttentionLayout) -> Tensor<2> {
    if version == "kernel" {
        attention(q, k, v, layout)
    } else {
        attention_reference(q, k, v, &layout.boundaries, layout)
    }
}

#[divan::bench(args = VERSIONS)]
fn attention_forward(bencher: Bencher, version: &str) {
    let layout = layout();
    let kv = [TOKENS, KV_HEADS, HEAD_DIM];
    bencher
        .with_inputs(|| (random([TOKENS, HEADS, HEAD_DIM]), random(kv), random(kv)))
        .bench_local_values(|(q, k, v)| attend(version, q, k, v, &layout));
}

#[divan::bench(args = VERSIONS)]
fn attention_forward_backward(bencher: Bencher, version: &str) {
    let layout = layout();
    let kv = [TOKENS, KV_HEADS, HEAD_DIM];
    bencher
        .with_inputs(|| {
            (
                leaf([TOKENS, HEADS, HEAD_DIM]),
                leaf(kv),
                leaf(kv),
                random([TOKENS, HIDDEN]),
            )
        })
        .bench_local_values(|(q, k, v, gradient)| backward_from(attend(version, q, k, v, &layout), gradient));
}

#[divan::bench]
fn attention_decoding(bencher: Bencher) {
    let layout = AttentionLayout {
        boundaries: Arc::new([0, 1]),
        ..layout()
    };
    let (keys, kv): (Arc<[usize]>, _) = (Arc::new([0, 512]), [512, KV_HEADS, HEAD_DIM]);
    let (q, k, v) = (random([1, HEADS, HEAD_DIM]), random(kv), random(kv));
    bencher.bench_local(|| attention_cached(q.clone(), k.clone(), v.clone(), &keys, &layout));
}

fn targets() -> Vec<u32> {
    (0..TOKENS).map(|row| ((row * 7919) % VOCABULARY) as u32).collect()
}

#[divan::bench(args = VERSIONS)]
fn cross_entropy_with_gradient(bencher: Bencher, version: &str) {
    let function = if version == "kernel" {
        softmax_cross_entropy
    } else {
        softmax_cross_entropy_reference
    };
    let (targets, scale) = (targets(), vec![1e-3; TOKENS]);
    bencher
        .with_inputs(|| random([TOKENS, VOCABULARY]))
        .bench_local_values(|logits| function(logits, &targets, &scale));
}

#[divan::bench(args = VERSIONS)]
fn log_probabilities(bencher: Bencher, version: &str) {
    let function = if version == "kernel" {
        target_log_probs
    } else {
        target_log_probs_reference
    };
    let (targets, logits) = (targets(), random([TOKENS, VOCABULARY]));
    bencher.bench_local(|| function(logits.clone(), &targets));
}

#[divan::bench(args = VERSIONS)]
fn adamw_of_a_projection(bencher: Bencher, version: &str) {
    let function = if version == "kernel" {
        adamw_step
    } else {
        adamw_step_reference
    };
    let shape = [FEED_FORWARD, HIDDEN];
    bencher
        .with_inputs(|| (random(shape), random(shape), random(shape), random(shape).abs()))
        .bench_local_values(|(parameter, gradient, first, second)| {
            function(parameter, gradient, first, second, &ADAMW)
        });
}

#[divan::bench(args = VERSIONS)]
fn adamw_bf16_of_a_projection(bencher: Bencher, version: &str) {
    let function = if version == "kernel" {
        adamw_step_bf16
    } else {
        adamw_step_bf16_reference
    };
    let length = [FEED_FORWARD * HIDDEN];
    let moment = || random(length).abs().cast(DType::BF16);
    bencher
        .with_inputs(|| (random(length), random(length), moment(), moment()))
        .bench_local_values(|(parameter, gradient, first, second)| {
            function(parameter, gradient, first, second, &ADAMW)
        });
}

#[divan::bench(args = VERSIONS)]
fn adamw8bit_of_a_projection(bencher: Bencher, version: &str) {
    let function = if version == "kernel" {
        adamw8bit_step
    } else {
        adamw8bit_step_reference
    };
    let length = FEED_FORWARD * HIDDEN;
    let moment = || {
        let codes = (0..length).map(|index| (index * 37 % 256) as u8).collect();
        Quantized::new(codes, vec![0.1; length.div_ceil(BLOCK)], &Device::flex())
    };
    bencher
        .with_inputs(|| (random([length]), random([length]), moment(), moment()))
        .bench_local_values(|(parameter, gradient, first, second)| {
            function(parameter, gradient, first, second, &ADAMW)
        });
}

#[divan::bench(args = VERSIONS)]
fn sum_of_squares_of_a_projection(bencher: Bencher, version: &str) {
    let function = if version == "kernel" {
        sum_of_squares
    } else {
        sum_of_squares_reference
    };
    let gradient = random([FEED_FORWARD, HIDDEN]);
    bencher.bench_local(|| function(&gradient));
}
