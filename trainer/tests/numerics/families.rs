//! What holds for every family: blocks in tiles, packed rows, routers and their loss.

use burn::tensor::Tensor;
use interlingua_trainer::engine::forward::Forward;
use interlingua_trainer::engine::gradients::Gradients;
use interlingua_trainer::engine::inputs::{Inputs, RopeLength};
use interlingua_trainer::engine::keeping::Keeping;
use interlingua_trainer::engine::routing::ExpertUse;
use interlingua_trainer::models::Model;
use interlingua_trainer::objectives::router::balance;

use crate::fixtures::{MODELS, batch, distance, gradient, host, json, model, norm, tensors, values};
use crate::stacks::tiled;

/// Models with mixtures of experts.
const ROUTED: [&str; 2] = ["mixtral", "qwen3_moe"];

#[test]
fn blocks_of_every_family_give_the_same_in_tiles() {
    for name in MODELS {
        let model = model(name, true);
        let (inputs, _) = batch(&model, &tensors(&format!("models/{name}.golden.safetensors")));
        let block = model.blocks.len() - 1;
        let whole = tiled(&model, block, &inputs, usize::MAX);
        for size in [5, 16] {
            let tiles = tiled(&model, block, &inputs, size);
            assert_eq!(tiles.len(), whole.len(), "{name}");
            // The gradient of a key's bias is zero but for rounding.
            let largest = whole.values().map(|values| norm(values)).fold(0.0, f64::max);
            for (what, values) in &whole {
                let off = distance(&tiles[what], values);
                let limit = 2e-5 * norm(values).max(1e-2 * largest);
                assert!(
                    off <= limit,
                    "{name}, tiles of {size}, {what}: off by {off}, at most {limit}"
                );
            }
        }
    }
}

/// Sequences of these lengths, with other tokens each.
fn inputs(model: &Model, lengths: &[usize]) -> Inputs {
    let (mut ids, mut positions, mut boundaries) = (Vec::new(), Vec::new(), vec![0]);
    for length in lengths {
        ids.extend((0..*length).map(|index| ((index * 37 + length * 11) % 90) as u32));
        positions.extend(0..*length as u32);
        boundaries.push(ids.len());
    }
    let own = RopeLength::Own;
    Inputs::new(&model.config, &ids, &positions, &boundaries, own, &model.device)
}

#[test]
fn a_packed_row_is_its_sequences_one_by_one() {
    for name in MODELS {
        let model = model(name, false);
        let lengths = [5, 17, 1, 20, 9];
        let hidden_size = model.config.hidden_size;
        let packed = host(&model.last_hidden_state(&inputs(&model, &lengths), None));
        let mut start = 0;
        for length in lengths {
            let alone = host(&model.last_hidden_state(&inputs(&model, &[length]), None));
            let found = &packed[start * hidden_size..(start + length) * hidden_size];
            let off = distance(found, &alone);
            assert!(off <= 1e-5 * norm(&alone), "{name}, {length} tokens: off by {off}");
            start += length;
        }
    }
}

#[test]
fn the_router_loss_and_its_gradients_are_those_of_transformers() {
    let file = tensors("router/router.safetensors");
    let facts = json("router/router.json");
    for name in ROUTED {
        let model = model(name, true);
        let facts = &facts["models"][name];
        let golden = file
            .names()
            .filter_map(|tensor| Some(tensor.strip_prefix(&format!("{name}."))?.to_owned()));
        let golden: Vec<String> = golden.collect();
        let (shape, ids) = file.read_integers(&format!("{name}.input_ids")).unwrap();
        let (_, mask) = file.read_integers(&format!("{name}.attention_mask")).unwrap();
        let width = shape[1];
        let places: Vec<usize> = (0..ids.len()).filter(|place| mask[*place] == 1).collect();
        let tokens: Vec<u32> = places.iter().map(|place| ids[*place] as u32).collect();
        let positions: Vec<u32> = places.iter().map(|place| (place % width) as u32).collect();
        let boundaries: Vec<usize> = (0..=shape[0])
            .map(|row| places.partition_point(|place| *place < row * width))
            .collect();
        let length = RopeLength::Fixed(width);
        let inputs = Inputs::new(&model.config, &tokens, &positions, &boundaries, length, &model.device);

        for recompute in [false, true] {
            let keeping = Keeping {
                recompute,
                ..Keeping::default()
            };
            let last = model.blocks.len();
            let forward = Forward::run(&model, &inputs, &[last], keeping);
            let (loss, derivative) = balance(forward.routing()).unwrap();
            let expected = facts["batch"]["loss"].as_f64().unwrap();
            assert!(
                (loss - expected).abs() < 2e-6 * expected,
                "{name}: {loss} is not {expected}"
            );
            for (row, range) in boundaries.windows(2).enumerate() {
                let mut used = ExpertUse::default();
                let routing: Vec<_> = forward.routing().cloned().collect();
                used.add(&routing, &(range[0]..range[1]));
                let counts: Vec<Vec<u64>> = used.counts.into_iter().filter(|counts| !counts.is_empty()).collect();
                let expected: Vec<Vec<u64>> = serde_json::from_value(facts["chosen"][row].clone()).unwrap();
                assert_eq!(counts, expected, "{name}, row {row}");
            }

            let zeros: Tensor<2> = forward.hidden(last).zeros_like();
            let mut gradients = Gradients::default();
            let derivative: Vec<f32> = derivative.iter().map(|value| *value as f32).collect();
            forward.backward_with_routers(vec![(last, zeros)], Some(&derivative), &mut gradients);
            let mut compared = 0;
            for parameter in golden
                .iter()
                .filter_map(|tensor| tensor.strip_prefix("batch.gradient."))
            {
                let expected = values(&file, &format!("{name}.batch.gradient.{parameter}"));
                let found = gradient(&model, &gradients, parameter);
                let off = distance(&found, &expected);
                assert!(off <= 1e-4 * norm(&expected), "{name}, {parameter}: off by {off}");
                compared += 1;
            }
            assert_eq!(compared, 3, "{name}");
        }
    }
}

#[test]
fn an_expert_that_no_token_passes_through_gets_no_gradient() {
    let model = model("mixtral", true);
    let inputs = inputs(&model, &[1]);
    let last = model.blocks.len();
    let forward = Forward::run(&model, &inputs, &[last], Keeping::default());
    let chosen: Vec<u16> = forward.routing().next().unwrap().choices.experts.to_vec();
    let ones = forward.hidden(last).ones_like();
    let mut gradients = Gradients::default();
    forward.backward(vec![(last, ones)], &mut gradients);
    for expert in 0..3 {
        let name = format!("model.layers.0.block_sparse_moe.experts.{expert}.w1.weight");
        let id = model.parameters.find(&name).unwrap();
        assert_eq!(gradients.get(id).is_some(), chosen.contains(&expert), "{name}");
    }
}
