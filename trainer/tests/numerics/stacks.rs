//! Adapters of one language, adapters below others, and what stands after or between blocks: against each language on its own,
//! merged weights, plain tensor operations and finite differences.

use std::collections::BTreeMap;

use burn::tensor::{DType, Tensor, TensorData};
use interlingua_checkpoints::own_adapter::AnyAdapter;
use interlingua_data::dataset::{Dataset, TokenizedSample};
use interlingua_data::prepare::Prepared;
use interlingua_recipes::{Adapter as Recipe, AdapterKind, Fit, Layer};
use interlingua_trainer::adapters::Adapter;
use interlingua_trainer::adapters::attach::{Placement, attach};
use interlingua_trainer::adapters::fresh::attach_new;
use interlingua_trainer::engine::gradients::Gradients;
use interlingua_trainer::engine::head::Targets;
use interlingua_trainer::engine::inputs::{Inputs, RopeLength};
use interlingua_trainer::engine::keeping::Keeping;
use interlingua_trainer::engine::pass::Pass;
use interlingua_trainer::engine::step::forward_backward;
use interlingua_trainer::engine::tiles::TiledBlock;
use interlingua_trainer::models::Model;
use interlingua_trainer::random::{normal, text_key};
use interlingua_trainer::train::closed_form;

use crate::fixtures::{distance, gradient, host, model, norm, path};

const KINDS: [AdapterKind; 4] = [
    AdapterKind::Lora,
    AdapterKind::Dora,
    AdapterKind::Bottleneck,
    AdapterKind::Steering,
];

fn recipe(kind: AdapterKind) -> Recipe {
    Recipe {
        kind,
        rank: 3,
        alpha: 6.0,
        dropout: 0.2,
        reduction: (kind == AdapterKind::Bottleneck).then_some(4),
        layer: (kind == AdapterKind::Steering).then_some(Layer::Number(2)),
        scale: (kind == AdapterKind::Steering).then_some(0.5),
        ..Recipe::default()
    }
}

fn random(name: &str, count: usize) -> Vec<f32> {
    (0..count as u64).map(|index| normal(text_key(name), index)).collect()
}

fn set(model: &mut Model, name: &str, values: Vec<f32>) {
    let id = model.parameters.find(name).unwrap();
    let length = values.len();
    let value = Tensor::from_data(TensorData::new(values, [length]), &model.device);
    model.parameters.set_value(id, value);
}

/// Moves every trained parameter by numbers that depend on its name.
fn disturb(model: &mut Model) {
    let trained: Vec<(String, Vec<f32>)> = model
        .parameters
        .trainable()
        .map(|(_, parameter)| (parameter.name.clone(), host(&parameter.values())))
        .collect();
    for (name, values) in trained {
        let moved = values.iter().zip(random(&name, values.len()));
        set(model, &name, moved.map(|(value, noise)| value + 0.1 * noise).collect());
    }
}

/// Sequences of different lengths, with their languages. There is no copy for hi.
const LANGUAGES: [&str; 5] = ["en", "sw", "hi", "en", "sw"];

fn sequence(index: usize) -> Vec<u32> {
    (0..7 + 2 * index as u32)
        .map(|token| (token * 13 + index as u32 * 31) % 97 + 4)
        .collect()
}

fn batch(model: &Model, indices: &[usize]) -> (Inputs, Targets) {
    let sequences: Vec<Vec<u32>> = indices.iter().map(|index| sequence(*index)).collect();
    let mut boundaries = vec![0];
    sequences
        .iter()
        .for_each(|sequence| boundaries.push(boundaries[boundaries.len() - 1] + sequence.len()));
    let ids = sequences.concat();
    let positions: Vec<u32> = sequences.iter().flat_map(|sequence| 0..sequence.len() as u32).collect();
    let labels: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
    let (config, length) = (&model.config, RopeLength::Own);
    let inputs = Inputs::new(config, &ids, &positions, &boundaries, length, &model.device);
    let samples: Vec<u64> = indices.iter().map(|index| *index as u64 + 40).collect();
    let languages: Vec<&str> = indices.iter().map(|index| LANGUAGES[*index]).collect();
    let inputs = inputs.with_dropout(5, 2, &samples).with_languages(&languages);
    (inputs, Targets::of_labels(&labels, &boundaries))
}

