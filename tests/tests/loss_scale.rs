//! Computing in f16: gradients are scaled up, steps whose gradients overflow are skipped, and the run goes on.

use std::fs;

use interlingua_tests::adapter_run::{arguments, write};
use interlingua_tests::binary::Scratch;
use interlingua_tests::numbers::{column, rows, tensors};
use serde_json::Value;

fn scratch() -> Scratch {
    let scratch = Scratch::new();
    write(&scratch);
    scratch
}

/// The state in a checkpoint.
fn state(scratch: &Scratch, step: u64) -> Value {
    serde_json::from_str(&scratch.read(&format!("run/checkpoint-{step}/state.json"))).expect("the state is JSON")
}

/// The second matrices of the adapter, which start at zero.
fn has_moved(scratch: &Scratch) -> bool {
    let adapter = tensors(&scratch.path("run/adapter/adapter_model.safetensors"));
    let mut seconds = adapter.iter().filter(|(name, _)| name.contains("lora_B"));
    seconds.any(|(_, values)| values.iter().any(|value| *value != 0.0))
}

#[test]
fn a_run_in_f16_learns_as_one_in_f32() {
    let (single, half) = (scratch(), scratch());
    let settings = ["train.steps=20", "model.dtype=f32"];
    single.run(arguments(&settings)).succeeds();
    half.run(arguments(&["train.steps=20", "model.dtype=f16"])).succeeds();
    let (exact, found) = (column(&single.path("run"), "loss"), column(&half.path("run"), "loss"));
    assert!(exact[19] < exact[0] - 0.1, "{exact:?}");
    for (exact, found) in exact.iter().zip(&found) {
        assert!((found - exact).abs() < 5e-3 * exact, "{found}, in f32 {exact}");
    }
    assert_ne!(exact, found);
    assert_eq!(column(&half.path("run"), "loss_scale"), vec![65_536.0; 20]);
    assert_eq!(column(&half.path("run"), "skipped_steps"), vec![0.0; 20]);
    assert_eq!(state(&half, 20)["loss_scale"]["good_steps"], 20);
    let row = &rows(&single.path("run"), "train")[0];
    assert!(
        row.get("loss_scale").is_none() && row.get("skipped_steps").is_none(),
        "{row}"
    );
    assert!(state(&single, 20).get("loss_scale").is_none());
}

/// A loss that is multiplied by a million overflows f16 at the first scale, and not at one of a few.
#[test]
fn steps_that_overflow_are_skipped_until_the_scale_fits() {
    let large = ["model.dtype=f16", "objective.weight=1e6", "schedule.warmup=4"];
    let scratch = scratch();
    let settings = [&large[..], &["train.steps=24"]].concat();
    scratch.run(arguments(&settings)).succeeds();
    let run = scratch.path("run");
    let rows = rows(&run, "train");
    let skipped: Vec<bool> = rows.iter().map(|row| row["grad_norm"].is_null()).collect();
    let first_good = skipped
        .iter()
        .position(|skipped| !skipped)
        .expect("a step that is not skipped");
    assert!(first_good > 4 && !skipped[23], "{skipped:?}");
    let (scales, counts) = (column(&run, "loss_scale"), column(&run, "skipped_steps"));
    let rates = column(&run, "learning_rate");
    for step in 0..24 {
        let before = skipped[..step].iter().filter(|skipped| **skipped).count();
        assert_eq!(scales[step], 65_536.0 * 0.5f64.powi(before as i32), "step {step}");
        assert_eq!(
            counts[step],
            (before + usize::from(skipped[step])) as f64,
            "step {step}"
        );
        // The schedule does not move in a skipped step: a fourth of the rate more in each of the first four others.
        let expected = 5e-3 * ((step - before) as f64 / 4.0).min(1.0);
        assert!((rates[step] - expected).abs() < 1e-12, "step {step}: {}", rates[step]);
    }
    assert!(has_moved(&scratch));
    let updates = state(&scratch, 24)["updates"].as_object().unwrap().clone();
    let good = skipped.iter().filter(|skipped| !**skipped).count();
    assert!(
        updates.values().all(|count| count.as_u64() == Some(good as u64)),
        "{updates:?}"
    );
}

#[test]
fn a_skipped_step_changes_nothing() {
    let scratch = scratch();
    let settings = [
        "model.dtype=f16",
        "objective.weight=1e6",
        "train.steps=3",
        "optimizer.weight_decay=0.1",
    ];
    scratch.run(arguments(&settings)).succeeds();
    assert!(!has_moved(&scratch));
    let state = state(&scratch, 3);
    assert_eq!(state["loss_scale"]["skipped_steps"], 3);
    assert_eq!(state["updates"], serde_json::json!({}));
}

#[test]
fn a_scale_that_has_become_too_small_ends_the_run() {
    let scratch = scratch();
    let settings = ["model.dtype=f16", "objective.weight=1e25", "train.steps=40"];
    let ran = scratch.run(arguments(&settings));
    ran.refuses(1, &["step 27", "the gradient is not a finite number", "train.jsonl"]);
    assert_eq!(rows(&scratch.path("run"), "train").len(), 26);
    assert!(!scratch.path("run/adapter").exists());
}

/// Ended among the skipped steps, and after them.
#[test]
fn resumed_a_run_in_f16_ends_with_the_same_bytes() {
    let settings = ["model.dtype=f16", "objective.weight=1e6"];
    let with = |steps: &'static str| arguments(&[&settings[..], &[steps]].concat());
    let (whole, extended) = (scratch(), scratch());
    whole.run(with("train.steps=24")).succeeds();
    for steps in ["train.steps=3", "train.steps=19", "train.steps=24"] {
        extended.run(with(steps)).succeeds();
    }
    for key in ["step", "loss", "learning_rate", "loss_scale", "skipped_steps"] {
        assert_eq!(
            column(&whole.path("run"), key),
            column(&extended.path("run"), key),
            "{key}"
        );
    }
    for file in [
        "adapter/adapter_model.safetensors",
        "checkpoint-24/optimizer.safetensors",
        "checkpoint-24/state.json",
    ] {
        let read = |scratch: &Scratch| fs::read(scratch.path("run").join(file)).unwrap();
        assert!(read(&whole) == read(&extended), "{file} differs");
    }
    assert!(state(&whole, 24)["loss_scale"]["skipped_steps"].as_u64().unwrap() > 3);
    assert!(has_moved(&whole));
}
