//! The same run on one process and on several: the same losses and the same weights, up to the order of sums. Ranks are threads
//! here; the tests through the binary have real processes.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod resume;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use interlingua_checkpoints::run_state;
use interlingua_checkpoints::tensors::TensorsFile;
use interlingua_recipes::Recipe;
use interlingua_trainer::collectives::Collectives;
use interlingua_trainer::collectives::on_threads;
use interlingua_trainer::train::metrics::{EvalRow, Row, TrainRow, read_rows};
use interlingua_trainer::train::{Outcome, StopFlag, TrainOptions, train};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");

const LORA: &str = "[adapter]\nkind = \"lora\"\nrank = 4\nalpha = 8\ndropout = 0.1\n";

/// How a step's eight rows are dealt: processes, batch size, accumulation.
type Dealt = (usize, usize, usize);

const ALONE: Dealt = (1, 8, 1);

/// Trains a recipe for twenty steps on so many ranks, but for what the overrides say. `extra`: what the recipe says besides model,
/// output and length.
fn run(folder: &Path, extra: &str, (world, batch_size, accumulation): Dealt, overrides: &[&str]) {
    let in_epochs = overrides.iter().any(|over| over.starts_with("train.epochs"));
    let length = if in_epochs { "" } else { "steps = 20\n" };
    let text = format!(
        "output = \"run\"\n[model]\npath = \"{FIXTURES}/models/llama\"\ndevice = \"cpu\"\n[optimizer]\nlearning_rate = 3e-3\n\
         [schedule]\nkind = \"constant\"\nwarmup = 0\n[train]\n{length}batch_size = {batch_size}\n\
         gradient_accumulation = {accumulation}\neval_every = 10\n{extra}"
    );
    std::fs::create_dir_all(folder).unwrap();
    let path = folder.join("recipe.toml");
    std::fs::write(&path, text).unwrap();
    let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
    let recipe = Recipe::load(&path, &overrides).unwrap();
    let outcomes = on_threads(world, |collectives| on_its_own_pool(&recipe, collectives));
    assert!(
        outcomes.iter().all(|outcome| *outcome == Outcome::Finished),
        "{outcomes:?}"
    );
}

/// A rank that waits for the others must not keep a thread from them.
fn on_its_own_pool(recipe: &Recipe, collectives: Arc<dyn Collectives>) -> Outcome {
    let options = TrainOptions {
        fresh: false,
        collectives,
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| train(recipe, options, &StopFlag::default(), &mut |_| ()))
        .unwrap()
}

/// What a run left: its steps, its evaluations, and what it trained.
struct Left {
    steps: Vec<TrainRow>,
    evaluations: Vec<EvalRow>,
    weights: BTreeMap<String, Vec<f32>>,
}

fn left(folder: &Path) -> Left {
    let output = folder.join("run");
    let (mut steps, mut evaluations) = (Vec::new(), Vec::new());
    for row in read_rows(&output.join("metrics.jsonl")).unwrap() {
        match row {
            Row::Train(row) => steps.push(row),
            Row::Eval(row) => evaluations.push(row),
            Row::Event(_) => {}
        }
    }
    let (_, checkpoint) = run_state::latest_valid(&output).unwrap().0.unwrap();
    let mut weights = BTreeMap::<String, Vec<f32>>::new();
    for (folder, files) in [
        (checkpoint, "parameters"),
        (output.join("adapter"), "adapter_model"),
        (output.join("model"), "model"),
    ] {
        let Ok(entries) = std::fs::read_dir(folder) else {
            continue;
        };
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with(files) && name.ends_with(".safetensors")
        });
        // Pieces of a vector in the order of the ranks.
        paths.sort();
        for path in paths {
            let file = TensorsFile::open(&path).unwrap();
            for name in file.names() {
                let shape = file.shape(&name).unwrap().to_vec();
                let values = file.read_f32(&name, &shape, "").unwrap().unwrap();
                weights.entry(format!("{files}/{name}")).or_default().extend(values);
            }
        }
    }
    Left {
        steps,
        evaluations,
        weights,
    }
}

