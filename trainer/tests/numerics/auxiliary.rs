//! Auxiliary losses against PyTorch: contrast of hidden states, aligned words, Lens, consistency over options.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::Device;
use interlingua_data::batch::MicroBatch;
use interlingua_data::dataset::{Dataset, TokenizedSample};
use interlingua_data::prepare::Prepared;
use interlingua_data::report::Report;
use interlingua_recipes::Recipe;
use interlingua_trainer::collectives::Alone;
use interlingua_trainer::engine::forward::Forward;
use interlingua_trainer::engine::gradients::Gradients;
use interlingua_trainer::engine::inputs::{Inputs, RopeLength};
use interlingua_trainer::engine::keeping::Keeping;
use interlingua_trainer::models::Model;
use interlingua_trainer::objectives::lens::{Groups, Lens, Subspaces};
use interlingua_trainer::train::auxiliary::AuxiliaryLoss;
use interlingua_trainer::train::main_loss::MainLoss;
use interlingua_trainer::train::plan::DataPlan;
use interlingua_trainer::train::step::{Accumulated, Losses, RankData, StepData, StepKey};
use nalgebra::{DMatrix, DVector};
use serde_json::Value;

use crate::fixtures::{adapted, check_gradients, check_scaled, json, norm, rows, tensors, values};

const LANGUAGES: [&str; 3] = ["en", "hi", "sw"];

fn language(row: &Value) -> u32 {
    let tag = row["lang"].as_str().unwrap();
    LANGUAGES.iter().position(|known| *known == tag).unwrap() as u32
}

fn group(row: &Value) -> u64 {
    row["id"]
        .as_str()
        .unwrap()
        .bytes()
        .fold(7, |state, byte| state * 31 + u64::from(byte))
}

fn ids(value: &Value) -> Vec<u32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_u64().unwrap() as u32)
        .collect()
}

/// A text of each row, all of it supervised.
fn texts(name: &str) -> Vec<TokenizedSample> {
    let sample = |row: Value| TokenizedSample {
        labels: ids(&row["input_ids"]).into_iter().map(|id| id as i32).collect(),
        input_ids: ids(&row["input_ids"]),
        language: language(&row),
        group: group(&row),
        ..TokenizedSample::default()
    };
    rows(name).into_iter().map(sample).collect()
}

fn dataset(samples: &[TokenizedSample]) -> Dataset {
    Dataset::in_memory(&LANGUAGES, samples).unwrap()
}

/// A recipe with an auxiliary loss, on top of `main`.
fn recipe(main: &str, auxiliary: &str, rest: &str) -> Recipe {
    let source = if auxiliary.contains("source =") {
        "[[data.sources]]\nname = \"pairs\"\npath = \"a.jsonl\"\nformat = \"parallel\"\nuse = \"auxiliary\"\n"
    } else {
        ""
    };
    let format = if auxiliary.contains("consistency") {
        "choice"
    } else {
        "tokens"
    };
    let text = format!(
        "output = \"run\"\nmodel.path = \"m\"\ndata.shuffle = false\ndata.packing = false\n{rest}\n{source}[[data.sources]]\nname = \"main\"\npath = \"b.jsonl\"\nformat = \"{format}\"\n\
         [objective]\nkind = \"{main}\"\n[[objective.auxiliary]]\n{auxiliary}"
    );
    Recipe::parse(&text, "recipe.toml".as_ref(), &[]).unwrap()
}

/// What a step of a recipe computes, the model without its adapter being the one before training.
fn step(model: &Model, recipe: &Recipe, auxiliary: &[TokenizedSample], main: &[TokenizedSample]) -> Accumulated {
    let data = Prepared {
        train: dataset(main),
        heldout: None,
        auxiliary: BTreeMap::from([("pairs".to_owned(), dataset(auxiliary))]),
        report: Report::default(),
    };
    let losses = losses(model, recipe, &data);
    let plan = DataPlan::of(recipe, model.blocks.len(), &data, (0, 1)).unwrap();
    let data_of_step = plan.step(&data.train, &losses.auxiliary, 0);
    let key = StepKey { seed: 1, step: 0 };
    let of = |scale| {
        losses
            .accumulate(model, &data.train, &data_of_step, key, scale)
            .unwrap()
    };
    let found = of(1.0);
    check_scaled(model, &found, of(4096.0));
    found
}

