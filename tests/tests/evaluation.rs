//! `interlingua eval`: the numbers are those that a run writes, with adapters and without, from a recipe or from a file of tasks.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

use interlingua_tests::binary::Scratch;
use interlingua_tests::numbers::rows;
use interlingua_tests::{adapter_run, tiny};
use serde_json::Value;

/// A file of a program cannot say every bit of a number.
const ROUNDING: f64 = 1e-9;

const GREETINGS: &str = r#"
[[eval.tasks]]
name = "greetings"
kind = "perplexity"
path = "data.jsonl"
format = "messages"
limit = 3
"#;

const ANSWERS: &str = r#"
[[eval.tasks]]
name = "answers"
kind = "generate"
path = "data.jsonl"
format = "messages"
limit = 1
max_new_tokens = 3
"#;

/// The tiny model's recipe with tasks.
fn greetings() -> Scratch {
    let scratch = Scratch::new();
    tiny::write(&scratch);
    scratch.write("recipe.toml", format!("{}{GREETINGS}{ANSWERS}", tiny::RECIPE));
    scratch
}

/// A recipe that trains an adapter, with a task whose rows are those that it learns.
fn tokens() -> Scratch {
    let scratch = Scratch::new();
    adapter_run::write(&scratch);
    let recipe = scratch.read("recipe.toml");
    let path = recipe
        .lines()
        .find(|line| line.starts_with("path = ") && line.contains("train.jsonl"))
        .unwrap();
    let task = format!("[[eval.tasks]]\nname = \"rows\"\nkind = \"perplexity\"\nformat = \"tokens\"\n{path}\n");
    scratch.write("recipe.toml", format!("{recipe}\n{task}"));
    scratch
}

/// The evaluations that a run wrote at a step.
fn evaluations(scratch: &Scratch, run: &str, step: u64) -> Vec<Value> {
    let rows = rows(&scratch.path(run), "eval");
    rows.into_iter().filter(|row| row["step"] == step).collect()
}

/// Fails unless two tasks have the same numbers for the same languages.
fn assert_equal(found: &Value, expected: &Value) {
    for key in ["by_language", "mean", "gap"] {
        assert_equal_numbers(&found[key], &expected[key], &format!("{}: {key}", expected["task"]));
    }
}

fn assert_equal_numbers(found: &Value, expected: &Value, what: &str) {
    match (found, expected) {
        (Value::Object(found), Value::Object(expected)) => {
            assert!(found.keys().eq(expected.keys()), "{what}: {found:?}, not {expected:?}");
            for (key, expected) in expected {
                assert_equal_numbers(&found[key], expected, &format!("{what}.{key}"));
            }
        }
        _ => {
            let (found, expected) = (found.as_f64().unwrap(), expected.as_f64().unwrap());
            let off = (found - expected).abs();
            assert!(off <= ROUNDING * expected.abs(), "{what} is {found}, not {expected}");
        }
    }
}

#[test]
fn numbers_are_those_of_a_run() {
    let scratch = greetings();
    let settings = ["--set", "data.holdout=0.25", "--set", "train.steps=2"];
    scratch
        .run([&["train", "recipe.toml"], &settings[..]].concat())
        .succeeds();
    let before = evaluations(&scratch, "run", 0);
    let names: Vec<&str> = before.iter().map(|row| row["task"].as_str().unwrap()).collect();
    assert_eq!(names, ["heldout", "greetings", "answers"]);
    let measured = scratch
        .run([&["eval", "recipe.toml", "--json"], &settings[..]].concat())
        .succeeds()
        .json();
    let tasks = measured["tasks"].as_array().unwrap();
    assert_eq!(tasks.len(), before.len());
    for (found, expected) in tasks.iter().zip(&before) {
        assert_eq!(found["task"], expected["task"]);
        assert_equal(found, expected);
    }
    let perplexity = &tasks[1]["by_language"]["sw"]["perplexity"];
    assert!(perplexity.as_f64().unwrap() > 1.0, "{perplexity}");

    let shown = scratch.run([&["eval", "recipe.toml"], &settings[..]].concat());
    for part in ["heldout", "greetings", "bits per byte", "sw", "mean", "gap", "expected"] {
        assert!(shown.succeeds().stdout.contains(part), "{part} is not in {shown:#?}");
    }

    // What the run trained, from a file of tasks in another folder, in both spellings.
    let after = &evaluations(&scratch, "run", 2)[1];
    let tasks = GREETINGS.replace("data.jsonl", "../data.jsonl");
    scratch.write("tasks/eval.toml", &tasks);
    scratch.write("tasks/bare.toml", tasks.replace("[[eval.tasks]]", "[[tasks]]"));
    for file in ["tasks/eval.toml", "tasks/bare.toml"] {
        let measured = scratch
            .run(["eval", "--model", "run/model", "--tasks", file, "--json"])
            .succeeds()
            .json();
        assert_eq!(measured["tasks"].as_array().unwrap().len(), 1);
        assert_equal(&measured["tasks"][0], after);
    }
}

