//! Whatever is wrong, the message says what, where and what to do, and the exit code is right.

use interlingua_tests::binary::{Ran, Scratch, workspace};
use interlingua_tests::tiny;
use std::process::Command;

/// A scratch folder with the tiny model.
fn scratch() -> Scratch {
    let scratch = Scratch::new();
    tiny::write(&scratch);
    scratch
}

/// `train` and `validate` refuse with these words, and nothing is written.
fn refuses(scratch: &Scratch, arguments: &[&str], parts: &[&str]) {
    for command in ["validate", "train"] {
        let ran = scratch.run([&[command, "recipe.toml"], arguments].concat());
        ran.refuses(2, parts);
    }
    assert!(!scratch.path("run").exists(), "something was written");
}

#[test]
fn data_that_cannot_be_read_is_named_with_its_line() {
    let scratch = scratch();
    let good =
        r#"{"lang": "sw", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    let source = |name: &str| format!("data.sources.0.path={name}");
    refuses(&scratch, &["--set", &source("missing.jsonl")], &["missing.jsonl"]);
    refuses(&scratch, &["--set", &source("no/*.jsonl")], &["no/*.jsonl"]);
    scratch.write("empty.jsonl", "");
    refuses(
        &scratch,
        &["--set", &source("empty.jsonl")],
        &["empty.jsonl", "no rows"],
    );
    scratch.write("bytes.jsonl", [good.as_bytes(), b"\n{\"lang\": \"\xff\"}\n"].concat());
    refuses(
        &scratch,
        &["--set", &source("bytes.jsonl")],
        &["bytes.jsonl:2", "UTF-8"],
    );
    scratch.write("half.jsonl", format!("{good}\n{}", &good[..40]));
    refuses(&scratch, &["--set", &source("half.jsonl")], &["half.jsonl:2"]);
    scratch.write("fields.jsonl", format!("{good}\n{{\"text\": \"a\"}}\n"));
    refuses(
        &scratch,
        &["--set", &source("fields.jsonl")],
        &["fields.jsonl:2", "messages", "text"],
    );
    scratch.write("tag.jsonl", good.replace("\"sw\"", "\"no such tag\""));
    refuses(
        &scratch,
        &["--set", &source("tag.jsonl")],
        &["tag.jsonl:1", "no such tag"],
    );
}