fn losses(model: &Model, recipe: &Recipe, data: &Prepared) -> Losses {
    let mut initial = model.without_adapter();
    initial.freeze();
    Losses {
        main: MainLoss::of(&recipe.objective),
        name: recipe.objective.kind.name(),
        weight: recipe.objective.weight,
        dropout: true,
        reference: None,
        heldout_reference: None,
        auxiliary: AuxiliaryLoss::prepare(recipe, model, data, 1).unwrap(),
        initial: Some(initial),
        anchor: Some("en".to_owned()),
        keeping: Keeping::default(),
        collectives: Arc::new(Alone),
    }
}

fn check(model: &Model, found: &Accumulated, name: &str) {
    let facts = json("align/align.json");
    let case = &facts["cases"][name];
    close(
        found.loss,
        case["loss"].as_f64().unwrap(),
        facts["tolerance"]["loss_relative"].as_f64().unwrap(),
        name,
    );
    let (total, tolerance) = (
        case["gradient_norm"].as_f64().unwrap(),
        facts["tolerance"]["gradient_relative"].as_f64().unwrap(),
    );
    let file = tensors("align/align.safetensors");
    check_gradients(model, &found.gradients, (&file, name), total, tolerance);
    // Parts above the loss do not run at all.
    for block in case["blocks_without_gradient"].as_array().unwrap() {
        let prefix = format!("model.layers.{block}.");
        let touched = found
            .gradients
            .iter()
            .find(|(id, _)| model.parameters.get(*id).name.starts_with(&prefix));
        assert!(touched.is_none(), "{name}: a gradient in block {block}");
    }
}

fn close(found: f64, expected: f64, tolerance: f64, what: &str) {
    assert!(
        (found - expected).abs() <= tolerance * expected.abs().max(1.0),
        "{what}: {found}, expected {expected}"
    );
}

/// The settings of a contrast as recipe keys.
fn contrast_keys(settings: &Value) -> String {
    let key = |name: &str| format!("{name} = {}\n", settings[name]);
    let keys = ["kind", "layer", "pool", "direction", "detach", "temperature"];
    keys.iter()
        .filter(|name| !settings[**name].is_null())
        .map(|name| key(name))
        .collect()
}

const CONTRASTS: [&str; 8] = [
    "one_way",
    "one_way_two_micro_batches",
    "one_way_detached",
    "symmetric",
    "symmetric_two_micro_batches",
    "last_token",
    "first_token",
    "last_layer",
];

#[test]
fn contrasts_of_a_source() {
    let facts = json("align/align.json");
    let model = adapted("llama.lora", 0.0);
    let pairs = texts("align/pairs.jsonl");
    for name in CONTRASTS {
        let settings = &facts["cases"][name]["settings"];
        let sizes = settings["micro_batches"].as_array().unwrap();
        let rest = format!("train = {{ gradient_accumulation = {}, steps = 4 }}", sizes.len());
        let keys = format!(
            "{}source = \"pairs\"\nbatch_size = {}",
            contrast_keys(settings),
            sizes[0]
        );
        let found = step(&model, &recipe("none", &keys, &rest), &pairs, &[]);
        check(&model, &found, name);
        if sizes.len() > 1 {
            // Over the whole step it is the loss of all pairs in one micro-batch.
            let keys = format!("{keys}\nscope = \"step\"");
            let found = step(&model, &recipe("none", &keys, &rest), &pairs, &[]);
            check(&model, &found, name.trim_end_matches("_two_micro_batches"));
        }
    }
}

