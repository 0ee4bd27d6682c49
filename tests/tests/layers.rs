//! Tasks that read every layer, and those of tokenizers: the numbers are those of Transformers, NumPy and the tokenizers library.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

use std::fmt::Write;

use interlingua_tests::binary::{Scratch, workspace};
use serde_json::{Value, json};

const TASKS: &str = r#"
[[tasks]]
name = "retrieval"
kind = "retrieval"
path = "sentences.jsonl"
format = "parallel"
neighbours = 3
layer = 2

[[tasks]]
name = "by cosine"
kind = "retrieval"
path = "sentences.jsonl"
format = "parallel"
similarity = "cosine"
layer = 0

[[tasks]]
name = "similarity"
kind = "similarity"
path = "sentences.jsonl"
format = "parallel"
layer = 2

[[tasks]]
name = "lens"
kind = "logit-lens"
path = "sentences.jsonl"
format = "parallel"

[[tasks]]
name = "tokenizer"
kind = "tokenizer"
path = "sentences.jsonl"
format = "parallel"
"#;

const EVAL: [&str; 5] = ["eval", "--model", "model", "--tasks", "tasks.toml"];

/// A model with the tokenizer and the sentences of the fixture, and tasks on them.
fn scratch(model: &str) -> Scratch {
    let scratch = Scratch::new();
    scratch.copy(&format!("tests/fixtures/models/{model}"), "model");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        scratch.copy(&format!("tests/fixtures/layers/{file}"), &format!("model/{file}"));
    }
    scratch.copy("tests/fixtures/layers/sentences.jsonl", "sentences.jsonl");
    scratch.write("tasks.toml", TASKS);
    scratch
}

fn expected() -> Value {
    let file = workspace().join("tests/fixtures/layers/layers.json");
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

fn measured(scratch: &Scratch, arguments: &[&str]) -> Value {
    let ran = scratch.run([&EVAL[..], &["--json"], arguments].concat());
    ran.succeeds().json()["tasks"].clone()
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    list(value).iter().map(|number| number.as_f64().unwrap()).collect()
}

/// Fails unless numbers, or lists of them, are equal up to the fixture's tolerance.
fn assert_close(found: &Value, expected: &Value, what: &str) {
    if let (Some(found), Some(expected)) = (found.as_array(), expected.as_array()) {
        assert_eq!(found.len(), expected.len(), "{what}");
        for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert_close(found, expected, &format!("{what} at {index}"));
        }
        return;
    }
    let (Some(found), Some(expected)) = (found.as_f64(), expected.as_f64()) else {
        panic!("{what} is {found}, not {expected}");
    };
    let off = (found - expected).abs();
    assert!(
        off <= 1e-4 * expected.abs().max(1.0),
        "{what} is {found}, not {expected}"
    );
}

/// Mean of lists, number by number.
fn mean(lists: &[Vec<f64>]) -> Value {
    let at = |index: usize| lists.iter().map(|list| list[index]).sum::<f64>() / lists.len() as f64;
    (0..lists[0].len()).map(at).collect::<Vec<_>>().into()
}

/// The share of hits in each list of hits.
fn shares(layers: &Value) -> Vec<f64> {
    let share = |hits: &Value| numbers(hits).iter().sum::<f64>() / list(hits).len() as f64;
    list(layers).iter().map(share).collect()
}

#[test]
fn numbers_are_those_of_transformers() {
    let fixture = expected();
    for model in ["llama", "qwen2"] {
        let (scratch, expected) = (scratch(model), &fixture["models"][model]);
        let tasks = measured(&scratch, &["--save-answers", "answers"]);
        retrieval(&scratch, &tasks, &expected["retrieval"]);
        similarity(&tasks[2], &expected["similarity"]);
        lens(&tasks[3], &expected["lens"]);
        let again = measured(&scratch, &["--from-answers", "answers"]);
        for (found, first) in list(&again).iter().zip(list(&tasks)) {
            assert_eq!(found["layers"].is_null(), first["layers"].is_null(), "{found}");
            for key in ["by_language", "mean", "intervals", "layers", "gini"] {
                assert_same(&found[key], &first[key], &format!("{} {key}", first["task"]));
            }
        }
    }
}

