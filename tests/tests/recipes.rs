//! Recipes as they lie in the repository: their first optimizer steps against PyTorch's, and whether a few more of each move what the
//! recipe is there to move.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use interlingua_tests::binary::{Scratch, workspace};
use interlingua_tests::numbers::{relative_distance, rows, tensors};
use serde_json::Value;

/// What AdamW's first moment holds of the first gradient: 1 - beta.
const OF_THE_GRADIENT: f64 = 0.1;

/// What the numbers of a step may differ by besides a share of them: a loss that is 0 up to rounding, as what is kept where it was is
/// at the first step.
const ROUNDING: f64 = 1e-9;

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
    let settings = case["settings"].as_array().unwrap().iter();
    let settings = settings
        .map(|setting| setting.as_str().unwrap())
        .chain(more.iter().copied());
    let mut arguments = vec!["train".to_owned(), recipe.display().to_string()];
    for setting in settings
        .map(str::to_owned)
        .chain([format!("output={}", output.display())])
    {
        arguments.extend(["--set".to_owned(), setting]);
    }
    let ran = scratch.run(&arguments);
    match case["stage"].as_str() {
        // The settings are those of this stage: one after it may refuse what it is given to go on from.
        Some(stage) => {
            let run = output.join(stage);
            assert!(run.join("summary.json").exists(), "{ran:#?}");
            run
        }
        None => {
            ran.succeeds();
            output
        }
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

/// Says so when a number is further from the expected one than a share of it.
fn differs(what: &str, found: &Value, expected: &Value, tolerance: f64) -> Option<String> {
    let off = (number(found) - number(expected)).abs();
    (off.is_nan() || off > tolerance * number(expected).abs() + ROUNDING)
        .then(|| format!("{what} is {found}, not {expected}"))
}

/// In what the row of a step is not the case's.
fn differing_numbers(row: &Value, expected: &Value, of_loss: f64, of_norm: f64) -> Vec<String> {
    let named = |key: &'static str, tolerance: f64| {
        let expected = expected[key].as_object().cloned().unwrap_or_default().into_iter();
        expected.map(move |(name, value)| (format!("{key}.{name}"), row[key][&name].clone(), value, tolerance))
    };
    let plain = [("loss", of_loss), ("tokens", 0.0), ("grad_norm", of_norm)];
    let plain = plain.map(|(key, tolerance)| (key.to_owned(), row[key].clone(), expected[key].clone(), tolerance));
    let numbers = plain
        .into_iter()
        .chain(named("losses", of_loss))
        .chain(named("rewards", of_norm));
    numbers
        .filter_map(|(what, found, expected, tolerance)| differs(&what, &found, &expected, tolerance))
        .collect()
}

/// In what the gradients of the first step are not the case's.
fn differing_gradients(run: &Path, name: &str, case: &Value) -> Vec<String> {
    let tolerance = number(&case["tolerance"]["gradient_relative"]);
    let moments = tensors(&run.join("checkpoint-1/optimizer.safetensors"));
    let first = moments.iter().filter_map(|(name, moment)| {
        let gradient = moment.iter().map(|value| (f64::from(*value) / OF_THE_GRADIENT) as f32);
        Some((name.strip_suffix(".first")?, gradient.collect::<Vec<f32>>()))
    });
    let gradients: BTreeMap<&str, Vec<f32>> = first.collect();
    let norms = case["gradient_norms"].as_object().unwrap();
    if !gradients.keys().eq(norms.keys()) {
        let (trained, expected) = (gradients.keys(), norms.keys());
        return vec![format!("gradients are those of {trained:?}, not of {expected:?}")];
    }
    let mut found = Vec::new();
    let all = number(&case["steps"][0]["grad_norm"]);
    for (name, expected) in norms {
        let norm = gradients[name.as_str()]
            .iter()
            .map(|value| f64::from(*value).powi(2))
            .sum::<f64>()
            .sqrt();
        let expected = number(expected);
        if (norm - expected).abs() > tolerance * expected.max(1e-3 * all) {
            found.push(format!("the gradient of {name} has norm {norm}, not {expected}"));
        }
    }
    for (name, expected) in tensors(&fixture(&format!("{name}.safetensors"))) {
        let off = relative_distance(&gradients[name.as_str()][..expected.len()], &expected);
        if off > tolerance {
            found.push(format!("the gradient of {name} is off by {off}"));
        }
    }
    found
}

