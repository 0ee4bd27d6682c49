//! The memory plan, seen from the command line: what it predicts against what runs allocate, budgets, and runs that do not grow.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

use std::fmt::Write;

use interlingua_tests::binary::Scratch;
use interlingua_tests::numbers::column;
use serde_json::Value;

/// Tokens of every row of the data.
const LENGTH: usize = 256;
const VOCABULARY: usize = 4096;

/// A model whose tensors are much larger than everything else in the process: 6 million parameters, random.
fn model(scratch: &Scratch) {
    let config = serde_json::json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": VOCABULARY, "hidden_size": 256,
        "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true,
        "hidden_act": "silu", "initializer_range": 0.02, "torch_dtype": "bfloat16",
    });
    scratch.write("base/config.json", config.to_string());
}

/// Token ids that no other row has.
fn ids(row: usize) -> Vec<usize> {
    (0..LENGTH)
        .map(|place| (row * 7919 + place * 31 + 1) % VOCABULARY)
        .collect()
}

fn data(scratch: &Scratch) {
    let (mut rows, mut pairs, mut texts) = (String::new(), String::new(), String::new());
    for row in 0..16 {
        writeln!(rows, "{{\"input_ids\": {:?}}}", ids(row)).unwrap();
        let (chosen, rejected) = (ids(2 * row), ids(2 * row + 1));
        writeln!(pairs, "{{\"chosen_ids\": {chosen:?}, \"rejected_ids\": {rejected:?}}}").unwrap();
        for (number, lang) in ["en", "sw"].into_iter().enumerate() {
            let ids = ids(2 * row + number);
            writeln!(
                texts,
                "{{\"id\": \"{row}\", \"lang\": \"{lang}\", \"input_ids\": {ids:?}}}"
            )
            .unwrap();
        }
    }
    scratch.write("rows.jsonl", rows);
    scratch.write("pairs.jsonl", pairs);
    scratch.write("texts.jsonl", texts);
}

fn recipe(scratch: &Scratch) {
    let recipe = format!(
        r#"output = "run"
[model]
path = "base"
init = "random"
device = "cpu"
[adapter]
kind = "lora"
rank = 16
[data]
max_length = {LENGTH}
packing = false
[[data.sources]]
path = "rows.jsonl"
format = "tokens"
[train]
steps = 2
batch_size = 2
gradient_accumulation = 2
checkpoint_every = 0
"#
    );
    scratch.write("recipe.toml", recipe);
}

fn scratch() -> Scratch {
    let scratch = Scratch::new();
    model(&scratch);
    data(&scratch);
    recipe(&scratch);
    scratch
}

/// Bytes that a run's plan expects at the highest moment, and that were allocated at most.
#[expect(clippy::print_stdout, reason = "`--nocapture` shows all variants")]
fn planned_and_measured(scratch: &Scratch, name: &str, settings: &[&str]) -> (f64, f64) {
    let output = format!("output={name}");
    let mut arguments = vec!["train", "recipe.toml", "--set", &output];
    settings.iter().for_each(|setting| arguments.extend(["--set", setting]));
    // Each thread has buffers, which would weigh much on a large machine beside so small a model.
    let ran = scratch.command(arguments).env("RAYON_NUM_THREADS", "2").output();
    interlingua_tests::binary::Ran::from(ran.unwrap()).succeeds();
    let plan: Value = serde_json::from_str(&scratch.read(&format!("{name}/plan.json"))).unwrap();
    let planned = plan["device"]["total"].as_f64().unwrap() + plan["host"]["total"].as_f64().unwrap();
    let measured = column(&scratch.path(name), "memory_bytes")
        .into_iter()
        .fold(0.0, f64::max);
    println!(
        "{name:<28} planned {:7.2} MiB, measured {:7.2} MiB, {:+6.1} %  {}",
        planned / (1 << 20) as f64,
        measured / (1 << 20) as f64,
        100.0 * (planned / measured - 1.0),
        plan["device"]
    );
    (planned, measured)
}