/// Fails unless two values are equal but for the last bits of numbers.
fn assert_same(found: &Value, expected: &Value, what: &str) {
    match (found, expected) {
        (Value::Object(found), Value::Object(expected)) => {
            assert!(found.keys().eq(expected.keys()), "{what}: {found:?}, not {expected:?}");
            for (key, expected) in expected {
                assert_same(&found[key], expected, &format!("{what}.{key}"));
            }
        }
        (Value::Null, Value::Null) => {}
        _ => assert_close(found, expected, what),
    }
}

fn retrieval(scratch: &Scratch, tasks: &Value, expected: &Value) {
    let answers = scratch.read("answers/retrieval.jsonl");
    let answers: Vec<Value> = answers
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let hits = |answer: &Value, kind: &str, way: usize| -> Value {
        let layers = list(&answer[format!("{kind}_{}_anchor", ["from", "to"][way])]);
        let of_layer = |hits: &Value| {
            hits.as_str()
                .unwrap()
                .bytes()
                .map(|sign| sign - b'0')
                .collect::<Vec<_>>()
        };
        layers.iter().map(of_layer).collect()
    };
    for kind in ["cosine", "margin"] {
        let series = &tasks[0]["layers"][format!("retrieval_{kind}")];
        let mut all = Vec::new();
        for language in ["hi", "sw"] {
            let answer = answers.iter().find(|answer| answer["language"] == language).unwrap();
            let both = [format!("en→{language}"), format!("{language}→en")];
            for (way, direction) in both.iter().enumerate() {
                let expected = &expected[language][kind][way];
                assert_eq!(&hits(answer, kind, way), expected, "{kind} {direction}");
                assert_close(&series[direction], &json!(shares(expected)), direction);
                all.push(shares(expected));
            }
        }
        assert_eq!(series.as_object().unwrap().len(), 5, "{series}");
        assert_close(&series["mean"], &mean(&all), kind);
    }
    // Both directions at the task's layer, by the task's similarity; no interval is narrower than it can be.
    for (task, kind, layer) in [(0, "margin", 2), (1, "cosine", 0)] {
        let row = &tasks[task];
        assert_eq!(row["items"], json!({ "hi": 8, "sw": 8 }));
        for language in ["hi", "sw"] {
            let ways = [0, 1].map(|way| shares(&expected[language][kind][way])[layer]);
            let share = (ways[0] + ways[1]) / 2.0;
            assert_close(&row["by_language"][language]["retrieval"], &json!(share), language);
            let interval = numbers(&row["intervals"][language]["retrieval"]);
            assert!(
                interval[0] <= share && share <= interval[1] && interval[0] < interval[1],
                "{row}"
            );
        }
        assert!(row["by_language"]["en"].is_null(), "{row}");
    }
}

fn similarity(row: &Value, expected: &Value) {
    let mean_of = |values: &Value| numbers(values).iter().sum::<f64>() / list(values).len() as f64;
    for language in ["hi", "sw"] {
        let expected = &expected[language];
        for metric in ["cka", "cka_debiased", "language_ranker"] {
            assert_close(
                &row["layers"][metric][language],
                &expected[metric],
                &format!("{language} {metric}"),
            );
        }
        let numbers = &row["by_language"][language];
        assert_close(&numbers["cka"], &expected["cka"][2], language);
        assert_close(&numbers["cka_debiased"], &expected["cka_debiased"][2], language);
        assert_close(
            &numbers["language_ranker"],
            &json!(mean_of(&expected["language_ranker"])),
            language,
        );
        assert!(row["intervals"][language]["language_ranker"].is_array(), "{row}");
    }
}

