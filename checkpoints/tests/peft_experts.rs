//! LoRA on experts: what is filled in for PEFT changes nothing that the adapter computes, and what PEFT stacks is found again.

#![cfg(test)]

use std::collections::BTreeMap;
use std::path::Path;

use interlingua_checkpoints::config::ModelConfig;
use interlingua_checkpoints::dtype::HostTensor;
use interlingua_checkpoints::peft::{AdapterConfig, AdapterFolder};
use interlingua_checkpoints::peft_experts::{Tensors, for_peft};
use serde_json::{Value, json};

fn model() -> ModelConfig {
    let json = json!({
        "architectures": ["Qwen3MoeForCausalLM"], "vocab_size": 10, "hidden_size": 4, "intermediate_size": 6,
        "moe_intermediate_size": 3, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "num_experts": 2, "num_experts_per_tok": 1, "mlp_only_layers": [0]
    });
    ModelConfig::from_json(&json, Path::new("config.json")).unwrap()
}

fn config(rank: usize, rslora: bool) -> AdapterConfig {
    AdapterConfig {
        base_model: "base".into(),
        rank,
        alpha: 6.0,
        dropout: 0.1,
        target_modules: json!(["q_proj", "gate_proj"]),
        modules_to_save: Vec::new(),
        use_rslora: rslora,
        use_dora: false,
        alpha_pattern: [("model.layers.1.self_attn.q_proj".to_owned(), 2.0)].into(),
        target_parameters: Vec::new(),
    }
}

fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count)
        .map(|index| ((index * 7 + seed * 5) % 11) as f32 / 4.0 - 1.0)
        .collect()
}

fn adapter(module: &str, [outputs, inputs]: [usize; 2], rank: usize, seed: usize) -> Tensors {
    let a = HostTensor::from_f32(vec![rank, inputs], &numbers(rank * inputs, seed));
    let b = HostTensor::from_f32(vec![outputs, rank], &numbers(outputs * rank, seed + 1));
    vec![
        (format!("{module}.lora_A.weight"), a),
        (format!("{module}.lora_B.weight"), b),
    ]
}

/// What each module's adapter adds to its weight.
fn changes(config: &AdapterConfig, tensors: &BTreeMap<String, HostTensor>) -> BTreeMap<String, Vec<f64>> {
    let modules = tensors.keys().filter_map(|name| name.strip_suffix(".lora_A.weight"));
    let change = |module: &str| {
        let of = |part: &str| &tensors[&format!("{module}.lora_{part}.weight")];
        let (a, b) = (of("A"), of("B"));
        let (rank, inputs) = (a.shape[0], a.shape[1]);
        let scale = config.alpha_of(module)
            / if config.use_rslora {
                (rank as f64).sqrt()
            } else {
                rank as f64
            };
        let (a, b) = (a.to_f32(), b.to_f32());
        let mut change = Vec::new();
        for row in b.chunks_exact(rank) {
            for column in 0..inputs {
                let terms = row
                    .iter()
                    .enumerate()
                    .map(|(k, b)| f64::from(*b) * f64::from(a[k * inputs + column]));
                change.push(scale * terms.sum::<f64>());
            }
        }
        change
    };
    modules.map(|module| (module.to_owned(), change(module))).collect()
}

#[test]
fn what_is_filled_in_for_peft_changes_nothing() {
    let model = model();
    for rslora in [false, true] {
        let mut tensors = adapter("model.layers.0.self_attn.q_proj", [4, 4], 2, 1);
        tensors.extend(adapter("model.layers.1.self_attn.q_proj", [4, 4], 3, 2));
        tensors.extend(adapter("model.layers.0.mlp.gate_proj", [6, 4], 2, 3));
        tensors.extend(adapter("model.layers.1.mlp.experts.1.gate_proj", [3, 4], 2, 4));
        tensors.extend(adapter("model.layers.1.mlp.gate", [2, 4], 1, 5));
        let mut config = config(2, rslora);
        let before = changes(&config, &tensors.iter().cloned().collect());
        let tensors = for_peft(&mut config, tensors, &model);
        assert_eq!((config.dropout, config.use_rslora), (0.0, false));
        assert_eq!(config.target_parameters, ["mlp.gate_proj.weight"]);
        let after = changes(&config, &tensors.iter().cloned().collect());
        for (module, change) in &after {
            let zeros = vec![0.0; change.len()];
            let expected = before.get(module).unwrap_or(&zeros);
            for (found, expected) in change.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-5, "{module}: {found} is not {expected}");
            }
        }
        // All projections of all experts, and the router, at one rank.
        let of_experts = tensors.iter().filter(|(name, _)| name.contains("mlp.experts."));
        assert_eq!(of_experts.clone().count(), 2 * 3 * 2);
        let ranks = tensors
            .iter()
            .filter(|(name, _)| name.contains("layers.1.mlp") && name.ends_with("lora_A.weight"));
        assert!(
            ranks.clone().all(|(_, tensor)| tensor.shape[0] == 2),
            "{:?}",
            ranks.collect::<Vec<_>>()
        );
    }
}