/// Log-probabilities by target, and gradients of a tenth of their negative sum.
fn step(model: &Model, indices: &[usize]) -> (Vec<f32>, Gradients) {
    let (inputs, targets) = batch(model, indices);
    let mut gradients = Gradients::default();
    let weights = vec![0.1; targets.len()];
    let log_probs = forward_backward(model, &inputs, &targets, &weights, Keeping::default(), &mut gradients);
    (log_probs, gradients)
}

fn assert_near(found: &[f32], expected: &[f32], tolerance: f64, what: &str) {
    let (off, limit) = (distance(found, expected), tolerance * norm(expected).max(1e-3));
    assert!(off <= limit, "{what}: off by {off}, at most {limit}");
}

#[test]
fn each_language_of_a_batch_passes_through_its_own_copy() {
    for kind in KINDS {
        let mut routed = model("llama", false);
        for language in ["en", "sw"] {
            attach_new(&mut routed, &recipe(kind), 3, Some(language)).unwrap();
        }
        disturb(&mut routed);
        let (log_probs, gradients) = step(&routed, &[0, 1, 2, 3, 4]);
        let mut by_sequence = Vec::new();
        let mut rest = log_probs.as_slice();
        for index in 0..LANGUAGES.len() {
            let (own, after) = rest.split_at(sequence(index).len() - 1);
            by_sequence.push(own);
            rest = after;
        }
        let trained = routed.parameters.trainable().count();
        assert_eq!(gradients.iter().count(), trained, "{kind:?}: both copies get gradients");
        for language in ["en", "sw"] {
            let mut alone = model("llama", false);
            attach_new(&mut alone, &recipe(kind), 3, None).unwrap();
            let names: Vec<String> = alone.parameters.trainable().map(|(_, one)| one.name.clone()).collect();
            let copy = |name: &str| match name.strip_suffix(".weight") {
                Some(name) => format!("{name}.{language}.weight"),
                None => format!("{name}.{language}"),
            };
            for name in &names {
                let id = routed.parameters.find(&copy(name)).unwrap();
                set(&mut alone, name, host(&routed.parameters.get(id).values()));
            }
            let indices: Vec<usize> = (0..5).filter(|index| LANGUAGES[*index] == language).collect();
            let (expected, expected_gradients) = step(&alone, &indices);
            let found: Vec<f32> = indices.iter().flat_map(|index| by_sequence[*index].to_vec()).collect();
            assert_near(&found, &expected, 1e-5, &format!("{kind:?} {language}"));
            for name in &names {
                let found = gradient(&routed, &gradients, &copy(name));
                let expected = gradient(&alone, &expected_gradients, name);
                assert_near(&found, &expected, 1e-4, &format!("{kind:?} {name} {language}"));
            }
        }
        let (base, _) = step(&model("llama", false), &[2]);
        assert_near(
            by_sequence[2],
            &base,
            1e-5,
            &format!("{kind:?}: no copy, the base alone"),
        );
    }
}

