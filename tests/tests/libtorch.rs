//! The same numbers through LibTorch: `verify` on every model and adapter of the fixtures, and training as on a CPU.
#![cfg(feature = "tch")]
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

use std::path::{Path, PathBuf};

use interlingua_tests::binary::{Scratch, workspace};
use interlingua_tests::numbers::column;
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    workspace().join("tests/fixtures").join(name)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What a fixture allows, by its name without `.golden.json`.
fn tolerance(name: &str, of: &str) -> String {
    let path = fixture(&format!("{name}.golden.json"));
    let facts: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    facts["tolerance"][of].to_string()
}

/// Names of a folder's references, without their ending.
fn references(folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(fixture(folder)).unwrap().map(Result::unwrap);
    let names = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        Some(name.strip_suffix(".golden.safetensors")?.to_owned())
    });
    names.collect()
}

#[test]
fn libtorch_passes_verify_on_every_model() {
    let scratch = Scratch::new();
    let names = references("models");
    assert_eq!(names.len(), 11);
    for name in names {
        let tolerance = tolerance(&format!("models/{name}"), "logits");
        let model = fixture("models").join(name.trim_end_matches(".padded"));
        let golden = fixture(&format!("models/{name}.golden.safetensors"));
        let verify = ["verify", text(&model), text(&golden), "--device", "tch", "--rtol", "0"];
        let ran = scratch.run([&verify[..], &["--atol", &tolerance, "--json"]].concat());
        assert!(ran.succeeds().json()["tensors"].as_array().unwrap().len() > 4, "{name}");
    }
}

#[test]
fn libtorch_passes_verify_with_every_adapter() {
    let scratch = Scratch::new();
    let names = references("lora");
    assert_eq!(names.len(), 7);
    for name in names {
        let tolerance = tolerance(&format!("lora/{name}"), "logits");
        let model = fixture("models").join(name.split('.').next().unwrap());
        let golden = fixture(&format!("lora/{name}.golden.safetensors"));
        let adapter = fixture(&format!("lora/{name}"));
        let verify = ["verify", text(&model), text(&golden), "--device", "tch", "--rtol", "0"];
        let with = ["--atol", &tolerance, "--adapter", text(&adapter)];
        scratch.run([&verify[..], &with].concat()).succeeds();
    }
}

#[test]
fn libtorch_generates_what_the_cpu_generates() {
    let scratch = Scratch::new();
    let base = workspace().join("recipes/quickstart/base");
    let answer = |device: &str| {
        let generate = [
            "generate",
            "--model",
            text(&base),
            "--chat",
            "--max-new-tokens",
            "40",
            "--device",
            device,
        ];
        let ran = scratch.run([&generate[..], &["--prompt", "Will it rain in Helsinki tomorrow?"]].concat());
        ran.succeeds().stdout.clone()
    };
    assert_eq!(answer("tch"), answer("cpu"));
}

/// Recipes that between them use every part of a training step: name, number format, tables, optimizer, and how far losses may
/// be apart.
#[test]
fn libtorch_trains_as_the_cpu_does() {
    let scratch = Scratch::new();
    let lora = "[adapter]\nrank = 4\nalpha = 8\ndropout = 0.1\n";
    let dora = "[adapter]\nkind = \"dora\"\nrank = 4\nalpha = 8\n[memory]\nrecompute = \"block\"\n";
    let nf4 = "[model.quantization]\nscheme = \"nf4\"\ndouble = true\n[adapter]\nrank = 4\nalpha = 8\n";
    let int8 = "[model.quantization]\nscheme = \"int8\"\n[adapter]\nrank = 4\nalpha = 8\n";
    let recipes = [
        ("lora", "f32", lora, "adamw", 1e-4),
        ("dora", "f32", dora, "adamw", 1e-4),
        ("full", "f32", "", "adamw", 1e-4),
        ("nf4", "f32", nf4, "adamw", 1e-4),
        ("int8", "f32", int8, "adamw", 1e-4),
        // A moment between two codes may go either way.
        ("full-8bit", "f32", "", "adamw8bit", 1e-3),
        // Sums are rounded in another order, to eight bits.
        ("lora-bf16", "bf16", lora, "adamw", 2e-2),
    ];
    for (name, dtype, tables, optimizer, allowed) in recipes {
        let losses = |device: &str| {
            let recipe = format!(
                "output = \"{name}-{device}\"\n[model]\npath = {:?}\ndevice = \"{device}\"\ndtype = \"{dtype}\"\n{tables}\
                 [data]\nmax_length = 128\n[[data.sources]]\npath = {:?}\nformat = \"tokens\"\n\
                 [optimizer]\nkind = \"{optimizer}\"\nlearning_rate = 2e-3\n[train]\nsteps = 12\nbatch_size = 2\ngradient_accumulation = 2\n",
                fixture("models/llama"),
                fixture("trajectories/sft_lora/train.jsonl"),
            );
            scratch.write("recipe.toml", recipe);
            scratch.run(["train", "recipe.toml"]).succeeds();
            let run = scratch.path(&format!("{name}-{device}"));
            (column(&run, "loss"), column(&run, "memory_bytes"))
        };
        let ((found, memory), (expected, _)) = (losses("tch"), losses("cpu"));
        assert_eq!(found.len(), 12);
        assert!(
            expected[0] - expected[11] > 0.01,
            "{name}: nothing is learnt: {expected:?}"
        );
        for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let off = (found - expected).abs();
            assert!(off <= allowed, "{name}, step {}: {found}, {expected}", step + 1);
        }
        assert!(memory.iter().all(|bytes| *bytes > 1e6), "{name}: {memory:?}");
    }
}
