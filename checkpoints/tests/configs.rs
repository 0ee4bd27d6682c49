//! What a `config.json` leaves out is what Transformers' configuration classes and modelling code fill in.

#![cfg(test)]

use std::path::Path;

use interlingua_checkpoints::blocks::Positions;
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

fn windows(config: &ModelConfig) -> Vec<Option<usize>> {
    config.blocks.iter().map(|block| block.attention.window).collect()
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
        let attention = &config.blocks[0].attention;
        assert_eq!(
            (attention.kv_heads, attention.head_dim),
            (key_value_heads, head_dim),
            "{name}"
        );
        assert_eq!(config.max_position_embeddings, positions, "{name}");
        assert_eq!(windows(&config), [window; 2], "{name}");
        assert_eq!(
            (config.bos_token_id, config.eos_token_ids),
            (bos_token_id, eos_token_ids),
            "{name}"
        );
        assert_eq!(
            (config.norm.epsilon, config.ropes[0].theta, config.initializer_range),
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
        assert_eq!(config.blocks[0].attention.kv_heads, 64, "{name}");
        assert_eq!(windows(&config), [None; 2], "{name}");
        assert_eq!((config.bos_token_id, config.eos_token_ids.len()), (None, 0), "{name}");
    }
}

#[test]
fn qwen_slides_only_where_it_is_told_to() {
    let more = json!({"use_sliding_window": true, "max_window_layers": 1});
    for name in ["Qwen2ForCausalLM", "Qwen3ForCausalLM"] {
        assert_eq!(windows(&config(name, more.clone())), [None, Some(4096)], "{name}");
        let switched_off = config(name, json!({"sliding_window": 16}));
        assert_eq!(windows(&switched_off), [None; 2], "{name}");
    }
}

#[test]
fn smollm3_rotates_and_slides_where_it_is_told_to() {
    let read = |more: Value| {
        let config = config("SmolLM3ForCausalLM", more);
        let rotated = config
            .blocks
            .iter()
            .map(|block| block.attention.positions != Positions::None);
        (rotated.collect(), windows(&config))
    };
    let of = |rotated: [bool; 2], windows: [Option<usize>; 2]| (rotated.to_vec(), windows.to_vec());
    let every_second = read(json!({"no_rope_layer_interval": 2, "sliding_window": 16}));
    assert_eq!(every_second, of([true, false], [None; 2]));
    let listed = json!({"no_rope_layers": [0, 1, 0], "use_sliding_window": true, "sliding_window": 16});
    assert_eq!(read(listed), of([false, true], [Some(16), None]));
    let by_type = json!({"layer_types": ["full_attention", "sliding_attention"], "use_sliding_window": true, "sliding_window": 16});
    assert_eq!(read(by_type), of([true; 2], [None, Some(16)]));
}

#[test]
fn biases_follow_the_family_before_the_config() {
    let biases = |name: &str, flag: bool| {
        let config = config(name, json!({"attention_bias": flag, "mlp_bias": flag}));
        let block = &config.blocks[0];
        let biases: Vec<bool> = block.linears().iter().map(|linear| linear.bias).collect();
        assert!(biases[0] == biases[1] && biases[1] == biases[2] && biases[4] == biases[5] && biases[5] == biases[6]);
        (biases[0], biases[3], biases[4], block.attention.qk_norm.is_some())
    };
    for (name, mlp_bias, qk_norm) in [
        ("LlamaForCausalLM", true, false),
        ("SmolLM3ForCausalLM", true, false),
        ("Qwen3ForCausalLM", false, true),
    ] {
        assert_eq!(biases(name, true), (true, true, mlp_bias, qk_norm));
        assert_eq!(biases(name, false), (false, false, false, qk_norm));
    }
    for flag in [true, false] {
        assert_eq!(biases("Qwen2ForCausalLM", flag), (true, false, false, false));
        assert_eq!(biases("MistralForCausalLM", flag), (false, false, false, false));
    }
}

fn refusal(architecture: &str, more: Value) -> String {
    let mut json = json!({
        "architectures": [architecture], "vocab_size": 100, "hidden_size": 64, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4
    });
    if let (Some(map), Some(more)) = (json.as_object_mut(), more.as_object()) {
        map.extend(more.clone());
    }
    let error = ModelConfig::from_json(&json, Path::new("config.json")).unwrap_err();
    error.to_string()
}

