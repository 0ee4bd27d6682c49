//! The report of a run: drawn at the run's end and by `interlingua report`.

use interlingua_tests::adapter_run;
use interlingua_tests::binary::Scratch;
use roxmltree::{Document, ParsingOptions};

/// The page is written so that it is XML as well.
fn parse(page: &str) -> Document<'_> {
    let options = ParsingOptions {
        allow_dtd: true,
        ..ParsingOptions::default()
    };
    Document::parse_with_options(page, options).unwrap_or_else(|error| panic!("{error}: {page}"))
}

#[test]
fn a_run_ends_with_a_page_that_needs_nothing_else() {
    let scratch = Scratch::new();
    adapter_run::write(&scratch);
    let settings = ["data.holdout=0.2", "train.eval_every=2", "train.steps=4"];
    let trained = scratch.run(adapter_run::arguments(&settings));
    assert!(trained.succeeds().stdout.contains("run/report.html"), "{trained:?}");
    let page = scratch.read("run/report.html");

    let document = parse(&page);
    let count = |name: &str| document.descendants().filter(|node| node.has_tag_name(name)).count();
    assert_eq!(
        (count("script"), count("link"), count("img"), count("iframe")),
        (0, 0, 0, 0)
    );
    assert!(count("svg") >= 6 && count("table") >= 6, "{page}");
    for word in ["http", "url(", "@import", "//"] {
        assert!(!page.contains(word), "{word} is in {page}");
    }
    let mut ids: Vec<&str> = document.descendants().filter_map(|node| node.attribute("id")).collect();
    let links = document
        .descendants()
        .filter_map(|node| node.attribute("href")?.strip_prefix('#'));
    assert!(links.clone().count() > 2);
    for target in links {
        assert!(ids.contains(&target), "{target}");
    }
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all);

    // All languages of the run stand in the table of losses.
    let summary: serde_json::Value = serde_json::from_str(&scratch.read("run/summary.json")).unwrap();
    let heads: Vec<&str> = document
        .descendants()
        .filter(|node| node.has_tag_name("bdi"))
        .filter_map(|node| node.text())
        .collect();
    for language in summary["by_language"].as_object().unwrap().keys() {
        assert!(heads.contains(&language.as_str()), "{language}");
    }

    // The command writes the same page, here or elsewhere.
    let result = scratch
        .run(["report", "run", "--out", "page.html", "--json"])
        .succeeds()
        .json();
    assert_eq!(result["report"], "page.html");
    assert_eq!(scratch.read("page.html"), page);
    std::fs::remove_file(scratch.path("run/report.html")).unwrap();
    assert_eq!(scratch.run(["report", "run"]).succeeds().stdout, "run/report.html\n");
    assert_eq!(scratch.read("run/report.html"), page);
}

#[test]
fn a_page_that_cannot_be_written_fails_no_run() {
    let scratch = Scratch::new();
    adapter_run::write(&scratch);
    // A folder stands where the page would.
    scratch.write("run/report.html/in-the-way", "");
    let trained = scratch.run(adapter_run::arguments(&["train.steps=2"]));
    assert!(trained.succeeds().stderr.contains("there is no report"), "{trained:?}");
    scratch.run(["report", "run"]).refuses(1, &["report.html"]);
}

#[test]
fn names_are_text_and_no_markup() {
    let scratch = Scratch::new();
    let odd = "</script><b>\"&";
    let row = |step: u64| {
        serde_json::json!({
            "kind": "eval", "step": step, "time": 1.0, "task": odd, "by_language": { odd: { "accuracy": 0.5 }, "עברית": { "accuracy": 0.25 } },
            "mean": { "accuracy": 0.375 }, "gap": { "accuracy": 0.25 },
        })
    };
    scratch.write("run/metrics.jsonl", format!("{}\n{}\n", row(0), row(5)));
    scratch.run(["report", "run"]).succeeds();
    let page = scratch.read("run/report.html");
    let document = parse(&page);
    let texts: Vec<&str> = document
        .descendants()
        .filter_map(|node| node.text())
        .map(str::trim)
        .collect();
    assert!(texts.contains(&odd) && texts.contains(&"עברית"));
    assert!(!document.descendants().any(|node| node.has_tag_name("b")));
}

#[test]
fn where_there_is_nothing_to_draw_nothing_is_written() {
    let scratch = Scratch::new();
    scratch
        .run(["report", "runs/none"])
        .refuses(2, &["runs/none", "does not exist"]);
    scratch.write("notes/todo.txt", "");
    scratch.run(["report", "notes"]).refuses(2, &["notes", "metrics.jsonl"]);
    scratch.write("empty/metrics.jsonl", "");
    scratch
        .run(["report", "empty"])
        .refuses(2, &["empty", "nothing has been measured yet"]);
    let row = serde_json::json!({ "kind": "event", "step": 1, "time": 1.0, "event": "a" });
    scratch.write("damaged/metrics.jsonl", format!("{row}\n{{\"kind\": \"ev\n{row}\n"));
    scratch
        .run(["report", "damaged"])
        .refuses(2, &["damaged/metrics.jsonl, line 2"]);
    for folder in ["notes", "empty", "damaged"] {
        assert!(!scratch.path(folder).join("report.html").exists());
    }
}
