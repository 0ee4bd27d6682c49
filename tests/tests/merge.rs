//! Merging through the binary: models, adapters, and stages of a recipe.

#![cfg(test)]

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use interlingua_tests::adapter_run::{self, arguments};
use interlingua_tests::binary::{Scratch, workspace};
use interlingua_tests::numbers::{assert_close, tensors};
use interlingua_tests::tiny;

/// A recipe with its `output` and two stages `one` and `two` from the same start, then `both`, which merges them.
fn with_stages(recipe: &str, of_two: &str, merge: &str) -> String {
    format!(
        "{recipe}\n[[stage]]\nname = \"one\"\n\n[[stage]]\nname = \"two\"\nseed = 7\n{of_two}\n\n[[stage]]\nname = \"both\"\nmerge = {merge}\n"
    )
}

/// A random tiny model that was trained for no step, and a recipe that trains all its weights in two stages and merges them.
fn models(merge: &str) -> Scratch {
    let scratch = Scratch::new();
    tiny::write(&scratch);
    scratch
        .run([
            "train",
            "recipe.toml",
            "--set",
            "train.steps=1",
            "--set",
            "output=start",
        ])
        .succeeds();
    let recipe = tiny::RECIPE
        .replace("path = \"base\"\ninit = \"random\"", "path = \"start/model\"")
        .replace("steps = 8", "steps = 3");
    scratch.write(
        "merge.toml",
        with_stages(&recipe, "model.path = \"start/model\"", merge),
    );
    scratch
}

#[test]
fn an_adapter_merged_with_itself_stays_the_same() {
    let scratch = Scratch::new();
    adapter_run::write(&scratch);
    scratch.run(arguments(&["train.steps=3"])).succeeds();
    let base = workspace().join("tests/fixtures/models/llama").display().to_string();
    for (out, options) in [
        ("exact", ["--method", "linear", "--combination", "exact"]),
        ("entries", ["--method", "linear", "--combination", "entry-wise"]),
        ("slerp", ["--method", "slerp", "--weights", "0.3,0.7"]),
        ("ties", ["--method", "ties", "--density", "1"]),
    ] {
        let paths = ["--json", "--out", out, "run/adapter", "run/adapter"];
        let merged = scratch.run([&["merge"], options.as_slice(), paths.as_slice()].concat());
        let report = merged.succeeds().json();
        let distance = report["parents"][1]["distance"].as_f64().unwrap();
        assert!(distance < 1e-5, "{report}");
        let export = |adapter: &str, out: &str| {
            let arguments = [
                "export",
                "--model",
                &base,
                "--adapter",
                adapter,
                "--merge",
                "--out",
                out,
            ];
            scratch.run(arguments).succeeds();
        };
        if !scratch.path("alone").exists() {
            export("run/adapter", "alone");
        }
        let model = format!("{out}-model");
        export(out, &model);
        let weights = |folder: &str| scratch.path(&format!("{folder}/model.safetensors"));
        assert_close(&weights(&model), &weights("alone"), 1e-6);
    }
    // Ranks add up in the exact one.
    assert!(scratch.read("exact/adapter_config.json").contains("\"r\": 8"));
    assert!(scratch.read("entries/adapter_config.json").contains("\"r\": 4"));
}

#[test]
fn two_models_become_their_weighted_mean() {
    let scratch = models("{ method = \"linear\", of = [\"one\", \"two\"] }");
    scratch.run(["train", "merge.toml", "-q"]).succeeds();
    let inputs = ["--out", "out", "run/one/model", "run/two/model"];
    let merged = scratch.run(
        [
            &["merge", "--method", "linear", "--weights", "3", "1"],
            inputs.as_slice(),
        ]
        .concat(),
    );
    assert!(
        merged.succeeds().stderr.contains("are taken as 0.75, 0.25"),
        "{merged:?}"
    );
    let read = |folder: &str| tensors(&scratch.path(&format!("{folder}/model.safetensors")));
    let (one, two, out) = (read("run/one/model"), read("run/two/model"), read("out"));
    assert!(out.keys().eq(one.keys()) && !out.is_empty());
    for (name, out) in &out {
        for (position, value) in out.iter().enumerate() {
            let expected = 0.75 * one[name][position] + 0.25 * two[name][position];
            assert!((value - expected).abs() < 1e-6, "{name}: {value} {expected}");
        }
    }
    assert_ne!(one, two);
    let answer = [
        "generate",
        "--model",
        "out",
        "--prompt",
        "Habari",
        "--max-new-tokens",
        "2",
    ];
    scratch.run(answer).succeeds();
    // The folder holds a model now.
    let again = scratch.run([&["merge", "--method", "slerp"], inputs.as_slice()].concat());
    again.refuses(2, &["out: there is a model in this folder already"]);
    let without_base = [
        "merge",
        "--method",
        "ties",
        "--out",
        "new",
        "run/one/model",
        "run/two/model",
    ];
    scratch.run(without_base).refuses(2, &["ties", "--base"]);
}

