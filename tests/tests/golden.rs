//! What Transformers and PEFT compute, through the real command line: `verify`, `export` and `train` on the fixtures.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

use std::path::{Path, PathBuf};

use interlingua_tests::binary::{Scratch, workspace};
use interlingua_tests::numbers::{assert_close, column, tensors};
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    workspace().join("tests/fixtures").join(name)
}

fn json(name: &str) -> Value {
    let text = std::fs::read_to_string(fixture(name)).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Fixtures of a folder that end so, without the ending.
fn names(folder: &str, ending: &str) -> Vec<String> {
    let entries = std::fs::read_dir(fixture(folder)).unwrap().flatten();
    let names = entries.filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(ending)?.to_owned()));
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn verify_passes_on_every_model() {
    let scratch = Scratch::new();
    let names = names("models", ".golden.safetensors");
    assert_eq!(names.len(), 32);
    for name in names {
        let tolerance = json(&format!("models/{name}.golden.json"))["tolerance"]["logits"].to_string();
        let model = fixture("models").join(name.split('.').next().unwrap());
        let golden = fixture(&format!("models/{name}.golden.safetensors"));
        let ran = scratch.run([
            "verify",
            text(&model),
            text(&golden),
            "--atol",
            &tolerance,
            "--rtol",
            "0",
            "--json",
        ]);
        let result = ran.succeeds().json();
        assert!(result["tensors"].as_array().unwrap().len() > 4, "{name}: {result}");
    }
}

#[test]
fn verify_passes_with_every_adapter_and_the_merged_model_is_that_of_peft() {
    let scratch = Scratch::new();
    let names = names("lora", ".golden.safetensors");
    assert_eq!(names.len(), 22);
    for name in names {
        let facts = json(&format!("lora/{name}.golden.json"));
        let model = fixture("models").join(name.split('.').next().unwrap());
        let adapter = fixture(&format!("lora/{name}"));
        let golden = fixture(&format!("lora/{name}.golden.safetensors"));
        let tolerance = facts["tolerance"]["logits"].to_string();
        let verify = [
            "verify",
            text(&model),
            text(&golden),
            "--rtol",
            "0",
            "--atol",
            &tolerance,
        ];
        scratch
            .run([&verify[..], &["--adapter", text(&adapter)]].concat())
            .succeeds();
        scratch.run(verify).refuses(1, &[]);

        let out = format!("merged-{name}");
        let export = [
            "export",
            "--merge",
            "--model",
            text(&model),
            "--adapter",
            text(&adapter),
        ];
        scratch.run([&export[..], &["--out", &out]].concat()).succeeds();
        let merged = scratch.path(&out);
        // A base in fewer bits is merged in its own format, which rounds.
        let rounding = rounding(name.split('.').next().unwrap());
        if rounding == 0.0 {
            let tolerance = facts["tolerance"]["merged_logits"].to_string();
            let verify = ["verify", text(&merged), text(&golden), "--rtol", "0"];
            scratch.run([&verify[..], &["--atol", &tolerance]].concat()).succeeds();
        }
        let weights = tensors(&merged.join("model.safetensors"));
        let tolerance = facts["tolerance"]["merged_weight"].as_f64().unwrap();
        let mut compared = 0;
        for (tensor, expected) in tensors(&golden) {
            let Some(tensor) = tensor.strip_prefix("merged.") else {
                continue;
            };
            compared += 1;
            // A base without a prefix is written with it.
            let found = weights
                .get(tensor)
                .or_else(|| weights.get(&format!("transformer.{tensor}")));
            let found = found.unwrap_or_else(|| panic!("{name}: there is no {tensor}"));
            for (found, expected) in found.iter().zip(&expected) {
                let allowed = tolerance + rounding * f64::from(expected.abs());
                assert!(
                    f64::from((found - expected).abs()) <= allowed,
                    "{name}: {tensor}: {found}, expected {expected}"
                );
            }
        }
        assert!(compared > 0, "{name}");
    }
}

