//! Recipes as they lie in the repository: their first optimizer step against PyTorch's, and whether a few steps of each move what it is
//! there to move.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

use std::path::PathBuf;

use interlingua_tests::binary::{Scratch, workspace};
use interlingua_tests::numbers::{relative_distance, rows, tensors};
use serde_json::Value;

/// What AdamW's first moment holds of the first gradient: 1 - beta.
const OF_THE_GRADIENT: f64 = 0.1;

fn fixture(name: &str) -> PathBuf {
    workspace().join("tests/fixtures/recipes").join(name)
}

/// What `write_recipes.py` wrote about a case.
fn case(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixture(&format!("{name}.json"))).unwrap()).unwrap()
}

/// Trains a case's recipe with its settings and more of them; returns the folder of the run, or of its stage.
fn train(scratch: &Scratch, case: &Value, more: &[&str]) -> PathBuf {
    let recipe = workspace().join(format!("recipes/{}.toml", case["recipe"].as_str().unwrap()));
    let output = scratch.path("run");
    let mut arguments = vec!["train".to_owned(), recipe.display().to_string()];
    let settings = case["settings"].as_array().unwrap().iter();
    let settings = settings.map(|setting| setting.as_str().unwrap()).chain(more.iter().copied());
    for setting in settings.map(str::to_owned).chain([format!("output={}", output.display())]) {
        arguments.extend(["--set".to_owned(), setting]);
    }
    scratch.run(&arguments).succeeds();
    match case["stage"].as_str() {
        Some(stage) => output.join(stage),
        None => output,
    }
}

/// Says what two numbers are when they are further apart than a share of the second.
fn differ(what: &str, found: &Value, expected: f64, tolerance: f64) -> Option<String> {
    let found = found.as_f64().unwrap_or(f64::NAN);
    let close = (found - expected).abs() <= tolerance * expected.abs() + 1e-9;
    (!close).then(|| format!("{what} is {found}, not {expected}"))
}

/// Everything in which the first step of a run is not the case's.
fn differences(run: &std::path::Path, name: &str, case: &Value) -> Vec<String> {
    let row = &rows(run, "train")[0];
    let tolerance = |key: &str| case["tolerance"][key].as_f64().unwrap();
    let (of_loss, of_gradient) = (tolerance("loss_relative"), tolerance("gradient_relative"));
    let number = |value: &Value| value.as_f64().unwrap();
    let mut found = Vec::new();
    found.extend(differ("loss", &row["loss"], number(&case["loss"]), of_loss));
    found.extend(differ("tokens", &row["tokens"], number(&case["tokens"]), 0.0));
    found.extend(differ("grad_norm", &row["grad_norm"], number(&case["grad_norm"]), of_gradient));
    for (loss, expected) in case["losses"].as_object().unwrap() {
        found.extend(differ(loss, &row["losses"][loss], number(expected), of_loss));
    }
    for (reward, expected) in case["rewards"].as_object().into_iter().flatten() {
        found.extend(differ(reward, &row["rewards"][reward], number(expected), of_gradient));
    }
    let moments = tensors(&run.join("checkpoint-1/optimizer.safetensors"));
    let norms = case["gradient_norms"].as_object().unwrap();
    let trained = moments.keys().filter_map(|name| name.strip_suffix(".first"));
    let unexpected = trained.filter(|name| !norms.contains_key(*name));
    found.extend(unexpected.map(|name| format!("{name} has a gradient")));
    let largest = norms.values().map(number).fold(0.0, f64::max);
    let gradient = |name: &str| -> Option<Vec<f32>> {
        let moment = moments.get(&format!("{name}.first"))?;
        let scaled = moment.iter().map(|value| (f64::from(*value) / OF_THE_GRADIENT) as f32);
        Some(scaled.collect())
    };
    for (name, expected) in norms {
        let Some(gradient) = gradient(name) else {
            found.push(format!("{name} has no gradient"));
            continue;
        };
        let norm = gradient.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        let expected = number(expected);
        if (norm - expected).abs() > of_gradient * expected.max(1e-3 * largest) {
            found.push(format!("the gradient of {name} has norm {norm}, not {expected}"));
        }
    }
    for (name, expected) in tensors(&fixture(&format!("{name}.safetensors"))) {
        let off = gradient(&name).map(|gradient| relative_distance(&gradient[..expected.len()], &expected));
        if off.is_none_or(|off| off > of_gradient) {
            found.push(format!("the gradient of {name} is off by {off:?}"));
        }
    }
    found
}

#[test]
fn first_steps_are_those_of_pytorch() {
    let entries = std::fs::read_dir(fixture("")).unwrap().flatten();
    let names = entries.filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".json")?.to_owned()));
    let mut found = Vec::new();
    let mut count = 0;
    for name in names {
        let scratch = Scratch::new();
        let case = case(&name);
        let run = train(&scratch, &case, &["train.steps=1"]);
        let differences = differences(&run, &name, &case);
        found.extend(differences.into_iter().map(|difference| format!("{name}: {difference}")));
        count += 1;
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert_eq!(count, 5);
}

/// A number of every step of a run, such as `["losses", "sft"]`, on the same few rows over and over.
fn course(name: &str, steps: usize, path: &[&str]) -> Vec<f64> {
    let scratch = Scratch::new();
    let run = train(&scratch, &case(name), &[&format!("train.steps={steps}"), "optimizer.learning_rate=5e-3"]);
    let number = |row: &Value| path.iter().fold(row, |value, key| &value[*key]).as_f64();
    rows(&run, "train").iter().filter_map(number).collect()
}

fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len() as f64
}

#[test]
fn instruction_tuning_lowers_the_loss() {
    let losses = course("lora-sft", 24, &["losses", "sft"]);
    assert!(mean(&losses[12..]) < 0.9 * mean(&losses[..12]), "{losses:?}");
}
