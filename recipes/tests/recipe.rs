//! Good recipes: defaults, overrides, paths, round trips, resuming.

use std::path::{Path, PathBuf};

use interlingua_recipes::{
    AdapterKind, Device, Fit, Format, Layer, Length, Moments, Parameters, Recipe, Route, ScheduleKind, Source,
    SourcePath, Stage, Targets, Under, json_schema, shipped,
};
use proptest::prelude::*;

const SMALL: &str = r#"
output = "../runs/small"
[model]
path = "org/name"
[[data.sources]]
path = "rows.jsonl"
format = "alpaca"
"#;

fn parse(text: &str, overrides: &[&str]) -> Recipe {
    let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
    Recipe::parse(text, Path::new("/work/recipes/my.toml"), &overrides).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn what_is_left_out_has_the_documented_defaults() {
    let recipe = parse(SMALL, &[]);
    assert_eq!(recipe.seed, 42);
    assert_eq!(recipe.output, PathBuf::from("/work/runs/small"));
    assert_eq!(recipe.model.path, "org/name");
    assert_eq!(recipe.model.device, Device::Auto);
    assert_eq!(recipe.adapter.kind, AdapterKind::None);
    assert_eq!(recipe.data.sources[0].name, "rows");
    assert_eq!(
        recipe.data.sources[0].path,
        SourcePath::Files("/work/recipes/rows.jsonl".into())
    );
    assert_eq!(recipe.data.max_length, 1024);
    assert_eq!(recipe.optimizer.betas, [0.9, 0.999]);
    assert_eq!(recipe.schedule.kind, ScheduleKind::Cosine);
    assert_eq!(recipe.train.length(), Length::Epochs(1.0));
    assert_eq!(recipe.train.parameters, Parameters::Auto);
    assert_eq!(recipe.file, PathBuf::from("/work/recipes/my.toml"));
}

#[test]
fn an_adapter_table_without_a_kind_is_lora() {
    let recipe = parse(&format!("{SMALL}[adapter]\nalpha = 8"), &[]);
    assert_eq!(recipe.adapter.kind, AdapterKind::Lora);
    assert!((recipe.adapter.alpha - 8.0).abs() < f64::EPSILON);
    assert_eq!(recipe.adapter.targets, Targets::AllLinear);
    assert_eq!(parse(SMALL, &["adapter.rank=4"]).adapter.kind, AdapterKind::Lora);
}

#[test]
fn overrides_are_toml_values_or_bare_strings() {
    let recipe = parse(
        &format!("{SMALL}[train]\nepochs = 3"),
        &[
            "train.steps=7",
            "model.path=./base",
            "model.device=cuda:1",
            "data.sources.0.path=other/*.jsonl",
            "data.sources.0.format=\"prompt-completion\"",
            "data.sources.0.fields={prompt = 'question'}",
            "adapter.targets=[\"q_proj\", \"v_proj\"]",
            "train.parameters=re:layers\\.(30|31)\\.",
            "schedule.warmup = 10",
            "output=/elsewhere/2024-01-01",
        ],
    );
    assert_eq!(recipe.train.length(), Length::Steps(7));
    assert_eq!(recipe.train.epochs, None);
    assert_eq!(recipe.model.path, "/work/recipes/base");
    assert_eq!(recipe.model.device, Device::Cuda(Some(1)));
    assert_eq!(
        recipe.data.sources[0].path,
        SourcePath::Files("/work/recipes/other/*.jsonl".into())
    );
    assert_eq!(recipe.data.sources[0].format, Format::PromptCompletion);
    assert_eq!(recipe.data.sources[0].fields["prompt"], "question");
    assert_eq!(
        recipe.adapter.targets,
        Targets::Names(vec!["q_proj".into(), "v_proj".into()])
    );
    assert_eq!(recipe.train.parameters, Parameters::Regex(r"layers\.(30|31)\.".into()));
    assert_eq!(recipe.schedule.warmup_steps(100), 10);
    assert_eq!(recipe.output, PathBuf::from("/elsewhere/2024-01-01"));
}

#[test]
fn stages_lie_over_the_rest_and_go_on_from_one_another() {
    let text = r#"
        output = "out"
        model.path = "org/name"
        model.init = "random"
        train.epochs = 2
        [[data.sources]]
        path = "rows.jsonl"
        format = "text"
        [[stage]]
        name = "read"
        data.train_on = "all"
        [[stage]]
        name = "tune"
        adapter.rank = 4
        train.steps = 5
        [[stage.data.sources]]
        path = "chat.jsonl"
        format = "messages"
        [[stage]]
        name = "polish"
        adapter.dropout = 0.5
        adapter.rank = 4
        [[stage]]
        name = "other"
        from = "read"
        seed = 7
    "#;
    let recipe = parse(text, &["stage.1.data.sources.0.lang=sw"]);
    let stages = recipe.stages().unwrap();
    let [read, tune, polish, other] = stages.as_slice() else {
        panic!("{stages:?}")
    };
    assert_eq!(read.output, PathBuf::from("/work/recipes/out/read"));
    assert_eq!(
        (read.model.path.as_str(), read.adapter.kind),
        ("org/name", AdapterKind::None)
    );
    assert_eq!(read.train.length(), Length::Epochs(2.0));
    assert!(read.stage.is_empty());

    assert_eq!(tune.model.path, "/work/recipes/out/read/model");
    assert_eq!(serde_json::to_value(tune.model.init).unwrap(), "weights");
    assert_eq!(
        (tune.adapter.kind, tune.adapter.rank, &tune.adapter.init_from),
        (AdapterKind::Lora, 4, &None)
    );
    assert_eq!(tune.train.length(), Length::Steps(5));
    assert_eq!(tune.data.sources.len(), 1);
    assert_eq!(
        tune.data.sources[0].path,
        SourcePath::Files("/work/recipes/chat.jsonl".into())
    );
    assert_eq!(tune.data.sources[0].lang.as_deref(), Some("sw"));

    assert_eq!(polish.model.path, "/work/recipes/out/read/model");
    assert_eq!(
        polish.adapter.init_from,
        Some(PathBuf::from("/work/recipes/out/tune/adapter"))
    );
    assert_eq!(other.model.path, "/work/recipes/out/read/model");
    assert_eq!((other.adapter.kind, other.seed), (AdapterKind::None, 7));

    let again = Recipe::parse(&recipe.to_toml().unwrap(), &recipe.file, &[]).unwrap();
    assert_eq!(again, recipe);
    assert_eq!(again.stages().unwrap(), stages);
    assert_eq!(parse(SMALL, &[]).stages().unwrap(), vec![parse(SMALL, &[])]);
}

#[test]
fn a_merge_stage_takes_the_place_of_a_trained_one() {
    let merged = |text: &str, rest: &str| {
        let recipe = parse(&format!("{SMALL}{text}\n{rest}"), &[]);
        let again = Recipe::parse(&recipe.to_toml().unwrap(), &recipe.file, &[]).unwrap();
        assert_eq!((&again, again.stages().unwrap()), (&recipe, recipe.stages().unwrap()));
        recipe.stages().unwrap()
    };
    let merge = r#"
        [[stage]]
        name = "one"
        [[stage]]
        name = "two"
        model.path = "org/name"
        adapter.init_from = ""
        [[stage]]
        name = "both"
        merge = { method = "ties", weights = [2, 1], of = ["one", "two"], density = 0.5 }
        [[stage]]
        name = "on"
        seed = 9
    "#;
    let models = merged("", &merge.replace("adapter.init_from = \"\"", ""));
    let stage = models[2].merge.as_ref().unwrap();
    let path = |path: &str| PathBuf::from(format!("/work/runs/small/{path}"));
    assert_eq!((stage.result, stage.base.as_deref()), ("model", Some("org/name")));
    assert_eq!(stage.inputs, [path("one/model"), path("two/model")]);
    assert_eq!(models[2].output, path("both"));
    assert_eq!((models[3].merge.as_ref(), models[3].seed), (None, 9));
    assert_eq!(Path::new(&models[3].model.path), path("both/model"));

    let adapters = merged("[adapter]\nrank = 4", merge);
    let stage = adapters[2].merge.as_ref().unwrap();
    assert_eq!((stage.result, &stage.base), ("adapter", &None));
    assert_eq!(stage.inputs, [path("one/adapter"), path("two/adapter")]);
    assert_eq!(adapters[3].adapter.init_from, Some(path("both/adapter")));
    assert_eq!(adapters[3].model.path, "org/name");

    let with_base = merge.replace("density = 0.5", "base = \"./start\"");
    let models = merged("", &with_base.replace("adapter.init_from = \"\"", ""));
    assert_eq!(
        models[2].merge.as_ref().unwrap().base.as_deref(),
        Some("/work/recipes/start")
    );
}

#[test]
fn a_run_may_be_resumed_with_other_lengths_and_nothing_else() {
    let saved = parse(SMALL, &[]);
    let conflicts = |overrides: &[&str]| parse(SMALL, overrides).resume_conflicts(&saved).unwrap();
    let free = [
        "train.steps=9",
        "train.checkpoint_every=1",
        "train.keep_checkpoints=9",
        "train.log_every=3",
        "train.eval_every=9",
        "memory.recompute=block",
        "model.device=cpu",
    ];
    assert_eq!(conflicts(&free), Vec::<String>::new());
    assert_eq!(
        conflicts(&[
            "seed=1",
            "train.batch_size=2",
            "optimizer.learning_rate=1",
            "data.sources.0.path=x.jsonl"
        ]),
        // The name follows the path when there is none.
        [
            "data.sources.0.name",
            "data.sources.0.path",
            "optimizer.learning_rate",
            "seed",
            "train.batch_size"
        ]
    );
    let with_task = format!("{SMALL}[[eval.tasks]]\nkind = \"perplexity\"\npath = \"e.jsonl\"\nformat = \"text\"");
    assert!(parse(&with_task, &[]).resume_conflicts(&saved).unwrap().is_empty());
    let two = format!("{SMALL}[[data.sources]]\nname = \"b\"\npath = \"b.jsonl\"\nformat = \"text\"");
    assert!(
        parse(&two, &[])
            .resume_conflicts(&saved)
            .unwrap()
            .contains(&"data.sources.1.path".to_owned())
    );

    let moved = Recipe::parse(SMALL, Path::new("/elsewhere/recipes/my.toml"), &[]).unwrap();
    assert!(moved.resume_conflicts(&saved).unwrap().is_empty());
    let moved_data = parse(SMALL, &["data.sources.0.path=/elsewhere/rows.jsonl"]);
    assert_eq!(moved_data.resume_conflicts(&saved).unwrap(), ["data.sources.0.path"]);
}

#[test]
fn an_adapter_on_top_of_others_is_a_new_one() {
    let stages = "[adapter]\nkind = \"steering\"\n[[stage]]\nname = \"a\"\n[[stage]]\nname = \"b\"\n[stage.adapter]\n\
                  kind = \"lora\"\nunder = [{ path = \"a/adapter\", lang = \"sw\" }]\n";
    let recipe = parse(&format!("{SMALL}{stages}"), &[]);
    let stages = recipe.stages().unwrap();
    let (first, second) = (&stages[0].adapter, &stages[1].adapter);
    assert_eq!(
        (first.layer, first.scale, first.fit),
        (Some(Layer::Middle), Some(1.0), Some(Fit::Learned))
    );
    assert_eq!(
        (second.kind, second.layer, &second.init_from),
        (AdapterKind::Lora, None, &None)
    );
    assert!(second.under[0].path.is_absolute() && second.under[0].path.ends_with("a/adapter"));
}

#[test]
fn moments_have_a_format_of_their_own_only_where_it_is_read() {
    assert_eq!(parse(SMALL, &[]).optimizer.moments, Some(Moments::F32));
    assert_eq!(
        parse(SMALL, &["optimizer.moments=bf16"]).optimizer.moments,
        Some(Moments::Bf16)
    );
    assert_eq!(parse(SMALL, &["optimizer.kind=adamw8bit"]).optimizer.moments, None);
    // The format of one stage's optimizer is not that of another's.
    let stages = "[optimizer]\nmoments = \"bf16\"\n[[stage]]\nname = \"a\"\n[[stage]]\nname = \"b\"\n[stage.optimizer]\n\
                  kind = \"adamw8bit\"\n[[stage]]\nname = \"c\"\n[stage.optimizer]\nlearning_rate = 1e-3\n";
    let stages = parse(&format!("{SMALL}{stages}"), &[]).stages().unwrap();
    let moments: Vec<_> = stages.iter().map(|stage| stage.optimizer.moments).collect();
    assert_eq!(moments, [Some(Moments::Bf16), None, Some(Moments::Bf16)]);
    let saved = parse(SMALL, &[]);
    let conflicts = |overrides: &[&str]| parse(SMALL, overrides).resume_conflicts(&saved).unwrap();
    assert!(conflicts(&["optimizer.moments=f32"]).is_empty());
    assert_eq!(conflicts(&["optimizer.moments=bf16"]), ["optimizer.moments"]);
    assert_eq!(
        conflicts(&["optimizer.kind=adamw8bit"]),
        ["optimizer.kind", "optimizer.moments"]
    );
}

#[test]
fn a_vector_in_closed_form_takes_no_steps() {
    let adapter = "[adapter]\nkind = \"steering\"\nfit = \"closed-form\"\nsource = \"rows\"\n";
    let recipe = parse(&format!("{SMALL}{adapter}"), &["data.sources.0.name=rows"]);
    assert_eq!(recipe.train.length(), Length::Steps(0));
    assert_eq!(recipe.adapter.anchor.as_deref(), Some("en"));
}

#[test]
fn shipped_recipes_load_and_satisfy_the_schema() {
    let schema = json_schema();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    for shipped in shipped::list() {
        let (name, bytes) = shipped.files[0];
        assert_eq!(name, format!("{}.toml", shipped.name));
        let text = std::str::from_utf8(bytes).unwrap();
        assert!(text.starts_with("# "), "{name} says what it does");
        let value = serde_json::to_value(toml::from_str::<toml::Table>(text).unwrap()).unwrap();
        let errors: Vec<String> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{name}: {errors:?}");
        let recipe = Recipe::load(&folder.join(name), &[]).unwrap_or_else(|error| panic!("{error}"));
        let tasks = recipe.eval.tasks.iter().map(|task| task.path.as_path());
        let template = Some(Path::new(&recipe.data.template)).filter(|path| path.is_absolute());
        let sources = recipe.data.sources.iter().flat_map(|source| source.path.paths());
        for path in sources.chain(tasks).chain(template) {
            let path = path.strip_prefix(folder.canonicalize().unwrap()).unwrap();
            assert!(
                shipped.files.iter().any(|(file, _)| Path::new(file) == path),
                "{name} ships {}",
                path.display()
            );
        }
    }
    for file in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if file.extension().is_some_and(|ending| ending == "toml") && !file.ends_with("Cargo.toml") {
            let name = file.file_stem().unwrap().to_string_lossy().into_owned();
            assert!(
                shipped::find(&name).is_some(),
                "{name}.toml is in the table of shipped recipes"
            );
        }
    }
}

