//! The command line without training: usage, exit codes, listings, and what needs no model.

use interlingua_tests::binary::{Scratch, path, workspace};
use std::process::{Command, Stdio};

#[test]
fn usage_errors_end_with_2() {
    let scratch = Scratch::new();
    scratch.run(["trian", "x.toml"]).refuses(2, &["trian", "train"]);
    scratch.run::<&str>([]).refuses(2, &["Usage"]);
    scratch.run(["train"]).refuses(2, &["RECIPE"]);
    scratch
        .run(["generate", "--model", "m"])
        .refuses(2, &["--prompt", "--input"]);
    scratch.run(["sweep", "r.toml"]).refuses(2, &["--grid"]);
    scratch
        .run(["-q", "-v", "doctor"])
        .refuses(2, &["--quiet", "--verbose"]);
}

#[test]
#[cfg(not(feature = "mpi"))]
fn several_processes_on_a_cpu_need_mpi() {
    let scratch = Scratch::new();
    interlingua_tests::adapter_run::write(&scratch);
    let missing = ["built without it", "Open MPI", "--features mpi"];
    scratch
        .run(["launch", "--nproc", "2", "recipe.toml"])
        .refuses(2, &missing);
    let mut rank = scratch.command(["train", "recipe.toml"]);
    rank.envs([
        ("RANK", "0"),
        ("WORLD_SIZE", "2"),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", "29500"),
    ]);
    interlingua_tests::binary::Ran::from(rank.output().unwrap()).refuses(2, &missing);
    assert!(!scratch.path("run").exists());
}

#[test]
fn help_is_on_standard_output_and_has_examples() {
    let scratch = Scratch::new();
    let help = scratch.run(["--help"]);
    help.succeeds();
    for command in [
        "train",
        "launch",
        "validate",
        "prepare",
        "sweep",
        "tokenizer",
        "generate",
        "export",
        "verify",
        "inspect",
    ] {
        assert!(help.stdout.contains(command), "{command} is not in {}", help.stdout);
    }
    for command in ["train", "launch", "validate", "generate", "completions", "init"] {
        let help = scratch.run([command, "--help"]);
        assert!(help.succeeds().stdout.contains("Example: interlingua"), "{help:?}");
    }
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let mut child = Command::new(path())
        .arg("schema")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn recipes_are_listed_and_written_out() {
    let scratch = Scratch::new();
    let list = scratch.run(["recipes", "--json"]).succeeds().json();
    let names: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|recipe| recipe["name"].as_str().unwrap().to_owned())
        .collect();
    for name in ["quickstart", "lora-sft", "full-finetune", "continued-pretraining"] {
        assert!(
            names.iter().any(|listed| listed == name),
            "{name} is not among {names:?}"
        );
    }
    assert!(scratch.run(["recipes"]).succeeds().stdout.contains("quickstart"));
    for name in &names {
        scratch.run(["init", name]).succeeds();
        let recipe = scratch.path(&format!("recipes/{name}.toml"));
        let facts = scratch
            .run(["inspect", recipe.to_str().unwrap(), "--json"])
            .succeeds()
            .json();
        assert_eq!(facts["kind"], "recipe");
    }
}

#[test]
fn init_overwrites_nothing_unless_told_to() {
    let scratch = Scratch::new();
    scratch.run(["init", "no-such"]).refuses(2, &["no-such", "lora-sft"]);
    scratch.run(["init", "lora-sft"]).succeeds();
    let original = scratch.read("recipes/lora-sft.toml");
    scratch.run(["init", "lora-sft"]).succeeds();
    scratch.write("recipes/lora-sft.toml", "seed = 1");
    scratch
        .run(["init", "lora-sft"])
        .refuses(2, &["recipes/lora-sft.toml", "--force"]);
    assert_eq!(scratch.read("recipes/lora-sft.toml"), "seed = 1");
    scratch.run(["init", "lora-sft", "--force"]).succeeds();
    assert_eq!(scratch.read("recipes/lora-sft.toml"), original);
}

#[test]
fn the_schema_is_json_schema() {
    let schema = Scratch::new().run(["schema"]).succeeds().json();
    assert!(schema["$schema"].as_str().unwrap().contains("2020-12"));
    assert!(schema["properties"]["adapter"].is_object());
}