fn close(found: f64, wanted: f64, tolerance: f64, what: &str) {
    let error = (found - wanted).abs() / wanted.abs().max(1e-3);
    assert!(error <= tolerance, "{what}: {found} is not {wanted} ({error:e})");
}

/// The bars of the project: losses within 1e-5 of one another, weights within 1e-3 of their length.
fn same(found: &Left, wanted: &Left, what: &str) {
    assert_eq!(found.steps.len(), wanted.steps.len(), "{what}");
    for (found, wanted) in found.steps.iter().zip(&wanted.steps) {
        let what = format!("{what}, step {}", wanted.step);
        assert_eq!(found.step, wanted.step, "{what}");
        close(found.loss, wanted.loss, 1e-5, &what);
        let names = |row: &TrainRow| row.losses.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(found), names(wanted), "{what}");
        for (name, loss) in &wanted.losses {
            close(found.losses[name], *loss, 1e-5, &format!("{what}, {name}"));
        }
        close(found.grad_norm, wanted.grad_norm, 1e-3, &format!("{what}, gradient"));
        assert_eq!(
            (found.tokens, found.tokens_total),
            (wanted.tokens, wanted.tokens_total),
            "{what}"
        );
        assert_eq!(found.rewards.is_some(), wanted.rewards.is_some(), "{what}");
        let languages = |row: &TrainRow| {
            let of = row.by_language.iter();
            of.map(|(language, of)| (language.clone(), of.tokens, of.samples))
                .collect::<Vec<_>>()
        };
        assert_eq!(languages(found), languages(wanted), "{what}");
        for (language, of) in &wanted.by_language {
            close(
                found.by_language[language].loss,
                of.loss,
                1e-4,
                &format!("{what}, {language}"),
            );
        }
    }
    assert_eq!(found.evaluations.len(), wanted.evaluations.len(), "{what}");
    for (found, wanted) in found.evaluations.iter().zip(&wanted.evaluations) {
        assert_eq!(found.by_language.len(), wanted.by_language.len(), "{what}");
        for (language, metrics) in &wanted.by_language {
            for (metric, value) in metrics {
                close(
                    found.by_language[language][metric],
                    *value,
                    1e-4,
                    &format!("{what}, {language} {metric}"),
                );
            }
        }
    }
    let names = |left: &Left| left.weights.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(wanted), "{what}");
    let (mut distance, mut length) = (0.0f64, 0.0f64);
    for (name, wanted) in &wanted.weights {
        let found = &found.weights[name];
        assert_eq!(found.len(), wanted.len(), "{what}, {name}");
        for (found, wanted) in found.iter().zip(wanted) {
            distance += f64::from(found - wanted).powi(2);
            length += f64::from(*wanted).powi(2);
        }
    }
    let relative = (distance / length).sqrt();
    assert!(relative <= 1e-3, "{what}: weights are {relative:e} apart");
}

/// Runs on one process, and on several dealt in other ways under several strategies, and compares.
fn check(extra: &str, strategies: &[&str], dealt: &[Dealt]) {
    let folder = tempfile::tempdir().unwrap();
    let alone = folder.path().join("alone");
    run(&alone, extra, ALONE, &[]);
    let wanted = left(&alone);
    for strategy in strategies {
        for dealt in dealt {
            let what = format!("{strategy} on {dealt:?}");
            let own = folder.path().join(what.replace(['(', ')', ',', ' '], "-"));
            run(&own, extra, *dealt, &[&format!("distributed.strategy={strategy}")]);
            same(&left(&own), &wanted, &what);
        }
    }
}

const STRATEGIES: [&str; 3] = ["ddp", "zero1", "zero3"];
const TWO_AND_FOUR: [Dealt; 3] = [(2, 4, 1), (4, 2, 1), (2, 2, 2)];

