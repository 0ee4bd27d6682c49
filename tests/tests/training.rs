//! What the recipe says about training, seen in the numbers of a run.

use std::collections::BTreeSet;
use std::path::Path;

use interlingua_tests::adapter_run::{arguments, write};
use interlingua_tests::binary::{Scratch, workspace};
use interlingua_tests::numbers::{column, relative_distance, rows, tensors};

fn scratch() -> Scratch {
    let scratch = Scratch::new();
    write(&scratch);
    scratch
}

/// The weights of the base model.
fn base() -> std::collections::BTreeMap<String, Vec<f32>> {
    let folder = workspace().join("tests/fixtures/models/llama");
    let mut all = tensors(&folder.join("model-00001-of-00002.safetensors"));
    all.extend(tensors(&folder.join("model-00002-of-00002.safetensors")));
    all
}

/// Names of the weights that differ from the base model's.
fn changed(run: &Path) -> BTreeSet<String> {
    let base = base();
    let trained = tensors(&run.join("model/model.safetensors"));
    assert!(trained.keys().eq(base.keys()));
    trained
        .into_iter()
        .filter(|(name, values)| *values != base[name])
        .map(|(name, _)| name)
        .collect()
}

#[test]
fn only_the_parameters_that_are_named_change() {
    let scratch = scratch();
    let cases = [
        ("[\"embed_tokens\"]", vec!["model.embed_tokens.weight"]),
        (
            "re:layers\\.1\\..*_layernorm",
            vec![
                "model.layers.1.input_layernorm.weight",
                "model.layers.1.post_attention_layernorm.weight",
            ],
        ),
        ("[\"lm_head\"]", vec!["lm_head.weight"]),
    ];
    for (index, (parameters, expected)) in cases.into_iter().enumerate() {
        let (parameters, output) = (format!("train.parameters={parameters}"), format!("output=run-{index}"));
        let settings = ["adapter.kind=none", "train.steps=2", &parameters, &output];
        scratch.run(arguments(&settings)).succeeds();
        let changed = changed(&scratch.path(&format!("run-{index}")));
        assert!(changed.iter().eq(expected), "{parameters}: {changed:?}");
    }
    let settings = ["adapter.kind=none", "train.parameters=[\"embed_tokenz\"]"];
    scratch.run(arguments(&settings)).refuses(2, &["train.parameters"]);
}

#[test]
fn what_is_frozen_for_a_share_of_the_run_changes_after_it() {
    let scratch = scratch();
    let embedding = "model.embed_tokens.weight";
    let run = |output: &str, steps: &str, until: &str| {
        let freeze = format!("train.freeze=[{{ match = \"re:embed_tokens\", until = {until} }}]");
        let (output_setting, steps) = (format!("output={output}"), format!("train.steps={steps}"));
        scratch
            .run(arguments(&["adapter.kind=none", &freeze, &output_setting, &steps]))
            .succeeds();
        changed(&scratch.path(output))
    };
    assert!(!run("all", "4", "1.0").contains(embedding));
    let half = run("half", "4", "0.5");
    assert!(half.contains(embedding));
    assert_eq!(half.len(), base().len());
    // The first half is the same run, the second is not.
    let (all, half) = (
        column(&scratch.path("all"), "loss"),
        column(&scratch.path("half"), "loss"),
    );
    assert_eq!(all[..3], half[..3]);
    assert_ne!(all[3], half[3]);
}

#[test]
fn a_stage_goes_on_from_the_one_before() {
    let scratch = scratch();
    let stages = "\n[[stage]]\nname = \"first\"\n\n[[stage]]\nname = \"second\"\n[stage.train]\nsteps = 1\n";
    let recipe = scratch.read("recipe.toml");
    scratch.write("recipe.toml", format!("{recipe}{stages}"));
    let settings = ["data.holdout=0.2"];
    scratch.run(arguments(&settings)).succeeds();
    let evaluations = |stage: &str| rows(&scratch.path(&format!("run/{stage}")), "eval");
    let (first, second) = (evaluations("first"), evaluations("second"));
    assert_eq!(first.last().unwrap()["mean"], second.first().unwrap()["mean"]);
    assert_eq!(column(&scratch.path("run/second"), "step"), [1.0]);
    let again = scratch.run(arguments(&settings));
    assert!(again.succeeds().stdout.contains("already finished"), "{again:?}");
}