#[test]
fn adapters_are_put_on_and_stacked() {
    let scratch = tokens();
    scratch.run(["train", "recipe.toml"]).succeeds();
    let measured = |adapters: usize| {
        let adapters = ["--adapter", "run/adapter"].repeat(adapters);
        let ran = scratch.run([&["eval", "recipe.toml", "--json"], &adapters[..]].concat());
        ran.succeeds().json()["tasks"][0].clone()
    };
    let (bare, one, two) = (measured(0), measured(1), measured(2));
    assert_equal(&bare, &evaluations(&scratch, "run", 0)[0]);
    assert_equal(&one, &evaluations(&scratch, "run", 6)[0]);
    let loss = |task: &Value| task["mean"]["loss"].as_f64().unwrap();
    assert!((loss(&two) - loss(&one)).abs() > 1e-6, "{two} with two, {one} with one");
}

#[test]
fn what_cannot_be_measured_is_refused_before_anything_runs() {
    let scratch = greetings();
    scratch.write("bare.toml", tiny::RECIPE);
    scratch.write("tasks.toml", GREETINGS);
    let eval = |arguments: &[&str]| scratch.run([&["eval"], arguments].concat());
    let set = |setting: &'static str| eval(&["recipe.toml", "--set", setting]);
    eval(&["bare.toml"]).refuses(
        2,
        &["bare.toml", "nothing to measure", "[[eval.tasks]]", "data.holdout"],
    );
    set("eval.tasks.0.path=gone.jsonl").refuses(2, &["gone.jsonl"]);
    set("model.path=./gone").refuses(2, &["gone", "no such folder"]);
    set("eval.tasks.0.kind=perplexiti").refuses(2, &["eval.tasks.0.kind", "perplexity"]);
    eval(&["recipe.toml", "--adapter", "gone"]).refuses(2, &["gone"]);
    eval(&["gone.toml"]).refuses(2, &["gone.toml"]);
    eval(&[]).refuses(2, &["RECIPE"]);
    eval(&["--model", "base"]).refuses(2, &["--tasks"]);
    eval(&["--tasks", "tasks.toml"]).refuses(2, &["--model"]);
    eval(&["recipe.toml", "--model", "base", "--tasks", "tasks.toml"]).refuses(2, &["cannot be used with"]);
    let tasks = |file: &'static str| eval(&["--model", "base", "--tasks", file]);
    tasks("gone.toml").refuses(2, &["gone.toml", "no file of tasks"]);
    // The base of the tests has no weights.
    tasks("tasks.toml").refuses(2, &["base"]);
    scratch.write(
        "wrong.toml",
        "# tasks\n\n[[tasks]]\nkind = \"perplexity\"\npaht = \"data.jsonl\"\nformat = \"messages\"\n",
    );
    tasks("wrong.toml").refuses(2, &["wrong.toml:5", "eval.tasks.0.paht", "path"]);
    scratch.write("empty.toml", "[eval]\n");
    tasks("empty.toml").refuses(2, &["empty.toml", "nothing to measure"]);
    // Preferences are compared with the reference of a run.
    scratch.write(
        "dpo.toml",
        tiny::RECIPE.replace("\"messages\"", "\"preference\"") + "\n[objective]\nkind = \"dpo\"\n",
    );
    eval(&["dpo.toml", "--set", "data.holdout=0.5"]).refuses(2, &["nothing to measure", "reference"]);
    assert!(!scratch.path("run").exists(), "nothing is written");
}

