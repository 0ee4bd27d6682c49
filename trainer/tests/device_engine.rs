//! The engine on a device with a memory of its own, which CubeCL's CPU runtime stands in for: quantised weights there or brought a
//! block ahead, block inputs on the host or not, against the same model on the CPU.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

use std::path::Path;

use burn::tensor::{DType, Device};
use interlingua_checkpoints::model_folder::ModelFolder;
use interlingua_checkpoints::packed::{Quantization, Scheme};
use interlingua_recipes::Adapter;
use interlingua_trainer::adapters::fresh::attach_new;
use interlingua_trainer::engine::gradients::Gradients;
use interlingua_trainer::engine::head::Targets;
use interlingua_trainer::engine::inputs::{Inputs, RopeLength};
use interlingua_trainer::engine::keeping::Keeping;
use interlingua_trainer::engine::step::forward_backward;
use interlingua_trainer::models::load::{Storage, Weights, load};

/// Log-probabilities, and the gradients of every trained parameter.
fn step(device: &Device, offload_weights: bool, keeping: Keeping) -> Vec<Vec<f32>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models/llama");
    let folder = ModelFolder::open(&path).unwrap();
    let storage = Storage {
        quantization: Some(Quantization {
            scheme: Scheme::Nf4 {
                block: 64,
                double: true,
            },
            head: false,
        }),
        offload: offload_weights,
        ..Storage::frozen(DType::F32, device)
    };
    let mut model = load(folder.config(), &Weights::Folder(&folder), &storage).unwrap();
    let adapter = Adapter {
        rank: 4,
        alpha: 8.0,
        dropout: 0.1,
        ..Adapter::default()
    };
    attach_new(&mut model, &adapter, 3, None).unwrap();
    let ids: Vec<u32> = (0..24).map(|token| (token * 13) % 97 + 4).collect();
    let positions: Vec<u32> = (0..10).chain(0..14).collect();
    let boundaries = [0, 10, 24];
    let inputs = Inputs::new(&model.config, &ids, &positions, &boundaries, RopeLength::Own, device);
    let inputs = inputs.with_dropout(5, 2, &[40, 41]);
    let labels: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
    let targets = Targets::of_labels(&labels, &boundaries);
    let mut gradients = Gradients::default();
    let weights = vec![0.1; targets.len()];
    let log_probs = forward_backward(&model, &inputs, &targets, &weights, keeping, &mut gradients);
    let host = gradients
        .iter()
        .map(|(_, gradient)| gradient.clone().into_data().iter::<f32>().collect());
    std::iter::once(log_probs).chain(host).collect()
}

#[test]
fn weights_and_inputs_may_live_on_either_side() {
    let expected = step(&Device::flex(), false, Keeping::default());
    assert!(expected.len() > 10);
    let made_again = Keeping {
        recompute: true,
        ..Keeping::default()
    };
    let on_the_host = Keeping {
        offload: true,
        ..made_again
    };
    for (offload_weights, keeping) in [(false, Keeping::default()), (false, on_the_host), (true, made_again)] {
        let found = step(&Device::cpu(), offload_weights, keeping);
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            let distance = |one: &[f32], other: &[f32]| -> f32 {
                one.iter()
                    .zip(other)
                    .map(|(one, other)| (one - other).powi(2))
                    .sum::<f32>()
                    .sqrt()
            };
            let norm = distance(expected, &vec![0.0; expected.len()]);
            assert!(
                distance(found, expected) <= 1e-3 * norm.max(1e-3),
                "weights offloaded: {offload_weights}, {keeping:?}"
            );
        }
    }
}