#[test]
fn a_run_that_does_not_improve_ends_early_and_stays_ended() {
    let scratch = scratch();
    let settings = [
        "data.holdout=0.2",
        "train.steps=40",
        "train.eval_every=2",
        "train.early_stop.patience=2",
        "optimizer.learning_rate=0.2",
    ];
    let ran = scratch.run(arguments(&settings));
    assert!(ran.succeeds().stderr.contains("not improved"), "{ran:?}");
    let steps = column(&scratch.path("run"), "step").len();
    assert!(steps < 40, "{steps} steps");
    let again = scratch.run(arguments(&settings));
    assert!(again.succeeds().stdout.contains("already finished"), "{again:?}");
}

#[test]
fn weights_of_sixteen_bits_train_an_adapter_of_thirty_two() {
    let scratch = scratch();
    let run = |output: &str, settings: &[&str]| {
        let output_setting = format!("output={output}");
        scratch
            .run(arguments(&[settings, &[&output_setting]].concat()))
            .succeeds();
        let run = scratch.path(output);
        (
            column(&run, "loss"),
            tensors(&run.join("adapter/adapter_model.safetensors")),
        )
    };
    for kind in ["adapter.kind=lora", "adapter.kind=dora"] {
        let (exact, exact_adapter) = run(&format!("{kind}-f32"), &[kind, "model.dtype=f32"]);
        for (dtype, tolerance) in [("bf16", 0.05), ("f16", 0.01)] {
            let dtype_setting = format!("model.dtype={dtype}");
            let (rounded, adapter) = run(&format!("{kind}-{dtype}"), &[kind, &dtype_setting]);
            for (exact, rounded) in exact.iter().zip(&rounded) {
                assert!(
                    (exact - rounded).abs() < tolerance,
                    "{kind}, {dtype}: {rounded}, f32 {exact}"
                );
            }
            assert_ne!(exact, rounded, "{dtype} rounds");
            assert!(adapter.keys().eq(exact_adapter.keys()), "the adapter is written in f32");
            let name = "base_model.model.model.layers.2.mlp.down_proj.lora_B.weight";
            let off = relative_distance(&adapter[name], &exact_adapter[name]);
            assert!(off < 0.5, "{kind}, {dtype}: {name} is off by {off}");
        }
    }
}

/// One language and the total are means over the same tokens.
#[test]
fn losses_by_language_add_up_to_the_loss() {
    let scratch = scratch();
    scratch.run(arguments(&["objective.weight=0.5"])).succeeds();
    for row in rows(&scratch.path("run"), "train") {
        let languages = row["by_language"].as_object().unwrap();
        let sums = languages.values().map(|language| {
            let tokens = language["tokens"].as_f64().unwrap();
            (language["loss"].as_f64().unwrap() * tokens, tokens)
        });
        let (loss, tokens) = sums.fold((0.0, 0.0), |sum, each| (sum.0 + each.0, sum.1 + each.1));
        assert_eq!(row["tokens"].as_f64().unwrap(), tokens);
        let samples: f64 = languages
            .values()
            .map(|language| language["samples"].as_f64().unwrap())
            .sum();
        assert_eq!(samples, 8.0);
        assert!(
            (row["losses"]["sft"].as_f64().unwrap() - loss / tokens).abs() < 1e-6,
            "{row}"
        );
        assert!(
            (row["loss"].as_f64().unwrap() - 0.5 * loss / tokens).abs() < 1e-6,
            "{row}"
        );
    }
}