#[test]
fn contrasts_of_the_batch_itself() {
    let facts = json("align/align.json");
    let model = adapted("llama.lora", 0.0);
    let pairs = texts("align/pairs.jsonl");
    for name in CONTRASTS {
        let settings = &facts["cases"][name]["settings"];
        let parallel = "data.parallel = { languages = [\"en\", \"sw\"], groups_per_batch = 6 }";
        let rest = |rows: usize| format!("{parallel}\ntrain = {{ batch_size = {rows}, steps = 4 }}");
        let whole = if name.ends_with("micro_batches") { 6 } else { 12 };
        let keys = contrast_keys(settings);
        let found = step(&model, &recipe("none", &keys, &rest(whole)), &[], &pairs);
        check(&model, &found, name);
        // Groups that micro-batches cut in two are whole within the step.
        let keys = format!("{keys}\nscope = \"step\"");
        let found = step(&model, &recipe("none", &keys, &rest(5)), &[], &pairs);
        check(&model, &found, name.trim_end_matches("_two_micro_batches"));
    }
}

#[test]
fn a_contrast_beside_the_language_model() {
    let model = adapted("llama.lora", 0.0);
    let pairs = texts("align/pairs.jsonl");
    let swahili: Vec<_> = pairs.iter().filter(|sample| sample.language == 2).cloned().collect();
    let keys = "kind = \"middle-layer\"\nlayer = 2\ndirection = \"symmetric\"\nweight = 0.5\nsource = \"pairs\"\nbatch_size = 6";
    let rest = "train = { batch_size = 6, gradient_accumulation = 1, steps = 4 }";
    let found = step(&model, &recipe("sft", keys, rest), &pairs, &swahili);
    check(&model, &found, "joint");
    let case = &json("align/align.json")["cases"]["joint"];
    close(found.losses["sft"], case["lm"].as_f64().unwrap(), 1e-5, "sft");
    close(
        found.losses["middle-layer"],
        case["symmetric"].as_f64().unwrap(),
        1e-5,
        "middle-layer",
    );
}

#[test]
fn aligned_words() {
    let facts = json("align/align.json");
    let model = adapted("llama.lora", 0.0);
    let mut pairs = texts("align/pairs.jsonl");
    let words = facts["words"].as_array().unwrap();
    let groups: Vec<u64> = {
        let mut seen = Vec::new();
        pairs.iter().for_each(|sample| {
            if !seen.contains(&sample.group) {
                seen.push(sample.group);
            }
        });
        seen
    };
    for sample in &mut pairs {
        let pair = groups.iter().position(|group| *group == sample.group).unwrap();
        let places = if sample.language == 2 { 0..2 } else { 2..4 };
        let marks = words[pair]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|word| ids(word)[places.clone()].to_vec());
        sample.marks = marks.collect();
    }
    for (name, layer) in [("words_last", "3"), ("words_layer_2", "2")] {
        for size in [6, 2] {
            let keys = format!("kind = \"word-alignment\"\nlayer = {layer}\nsource = \"pairs\"\nbatch_size = {size}");
            let rest = format!("train = {{ gradient_accumulation = {}, steps = 4 }}", 6 / size);
            let found = step(&model, &recipe("none", &keys, &rest), &pairs, &[]);
            check(&model, &found, name);
            let case = &facts["cases"][name];
            let term = |name: &str| case[name].as_f64().unwrap();
            close(found.losses["word-alignment/words"], term("alignment"), 1e-4, name);
            close(
                found.losses["word-alignment/stay-close"],
                term("stay_close"),
                1e-4,
                name,
            );
        }
    }
}

