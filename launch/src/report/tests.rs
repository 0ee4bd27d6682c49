//! The page of a run made up here: forty languages, preferences, an auxiliary loss, intervals, layers.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::*;
use crate::exit::Exit;

/// A language whose name would break a page that does not escape it.
const ODD: &str = "<b>&\"'";

/// English, two names in other scripts, one that has to be escaped, and codes.
fn languages() -> Vec<String> {
    let codes = ('a'..='i').flat_map(|first| ['k', 'm', 'q', 'v'].map(|second| format!("{first}{second}")));
    let named = ["en", "עברית", "العربية", ODD].map(str::to_owned);
    named.into_iter().chain(codes).collect()
}

/// One value for each of some names.
fn each(names: &[String], value: impl Fn(usize) -> Value) -> Value {
    let pairs = names
        .iter()
        .enumerate()
        .map(|(index, name)| (name.clone(), value(index)));
    Value::Object(pairs.collect::<Map<_, _>>())
}

fn train(step: u64, languages: &[String]) -> Value {
    let left = 1.0 / step as f64;
    let rewards =
        json!({ "chosen": 1.0 - left, "rejected": left - 1.0, "margin": 2.0 - 2.0 * left, "accuracy": 1.0 - left });
    json!({
        "kind": "train", "step": step, "time": step as f64, "loss": 0.25 + left, "losses": { "dpo": left, "middle-layer": 0.25 },
        "tokens": 100, "tokens_total": 200, "grad_norm": if step == 3 { Value::Null } else { json!(1.0) }, "learning_rate": 1e-4,
        "tokens_per_second": 200.0, "step_seconds": 1.0, "memory_bytes": 1 << 20, "rewards": rewards,
        "shares": each(languages, |_| json!({ "asked": 0.025, "reached": 0.02 })),
        "by_language": each(languages, |index| json!({
            "loss": left + index as f64 / 100.0, "tokens": 10 + index, "samples": 2, "rewards": rewards,
        })),
    })
}

fn eval(step: u64, languages: &[String]) -> Value {
    let score = |index: usize| 0.25 + step as f64 / 100.0 + index as f64 / 1000.0;
    let layers = |names: &[String]| each(names, |index| json!([0.1, score(index), 0.2]));
    let directions: Vec<String> = languages[1..].iter().map(|language| format!("en→{language}")).collect();
    json!({
        "kind": "eval", "step": step, "time": step as f64, "task": "questions", "mean": { "accuracy": score(20) },
        "gap": { "accuracy": 0.04 }, "by_language": each(languages, |index| json!({ "accuracy": score(index) })),
        "items": each(languages, |_| json!(500)),
        "intervals": each(languages, |index| json!({ "accuracy": [score(index) - 0.04, score(index) + 0.04] })),
        "consistency": 0.5, "ac3": 0.4, "mlc": 0.3, "consistency_by_size": { "2": 0.6, "3": 0.5 }, "ac3_by_size": { "2": 0.45, "3": 0.4 },
        "layers": { "cka": layers(languages), "retrieval_cosine": layers(&directions) },
    })
}

fn text_of(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

/// Six steps between three evaluations.
fn rows() -> Vec<Value> {
    let languages = languages();
    let mut rows = vec![eval(0, &languages)];
    for step in 1..=6 {
        rows.push(train(step, &languages));
        if step % 3 == 0 {
            rows.push(eval(step, &languages));
        }
    }
    rows.push(json!({ "kind": "event", "step": 6, "time": 6.0, "event": "loss <has> not improved" }));
    rows
}

fn page_of(text: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("metrics.jsonl"), text).unwrap();
    page(folder.path()).unwrap()
}

fn refused(folder: &Path) -> String {
    let failure = write(folder, None).unwrap_err();
    assert_eq!(failure.exit, Exit::Usage);
    assert!(!folder.join(FILE).exists());
    failure.message
}

/// The part of a page from one heading to the next.
fn section<'a>(page: &'a str, id: &str) -> &'a str {
    let begin = page
        .find(&format!("<section id=\"{id}-1\""))
        .unwrap_or_else(|| panic!("no section {id}"));
    let rest = &page[begin..];
    &rest[..rest.find("</section>").unwrap()]
}

#[test]
fn a_run_has_every_section_and_every_language() {
    let page = page_of(&text_of(&rows()));
    for id in [
        "loss",
        "evaluation",
        "progress",
        "consistency",
        "layers",
        "rewards",
        "shares",
        "optimizer",
    ] {
        section(&page, id);
    }
    for language in languages().iter().filter(|language| *language != ODD) {
        for id in ["loss", "evaluation", "layers", "rewards", "shares"] {
            assert!(
                section(&page, id).contains(language.as_str()),
                "{language} is not in {id}"
            );
        }
    }
    // In tables the template escapes it, in drawings the drawing library.
    assert!(!page.contains(ODD) && !page.contains("<b>") && !page.contains("<has>"));
    assert!(page.contains("&lt;b&gt;&amp;&quot;&#x27;") && page.contains("&lt;b&gt;&amp;&quot;&apos;"));
    assert!(page.contains("loss &lt;has&gt; not improved"));
}

#[test]
fn every_chart_has_a_title_a_description_and_names_on_its_axes() {
    let page = page_of(&text_of(&rows()));
    let charts: Vec<&str> = page.split("<svg class=\"chart\"").skip(1).collect();
    assert!(charts.len() > 12, "{}", charts.len());
    for chart in charts {
        let chart = &chart[..chart.find("</svg>").unwrap()];
        assert!(chart.contains("<title") && chart.contains("<desc"), "{chart}");
        let axis = ["step\n", "layer (hidden state)\n", "(0 to 1)\n", "share (%)\n"];
        assert!(axis.iter().any(|name| chart.contains(name)), "{chart}");
    }
    assert!(section(&page, "loss").contains("loss (per pair or sample)"));
}