#[test]
fn first_steps_are_those_of_pytorch() {
    let entries = std::fs::read_dir(fixture("")).unwrap().flatten();
    let names = entries.filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".json")?.to_owned()));
    let (mut found, mut count) = (Vec::new(), 0);
    for name in names {
        let (scratch, case) = (Scratch::new(), case(&name));
        let run = train(&scratch, &case, &[]);
        let (rows, steps) = (rows(&run, "train"), case["steps"].as_array().unwrap());
        assert_eq!(rows.len(), steps.len(), "{name}");
        let tolerance = |key: &str| number(&case["tolerance"][key]);
        for (index, (row, expected)) in rows.iter().zip(steps).enumerate() {
            let (of_loss, of_norm) = match index {
                0 => ("loss_relative", "gradient_relative"),
                _ => ("later_loss_relative", "later_grad_norm_relative"),
            };
            let differing = differing_numbers(row, expected, tolerance(of_loss), tolerance(of_norm));
            found.extend(
                differing
                    .into_iter()
                    .map(|what| format!("{name}, step {}: {what}", index + 1)),
            );
        }
        let differing = differing_gradients(&run, &name, &case);
        found.extend(differing.into_iter().map(|what| format!("{name}: {what}")));
        count += 1;
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert_eq!(count, 22);
}

/// A longer run of a case.
fn steps(name: &str, more: &[&str]) -> Vec<Value> {
    let scratch = Scratch::new();
    let less = ["train.checkpoint_every=0", "train.keep_checkpoints=1"];
    rows(&train(&scratch, &case(name), &[&less, more].concat()), "train")
}

/// One number of each step.
fn column(rows: &[Value], path: &[&str]) -> Vec<f64> {
    let numbers = rows
        .iter()
        .map(|row| path.iter().fold(row, |value, key| &value[*key]).as_f64().unwrap());
    numbers.collect()
}

/// On the same few rows over and over, a number ends at less than a share of where it began.
fn falls(name: &str, more: &[&str], number: &[&str], share: f64) {
    let numbers = column(&steps(name, more), number);
    let (first, last) = (numbers[0], numbers[numbers.len() - 1]);
    assert!(last < share * first, "{name}: {number:?} went {numbers:?}");
}

const EIGHT: &str = "train.steps=8";
const FAST: &str = "optimizer.learning_rate=5e-3";

#[test]
fn instruction_tuning_learns_its_rows() {
    let limits = ["data.sources.0.limit=6", "data.sources.0.limit=36"];
    falls("lora-sft", &[EIGHT, FAST, limits[0]], &["losses", "sft"], 0.8);
    falls("goldfish", &[EIGHT, limits[0]], &["losses", "goldfish"], 0.6);
    falls("embedding-only", &[EIGHT, limits[1]], &["losses", "sft"], 0.9);
    let five_rows = [
        "data.sources.1.limit=13",
        "train.batch_size=5",
        "train.gradient_accumulation=1",
    ];
    falls(
        "crossin",
        &[&[EIGHT, FAST], &five_rows[..]].concat(),
        &["losses", "sft"],
        0.8,
    );
}

