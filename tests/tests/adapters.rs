//! Adapters by language, stacked ones, bottlenecks and steering vectors, through the real command line: what a run writes is what
//! the next run, `generate`, `verify` and `export` read.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use interlingua_tests::adapter_run::{arguments, write};
use interlingua_tests::binary::{Scratch, workspace};
use interlingua_tests::numbers::{rows, tensors};
use interlingua_tests::tiny;
use serde_json::Value;

/// A recipe on a fixture's model with a task that measures the training rows of each language.
fn scratch() -> Scratch {
    let scratch = Scratch::new();
    write(&scratch);
    let data = workspace().join("tests/fixtures/trajectories/sft_lora/train.jsonl");
    let task =
        format!("\n[[eval.tasks]]\nname = \"rows\"\nkind = \"perplexity\"\npath = {data:?}\nformat = \"tokens\"\n");
    scratch.write("recipe.toml", scratch.read("recipe.toml") + &task);
    scratch
}

/// The loss of each language in the first and in the last evaluation of a run.
fn losses(scratch: &Scratch, run: &str) -> [Vec<(String, f64)>; 2] {
    let rows = rows(&scratch.path(run), "eval");
    [&rows[0], &rows[rows.len() - 1]].map(|row| {
        let languages = row["by_language"].as_object().expect("an object").iter();
        languages
            .map(|(language, metrics)| (language.clone(), metrics["loss"].as_f64().expect("a loss")))
            .collect()
    })
}

fn assert_near(found: &[(String, f64)], expected: &[(String, f64)], what: &str) {
    assert_eq!(found.len(), expected.len());
    for ((language, found), (_, expected)) in found.iter().zip(expected) {
        let off = (found - expected).abs();
        assert!(
            off <= 1e-5 * expected,
            "{what}: {language}: {found}, expected {expected}"
        );
    }
}

fn description(folder: &Path) -> Value {
    let text = fs::read_to_string(folder.join("interlingua.json")).expect("a description");
    serde_json::from_str(&text).expect("JSON")
}

const ROUTED: &str = "adapter.route=language";

/// The keys that make a kind of adapter.
fn kinds() -> [(&'static str, Vec<&'static str>); 4] {
    [
        ("lora", vec!["adapter.kind=lora"]),
        ("dora", vec!["adapter.kind=dora"]),
        ("bottleneck", vec!["adapter.kind=bottleneck", "adapter.reduction=4"]),
        ("steering", vec!["adapter.kind=steering", "adapter.scale=2.0"]),
    ]
}

#[test]
fn what_a_run_writes_is_where_the_next_one_goes_on() {
    let scratch = scratch();
    for (kind, keys) in kinds() {
        for route in ["none", "language"] {
            let output = format!("{kind}-{route}");
            let (set_output, set_route) = (format!("output={output}"), format!("adapter.route={route}"));
            let settings = [&keys[..], &[&set_output, &set_route]].concat();
            scratch.run(arguments(&settings)).succeeds();
            let adapter = scratch.path(&output).join("adapter");
            let own = matches!(kind, "bottleneck" | "steering");
            let file = if own {
                "adapter.safetensors"
            } else {
                "adapter_model.safetensors"
            };
            let copies = if route == "none" {
                vec![""]
            } else {
                vec!["en", "hi", "sw"]
            };
            for copy in &copies {
                let folder = adapter.join(copy);
                assert!(
                    folder.join(file).is_file() && folder.join("README.md").is_file(),
                    "{kind} {copy}"
                );
                assert_eq!(folder.join("adapter_config.json").is_file(), !own, "{kind} {copy}");
                let names: Vec<String> = tensors(&folder.join(file)).into_keys().collect();
                assert!(
                    !names.is_empty() && names.iter().all(|name| !name.contains(".sw")),
                    "{names:?}"
                );
                let facts = scratch
                    .run(["inspect", folder.to_str().unwrap(), "--json"])
                    .succeeds()
                    .json();
                assert_eq!(facts["kind"], "adapter");
            }
            if route == "language" {
                let top = description(&adapter);
                assert_eq!(top["kind"], kind);
                assert_eq!(top["languages"], serde_json::json!(["en", "hi", "sw"]));
                scratch.run(["inspect", adapter.to_str().unwrap()]).succeeds();
            }
            let (init, set_next) = (
                format!("adapter.init_from={output}/adapter"),
                format!("output={output}-next"),
            );
            let settings = [&keys[..], &[&init, &set_next, &set_route, "train.steps=1"]].concat();
            scratch.run(arguments(&settings)).succeeds();
            let [before, after] = losses(&scratch, &output);
            let [next, _] = losses(&scratch, &format!("{output}-next"));
            assert!(before != after, "{output} was trained");
            assert_near(&next, &after, &output);
            for ((language, before), (_, after)) in before.iter().zip(&after) {
                assert!((before - after).abs() > 1e-6, "{output}: {language} was trained");
            }
        }
    }
}

