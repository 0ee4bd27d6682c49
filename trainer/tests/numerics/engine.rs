//! What must not change a loss or a gradient: how sequences are spread over micro-batches, which neighbours they are packed
//! with, whether keys and values come from a cache.

use burn::tensor::Tensor;
use interlingua_trainer::engine::gradients::Gradients;
use interlingua_trainer::engine::head::Targets;
use interlingua_trainer::engine::inputs::{Inputs, RopeLength};
use interlingua_trainer::engine::keeping::Keeping;
use interlingua_trainer::engine::step::forward_backward;
use interlingua_trainer::models::Model;
use interlingua_trainer::models::attention::KeyValues;
use proptest::prelude::*;

use crate::fixtures::{MODELS, adapted, adapted_from, distance, gradient, host, model, norm};

/// A sequence: its tokens, labels that are not shifted, and its number in the data.
#[derive(Clone, Debug)]
struct Sequence {
    input_ids: Vec<u32>,
    labels: Vec<i32>,
    sample: u64,
}

/// Sequences of one to fifteen tokens, two thirds of them supervised, each with a number of its own.
fn sequences(count: impl Into<proptest::collection::SizeRange>) -> impl Strategy<Value = Vec<Sequence>> {
    let token = (0u32..90, 0u8..3);
    prop::collection::vec(prop::collection::vec(token, 1..16), count).prop_map(|all| {
        let numbered = all.into_iter().enumerate();
        let sequence = |(index, tokens): (usize, Vec<(u32, u8)>)| Sequence {
            input_ids: tokens.iter().map(|(id, _)| *id).collect(),
            labels: tokens
                .iter()
                .map(|(id, supervised)| if *supervised > 0 { *id as i32 } else { -100 })
                .collect(),
            sample: index as u64 * 7 + 3,
        };
        numbered.map(sequence).collect()
    })
}

/// Sequences in an order of their own, with the places where a new micro-batch begins.
fn cut() -> impl Strategy<Value = (Vec<Sequence>, Vec<Sequence>, Vec<bool>)> {
    sequences(1..9usize).prop_flat_map(|all| {
        let cuts = prop::collection::vec(any::<bool>(), all.len());
        (Just(all.clone()), Just(all).prop_shuffle(), cuts)
    })
}

fn inputs(model: &Model, sequences: &[Sequence]) -> (Inputs, Targets) {
    let ids: Vec<u32> = sequences
        .iter()
        .flat_map(|sequence| sequence.input_ids.clone())
        .collect();
    let labels: Vec<i32> = sequences.iter().flat_map(|sequence| sequence.labels.clone()).collect();
    let positions: Vec<u32> = sequences
        .iter()
        .flat_map(|sequence| 0..sequence.input_ids.len() as u32)
        .collect();
    let mut boundaries = vec![0];
    for sequence in sequences {
        boundaries.push(boundaries[boundaries.len() - 1] + sequence.input_ids.len());
    }
    let inputs = Inputs::new(
        &model.config,
        &ids,
        &positions,
        &boundaries,
        RopeLength::Own,
        &model.device,
    );
    (inputs, Targets::of_labels(&labels, &boundaries))
}

/// Sum of the losses and the gradients of one step over micro-batches, dropout on.
fn step(model: &Model, micro_batches: &[Vec<Sequence>]) -> (f64, Gradients) {
    let mut gradients = Gradients::default();
    let mut loss = 0.0;
    for sequences in micro_batches {
        let (inputs, targets) = inputs(model, sequences);
        let samples: Vec<u64> = sequences.iter().map(|sequence| sequence.sample).collect();
        let inputs = inputs.with_dropout(1, 2, &samples);
        let weights = vec![0.1; targets.len()];
        let log_probs = forward_backward(model, &inputs, &targets, &weights, Keeping::default(), &mut gradients);
        loss -= log_probs.into_iter().map(f64::from).sum::<f64>();
    }
    (loss, gradients)
}

fn check_same_step(model: &Model, one: &[Vec<Sequence>], other: &[Vec<Sequence>]) {
    let (loss, gradients) = step(model, one);
    let (other_loss, other_gradients) = step(model, other);
    assert!(
        (loss - other_loss).abs() <= 1e-5 * loss.abs().max(1.0),
        "loss {loss} and {other_loss}"
    );
    let total = gradients.norm();
    for (id, parameter) in model.parameters.trainable() {
        let (Some(one), Some(other)) = (gradients.get(id), other_gradients.get(id)) else {
            continue;
        };
        let (one, other) = (host(one), host(other));
        let off = distance(&one, &other);
        // Rounding alone reaches 1e-5; a wrong mask or neighbour is off by its whole size.
        let limit = 1e-4 * norm(&one).max(1e-2 * total);
        assert!(
            off <= limit,
            "{}: off by {off}, at most {limit}, norm {total}",
            parameter.name
        );
    }
}

