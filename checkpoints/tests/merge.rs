//! Merged tensors against those that NumPy makes (`tests/fixtures/write_merge.py`), and merged folders.

#![cfg(test)]

use std::path::{Path, PathBuf};

use interlingua_checkpoints::dtype::{Dtype, HostTensor};
use interlingua_checkpoints::merge::linear::linear;
use interlingua_checkpoints::merge::slerp::slerp;
use interlingua_checkpoints::merge::ties::ties;
use interlingua_checkpoints::merge::{Combination, Kind, Merge, Method, Options};
use interlingua_checkpoints::model_folder::ModelFolder;
use interlingua_checkpoints::peft::{AdapterConfig, AdapterFolder};
use interlingua_checkpoints::tensors::TensorsFile;
use interlingua_checkpoints::write::{TensorSpec, write_model_folder};
use serde_json::{Value, json};

/// Merges `input.N` in every case of a fixture and compares with `expected.CASE`.
fn check(name: &str, merge: impl Fn(&[f32], &[&[f32]], &[f64], &Value) -> Vec<f32>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/merge");
    let file = TensorsFile::open(&folder.join(format!("{name}.safetensors"))).unwrap();
    let text = std::fs::read_to_string(folder.join(format!("{name}.json"))).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    let read = |name: &str| file.read_f32(name, &[6, 7], "").unwrap();
    let inputs: Vec<Vec<f32>> = (0..3).filter_map(|index| read(&format!("input.{index}"))).collect();
    let slices: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
    let base = read("base").unwrap();
    assert_eq!(cases.len(), 3);
    for (index, case) in cases.iter().enumerate() {
        let weights: Vec<f64> = serde_json::from_value(case["weights"].clone()).unwrap();
        let total: f64 = weights.iter().sum();
        let weights: Vec<f64> = weights.iter().map(|weight| weight / total).collect();
        let merged = merge(&base, &slices, &weights, case);
        let expected = read(&format!("expected.{index}")).unwrap();
        for (position, (merged, expected)) in merged.iter().zip(&expected).enumerate() {
            let allowed = 1e-6 * expected.abs().max(0.1);
            assert!(
                (merged - expected).abs() <= allowed,
                "{name} {case}, entry {position}: {merged} {expected}"
            );
        }
    }
}

#[test]
fn tensors_are_merged_as_numpy_merges_them() {
    check("linear", |_, tensors, weights, _| linear(tensors, weights));
    check("slerp", |_, tensors, weights, _| {
        slerp(tensors[0], tensors[1], weights[1])
    });
    check("ties", |base, tensors, weights, case| {
        let number = |key: &str| case[key].as_f64().unwrap();
        ties(Some(base), tensors, weights, number("density"), number("scale"))
    });
}

fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4, "intermediate_size": 8,
        "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 3, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16",
    })
}

/// A folder with two tensors: the embedding in bf16, and a norm in f32 of the values `norm`.
fn model(path: PathBuf, vocabulary: usize, norm: [f32; 4], config: &Value) -> PathBuf {
    let values = |length: usize| (0..length).map(|value| value as f32 * norm[0]).collect::<Vec<_>>();
    let spec = |name: &str, dtype, shape: &[usize]| TensorSpec {
        name: name.to_owned(),
        dtype,
        shape: shape.to_vec(),
    };
    let specs = [
        spec("model.embed_tokens.weight", Dtype::BF16, &[vocabulary, 4]),
        spec("model.norm.weight", Dtype::F32, &[4]),
    ];
    std::fs::create_dir_all(&path).unwrap();
    std::fs::write(path.join("tokenizer.json"), format!("{norm:?}")).unwrap();
    write_model_folder(&path, config, &specs, 1 << 30, &path, &mut |spec| {
        let tensor = match spec.shape.as_slice() {
            [_] => HostTensor::from_f32(vec![4], &norm),
            shape => HostTensor::from_f32(shape.to_vec(), &values(shape.iter().product())),
        };
        Ok(tensor.cast(spec.dtype))
    })
    .unwrap();
    path
}

fn options(method: Method) -> Options {
    Options {
        method,
        weights: None,
        density: None,
        scale: None,
        seed: 0,
        combination: None,
    }
}

fn refusal(inputs: &[PathBuf], base: Option<&Path>, options: &Options) -> String {
    Merge::open(inputs, base, options).unwrap_err().to_string()
}

