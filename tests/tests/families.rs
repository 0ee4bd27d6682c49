//! Families through the real command line: what `inspect` shows, what is refused, and mixtures of experts in training.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

use std::fmt::Write;

use interlingua_tests::binary::{Scratch, workspace};
use interlingua_tests::numbers::{column, rows, tensors};
use serde_json::{Value, json};

fn fixture(model: &str) -> String {
    let path = workspace().join("tests/fixtures/models").join(model);
    path.display().to_string()
}

/// `recipe.toml`: a LoRA on a fixture's model over token rows in two languages.
fn recipe(scratch: &Scratch, model: &str) {
    let mut rows = String::new();
    for row in 0..24 {
        let language = ["sw", "fi"][row % 2];
        let ids: Vec<usize> = (0..8 + row % 5).map(|place| (row * 7 + place * 5 + 3) % 90).collect();
        writeln!(rows, "{{\"input_ids\": {ids:?}, \"lang\": \"{language}\"}}").unwrap();
    }
    scratch.write("rows.jsonl", rows);
    let recipe = format!(
        r#"output = "run"
[model]
path = {:?}
device = "cpu"
[adapter]
rank = 4
dropout = 0.1
[data]
max_length = 32
packing = false
holdout = 0.2
[[data.sources]]
path = "rows.jsonl"
format = "tokens"
[optimizer]
learning_rate = 5e-3
[train]
steps = 3
batch_size = 4
gradient_accumulation = 2
eval_every = 3
"#,
        fixture(model)
    );
    scratch.write("recipe.toml", recipe);
}

fn train(scratch: &Scratch, settings: &[&str]) -> Vec<String> {
    let mut arguments = vec!["train".to_owned(), "recipe.toml".to_owned()];
    for setting in settings {
        arguments.extend(["--set".to_owned(), (*setting).to_owned()]);
    }
    scratch.run(&arguments).succeeds();
    arguments
}

#[test]
fn inspect_shows_the_options_of_a_checkpoint() {
    let scratch = Scratch::new();
    let options = |model: &str| {
        let facts = scratch.run(["inspect", &fixture(model), "--json"]).succeeds().json();
        let list = facts["options"].as_array().unwrap().clone();
        let option = |entry: &Value| {
            let text = |key: &str| entry[key].as_str().unwrap().to_owned();
            (text("option"), text("value"))
        };
        list.iter().map(option).collect::<Vec<_>>()
    };
    let has = |model: &str, option: &str, value: &str| {
        let options = options(model);
        let found = options.iter().find(|(name, _)| name == option);
        assert!(
            found.is_some_and(|(_, found)| found.contains(value)),
            "{model}: {options:?}"
        );
    };
    has("gemma2", "score soft-cap", "");
    has("gemma2", "sliding window", "of");
    has("gemma3", "positions", "; rotary, base");
    has("bloom", "positions", "ALiBi");
    has("bloom_residual", "residual", "behind the norms");
    has("cohere", "QK-norm", "weights of its own");
    has("cohere2", "positions", "neighbours as pairs");
    has("phi3", "fused projections", "gate and up");
    has("qwen3_moe", "experts", "3 of 5, shares not normalised");
    has("apertus", "MLP", "xielu");
    let shown = scratch.run(["inspect", &fixture("olmo2")]);
    assert!(
        shown.succeeds().stdout.contains("behind attention and MLP"),
        "{shown:#?}"
    );
}

