//! Shares of languages and batches of translations, as `validate` shows them.

use interlingua_tests::binary::Scratch;
use interlingua_tests::tiny;
use serde_json::Value;

/// A scratch folder with the tiny model and its recipe, with these lines under `[data]`.
fn scratch(data: &str) -> Scratch {
    let scratch = Scratch::new();
    tiny::write(&scratch);
    let recipe = tiny::RECIPE.replace("[optimizer]", &format!("{data}\n[optimizer]"));
    scratch.write("recipe.toml", recipe);
    scratch
}

fn validated(scratch: &Scratch, arguments: &[&str]) -> Value {
    let ran = scratch.run([&["validate", "recipe.toml", "--json"], arguments].concat());
    ran.succeeds().json()["stages"][0].clone()
}

/// What is shown of a language: asked, reached, epochs.
fn share(stage: &Value, language: &str) -> (Option<f64>, f64, f64) {
    let share = &stage["shares"]["by_language"][language];
    let number = |key: &str| share[key].as_f64();
    let shown = |key: &str| number(key).unwrap_or_else(|| panic!("{language} has no {key}: {stage}"));
    (number("asked"), shown("reached"), shown("epochs"))
}

#[test]
fn the_run_reaches_the_shares_that_are_asked_for() {
    let scratch = scratch("[data.mix]\nratios = { EN = 0.7, sw = 0.2, \"*\" = 0.1 }");
    for packing in ["data.packing=false", "data.packing=true"] {
        let stage = validated(&scratch, &["--set", packing, "--set", "train.steps=40"]);
        for (language, asked) in [("en", 0.7), ("sw", 0.2), ("ar", 0.05), ("hi", 0.05)] {
            let (shown, reached, epochs) = share(&stage, language);
            assert!((shown.unwrap() - asked).abs() < 1e-9, "{stage}");
            assert!((reached - asked).abs() < 0.02, "{language} {reached}: {stage}");
            assert!(epochs > 0.0, "{stage}");
        }
        assert!(share(&stage, "en").2 > 5.0 * share(&stage, "ar").2, "{stage}");
        assert_eq!(stage["notes"], serde_json::json!([]));
        assert!(stage["shares"]["by_source"]["data"]["asked"].is_null(), "{stage}");
    }
    let ran = scratch.run(["validate", "recipe.toml"]);
    for part in ["asked", "reached", "70.0 %", "epochs"] {
        assert!(ran.succeeds().stdout.contains(part), "{part}: {ran:?}");
    }
    let ran = scratch.run(["train", "recipe.toml"]);
    ran.succeeds();
}

#[test]
fn a_sweep_over_ratios_shows_the_share_of_each_language() {
    let scratch = scratch("[data.mix]\nunit = \"samples\"");
    let grid = "data.mix.ratios={ en = 1 },{ en = 0.5, sw = 0.5 },{ sw = 1 }";
    let sweep = ["sweep", "recipe.toml", "--grid", grid];
    let ran = scratch.run(sweep);
    let table = &ran.succeeds().stdout;
    let header = table.lines().find(|line| line.contains("point")).expect("a header");
    let columns: Vec<&str> = header
        .split("  ")
        .map(str::trim)
        .filter(|column| !column.is_empty())
        .collect();
    assert_eq!(
        columns,
        ["point", "loss", "en share", "en", "sw share", "sw"],
        "{table}"
    );
    let row = |name: &str| {
        table
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_else(|| panic!("{name}: {table}"))
    };
    assert_eq!(row("ratios=_en_0.5_sw_0.5_").matches("50.0 %").count(), 2, "{table}");
    assert_eq!(row("ratios=_en_1_").matches("100.0 %").count(), 1, "{table}");
    assert!(scratch.path("run/sweep/ratios=_sw_1_/summary.json").is_file());
    let points = scratch.run([&sweep[..], &["--json"]].concat()).succeeds().json();
    for point in points["points"].as_array().expect("points") {
        let shares = &point["summary"]["shares"]["by_language"];
        let sum: f64 = ["en", "sw"]
            .iter()
            .filter_map(|language| shares[language]["reached"].as_f64())
            .sum();
        assert!((sum - 1.0).abs() < 1e-9, "{point}");
    }
}