#[test]
fn models_become_a_whole_folder_like_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut other = config();
    other["rms_norm_eps"] = json!(1e-6);
    let one = model(path("one"), 3, [1.0, 2.0, 3.0, 4.0], &config());
    let two = model(path("two"), 3, [3.0, 2.0, 1.0, 0.0], &other);
    let weighted = Options {
        weights: Some(vec![3.0, 1.0]),
        ..options(Method::Linear)
    };
    let merge = Merge::open(&[one.clone(), two.clone()], None, &weighted).unwrap();
    let notes = merge.notes().join("\n");
    assert!(notes.contains("are taken as 0.75, 0.25"), "{notes}");
    assert!(
        notes.contains("config.json (rms_norm_eps)") && notes.contains("tokenizer.json"),
        "{notes}"
    );
    let out = path("out");
    // What a process that was killed left behind.
    std::fs::create_dir_all(path(".out.partial/junk")).unwrap();
    let report = merge.write(&out).unwrap();
    assert_eq!((report.kind, report.tensors), (Kind::Models, 2));
    let merged = ModelFolder::open(&out).unwrap();
    assert_eq!(
        merged.read_f32("model.norm.weight", &[4]).unwrap(),
        [1.5, 2.0, 2.5, 3.0]
    );
    assert_eq!(merged.dtype("model.embed_tokens.weight"), Some(Dtype::BF16));
    assert_eq!(merged.raw_config(), ModelFolder::open(&one).unwrap().raw_config());
    assert_eq!(
        std::fs::read(out.join("tokenizer.json")).unwrap(),
        std::fs::read(one.join("tokenizer.json")).unwrap()
    );
    let readme = std::fs::read_to_string(out.join("README.md")).unwrap();
    assert!(
        readme.contains("linear, weights 0.75, 0.25") && readme.contains(&two.display().to_string()),
        "{readme}"
    );
    assert!(!path(".out.partial").exists());
    // The embedding of the result is 1.5 times that of the first, up to rounding, and half that of the second.
    assert!(report.distances[0] > 0.4 && report.distances[0] < 0.5, "{report:?}");
    assert!(report.distances[1] > 0.5 && report.distances[1] < 0.6, "{report:?}");
    let again = merge.write(&out).unwrap_err().to_string();
    assert!(again.contains("there is a model in this folder already"), "{again}");
}

#[test]
fn task_vectors_start_from_the_base() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let base = model(path("base"), 3, [1.0, 1.0, 1.0, 1.0], &config());
    let one = model(path("one"), 3, [1.0, 2.0, 1.0, 1.5], &config());
    let two = model(path("two"), 3, [1.0, 4.0, 0.0, 1.0], &config());
    let inputs = [one, two];
    let all = Options {
        density: Some(1.0),
        ..options(Method::Ties)
    };
    let norm = |options: &Options, out: &str| {
        Merge::open(&inputs, Some(&base), options)
            .unwrap()
            .write(&path(out))
            .unwrap();
        let merged = ModelFolder::open(&path(out)).unwrap();
        merged.read_f32("model.norm.weight", &[4]).unwrap()
    };
    assert_eq!(norm(&all, "ties"), [1.0, 3.0, 0.0, 1.5]);
    let all = Options {
        method: Method::DareTies,
        ..all
    };
    assert_eq!(norm(&all, "dare"), [1.0, 3.0, 0.5, 1.25]);
    let error = refusal(&inputs, None, &options(Method::Ties));
    assert!(error.contains("--base"), "{error}");
    let error = refusal(&inputs, Some(&base), &options(Method::Linear));
    assert!(error.contains("a base is for ties and dare-ties"), "{error}");
}

#[test]
fn models_that_do_not_fit_are_refused_by_tensor_file_and_shape() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let one = model(path("one"), 3, [1.0; 4], &config());
    let larger = model(path("larger"), 5, [1.0; 4], &config());
    let error = refusal(&[one.clone(), larger.clone()], None, &options(Method::Linear));
    for part in [
        "`model.embed_tokens.weight`",
        "[3, 4]",
        "[5, 4]",
        "/one",
        "/larger",
        "vocabularies",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let adapter = adapter(path("adapter"), 1, 1.0, &["q_proj"]);
    let error = refusal(&[one, adapter], None, &options(Method::Linear));
    assert!(error.contains("is an adapter and"), "{error}");
}