/// What a block gives in tiles of a size, and the gradients below it by name.
pub(crate) fn tiled(model: &Model, block: usize, inputs: &Inputs, size: usize) -> BTreeMap<String, Vec<f32>> {
    let hidden = model.config.hidden_size;
    let tokens = inputs.tokens();
    let values = |name: &str| TensorData::new(random(name, tokens * hidden), [tokens, hidden]);
    let x = Tensor::<2>::from_data(values("x"), &model.device);
    let gradient = Tensor::<2>::from_data(values("gradient"), &model.device);
    let tiles = TiledBlock::with_tiles(model, block, inputs, size);
    let mut gradients = Gradients::default();
    let mut found = BTreeMap::from([("output".to_owned(), host(&tiles.forward(&x).0))]);
    let by_input = tiles
        .backward(&x, gradient.clone(), true, None, &mut gradients)
        .unwrap();
    found.insert("input".to_owned(), host(&by_input));
    for (id, gradient) in gradients.iter() {
        found.insert(model.parameters.get(id).name.clone(), host(gradient));
    }
    // What is below does not change the gradients here.
    let mut without = Gradients::default();
    assert!(tiles.backward(&x, gradient, false, None, &mut without).is_none());
    for (id, gradient) in gradients.iter() {
        assert_near(
            &host(without.get(id).unwrap()),
            &host(gradient),
            1e-6,
            "the lowest block",
        );
    }
    found
}

#[test]
fn a_block_gives_the_same_in_tiles_of_any_size() {
    for kind in KINDS {
        let mut model = model("llama", false);
        attach_new(&mut model, &recipe(kind), 3, None).unwrap();
        for language in ["en", "sw"] {
            attach_new(&mut model, &recipe(AdapterKind::Bottleneck), 3, Some(language)).unwrap();
        }
        disturb(&mut model);
        let (inputs, _) = batch(&model, &[0, 1, 2, 3, 4]);
        let whole = tiled(&model, 1, &inputs, usize::MAX);
        assert!(whole.len() > 4, "{kind:?}");
        for size in [1, 7, 20, 54] {
            let tiles = tiled(&model, 1, &inputs, size);
            assert_eq!(tiles.len(), whole.len(), "{kind:?}");
            for (name, values) in &whole {
                assert_near(
                    &tiles[name],
                    values,
                    1e-5,
                    &format!("{kind:?}, tiles of {size}, {name}"),
                );
            }
        }
    }
}

#[test]
fn a_language_that_is_missing_in_a_batch_gets_no_gradient() {
    for kind in KINDS {
        let mut routed = model("llama", false);
        for language in ["en", "sw"] {
            attach_new(&mut routed, &recipe(kind), 3, Some(language)).unwrap();
        }
        disturb(&mut routed);
        let (_, gradients) = step(&routed, &[0, 2, 3]);
        let names: Vec<&str> = gradients
            .iter()
            .map(|(id, _)| routed.parameters.get(id).name.as_str())
            .collect();
        assert!(
            !names.is_empty() && names.iter().all(|name| name.contains(".en")),
            "{kind:?}: {names:?}"
        );
        let (_, none) = step(&routed, &[2]);
        assert_eq!(none.iter().count(), 0, "{kind:?}");
    }
}

#[test]
fn copies_start_equal_and_as_an_adapter_without_a_language_does() {
    for kind in KINDS {
        let mut one = model("llama", false);
        attach_new(&mut one, &recipe(kind), 3, None).unwrap();
        let mut copies = model("llama", false);
        attach_new(&mut copies, &recipe(kind), 3, Some("sw")).unwrap();
        let values = |model: &Model| -> Vec<Vec<f32>> {
            model
                .parameters
                .trainable()
                .map(|(_, parameter)| host(&parameter.values()))
                .collect()
        };
        assert!(values(&one) == values(&copies), "{kind:?}");
        let (base, _) = step(&model("llama", false), &[0, 1]);
        let (begun, _) = step(&copies, &[0, 1]);
        assert_near(&begun, &base, 1e-5, &format!("{kind:?}: a new adapter changes nothing"));
    }
}

