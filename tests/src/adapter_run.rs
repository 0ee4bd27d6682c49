//! A recipe that trains an adapter on a fixture's model, for tests of runs: no tokenizer, no waiting.

use std::fmt::Write;

use crate::binary::{Scratch, workspace};

/// Writes `recipe.toml`: a LoRA with dropout on `tests/fixtures/models/llama`, trained on tokenised rows in three languages.
///
/// # Panics
/// When the disk refuses.
pub fn write(scratch: &Scratch) {
    let base = workspace().join("tests/fixtures/models/llama");
    let data = workspace().join("tests/fixtures/trajectories/sft_lora/train.jsonl");
    let mut recipe = String::new();
    write!(
        recipe,
        r#"output = "run"

[model]
path = {base:?}
device = "cpu"

[adapter]
kind = "lora"
rank = 4
alpha = 8
dropout = 0.1

[data]
max_length = 64
packing = false

[[data.sources]]
path = {data:?}
format = "tokens"

[optimizer]
learning_rate = 5e-3

[schedule]
kind = "constant"
warmup = 0

[train]
steps = 6
batch_size = 4
gradient_accumulation = 2
checkpoint_every = 2
"#
    )
    .expect("a string takes text");
    scratch.write("recipe.toml", recipe);
}

/// The arguments that train `recipe.toml` with some keys set, such as `"train.steps=9"`.
pub fn arguments<'a>(settings: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["train", "recipe.toml"];
    for setting in settings {
        arguments.extend(["--set", setting]);
    }
    arguments
}