/// Rows of each format that cannot be used, and the objective they are read for.
#[test]
fn rows_of_preferences_choices_and_parallel_texts_are_named_with_their_line() {
    let scratch = scratch();
    for (objective, format, row, parts) in [
        (
            "dpo",
            "preference",
            r#"{"prompt": "a", "chosen": "b", "rejected": "b"}"#,
            ["chosen", "equal"],
        ),
        (
            "kto",
            "kto",
            r#"{"prompt": "a", "completion": "b"}"#,
            ["no `label`", "completion"],
        ),
        (
            "sft",
            "choice",
            r#"{"question": "a", "choices": ["b", "c"], "answer": "D"}"#,
            ["answer", "2 choices"],
        ),
        (
            "sft",
            "parallel",
            r#"{"src": "a b", "tgt": "c", "src_lang": "en", "tgt_lang": "sw", "alignment": "0-0 2-0"}"#,
            ["2-0", "`src` has 2 words"],
        ),
        (
            "sft",
            "tokens",
            r#"{"chosen_ids": [1, 2], "rejected_ids": [1, 3]}"#,
            ["sft", "pair"],
        ),
        ("dpo", "tokens", r#"{"input_ids": [1, 2]}"#, ["dpo", "chosen_ids"]),
    ] {
        scratch.write("rows.jsonl", format!("{row}\n"));
        let set = [
            "data.sources.0.path=rows.jsonl".to_owned(),
            format!("data.sources.0.format={format}"),
            format!("objective.kind={objective}"),
        ];
        let arguments: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
        refuses(&scratch, &arguments, &["rows.jsonl:1", parts[0], parts[1]]);
    }
    refuses(
        &scratch,
        &["--set", "data.sources.0.format=preference"],
        &["data.sources.0.format", "sft", "dpo"],
    );
}

#[test]
fn line_aligned_files_of_different_length_are_named_with_their_lines() {
    let scratch = scratch();
    scratch.write("x.en", "a\nb\n");
    scratch.write("x.sw", "c\n");
    let arguments = [
        "--set",
        "data.sources.0.path={en = 'x.en', sw = 'x.sw'}",
        "--set",
        "data.sources.0.format=parallel",
    ];
    refuses(&scratch, &arguments, &["x.sw has 1 lines", "x.en has 2."]);
}

#[test]
fn a_builder_says_which_language_is_missing() {
    let scratch = scratch();
    let build = |build: &str| {
        let set = format!("data.sources.0.build=[{build}]");
        refuses(
            &scratch,
            &["--set", &set],
            &["data.sources.0.build.0.to", "fr", "ar, en, hi, sw"],
        );
    };
    build("{kind = 'translation', to = ['fr']}");
    build("{kind = 'crossin', to = ['sw', 'fr']}");
    let set = "data.sources.0.build=[{kind = 'crossin', to = ['sw'], count = 3}]";
    let report = scratch
        .run(["validate", "recipe.toml", "--json", "--samples", "6", "--set", set])
        .succeeds()
        .json();
    let previews = report["stages"][0]["previews"].as_array().unwrap();
    assert_eq!(previews.len(), 6, "{report}");
    let described = |preview: &serde_json::Value| preview["sample"].as_str().unwrap().contains("crossin");
    assert!(previews.iter().all(described), "{report}");
}

#[test]
fn bad_rows_can_be_skipped_and_are_counted() {
    let scratch = scratch();
    let rows = scratch.read("data.jsonl");
    scratch.write("data.jsonl", format!("{rows}{{\"lang\": \"sw\"}}\nnot json\n"));
    let report = scratch
        .run(["validate", "recipe.toml", "--json", "--set", "data.on_bad_row=skip"])
        .succeeds()
        .json();
    let skipped = report["stages"][0]["sources"][0]["skipped"].as_object().unwrap();
    let rows: u64 = skipped.values().map(|kind| kind["rows"].as_u64().unwrap()).sum();
    assert_eq!(rows, 2, "{report}");
}

#[test]
fn models_that_cannot_be_used_are_named() {
    let scratch = scratch();
    refuses(
        &scratch,
        &["--set", "model.init=weights"],
        &["base", "model.safetensors"],
    );
    refuses(&scratch, &["--set", "model.path=./nowhere"], &["nowhere"]);
    refuses(
        &scratch,
        &["--set", "model.path=Qwen/Qwen2-1.5B"],
        &["Qwen/Qwen2-1.5B", "HF_HUB_OFFLINE"],
    );
    let config = scratch.read("base/config.json");
    scratch.write(
        "base/config.json",
        config
            .replace("LlamaForCausalLM", "NewForCausalLM")
            .replace("\"llama\"", "\"new\""),
    );
    refuses(&scratch, &[], &["config.json", "NewForCausalLM", "LlamaForCausalLM"]);
    scratch.write("base/config.json", &config);
    std::fs::remove_file(scratch.path("base/tokenizer.json")).unwrap();
    refuses(&scratch, &[], &["base", "tokenizer.json"]);
}

#[test]
fn a_tokenizer_without_a_template_names_the_built_in_ones() {
    let scratch = scratch();
    scratch.write("base/tokenizer_config.json", r#"{"eos_token": "<|im_end|>"}"#);
    refuses(&scratch, &[], &["template", "chatml"]);
    refuses(&scratch, &["--set", "data.template=chatlm"], &["chatlm", "chatml"]);
    scratch
        .run(["validate", "recipe.toml", "--set", "data.template=chatml"])
        .succeeds();
}

#[test]
fn an_adapter_of_another_model_is_refused() {
    let scratch = scratch();
    let adapter = workspace().join("tests/fixtures/lora/llama.lora");
    let set = format!("adapter.init_from={}", adapter.display());
    let kind = [
        "--set",
        "adapter.kind=lora",
        "--set",
        &set,
        "--set",
        "adapter.rank=4",
        "--set",
        "adapter.alpha=8",
    ];
    let ran = scratch.run([&["train", "recipe.toml"], &kind[..]].concat());
    ran.refuses(2, &["adapter"]);
    assert!(!scratch.path("run").exists());
}

#[test]
fn a_batch_larger_than_the_data_is_refused() {
    let scratch = scratch();
    refuses(&scratch, &["--set", "train.batch_size=40"], &["batch_size", "48"]);
}

#[test]
fn a_folder_that_cannot_be_written_is_refused() {
    let scratch = scratch();
    scratch
        .run(["train", "recipe.toml", "--set", "output=/proc/interlingua/run"])
        .refuses(2, &["/proc/interlingua"]);
    scratch.write("file", "");
    scratch
        .run(["train", "recipe.toml", "--set", "output=file/run"])
        .refuses(2, &["file/run"]);
}

#[test]
fn the_folder_of_another_recipe_is_refused_and_fresh_moves_it() {
    let scratch = scratch();
    scratch.run(["train", "recipe.toml"]).succeeds();
    let metrics = scratch.read("run/metrics.jsonl");
    let changed = ["train", "recipe.toml", "--set", "optimizer.learning_rate=2e-3"];
    scratch
        .run(changed)
        .refuses(2, &["run", "optimizer.learning_rate", "--fresh"]);
    assert_eq!(scratch.read("run/metrics.jsonl"), metrics);
    scratch.run([&changed[..], &["--fresh"]].concat()).succeeds();
    assert_eq!(scratch.read("run.old-1/metrics.jsonl"), metrics);
}

#[test]
fn a_loss_that_is_not_a_number_names_step_languages_and_samples() {
    let scratch = scratch();
    let set = [
        "--set",
        "optimizer.learning_rate=1e30",
        "--set",
        "schedule.kind=constant",
        "--set",
        "schedule.warmup=0",
    ];
    let ran = scratch.run([&["train", "recipe.toml"], &set[..]].concat());
    ran.refuses(1, &["step", "not a finite number", "data.jsonl"]);
}

#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let scratch = scratch();
    scratch.run(["train", "recipe.toml"]).succeeds();
    let newest = scratch.path("run/checkpoint-8");
    let tensors = std::fs::read_dir(&newest).unwrap().flatten().map(|entry| entry.path());
    let tensors = tensors.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&tensors).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    std::fs::write(&tensors, bytes).unwrap();
    let ran = scratch.run(["train", "recipe.toml", "--set", "train.steps=10"]);
    assert!(ran.succeeds().stderr.contains("checkpoint-8"), "{ran:?}");
    assert!(ran.stderr.contains("checkpoint-6"), "{ran:?}");
}