fn sft() -> String {
    format!(
        "[data]\nmax_length = 64\nholdout = 0.2\n[[data.sources]]\npath = \"{FIXTURES}/trajectories/sft_lora/train.jsonl\"\n\
         format = \"tokens\"\n"
    )
}

#[test]
fn sft_with_an_adapter_and_dropout() {
    check(&format!("{LORA}{}", sft()), &STRATEGIES, &TWO_AND_FOUR);
}

#[test]
fn sft_of_the_whole_model() {
    check(&sft(), &STRATEGIES, &TWO_AND_FOUR);
}

/// Codes of moments are made piece by piece, from the same blocks.
#[test]
fn moments_of_8_bits() {
    let extra = sft();
    let folder = tempfile::tempdir().unwrap();
    let (alone, two) = (folder.path().join("alone"), folder.path().join("two"));
    run(&alone, &extra, ALONE, &["optimizer.kind=adamw8bit"]);
    run(
        &two,
        &extra,
        (2, 4, 1),
        &["optimizer.kind=adamw8bit", "distributed.strategy=zero1"],
    );
    let (found, wanted) = (left(&two), left(&alone));
    assert_eq!((found.steps.len(), wanted.steps.len()), (20, 20));
    for (found, wanted) in found.steps.iter().zip(&wanted.steps) {
        // A code that rounds the other way is a step of its own.
        close(found.loss, wanted.loss, 1e-3, &format!("step {}", wanted.step));
    }
}

/// Each language has an adapter of its own, and a rank may have no row of a language.
#[test]
fn a_copy_for_each_language() {
    let extra = format!("{LORA}route = \"language\"\n{}", sft());
    check(&extra, &STRATEGIES, &TWO_AND_FOUR);
}

/// The last step of the epochs has rows for some of the ranks only.
#[test]
fn an_epoch_that_ends_within_a_step() {
    let extra = format!("{LORA}{}", sft()).replace("[data]\n", "[data]\npacking = false\n");
    let folder = tempfile::tempdir().unwrap();
    let alone = folder.path().join("alone");
    run(&alone, &extra, ALONE, &["train.epochs=1.3"]);
    let wanted = left(&alone);
    let rows = |row: &TrainRow| row.by_language.values().map(|of| of.samples).sum::<u64>();
    assert!(rows(wanted.steps.last().unwrap()) < 8);
    for strategy in STRATEGIES {
        let own = folder.path().join(strategy);
        let strategy = format!("distributed.strategy={strategy}");
        run(&own, &extra, (4, 2, 1), &["train.epochs=1.3", &strategy]);
        same(&left(&own), &wanted, &strategy);
    }
}

/// The rows of a fixture three times, as groups of their own: enough for a step of every rank.
fn three_times(file: &str) -> PathBuf {
    static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());
    let rows = std::fs::read_to_string(Path::new(FIXTURES).join(file)).unwrap();
    let times = (0..3).map(|time| rows.replace("\"id\": \"", &format!("\"id\": \"{time}-")));
    let (mut file, path) = tempfile::NamedTempFile::new_in(FOLDER.path()).unwrap().keep().unwrap();
    file.write_all(times.collect::<String>().as_bytes()).unwrap();
    let jsonl = path.with_extension("jsonl");
    std::fs::rename(path, &jsonl).unwrap();
    jsonl
}

/// Packed weights come together packed.
#[test]
fn an_adapter_on_a_quantised_base() {
    for scheme in [
        "scheme = \"nf4\"",
        "scheme = \"nf4\"\ndouble = false",
        "scheme = \"int8\"",
    ] {
        let quantised = format!("{LORA}{}[model.quantization]\n{scheme}\n", sft());
        check(&quantised, &["zero3"], &[(2, 4, 1)]);
    }
}