/// A model with two frozen adapters and one to train, and one with the frozen ones in its weights.
fn stacked_and_merged() -> (Model, Model) {
    let mut stacked = model("llama", false);
    for name in ["llama.lora", "llama.rslora"] {
        let copy = format!("under.{name}");
        let placement = Placement {
            copy: Some(&copy),
            ..Placement::default()
        };
        for (_, adapter) in AnyAdapter::open(&path(&format!("lora/{name}"))).unwrap() {
            attach(&mut stacked, &adapter, placement).unwrap();
        }
    }
    let mut merged = model("llama", false);
    let linears: Vec<_> = stacked.linears().cloned().collect();
    for linear in linears.iter().filter(|linear| !linear.adapters.is_empty()) {
        assert_eq!(linear.adapters.len(), 2, "{}", linear.name);
        let parameter = stacked.parameters.get(linear.weight);
        let shape = [parameter.shape[0], parameter.shape[1]];
        let mut weight: Tensor<2> = parameter.values().reshape(shape);
        for adapter in &linear.adapters {
            weight = weight + adapter.adapter.lora().delta(&stacked.parameters);
        }
        set(&mut merged, &parameter.name.clone(), host(&weight));
    }
    for model in [&mut stacked, &mut merged] {
        attach_new(model, &recipe(AdapterKind::Lora), 3, None).unwrap();
        disturb(model);
    }
    (stacked, merged)
}

#[test]
fn adapters_below_act_as_if_they_were_merged_and_are_not_trained() {
    let (stacked, merged) = stacked_and_merged();
    let (found, gradients) = step(&stacked, &[0, 1, 2]);
    let (expected, expected_gradients) = step(&merged, &[0, 1, 2]);
    let (base, _) = step(&model("llama", false), &[0, 1, 2]);
    assert!(
        distance(&base, &expected) > 0.1 * norm(&expected),
        "the adapters change something"
    );
    assert_near(&found, &expected, 1e-4, "log-probabilities");
    assert_eq!(gradients.iter().count(), expected_gradients.iter().count());
    for (id, _) in gradients.iter() {
        let parameter = stacked.parameters.get(id);
        assert!(!parameter.frozen, "{} is trained", parameter.name);
        let found = gradient(&stacked, &gradients, &parameter.name);
        let expected = gradient(&merged, &expected_gradients, &parameter.name);
        assert_near(&found, &expected, 1e-3, &parameter.name);
    }
}

#[test]
fn two_doras_on_the_same_rows_are_refused() {
    let mut model = model("llama", false);
    attach_new(&mut model, &recipe(AdapterKind::Dora), 3, Some("en")).unwrap();
    attach_new(&mut model, &recipe(AdapterKind::Dora), 3, Some("sw")).unwrap();
    let error = attach_new(&mut model, &recipe(AdapterKind::Dora), 3, None).unwrap_err();
    assert!(error.to_string().contains("cannot be added up"), "{error}");
}

/// The summed loss of a batch over ten, as `step` weighs it.
fn loss(model: &Model) -> f64 {
    let (log_probs, _) = step(model, &[0, 1, 2]);
    -log_probs.iter().map(|log_prob| f64::from(*log_prob)).sum::<f64>() / 10.0
}

#[test]
fn a_steering_vector_is_added_to_its_hidden_state_and_has_the_gradient_of_finite_differences() {
    for layer in [Layer::Number(1), Layer::Middle, Layer::Last] {
        let recipe = Recipe {
            layer: Some(layer),
            ..recipe(AdapterKind::Steering)
        };
        let number = layer.of(3).unwrap();
        let mut steered = model("llama", false);
        attach_new(&mut steered, &recipe, 3, None).unwrap();
        let name = format!("model.layers.{}.steering_vector", number - 1);
        let vector = random("vector", 32);
        set(&mut steered, &name, vector.clone());
        let (inputs, _) = batch(&steered, &[0, 1]);
        let (with, without) = (
            steered.hidden_states(&inputs),
            model("llama", false).hidden_states(&inputs),
        );
        for index in 0..number {
            assert_eq!(host(&with[index]), host(&without[index]), "below nothing changes");
        }
        if number < 3 {
            let moved = host(&without[number]);
            let moved = moved
                .iter()
                .enumerate()
                .map(|(index, value)| value + 0.5 * vector[index % 32]);
            assert_near(
                &host(&with[number]),
                &moved.collect::<Vec<_>>(),
                1e-6,
                "the layer itself",
            );
        }
        let (_, gradients) = step(&steered, &[0, 1, 2]);
        let found = gradient(&steered, &gradients, &name);
        let direction = random("direction", 32);
        let along: f64 = found
            .iter()
            .zip(&direction)
            .map(|(one, other)| f64::from(one * other))
            .sum();
        let mut at = |share: f32| {
            let moved = vector
                .iter()
                .zip(&direction)
                .map(|(value, direction)| value + share * direction);
            set(&mut steered, &name, moved.collect());
            loss(&steered)
        };
        let differences = (at(5e-3) - at(-5e-3)) / 1e-2;
        let off = (along - differences).abs();
        assert!(
            off <= 1e-2 * differences.abs().max(0.1),
            "{layer:?}: {along} and {differences}"
        );
    }
}

