//! A run that was ended, however it was ended, goes on to the same bytes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use interlingua_tests::adapter_run::{arguments, write};
use interlingua_tests::binary::Scratch;
use interlingua_tests::numbers::{column, rows, tensors};

fn scratch() -> Scratch {
    let scratch = Scratch::new();
    write(&scratch);
    scratch
}

fn adapter(run: &Path) -> Vec<u8> {
    fs::read(run.join("adapter/adapter_model.safetensors")).expect("the run wrote an adapter")
}

/// Both runs have the same adapter, byte by byte, and the same rows, one per step.
fn assert_same(one: &Path, other: &Path) {
    assert!(adapter(one) == adapter(other), "the adapters differ");
    for key in ["step", "loss", "grad_norm", "learning_rate", "tokens"] {
        assert_eq!(column(one, key), column(other, key), "{key}");
    }
    let steps = column(one, "step");
    assert_eq!(steps, (1..=steps.len()).map(|step| step as f64).collect::<Vec<_>>());
}

/// The folder of a checkpoint.
fn checkpoint(run: &Path, step: u64) -> PathBuf {
    run.join(format!("checkpoint-{step}"))
}

/// An undisturbed run, and one that is killed at these shares of its time and then goes on; they must not differ.
fn run_and_kill(settings: &[&str], shares: &[f64]) -> (Scratch, Scratch) {
    let (whole, killed) = (scratch(), scratch());
    let start = std::time::Instant::now();
    whole.run(arguments(settings)).succeeds();
    let duration = start.elapsed();
    let mut kills = 0;
    for share in shares {
        let mut child = killed
            .command(arguments(settings))
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("the binary starts");
        std::thread::sleep(duration.mul_f64(*share).max(Duration::from_millis(1)));
        kills += usize::from(child.try_wait().expect("a child").is_none());
        child.kill().expect("a child");
        child.wait().expect("a child");
    }
    assert!(kills > 1, "{kills} kills");
    killed.run(arguments(settings)).succeeds();
    assert_same(&whole.path("run"), &killed.path("run"));
    (whole, killed)
}

#[test]
fn killed_at_any_time_a_run_ends_with_the_same_adapter() {
    // A checkpoint after each step, so that many of the kills fall into saving.
    let settings = [
        "train.steps=40",
        "train.checkpoint_every=1",
        "data.holdout=0.2",
        "train.eval_every=7",
    ];
    // Shares of the whole run's time, in no order, so that a slow machine is killed in the same places as a fast one.
    let shares = [0.21, 0.12, 0.3, 0.17, 0.26, 0.14, 0.35, 0.2, 0.4, 0.3];
    let (whole, killed) = run_and_kill(&settings, &shares);
    let evaluations = |scratch: &Scratch| -> Vec<String> {
        let rows = rows(&scratch.path("run"), "eval");
        rows.iter()
            .map(|row| format!("{} {}", row["step"], row["by_language"]))
            .collect()
    };
    assert_eq!(evaluations(&whole), evaluations(&killed));
    let left = fs::read_dir(killed.path("run")).unwrap().flatten();
    let names: Vec<String> = left
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.contains("tmp") || name.contains("partial"))
        .collect();
    assert!(names.is_empty(), "half-written files are left: {names:?}");
}

/// The rank makes matrices so large that their moments have 8 bits where the recipe asks for that.
#[test]
fn killed_with_small_moments_a_run_ends_with_the_same_adapter() {
    for (setting, files, bytes) in [
        ("optimizer.moments=f32", 1, 8.0),
        ("optimizer.moments=bf16", 1, 4.0),
        ("optimizer.kind=adamw8bit", 2, 2.04),
    ] {
        let settings = [
            setting,
            "adapter.rank=256",
            "train.steps=15",
            "train.checkpoint_every=1",
        ];
        let (whole, killed) = run_and_kill(&settings, &[0.3, 0.5, 0.4]);
        let moments = |scratch: &Scratch| {
            let files = fs::read_dir(checkpoint(&scratch.path("run"), 15)).unwrap().flatten();
            let name = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
            let mut moments: Vec<(String, Vec<u8>)> = files
                .filter(|entry| name(entry).starts_with("optimizer."))
                .map(|entry| (name(&entry), fs::read(entry.path()).unwrap()))
                .collect();
            moments.sort();
            moments
        };
        let found = moments(&whole);
        assert!(found == moments(&killed), "{setting}: the moments differ");
        assert_eq!(found.len(), files, "{setting}");
        let parameters = fs::metadata(checkpoint(&whole.path("run"), 15).join("parameters.safetensors"));
        let numbers = parameters.unwrap().len() as f64 / 4.0;
        let held: usize = found.iter().map(|(_, bytes)| bytes.len()).sum();
        // The headers of the files are in this too.
        assert!(
            (held as f64) < bytes * numbers * 1.03,
            "{setting}: {held} bytes for {numbers} numbers"
        );
    }
}