#[test]
fn subspaces_of_lens() {
    let facts = json("align/subspaces.json");
    for (name, case) in facts["cases"].as_object().unwrap() {
        let matrix = |value: &Value| -> Vec<Vec<f64>> {
            let rows = value.as_array().unwrap().iter();
            rows.map(|row| {
                row.as_array()
                    .unwrap()
                    .iter()
                    .map(|value| value.as_f64().unwrap())
                    .collect()
            })
            .collect()
        };
        let means: BTreeMap<u16, Vec<f64>> = (0..).zip(matrix(&case["means"])).collect();
        let subspaces = Subspaces::of(&means, 0).unwrap();
        let expected = |key: &str| {
            let rows = matrix(&case[key]);
            DMatrix::from_fn(rows.len(), rows[0].len(), |row, column| rows[row][column])
        };
        let agnostic = &subspaces.agnostic * subspaces.agnostic.transpose();
        let specific = &subspaces.specific * subspaces.specific.transpose();
        assert!((agnostic - expected("p_a")).norm() < 1e-9, "{name}");
        assert!((specific - expected("p_s")).norm() < 1e-9, "{name}");
        for (language, direction) in matrix(&case["directions"]).iter().enumerate().skip(1) {
            let found = &subspaces.directions[&(language as u16)];
            assert!((found - DVector::from_column_slice(direction)).norm() < 1e-9, "{name}");
        }
    }
}

#[test]
fn lens() {
    let (facts, file) = (json("align/align.json"), tensors("align/align.safetensors"));
    let model = adapted("llama.lora", 0.0);
    let initial = model.without_adapter();
    for name in ["lens", "lens_two_prompts", "lens_policy_probe"] {
        let case = &facts["cases"][name];
        let prompts = case["settings"]["prompts"].as_array().unwrap().len();
        let samples: Vec<_> = texts("align/lens.jsonl").into_iter().take(3 * prompts).collect();
        let means = values(&file, &format!("{name}.means"));
        let hidden = means.len() / 3;
        // The fixture's order is en, sw, hi.
        let means = means.chunks(hidden).zip([0u16, 2, 1]);
        let means = means
            .map(|(mean, language)| (language, mean.iter().copied().map(f64::from).collect()))
            .collect();
        let subspaces = Subspaces::of(&means, 0).unwrap();
        let far = |language| if language == 1 { 0.5 } else { 1.0 };
        let loss = Lens::new(&subspaces, (1.0, 1.0), far, &Device::flex());
        let mut batch = MicroBatch::default();
        let data = dataset(&samples);
        (0..samples.len()).for_each(|sample| batch.push_sample(&data, sample));
        let boundaries: Vec<usize> = interlingua_trainer::train::main_loss::boundaries(&batch);
        let inputs = Inputs::new(
            &model.config,
            &batch.input_ids,
            &batch.position_ids,
            &boundaries,
            RopeLength::Own,
            &model.device,
        );
        let mut groups = Groups::new();
        for sequence in &batch.sequences {
            match sequence.language {
                0 => groups.push((sequence.range(), Vec::new())),
                other => groups.last_mut().unwrap().1.push((other, sequence.range())),
            }
        }
        let last = model.blocks.len();
        let forward = Forward::run(
            &model,
            &inputs,
            &[last],
            Keeping {
                recompute: true,
                ..Keeping::default()
            },
        );
        let before = initial.hidden_state(&inputs, last);
        let (terms, gradient) = loss.loss(forward.hidden(last), &before, &groups, prompts as u64, 1.0);
        let mut gradients = Gradients::default();
        forward.backward(vec![(last, gradient)], &mut gradients);
        for (term, key) in terms.into_iter().zip(["retain", "align", "separate"]) {
            close(term, case[key].as_f64().unwrap(), 1e-4, &format!("{name}, {key}"));
        }
        close(loss.total(terms), case["loss"].as_f64().unwrap(), 1e-4, name);
        check_gradients(
            &model,
            &gradients,
            (&file, name),
            case["gradient_norm"].as_f64().unwrap(),
            2e-3,
        );
    }
}