/// What writing a number in the format of a model's files may change of it.
fn rounding(model: &str) -> f64 {
    match json(&format!("models/{model}.golden.json"))["checkpoint_dtype"].as_str() {
        Some("bfloat16") => 2f64.powi(-8),
        Some("float16") => 2f64.powi(-11),
        _ => 0.0,
    }
}

/// Trains as `trajectory.json` of a fixture says, and compares every step.
fn follow(scratch: &Scratch, name: &str) -> Value {
    let model = json(&format!("{name}/trajectory.json"))["run"]["model"].clone();
    follow_on(scratch, name, &fixture(model.as_str().unwrap()), "")
}

/// The same on another model, and with more lines in the recipe.
fn follow_on(scratch: &Scratch, name: &str, model: &Path, more: &str) -> Value {
    let facts = json(&format!("{name}/trajectory.json"));
    let run = &facts["run"];
    let folder = fixture(name);
    let adapter = run["rank"].as_u64().map_or_else(String::new, |rank| {
        let (alpha, init) = (&run["alpha"], folder.join("adapter_init"));
        format!("[adapter]\nrank = {rank}\nalpha = {alpha}\ndropout = 0.0\ninit_from = {init:?}\n")
    });
    let recipe = format!(
        "output = \"run\"\n[model]\npath = {model:?}\ndevice = \"cpu\"\ndtype = \"f32\"\n{adapter}\
         [data]\nshuffle = false\npacking = false\nmax_length = 512\n\
         [[data.sources]]\npath = {data:?}\nformat = \"tokens\"\n\
         [optimizer]\nlearning_rate = {rate}\nbetas = {betas}\neps = {eps}\nweight_decay = {decay}\nmax_grad_norm = {norm}\n\
         [schedule]\nkind = {schedule}\nwarmup = {warmup}\n\
         [train]\nsteps = {steps}\nbatch_size = {batch}\ngradient_accumulation = {accumulation}\n{more}",
        data = folder.join("train.jsonl"),
        rate = run["learning_rate"],
        betas = run["betas"],
        eps = run["eps"],
        decay = run["weight_decay"],
        norm = run["max_grad_norm"],
        schedule = run["schedule"],
        warmup = run["warmup_steps"],
        steps = run["steps"],
        batch = run["batch_size"],
        accumulation = run["gradient_accumulation"],
    );
    scratch.write("recipe.toml", recipe);
    scratch.run(["train", "recipe.toml", "--fresh"]).succeeds();
    let tolerance = |key: &str| facts["tolerance"][key].as_f64().unwrap();
    let check = |key: &str, expected: &str, allowed: &dyn Fn(f64) -> f64| {
        let expected: Vec<f64> = serde_json::from_value(facts[expected].clone()).unwrap();
        let found = column(&scratch.path("run"), key);
        assert_eq!(found.len(), expected.len(), "{name}: {key}");
        for (step, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert!(
                (found - expected).abs() <= allowed(expected),
                "{name}: {key} of step {}: {found}, expected {expected}",
                step + 1
            );
        }
    };
    check("loss", "loss", &|_| tolerance("loss"));
    check("learning_rate", "learning_rate", &|_| tolerance("learning_rate"));
    check("grad_norm", "grad_norm", &|norm| tolerance("grad_norm_relative") * norm);
    check("tokens", "supervised_tokens", &|_| 0.0);
    check("tokens_total", "tokens", &|_| 0.0);
    facts
}

#[test]
fn an_adapter_follows_the_trajectory_of_peft() {
    let scratch = Scratch::new();
    let facts = follow(&scratch, "trajectories/sft_lora");
    assert_close(
        &scratch.path("run/adapter/adapter_model.safetensors"),
        &fixture("trajectories/sft_lora/adapter_final/adapter_model.safetensors"),
        facts["tolerance"]["final_relative"].as_f64().unwrap(),
    );
}

#[test]
fn full_fine_tuning_follows_the_trajectory_of_transformers() {
    let scratch = Scratch::new();
    let facts = follow(&scratch, "trajectories/sft_full");
    assert_close(
        &scratch.path("run/model/model.safetensors"),
        &fixture("trajectories/sft_full/final.safetensors"),
        facts["tolerance"]["final_relative"].as_f64().unwrap(),
    );
}