#[test]
fn more_steps_go_on_where_the_run_ended() {
    let (whole, extended) = (scratch(), scratch());
    whole.run(arguments(&["train.steps=9"])).succeeds();
    extended.run(arguments(&["train.steps=5"])).succeeds();
    extended.run(arguments(&["train.steps=5"])).refuses(0, &[]);
    let ran = extended.run(arguments(&["train.steps=9"]));
    assert!(ran.succeeds().stderr.contains("step 5"), "{ran:?}");
    assert_same(&whole.path("run"), &extended.path("run"));
}

/// Recipes said nothing of moments once, and checkpoints had the two of each parameter in f32 under these names.
#[test]
fn a_run_from_before_moments_had_formats_goes_on() {
    let (whole, earlier) = (scratch(), scratch());
    whole.run(arguments(&["train.steps=9"])).succeeds();
    earlier.run(arguments(&["train.steps=5"])).succeeds();
    let recipe = earlier.read("run/recipe.toml");
    assert!(recipe.contains("moments = \"f32\"\n"));
    earlier.write("run/recipe.toml", recipe.replace("moments = \"f32\"\n", ""));
    let names = |file: &str| -> Vec<String> {
        let tensors = tensors(&checkpoint(&earlier.path("run"), 5).join(file));
        tensors.into_keys().collect()
    };
    let of_parameters = names("parameters.safetensors");
    let moments = of_parameters
        .iter()
        .flat_map(|name| [format!("{name}.first"), format!("{name}.second")]);
    assert!(names("optimizer.safetensors").into_iter().eq(moments));
    earlier.run(arguments(&["train.steps=9"])).succeeds();
    assert_same(&whole.path("run"), &earlier.path("run"));
}

#[test]
fn a_damaged_checkpoint_costs_steps_and_no_bytes() {
    let (whole, damaged) = (scratch(), scratch());
    whole.run(arguments(&["train.steps=8"])).succeeds();
    damaged.run(arguments(&["train.steps=6"])).succeeds();
    let run = damaged.path("run");
    let largest = |folder: &Path| {
        let files = fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
        files.max_by_key(|path| path.metadata().unwrap().len()).unwrap()
    };
    let file = largest(&checkpoint(&run, 6));
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let ran = damaged.run(arguments(&["train.steps=8"]));
    ran.refuses(0, &["checkpoint-6", "damaged", "checkpoint-4"]);
    assert_same(&whole.path("run"), &run);
}

#[test]
fn a_run_that_diverges_names_the_batch_and_keeps_its_checkpoints() {
    let scratch = scratch();
    scratch.run(arguments(&["train.steps=4"])).succeeds();
    let run = scratch.path("run");
    let saved = |step: u64| {
        let mut files: Vec<(PathBuf, Vec<u8>)> = fs::read_dir(checkpoint(&run, step))
            .unwrap()
            .flatten()
            .map(|entry| (entry.path(), fs::read(entry.path()).unwrap()))
            .collect();
        files.sort();
        files
    };
    let (before, adapter_before) = (saved(4), adapter(&run));
    // One infinite number in the data's place is not to be had, so the model's is made infinite.
    scratch.copy("tests/fixtures/models/llama", "broken");
    let shard = scratch.path("broken/model-00002-of-00002.safetensors");
    let mut bytes = fs::read(&shard).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::INFINITY.to_le_bytes());
    fs::write(&shard, bytes).unwrap();
    let ran = scratch.run(arguments(&["model.path=broken", "output=infinite"]));
    ran.refuses(1, &["step 1", "not a finite number", "Languages", "en", "train.jsonl"]);
    assert!(!scratch.path("infinite/adapter").exists());
    assert!(!checkpoint(&scratch.path("infinite"), 1).exists());
    assert!(before == saved(4) && adapter_before == adapter(&run));

    let diverging = ["train.steps=12", "optimizer.learning_rate=1e30", "output=diverging"];
    let ran = scratch.run(arguments(&[&diverging[..], &["train.checkpoint_every=1"]].concat()));
    ran.refuses(1, &["step", "not a finite number", "optimizer.learning_rate"]);
    assert!(!scratch.path("diverging/adapter").exists());
    assert!(!scratch.path("diverging/summary.json").exists());
}

#[test]
fn another_recipe_is_refused_with_the_key() {
    let scratch = scratch();
    scratch.run(arguments(&[])).succeeds();
    let metrics = scratch.read("run/metrics.jsonl");
    for (setting, key) in [
        ("adapter.rank=2", "adapter.rank"),
        ("data.shuffle=false", "data.shuffle"),
        ("train.batch_size=2", "train.batch_size"),
        ("seed=43", "seed"),
        ("optimizer.moments=bf16", "optimizer.moments"),
        ("optimizer.kind=adamw8bit", "optimizer.kind"),
        ("model.dtype=f16", "model.dtype"),
    ] {
        scratch.run(arguments(&[setting])).refuses(2, &[key, "--fresh"]);
    }
    assert_eq!(
        scratch.read("run/metrics.jsonl"),
        metrics,
        "a refused run writes nothing"
    );
    for setting in [
        "train.keep_checkpoints=1",
        "memory.recompute=block",
        "train.log_every=2",
        // What it is without being said.
        "optimizer.moments=f32",
    ] {
        let ran = scratch.run(arguments(&[setting]));
        assert!(ran.succeeds().stdout.contains("already finished"), "{setting}: {ran:?}");
    }
}