fn lens(row: &Value, expected: &Value) {
    for (language, metrics) in expected.as_object().unwrap() {
        for (metric, values) in metrics.as_object().unwrap() {
            assert_close(
                &row["layers"][metric][language],
                values,
                &format!("{language} {metric}"),
            );
            if metric != "lens_loss" {
                let mean = numbers(values).iter().sum::<f64>() / list(values).len() as f64;
                assert_close(&row["by_language"][language][metric], &json!(mean), language);
            }
        }
        let loss = list(&metrics["lens_loss"]).last().unwrap();
        assert_close(&row["by_language"][language]["loss"], loss, language);
    }
    assert!(row["layers"]["lens_own"]["en"].is_null(), "{row}");
}

#[test]
fn costs_are_those_of_the_tokenizers_library() {
    let expected = &expected()["tokenizer"];
    let scratch = scratch("llama");
    let row = &measured(&scratch, &[])[4];
    assert_close(&row["gini"], &expected["gini"], "gini");
    for (language, metrics) in expected["by_language"].as_object().unwrap() {
        let found = row["by_language"][language].as_object().unwrap();
        assert!(
            found.keys().eq(metrics
                .as_object()
                .unwrap()
                .keys()
                .collect::<std::collections::BTreeSet<_>>()),
            "{found:?}"
        );
        for (metric, value) in metrics.as_object().unwrap() {
            assert_close(&found[metric], value, &format!("{language} {metric}"));
        }
    }
    // Texts that are no translations have no parity.
    let rows: String = sentences()
        .iter()
        .filter(|row| row["lang"] != "en")
        .map(|row| format!("{row}\n"))
        .collect();
    scratch.write("texts.jsonl", rows);
    scratch.write(
        "tasks.toml",
        "[[tasks]]\nname = \"texts\"\nkind = \"tokenizer\"\npath = \"texts.jsonl\"\nformat = \"text\"\n",
    );
    let row = &measured(&scratch, &[])[0];
    let found = &row["by_language"]["hi"];
    assert!(
        found["parity"].is_null() && found["divergence"].is_null() && row["gini"].is_null(),
        "{row}"
    );
    assert_close(
        &found["fertility"],
        &expected["by_language"]["hi"]["fertility"],
        "fertility",
    );
}

/// The fixture's sentences, one a row.
fn sentences() -> Vec<Value> {
    let text = std::fs::read_to_string(workspace().join("tests/fixtures/layers/sentences.jsonl")).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let of_row = |row: Value| {
        let texts = row["text"].as_object().unwrap().clone();
        texts
            .into_iter()
            .map(move |(lang, text)| json!({ "id": row["id"], "lang": lang, "text": text }))
    };
    rows.flat_map(of_row).collect()
}

fn write_rows(scratch: &Scratch, rows: &[Value]) {
    let mut text = String::new();
    rows.iter().for_each(|row| writeln!(text, "{row}").unwrap());
    scratch.write("sentences.jsonl", text);
}

#[test]
fn all_forms_of_parallel_rows_say_the_same() {
    let scratch = scratch("llama");
    let first = measured(&scratch, &[]);
    let mut rows = sentences();
    rows.reverse();
    rows.sort_by_key(|row| row["id"].to_string());
    write_rows(&scratch, &rows);
    let second = measured(&scratch, &[]);
    let texts = |lang: &str| {
        sentences()
            .into_iter()
            .filter(|row| row["lang"] == lang)
            .map(|row| row["text"].clone())
            .collect::<Vec<_>>()
    };
    let pairs = texts("sw").into_iter().zip(texts("en"));
    let pairs = pairs.map(|(src, tgt)| json!({ "src": src, "tgt": tgt, "src_lang": "sw", "tgt_lang": "en" }));
    write_rows(&scratch, &pairs.collect::<Vec<_>>());
    let third = measured(&scratch, &[]);
    for (task, row) in list(&first).iter().enumerate() {
        for key in ["by_language", "layers"] {
            assert_same(&second[task][key], &row[key], key);
        }
        assert_same(&third[task]["by_language"]["sw"], &row["by_language"]["sw"], "pairs");
    }
    let direction = |tasks: &Value| tasks[0]["layers"]["retrieval_margin"]["sw→en"].clone();
    assert_eq!(direction(&third), direction(&first));
}