/// What a bottleneck does, in other operations.
fn bottleneck_reference(u: Tensor<2>, norm_weight: Tensor<1>, down: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    let mean_square = u.clone().powi_scalar(2).mean_dim(1);
    let normed = u.clone() / (mean_square + 1e-5).sqrt() * norm_weight.unsqueeze::<2>();
    let inner = normed.matmul(down.transpose());
    let gate = ((inner.clone() / std::f64::consts::SQRT_2).erf() + 1.0) * 0.5;
    u + (inner * gate).matmul(up.transpose())
}

#[test]
fn a_bottleneck_is_its_formula_forward_and_backward() {
    let mut adapted = model("llama", false);
    attach_new(&mut adapted, &recipe(AdapterKind::Bottleneck), 3, None).unwrap();
    disturb(&mut adapted);
    let (inputs, _) = batch(&adapted, &[0, 1]);
    let inputs = Inputs {
        token_keys: None,
        ..inputs
    };
    let (tokens, hidden) = (inputs.tokens(), 32);
    let matrix = |name: &str, rows: usize| -> Tensor<2> {
        Tensor::<1>::from_data(
            TensorData::new(random(name, rows * hidden), [rows * hidden]),
            &adapted.device,
        )
        .reshape([rows, hidden])
    };
    let (x, weight) = (matrix("x", tokens), matrix("output gradient", tokens));
    let mut bare = adapted.blocks[1].clone();
    bare.bottlenecks.clear();

    let pass = Pass::new(&adapted.parameters, DType::F32, true, None);
    let input = x.clone().autodiff().require_grad();
    let output = adapted.blocks[1].forward(input.clone(), &inputs, &pass, None).output;
    let mut graph = (output.clone() * weight.clone().autodiff()).sum().backward();
    let input_gradient = input.grad(&graph).unwrap();
    let mut gradients = Gradients::default();
    pass.collect(&mut graph, &mut gradients);

    let pass = Pass::new(&adapted.parameters, DType::F32, false, None);
    let bottleneck = &adapted.blocks[1].bottlenecks[0].adapter;
    let leaf = |id| pass.matrix(id).autodiff().require_grad();
    let (down, up) = (leaf(bottleneck.down), leaf(bottleneck.up));
    assert_eq!((down.dims(), up.dims()), ([8, 32], [32, 8]));
    let expected_input = x.autodiff().require_grad();
    let u = bare.forward(expected_input.clone(), &inputs, &pass, None).output;
    let norm_weight = pass.vector(bare.mlp_norm.unwrap().weight).autodiff();
    let expected = bottleneck_reference(u.clone(), norm_weight, down.clone(), up.clone());
    let graph = (expected.clone() * weight.autodiff()).sum().backward();

    let change = distance(&host(&expected.clone().inner()), &host(&u.inner()));
    assert!(
        change > 0.01 * norm(&host(&expected.clone().inner())),
        "it changes something: {change}"
    );
    assert_near(&host(&output.inner()), &host(&expected.inner()), 1e-5, "output");
    assert_near(
        &host(&input_gradient),
        &host(&expected_input.grad(&graph).unwrap()),
        1e-4,
        "input",
    );
    for (leaf, part) in [(down, "adapter_down"), (up, "adapter_up")] {
        let found = gradient(&adapted, &gradients, &format!("model.layers.1.{part}.weight"));
        assert_near(&found, &host(&leaf.grad(&graph).unwrap()), 1e-4, part);
    }
}

