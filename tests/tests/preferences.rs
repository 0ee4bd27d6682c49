//! Preference objectives and auxiliary losses through the command line: trajectories of PyTorch, resuming, the reference's
//! cache, held-out pairs, and what is refused before anything starts.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

use std::path::PathBuf;

use interlingua_tests::adapter_run::arguments;
use interlingua_tests::binary::{Scratch, workspace};
use interlingua_tests::numbers::{column, rows, tensors};
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    workspace().join("tests/fixtures").join(name)
}

fn json(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixture(name)).unwrap()).unwrap()
}

/// A recipe that goes on from the fixtures' adapter, compared with the bare base, on one of their files.
fn write(scratch: &Scratch, objective: &Value, data: &str, (batch_size, accumulation): (u64, u64)) {
    let (base, adapter, data) = (fixture("models/llama"), fixture("lora/llama.lora"), fixture(data));
    let config: Value =
        serde_json::from_str(&std::fs::read_to_string(adapter.join("adapter_config.json")).unwrap()).unwrap();
    let keys: String = objective
        .as_object()
        .unwrap()
        .iter()
        .map(|(key, value)| format!("{key} = {value}\n"))
        .collect();
    let reference = match objective["kind"].as_str().unwrap() {
        "dpo" | "robust" | "hinge" | "ipo" | "kto" => "[reference]\nadapter = \"off\"\n",
        _ => "",
    };
    let recipe = format!(
        "output = \"run\"\n[model]\npath = {base:?}\ndevice = \"cpu\"\n[adapter]\nrank = {}\nalpha = {}\ninit_from = {adapter:?}\n\
         [data]\nshuffle = false\nmax_length = 256\n[[data.sources]]\npath = {data:?}\nformat = \"tokens\"\n[objective]\n{keys}\
         {reference}[optimizer]\nlearning_rate = 1e-3\n[schedule]\nkind = \"constant\"\nwarmup = 0\n[train]\nsteps = 6\n\
         batch_size = {batch_size}\ngradient_accumulation = {accumulation}\ncheckpoint_every = 2\n",
        config["r"], config["lora_alpha"]
    );
    scratch.write("recipe.toml", recipe);
}

#[test]
fn trajectories_are_those_of_pytorch() {
    let facts = json("preference/trajectories.json");
    let tolerance = |name: &str| facts["tolerance"][name].as_f64().unwrap();
    for (name, run) in facts["runs"].as_object().unwrap() {
        let scratch = Scratch::new();
        let number = |key: &str| run[key].as_u64().unwrap();
        let cut = (number("batch_size"), number("gradient_accumulation"));
        let data = format!("preference/{}", run["data"].as_str().unwrap());
        write(&scratch, &run["objective"], &data, cut);
        scratch.run(arguments(&[])).succeeds();
        let output = scratch.path("run");
        let expected = |key: &str| -> Vec<f64> {
            run[key]
                .as_array()
                .unwrap()
                .iter()
                .map(|value| value.as_f64().unwrap())
                .collect()
        };
        for (found, expected) in column(&output, "loss").iter().zip(expected("loss")) {
            assert!(
                (found - expected).abs() <= tolerance("loss"),
                "{name}: loss {found}, expected {expected}"
            );
        }
        for (found, expected) in column(&output, "grad_norm").iter().zip(expected("grad_norm")) {
            let off = (found / expected - 1.0).abs();
            assert!(
                off <= tolerance("grad_norm_relative"),
                "{name}: norm {found}, expected {expected}"
            );
        }
        let found = tensors(&output.join("adapter/adapter_model.safetensors"));
        let last = tensors(&fixture(&format!("preference/{}", run["final"].as_str().unwrap())));
        let square: f64 = last
            .iter()
            .flat_map(|(name, values)| values.iter().zip(&found[name]))
            .map(|(one, other)| f64::from(one - other).powi(2))
            .sum();
        let off = square.sqrt() / run["change_norm"].as_f64().unwrap();
        assert!(
            off <= tolerance("change_relative"),
            "{name}: the adapter is off by {off} of its change"
        );
        let rewards = rows(&output, "train").last().unwrap()["rewards"].clone();
        assert!(rewards.is_object(), "{name}");
    }
}

