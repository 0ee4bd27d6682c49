//! `interlingua eval`: the numbers are those that a run writes, with adapters and without, from a recipe or from a file of tasks.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

use interlingua_tests::binary::Scratch;
use interlingua_tests::numbers::rows;
use interlingua_tests::{adapter_run, tiny};
use serde_json::Value;

/// A file of a program cannot say every bit of a number.
const ROUNDING: f64 = 1e-9;

const GREETINGS: &str = r#"
[[eval.tasks]]
name = "greetings"
kind = "perplexity"
path = "data.jsonl"
format = "messages"
limit = 3
"#;

const ANSWERS: &str = r#"
[[eval.tasks]]
name = "answers"
kind = "generate"
path = "data.jsonl"
format = "messages"
limit = 1
max_new_tokens = 3
"#;

/// The tiny model's recipe with tasks.
fn greetings() -> Scratch {
    let scratch = Scratch::new();
    tiny::write(&scratch);
    scratch.write("recipe.toml", format!("{}{GREETINGS}{ANSWERS}", tiny::RECIPE));
    scratch
}

/// A recipe that trains an adapter, with a task whose rows are those that it learns.
fn tokens() -> Scratch {
    let scratch = Scratch::new();
    adapter_run::write(&scratch);
    let recipe = scratch.read("recipe.toml");
    let path = recipe
        .lines()
        .find(|line| line.starts_with("path = ") && line.contains("train.jsonl"))
        .unwrap();
    let task = format!("[[eval.tasks]]\nname = \"rows\"\nkind = \"perplexity\"\nformat = \"tokens\"\n{path}\n");
    scratch.write("recipe.toml", format!("{recipe}\n{task}"));
    scratch
}

/// The evaluations that a run wrote at a step.
fn evaluations(scratch: &Scratch, run: &str, step: u64) -> Vec<Value> {
    let rows = rows(&scratch.path(run), "eval");
    rows.into_iter().filter(|row| row["step"] == step).collect()
}

/// Fails unless two tasks have the same numbers for the same languages.
fn assert_equal(found: &Value, expected: &Value) {
    for key in ["by_language", "mean", "gap"] {
        assert_equal_numbers(&found[key], &expected[key], &format!("{}: {key}", expected["task"]));
    }
}

fn assert_equal_numbers(found: &Value, expected: &Value, what: &str) {
    match (found, expected) {
        (Value::Object(found), Value::Object(expected)) => {
            assert!(found.keys().eq(expected.keys()), "{what}: {found:?}, not {expected:?}");
            for (key, expected) in expected {
                assert_equal_numbers(&found[key], expected, &format!("{what}.{key}"));
            }
        }
        _ => {
            let (found, expected) = (found.as_f64().unwrap(), expected.as_f64().unwrap());
            let off = (found - expected).abs();
            assert!(off <= ROUNDING * expected.abs(), "{what} is {found}, not {expected}");
        }
    }
}

#[test]
fn numbers_are_those_of_a_run() {
    let scratch = greetings();
    let settings = ["--set", "data.holdout=0.25", "--set", "train.steps=2"];
    scratch
        .run([&["train", "recipe.toml"], &settings[..]].concat())
        .succeeds();
    let before = evaluations(&scratch, "run", 0);
    let names: Vec<&str> = before.iter().map(|row| row["task"].as_str().unwrap()).collect();
    assert_eq!(names, ["heldout", "greetings", "answers"]);
    let measured = scratch
        .run([&["eval", "recipe.toml", "--json"], &settings[..]].concat())
        .succeeds()
        .json();
    let tasks = measured["tasks"].as_array().unwrap();
    assert_eq!(tasks.len(), before.len());
    for (found, expected) in tasks.iter().zip(&before) {
        assert_eq!(found["task"], expected["task"]);
        assert_equal(found, expected);
    }
    let perplexity = &tasks[1]["by_language"]["sw"]["perplexity"];
    assert!(perplexity.as_f64().unwrap() > 1.0, "{perplexity}");

    let shown = scratch.run([&["eval", "recipe.toml"], &settings[..]].concat());
    for part in ["heldout", "greetings", "bits per byte", "sw", "mean", "gap", "expected"] {
        assert!(shown.succeeds().stdout.contains(part), "{part} is not in {shown:#?}");
    }

    // What the run trained, from a file of tasks in another folder, in both spellings.
    let after = &evaluations(&scratch, "run", 2)[1];
    let tasks = GREETINGS.replace("data.jsonl", "../data.jsonl");
    scratch.write("tasks/eval.toml", &tasks);
    scratch.write("tasks/bare.toml", tasks.replace("[[eval.tasks]]", "[[tasks]]"));
    for file in ["tasks/eval.toml", "tasks/bare.toml"] {
        let measured = scratch
            .run(["eval", "--model", "run/model", "--tasks", file, "--json"])
            .succeeds()
            .json();
        assert_eq!(measured["tasks"].as_array().unwrap().len(), 1);
        assert_equal(&measured["tasks"][0], after);
    }
}