#[test]
fn a_family_that_is_not_listed_is_refused_with_what_is_nearest() {
    let scratch = Scratch::new();
    recipe(&scratch, "llama");
    let config = json!({"architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "vocab_size": 90});
    scratch.write("other/config.json", config.to_string());
    let expected = [
        "other/config.json",
        "Qwen2MoeForCausalLM is not supported",
        "Qwen3MoeForCausalLM",
        "docs/support-matrix.md",
    ];
    for command in ["validate", "plan", "train"] {
        let arguments = [command, "recipe.toml", "--set", "model.path=other"];
        scratch.run(arguments).refuses(2, &expected);
    }
    let facts = scratch.run(["inspect", "other", "--json"]).succeeds().json();
    assert!(facts["not_supported"].as_str().unwrap().contains("Qwen3MoeForCausalLM"));
}

#[test]
fn a_recipe_that_does_not_fit_its_family_is_refused() {
    let scratch = Scratch::new();
    let refuses = |model: &str, settings: &[&str], parts: &[&str]| {
        recipe(&scratch, model);
        let mut arguments = vec!["train", "recipe.toml"];
        settings.iter().for_each(|setting| arguments.extend(["--set", setting]));
        scratch.run(arguments).refuses(2, parts);
        assert!(!scratch.path("run/adapter").exists());
    };
    let router = "objective.auxiliary=[{kind = \"router\"}]";
    refuses(
        "llama",
        &[router],
        &["objective.auxiliary.0", "balances the experts", "LlamaForCausalLM"],
    );
    refuses(
        "gpt_bigcode",
        &["data.max_length=4096"],
        &["data.max_length is 4096", "learnt positions for"],
    );
    refuses(
        "mixtral",
        &["adapter.kind=dora"],
        &["adapter.kind is \"dora\"", "mixture of experts"],
    );
    refuses(
        "mixtral",
        &["objective.auxiliary=[{kind = \"router\", every = 2}]"],
        &["objective.auxiliary.0.every", "Write 0"],
    );
}

#[test]
fn experts_are_balanced_measured_by_language_and_written_for_peft() {
    let scratch = Scratch::new();
    recipe(&scratch, "mixtral");
    let router = "objective.auxiliary=[{kind = \"router\", weight = 0.5}]";
    train(&scratch, &[router]);
    let run = scratch.path("run");
    for step in rows(&run, "train") {
        let (total, losses) = (step["loss"].as_f64().unwrap(), &step["losses"]);
        let (sft, balance) = (losses["sft"].as_f64().unwrap(), losses["router"].as_f64().unwrap());
        // Two of three experts: 2 where they are used alike, 3 where two of them do everything.
        assert!((1.9..=3.0).contains(&balance), "{step}");
        assert!((total - sft - 0.5 * balance).abs() < 1e-6, "{step}");
    }
    let heldout = rows(&run, "eval");
    let experts = &heldout.last().unwrap()["experts"];
    for language in ["sw", "fi"] {
        let blocks = experts[language].as_array().unwrap();
        assert_eq!(blocks.len(), 2, "{experts}");
        for block in blocks {
            let shares: Vec<f64> = serde_json::from_value(block.clone()).unwrap();
            assert!(
                shares.len() == 3 && (shares.iter().sum::<f64>() - 1.0).abs() < 1e-9,
                "{experts}"
            );
        }
        let entropy = &heldout.last().unwrap()["by_language"][language]["expert_entropy"];
        assert!((0.0..=1.0).contains(&entropy.as_f64().unwrap()));
    }

    // The same with blocks computed again.
    train(&scratch, &[router, "output=again", "memory.recompute=block"]);
    let again = scratch.path("again");
    for key in ["loss", "grad_norm"] {
        for (one, other) in column(&run, key).into_iter().zip(column(&again, key)) {
            assert!((one - other).abs() <= 1e-5 * one, "{key}: {one} and {other}");
        }
    }

    let config: Value = serde_json::from_str(&scratch.read("run/adapter/adapter_config.json")).unwrap();
    assert_eq!(config["lora_dropout"], 0.0);
    let targets: Vec<&str> = config["target_modules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect();
    assert_eq!(
        targets,
        ["gate", "k_proj", "o_proj", "q_proj", "v_proj", "w1", "w2", "w3"]
    );
    let written = tensors(&run.join("adapter/adapter_model.safetensors"));
    for expert in 0..3 {
        let name = format!("base_model.model.model.layers.1.block_sparse_moe.experts.{expert}.w2.lora_B.weight");
        assert!(written.contains_key(&name), "{name}");
    }
    // And read again, to go on from.
    train(
        &scratch,
        &["output=further", "adapter.init_from=run/adapter", "train.steps=1"],
    );
}

#[test]
fn a_quantised_mixture_of_experts_learns_the_same_wherever_its_weights_lie() {
    let scratch = Scratch::new();
    recipe(&scratch, "qwen3_moe");
    let quantised = "model.quantization={scheme = \"nf4\"}";
    train(&scratch, &[quantised]);
    train(
        &scratch,
        &[
            quantised,
            "output=offloaded",
            "memory.offload=weights",
            "memory.recompute=block",
        ],
    );
    let (here, there) = (
        column(&scratch.path("run"), "loss"),
        column(&scratch.path("offloaded"), "loss"),
    );
    assert_eq!(here.len(), 3);
    for (here, there) in here.iter().zip(&there) {
        assert!((here - there).abs() < 1e-5, "{here} and {there}");
    }
    train(&scratch, &["output=plain"]);
    assert!((column(&scratch.path("plain"), "loss")[0] - here[0]).abs() > 1e-4);
}

#[test]
fn a_copy_for_each_language_reaches_the_experts() {
    let scratch = Scratch::new();
    recipe(&scratch, "mixtral");
    train(&scratch, &["adapter.route=language", "train.steps=2"]);
    for language in ["sw", "fi"] {
        let written = tensors(&scratch.path(&format!("run/adapter/{language}/adapter_model.safetensors")));
        let trained = written.iter().filter(|(name, values)| {
            name.contains(".experts.") && name.contains("lora_B") && values.iter().any(|value| *value != 0.0)
        });
        assert!(trained.count() > 0, "{language}");
    }
}

#[test]
fn perplexity_by_language_says_which_experts_were_used() {
    let scratch = Scratch::new();
    recipe(&scratch, "mixtral");
    let tokenizer = workspace().join("tests/fixtures/layers/tokenizer.json");
    scratch.copy("tests/fixtures/models/mixtral", "model");
    std::fs::copy(tokenizer, scratch.path("model/tokenizer.json")).unwrap();
    scratch.write(
        "tasks.toml",
        "[[eval.tasks]]\nkind = \"perplexity\"\npath = \"texts.jsonl\"\nformat = \"text\"\n",
    );
    scratch.write(
        "texts.jsonl",
        "{\"text\": \"habari\", \"lang\": \"sw\"}\n{\"text\": \"terve\", \"lang\": \"fi\"}\n",
    );
    let report = scratch.run(["eval", "--model", "model", "--tasks", "tasks.toml", "--json"]);
    let text = report.succeeds().stdout.clone();
    assert!(
        text.contains("\"experts\"") && text.contains("expert_entropy"),
        "{text}"
    );
}