#[test]
fn completions_name_the_commands() {
    let scratch = Scratch::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = scratch.run(["completions", shell]);
        assert!(script.succeeds().stdout.contains("validate"), "{shell}");
    }
    scratch.run(["completions", "cmd"]).refuses(2, &["bash"]);
}

#[test]
fn doctor_says_what_is_missing_and_what_to_do() {
    let scratch = Scratch::new();
    let report = scratch.run(["doctor", "--json"]).succeeds().json();
    assert!(report["devices"].as_array().unwrap().contains(&"cpu".into()));
    let checks = report["checks"].as_array().unwrap();
    assert!(
        checks
            .iter()
            .all(|check| check["good"] == true || check["advice"].is_string()),
        "{report}"
    );
    assert!(scratch.run(["doctor"]).succeeds().stdout.contains("vector units"));
}

#[test]
fn wrong_recipes_are_refused_with_place_and_advice() {
    let scratch = Scratch::new();
    let good = "output = \"out\"\n[model]\npath = \"m\"\n[[data.sources]]\npath = \"d.jsonl\"\nformat = \"text\"\nlang = \"sw\"\n";
    let refuses = |text: &str, parts: &[&str]| {
        scratch.write("r.toml", text);
        for command in ["validate", "train", "prepare"] {
            scratch.run([command, "r.toml"]).refuses(2, parts);
        }
        assert!(!scratch.path("out").exists(), "something was written for {text}");
    };
    refuses(
        &format!("{good}[adapter]\nknid = \"lora\"\n"),
        &["r.toml:9", "knid", "kind"],
    );
    refuses(&format!("{good}[adapter]\nrank = \"x\"\n"), &["r.toml:9", "rank"]);
    refuses(&format!("{good}[adapter]\nrank = 0\n"), &["r.toml:9", "rank", "1"]);
    refuses(&format!("{good}[adapter]\ndropout = 1.5\n"), &["r.toml:9", "dropout"]);
    refuses(
        &good.replace("\"sw\"", "\"not a language\""),
        &["r.toml:7", "not a language"],
    );
    refuses("output = ", &["r.toml:1"]);
    scratch.run(["validate", "missing.toml"]).refuses(2, &["missing.toml"]);
    scratch.write("bytes.toml", [b'o', 0xff]);
    scratch
        .run(["validate", "bytes.toml"])
        .refuses(2, &["bytes.toml", "UTF-8"]);
    scratch.write("r.toml", good);
    scratch
        .run(["validate", "r.toml", "--set", "train.steeps=3"])
        .refuses(2, &["train.steeps", "steps"]);
    scratch
        .run(["validate", "r.toml", "--set", "train"])
        .refuses(2, &["--set train"]);
}

#[test]
fn every_set_counts_wherever_it_stands() {
    let scratch = Scratch::new();
    scratch.write("r.toml", "output = \"out\"\n");
    let ran = scratch.run(["--set", "train.stepz=3", "validate", "r.toml", "--set", "adapter.rnk=3"]);
    ran.refuses(2, &["stepz", "rnk"]);
}

#[test]
fn inspect_knows_folders_and_files() {
    let scratch = Scratch::new();
    let fixtures = workspace().join("tests/fixtures");
    let inspect = |path: &str| {
        scratch
            .run(["inspect", fixtures.join(path).to_str().unwrap(), "--json"])
            .succeeds()
            .json()
    };
    let model = inspect("models/llama");
    assert_eq!(
        (&model["kind"], &model["architecture"]),
        (&"model".into(), &"LlamaForCausalLM".into())
    );
    assert!(model["parameters"].as_u64().unwrap() > 1000);
    let plain = inspect("qlora/base");
    for (name, kind) in [
        ("nf4_double", "bitsandbytes nf4, double quantisation"),
        ("nf4", "bitsandbytes nf4"),
        ("int8", "bitsandbytes int8"),
    ] {
        let quantised = inspect(&format!("qlora/saved/{name}"));
        assert_eq!(quantised["quantised"], kind);
        assert_eq!(quantised["parameters"], plain["parameters"], "{name}");
    }
    let adapter = inspect("lora/llama.dora");
    assert_eq!((&adapter["kind"], &adapter["dora"]), (&"adapter".into(), &true.into()));
    assert_eq!(inspect("models/llama.golden.safetensors")["kind"], "tensors");
    scratch.write(
        "rows.jsonl",
        "{\"text\": \"habari\", \"lang\": \"sw\"}\n{\"text\": \"hello\", \"lang\": \"en\"}\n",
    );
    let data = scratch.run(["inspect", "rows.jsonl", "--json"]).succeeds().json();
    assert_eq!((&data["kind"], &data["rows"]), (&"data".into(), &2.into()));
    scratch
        .run(["inspect", "nothing"])
        .refuses(2, &["nothing", "does not exist"]);
}