#[test]
fn adapters_are_put_on_and_stacked() {
    let scratch = tokens();
    scratch.run(["train", "recipe.toml"]).succeeds();
    let measured = |adapters: usize| {
        let adapters = ["--adapter", "run/adapter"].repeat(adapters);
        let ran = scratch.run([&["eval", "recipe.toml", "--json"], &adapters[..]].concat());
        ran.succeeds().json()["tasks"][0].clone()
    };
    let (bare, one, two) = (measured(0), measured(1), measured(2));
    assert_equal(&bare, &evaluations(&scratch, "run", 0)[0]);
    assert_equal(&one, &evaluations(&scratch, "run", 6)[0]);
    let loss = |task: &Value| task["mean"]["loss"].as_f64().unwrap();
    assert!((loss(&two) - loss(&one)).abs() > 1e-6, "{two} with two, {one} with one");
}

#[test]
fn what_cannot_be_measured_is_refused_before_anything_runs() {
    let scratch = greetings();
    scratch.write("bare.toml", tiny::RECIPE);
    scratch.write("tasks.toml", GREETINGS);
    let eval = |arguments: &[&str]| scratch.run([&["eval"], arguments].concat());
    let set = |setting: &'static str| eval(&["recipe.toml", "--set", setting]);
    eval(&["bare.toml"]).refuses(
        2,
        &["bare.toml", "nothing to measure", "[[eval.tasks]]", "data.holdout"],
    );
    set("eval.tasks.0.path=gone.jsonl").refuses(2, &["gone.jsonl"]);
    set("model.path=./gone").refuses(2, &["gone", "no such folder"]);
    set("eval.tasks.0.kind=perplexiti").refuses(2, &["eval.tasks.0.kind", "perplexity"]);
    eval(&["recipe.toml", "--adapter", "gone"]).refuses(2, &["gone"]);
    eval(&["gone.toml"]).refuses(2, &["gone.toml"]);
    eval(&[]).refuses(2, &["RECIPE"]);
    eval(&["--model", "base"]).refuses(2, &["--tasks"]);
    eval(&["--tasks", "tasks.toml"]).refuses(2, &["--model"]);
    eval(&["recipe.toml", "--model", "base", "--tasks", "tasks.toml"]).refuses(2, &["cannot be used with"]);
    let tasks = |file: &'static str| eval(&["--model", "base", "--tasks", file]);
    tasks("gone.toml").refuses(2, &["gone.toml", "no file of tasks"]);
    // The base of the tests has no weights.
    tasks("tasks.toml").refuses(2, &["base"]);
    scratch.write(
        "wrong.toml",
        "# tasks\n\n[[tasks]]\nkind = \"perplexity\"\npaht = \"data.jsonl\"\nformat = \"messages\"\n",
    );
    tasks("wrong.toml").refuses(2, &["wrong.toml:5", "eval.tasks.0.paht", "path"]);
    scratch.write("empty.toml", "[eval]\n");
    tasks("empty.toml").refuses(2, &["empty.toml", "nothing to measure"]);
    // Preferences are compared with the reference of a run.
    scratch.write(
        "dpo.toml",
        tiny::RECIPE.replace("\"messages\"", "\"preference\"") + "\n[objective]\nkind = \"dpo\"\n",
    );
    eval(&["dpo.toml", "--set", "data.holdout=0.5"]).refuses(2, &["nothing to measure", "reference"]);
    assert!(!scratch.path("run").exists(), "nothing is written");
}