#[test]
fn layers_are_shown_as_a_table() {
    let scratch = scratch("llama");
    let shown = scratch.run(EVAL);
    for part in [
        "retrieval cosine",
        "language ranker",
        "lens english",
        "fertility",
        "*",
        "best layer",
    ] {
        assert!(shown.succeeds().stdout.contains(part), "{part} is not in {shown:#?}");
    }
    let lines: Vec<&str> = shown.stdout.lines().filter(|line| line.starts_with("layer ")).collect();
    assert_eq!(lines.len(), 4, "{shown:#?}");
}

#[test]
fn languages_that_cannot_be_compared_are_refused_before_anything_runs() {
    let scratch = scratch("llama");
    let task = |kind: &str, more: &str| {
        scratch.write(
            "tasks.toml",
            format!(
                "[[tasks]]\nname = \"t\"\nkind = {kind:?}\npath = \"sentences.jsonl\"\nformat = \"parallel\"\n{more}"
            ),
        );
        let ran = scratch.run([&EVAL[..], &["--save-answers", "answers"]].concat());
        assert!(!ran.stderr.contains("measuring"), "{ran:#?}");
        ran
    };
    let all = sentences();
    let without = |id: &str, lang: &str| {
        let kept = all.iter().filter(|row| row["id"] != id || row["lang"] != lang);
        kept.cloned().collect::<Vec<_>>()
    };
    for kind in ["retrieval", "similarity", "logit-lens", "tokenizer"] {
        write_rows(&scratch, &without("s3", "sw"));
        task(kind, "").refuses(2, &["`t`", "sw lacks 1, such as \"s3\"", "missing"]);
        write_rows(&scratch, &all);
        task(kind, "languages = [\"hi\", \"sw\"]\n").refuses(2, &["`t`", "\"en\"", "no row", "hi, sw", "anchor"]);
        task(kind, "anchor = \"fr\"\n").refuses(2, &["`t`", "\"fr\"", "en, hi, sw"]);
        task(kind, "languages = [\"en\", \"yo\"]\n").refuses(2, &["`t`", "yo", "languages"]);
        task(kind, "languages = [\"en\"]\n").refuses(2, &["`t`", "all rows are in that language"]);
    }
    task("retrieval", "layer = 4\n").refuses(2, &["`t`", "`layer` is 4", "3 blocks", "middle"]);
    let nameless: Vec<Value> = all
        .iter()
        .map(|row| json!({ "lang": row["lang"], "text": row["text"] }))
        .collect();
    write_rows(&scratch, &nameless);
    task("retrieval", "").refuses(2, &["`t`", "sentences.jsonl:1", "group_field"]);
    assert!(!scratch.path("answers").exists(), "nothing is written");
}

/// What one language lacks is left out in all of them.
#[test]
fn missing_sentences_can_be_left_out() {
    let scratch = scratch("llama");
    let all = sentences();
    let rest: Vec<Value> = all.iter().filter(|row| row["id"] != "s3").cloned().collect();
    let lacking: Vec<Value> = all
        .iter()
        .filter(|row| row["id"] != "s3" || row["lang"] != "sw")
        .cloned()
        .collect();
    write_rows(&scratch, &rest);
    let expected = measured(&scratch, &[]);
    write_rows(&scratch, &lacking);
    scratch.write(
        "tasks.toml",
        TASKS.replace("format = \"parallel\"", "format = \"parallel\"\nmissing = \"skip\""),
    );
    let found = measured(&scratch, &[]);
    for (found, expected) in list(&found).iter().zip(list(&expected)) {
        for key in ["by_language", "layers", "items"] {
            assert_same(&found[key], &expected[key], key);
        }
    }
    assert_eq!(found[0]["items"]["hi"], 7);
}