/// An adapter with every number of A, and of B, equal to `value`.
fn adapter(path: PathBuf, rank: usize, value: f32, targets: &[&str]) -> PathBuf {
    let config = AdapterConfig {
        base_model: "base".into(),
        rank,
        alpha: 2.0,
        dropout: 0.0,
        target_modules: json!(targets),
        modules_to_save: vec!["lm_head".into()],
        use_rslora: false,
        use_dora: false,
        alpha_pattern: Default::default(),
        target_parameters: Vec::new(),
    };
    let tensor = |shape: [usize; 2]| HostTensor::from_f32(shape.to_vec(), &vec![value; shape[0] * shape[1]]);
    let mut tensors: Vec<(String, HostTensor)> = Vec::new();
    for target in targets {
        let module = format!("model.layers.0.self_attn.{target}");
        tensors.push((format!("{module}.lora_A.weight"), tensor([rank, 3])));
        tensors.push((format!("{module}.lora_B.weight"), tensor([2, rank])));
    }
    tensors.push(("lm_head.weight".to_owned(), tensor([4, 2])));
    AdapterFolder::write(&path, &config, tensors, "").unwrap();
    path
}

const MODULE: &str = "model.layers.0.self_attn.q_proj";

#[test]
fn adapters_of_different_ranks_are_added_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    // Updates of 2·1·1 and of 2/2·(0.5·0.5·2) in every entry.
    let inputs = [
        adapter(path("one"), 1, 1.0, &["q_proj"]),
        adapter(path("two"), 2, 0.5, &["q_proj"]),
    ];
    let weighted = Options {
        weights: Some(vec![0.75, 0.25]),
        ..options(Method::Linear)
    };
    let report = Merge::open(&inputs, None, &weighted)
        .unwrap()
        .write(&path("out"))
        .unwrap();
    assert_eq!((report.kind, report.tensors), (Kind::Adapters, 3));
    let merged = AdapterFolder::open(&path("out")).unwrap();
    let config = merged.config();
    assert_eq!((config.rank, config.alpha, config.use_rslora), (3, 3.0, false));
    let a = merged.read_f32(&format!("{MODULE}.lora_A.weight"), &[3, 3]).unwrap();
    let b = merged.read_f32(&format!("{MODULE}.lora_B.weight"), &[2, 3]).unwrap();
    let entry: f32 = (0..3).map(|middle| b[middle] * a[3 * middle]).sum();
    assert_eq!(entry, 0.75 * 2.0 + 0.25 * 0.5);
    assert_eq!(
        merged.read_f32("lm_head.weight", &[4, 2]).unwrap(),
        [0.75 + 0.25 * 0.5; 8]
    );
    // √(6 (2 − 1.625)² + 8 (1 − 0.875)²) of √(6 · 2² + 8 · 1²).
    let expected = ((6.0 * 0.375_f64.powi(2) + 8.0 * 0.125_f64.powi(2)) / 32.0).sqrt();
    assert!((report.distances[0] - expected).abs() < 1e-6, "{report:?}");
}

#[test]
fn entry_wise_needs_equal_ranks_and_keeps_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let one = adapter(path("one"), 2, 1.0, &["q_proj"]);
    let two = adapter(path("two"), 2, 0.5, &["q_proj"]);
    let entry_wise = Options {
        combination: Some(Combination::EntryWise),
        ..options(Method::Linear)
    };
    let inputs = [one.clone(), two];
    Merge::open(&inputs, None, &entry_wise)
        .unwrap()
        .write(&path("out"))
        .unwrap();
    let merged = AdapterFolder::open(&path("out")).unwrap();
    assert_eq!(merged.config(), AdapterFolder::open(&one).unwrap().config());
    let a = format!("{MODULE}.lora_A.weight");
    assert_eq!(merged.read_f32(&a, &[2, 3]).unwrap(), [0.75; 6]);

    let wider = adapter(path("wider"), 3, 1.0, &["q_proj"]);
    let error = refusal(&[one.clone(), wider], None, &entry_wise);
    assert!(error.contains("[2, 3]") && error.contains("equal ranks"), "{error}");
    let elsewhere = adapter(path("elsewhere"), 2, 1.0, &["q_proj", "v_proj"]);
    let error = refusal(&[one, elsewhere], None, &entry_wise);
    assert!(
        error.contains("v_proj.lora_A.weight`") && error.contains("the same modules"),
        "{error}"
    );
    let exact = Options {
        combination: Some(Combination::Exact),
        ..options(Method::Slerp)
    };
    assert!(refusal(&inputs, None, &exact).contains("is for linear"));
    let error = refusal(&inputs, Some(&path("base")), &options(Method::Ties));
    assert!(error.contains("a base is for models"), "{error}");
}

#[test]
fn dora_is_refused() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/lora/llama.dora");
    let error = refusal(&[folder.clone(), folder], None, &options(Method::Linear));
    assert!(error.contains("DoRA") && error.contains("export --merge"), "{error}");
}