/// Lens over a run's own data: what probing and reading whole groups give together.
#[test]
fn lens_of_a_recipe() {
    let model = adapted("llama.lora", 0.0);
    let keys = "kind = \"lens\"\nsource = \"pairs\"\nbatch_size = 2";
    let rest = "train = { gradient_accumulation = 1, steps = 4 }";
    let found = step(&model, &recipe("none", keys, rest), &texts("align/lens.jsonl"), &[]);
    for term in ["retain", "align", "separate"] {
        assert!(found.losses[&format!("lens/{term}")] > 0.0, "{term}");
    }
    let sum = ["retain", "align", "separate"].map(|term| found.losses[&format!("lens/{term}")]);
    close(found.loss, sum.iter().sum(), 1e-9, "lens");
    assert!(
        norm(
            &found
                .gradients
                .iter()
                .map(|(_, gradient)| crate::fixtures::host(gradient))
                .collect::<Vec<_>>()
                .concat()
        ) > 0.0
    );
}

#[test]
fn consistency_over_options() {
    let model = adapted("llama.lora", 0.0);
    let sample = |row: Value| {
        let lists = |key: &str| -> Vec<Vec<i32>> {
            let lists = row[key].as_array().unwrap().iter();
            lists
                .map(|list| {
                    list.as_array()
                        .unwrap()
                        .iter()
                        .map(|value| value.as_i64().unwrap() as i32)
                        .collect()
                })
                .collect()
        };
        let options = lists("option_ids");
        TokenizedSample {
            parts: options.iter().map(|option| option.len() as u32).collect(),
            input_ids: options.concat().into_iter().map(|id| id as u32).collect(),
            labels: lists("option_labels").concat(),
            marks: vec![0],
            language: language(&row),
            group: group(&row),
            ..TokenizedSample::default()
        }
    };
    let samples: Vec<_> = rows("align/choices.jsonl").into_iter().map(sample).collect();
    let parallel = "data.parallel = { languages = [\"en\", \"sw\"], groups_per_batch = 2 }";
    for (rows, scope) in [(4, "micro-step"), (2, "micro-step"), (4, "step"), (1, "step")] {
        let keys = format!("kind = \"consistency\"\nscope = \"{scope}\"");
        let rest = format!("{parallel}\ntrain = {{ batch_size = {rows}, steps = 4 }}");
        let found = step(&model, &recipe("none", &keys, &rest), &[], &samples);
        check(&model, &found, "consistency");
    }
    // Beside it the right options are learnt, and nothing of the wrong ones.
    let keys = "kind = \"consistency\"\nweight = 1e-9";
    let rest = format!("{parallel}\ntrain = {{ batch_size = 4, steps = 4 }}");
    let with = step(&model, &recipe("sft", keys, &rest), &[], &samples);
    let right: Vec<_> = samples
        .iter()
        .map(|sample| {
            let length = sample.parts[0] as usize;
            TokenizedSample {
                input_ids: sample.input_ids[..length].to_vec(),
                labels: sample.labels[..length].to_vec(),
                parts: Vec::new(),
                ..sample.clone()
            }
        })
        .collect();
    let data = dataset(&right);
    let mut batch = MicroBatch::default();
    (0..right.len()).for_each(|sample| batch.push_sample(&data, sample));
    let mut alone = losses(
        &model,
        &recipe("sft", keys, &rest),
        &Prepared {
            train: dataset(&right),
            heldout: None,
            auxiliary: BTreeMap::new(),
            report: Report::default(),
        },
    );
    alone.auxiliary.clear();
    let data_of_step = StepData {
        own: RankData {
            main: vec![batch],
            ..RankData::default()
        },
        ..StepData::default()
    };
    let alone = alone
        .accumulate(&model, &data, &data_of_step, StepKey { seed: 1, step: 0 }, 1.0)
        .unwrap();
    close(with.losses["sft"], alone.loss, 1e-6, "right options");
    close(
        with.gradients.norm(),
        alone.gradients.norm(),
        1e-4,
        "gradient of the right options",
    );
    assert_eq!(with.tokens, alone.tokens);
}