/// Every variant of a recipe, and the settings that make it.
const VARIANTS: &[(&str, &[&str])] = &[
    ("lora", &["memory.recompute=none"]),
    ("lora-recomputed", &["memory.recompute=block"]),
    (
        "lora-recomputed-half",
        &[
            "memory.recompute=block",
            "memory.block_inputs=bf16",
            "train.batch_size=4",
        ],
    ),
    ("lora-without-dropout", &["adapter.dropout=0"]),
    (
        "lora-attention",
        &["adapter.targets=[\"q_proj\", \"k_proj\", \"v_proj\", \"o_proj\"]"],
    ),
    ("lora-one-row", &["train.batch_size=1", "train.gradient_accumulation=4"]),
    (
        "lora-large-batch",
        &[
            "train.batch_size=6",
            "train.gradient_accumulation=1",
            "memory.recompute=block",
        ],
    ),
    (
        "lora-packed-rows",
        &[
            "data.packing=true",
            "data.max_length=1024",
            "train.batch_size=1",
            "train.gradient_accumulation=1",
        ],
    ),
    ("full", &["adapter.kind=none"]),
    (
        "full-recomputed",
        &[
            "adapter.kind=none",
            "memory.recompute=block",
            "train.gradient_accumulation=1",
        ],
    ),
    (
        "full-checkpoints",
        &["adapter.kind=none", "train.checkpoint_every=1", "train.batch_size=1"],
    ),
    ("dora", &["adapter.kind=dora"]),
    (
        "dora-recomputed",
        &["adapter.kind=dora", "memory.recompute=block", "adapter.dropout=0"],
    ),
    ("bf16", &["model.dtype=bf16"]),
    ("bf16-recomputed", &["model.dtype=bf16", "memory.recompute=block"]),
    ("bottleneck", &["adapter.kind=bottleneck", "adapter.reduction=2"]),
    ("full-8-bits", &["adapter.kind=none", "optimizer.kind=adamw8bit"]),
    (
        "full-bf16-moments",
        &["adapter.kind=none", "optimizer.moments=bf16", "memory.recompute=block"],
    ),
    (
        "nf4",
        &["model.quantization={scheme = \"nf4\"}", "memory.recompute=block"],
    ),
    (
        "nf4-graphs",
        &[
            "model.quantization={scheme = \"nf4\", double = false}",
            "memory.recompute=none",
        ],
    ),
    (
        "int8",
        &[
            "model.quantization={scheme = \"int8\"}",
            "optimizer.kind=adamw8bit",
            "memory.recompute=block",
        ],
    ),
    (
        "last-blocks",
        &["adapter.kind=none", "train.parameters=re:layers\\.(2|3)\\."],
    ),
    ("goldfish", &["objective.kind=goldfish", "data.holdout=0.2"]),
    (
        "dpo",
        &[
            "objective.kind=dpo",
            "data.sources.0.path=pairs.jsonl",
            "train.batch_size=1",
        ],
    ),
    (
        "offloaded-weights",
        &["memory.offload=weights", "memory.recompute=block"],
    ),
    (
        "middle-layer",
        &[
            "data.sources=[{path = \"texts.jsonl\", format = \"tokens\"}]",
            "data.parallel={groups_per_batch = 2, languages = [\"en\", \"sw\"], anchor = \"en\"}",
            "objective.auxiliary=[{kind = \"middle-layer\", layer = 2}]",
            "train.batch_size=4",
        ],
    ),
];

#[test]
fn plans_are_within_a_tenth_of_what_is_allocated() {
    let scratch = scratch();
    let off: Vec<String> = VARIANTS
        .iter()
        .filter_map(|(name, settings)| {
            let (planned, measured) = planned_and_measured(&scratch, name, settings);
            let off = planned / measured - 1.0;
            (off.abs() > 0.1).then(|| format!("{name}: {:+.1} %", 100.0 * off))
        })
        .collect();
    assert!(off.is_empty(), "{off:#?}");
}

/// A model of another family, as large as the first one.
fn of_family(scratch: &Scratch, architecture: &str, more: &Value) {
    let mut config = serde_json::json!({
        "architectures": [architecture], "vocab_size": VOCABULARY, "hidden_size": 256, "intermediate_size": 1024,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
        "max_position_embeddings": 1024, "initializer_range": 0.02, "torch_dtype": "bfloat16",
    });
    let (map, more) = (config.as_object_mut().unwrap(), more.as_object().unwrap());
    map.extend(more.clone());
    scratch.write(&format!("{architecture}/config.json"), config.to_string());
}

#[test]
fn plans_of_every_family_are_near_what_is_allocated() {
    let scratch = scratch();
    let tied = serde_json::json!({"tie_word_embeddings": true});
    let families = [
        ("Gemma2ForCausalLM", tied.clone()),
        ("Phi3ForCausalLM", tied.clone()),
        ("Olmo2ForCausalLM", tied.clone()),
        ("CohereForCausalLM", tied.clone()),
        ("ApertusForCausalLM", tied.clone()),
        ("BloomForCausalLM", serde_json::json!({"n_layer": 4, "n_head": 4})),
        ("GPTNeoXForCausalLM", tied.clone()),
        (
            "XGLMForCausalLM",
            serde_json::json!({"d_model": 256, "ffn_dim": 1024, "attention_heads": 4, "num_layers": 4}),
        ),
        (
            "MixtralForCausalLM",
            serde_json::json!({"tie_word_embeddings": true, "num_local_experts": 4, "intermediate_size": 384}),
        ),
    ];
    let mut off = Vec::new();
    for (architecture, more) in families {
        of_family(&scratch, architecture, &more);
        let path = format!("model.path={architecture}");
        for (name, settings) in [
            ("lora", &["memory.recompute=none"][..]),
            ("recomputed", &["memory.recompute=block"][..]),
            ("full", &["adapter.kind=none", "memory.recompute=block"][..]),
        ] {
            let settings = [&[path.as_str()], settings].concat();
            let name = format!("{architecture}-{name}");
            let (planned, measured) = planned_and_measured(&scratch, &name, &settings);
            let wrong = planned / measured - 1.0;
            if wrong.abs() > 0.15 {
                off.push(format!("{name}: {:+.1} %", 100.0 * wrong));
            }
        }
    }
    assert!(off.is_empty(), "{off:#?}");
}