/// The base is measured as it is and quantised; both are what a run on such a base begins with.
#[test]
fn the_damage_of_quantising_is_reported_by_language() {
    let scratch = tokens();
    let nf4 = ["--set", "model.quantization.scheme=nf4"];
    let train = ["train", "recipe.toml", "--set", "train.steps=1"];
    scratch.run(train).succeeds();
    let quantised = [&train[..], &nf4, &["--set", "output=quantised"]].concat();
    scratch.run(quantised).succeeds();
    let eval = [&["eval", "recipe.toml"], &nf4[..]].concat();
    let measured = scratch.run([&eval[..], &["--json"]].concat()).succeeds().json();
    assert_eq!(
        measured["quantization"],
        serde_json::json!({ "scheme": "nf4", "block": 64, "double": true, "head": false })
    );
    assert_equal(&measured["tasks"][0], &evaluations(&scratch, "run", 0)[0]);
    assert_equal(&measured["quantized"][0], &evaluations(&scratch, "quantised", 0)[0]);
    let damage = &measured["damage"][0];
    let languages = damage["by_language"].as_object().unwrap();
    assert_eq!(languages.len(), 3, "{damage}");
    let mean = [("mean", &damage["mean"])];
    for (language, metrics) in languages
        .iter()
        .map(|(name, metrics)| (name.as_str(), metrics))
        .chain(mean)
    {
        for metric in ["loss", "perplexity"] {
            let number = |key: &str| metrics[metric][key].as_f64().unwrap();
            let (before, after) = (number("before"), number("after"));
            assert!(
                (number("difference") - (after - before)).abs() < 1e-12,
                "{language}: {metrics}"
            );
            assert!((after - before).abs() > 1e-6, "{language}: {metrics}");
            let of = |tasks: &str| match language {
                "mean" => measured[tasks][0]["mean"][metric].as_f64(),
                _ => measured[tasks][0]["by_language"][language][metric].as_f64(),
            };
            assert_eq!(
                (of("tasks"), of("quantized")),
                (Some(before), Some(after)),
                "{language}"
            );
        }
    }
    let shown = scratch.run(&eval);
    for part in [
        "Before and after quantising to NF4 in blocks of 64, double",
        "→",
        "mean",
    ] {
        assert!(shown.succeeds().stdout.contains(part), "{part} is not in {shown:#?}");
    }
}

/// A file of tasks may say how the model is quantised, and no adapter is needed for that.
#[test]
fn tasks_without_a_recipe_are_measured_quantised_too() {
    let scratch = tokens();
    let recipe = scratch.read("recipe.toml");
    let task = &recipe[recipe.find("[[eval.tasks]]").unwrap()..];
    scratch.write("tasks.toml", format!("[model.quantization]\nscheme = \"int8\"\n{task}"));
    let model = interlingua_tests::binary::workspace().join("tests/fixtures/models/llama");
    let model = model.to_str().unwrap();
    let eval = ["eval", "--model", model, "--tasks", "tasks.toml"];
    let measured = scratch.run([&eval[..], &["--json"]].concat()).succeeds().json();
    assert_eq!(measured["quantization"]["scheme"], "int8");
    assert!(measured["damage"][0]["mean"]["loss"]["difference"].as_f64().unwrap() != 0.0);
    let block = [
        "--set",
        "model.quantization.scheme=nf4",
        "--set",
        "model.quantization.block=96",
    ];
    scratch
        .run([&eval[..], &block].concat())
        .refuses(2, &["model.quantization.block", "96"]);
}