/// The losses of preference recipes fall, and chosen answers gain on rejected ones.
#[test]
fn preferences_are_learnt() {
    for (name, loss, rows) in [
        ("batch-wise-dpo", "dpo", 14),
        ("batch-wise-orpo", "orpo", 14),
        ("cross-lingual-dpo", "dpo", 4),
    ] {
        let rows = steps(name, &[EIGHT, FAST, &format!("data.sources.0.limit={rows}")]);
        let (losses, margins) = (column(&rows, &["losses", loss]), column(&rows, &["rewards", "margin"]));
        assert!(losses[7] < 0.7 * losses[0], "{name}: {losses:?}");
        assert!(margins[7] > margins[0] + 0.1, "{name}: {margins:?}");
    }
}

#[test]
fn translations_come_together_in_the_middle() {
    let three_groups = [
        "data.sources.1.limit=18",
        "objective.auxiliary.0.batch_size=15",
        "train.gradient_accumulation=2",
    ];
    let loss = ["losses", "middle-layer"];
    falls(
        "middle-layer",
        &[&[EIGHT, FAST], &three_groups[..]].concat(),
        &loss,
        0.97,
    );
    let three_groups = ["data.sources.1.limit=21", "train.gradient_accumulation=9"];
    falls(
        "align-after-pretrain",
        &[&[EIGHT], &three_groups[..]].concat(),
        &loss,
        0.6,
    );
}

/// Aligned words come nearer, and the anchor moves less than they do.
#[test]
fn aligned_words_come_together() {
    let rows = steps("word-alignment", &[EIGHT, "data.sources.0.limit=6"]);
    let words = column(&rows, &["losses", "word-alignment/words"]);
    let moved = column(&rows, &["losses", "word-alignment/stay-close"]);
    assert!(words[7] < 0.5 * words[0], "{words:?}");
    assert!(
        moved[0] < 1e-9 && moved[7] > 0.0 && moved[7] < words[0] - words[7],
        "{moved:?}"
    );
}

/// Languages move along their own directions, and the anchor stays nearly where it was.
#[test]
fn languages_are_separated_and_the_anchor_is_retained() {
    let rows = steps("lens", &[EIGHT, "data.sources.0.limit=14"]);
    let separate = column(&rows, &["losses", "lens/separate"]);
    let retain = column(&rows, &["losses", "lens/retain"]);
    assert!(separate[7] < 0.7 * separate[0], "{separate:?}");
    assert!(
        retain[0] < 1e-9 && retain[7] < 0.1 * (separate[0] - separate[7]),
        "{retain:?}"
    );
}

/// In every step of a mixture, no language is further from its share of what was drawn than one row.
#[test]
fn languages_have_their_shares() {
    for (name, longest_row) in [("ratio-study", 256.0), ("pinch", 1.0), ("temperature-sampling", 1.0)] {
        let (mut drawn, mut languages) = (0.0, 0);
        for row in steps(name, &[EIGHT]) {
            drawn += match longest_row {
                1.0 => row["by_language"]
                    .as_object()
                    .unwrap()
                    .values()
                    .map(|of| number(&of["samples"]))
                    .sum(),
                _ => number(&row["tokens_total"]),
            };
            for (language, share) in row["shares"].as_object().unwrap() {
                let off = (number(&share["reached"]) - number(&share["asked"])).abs() * drawn;
                assert!(
                    off <= longest_row + 1e-6,
                    "{name}: {language} is {off} from its share: {row}"
                );
                languages += 1;
            }
        }
        assert!(languages >= 16, "{name} says no shares");
    }
}

/// English begins with 70 % and ends with 40 %.
#[test]
fn a_curriculum_changes_the_shares() {
    let rows = steps("curriculum", &["train.steps=12", "train.gradient_accumulation=1"]);
    let english = column(&rows, &["shares", "en", "asked"]);
    assert!(
        (english[0] - 0.7).abs() < 1e-9 && (english[11] - 0.4).abs() < 1e-9,
        "{english:?}"
    );
    let tokens: f64 = rows[..8].iter().map(|row| number(&row["tokens_total"])).sum();
    let off = (column(&rows[7..8], &["shares", "en", "reached"])[0] - 0.7).abs() * tokens;
    assert!(off <= 256.0, "English is {off} tokens from its share");
}