#[test]
fn the_schema_describes_every_key_and_refuses_what_the_loader_refuses() {
    let schema = json_schema();
    let validator = jsonschema::validator_for(&schema).unwrap();
    for (name, definition) in schema["$defs"].as_object().unwrap() {
        for (key, property) in definition["properties"].as_object().into_iter().flatten() {
            assert!(property["description"].is_string(), "{name}.{key} has a description");
        }
    }
    let accepts = |line: &str| {
        let table: toml::Table = toml::from_str(&format!("{SMALL}{line}")).unwrap();
        validator.is_valid(&serde_json::to_value(table).unwrap())
    };
    assert!(accepts("[adapter]\nrank = 8\ntargets = \"re:q_proj\""));
    assert!(accepts("[[stage]]\nname = \"a\"\n[stage.train]\nsteps = 3"));
    for line in [
        "[adapter]\nrank = 0",
        "[adapter]\nrnak = 8",
        "[adapter]\ntargets = \"q_proj\"",
        "[adapter]\ndropout = 1.0",
        "[optimizer]\nbetas = [0.9, 1.0]",
        "[model.quantization]\nscheme = \"fp4\"",
        "[[stage]]\nname = \"a\"\noutput = \"x\"",
        "[[stage]]\nname = \"a/b\"",
    ] {
        assert!(!accepts(line), "{line}");
        let loaded = Recipe::parse(&format!("{SMALL}{line}"), Path::new("my.toml"), &[]);
        assert!(loaded.is_err(), "{line}");
    }
}