/// The base is measured as it is and quantised; both are what a run on such a base begins with.
#[test]
fn the_damage_of_quantising_is_reported_by_language() {
    let scratch = tokens();
    let nf4 = ["--set", "model.quantization.scheme=nf4"];
    let train = ["train", "recipe.toml", "--set", "train.steps=1"];
    scratch.run(train).succeeds();
    let quantised = [&train[..], &nf4, &["--set", "output=quantised"]].concat();
    scratch.run(quantised).succeeds();
    let eval = [&["eval", "recipe.toml"], &nf4[..]].concat();
    let measured = scratch.run([&eval[..], &["--json"]].concat()).succeeds().json();
    assert_eq!(
        measured["quantization"],
        serde_json::json!({ "scheme": "nf4", "block": 64, "double": true, "head": false })
    );
    assert_equal(&measured["tasks"][0], &evaluations(&scratch, "run", 0)[0]);
    assert_equal(&measured["quantized"][0], &evaluations(&scratch, "quantised", 0)[0]);
    let damage = &measured["damage"][0];
    let languages = damage["by_language"].as_object().unwrap();
    assert_eq!(languages.len(), 3, "{damage}");
    let mean = [("mean", &damage["mean"])];
    for (language, metrics) in languages
        .iter()
        .map(|(name, metrics)| (name.as_str(), metrics))
        .chain(mean)
    {
        for metric in ["loss", "perplexity"] {
            let number = |key: &str| metrics[metric][key].as_f64().unwrap();
            let (before, after) = (number("before"), number("after"));
            assert!(
                (number("difference") - (after - before)).abs() < 1e-12,
                "{language}: {metrics}"
            );
            assert!((after - before).abs() > 1e-6, "{language}: {metrics}");
            let of = |tasks: &str| match language {
                "mean" => measured[tasks][0]["mean"][metric].as_f64(),
                _ => measured[tasks][0]["by_language"][language][metric].as_f64(),
            };
            assert_eq!(
                (of("tasks"), of("quantized")),
                (Some(before), Some(after)),
                "{language}"
            );
        }
    }
    let shown = scratch.run(&eval);
    for part in [
        "Before and after quantising to NF4 in blocks of 64, double",
        "→",
        "mean",
    ] {
        assert!(shown.succeeds().stdout.contains(part), "{part} is not in {shown:#?}");
    }
}

/// A file of tasks may say how the model is quantised, and no adapter is needed for that.
#[test]
fn tasks_without_a_recipe_are_measured_quantised_too() {
    let scratch = tokens();
    let recipe = scratch.read("recipe.toml");
    let task = &recipe[recipe.find("[[eval.tasks]]").unwrap()..];
    scratch.write("tasks.toml", format!("[model.quantization]\nscheme = \"int8\"\n{task}"));
    let model = interlingua_tests::binary::workspace().join("tests/fixtures/models/llama");
    let model = model.to_str().unwrap();
    let eval = ["eval", "--model", model, "--tasks", "tasks.toml"];
    let measured = scratch.run([&eval[..], &["--json"]].concat()).succeeds().json();
    assert_eq!(measured["quantization"]["scheme"], "int8");
    assert!(measured["damage"][0]["mean"]["loss"]["difference"].as_f64().unwrap() != 0.0);
    let block = [
        "--set",
        "model.quantization.scheme=nf4",
        "--set",
        "model.quantization.block=96",
    ];
    scratch
        .run([&eval[..], &block].concat())
        .refuses(2, &["model.quantization.block", "96"]);
}