#[test]
fn a_stopped_run_goes_on_to_the_same_bytes_also_from_the_cache_of_its_reference() {
    let objective = serde_json::json!({ "kind": "dpo", "beta": 0.1 });
    for (cache, initial) in [(false, false), (true, false), (false, true)] {
        let scratch = Scratch::new();
        write(&scratch, &objective, "preference/pairs.jsonl", (2, 2));
        let mut settings = vec![
            "data.shuffle=true",
            "data.holdout=0.2",
            "objective.dropout=true",
            "adapter.dropout=0.1",
        ];
        if cache {
            settings.push("reference.cache=true");
        }
        if initial {
            settings.push("reference.adapter=initial");
        }
        let adapter =
            |output: &str| std::fs::read(scratch.path(output).join("adapter/adapter_model.safetensors")).unwrap();
        let whole = [&settings[..], &["output=whole", "train.steps=6"]].concat();
        scratch.run(arguments(&whole)).succeeds();
        // Two parts: the second start is another process.
        let parts = [&settings[..], &["output=parts"]].concat();
        scratch
            .run(arguments(&[&parts[..], &["train.steps=3"]].concat()))
            .succeeds();
        scratch
            .run(arguments(&[&parts[..], &["train.steps=6"]].concat()))
            .succeeds();
        assert_eq!(adapter("whole"), adapter("parts"), "cache {cache}, initial {initial}");
        let (one, other) = (
            column(&scratch.path("whole"), "loss"),
            column(&scratch.path("parts"), "loss"),
        );
        assert_eq!(one, other);
        if initial {
            // Policy and reference begin as one, but for the dropout.
            assert!((one[0] - std::f64::consts::LN_2).abs() < 0.2, "{one:?}");
        }
        let heldout = rows(&scratch.path("whole"), "eval");
        let measured = &heldout.last().unwrap()["mean"];
        assert!(
            measured["accuracy"].is_number() && measured["margin"].is_number(),
            "{measured}"
        );
    }
}

#[test]
fn what_cannot_work_is_refused_before_anything_starts() {
    let scratch = Scratch::new();
    let objective = serde_json::json!({ "kind": "dpo", "beta": 0.1 });
    write(&scratch, &objective, "preference/pairs.jsonl", (2, 2));
    let other = fixture("models/qwen2").display().to_string();
    let validate = |settings: &[&str]| {
        let mut arguments = vec!["validate", "recipe.toml"];
        settings
            .iter()
            .for_each(|setting| arguments.extend(["--set", *setting]));
        scratch.run(arguments)
    };
    validate(&[]).succeeds();
    let model = format!("reference.model={other}");
    validate(&[&model]).refuses(2, &["reference.model", "vocabulary", "leave reference.model out"]);
    validate(&[&model, "reference.adapter=initial"]).refuses(2, &["reference.adapter", "Keep one of them"]);
    validate(&["reference.adapter=nowhere"]).refuses(2, &["nowhere"]);
    validate(&["objective.gamma=1.0"]).refuses(2, &["objective.gamma", "is not read by \"dpo\"", "beta"]);
    validate(&["objective.kind=sft"]).refuses(2, &["objective.beta"]);
    let kto = json("preference/trajectories.json")["runs"]["kto"]["objective"].clone();
    write(&scratch, &kto, "preference/kto.jsonl", (1, 4));
    validate(&[]).refuses(2, &["train.batch_size", "kto", "2 or more"]);
    validate(&["train.batch_size=2", "reference.cache=true"]).refuses(2, &["reference.cache"]);
    assert!(!scratch.path("run").exists());
}

