//! Runs through the real command line: training, stopping, going on, sweeping, generating, exporting.

use interlingua_tests::binary::{Ran, Scratch};
use interlingua_tests::tiny;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn scratch() -> Scratch {
    let scratch = Scratch::new();
    tiny::write(&scratch);
    scratch
}

/// Rows of `metrics.jsonl` of one kind.
fn rows(scratch: &Scratch, run: &str, kind: &str) -> Vec<serde_json::Value> {
    let text = scratch.read(&format!("{run}/metrics.jsonl"));
    let rows = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("a row is JSON"));
    rows.filter(|row| row["kind"] == kind).collect()
}

#[test]
fn a_run_writes_what_it_promises() {
    let scratch = scratch();
    let set = ["--set", "data.holdout=0.25", "--set", "train.eval_every=4"];
    let ran = scratch.run([&["train", "recipe.toml"], &set[..]].concat());
    assert!(ran.succeeds().stdout.contains("language"), "{ran:?}");
    let train = rows(&scratch, "run", "train");
    let steps: Vec<_> = train.iter().map(|row| row["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (1..=8).collect::<Vec<_>>());
    for row in &train {
        for key in [
            "loss",
            "tokens",
            "tokens_total",
            "grad_norm",
            "learning_rate",
            "tokens_per_second",
            "step_seconds",
            "memory_bytes",
        ] {
            assert!(row[key].is_number(), "{key} in {row}");
        }
        let tokens: u64 = row["by_language"]
            .as_object()
            .unwrap()
            .values()
            .map(|numbers| numbers["tokens"].as_u64().unwrap())
            .sum();
        assert_eq!(tokens, row["tokens"].as_u64().unwrap());
    }
    let evaluated: Vec<_> = rows(&scratch, "run", "eval")
        .iter()
        .map(|row| row["step"].as_u64().unwrap())
        .collect();
    assert_eq!(evaluated, [0, 4, 8]);
    for file in [
        "recipe.toml",
        "summary.json",
        "model/config.json",
        "model/model.safetensors",
        "model/tokenizer.json",
    ] {
        assert!(scratch.path("run").join(file).is_file(), "{file} is not there");
    }
    let facts = scratch.run(["inspect", "run", "--json"]).succeeds().json();
    assert_eq!(
        (&facts["kind"], &facts["finished"], &facts["last_step"]),
        (&"run".into(), &true.into(), &8.into())
    );
    let checkpoint = scratch.run(["inspect", "run/checkpoint-8", "--json"]).succeeds().json();
    assert_eq!(checkpoint["kind"], "checkpoint");
    let again = scratch.run([&["train", "recipe.toml"], &set[..]].concat());
    assert!(again.succeeds().stdout.contains("already finished"), "{again:?}");
}

#[test]
fn the_result_is_json_when_asked_for() {
    let scratch = scratch();
    let result = scratch.run(["train", "recipe.toml", "--json"]).succeeds().json();
    assert_eq!(
        (&result["outcome"], &result["summary"]["steps"]),
        (&"finished".into(), &8.into())
    );
    let result = scratch.run(["train", "recipe.toml", "--json"]).succeeds().json();
    assert_eq!(result["outcome"], "already-finished");
}

/// Long enough to be interrupted.
const LONG: [&str; 4] = ["train", "recipe.toml", "--set", "train.steps=300"];

/// The newest checkpoint of a run.
fn newest_checkpoint(scratch: &Scratch) -> Option<u64> {
    let entries = std::fs::read_dir(scratch.path("run")).ok()?.flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("checkpoint-")?.parse().ok())
        .max()
}

/// Starts a long run and waits until it has saved something.
fn start(scratch: &Scratch) -> std::process::Child {
    let before = newest_checkpoint(scratch);
    let child = scratch
        .command(LONG)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let start = Instant::now();
    while newest_checkpoint(scratch) == before {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "no checkpoint after a minute"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    child
}

fn signal(child: &std::process::Child, name: &str) {
    let status = Command::new("kill")
        .args(["-s", name, &child.id().to_string()])
        .status()
        .expect("kill starts");
    assert!(status.success());
}

/// The weights that a run ended with, and every step's loss.
fn result(scratch: &Scratch) -> (Vec<u8>, Vec<String>) {
    let losses = rows(scratch, "run", "train")
        .iter()
        .map(|row| row["loss"].to_string())
        .collect();
    (
        std::fs::read(scratch.path("run/model/model.safetensors")).expect("the run wrote a model"),
        losses,
    )
}

#[test]
fn however_a_run_is_ended_it_goes_on_to_the_same_bytes() {
    let whole = scratch();
    whole.run(LONG).succeeds();
    for name in ["TERM", "INT", "USR1"] {
        let stopped = scratch();
        let child = start(&stopped);
        signal(&child, name);
        let ran: Ran = child.wait_with_output().unwrap().into();
        assert_eq!(ran.code, 75, "{ran:?}");
        assert!(ran.stdout.contains("same command"), "{ran:?}");
        stopped.run(LONG).succeeds();
        assert!(result(&whole) == result(&stopped), "the run differs after SIG{name}");
    }
    let killed = scratch();
    for patience in [0, 7, 31, 53] {
        let mut child = start(&killed);
        std::thread::sleep(Duration::from_millis(patience));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(
        !killed.path("run/summary.json").exists(),
        "the run was over before it could be killed"
    );
    killed.run(LONG).succeeds();
    assert!(result(&whole) == result(&killed), "the run differs after SIGKILL");
}

#[test]
fn a_sweep_trains_each_point_once() {
    let scratch = scratch();
    let sweep = [
        "sweep",
        "recipe.toml",
        "--grid",
        "optimizer.learning_rate=1e-3,1e-2",
        "--grid",
        "train.gradient_accumulation=1,2",
        "--json",
    ];
    let result = scratch.run(sweep).succeeds().json();
    let points = result["points"].as_array().unwrap();
    assert_eq!(points.len(), 4);
    let losses: Vec<_> = points.iter().map(|point| point["loss"].as_f64().unwrap()).collect();
    assert!(losses.is_sorted(), "{losses:?}");
    assert!(
        scratch
            .path("run/sweep/learning_rate=1e-3,gradient_accumulation=2/summary.json")
            .is_file()
    );
    let again = scratch.run(sweep).succeeds().json();
    assert!(
        again["points"]
            .as_array()
            .unwrap()
            .iter()
            .all(|point| point["outcome"] == "already-finished")
    );
    let wrong = ["sweep", "recipe.toml", "--grid", "optimizer.learning_rat=1"];
    scratch.run(wrong).refuses(2, &["learning_rat", "learning_rate"]);
}

#[test]
fn an_adapter_generates_and_merges() {
    let scratch = scratch();
    scratch.run(["train", "recipe.toml"]).succeeds();
    let lora = tiny::RECIPE
        .replace("\"run\"", "\"lora\"")
        .replace("\"base\"\ninit = \"random\"", "\"run/model\"")
        + "\n[adapter]\nrank = 4\n";
    scratch.write("lora.toml", lora);
    scratch.run(["train", "lora.toml"]).succeeds();
    assert_eq!(
        scratch.run(["inspect", "lora/adapter", "--json"]).succeeds().json()["rank"],
        4
    );

    let model = [
        "generate",
        "--model",
        "run/model",
        "--adapter",
        "lora/adapter",
        "--max-new-tokens",
        "4",
    ];
    scratch
        .run([&model[..], &["--prompt", "Habari", "--chat"]].concat())
        .succeeds();
    scratch.write(
        "prompts.jsonl",
        "{\"prompt\": \"Habari\", \"lang\": \"sw\"}\n{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n",
    );
    scratch
        .run(
            [
                &model[..],
                &["--input", "prompts.jsonl", "--out", "answers.jsonl", "--chat"],
            ]
            .concat(),
        )
        .succeeds();
    let answers = scratch.read("answers.jsonl");
    let answers: Vec<serde_json::Value> = answers
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(answers.len(), 2);
    assert_eq!(answers[0]["lang"], "sw");
    assert!(answers.iter().all(|answer| answer["output"].is_string()));
    scratch.write("bad.jsonl", "{\"lang\": \"sw\"}\n");
    scratch
        .run([&model[..], &["--input", "bad.jsonl"]].concat())
        .refuses(2, &["bad.jsonl", "row 1", "prompt"]);

    let export = [
        "export",
        "--model",
        "run/model",
        "--adapter",
        "lora/adapter",
        "--out",
        "merged",
    ];
    scratch.run(export).refuses(2, &["--merge"]);
    let report = scratch
        .run([&export[..], &["--merge", "--json"]].concat())
        .succeeds()
        .json();
    assert!(report["max_logit_difference"].as_f64().unwrap() < 1e-3, "{report}");
    scratch
        .run([&export[..], &["--merge"]].concat())
        .refuses(2, &["merged"]);
    assert_eq!(
        scratch.run(["inspect", "merged", "--json"]).succeeds().json()["kind"],
        "model"
    );
}

#[test]
fn twice_interrupted_leaves_at_once() {
    let scratch = scratch();
    // Preparing does not look at the flag before the first step, so a large file leaves time for two signals.
    let row = scratch.read("data.jsonl");
    scratch.write("data.jsonl", row.repeat(4000));
    let child = scratch
        .command(["train", "recipe.toml"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    signal(&child, "INT");
    std::thread::sleep(Duration::from_millis(200));
    signal(&child, "INT");
    let ran: Ran = child.wait_with_output().unwrap().into();
    ran.refuses(130, &["twice"]);
}

#[test]
fn validate_marks_what_is_supervised() {
    let scratch = scratch();
    let text = scratch.run(["validate", "recipe.toml"]);
    assert!(
        text.succeeds().stdout.contains("[Hello 0<|im_end|>]"),
        "{}",
        text.stdout
    );
    let report = scratch.run(["validate", "recipe.toml", "--json"]).succeeds().json();
    let stage = &report["stages"][0];
    assert_eq!(stage["samples"], tiny::ROWS);
    assert_eq!(stage["by_language"].as_object().unwrap().len(), 4);
    assert_eq!(
        stage["previews"][0]["segments"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|segment| segment["supervised"] == true)
            .count(),
        1
    );
    assert!(!scratch.path("run").exists());
    let prepared = scratch.run(["prepare", "recipe.toml"]);
    assert!(prepared.succeeds().stderr.contains("from the cache"), "{prepared:?}");
}
