//! What a `config.json` leaves out is what Transformers' configuration classes and modelling code fill in.

#![cfg(test)]

use std::path::Path;

use interlingua_checkpoints::config::ModelConfig;
use serde_json::{Value, json};

fn config(architecture: &str, more: Value) -> ModelConfig {
    let mut json = json!({
        "architectures": [architecture], "vocab_size": 100, "hidden_size": 2048, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 64
    });
    if let (Some(map), Some(more)) = (json.as_object_mut(), more.as_object()) {
        map.extend(more.clone());
    }
    ModelConfig::from_json(&json, Path::new("config.json")).unwrap()
}

#[test]
fn absent_keys_have_the_defaults_of_the_family() {
    let families = [
        ("LlamaForCausalLM", 64, 32, 2048, None, Some(1), vec![2]),
        ("Qwen2ForCausalLM", 32, 32, 32_768, None, None, vec![]),
        ("Qwen3ForCausalLM", 32, 128, 32_768, None, None, vec![]),
        ("MistralForCausalLM", 8, 32, 131_072, Some(4096), Some(1), vec![2]),
    ];
    for (name, key_value_heads, head_dim, positions, window, bos_token_id, eos_token_ids) in families {
        let config = config(name, json!({}));
        assert_eq!(config.num_key_value_heads, key_value_heads, "{name}");
        assert_eq!(config.head_dim, head_dim, "{name}");
        assert_eq!(config.max_position_embeddings, positions, "{name}");
        assert_eq!(config.sliding_window, [window; 2], "{name}");
        assert_eq!(
            (config.bos_token_id, config.eos_token_ids),
            (bos_token_id, eos_token_ids),
            "{name}"
        );
        assert_eq!(
            (config.rms_norm_eps, config.rope.theta, config.initializer_range),
            (1e-6, 10_000.0, 0.02),
            "{name}"
        );
        assert!(!config.tie_word_embeddings, "{name}");
    }
}

#[test]
fn null_is_not_the_same_as_absent() {
    let null = json!({"num_key_value_heads": null, "sliding_window": null, "eos_token_id": null, "bos_token_id": null});
    for name in [
        "LlamaForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "MistralForCausalLM",
    ] {
        let config = config(name, null.clone());
        assert_eq!(config.num_key_value_heads, 64, "{name}");
        assert_eq!(config.sliding_window, [None; 2], "{name}");
        assert_eq!((config.bos_token_id, config.eos_token_ids.len()), (None, 0), "{name}");
    }
}

#[test]
fn qwen_slides_only_where_it_is_told_to() {
    let more = json!({"use_sliding_window": true, "max_window_layers": 1});
    for name in ["Qwen2ForCausalLM", "Qwen3ForCausalLM"] {
        assert_eq!(config(name, more.clone()).sliding_window, [None, Some(4096)], "{name}");
        assert_eq!(
            config(name, json!({"sliding_window": 16})).sliding_window,
            [None; 2],
            "{name}"
        );
    }
}

#[test]
fn biases_follow_the_family_before_the_config() {
    let biases = |name: &str, flag: bool| {
        let config = config(name, json!({"attention_bias": flag, "mlp_bias": flag}));
        (
            config.attention_bias,
            config.attention_output_bias,
            config.mlp_bias,
            config.qk_norm,
        )
    };
    for (name, mlp_bias, qk_norm) in [("LlamaForCausalLM", true, false), ("Qwen3ForCausalLM", false, true)] {
        assert_eq!(biases(name, true), (true, true, mlp_bias, qk_norm));
        assert_eq!(biases(name, false), (false, false, false, qk_norm));
    }
    for flag in [true, false] {
        assert_eq!(biases("Qwen2ForCausalLM", flag), (true, false, false, false));
        assert_eq!(biases("MistralForCausalLM", flag), (false, false, false, false));
    }
}