/// The plan of one of several processes, and how fast they are together; of the model nothing but its config is there.
#[test]
fn plans_are_of_one_of_several_processes() {
    let scratch = Scratch::new();
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 1024, "hidden_size": 256,
        "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "tie_word_embeddings": false, "hidden_act": "silu",
    });
    scratch.write("base/config.json", config.to_string());
    let recipe = "output = \"run\"\n[model]\npath = \"base\"\ndtype = \"f32\"\n[[data.sources]]\npath = \"rows.jsonl\"\n\
                  format = \"tokens\"\n[distributed]\nstrategy = \"zero3\"\n[train]\ngradient_accumulation = 2\n";
    scratch.write("recipe.toml", recipe);
    let plan = |arguments: &[&str]| scratch.run([&["plan", "recipe.toml", "--device", "cuda"], arguments].concat());
    let stage = |arguments: &[&str]| plan(&[&["--json"], arguments].concat()).succeeds().json()["stages"][0].clone();

    let alone = stage(&[]);
    assert!(alone["plan"]["of"].get("world_size").is_none() && alone.get("scaling").is_none());
    let shared = stage(&["--world", "8", "--bandwidth", "100Gb/s", "--teraflops", "100"]);
    assert_eq!(shared["plan"]["of"]["world_size"], 8);
    assert_eq!(shared["plan"]["of"]["strategy"], "zero3");
    assert_eq!(shared["plan"]["of"]["recompute"], "block");
    let part = |stage: &serde_json::Value, name: &str| stage["plan"]["device"][name].as_f64().unwrap();
    // Nine norms of 256 numbers are too short to be cut.
    let norms_of_others = f64::from(7 * 8 * 9 * 256);
    assert_eq!(
        part(&alone, "optimizer"),
        8.0 * part(&shared, "optimizer") - norms_of_others
    );
    assert!(part(&shared, "weights") < 0.8 * part(&alone, "weights"));
    // A piece as long as the norm goes for each process.
    let (block, ends) = (4 * (4 * 256 * 256 + 3 * 256 * 1024), 4 * 2 * 1024 * 256);
    let norms = 4 * 8 * 256;
    let sent = 7 * (2 * 3 * 4 * block + 2 * (ends + 9 * norms)) / 8;
    let scaling = &shared["scaling"];
    assert_eq!(scaling["bandwidth"], 12.5e9);
    let rows = scaling["processes"].as_array().unwrap();
    assert_eq!(
        rows.iter()
            .map(|row| row["world_size"].as_u64().unwrap())
            .collect::<Vec<_>>(),
        [1, 2, 4, 8]
    );
    assert_eq!(rows[3]["sent"], sent);
    assert_eq!(rows[3]["memory"], shared["plan"]["device"]["total"]);

    let shown = plan(&["--world", "8", "--bandwidth", "100Gb/s"]);
    for text in [
        "for each of 8 processes",
        "\"zero3\"",
        "micro-batches of the recipe's size",
        "efficiency",
        "20 µs",
    ] {
        assert!(shown.succeeds().stdout.contains(text), "{text}: {shown:#?}");
    }
    plan(&["--world", "0"]).refuses(2, &["--world", "number of processes"]);
    plan(&["--world", "8", "--bandwidth", "50GB"]).refuses(2, &["--bandwidth", "50GB/s", "100Gb/s"]);
    plan(&["--bandwidth", "50GB/s"]).refuses(2, &["--world"]);
    plan(&["--world", "8", "--set", "memory.recompute=none"]).refuses(2, &["memory.recompute", "zero3"]);
}
