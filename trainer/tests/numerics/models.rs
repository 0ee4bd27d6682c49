//! Models: forward, loss and gradients of all parameters as in Transformers.

use interlingua_trainer::engine::gradients::Gradients;
use interlingua_trainer::models::Model;
use interlingua_trainer::verify::{Tolerance, verify};

use crate::fixtures::{
    MODELS, batch, check_loss_and_gradients, gradient_bits, json, loss_and_gradients, model, path, tensors,
};

#[test]
fn logits_hidden_states_and_loss_are_those_of_transformers() {
    for (name, golden) in MODELS.iter().map(|name| (*name, *name)).chain([
        ("llama_dynamic", "llama_dynamic.padded"),
        ("phi3_longrope", "phi3_longrope.long"),
    ]) {
        let tolerance = json(&format!("models/{golden}.golden.json"))["tolerance"]["logits"]
            .as_f64()
            .unwrap();
        let file = path(&format!("models/{golden}.golden.safetensors"));
        let model = model(name, false);
        let comparisons = verify(
            &model,
            &file,
            Tolerance {
                atol: tolerance,
                rtol: 0.0,
            },
        )
        .unwrap();
        assert_eq!(
            comparisons.len(),
            model.blocks.len() + 3,
            "{golden}: states, logits and loss are compared"
        );
        for comparison in comparisons {
            assert_eq!(comparison.beyond, 0, "{golden}: {comparison:?}");
        }
    }
}

/// A comparison that cannot fail proves nothing.
#[test]
fn another_model_does_not_pass() {
    let mut wrong = model("llama", false);
    wrong.config.ropes[0].theta *= 3.0;
    let file = path("models/llama.golden.safetensors");
    let comparisons = verify(&wrong, &file, Tolerance { atol: 2e-4, rtol: 0.0 }).unwrap();
    assert!(comparisons.last().unwrap().beyond > 0, "{comparisons:?}");
}

#[test]
fn gradients_of_all_parameters_are_those_of_transformers() {
    for name in MODELS {
        let model = model(name, true);
        let gradients = check_loss_and_gradients(&model, &format!("models/{name}.golden"), "");
        assert_eq!(
            gradients.iter().count(),
            model
                .parameters
                .iter()
                .filter(|(_, parameter)| !parameter.frozen)
                .count(),
            "{name}: every parameter gets a gradient"
        );
    }
}

#[test]
fn recomputation_changes_no_bit_of_a_gradient() {
    for name in MODELS {
        let model = model(name, true);
        let batch = batch(&model, &tensors(&format!("models/{name}.golden.safetensors")));
        let (loss, kept) = loss_and_gradients(&model, &batch, false);
        let (again, recomputed) = loss_and_gradients(&model, &batch, true);
        assert_eq!(loss.to_bits(), again.to_bits(), "{name}");
        assert!(
            gradient_bits(&model, &kept) == gradient_bits(&model, &recomputed),
            "{name}"
        );
    }
}

/// Whatever part of a model is trained, its gradients are those it gets when all of it is.
#[test]
fn freezing_changes_no_gradient_of_the_rest() {
    let select = |model: &mut Model, chosen: &dyn Fn(&str) -> bool| {
        let names: Vec<_> = model
            .parameters
            .iter()
            .map(|(id, parameter)| (id, parameter.name.clone()))
            .collect();
        for (id, name) in names {
            model.parameters.set_trainable(id, chosen(&name));
        }
    };
    type Choice = (&'static str, fn(&str) -> bool);
    let choices: [Choice; 6] = [
        ("the embedding", |name| name.contains("embed_tokens")),
        ("the head", |name| name.contains("lm_head")),
        ("the final norm", |name| name == "model.norm.weight"),
        ("the last block", |name| name.contains("layers.1.")),
        ("one matrix of the first block", |name| {
            name == "model.layers.0.mlp.up_proj.weight"
        }),
        ("all norms", |name| name.contains("norm")),
    ];
    for name in ["qwen3", "qwen2"] {
        let mut model = model(name, true);
        let batch = batch(&model, &tensors(&format!("models/{name}.golden.safetensors")));
        let (_, all) = loss_and_gradients(&model, &batch, false);
        let all = gradient_bits(&model, &all);
        for (what, chosen) in choices {
            let expected: Vec<_> = all.iter().filter(|(name, _)| chosen(name)).cloned().collect();
            select(&mut model, &chosen);
            for recompute in [false, true] {
                let found: Gradients = loss_and_gradients(&model, &batch, recompute).1;
                assert!(
                    gradient_bits(&model, &found) == expected,
                    "{name}: {what}, recompute {recompute}"
                );
            }
        }
    }
}