#[test]
fn a_vector_in_closed_form_is_the_difference_of_mean_states() {
    let languages = ["en", "hi", "sw"];
    let samples: Vec<TokenizedSample> = (0..9)
        .map(|index| TokenizedSample {
            input_ids: sequence(index),
            labels: vec![-100; sequence(index).len()],
            language: (index % 3) as u32,
            ..TokenizedSample::default()
        })
        .collect();
    let dataset = Dataset::in_memory(&languages, &samples).unwrap();
    let data = Prepared {
        train: dataset.clone(),
        heldout: None,
        auxiliary: BTreeMap::from([("parallel".to_owned(), dataset)]),
        report: Default::default(),
    };
    let recipe = Recipe {
        fit: Some(Fit::ClosedForm),
        source: Some("parallel".to_owned()),
        anchor: Some("en".to_owned()),
        ..recipe(AdapterKind::Steering)
    };
    assert_eq!(closed_form::languages(&recipe, &data), ["hi", "sw"]);
    let mut steered = model("llama", false);
    for language in ["hi", "sw"] {
        attach_new(&mut steered, &recipe, 3, Some(language)).unwrap();
    }
    closed_form::fit(&mut steered, &recipe, &data).unwrap();

    let base = model("llama", false);
    let mean = |language: usize| -> Vec<f32> {
        let mut sum = vec![0.0f64; 32];
        for index in (0..9).filter(|index| index % 3 == language) {
            let ids = sequence(index);
            let positions: Vec<u32> = (0..ids.len() as u32).collect();
            let boundaries = [0, ids.len()];
            let inputs = Inputs::new(
                &base.config,
                &ids,
                &positions,
                &boundaries,
                RopeLength::Own,
                &base.device,
            );
            let states = host(&base.hidden_states(&inputs)[2]);
            for (place, value) in states.iter().enumerate() {
                sum[place % 32] += f64::from(*value) / ids.len() as f64 / 3.0;
            }
        }
        sum.into_iter().map(|value| value as f32).collect()
    };
    let english = mean(0);
    for (language, number) in [("hi", 1), ("sw", 2)] {
        let expected: Vec<f32> = english
            .iter()
            .zip(mean(number))
            .map(|(one, other)| one - other)
            .collect();
        let id = steered
            .parameters
            .find(&format!("model.layers.1.steering_vector.{language}"))
            .unwrap();
        assert_near(&host(&steered.parameters.get(id).values()), &expected, 1e-4, language);
    }

    let mut single = model("llama", false);
    attach_new(&mut single, &recipe, 3, None).unwrap();
    let error = closed_form::fit(&mut single, &recipe, &data).unwrap_err().to_string();
    assert!(
        error.contains("2 languages besides en") && error.contains("adapter.route"),
        "{error}"
    );
    let elsewhere = Recipe {
        anchor: Some("fr".to_owned()),
        ..recipe
    };
    let error = closed_form::fit(&mut steered, &elsewhere, &data)
        .unwrap_err()
        .to_string();
    assert!(error.contains("no row in fr"), "{error}");
}

#[test]
fn low_rank_and_rescaled_rows_share_a_layer() {
    let mut mixed = model("llama", false);
    attach_new(&mut mixed, &recipe(AdapterKind::Dora), 3, Some("en")).unwrap();
    attach_new(&mut mixed, &recipe(AdapterKind::Lora), 3, Some("sw")).unwrap();
    assert!(matches!(
        mixed.blocks[0].linears()[0].adapters[1].adapter,
        Adapter::Lora(_)
    ));
    disturb(&mut mixed);
    let (together, _) = step(&mixed, &[0, 1, 2]);
    let mut apart = Vec::new();
    (0..3).for_each(|index| apart.extend(step(&mixed, &[index]).0));
    assert_near(&together, &apart, 1e-5, "each row on its own");
}