fn texts() -> impl Strategy<Value = String> {
    "[a-z\\\\\"'#\\[\\] \\p{L}]{1,12}"
}

prop_compose! {
    fn recipes()(
        seed in 0..i64::MAX as u64,
        names in prop::collection::hash_set(texts(), 1..4),
        fields in prop::collection::btree_map(texts(), texts(), 0..3),
        targets in prop_oneof![
            Just(Targets::AllLinear),
            prop::collection::vec(texts(), 1..3).prop_map(Targets::Names),
            Just(Targets::Regex(r"layers\.[0-9]\.".into())),
        ],
        learning_rate in 0.0..1.0_f64,
        eps in 1e-300..1.0_f64,
        kind in prop_oneof![
            Just(AdapterKind::Lora),
            Just(AdapterKind::Dora),
            Just(AdapterKind::Bottleneck),
            Just(AdapterKind::Steering),
            Just(AdapterKind::None),
        ],
        route in prop_oneof![Just(Route::None), Just(Route::Language)],
        under in prop::collection::vec(prop::option::of(Just("sw".to_owned())), 0..3),
        length in prop_oneof![
            (1..u64::from(u32::MAX)).prop_map(Length::Steps),
            (1..u64::from(u32::MAX)).prop_map(Length::Tokens),
            (1e-3..1e3_f64).prop_map(Length::Epochs),
        ],
        device in prop_oneof![Just(Device::Auto), Just(Device::Cuda(None)), (0..9_usize).prop_map(|n| Device::Cuda(Some(n))), Just(Device::Tch), Just(Device::TchCuda(None)), (0..9_usize).prop_map(|n| Device::TchCuda(Some(n)))],
        staged in any::<bool>(),
    ) -> Recipe {
        let mut recipe = parse(SMALL, &[]);
        recipe.seed = seed;
        let source = recipe.data.sources[0].clone();
        recipe.data.sources =
            names.into_iter().map(|name| Source { name, fields: fields.clone(), ..source.clone() }).collect();
        recipe.adapter.targets = targets;
        recipe.adapter.kind = kind;
        if kind != AdapterKind::None {
            recipe.adapter.route = route;
            recipe.adapter.under = under.into_iter().map(|lang| Under { path: "/a/b".into(), lang }).collect();
        }
        recipe.adapter.reduction = (kind == AdapterKind::Bottleneck).then_some(16);
        if kind == AdapterKind::Steering {
            recipe.adapter.layer = Some(Layer::Number(3));
            (recipe.adapter.scale, recipe.adapter.fit) = (Some(0.5), Some(Fit::Learned));
        }
        recipe.optimizer.learning_rate = learning_rate;
        recipe.optimizer.eps = eps;
        recipe.model.device = device;
        (recipe.train.steps, recipe.train.tokens, recipe.train.epochs) = match length {
            Length::Steps(steps) => (Some(steps), None, None),
            Length::Tokens(tokens) => (None, Some(tokens), None),
            Length::Epochs(epochs) => (None, None, Some(epochs)),
        };
        if staged {
            let overlay = toml::toml! { seed = 3
 train.steps = 2
 optimizer.eps = 0.5 };
            recipe.stage = vec![Stage { name: "one".into(), from: None, merge: None, overlay }];
        }
        recipe
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_written_recipe_loads_as_the_same(recipe in recipes()) {
        let text = recipe.to_toml().unwrap();
        let mut again = Recipe::parse(&text, Path::new("/other/folder/recipe.toml"), &[])
            .unwrap_or_else(|error| panic!("{error}\n{text}"));
        again.file.clone_from(&recipe.file);
        prop_assert_eq!(&again, &recipe);
        prop_assert!(again.resume_conflicts(&recipe).unwrap().is_empty());
        prop_assert_eq!(again.stages().unwrap(), recipe.stages().unwrap());
    }
}