/// The sequences cut into micro-batches.
fn micro_batches(sequences: &[Sequence], cuts: &[bool]) -> Vec<Vec<Sequence>> {
    let mut batches: Vec<Vec<Sequence>> = vec![Vec::new()];
    for (sequence, cut) in sequences.iter().zip(cuts) {
        if *cut && !batches[batches.len() - 1].is_empty() {
            batches.push(Vec::new());
        }
        let last = batches.len() - 1;
        batches[last].push(sequence.clone());
    }
    batches
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn neither_packing_nor_batch_shape_changes_a_step((all, shuffled, cuts) in cut()) {
        let alone: Vec<Vec<Sequence>> = all.iter().map(|sequence| vec![sequence.clone()]).collect();
        // The adapters of `lora` are so large that rounding alone would move some gradients by 1e-4.
        let model = adapted_from("llama", "trajectories/sft_lora/adapter_final", 0.1);
        check_same_step(&model, &alone, &micro_batches(&shuffled, &cuts));
    }

    #[test]
    fn packing_changes_no_full_gradient((all, shuffled, cuts) in cut()) {
        let alone: Vec<Vec<Sequence>> = all.iter().map(|sequence| vec![sequence.clone()]).collect();
        for name in ["mistral", "llama_dynamic", "qwen3", "gemma3", "bloom", "cohere2", "gpt_bigcode", "xglm", "olmo2"] {
            check_same_step(&model(name, true), &alone, &micro_batches(&shuffled, &cuts));
        }
    }

    #[test]
    fn a_cache_of_keys_and_values_changes_no_hidden_state(all in sequences(3), first in 1usize..8) {
        for name in MODELS {
            check_cache(&model(name, false), &all, first);
        }
    }
}

/// All sequences at once, and their first tokens, then the others one by one.
fn check_cache(model: &Model, sequences: &[Sequence], first: usize) {
    let length = sequences.iter().map(|sequence| sequence.input_ids.len()).min().unwrap();
    let part = |range: std::ops::Range<usize>| {
        let ids: Vec<u32> = sequences
            .iter()
            .flat_map(|sequence| sequence.input_ids[range.clone()].to_vec())
            .collect();
        let positions: Vec<u32> = sequences
            .iter()
            .flat_map(|_| range.start as u32..range.end as u32)
            .collect();
        let boundaries: Vec<usize> = (0..=sequences.len()).map(|index| index * range.len()).collect();
        Inputs::new(
            &model.config,
            &ids,
            &positions,
            &boundaries,
            RopeLength::Fixed(length),
            &model.device,
        )
    };
    let hidden_size = model.config.hidden_size;
    let rows = |hidden: &Tensor<2>, row: usize| -> Vec<Vec<f32>> {
        let each = host(hidden);
        let count = each.len() / hidden_size / sequences.len();
        let row = |index: usize| each[(index * count + row) * hidden_size..][..hidden_size].to_vec();
        (0..sequences.len()).map(row).collect()
    };
    let whole = model.last_hidden_state(&part(0..length), None);
    let mut seen = vec![vec![KeyValues::default(); sequences.len()]; model.blocks.len()];
    let first = first.min(length);
    let mut start = 0;
    for end in first..=length {
        let found = model.last_hidden_state(&part(start..end), Some(&mut seen));
        for (found, expected) in rows(&found, end - start - 1).iter().zip(rows(&whole, end - 1)) {
            let off = distance(found, &expected);
            assert!(off <= 1e-4 * norm(&expected), "token {end}: off by {off}");
        }
        start = end;
    }
}

/// A micro-batch in which nothing is supervised gives nothing.
#[test]
fn a_batch_without_a_supervised_token_has_no_gradient() {
    let model = adapted("llama.lora", 0.0);
    let sequence = Sequence {
        input_ids: vec![5, 6, 7],
        labels: vec![-100; 3],
        sample: 0,
    };
    let (loss, gradients) = step(&model, &[vec![sequence.clone()]]);
    assert_eq!(loss, 0.0);
    assert!(gradients.norm() == 0.0);
    let supervised = Sequence {
        labels: vec![-100, 6, 7],
        ..sequence.clone()
    };
    let (_, alone) = step(&model, &[vec![supervised.clone()]]);
    let (_, both) = step(&model, &[vec![sequence], vec![supervised]]);
    let name = "model.layers.0.self_attn.q_proj.lora_B.weight";
    assert_eq!(gradient(&model, &alone, name), gradient(&model, &both, name));
}