#[test]
fn an_adapter_without_experts_stays_as_it_is() {
    let mut config = config(2, true);
    let (before, tensors) = (config.clone(), adapter("model.layers.0.self_attn.q_proj", [4, 4], 2, 1));
    assert_eq!(for_peft(&mut config, tensors.clone(), &model()), tensors);
    assert_eq!(config, before);
}

/// The layout of PEFT under Transformers 5: all experts of a block in one tensor.
#[test]
fn stacked_experts_are_taken_apart() {
    let model = model();
    let outer = "model.layers.1.mlp.experts";
    let stacked = |config: Value, tensors: Tensors| {
        let folder = tempfile::tempdir().unwrap();
        AdapterFolder::write(folder.path(), &self::config(2, false), tensors, "").unwrap();
        std::fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
        AdapterFolder::open(folder.path()).unwrap().on(&model)
    };
    let settings = |parameters: &[&str]| {
        json!({"peft_type": "LORA", "r": 1, "lora_alpha": 3.0, "target_modules": [], "bias": "none",
               "target_parameters": parameters, "alpha_pattern": {".*\\.gate_up_proj": 8.0}, "rank_pattern": {".*\\.gate_up_proj": 2}})
    };
    let tensor = |rows: usize, columns: usize| HostTensor::from_f32(vec![rows, columns], &numbers(rows * columns, 3));
    let name = |path: &str, part: &str| format!("{path}.lora_{part}.weight");
    let inner = format!("{outer}.base_layer");
    // Two experts; gate and up at rank 2, down at rank 1.
    let tensors = vec![
        (name(&inner, "A"), tensor(4, 4)),
        (name(&inner, "B"), tensor(6, 4)),
        (name(outer, "A"), tensor(2, 3)),
        (name(outer, "B"), tensor(4, 2)),
    ];
    let folder = stacked(settings(&["gate_up_proj", "down_proj"]), tensors.clone()).unwrap();
    let b = tensor(6, 4).to_f32();
    for (expert, projection, first) in [
        (0, "gate_proj", 0),
        (1, "gate_proj", 0),
        (0, "up_proj", 3),
        (1, "up_proj", 3),
    ] {
        let module = format!("{outer}.{expert}.{projection}");
        assert_eq!(
            (folder.rank_of(&module), folder.config().alpha_of(&module)),
            (Some(2), 8.0)
        );
        let found = folder.read_f32(&format!("{module}.lora_B.weight"), &[3, 2]).unwrap();
        for row in 0..3 {
            for rank in 0..2 {
                assert_eq!(
                    found[row * 2 + rank],
                    b[(first + row) * 4 + rank * 2 + expert],
                    "{module}"
                );
            }
        }
        let a = folder.read_f32(&format!("{module}.lora_A.weight"), &[2, 4]).unwrap();
        assert_eq!(a, tensor(4, 4).to_f32()[expert * 8..(expert + 1) * 8]);
    }
    let down = format!("{outer}.1.down_proj");
    assert_eq!((folder.rank_of(&down), folder.config().alpha_of(&down)), (Some(1), 3.0));

    // One parameter alone has no inner layer, and only the targets say which it is.
    let alone = vec![(name(outer, "A"), tensor(4, 4)), (name(outer, "B"), tensor(6, 4))];
    let folder = stacked(settings(&["mlp.experts.gate_up_proj"]), alone).unwrap();
    assert_eq!(folder.rank_of(&format!("{outer}.0.up_proj")), Some(2));
    assert_eq!(folder.rank_of(&format!("{outer}.0.down_proj")), None);

    // Of another number of experts.
    let odd = vec![(name(outer, "A"), tensor(3, 3)), (name(outer, "B"), tensor(4, 3))];
    let error = stacked(settings(&["down_proj"]), odd).unwrap_err().to_string();
    assert!(
        error.contains("3 rows, which is no multiple of the model's 2 experts"),
        "{error}"
    );
}