#[test]
fn without_a_mix_nothing_is_asked_and_all_is_seen_once() {
    let stage = validated(&scratch(""), &["--set", "train.steps=6"]);
    for language in ["en", "sw", "ar", "hi"] {
        let (asked, _, epochs) = share(&stage, language);
        assert_eq!((asked, epochs), (None, 1.0), "{stage}");
    }
}

#[test]
fn ratios_that_do_not_sum_to_one_are_scaled_with_a_note() {
    let scratch = scratch("[data.mix]\nunit = \"samples\"\nratios = { en = 3, sw = 1 }");
    let stage = validated(&scratch, &[]);
    assert_eq!(share(&stage, "en"), (Some(0.75), 0.75, 4.0));
    assert_eq!(share(&stage, "hi"), (Some(0.0), 0.0, 0.0));
    let note = stage["notes"][0].as_str().unwrap();
    assert!(note.contains("data.mix.ratios") && note.contains("sum to 4"), "{note}");
    let ran = scratch.run(["validate", "recipe.toml"]);
    assert!(ran.succeeds().stdout.contains(note), "{ran:?}");
}

#[test]
fn ratios_that_cannot_be_met_are_refused() {
    let refused = |data: &str, parts: &[&str]| {
        let scratch = scratch(data);
        for command in ["validate", "train"] {
            scratch.run([command, "recipe.toml"]).refuses(2, parts);
        }
        assert!(!scratch.path("run").exists(), "something was written");
    };
    refused(
        "[data.mix]\nratios = { en = 0.5, yo = 0.5 }",
        &["data.mix.ratios.yo", "language", "ar, en, hi, sw"],
    );
    refused(
        "[data.mix]\nratios = { en = 1.5, sw = -0.5 }",
        &["data.mix.ratios.sw", "-0.5"],
    );
    refused(
        "[data.mix]\nratios = { zh-hans = 0.5, zh-Hans = 0.5 }",
        &["data.mix.ratios.zh-hans", "one language"],
    );
    refused(
        "[data.mix]\nby = \"source\"\nratios = { wiki = 1.0 }",
        &["data.mix.ratios.wiki", "data"],
    );
}

#[test]
fn groups_without_their_anchor_are_left_out_and_counted() {
    let scratch = scratch("[data.parallel]\ngroups_per_batch = 2");
    let rows = scratch.read("data.jsonl");
    let kept = rows
        .lines()
        .filter(|row| !(row.contains("\"g3\"") && row.contains("\"en\"")));
    let kept = kept.filter(|row| !(row.contains("\"g4\"") && row.contains("\"hi\"")));
    scratch.write("data.jsonl", kept.map(|row| format!("{row}\n")).collect::<String>());
    // One epoch.
    let stage = validated(&scratch, &["--set", "train.steps=5"]);
    let note = stage["notes"][0].as_str().unwrap();
    for part in ["uses 10 of 12 groups", "1 of 12 groups lack the anchor en", "lack hi"] {
        assert!(note.contains(part), "{note}");
    }
    assert!((share(&stage, "en").2 - 10.0 / 11.0).abs() < 1e-9, "{stage}");
    let ran = scratch.run(["train", "recipe.toml"]);
    assert!(ran.succeeds().stderr.contains("uses 10 of 12 groups"), "{ran:?}");
    let parallel = ["--set", "data.parallel.anchor=fr", "--set", "output=other"];
    for command in ["validate", "train"] {
        let ran = scratch.run([&[command, "recipe.toml"], &parallel[..]].concat());
        ran.refuses(2, &["data.parallel", "12 of 12 groups lack the anchor fr"]);
    }
}