#[test]
fn one_copy_is_an_adapter_like_any_other() {
    let scratch = scratch();
    scratch.run(arguments(&[ROUTED])).succeeds();
    let [_, routed] = losses(&scratch, "run");
    let one = ["adapter.init_from=run/adapter/sw", "output=one", "train.steps=1"];
    scratch.run(arguments(&one)).succeeds();
    let [one, _] = losses(&scratch, "one");
    assert_near(&one[2..], &routed[2..], "sw alone");
    assert!(
        (one[0].1 - routed[0].1).abs() > 1e-6,
        "en passes through the copy of sw"
    );

    scratch
        .run(arguments(&["adapter.init_from=run/adapter", "output=two"]))
        .refuses(
            2,
            &["adapter.init_from", "a copy for each of en, hi, sw", "adapter.route"],
        );
    let model = workspace().join("tests/fixtures/models/llama");
    let (model, golden) = (
        model.to_str().unwrap(),
        format!("{}.golden.safetensors", model.display()),
    );
    let verify = |adapter: &str| scratch.run(["verify", model, &golden, "--adapter", adapter]);
    assert_eq!(verify("run/adapter/sw").code, 1, "an adapter changes the logits");
    verify("run/adapter").refuses(2, &["a copy for each of en, hi, sw", "one language"]);
    let export = |adapter: &str, out: &str| {
        scratch.run([
            "export",
            "--model",
            model,
            "--adapter",
            adapter,
            "--merge",
            "--out",
            out,
        ])
    };
    export("run/adapter/sw", "merged").succeeds();
    export("run/adapter", "all").refuses(
        2,
        &["a copy for each of en, hi, sw", "merge the folder of one language"],
    );
    assert!(!scratch.path("all").exists());
}

#[test]
fn language_adapters_swap_below_a_task_adapter() {
    let scratch = scratch();
    scratch.run(arguments(&[ROUTED, "output=languages"])).succeeds();
    let [_, languages] = losses(&scratch, "languages");
    let under = "adapter.under=[{path='languages/adapter/en', lang='en'}, {path='languages/adapter/sw', lang='sw'}, \
                 {path='languages/adapter', lang='hi'}]";
    scratch.run(arguments(&[under, "output=task"])).succeeds();
    let [first, last] = losses(&scratch, "task");
    assert_near(
        &first,
        &languages,
        "each row passes through the adapter of its language",
    );
    assert!(first != last);
    // The folder with all copies says the same as a list of them.
    let all = "adapter.under=[{path='languages/adapter'}]";
    scratch.run(arguments(&[all, "output=same"])).succeeds();
    let weights = |run: &str| fs::read(scratch.path(run).join("adapter/adapter_model.safetensors")).unwrap();
    assert!(weights("task") == weights("same"));
    let names: Vec<String> = tensors(&scratch.path("task/adapter/adapter_model.safetensors"))
        .into_keys()
        .collect();
    assert!(names.iter().all(|name| !name.contains("under")), "{names:?}");
    let below = description(&scratch.path("task/adapter"));
    assert_eq!(below["under"][1]["lang"], "sw");
    let readme = scratch.read("task/adapter/README.md");
    assert!(
        readme.contains("stands on these adapters") && readme.contains("rows in `sw`"),
        "{readme}"
    );

    // A copy of itself below: twice the change, which merging the two says too.
    let model = workspace().join("tests/fixtures/models/llama");
    let model = model.to_str().unwrap();
    let (one, two) = ("languages/adapter/sw", "task/adapter");
    let export = [
        "export",
        "--model",
        model,
        "--adapter",
        one,
        "--adapter",
        two,
        "--merge",
        "--out",
        "merged",
    ];
    scratch.run(export).succeeds();
    let merged = ["model.path=merged", "adapter.kind=none", "output=read", "train.steps=1"];
    scratch.run(arguments(&merged)).succeeds();
    let [read, _] = losses(&scratch, "read");
    assert_near(&read[2..], &last[2..], "stacked and merged");

    scratch.run(arguments(&["adapter.kind=dora", "output=dora"])).succeeds();
    scratch
        .run(arguments(&["adapter.under=[{path='dora/adapter'}]", "output=over"]))
        .refuses(2, &["adapter.under.0", "DoRA", "cannot stand under"]);
    scratch
        .run(arguments(&[
            "adapter.under=[{path='languages/adapter', lang='fr'}]",
            "output=over",
        ]))
        .refuses(2, &["adapter.under.0", "no copy for fr", "en, hi, sw"]);
    scratch
        .run(arguments(&["adapter.under=[{path='nowhere'}]", "output=over"]))
        .refuses(2, &["nowhere", "no such adapter folder"]);
}

