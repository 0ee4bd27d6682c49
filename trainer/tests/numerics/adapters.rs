//! LoRA, rsLoRA and DoRA as in PEFT: forward, loss, gradients and merged weights.

use std::collections::BTreeSet;

use burn::tensor::Tensor;
use interlingua_trainer::adapters::Adapter;
use interlingua_trainer::verify::{Tolerance, verify};

use crate::fixtures::{
    adapted, batch, check_loss_and_gradients, gradient_bits, host, json, loss_and_gradients, model, path, tensors,
    values,
};

const ADAPTERS: [&str; 22] = [
    "apertus.all_linear",
    "bloom.all_linear",
    "cohere.all_linear",
    "gemma2.all_linear",
    "gemma3.all_linear",
    "gpt_bigcode.all_linear",
    "gpt_neox.all_linear",
    "mixtral.all_linear",
    "mixtral.experts",
    "olmo2.all_linear",
    "phi3.all_linear",
    "qwen3_moe.all_linear",
    "qwen3_moe.experts",
    "smollm3.all_linear",
    "xglm.all_linear",
    "llama.lora",
    "llama.rslora",
    "llama.dora",
    "llama.lora_head",
    "qwen2.lora",
    "qwen2.rslora",
    "qwen2.dora",
];

#[test]
fn logits_and_loss_are_those_of_peft() {
    for name in ADAPTERS {
        let tolerance = json(&format!("lora/{name}.golden.json"))["tolerance"]["logits"]
            .as_f64()
            .unwrap();
        let file = path(&format!("lora/{name}.golden.safetensors"));
        // Dropout acts while training only, so that whatever it is set to changes nothing here.
        let comparisons = verify(
            &adapted(name, 0.5),
            &file,
            Tolerance {
                atol: tolerance,
                rtol: 0.0,
            },
        )
        .unwrap();
        assert_eq!(comparisons.len(), 2, "{name}: logits and loss are compared");
        for comparison in comparisons {
            assert_eq!(comparison.beyond, 0, "{name}: {comparison:?}");
        }
    }
}

#[test]
fn all_linear_is_what_peft_takes() {
    for name in ADAPTERS.iter().filter(|name| name.ends_with(".all_linear")) {
        let facts = json(&format!("lora/{name}.golden.json"));
        let model = model(name.split('.').next().unwrap(), false);
        let chosen = model.linears().map(|linear| linear.name.clone());
        let chosen: BTreeSet<String> = chosen.filter(|name| model.config.is_all_linear(name)).collect();
        // PEFT lists stacked experts and routers as parameters: all three projections of each expert.
        let routed: BTreeSet<String> = model
            .config
            .blocks
            .iter()
            .filter(|block| block.mlp.experts().is_some())
            .flat_map(|block| block.mlp.linears().into_iter().map(|linear| linear.path.clone()))
            .collect();
        let parameters = facts["target_parameters"].as_array().unwrap().len();
        let blocks = model.config.blocks.iter().filter(|block| block.mlp.experts().is_some());
        assert_eq!(parameters, 3 * blocks.count(), "{name}");
        assert!(routed.is_subset(&chosen), "{name}");
        let targets: BTreeSet<String> = serde_json::from_value(facts["targets"].clone()).unwrap();
        let others: BTreeSet<String> = chosen.difference(&routed).cloned().collect();
        assert_eq!(others, targets, "{name}");
    }
}

#[test]
fn gradients_are_those_of_peft() {
    // What PEFT stacks for all experts has one A for gate and up, and here each has its own.
    let stacked = |name: &&str| ["mixtral.all_linear", "qwen3_moe.all_linear"].contains(name);
    for name in ADAPTERS.iter().filter(|name| !stacked(name)) {
        let model = adapted(name, 0.0);
        let gradients = check_loss_and_gradients(&model, &format!("lora/{name}.golden"), "base_model.model.");
        let trained = model.parameters.trainable().count();
        assert_eq!(
            gradients.iter().count(),
            trained,
            "{name}: every trained parameter gets a gradient, and no other"
        );
    }
}

#[test]
fn recomputation_changes_no_bit_of_a_gradient_with_dropout_on() {
    for name in [
        "llama.lora",
        "qwen2.rslora",
        "qwen2.dora",
        "llama.lora_head",
        "mixtral.experts",
        "bloom.all_linear",
        "phi3.all_linear",
    ] {
        let model = adapted(name, 0.3);
        let (inputs, targets) = batch(&model, &tensors(&format!("lora/{name}.golden.safetensors")));
        let (whole, _) = loss_and_gradients(&model, &(inputs, targets.clone()), false);
        let dropped = || {
            let (inputs, _) = batch(&model, &tensors(&format!("lora/{name}.golden.safetensors")));
            (inputs.with_dropout(7, 3, &[11, 5, 8]), targets.clone())
        };
        let (loss, kept) = loss_and_gradients(&model, &dropped(), false);
        let (again, recomputed) = loss_and_gradients(&model, &dropped(), true);
        assert!((loss - whole).abs() > 1e-4, "{name}: dropout is on");
        assert_eq!(loss.to_bits(), again.to_bits(), "{name}");
        assert!(
            gradient_bits(&model, &kept) == gradient_bits(&model, &recomputed),
            "{name}"
        );
    }
}

#[test]
fn merged_weights_are_those_of_peft() {
    for name in ADAPTERS {
        let file = tensors(&format!("lora/{name}.golden.safetensors"));
        let tolerance = json(&format!("lora/{name}.golden.json"))["tolerance"]["merged_weight"]
            .as_f64()
            .unwrap();
        let model = adapted(name, 0.0);
        let names: Vec<String> = file.names().filter(|name| name.starts_with("merged.")).collect();
        assert!(!names.is_empty());
        for tensor in names {
            let path = tensor.strip_prefix("merged.").unwrap();
            let linear = model
                .linears()
                .find(|linear| format!("{}.weight", linear.name).ends_with(path))
                .unwrap();
            let parameter = model.parameters.get(linear.weight);
            let base: Tensor<2> = parameter.values().reshape([parameter.shape[0], parameter.shape[1]]);
            let merged = match linear.adapters.first().map(|adapter| &adapter.adapter) {
                Some(Adapter::Lora(lora)) => base + lora.delta(&model.parameters),
                Some(Adapter::Dora(dora)) => dora.merged(base, &model.parameters),
                None => base,
            };
            for (found, expected) in host(&merged).into_iter().zip(values(&file, &tensor)) {
                assert!(
                    f64::from((found - expected).abs()) <= tolerance,
                    "{name}: {tensor}: {found}, expected {expected}"
                );
            }
        }
    }
}
