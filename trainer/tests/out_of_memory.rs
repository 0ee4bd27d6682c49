//! What happens when memory runs out: the process ends with a message, and what was saved stays whole. Each case is a process of its
//! own, this test program started again.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use interlingua_recipes::Recipe;
use interlingua_trainer::memory::{CountingAllocator, current_bytes, peak_bytes, set_budget};
use interlingua_trainer::train::{Event, Outcome, StopFlag, TrainOptions, train};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const RECIPE: &str = "OUT_OF_MEMORY_RECIPE";
const MORE: &str = "OUT_OF_MEMORY_MORE";

/// Trains as the environment says; with a cap, from when the model is loaded, of what is held then and so many bytes more. Writes
/// down how much more the run took.
#[test]
#[ignore = "a process that the other tests start"]
fn child() {
    let Some(recipe) = std::env::var_os(RECIPE) else {
        return;
    };
    let more: Option<u64> = std::env::var(MORE).ok().map(|more| more.parse().unwrap());
    let recipe = Recipe::load(Path::new(&recipe), &[]).unwrap();
    let mut held = 0;
    let mut observe = |event| {
        if matches!(event, Event::Started(_)) {
            held = current_bytes();
            if let Some(more) = more {
                set_budget(held + more);
            }
        }
    };
    let outcome = train(&recipe, TrainOptions::default(), &StopFlag::default(), &mut observe).unwrap();
    assert_eq!(outcome, Outcome::Finished);
    let took = peak_bytes().saturating_sub(held);
    std::fs::write(recipe.output.join("took"), took.to_string()).unwrap();
}

/// Starts [`child`] with a recipe and a cap.
fn start(recipe: &Path, more: Option<u64>) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "child", "--ignored", "--nocapture", "--test-threads", "1"])
        .env(RECIPE, recipe)
        .env_remove("RUST_BACKTRACE");
    command.env("INTERLINGUA_CACHE", recipe.with_file_name("cache"));
    command.envs(more.map(|more| (MORE, more.to_string())));
    command.output().unwrap()
}

/// A recipe that trains a tiny model, in a folder of its own.
fn recipe(folder: &Path, steps: u64) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .join("tests/fixtures");
    let text = format!(
        "output = \"run\"\n[model]\npath = {:?}\ndevice = \"cpu\"\n[adapter]\nrank = 4\n[data]\npacking = false\nmax_length = 512\n\
         [[data.sources]]\npath = {:?}\nformat = \"tokens\"\n[train]\nsteps = {steps}\nbatch_size = 3\ncheckpoint_every = 2\n",
        fixtures.join("models/llama"),
        fixtures.join("trajectories/sft_lora/train.jsonl"),
    );
    let path = folder.join("recipe.toml");
    std::fs::write(&path, text).unwrap();
    path
}

/// Files below a folder with their content.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push((path.clone(), std::fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

/// Asserts that a process ended for want of memory, and returns its message.
fn ran_out(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text.contains("error: Out of memory while working on "), "{text}");
    assert!(!text.contains("panicked") && !text.contains("backtrace"), "{text}");
    text
}

#[test]
fn a_run_that_passes_its_budget_ends_with_a_message_and_its_checkpoint_stays_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = recipe(folder.path(), 4);
    assert!(start(&path, None).status.success());
    let run = folder.path().join("run");
    let took: u64 = std::fs::read_to_string(run.join("took")).unwrap().parse().unwrap();
    let checkpoint = run.join("checkpoint-4");
    let saved = files(&checkpoint);

    // Half of what its steps took, and next to nothing.
    let path = recipe(folder.path(), 6);
    for more in [took / 2, 4096] {
        let message = ran_out(&start(&path, Some(more)));
        assert!(
            message.contains("memory.budget allows") && message.contains("interlingua plan"),
            "{message}"
        );
        assert_eq!(files(&checkpoint), saved);
    }

    let output = start(&path, None);
    assert!(output.status.success(), "{output:?}");
    assert!(run.join("checkpoint-6").is_dir());
}