/// Some weights of blocks are trained, the others are frozen and spread all the same.
#[test]
fn a_part_of_the_model_is_trained() {
    let extra = sft();
    let folder = tempfile::tempdir().unwrap();
    let some = "train.parameters=re:layers\\.1\\..*(down_proj|norm)";
    let alone = folder.path().join("alone");
    run(&alone, &extra, ALONE, &[some]);
    for world in [2, 4] {
        let own = folder.path().join(world.to_string());
        run(
            &own,
            &extra,
            (world, 8 / world, 1),
            &[some, "distributed.strategy=zero3"],
        );
        same(&left(&own), &left(&alone), &format!("{world} ranks"));
    }
}

fn preferences(file: &str, format: &str, objective: &str) -> String {
    format!(
        "{LORA}[objective]\n{objective}\ndropout = true\n[data]\nmax_length = 64\nholdout = 0.2\n[[data.sources]]\n\
         path = {:?}\nformat = \"{format}\"\n",
        three_times(&format!("preference/{file}"))
    )
}

#[test]
fn dpo_with_dropout() {
    let extra = preferences("pairs.jsonl", "tokens", "kind = \"dpo\"\nbeta = 0.5");
    check(&extra, &STRATEGIES, &[(2, 4, 1), (4, 2, 1)]);
}

/// The divergence is that of a micro-step over all ranks, so micro-steps stay what they are.
#[test]
fn kto_compares_the_samples_of_all_ranks() {
    let extra = preferences("kto.jsonl", "tokens", "kind = \"kto\"\nbeta = 0.5");
    check(&extra, &["ddp"], &[(2, 4, 1), (4, 2, 1)]);
}

fn middle_layer(extra: &str) -> String {
    format!(
        "{LORA}[objective]\nkind = \"sft\"\n[[objective.auxiliary]]\nkind = \"middle-layer\"\n{extra}\n[data]\nmax_length = 64\n\
         [[data.sources]]\npath = \"{FIXTURES}/trajectories/sft_lora/train.jsonl\"\nformat = \"tokens\"\n[[data.sources]]\n\
         name = \"pairs\"\npath = {:?}\nformat = \"tokens\"\ngroup_field = \"id\"\nuse = \"auxiliary\"\n",
        three_times("align/pairs.jsonl")
    )
}

/// Pairs are contrasted with those of all ranks, with gradients.
#[test]
fn middle_layers_of_a_source() {
    for alone in [
        "every = 0",
        "every = 2",
        "every = 0\nscope = \"step\"",
        "every = 0\ndirection = \"symmetric\"\npool = \"last\"",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let of = |pairs: usize| middle_layer(&format!("source = \"pairs\"\nbatch_size = {pairs}\n{alone}"));
        let path = folder.path().join("alone");
        run(&path, &of(8), ALONE, &[]);
        let wanted = left(&path);
        for (dealt, pairs) in [((2, 4, 1), 4), ((4, 2, 1), 2)] {
            for strategy in STRATEGIES {
                let what = format!("{alone}, {strategy} on {dealt:?}");
                let own = folder.path().join(format!("{strategy}-{}", dealt.0));
                run(&own, &of(pairs), dealt, &[&format!("distributed.strategy={strategy}")]);
                same(&left(&own), &wanted, &what);
            }
        }
    }
}

fn in_groups(auxiliary: &str, file: &str) -> String {
    format!(
        "{LORA}[objective]\nkind = \"sft\"\n[[objective.auxiliary]]\n{auxiliary}\n[data]\nmax_length = 64\npacking = false\n\
         [data.parallel]\nlanguages = [\"en\", \"sw\"]\nanchor = \"en\"\ngroups_per_batch = 4\n\
         [[data.sources]]\npath = {:?}\nformat = \"tokens\"\ngroup_field = \"id\"\n",
        three_times(&format!("align/{file}"))
    )
}

/// Groups lie on several ranks, whose rows are compared.
#[test]
fn losses_on_the_batch_itself() {
    for auxiliary in ["kind = \"middle-layer\"", "kind = \"middle-layer\"\nscope = \"step\""] {
        check(&in_groups(auxiliary, "pairs.jsonl"), &STRATEGIES, &[(2, 4, 1)]);
    }
}