/// The schemes of the QLoRA fixtures, as recipes write them.
const SCHEMES: [(&str, &str); 3] = [
    ("nf4_double", "[model.quantization]\nscheme = \"nf4\"\n"),
    ("nf4", "[model.quantization]\nscheme = \"nf4\"\ndouble = false\n"),
    ("int8", "[model.quantization]\nscheme = \"int8\"\n"),
];

fn assert_final_adapter(scratch: &Scratch, name: &str, facts: &Value) {
    assert_close(
        &scratch.path("run/adapter/adapter_model.safetensors"),
        &fixture(&format!("{name}/adapter_final/adapter_model.safetensors")),
        facts["tolerance"]["final_relative"].as_f64().unwrap(),
    );
}

#[test]
fn an_adapter_on_a_quantised_base_follows_the_trajectory_of_peft() {
    let scratch = Scratch::new();
    for (scheme, recipe) in SCHEMES {
        let name = format!("qlora/{scheme}");
        let facts = follow_on(&scratch, &name, &fixture("qlora/base"), recipe);
        assert_final_adapter(&scratch, &name, &facts);
        let plain = facts["first_loss_without_quantisation"].as_f64().unwrap();
        let first = column(&scratch.path("run"), "loss")[0];
        assert!((first - plain).abs() > 1e-3, "{scheme}: the base is quantised");
    }
}

#[test]
fn what_transformers_saved_quantised_trains_as_it_is() {
    let scratch = Scratch::new();
    for (scheme, _) in SCHEMES {
        let name = format!("qlora/{scheme}");
        let saved = fixture(&format!("qlora/saved/{scheme}"));
        let facts = follow_on(&scratch, &name, &saved, "");
        assert_final_adapter(&scratch, &name, &facts);
    }
}

#[test]
fn weights_in_their_files_and_blocks_made_again_follow_the_same_trajectory() {
    let scratch = Scratch::new();
    let (scheme, recipe) = SCHEMES[0];
    let name = format!("qlora/{scheme}");
    let memory = format!("{recipe}[memory]\noffload = \"weights\"\nrecompute = \"block\"\n");
    let facts = follow_on(&scratch, &name, &fixture("qlora/base"), &memory);
    assert_final_adapter(&scratch, &name, &facts);
}

#[test]
fn an_adapter_of_a_quantised_base_merges_into_what_it_was_trained_on_or_into_the_original() {
    let scratch = Scratch::new();
    let (scheme, recipe) = SCHEMES[0];
    let base = fixture("qlora/base");
    follow_on(&scratch, &format!("qlora/{scheme}"), &base, recipe);
    let export = [
        "export",
        "--merge",
        "--model",
        text(&base),
        "--adapter",
        "run/adapter",
        "--json",
    ];
    let merged = |out: &str, onto: &str| -> Value {
        let ran = scratch.run([&export[..], &["--out", out, "--onto", onto]].concat());
        ran.succeeds().json()
    };
    let onto_dequantized = merged("dequantized", "dequantized");
    let onto_original = merged("original", "original");
    let shift = |report: &Value| report["max_logit_shift"].as_f64().unwrap();
    let rounding = onto_dequantized["max_logit_difference"].as_f64().unwrap();
    assert_eq!(shift(&onto_dequantized), rounding, "merged into what it was trained on");
    assert!(shift(&onto_original) > 4.0 * rounding, "{onto_original}");
    for out in ["dequantized", "original"] {
        let config = std::fs::read_to_string(scratch.path(out).join("config.json")).unwrap();
        assert!(!config.contains("quantization_config"), "{out}");
    }

    // A folder that is quantised itself has nothing else to merge into.
    let saved = fixture(&format!("qlora/saved/{scheme}"));
    let export = ["export", "--merge", "--model", text(&saved), "--adapter", "run/adapter"];
    scratch
        .run([&export[..], &["--out", "refused", "--onto", "original"]].concat())
        .refuses(2, &["quantised themselves"]);
    scratch.run([&export[..], &["--out", "saved"]].concat()).succeeds();
}