/// A limit on the size of files stands in for a full disk: a write fails in the same way, with another number.
#[test]
fn a_full_disk_ends_the_run_and_leaves_what_was_saved() {
    let scratch = scratch();
    scratch.run(["prepare", "recipe.toml"]).succeeds();
    let run = scratch.command(["train", "recipe.toml"]);
    let mut limited = Command::new("bash");
    limited
        .args(["-c", "trap '' XFSZ; ulimit -f 16; exec \"$0\" \"$@\""])
        .arg(run.get_program())
        .args(run.get_args());
    for (name, value) in run.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    let ran: Ran = limited.current_dir(scratch.path("")).output().unwrap().into();
    ran.refuses(1, &["run"]);
    assert!(!scratch.path("run/summary.json").exists());
    scratch.run(["train", "recipe.toml"]).succeeds();
}

#[test]
fn shards_that_are_damaged_or_of_another_shape_are_named() {
    let scratch = Scratch::new();
    scratch.copy("tests/fixtures/models/llama", "model");
    scratch.copy("tests/fixtures/models/llama.golden.safetensors", "golden.safetensors");
    let verify = || scratch.run(["verify", "model", "golden.safetensors"]);
    verify().succeeds();
    scratch
        .run(["verify", "model", "golden.safetensors", "--atol", "0", "--rtol", "0"])
        .refuses(1, &[]);
    scratch
        .run(["verify", "model", "missing.safetensors"])
        .refuses(2, &["missing.safetensors"]);

    let config = scratch.read("model/config.json");
    scratch.write(
        "model/config.json",
        config.replace("\"intermediate_size\": ", "\"intermediate_size\": 1"),
    );
    verify().refuses(2, &["mlp.", "expected"]);
    scratch.write("model/config.json", config);

    let shard = "model/model-00002-of-00002.safetensors";
    let bytes = std::fs::read(scratch.path(shard)).unwrap();
    scratch.write(shard, &bytes[..bytes.len() - 100]);
    verify().refuses(2, &["model-00002-of-00002.safetensors"]);
    std::fs::remove_file(scratch.path(shard)).unwrap();
    verify().refuses(2, &["model-00002-of-00002.safetensors"]);
}