#[test]
fn an_evaluation_has_before_after_interval_difference_and_items() {
    let page = page_of(&text_of(&rows()));
    let evaluation = section(&page, "evaluation");
    let row = "<th scope=\"row\"><bdi>en</bdi></th><td>500</td><td>0.2500 [0.2100, 0.2900]</td><td>0.3100 [0.2700, 0.3500]</td><td>+0.0600</td>";
    assert!(evaluation.contains(row), "{evaluation}");
    assert!(evaluation.contains("Before: step 0. After: step 6. Items for each language: 500."));
    assert!(section(&page, "consistency").contains("consistency over 3 languages"));
}

#[test]
fn answers_that_were_kept_stand_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("metrics.jsonl"), text_of(&rows())).unwrap();
    for (step, output) in [(0, "no <idea>"), (6, "Nairobi")] {
        let answers = folder.path().join(format!("answers/step-{step}"));
        fs::create_dir_all(&answers).unwrap();
        let header = json!({ "task": "questions", "items": 3, "model": "step", "fingerprint": "f" });
        let answer = |number: usize, language: &str| {
            json!({
                "number": number, "language": language, "prompt": format!("Mji mkuu? {number}"), "output": output, "expected": "Nairobi",
            })
        };
        let lines = [header, answer(0, "sw"), answer(1, "sw"), answer(2, "ar")];
        fs::write(answers.join("questions.jsonl"), text_of(&lines)).unwrap();
    }
    let page = page(folder.path()).unwrap();
    let answers = section(&page, "answers");
    let cells =
        ["Mji mkuu? 0", "no &lt;idea&gt;", "Nairobi", "Nairobi"].map(|cell| format!("<td><bdi>{cell}</bdi></td>"));
    assert!(answers.contains(&cells.concat()), "{answers}");
    assert!(answers.contains("Mji mkuu? 2") && !answers.contains("Mji mkuu? 1"));
    assert!(!section(&page, "evaluation").contains("Mji"));
}

#[test]
fn of_many_languages_a_handful_has_a_colour() {
    let page = page_of(&text_of(&rows()));
    let figure = section(&page, "loss")
        .split("<figure")
        .find(|figure| figure.contains("Training loss by language"))
        .unwrap();
    let keys = figure.split("<li>").skip(1).count();
    assert_eq!(keys, colours::LINES + 1, "{figure}");
    assert!(figure.contains("<bdi>others</bdi>") && figure.contains("<bdi>en</bdi>"));
    assert!(page.contains("Of 40 languages 6 have a colour"));
    let layers = section(&page, "layers");
    assert!(layers.contains("stroke-dasharray") && layers.contains("Dashed: before, at step 0."));
}

#[test]
fn what_was_not_measured_has_no_section() {
    let row = json!({
        "kind": "train", "step": 1, "time": 1.0, "loss": 1.0, "losses": { "sft": 1.0 }, "tokens": 1, "tokens_total": 1, "grad_norm": 1.0,
        "learning_rate": 1e-4, "tokens_per_second": 1.0, "step_seconds": 1.0, "memory_bytes": 1, "by_language": {},
    });
    let page = page_of(&text_of(&[row]));
    let sections: Vec<&str> = page
        .split("<section id=\"")
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap())
        .collect();
    assert_eq!(sections, ["loss-1", "optimizer-1"]);
    assert!(page.contains("not finished") && !page.contains("NaN") && !page.contains("Parts of the training loss"));
}

#[test]
fn the_stages_of_a_pipeline_stand_on_one_page_in_their_order() {
    let folder = tempfile::tempdir().unwrap();
    for (stage, age) in [("second", 0), ("first", 100)] {
        let path = folder.path().join(stage).join("metrics.jsonl");
        fs::create_dir(path.parent().unwrap()).unwrap();
        fs::write(&path, text_of(&[train(1, &["sw".to_owned()])])).unwrap();
        let time = std::time::SystemTime::now() - std::time::Duration::from_secs(age);
        fs::File::options()
            .append(true)
            .open(&path)
            .unwrap()
            .set_modified(time)
            .unwrap();
    }
    fs::create_dir(folder.path().join("adapter")).unwrap();
    let path = write(folder.path(), None).unwrap();
    let page = fs::read_to_string(path).unwrap();
    let place = |name: &str| page.find(&format!("<h2>Stage <bdi>{name}</bdi></h2>")).unwrap();
    assert!(place("first") < place("second"));
}

#[test]
fn the_end_of_a_killed_run_is_left_out_and_damage_elsewhere_is_an_error() {
    let whole = text_of(&rows());
    let cut = format!("{whole}{}", &train(7, &languages()).to_string()[..200]);
    assert_eq!(
        page_of(&cut).matches("<svg").count(),
        page_of(&whole).matches("<svg").count()
    );

    let folder = tempfile::tempdir().unwrap();
    let mut lines: Vec<String> = rows().iter().map(ToString::to_string).collect();
    lines[2].truncate(100);
    fs::write(folder.path().join("metrics.jsonl"), lines.join("\n")).unwrap();
    let message = refused(folder.path());
    assert!(message.contains("metrics.jsonl, line 3:"), "{message}");
}

#[test]
fn where_there_is_nothing_to_draw_that_is_said() {
    let folder = tempfile::tempdir().unwrap();
    assert!(refused(&folder.path().join("no")).contains("does not exist"));
    assert!(refused(folder.path()).contains("holds no run"));
    fs::write(folder.path().join("metrics.jsonl"), "").unwrap();
    assert!(refused(folder.path()).contains("nothing has been measured yet"));
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(refused(&file).contains("is no folder"));
}