#[test]
fn a_killed_run_with_copies_ends_with_the_same_bytes() {
    let settings = [ROUTED, "train.steps=12", "train.checkpoint_every=1"];
    let (whole, killed) = (scratch(), scratch());
    let start = std::time::Instant::now();
    whole.run(arguments(&settings)).succeeds();
    let duration = start.elapsed();
    for share in [0.4, 0.5, 0.3] {
        let mut command = killed.command(arguments(&settings));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        std::thread::sleep(duration.mul_f64(share));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    killed.run(arguments(&settings)).succeeds();
    for language in ["en", "hi", "sw"] {
        let file = |scratch: &Scratch| {
            fs::read(
                scratch
                    .path("run/adapter")
                    .join(language)
                    .join("adapter_model.safetensors"),
            )
            .unwrap()
        };
        assert!(file(&whole) == file(&killed), "{language}");
    }
}

#[test]
fn languages_are_added_to_copies_that_are_there() {
    let scratch = scratch();
    let rows = fs::read_to_string(workspace().join("tests/fixtures/trajectories/sft_lora/train.jsonl")).unwrap();
    let of = |languages: &[&str]| -> String {
        let is_wanted = |row: &&str| {
            languages
                .iter()
                .any(|lang| row.contains(&format!("\"lang\": \"{lang}\"")))
        };
        rows.lines().filter(is_wanted).map(|row| format!("{row}\n")).collect()
    };
    scratch.write("en.jsonl", of(&["en"]));
    scratch.write("others.jsonl", of(&["sw", "hi"]));
    let first = [ROUTED, "data.sources.0.path=en.jsonl", "output=first"];
    scratch.run(arguments(&first)).succeeds();
    assert_eq!(
        description(&scratch.path("first/adapter"))["languages"],
        serde_json::json!(["en"])
    );
    let second = [
        ROUTED,
        "data.sources.0.path=others.jsonl",
        "adapter.init_from=first/adapter",
        "output=second",
    ];
    scratch.run(arguments(&second)).succeeds();
    assert_eq!(
        description(&scratch.path("second/adapter"))["languages"],
        serde_json::json!(["en", "hi", "sw"])
    );
    let english = |run: &str| tensors(&scratch.path(run).join("adapter/en/adapter_model.safetensors"));
    assert!(
        english("first") == english("second"),
        "a language without rows is left alone"
    );
}

#[test]
fn what_cannot_be_merged_says_so() {
    let scratch = scratch();
    let model = workspace().join("tests/fixtures/models/llama");
    for (kind, why) in [("bottleneck", "layers of its own"), ("steering", "between blocks")] {
        let (set_kind, set_output) = (format!("adapter.kind={kind}"), format!("output={kind}"));
        scratch
            .run(arguments(&[&set_kind, &set_output, "train.steps=2"]))
            .succeeds();
        let adapter = format!("{kind}/adapter");
        let export = [
            "export",
            "--model",
            model.to_str().unwrap(),
            "--adapter",
            &adapter,
            "--merge",
            "--out",
            "out",
        ];
        scratch.run(export).refuses(2, &[why, "cannot be merged", "--adapter"]);
    }
}

#[test]
fn a_layer_that_the_model_lacks_is_refused_before_anything_is_written() {
    let scratch = scratch();
    let settings = ["adapter.kind=steering", "adapter.layer=4"];
    let parts = ["adapter.layer is 4", "3 blocks", "from 1 to 3"];
    scratch.run(arguments(&settings)).refuses(2, &parts);
    assert!(!scratch.path("run").exists());
    let validate = ["validate", "recipe.toml", "--set", settings[0], "--set", settings[1]];
    scratch.run(validate).refuses(2, &parts);
    let wide = ["adapter.kind=bottleneck", "adapter.reduction=33"];
    scratch
        .run(arguments(&wide))
        .refuses(2, &["adapter.reduction is 33", "32"]);
}

#[test]
fn a_vector_in_closed_form_takes_no_step() {
    let scratch = scratch();
    let keys = [
        "adapter.kind=steering",
        "adapter.fit=closed-form",
        "adapter.source=train",
        "adapter.layer=2",
        ROUTED,
    ];
    // The recipe's own number of steps says otherwise.
    scratch
        .run(arguments(&keys))
        .refuses(2, &["adapter.fit", "nothing to train"]);
    let recipe = scratch.read("recipe.toml").replace("steps = 6\n", "");
    scratch.write("recipe.toml", recipe);
    let ran = scratch.run(arguments(&keys));
    ran.succeeds();
    let adapter = scratch.path("run/adapter");
    assert_eq!(description(&adapter)["languages"], serde_json::json!(["hi", "sw"]));
    for language in ["hi", "sw"] {
        let found = tensors(&adapter.join(language).join("adapter.safetensors"));
        let vector = &found["model.layers.1.steering_vector"];
        assert!(
            vector.len() == 32 && vector.iter().any(|value| value.abs() > 1e-4),
            "{vector:?}"
        );
    }
    assert!(rows(&scratch.path("run"), "train").is_empty());
    let again = scratch.run(arguments(&keys));
    assert!(again.succeeds().stdout.contains("already finished"), "{again:?}");
    let one = [&keys[..4], &["output=one"]].concat();
    scratch
        .run(arguments(&one))
        .refuses(2, &["2 languages besides en", "adapter.route"]);
}

#[test]
fn generate_asks_for_the_language_of_an_adapter_with_copies() {
    let scratch = Scratch::new();
    tiny::write(&scratch);
    scratch.run(arguments(&["output=base-run"])).succeeds();
    let settings = [
        "model.path=base-run/model",
        "model.init=weights",
        "adapter.kind=lora",
        ROUTED,
        "optimizer.learning_rate=0.05",
        "train.steps=30",
    ];
    scratch.run(arguments(&settings)).succeeds();
    let generate = |rest: &[&str]| {
        let start = ["generate", "--model", "base-run/model", "--max-new-tokens", "8"];
        scratch.run([&start[..], rest].concat())
    };
    let ask = ["--chat", "--prompt", "Habari ya asubuhi 3"];
    generate(&[&ask[..], &["--adapter", "run/adapter"]].concat())
        .refuses(2, &["a copy for each of ar, en, hi, sw", "--lang"]);
    let routed = generate(&[&ask[..], &["--adapter", "run/adapter", "--lang", "sw"]].concat());
    let single = generate(&[&ask[..], &["--adapter", "run/adapter/sw"]].concat());
    assert_eq!(routed.succeeds().stdout, single.succeeds().stdout);
    let english = generate(&[&ask[..], &["--adapter", "run/adapter", "--lang", "en"]].concat());
    assert_ne!(
        routed.stdout,
        english.succeeds().stdout,
        "the copies answer differently"
    );
    scratch.write(
        "rows.jsonl",
        "{\"prompt\": \"Habari ya asubuhi 3\", \"lang\": \"sw\"}\n{\"prompt\": \"Habari ya asubuhi 3\", \"lang\": \"en\"}\n",
    );
    let rows = generate(&["--input", "rows.jsonl", "--chat", "--adapter", "run/adapter"]);
    let outputs: Vec<String> = rows
        .succeeds()
        .stdout
        .lines()
        .map(|row| {
            serde_json::from_str::<Value>(row).unwrap()["output"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(outputs[0], routed.stdout.trim_end_matches('\n'));
    assert_eq!(outputs[1], english.stdout.trim_end_matches('\n'));
}

#[test]
fn a_pipeline_trains_languages_and_then_a_task_on_them() {
    let scratch = scratch();
    let mut recipe = scratch.read("recipe.toml");
    recipe.push_str(
        r#"
[[stage]]
name = "languages"
adapter.route = "language"

[[stage]]
name = "task"
adapter.under = [{ path = "run/languages/adapter" }]
adapter.rank = 2
"#,
    );
    scratch.write("recipe.toml", recipe);
    scratch.run(["validate", "recipe.toml"]).succeeds();
    scratch.run(["train", "recipe.toml"]).succeeds();
    let [_, languages] = losses(&scratch, "run/languages");
    let [task, _] = losses(&scratch, "run/task");
    assert_near(&task, &languages, "the second stage stands on the first");
    let config: Value = serde_json::from_str(&scratch.read("run/task/adapter/adapter_config.json")).unwrap();
    assert_eq!(config["r"], 2);
}