/// The model of the quickstart, with the rows and the numbers of `tests/fixtures/evaluation`.
fn choices(scratch: &Scratch, tasks: &str) -> [String; 4] {
    let root = interlingua_tests::binary::workspace();
    let rows = root.join("tests/fixtures/evaluation/choices.jsonl");
    scratch.write("choices.jsonl", std::fs::read(rows).unwrap());
    scratch.write("tasks.toml", tasks);
    let model = root.join("recipes/quickstart/base").display().to_string();
    [
        "--model".to_owned(),
        model,
        "--tasks".to_owned(),
        "tasks.toml".to_owned(),
    ]
}

fn of_transformers() -> Value {
    let file = interlingua_tests::binary::workspace().join("tests/fixtures/evaluation/choices.json");
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

const CHOICES: &str = r#"
[[eval.tasks]]
name = "answer"
kind = "multiple-choice"
path = "choices.jsonl"
format = "choice"
group_field = "pid"

[[eval.tasks]]
name = "answer_plain"
kind = "multiple-choice"
path = "choices.jsonl"
format = "choice"
group_field = "pid"
chat = false
divide_by = "tokens"
prompt = "{{ context }} {% if question == 'cause' %}because{% else %}so{% endif %}:"

[[eval.tasks]]
name = "letter"
kind = "multiple-choice"
path = "choices.jsonl"
format = "choice"
group_field = "pid"
scoring = "letter"

[[eval.tasks]]
name = "template"
kind = "multiple-choice"
path = "choices.jsonl"
format = "choice"
group_field = "pid"
scoring = "template"
prompt = "{{ context }} {% if question == 'cause' %}because{% else %}so{% endif %} {{ choice }}"
"#;

/// The lines of a file of answers, without the first one.
fn answers(scratch: &Scratch, file: &str) -> Vec<Value> {
    let text = scratch.read(file);
    text.lines()
        .skip(1)
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Prompts run once and answers go on from their keys and values; the reference runs each answer by itself.
#[test]
fn multiple_choice_is_that_of_transformers() {
    let scratch = Scratch::new();
    let subject = choices(&scratch, CHOICES);
    let mut command = vec!["eval", "--json", "--save-answers", "answers"];
    command.extend(subject.iter().map(String::as_str));
    let measured = scratch.run(&command).succeeds().json();
    let reference = of_transformers();
    for task in measured["tasks"].as_array().unwrap() {
        let name = task["task"].as_str().unwrap();
        let expected = &reference[name];
        let found = answers(&scratch, &format!("answers/{name}.jsonl"));
        let expected_answers = expected["answers"].as_array().unwrap();
        assert_eq!(found.len(), expected_answers.len());
        for (found, expected) in found.iter().zip(expected_answers) {
            for key in ["language", "group", "choice", "answer", "tokens"] {
                assert_eq!(found[key], expected[key], "{name}: {found}");
            }
            let numbers = |value: &Value| -> Vec<f64> {
                value["log_probs"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|number| number.as_f64().unwrap())
                    .collect()
            };
            for (found, expected) in numbers(found).into_iter().zip(numbers(expected)) {
                assert!(
                    (found - expected).abs() < 1e-3 + 1e-4 * expected.abs(),
                    "{name}: {found}, not {expected}"
                );
            }
        }
        for (language, accuracy) in expected["accuracy"].as_object().unwrap() {
            assert_eq!(&task["by_language"][language]["accuracy"], accuracy, "{name}");
            assert_equal_numbers(&task["by_language"][language]["mlc"], &expected["mlc"][language], name);
            assert_eq!(task["items"][language], 4);
            let interval = &task["intervals"][language]["accuracy"];
            assert!(
                interval[0].as_f64().unwrap() <= accuracy.as_f64().unwrap(),
                "{interval}"
            );
            assert!(
                interval[1].as_f64().unwrap() >= accuracy.as_f64().unwrap(),
                "{interval}"
            );
        }
        assert_equal_numbers(&task["gap"]["accuracy"], &expected["gap"], name);
        for key in ["consistency_by_size", "ac3_by_size"] {
            assert_equal_numbers(&task[key], &expected[key], &format!("{name}: {key}"));
        }
        assert_equal_numbers(&task["consistency"], &expected["consistency_by_size"]["3"], name);
        assert_equal_numbers(&task["ac3"], &expected["ac3_by_size"]["3"], name);
        assert_equal_numbers(&task["mlc"], &expected["consistency_by_size"]["2"], name);
    }
    let shown = scratch.run([&["eval"][..], &command[2..]].concat());
    for part in ["letter", "accuracy", "consistency", "ac3", "items", "gap"] {
        assert!(shown.succeeds().stdout.contains(part), "{part} is not in {shown:#?}");
    }
}

/// Answers that are there are not asked for again, what was cut is, and the scores are the same without a model.
#[test]
fn an_interrupted_evaluation_goes_on_and_is_scored_again() {
    let scratch = Scratch::new();
    let subject = choices(&scratch, CHOICES);
    let subject: Vec<&str> = subject.iter().map(String::as_str).collect();
    let eval = |more: &[&str]| scratch.run([&["eval", "--json"], &subject[..], more].concat());
    let whole = eval(&["--save-answers", "answers"]).succeeds().json();
    let text = scratch.read("answers/letter.jsonl");
    // Five answers, one of them changed by hand, and a sixth that was cut.
    let mut lines: Vec<String> = text.lines().take(6).map(str::to_owned).collect();
    let choice = lines[1].contains("\"choice\":0");
    lines[1] = match choice {
        true => lines[1].replace("\"choice\":0", "\"choice\":1"),
        false => lines[1].replace("\"choice\":1", "\"choice\":0"),
    };
    lines.push(text.lines().nth(6).unwrap()[..20].to_owned());
    scratch.write("answers/letter.jsonl", lines.join("\n"));
    let again = eval(&["--save-answers", "answers"]).succeeds().json();
    let accuracy = |of: &Value| of["tasks"][2]["by_language"]["en"]["accuracy"].as_f64().unwrap();
    assert_eq!(
        (accuracy(&again) - accuracy(&whole)).abs(),
        0.25,
        "the changed answer is kept"
    );
    assert_eq!(again["tasks"][0], whole["tasks"][0]);
    let scored = eval(&["--from-answers", "answers"]).succeeds().json();
    assert_eq!(scored["tasks"], again["tasks"]);

    // Other prompts, another model, a damaged line, too few answers.
    let other = ["--save-answers", "answers", "--set", "eval.tasks.0.divide_by=bytes"];
    eval(&other).refuses(2, &["answers/answer.jsonl:1", "other items, prompts or settings"]);
    eval(&["--save-answers", "answers", "--set", "model.dtype=bf16"]).refuses(2, &["another model"]);
    scratch.write(
        "answers/letter.jsonl",
        lines.join("\n").replacen("\"log_probs\"", "\"log\"", 1) + "\n",
    );
    eval(&["--from-answers", "answers"]).refuses(2, &["answers/letter.jsonl:2", "no answer"]);
    scratch.write("answers/letter.jsonl", lines[..3].join("\n") + "\n");
    eval(&["--from-answers", "answers"]).refuses(2, &["has 2 of the 12 answers", "letter", "--save-answers"]);
}

/// What two models answered, item by item.
#[test]
fn two_models_are_compared_on_the_same_items() {
    let scratch = Scratch::new();
    let generate = "\n[[eval.tasks]]\nname = \"said\"\nkind = \"generate\"\npath = \"choices.jsonl\"\nformat = \"prompt-completion\"\n\
                    fields = { prompt = \"context\", completion = \"question\" }\nmax_new_tokens = 3\nmeasures = [\"chrf\", \"exact-match\"]\n";
    let subject = choices(&scratch, &format!("{CHOICES}{generate}"));
    let subject: Vec<&str> = subject.iter().map(String::as_str).collect();
    for (folder, dtype) in [("one", "model.dtype=f32"), ("two", "model.dtype=bf16")] {
        let command = [&["eval", "--set", dtype, "--save-answers", folder], &subject[..]].concat();
        scratch.run(command).succeeds();
    }
    let compared = scratch
        .run(["compare", "one", "two", "--json", "--side-by-side", "pairs.jsonl"])
        .succeeds()
        .json();
    let rows = compared["comparisons"].as_array().unwrap();
    // Four tasks of one metric and one of two, in three languages; means where rows say which items are the same.
    assert_eq!(rows.len(), 4 * 4 + 2 * 3, "{compared}");
    for row in rows {
        let number = |key: &str| row[key].as_f64().unwrap();
        assert!(
            (number("second") - number("first") - number("difference")).abs() < 1e-12,
            "{row}"
        );
        assert!((0.0..=1.0).contains(&number("p_value")), "{row}");
        assert_eq!(row["items"], 4, "{row}");
    }
    let pairs = scratch.read("pairs.jsonl");
    assert_eq!(pairs.lines().count(), 2 * 12);
    // A judge that likes what it reads first sees no difference; one that knows the second model does.
    for (judgment, rate) in [("first", 0.5), ("second model", 1.0)] {
        let judged = pairs.lines().map(|line| {
            let mut row: Value = serde_json::from_str(line).unwrap();
            let second_first = row["swapped"] == true;
            let wins = if judgment == "first" || second_first {
                "first"
            } else {
                "second"
            };
            row["judgment"] = wins.into();
            row.to_string()
        });
        scratch.write("judged.jsonl", judged.collect::<Vec<_>>().join("\n"));
        let rates = scratch
            .run(["compare", "--judgments", "judged.jsonl", "--json"])
            .succeeds()
            .json();
        for row in rates["win_rates"].as_array().unwrap() {
            assert_eq!((&row["win_rate"], &row["items"]), (&rate.into(), &4.into()), "{row}");
        }
    }
    scratch
        .run(["compare", "--judgments", "pairs.jsonl"])
        .refuses(2, &["pairs.jsonl:1", "judgment"]);
    scratch.run(["compare", "one", "gone"]).refuses(2, &["gone"]);
    let lines = scratch.read("two/answer.jsonl");
    scratch.write(
        "two/answer.jsonl",
        lines.lines().take(5).collect::<Vec<_>>().join("\n") + "\n",
    );
    scratch
        .run(["compare", "one", "two"])
        .refuses(2, &["answer.jsonl", "not finished"]);
}

/// Everything that is wrong with a task's rows and keys is said before a model is read.
#[test]
fn wrong_tasks_are_refused_by_name() {
    let scratch = Scratch::new();
    let task = &CHOICES[..CHOICES.find("[[eval.tasks]]\nname = \"answer_plain\"").unwrap()];
    let subject = choices(&scratch, task);
    let subject: Vec<&str> = subject.iter().map(String::as_str).collect();
    let set = |settings: &[&str]| {
        let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", *setting]).collect();
        scratch.run([&["eval"], &subject[..], &settings].concat())
    };
    let rows = scratch.read("choices.jsonl");
    let edited = |from: &str, to: &str| scratch.write("choices.jsonl", rows.replacen(from, to, 1));
    set(&["eval.tasks.0.prompt=\"{{ contxt }}\""]).refuses(2, &["choices.jsonl:1", "prompt", "undefined", "`context`"]);
    set(&["eval.tasks.0.prompt=\"{{ context\""]).refuses(2, &["answer", "no Jinja template"]);
    set(&["eval.tasks.0.prompt={ en = \"{{ context }}\" }"])
        .refuses(2, &["choices.jsonl:2", "no text for the language \"sw\""]);
    set(&["eval.tasks.0.languages=[\"en\", \"fi\"]"]).refuses(2, &["answer", "no row in fi"]);
    set(&["eval.tasks.0.shots=4"]).refuses(2, &["shots is 4", "only 3 examples in en"]);
    set(&["eval.tasks.0.scoring=template"]).refuses(2, &["eval.tasks.0.scoring", "prompt"]);
    set(&["eval.tasks.0.max_new_tokens=0"]).refuses(2, &["eval.tasks.0.max_new_tokens"]);
    set(&["eval.tasks.0.extract=number"]).refuses(2, &["eval.tasks.0.extract", "not read"]);
    set(&["eval.tasks.0.from=other"]).refuses(2, &["eval.tasks.0.from", "path"]);
    set(&["eval.tasks.0.format=text"]).refuses(2, &["eval.tasks.0.format", "multiple-choice"]);
    edited("\"answer\": 0", "\"answer\": 5");
    set(&[]).refuses(2, &["choices.jsonl:1", "`answer` is 5", "2 choices"]);
    edited(", \"answer\": 0}", "}");
    set(&[]).refuses(2, &["choices.jsonl:1", "answer"]);
    edited("\"pid\": \"1\", \"lang\": \"sw\"", "\"pid\": \"9\", \"lang\": \"sw\"");
    set(&[]).refuses(
        2,
        &[
            "de lacks 1, such as \"9\"",
            "en lacks 1",
            "sw lacks 1, such as \"1\"",
            "missing = \"skip\"",
        ],
    );
    let skipped = [&["eval", "--json", "--set", "eval.tasks.0.missing=skip"], &subject[..]].concat();
    let skipped = scratch.run(skipped).succeeds().json();
    assert_eq!(skipped["tasks"][0]["items"]["sw"], 3, "{skipped}");
    edited("\"pid\": \"2\", \"lang\": \"en\"", "\"pid\": \"1\", \"lang\": \"en\"");
    set(&[]).refuses(2, &["\"1\" is there twice", "choices.jsonl:1", "choices.jsonl:4"]);
    edited("\"answer\": 0", "\"answer\": 1");
    set(&[]).refuses(2, &["choices.jsonl", "cannot be compared across languages"]);
}

/// Fields are translated one by one, and another task reads its rows with the answers in their place.
#[test]
fn a_task_reads_what_another_one_translates() {
    let scratch = Scratch::new();
    let tasks = r#"
[[eval.tasks]]
name = "into-english"
kind = "generate"
path = "choices.jsonl"
format = "choice"
languages = ["sw", "de"]
group_field = "pid"
translate = ["context", "choices"]
answer_lang = "en"
prompt = "{{ language }}: {{ text }}\nEnglish:"
stop = ["\n"]
max_new_tokens = 4

[[eval.tasks]]
name = "translated"
kind = "multiple-choice"
from = "into-english"
format = "choice"
group_field = "pid"
scoring = "template"
prompt = "{{ context }} {{ choice }}"
"#;
    let subject = choices(&scratch, tasks);
    let mut command = vec!["eval", "--json", "--save-answers", "answers"];
    command.extend(subject.iter().map(String::as_str));
    let measured = scratch.run(&command).succeeds().json();
    let (translated, solved) = (&measured["tasks"][0], &measured["tasks"][1]);
    // Four items of which each has a context and two choices, one of them three.
    assert_eq!(
        translated["items"],
        serde_json::json!({ "de": 13, "sw": 13 }),
        "{translated}"
    );
    assert!(translated["by_language"]["sw"]["fidelity"].is_number(), "{translated}");
    assert_eq!(solved["items"], serde_json::json!({ "de": 4, "sw": 4 }), "{solved}");
    assert!(solved["consistency"].is_number(), "{solved}");
    let said = answers(&scratch, "answers/into-english.jsonl");
    let prompts: Vec<&str> = said[..3]
        .iter()
        .map(|answer| answer["prompt"].as_str().unwrap())
        .collect();
    let expected = ["Glasi ilianguka kutoka mezani.", "Ilivunjika.", "Ilikua ndefu."];
    assert_eq!(prompts, expected.map(|text| format!("Swahili: {text}\nEnglish:")));
    // What was translated is asked about: the bytes of the filled templates are those of the answers.
    let text = |place: usize| said[place]["output"].as_str().unwrap().trim();
    let kept = |place: usize| {
        if text(place).is_empty() {
            expected[place]
        } else {
            text(place)
        }
    };
    let filled = [1, 2].map(|choice| format!("{} {}", kept(0), kept(choice)).len() as u64);
    let solved = answers(&scratch, "answers/translated.jsonl");
    assert_eq!(solved[0]["bytes"], serde_json::json!(filled), "{}", solved[0]);
    // Gone on with, everything is there already.
    assert_eq!(scratch.run(&command).succeeds().json()["tasks"], measured["tasks"]);
    command.extend(["--set", "eval.tasks.1.from=gone"]);
    scratch.run(&command).refuses(2, &["eval.tasks.1.from", "gone"]);
}

/// Examples are the same items in every language and change what is asked; prompts of one language or mixed ones too.
#[test]
fn examples_and_prompt_languages_change_what_is_asked() {
    let scratch = Scratch::new();
    let task = r#"
[[eval.tasks]]
name = "asked"
kind = "multiple-choice"
path = "choices.jsonl"
format = "choice"
group_field = "pid"
chat = false
prompt = { en = "Event: {{ context }} Then:", sw = "Tukio: {{ context }} Kisha:", de = "Ereignis: {{ context }} Dann:" }
"#;
    let subject = choices(&scratch, task);
    let log_probs = |settings: &[&str]| -> Vec<f64> {
        let folder = format!("answers-{}", settings.join("-").replace(['=', '.', '"'], "_"));
        let mut command = vec!["eval", "--save-answers", &folder];
        command.extend(subject.iter().map(String::as_str));
        command.extend(settings.iter().flat_map(|setting| ["--set", *setting]));
        scratch.run(&command).succeeds();
        let said = answers(&scratch, &format!("{folder}/asked.jsonl"));
        said.iter()
            .map(|answer| answer["log_probs"][0].as_f64().unwrap())
            .collect()
    };
    let native = log_probs(&[]);
    let english = log_probs(&["eval.tasks.0.prompt_language=english"]);
    // Rows stand in the order en, sw, de: only the others are asked in another language.
    for (place, (native, english)) in native.iter().zip(&english).enumerate() {
        assert_eq!(native == english, place % 3 == 0, "{place}: {native}, {english}");
    }
    let mixed = ["eval.tasks.0.prompt_language=mixed"];
    assert_eq!(
        log_probs(&mixed),
        log_probs(&[mixed[0], "eval.tasks.0.limit=4"]),
        "the same draw each time"
    );
    assert_ne!(log_probs(&mixed), log_probs(&[mixed[0], "eval.tasks.0.seed=1"]));
    let shots = log_probs(&["eval.tasks.0.shots=2"]);
    assert!(shots.iter().zip(&native).all(|(shots, native)| shots != native));
    assert_ne!(shots, log_probs(&["eval.tasks.0.shots=2", "eval.tasks.0.seed=5"]));
    // From a file of examples: all items may be shown.
    let from_file = ["eval.tasks.0.shots=4", "eval.tasks.0.shots_path=choices.jsonl"];
    assert_eq!(log_probs(&from_file).len(), 12);
}

/// A run keeps what was answered at each of its evaluations, so that before and after can be compared.
#[test]
fn a_run_keeps_its_answers() {
    let scratch = greetings();
    let train = ["train", "recipe.toml", "--set", "eval.save_answers=true", "--set"];
    scratch.run([&train[..], &["train.steps=2"]].concat()).succeeds();
    for (step, task, items) in [
        (0, "greetings", 12),
        (2, "greetings", 12),
        (0, "answers", 4),
        (2, "answers", 4),
    ] {
        let found = answers(&scratch, &format!("run/answers/step-{step}/{task}.jsonl"));
        assert_eq!(found.len(), items, "{task} at step {step}");
    }
    let compared = scratch
        .run(["compare", "run/answers/step-0", "run/answers/step-2", "--json"])
        .succeeds()
        .json();
    let loss = compared["comparisons"]
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["metric"] == "loss")
        .unwrap();
    let [before, after] = [0, 2].map(|step| evaluations(&scratch, "run", step)[0].clone());
    let language = loss["language"].as_str().unwrap();
    assert_equal_numbers(&loss["first"], &before["by_language"][language]["loss"], "before");
    assert_equal_numbers(&loss["second"], &after["by_language"][language]["loss"], "after");
    // A longer run goes on from there, and keeps what it had.
    scratch.run([&train[..], &["train.steps=3"]].concat()).succeeds();
    for step in [0, 3] {
        assert!(
            scratch.path(&format!("run/answers/step-{step}/answers.jsonl")).exists(),
            "{step}"
        );
    }
}