#[test]
fn a_plan_needs_nothing_but_the_config() {
    let scratch = scratch();
    std::fs::remove_file(scratch.path("rows.jsonl")).unwrap();
    let plan =
        |arguments: &[&str]| scratch.run([&["plan", "recipe.toml", "--set", "model.init=weights"], arguments].concat());
    let shown = plan(&[]);
    for part in [
        "weights",
        "block inputs",
        "highest moment",
        "parameters are trained",
        "a step",
    ] {
        assert!(shown.succeeds().stdout.contains(part), "{shown:#?}");
    }
    let of = |arguments: &[&str]| plan(&[&["--json"], arguments].concat()).succeeds().json()["stages"][0].clone();
    let (cpu, cuda) = (of(&[]), of(&["--device", "cuda"]));
    let weights = |stage: &Value| stage["plan"]["device"]["weights"].as_f64().unwrap();
    // bf16 there, f32 here.
    assert_eq!(weights(&cpu), 2.0 * weights(&cuda));
    // A, B: 16 * (in + out) of seven layers in four blocks.
    assert_eq!(
        cpu["plan"]["of"]["trainable_parameters"],
        4 * 16 * (512 + 384 + 384 + 512 + 3 * 1280)
    );
    assert!(cpu["plan"]["step_seconds"].as_f64().unwrap() > 0.0);

    let limited = of(&["--budget", "60MiB"]);
    let batch = &limited["largest_batch"];
    assert!(batch["plan"]["device"]["total"].as_u64().unwrap() <= 60 << 20);
    assert!(limited["longest"]["max_length"].as_u64().unwrap() > 0);
    let shown = plan(&["--budget", "60MiB"]);
    assert!(
        shown.succeeds().stdout.contains("largest batch that fits"),
        "{shown:#?}"
    );
    plan(&["--budget", "1MiB"]).refuses(2, &["1.00 MiB are too little", "one sequence of 64 tokens", "weights"]);
    plan(&["--budget", "much"]).refuses(2, &["--budget", "4GiB"]);
}

#[test]
fn a_run_over_its_budget_is_refused_before_anything_is_loaded() {
    let scratch = scratch();
    let run = |command: &'static str, settings: &[&str]| {
        let mut arguments = vec![command, "recipe.toml"];
        settings.iter().for_each(|setting| arguments.extend(["--set", setting]));
        scratch.run(arguments)
    };
    let settings = ["memory.budget=80MiB", "train.batch_size=8", "memory.recompute=none"];
    for command in ["train", "validate"] {
        let refused = run(command, &settings);
        refused.refuses(
            2,
            &["memory.budget is 80.00 MiB", "planned to take", "activations", "--set"],
        );
        assert!(!scratch.path("run").exists());
    }
    // What the message proposes works.
    let message = run("train", &settings).stderr;
    let proposed: Vec<&str> = message
        .split("--set ")
        .skip(1)
        .map(|setting| setting.split_whitespace().next().unwrap())
        .collect();
    assert!(proposed.contains(&"memory.recompute=block"), "{message}");
    let ran = run("train", &[&settings[..], &proposed, &["train.steps=1"]].concat());
    ran.succeeds();
    for line in ["memory planned", "\nhighest moment", "memory at its highest"] {
        assert!(ran.stderr.contains(line), "{ran:#?}");
    }
    // Graphs that do not fit are made again, without being told.
    let auto = [
        "memory.budget=80MiB",
        "train.batch_size=4",
        "train.steps=1",
        "output=auto",
    ];
    run("train", &auto).succeeds();
    let plan: Value = serde_json::from_str(&scratch.read("auto/plan.json")).unwrap();
    assert_eq!(plan["of"]["recompute"], "block");
}

#[test]
fn memory_stays_flat_over_two_thousand_steps() {
    let scratch = Scratch::new();
    interlingua_tests::adapter_run::write(&scratch);
    let rows: String = (0..32)
        .map(|row| {
            let ids: Vec<usize> = (0..12).map(|place| (row * 7 + place * 3) % 90).collect();
            format!("{{\"input_ids\": {ids:?}}}\n")
        })
        .collect();
    let data = scratch.write("even.jsonl", rows);
    let path = format!("data.sources.0.path={}", data.display());
    let settings = [
        &path,
        "train.steps=2000",
        "train.batch_size=2",
        "train.checkpoint_every=0",
    ];
    let arguments = interlingua_tests::adapter_run::arguments(&settings);
    scratch.run([&arguments[..], &["--quiet"]].concat()).succeeds();
    let peaks = column(&scratch.path("run"), "memory_bytes");
    assert_eq!(peaks.len(), 2000);
    let grown = peaks[1999] - peaks[99];
    assert!(grown < 64.0 * 1024.0, "{grown} bytes in 1900 steps");
}