#[test]
fn what_does_not_fit_together_is_refused_and_nothing_is_written() {
    let scratch = Scratch::new();
    let fixture = |name: &str| workspace().join("tests/fixtures").join(name).display().to_string();
    let refuses = |inputs: [&str; 2], parts: &[&str]| {
        let [one, two] = inputs.map(fixture);
        let merged = scratch.run(["merge", "--method", "linear", "--out", "out", &one, &two]);
        merged.refuses(2, parts);
        assert!(fs::read_dir(scratch.path("")).unwrap().next().is_none());
    };
    refuses(
        ["models/llama", "models/mistral"],
        &["models/llama", "models/mistral", "tensor `"],
    );
    refuses(["models/llama", "lora/llama.lora"], &["is an adapter and"]);
    refuses(["lora/llama.lora", "lora/qwen2.lora"], &["tensor `"]);
    refuses(["lora/llama.dora", "lora/llama.dora"], &["DoRA"]);
    refuses(["models/llama", "models/none"], &["models/none"]);
}

#[test]
fn a_merge_stage_runs_once_and_the_next_stage_goes_on_from_it() {
    let scratch = models("{ method = \"slerp\", of = [\"one\", \"two\"] }");
    let recipe = scratch.read("merge.toml");
    scratch.write("merge.toml", format!("{recipe}\n[[stage]]\nname = \"on\"\n"));
    let validated = scratch.run(["validate", "merge.toml", "--json"]).succeeds().json();
    assert_eq!(validated["merges"][0]["stage"], "both");
    assert_eq!(validated["stages"].as_array().unwrap().len(), 3);
    let ran = scratch.run(["train", "merge.toml"]);
    assert!(ran.succeeds().stderr.contains("merged one and two"), "{ran:?}");
    let merged = scratch.path("run/both/model/model.safetensors");
    let written = fs::metadata(&merged).unwrap().modified().unwrap();
    assert!(scratch.read("run/on/recipe.toml").contains("run/both/model"));
    let again = scratch.run(["train", "merge.toml"]);
    assert!(again.succeeds().stdout.contains("already finished"), "{again:?}");
    assert_eq!(fs::metadata(&merged).unwrap().modified().unwrap(), written);
    // The stage gives what the command gives.
    let by_command = [
        "merge",
        "--method",
        "slerp",
        "--out",
        "out",
        "run/one/model",
        "run/two/model",
    ];
    scratch.run(by_command).succeeds();
    assert_eq!(
        fs::read(merged).unwrap(),
        fs::read(scratch.path("out/model.safetensors")).unwrap()
    );
    let other = ["train", "merge.toml", "--set", "stage.2.merge.weights=[1, 2]"];
    scratch.run(other).refuses(2, &["merge.weights", "--fresh"]);
}

#[test]
fn merged_adapters_can_be_trained_on() {
    let scratch = Scratch::new();
    adapter_run::write(&scratch);
    let merge = "{ method = \"ties\", of = [\"one\", \"two\"], density = 0.5 }";
    let recipe = with_stages(&scratch.read("recipe.toml"), "adapter.init_from = \"\"", merge);
    scratch.write("recipe.toml", format!("{recipe}\n[[stage]]\nname = \"on\"\n"));
    scratch.run(arguments(&["train.steps=2"])).succeeds();
    assert!(scratch.read("run/on/recipe.toml").contains("run/both/adapter"));
    assert!(scratch.read("run/both/adapter/README.md").contains("density 0.5"));
}

#[test]
fn a_killed_merge_leaves_a_whole_folder_or_none() {
    let scratch = models("{ method = \"linear\", of = [\"one\", \"two\"] }");
    scratch.run(["train", "merge.toml", "-q"]).succeeds();
    let whole = fs::read(scratch.path("run/both/model/model.safetensors")).unwrap();
    let both = scratch.path("run/both");
    let is_whole = |folder: &Path| fs::read(folder.join("model/model.safetensors")).is_ok_and(|found| found == whole);
    let mut cut = 0;
    for delay in 0..12 {
        fs::remove_dir_all(&both).unwrap();
        let mut command = scratch.command(["train", "merge.toml", "-q"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // The record is written right before the merge begins.
        let start = Instant::now();
        while !both.join("merge.json").exists() && start.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(Duration::from_micros(500 * delay));
        child.kill().unwrap();
        child.wait().unwrap();
        let model = both.join("model");
        assert!(
            !model.exists() || is_whole(&both),
            "half a folder after {delay}: {model:?}"
        );
        cut += usize::from(!model.exists());
        scratch.run(["train", "merge.toml", "-q"]).succeeds();
        assert!(is_whole(&both));
        assert!(!both.join(".model.partial").exists());
    }
    assert!(cut > 0, "no merge was cut short, so this showed nothing");
}
