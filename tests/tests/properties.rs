//! What must not change the result of a run.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

use std::path::PathBuf;

use interlingua_tests::adapter_run::{arguments, write};
use interlingua_tests::binary::Scratch;
use interlingua_tests::numbers::{assert_close, column, rows};

const ADAPTER: &str = "adapter/adapter_model.safetensors";

/// Runs the recipe with some keys set, into a folder of its own.
fn run(scratch: &Scratch, output: &str, settings: &[&str]) -> PathBuf {
    let output_setting = format!("output={output}");
    scratch
        .run(arguments(&[settings, &[&output_setting]].concat()))
        .succeeds();
    scratch.path(output)
}

fn assert_same_losses(one: &[f64], other: &[f64]) {
    assert_eq!(one.len(), other.len());
    for (one, other) in one.iter().zip(other) {
        assert!((one - other).abs() <= 1e-5, "{one} and {other}");
    }
}

#[test]
fn the_shape_of_a_batch_changes_nothing_with_dropout_on() {
    let scratch = Scratch::new();
    write(&scratch);
    for kind in ["lora", "dora"] {
        let kind_setting = format!("adapter.kind={kind}");
        let shaped = |name: &str, size: &str, accumulation: &str| {
            let size = format!("train.batch_size={size}");
            let accumulation = format!("train.gradient_accumulation={accumulation}");
            run(
                &scratch,
                &format!("{kind}-{name}"),
                &[&size, &accumulation, &kind_setting, "train.steps=4"],
            )
        };
        let whole = shaped("whole", "8", "1");
        for (name, size, accumulation) in [("single", "1", "8"), ("pairs", "2", "4")] {
            let cut = shaped(name, size, accumulation);
            assert_same_losses(&column(&whole, "loss"), &column(&cut, "loss"));
            assert_eq!(column(&whole, "tokens"), column(&cut, "tokens"));
            assert_close(&cut.join(ADAPTER), &whole.join(ADAPTER), 1e-4);
        }
    }
}

#[test]
fn packing_changes_nothing_when_a_step_holds_the_same_samples() {
    let scratch = Scratch::new();
    write(&scratch);
    // Eight rows of 16 tokens fill two packed rows of 64 exactly, and a step takes all of them.
    let mut data = String::new();
    for row in 0..8u32 {
        let ids: Vec<u32> = (0..16).map(|index| 3 + (row * 31 + index * 7) % 90).collect();
        data.push_str(&format!(
            "{{\"input_ids\": {ids:?}, \"lang\": \"{}\"}}\n",
            ["en", "sw"][row as usize % 2]
        ));
    }
    scratch.write("rows.jsonl", data);
    let shared = [
        "data.sources.0.path=rows.jsonl",
        "train.gradient_accumulation=1",
        "train.steps=4",
    ];
    let apart = run(&scratch, "apart", &[&shared[..], &["train.batch_size=8"]].concat());
    let packed = run(
        &scratch,
        "packed",
        &[&shared[..], &["train.batch_size=2", "data.packing=true"]].concat(),
    );
    assert_eq!(column(&apart, "tokens_total"), [128.0; 4]);
    assert_eq!(column(&packed, "tokens_total"), [128.0; 4]);
    assert_same_losses(&column(&apart, "loss"), &column(&packed, "loss"));
    assert_close(&packed.join(ADAPTER), &apart.join(ADAPTER), 1e-4);
}

#[test]
fn recomputation_changes_no_byte() {
    let scratch = Scratch::new();
    write(&scratch);
    let kept = run(&scratch, "kept", &["memory.recompute=none"]);
    let recomputed = run(&scratch, "recomputed", &["memory.recompute=block"]);
    assert_eq!(column(&kept, "loss"), column(&recomputed, "loss"));
    assert!(std::fs::read(kept.join(ADAPTER)).unwrap() == std::fs::read(recomputed.join(ADAPTER)).unwrap());
}

/// The held-out loss of a run's first and last evaluation.
fn heldout(run: &std::path::Path) -> (f64, f64) {
    let loss = |row: &serde_json::Value| row["mean"]["loss"].as_f64().unwrap();
    let rows = rows(run, "eval");
    (loss(rows.first().unwrap()), loss(rows.last().unwrap()))
}

/// An evaluation is without dropout, and what was written is what was trained: read again, it evaluates to the same bits.
#[test]
fn an_adapter_that_is_read_again_is_the_one_that_was_trained() {
    let scratch = Scratch::new();
    write(&scratch);
    let variants: [(&str, &[&str]); 4] = [
        ("lora", &["adapter.kind=lora"]),
        ("rslora", &["adapter.kind=lora", "adapter.rslora=true"]),
        ("dora", &["adapter.kind=dora"]),
        (
            "head",
            &[
                "adapter.kind=lora",
                "adapter.modules_to_save=[\"lm_head\", \"norm\"]",
                "adapter.targets=[\"q_proj\", \"down_proj\"]",
            ],
        ),
    ];
    for (name, settings) in variants {
        let settings = [settings, &["data.holdout=0.2", "adapter.dropout=0.3"]].concat();
        let first = run(&scratch, name, &settings);
        let (before, after) = heldout(&first);
        assert!(after < before, "{name} learns: {before} before, {after} after");
        let from = format!("adapter.init_from={}", first.join("adapter").display());
        let again = run(
            &scratch,
            &format!("{name}-again"),
            &[&settings[..], &[&from, "train.steps=1"]].concat(),
        );
        assert_eq!(heldout(&again).0.to_bits(), after.to_bits(), "{name}");
    }
}

#[test]
fn a_model_that_is_read_again_is_the_one_that_was_trained() {
    let scratch = Scratch::new();
    write(&scratch);
    let settings = ["adapter.kind=none", "data.holdout=0.2", "optimizer.learning_rate=1e-3"];
    let first = run(&scratch, "full", &settings);
    let (before, after) = heldout(&first);
    assert!(after < before, "it learns: {before} before, {after} after");
    let model = format!("model.path={}", first.join("model").display());
    let again = run(&scratch, "again", &[&settings[..], &[&model, "train.steps=1"]].concat());
    assert_eq!(heldout(&again).0.to_bits(), after.to_bits());
}
