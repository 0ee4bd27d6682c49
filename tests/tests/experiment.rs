//! The experiment of `docs/experiments.md`: its recipes fit their data, what is measured has the numbers that its script reads, and nothing that
//! it is measured on is trained on.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

use std::collections::BTreeSet;
use std::path::PathBuf;

use interlingua_tests::binary::{Scratch, workspace};
use serde_json::Value;

fn file(name: &str) -> PathBuf {
    workspace().join("recipes/experiments/alignment").join(name)
}

fn rows(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(file(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn its_recipes_are_valid() {
    let scratch = Scratch::new();
    let base = format!("model.path={}", file("base").display());
    for recipe in ["base", "task", "align", "groups"] {
        let recipe = file(&format!("{recipe}.toml")).display().to_string();
        scratch
            .run(["validate", &recipe, "--set", &base, "--set", "model.init=random"])
            .succeeds();
    }
}

/// With a model of another kind and a few items, for the shape of the numbers alone.
#[test]
fn its_tasks_have_the_numbers_that_the_script_reads() {
    let scratch = Scratch::new();
    let model = workspace().join("recipes/quickstart/base").display().to_string();
    let tasks = file("tasks.toml").display().to_string();
    let limits = (0..5).map(|task| format!("eval.tasks.{task}.limit=6"));
    let mut arguments = ["--json", "eval", "--model", &model, "--tasks", &tasks]
        .map(str::to_owned)
        .to_vec();
    arguments.extend(limits.flat_map(|limit| ["--set".to_owned(), limit]));
    let found = scratch.run(&arguments).succeeds().json();
    let (mut choices, mut directions) = (0, 0);
    for row in found["tasks"].as_array().unwrap() {
        if row["task"] == "flores" {
            for (name, layers) in row["layers"]["retrieval_margin"].as_object().unwrap() {
                assert_eq!(layers.as_array().unwrap().len(), 5, "{name}");
                directions += usize::from(name.contains('→'));
            }
        } else {
            assert!(row["by_language"]["en"]["accuracy"].is_number(), "{row}");
            assert!(row["intervals"]["en"]["accuracy"][0].is_number(), "{row}");
            assert!(
                row["consistency_by_size"]["3"].is_number() && row["ac3_by_size"]["3"].is_number(),
                "{row}"
            );
            assert!(row["mlc"].is_number(), "{row}");
            choices += 1;
        }
    }
    assert_eq!((choices, directions), (4, 20));
}

/// Letters and digits alone, in lower case.
fn said(text: &str) -> String {
    text.chars()
        .filter(|c| c.is_alphanumeric())
        .flat_map(char::to_lowercase)
        .collect()
}

#[test]
fn nothing_that_it_is_measured_on_is_trained_on() {
    let languages = ["en", "de", "it", "nl", "id", "tr", "ar", "zh-Hans", "da", "kk", "lt"];
    let mut trained: BTreeSet<String> = BTreeSet::new();
    for language in languages {
        let news = std::fs::read_to_string(file(&format!("data/news.{language}.txt"))).unwrap();
        assert_eq!(news.lines().count(), 1200, "{language}");
        trained.extend(news.lines().map(said));
    }
    trained.extend(
        rows("data/requests.jsonl")
            .iter()
            .map(|row| said(row["prompt"].as_str().unwrap())),
    );
    let requests = rows("data/requests.test.jsonl");
    let sentences = rows("data/flores.jsonl");
    assert_eq!(
        (requests.len(), sentences.len()),
        (144 * languages.len(), 57 * languages.len())
    );
    for text in requests
        .iter()
        .map(|row| &row["question"])
        .chain(sentences.iter().map(|row| &row["text"]))
    {
        assert!(!trained.contains(&said(text.as_str().unwrap())), "{text}");
    }
}