/// Texts of four groups in two languages, and a recipe whose only loss ties them together at a layer.
fn aligned(scratch: &Scratch, auxiliary: &str) {
    let rows: String = (0..4)
        .flat_map(|group| {
            ["en", "sw"].map(|lang| {
                let ids: Vec<usize> = (0..6)
                    .map(|place| (group * 13 + place * 7 + lang.len() + usize::from(lang == "sw")) % 90)
                    .collect();
                format!("{{\"id\": \"{group}\", \"lang\": \"{lang}\", \"input_ids\": {ids:?}}}\n")
            })
        })
        .collect();
    scratch.write("texts.jsonl", rows);
    let base = fixture("models/llama");
    scratch.write(
        "recipe.toml",
        format!(
            "output = \"run\"\n[model]\npath = {base:?}\n[adapter]\nrank = 4\nalpha = 8\n[data]\npacking = false\n\
             parallel = {{ languages = [\"en\", \"sw\"], groups_per_batch = 4 }}\n[[data.sources]]\nname = \"texts\"\n\
             path = \"texts.jsonl\"\nformat = \"tokens\"\n[objective]\nkind = \"none\"\n[[objective.auxiliary]]\n{auxiliary}\n\
             [optimizer]\nlearning_rate = 5e-3\n[schedule]\nkind = \"constant\"\nwarmup = 0\n[train]\nsteps = 12\nbatch_size = 8\n"
        ),
    );
}

#[test]
fn an_alignment_loss_falls_and_the_parts_above_it_stay() {
    let scratch = Scratch::new();
    aligned(&scratch, "kind = \"middle-layer\"\nlayer = 1");
    scratch.run(arguments(&[])).succeeds();
    let losses = column(&scratch.path("run"), "loss");
    assert!(losses[11] < 0.7 * losses[0], "{losses:?}");
    let row = &rows(&scratch.path("run"), "train")[0];
    assert_eq!(row["losses"]["middle-layer"], row["loss"]);
    let adapter = tensors(&scratch.path("run/adapter/adapter_model.safetensors"));
    for (name, values) in adapter.iter().filter(|(name, _)| name.contains("lora_B")) {
        let moved = values.iter().any(|value| *value != 0.0);
        assert_eq!(moved, name.contains("layers.0."), "{name}");
    }
}

#[test]
fn losses_on_layers_and_groups_are_checked_before_anything_starts() {
    let scratch = Scratch::new();
    let validate = |settings: &[&str]| {
        let mut arguments = vec!["validate", "recipe.toml"];
        settings
            .iter()
            .for_each(|setting| arguments.extend(["--set", *setting]));
        scratch.run(arguments)
    };
    aligned(&scratch, "kind = \"middle-layer\"\nlayer = 9");
    validate(&[]).refuses(2, &["objective.auxiliary.0.layer is 9", "3 blocks", "middle"]);
    validate(&["objective.auxiliary.0.layer=2"]).succeeds();
    aligned(&scratch, "kind = \"middle-layer\"");
    validate(&["train.batch_size=2"]).refuses(2, &["objective.auxiliary.0.scope", "two or more whole groups"]);
    validate(&["objective.auxiliary.0.every=1000000000"]).refuses(2, &["objective.auxiliary.0.every", "pattern"]);
    validate(&["data.parallel.languages=[]"]).refuses(2, &["Name data.parallel.languages"]);
    validate(&["data.parallel.groups_per_batch=1"]).refuses(2, &["two groups or more"]);
    validate(&["data.parallel.anchor=sw"]).succeeds();
    validate(&["data.parallel.languages=[\"ar\", \"sw\"]", "data.parallel.anchor=ar"]).refuses(2, &["data.parallel"]);
    aligned(&scratch, "kind = \"middle-layer\"\nsource = \"nowhere\"");
    validate(&[]).refuses(2, &["objective.auxiliary.0.source", "nowhere"]);
    aligned(&scratch, "kind = \"word-alignment\"");
    validate(&[]).refuses(2, &["objective.auxiliary.0.source", "is missing"]);
    aligned(&scratch, "kind = \"consistency\"");
    validate(&[]).refuses(2, &["objective.auxiliary.0.kind", "format = \"choice\""]);
    aligned(&scratch, "kind = \"consistency\"\npool = \"mean\"");
    validate(&[]).refuses(2, &["objective.auxiliary.0.pool", "is not read"]);
    assert!(!scratch.path("run").exists());
}
