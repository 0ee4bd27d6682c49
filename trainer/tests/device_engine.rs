//! The engine on a device with a memory of its own, which CubeCL's CPU runtime stands in for, against the same model on the CPU:
//! quantised weights there or brought a block ahead, block inputs on the host or not, and models of other families.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

use std::collections::BTreeMap;
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
use interlingua_trainer::models::Model;
use interlingua_trainer::models::load::{Storage, Weights, load};

const MADE_AGAIN: Keeping = Keeping {
    recompute: true,
    half: false,
    offload: false,
};

const ON_THE_HOST: Keeping = Keeping {
    recompute: true,
    half: false,
    offload: true,
};

/// Log-probabilities, and the gradient of every trained parameter by its name.
type Step = BTreeMap<String, Vec<f32>>;

fn model(name: &str, storage: &Storage) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures/models")
        .join(name);
    let folder = ModelFolder::open(&path).unwrap();
    load(folder.config(), &Weights::Folder(&folder), storage).unwrap()
}

fn step(model: &Model, keeping: Keeping) -> Step {
    let ids: Vec<u32> = (0..24).map(|token| (token * 13) % 89 + 4).collect();
    let positions: Vec<u32> = (0..10).chain(0..14).collect();
    let boundaries = [0, 10, 24];
    let inputs = Inputs::new(
        &model.config,
        &ids,
        &positions,
        &boundaries,
        RopeLength::Own,
        &model.device,
    );
    let inputs = inputs.with_dropout(5, 2, &[40, 41]);
    let labels: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
    let targets = Targets::of_labels(&labels, &boundaries);
    let mut gradients = Gradients::default();
    let weights = vec![0.1; targets.len()];
    let log_probs = forward_backward(model, &inputs, &targets, &weights, keeping, &mut gradients);
    let host = gradients.iter().map(|(id, gradient)| {
        let name = model.parameters.get(id).name.clone();
        (name, gradient.clone().into_data().iter::<f32>().collect())
    });
    std::iter::once(("log-probabilities".to_owned(), log_probs))
        .chain(host)
        .collect()
}

/// A step of an adapter over quantised weights.
fn quantized(name: &str, device: &Device, offload_weights: bool, keeping: Keeping) -> Step {
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
    let mut model = model(name, &storage);
    let adapter = Adapter {
        rank: 4,
        alpha: 8.0,
        dropout: 0.1,
        ..Adapter::default()
    };
    attach_new(&mut model, &adapter, 3, None).unwrap();
    step(&model, keeping)
}

/// A step of all weights.
fn whole(name: &str, device: &Device, keeping: Keeping) -> Step {
    let storage = Storage {
        trainable: &|_| true,
        ..Storage::frozen(DType::F32, device)
    };
    step(&model(name, &storage), keeping)
}

fn assert_near(found: &Step, expected: &Step, case: &str) {
    assert!(expected.len() > 10, "{case}");
    assert!(found.keys().eq(expected.keys()), "{case}: other gradients");
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|value| value * value).sum::<f32>().sqrt();
    for (name, expected) in expected {
        let found = &found[name];
        assert_eq!(found.len(), expected.len(), "{case}, {name}");
        let off = norm(&mut found.iter().zip(expected).map(|(one, other)| one - other));
        let allowed = 1e-3 * norm(&mut expected.iter().copied()).max(1e-3);
        assert!(off <= allowed, "{case}, {name}: off by {off}, at most {allowed}");
    }
}

#[test]
fn weights_and_inputs_may_live_on_either_side() {
    for name in ["llama", "mixtral"] {
        let expected = quantized(name, &Device::flex(), false, Keeping::default());
        for (offload_weights, keeping) in [(false, Keeping::default()), (false, ON_THE_HOST), (true, MADE_AGAIN)] {
            let found = quantized(name, &Device::cpu(), offload_weights, keeping);
            let case = format!("{name}, weights offloaded: {offload_weights}, {keeping:?}");
            assert_near(&found, &expected, &case);
        }
    }
}

/// Each of these has what the others lack; together they run every operation that blocks are made of.
#[test]
fn every_kind_of_block_trains_as_on_the_cpu() {
    for name in [
        "apertus",
        "bloom",
        "cohere2",
        "gemma2",
        "gpt_bigcode",
        "gpt_neox",
        "mixtral",
        "phi3",
    ] {
        let expected = whole(name, &Device::flex(), Keeping::default());
        for keeping in [Keeping::default(), MADE_AGAIN] {
            let found = whole(name, &Device::cpu(), keeping);
            assert_near(&found, &expected, &format!("{name}, {keeping:?}"));
        }
    }
}