#[test]
fn both_spellings_give_the_same_config() {
    let old = json!({"rope_theta": 5e5, "torch_dtype": "bfloat16", "eos_token_id": [3, 0],
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 32}});
    let new = json!({"dtype": "bfloat16", "eos_token_id": [3, 0],
        "rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                            "original_max_position_embeddings": 32, "rope_theta": 5e5}});
    let old = config("LlamaForCausalLM", old);
    assert_eq!(old.eos_token_ids, [3, 0]);
    assert_eq!(old, config("LlamaForCausalLM", new));

    let old = json!({"rotary_pct": 0.5, "rotary_emb_base": 500.0});
    let new = json!({"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}});
    assert_eq!(config("GPTNeoXForCausalLM", old), config("GPTNeoXForCausalLM", new));

    let old = json!({"rope_theta": 3e5, "rope_local_base_freq": 7e3, "sliding_window_pattern": 2,
                     "rope_scaling": {"rope_type": "linear", "factor": 4.0}});
    let new = json!({"layer_types": ["sliding_attention", "full_attention"], "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 3e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 7e3}}});
    let old = config("Gemma3ForCausalLM", old);
    assert_eq!((old.ropes[0].theta, old.ropes[1].theta), (3e5, 7e3));
    assert_eq!(old, config("Gemma3ForCausalLM", new));

    let old = json!({"n_embed": 64, "n_layer": 3, "n_head": 4});
    let new = json!({"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4});
    let read = |more: Value| {
        let mut json = json!({"model_type": "bloom", "vocab_size": 100});
        json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ModelConfig::from_json(&json, Path::new("config.json")).unwrap()
    };
    assert_eq!(read(old), read(new));
}

#[test]
fn the_newer_families_have_their_defaults_too() {
    let facts = |name: &str, more: Value| {
        let config = config(name, more);
        let attention = &config.blocks[0].attention;
        let theta = config.ropes.first().map_or(0.0, |rope| rope.theta);
        let own = (attention.kv_heads, attention.head_dim, config.max_position_embeddings);
        (own, theta, config.norm.epsilon, config.tie_word_embeddings)
    };
    let none = || json!({});
    assert_eq!(facts("SmolLM3ForCausalLM", none()), ((4, 32, 32_768), 2e6, 1e-6, true));
    assert_eq!(facts("GemmaForCausalLM", none()), ((16, 256, 8192), 1e4, 1e-6, true));
    assert_eq!(facts("Gemma2ForCausalLM", none()), ((4, 256, 8192), 1e4, 1e-6, true));
    assert_eq!(facts("Gemma3ForCausalLM", none()), ((4, 256, 131_072), 1e6, 1e-6, true));
    assert_eq!(facts("Phi3ForCausalLM", none()), ((64, 32, 4096), 1e4, 1e-5, false));
    assert_eq!(facts("Olmo2ForCausalLM", none()), ((64, 32, 2048), 1e4, 1e-5, false));
    assert_eq!(facts("CohereForCausalLM", none()), ((64, 32, 8192), 5e5, 1e-5, true));
    assert_eq!(facts("Cohere2ForCausalLM", none()), ((64, 32, 8192), 1e4, 1e-5, true));
    assert_eq!(
        facts("ApertusForCausalLM", none()),
        ((64, 32, 65_536), 12e6, 1e-5, false)
    );
    assert_eq!(facts("GPTNeoXForCausalLM", none()), ((64, 32, 2048), 1e4, 1e-5, false));
    assert_eq!(
        facts("MixtralForCausalLM", none()),
        ((8, 32, 131_072), 1e6, 1e-5, false)
    );
    assert_eq!(
        facts("Qwen3MoeForCausalLM", none()),
        ((4, 32, 32_768), 1e4, 1e-6, false)
    );
    assert_eq!(facts("BloomForCausalLM", none()), ((64, 32, 2048), 0.0, 1e-5, true));
    assert_eq!(facts("GPTBigCodeForCausalLM", none()), ((1, 32, 1024), 0.0, 1e-5, true));
    assert_eq!(facts("XGLMForCausalLM", none()), ((64, 32, 2048), 0.0, 1e-5, true));

    let gemma2 = config("Gemma2ForCausalLM", none());
    assert_eq!(
        (gemma2.blocks[0].attention.softcap, gemma2.head.softcap),
        (Some(50.0), Some(30.0))
    );
    assert_eq!(windows(&gemma2), [Some(4096), None]);
    let uncapped = config(
        "Gemma2ForCausalLM",
        json!({"attn_logit_softcapping": null, "final_logit_softcapping": null}),
    );
    assert_eq!(
        (uncapped.blocks[0].attention.softcap, uncapped.head.softcap),
        (None, None)
    );
    assert_eq!(
        config("Qwen3MoeForCausalLM", none()).blocks[0]
            .mlp
            .experts()
            .unwrap()
            .experts
            .len(),
        128
    );
    // In Apertus a base without a scaling is not read.
    let apertus = config("ApertusForCausalLM", json!({"rope_theta": 5e5}));
    assert_eq!((apertus.ropes[0].theta, apertus.ropes[0].kind.name()), (12e6, "llama3"));
    // Without a window no block of Cohere 2 knows positions.
    let cohere2 = config("Cohere2ForCausalLM", json!({"sliding_window": null}));
    assert!(
        cohere2
            .blocks
            .iter()
            .all(|block| block.attention.positions == Positions::None)
    );
}

#[test]
fn refusals_name_the_key_and_what_it_should_be() {
    let cases = [
        (
            "LlamaForCausalLM",
            json!({"hidden_size": "64"}),
            "`hidden_size` should be a whole number above 0, found \"64\"",
        ),
        (
            "LlamaForCausalLM",
            json!({"hidden_act": "quick_gelu"}),
            "`hidden_act` should be one of the activations that are supported: silu",
        ),
        (
            "LlamaForCausalLM",
            json!({"hidden_act": "xielu"}),
            "xielu in Apertus, found \"xielu\"",
        ),
        (
            "LlamaForCausalLM",
            json!({"num_attention_heads": 5}),
            "`hidden_size` 64 is not a multiple of `num_attention_heads` 5, and there is no `head_dim`",
        ),
        (
            "LlamaForCausalLM",
            json!({"num_key_value_heads": 3}),
            "attention heads, 4, is not a multiple of the number of key and value heads, 3",
        ),
        (
            "LlamaForCausalLM",
            json!({"head_dim": 15}),
            "turns 15 features of a head, which should be an even number",
        ),
        (
            "LlamaForCausalLM",
            json!({"rope_scaling": {"rope_type": "mrope"}}),
            "`rope_type` should be one of default, linear, dynamic, yarn, llama3, longrope, found \"mrope\"",
        ),
        (
            "LlamaForCausalLM",
            json!({"partial_rotary_factor": 0.5}),
            "`partial_rotary_factor` should be 1: models of this family turn whole heads",
        ),
        (
            "LlamaForCausalLM",
            json!({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}),
            "models of this family have one rope for all layers",
        ),
        (
            "SmolLM3ForCausalLM",
            json!({"no_rope_layers": [1]}),
            "`no_rope_layers` should be a list of at least 2 entries",
        ),
        (
            "SmolLM3ForCausalLM",
            json!({"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 16}),
            "`use_sliding_window` should be true",
        ),
        (
            "Phi3ForCausalLM",
            json!({"rope_scaling": {"type": "linear", "factor": 2.0}}),
            "one of default, longrope",
        ),
        (
            "Phi3ForCausalLM",
            json!({"rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [1.0, 1.0]}}),
            "`short_factor` should be a list of 8 numbers above 0",
        ),
        (
            "Phi3ForCausalLM",
            json!({"partial_rotary_factor": 1.5}),
            "`partial_rotary_factor` should be a share between 0 and 1",
        ),
        (
            "BloomForCausalLM",
            json!({"n_head": 5}),
            "`hidden_size` 64 is not a multiple of `n_head` 5",
        ),
        (
            "Gemma3ForCausalLM",
            json!({"layer_types": ["full_attention"]}),
            "`layer_types` should be a list of 2 entries",
        ),
        (
            "Gemma2ForCausalLM",
            json!({"layer_types": ["full_attention", "chunked_attention"]}),
            "`layer_types` should be a list of \"sliding_attention\" and \"full_attention\"",
        ),
        (
            "Gemma2ForCausalLM",
            json!({"attn_logit_softcapping": 0.0}),
            "`attn_logit_softcapping` should be a number above 0, or null",
        ),
        (
            "Gemma3ForCausalLM",
            json!({"use_bidirectional_attention": true}),
            "only causal models are trained",
        ),
        (
            "MixtralForCausalLM",
            json!({"num_key_value_heads": 4, "num_local_experts": 2, "num_experts_per_tok": 3}),
            "`num_experts_per_tok` should be at most the number of experts, 2, found 3",
        ),
        (
            "Qwen3MoeForCausalLM",
            json!({"mlp_only_layers": "1"}),
            "`mlp_only_layers` should be a list of layers",
        ),
        (
            "GPTBigCodeForCausalLM",
            json!({"add_cross_attention": true}),
            "only decoders by themselves",
        ),
    ];
    for (architecture, more, expected) in cases {
        let found = refusal(architecture, more.clone());
        assert!(
            found.starts_with("config.json: ") && found.contains(expected),
            "{architecture} {more}: {found}"
        );
    }
}

#[test]
fn what_is_not_listed_is_refused_by_name_with_what_is_nearest() {
    for (name, nearest) in [
        ("Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM"),
        ("Gemma3ForConditionalGeneration", "Gemma3ForCausalLM"),
        ("FalconForCausalLM", "ForCausalLM"),
    ] {
        let found = refusal(name, json!({}));
        assert!(
            found.contains(&format!("the architecture {name} is not supported")),
            "{found}"
        );
        let (_, behind) = found.split_once("nearest by name that is (").unwrap();
        let (named, _) = behind.split_once(':').unwrap();
        assert!(named.contains(nearest), "{name}: {named}");
    }
}

#[test]
fn a_window_may_be_larger_than_any_sequence() {
    let mistral = config(
        "MistralForCausalLM",
        json!({"sliding_window": 1_000_000, "max_position_embeddings": 128}),
    );
    assert_eq!(windows(&mistral), [Some(1_000_000); 2]);
}
