//! Model folders: what is written is read again, by the safetensors library too, and what is damaged is named.

#![cfg(test)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use interlingua_checkpoints::CheckpointError;
use interlingua_checkpoints::dtype::{Dtype, HostTensor};
use interlingua_checkpoints::model_folder::ModelFolder;
use interlingua_checkpoints::write::{TensorSpec, write_model_folder, write_tensors};
use serde_json::{Value, json};

const EMBEDDING: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm.weight";

fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 4, "num_attention_heads": 2, "num_hidden_layers": 1,
        "vocab_size": 3, "intermediate_size": 8, "torch_dtype": "float32", "tie_word_embeddings": true
    })
}

fn tensors() -> BTreeMap<String, HostTensor> {
    let values: Vec<f32> = (0..12).map(|value| value as f32 / 8.0).collect();
    let embedding = HostTensor::from_f32(vec![3, 4], &values).cast(Dtype::BF16);
    let norm = HostTensor::from_f32(vec![4], &[1.0, 2.0, 3.0, 4.0]);
    [(EMBEDDING.to_owned(), embedding), (NORM.to_owned(), norm)].into()
}

fn specs() -> Vec<TensorSpec> {
    let spec = |(name, tensor): (String, HostTensor)| TensorSpec {
        name,
        dtype: tensor.dtype,
        shape: tensor.shape,
    };
    tensors().into_iter().map(spec).collect()
}

fn write(out: &Path, max_shard_bytes: usize) -> Result<(), CheckpointError> {
    let source = tempfile::tempdir().unwrap();
    std::fs::write(source.path().join("tokenizer.json"), "{}").unwrap();
    std::fs::write(source.path().join("pytorch_model.bin"), "old weights").unwrap();
    let tensors = tensors();
    write_model_folder(out, &config(), &specs(), max_shard_bytes, source.path(), &mut |spec| {
        Ok(tensors[&spec.name].clone())
    })
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A folder in two shards, and the path of one of its files.
fn sharded(file: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 24).unwrap();
    let path = folder.path().join(file);
    (folder, path)
}

fn refused(folder: &Path) -> String {
    ModelFolder::open(folder).unwrap_err().to_string()
}

#[test]
fn one_file_or_several_hold_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    // The second pass also replaces the files of the first.
    for (max_shard_bytes, files) in [
        (
            5_000_000_000,
            vec!["config.json", "model.safetensors", "tokenizer.json"],
        ),
        (
            24,
            vec![
                "config.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
                "tokenizer.json",
            ],
        ),
        (
            5_000_000_000,
            vec!["config.json", "model.safetensors", "tokenizer.json"],
        ),
    ] {
        write(folder.path(), max_shard_bytes).unwrap();
        assert_eq!(names(folder.path()), files);
        let model = ModelFolder::open(folder.path()).unwrap();
        assert_eq!(model.names().collect::<Vec<_>>(), [EMBEDDING, NORM]);
        assert_eq!(model.read_f32(NORM, &[4]).unwrap(), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(model.read(EMBEDDING, &[3, 4]).unwrap(), tensors()[EMBEDDING]);
        assert_eq!((model.dtype(NORM), model.main_dtype()), (Some(Dtype::F32), Dtype::BF16));
        assert_eq!(model.raw_config()["torch_dtype"], "bfloat16");
        assert!(model.config().tie_word_embeddings);
    }
}

#[test]
fn files_are_byte_for_byte_what_the_safetensors_library_writes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let mut tensors = tensors();
    tensors.insert("b.half".into(), tensors[NORM].cast(Dtype::F16));
    tensors.insert("a.half".into(), tensors[NORM].cast(Dtype::F16));
    tensors.insert("empty".into(), HostTensor::from_f32(vec![0, 4], &[]));
    write_tensors(&path, &tensors).unwrap();
    let views = tensors.iter().map(|(name, tensor)| {
        let dtype = tensor.dtype.to_safetensors();
        (
            name,
            safetensors::tensor::TensorView::new(dtype, tensor.shape.clone(), &tensor.data).unwrap(),
        )
    });
    let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let expected = safetensors::serialize(views, Some(metadata)).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), expected);
}

#[test]
fn a_failed_tensor_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let result = write_model_folder(
        &out,
        &config(),
        &specs(),
        1 << 30,
        folder.path(),
        &mut |spec| match spec.name.as_str() {
            EMBEDDING => Err(CheckpointError::Other("no such luck".into())),
            _ => Ok(tensors()[&spec.name].clone()),
        },
    );
    assert_eq!(result.unwrap_err().to_string(), "no such luck");
    assert_eq!(names(&out), Vec::<String>::new());
}

#[test]
fn folders_without_their_files_are_explained() {
    let folder = tempfile::tempdir().unwrap();
    assert!(refused(folder.path()).contains("there is no config.json in this folder"));
    assert!(refused(&folder.path().join("absent")).contains("there is no such file or folder"));
    std::fs::write(folder.path().join("config.json"), config().to_string()).unwrap();
    assert!(refused(folder.path()).contains("there is no model.safetensors or model.safetensors.index.json"));
    std::fs::write(folder.path().join("pytorch_model.bin"), "").unwrap();
    assert!(refused(folder.path()).contains("its weights are pickled"));
    std::fs::write(folder.path().join("config.json"), "{").unwrap();
    assert!(refused(folder.path()).contains("this is not JSON"));
}

#[test]
fn damaged_shards_are_named() {
    let (folder, shard) = sharded("model-00002-of-00002.safetensors");
    let whole = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, &whole[..whole.len() - 4]).unwrap();
    let error = refused(folder.path());
    let expected =
        "tensor `model.norm.weight` should end at byte 16 of the data, and the file has only 12 bytes of data";
    assert!(
        error.contains("model-00002-of-00002.safetensors") && error.contains(expected),
        "{error}"
    );
    std::fs::remove_file(&shard).unwrap();
    assert!(refused(folder.path()).contains("there is no model-00002-of-00002.safetensors in this folder"));
}

#[test]
fn an_index_that_does_not_fit_its_files_is_refused() {
    let (folder, index) = sharded("model.safetensors.index.json");
    let text = std::fs::read_to_string(&index).unwrap();
    std::fs::write(&index, text.replace(NORM, "model.other.weight")).unwrap();
    let error = refused(folder.path());
    assert!(
        error.contains("there is no tensor `model.other.weight`") && error.contains("-00002-of"),
        "{error}"
    );
    std::fs::write(&index, text.replace("model-00001", "../model-00001")).unwrap();
    assert!(refused(folder.path()).contains("should name a file of this folder"));
    std::fs::write(&index, "{}").unwrap();
    assert!(refused(folder.path()).contains("there is no object `weight_map`"));
}

#[test]
fn a_missing_or_misshapen_tensor_is_named_with_both_shapes() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 1 << 30).unwrap();
    let model = ModelFolder::open(folder.path()).unwrap();
    let error = model.read_f32(NORM, &[8]).unwrap_err().to_string();
    assert!(
        error.contains("`model.norm.weight` has the shape [4], expected [8]"),
        "{error}"
    );
    let error = model.read("lm_head.weight", &[3, 4]).unwrap_err().to_string();
    assert!(
        error.contains("there is no tensor `lm_head.weight`") && error.contains("[3, 4]"),
        "{error}"
    );
}

#[test]
fn the_fingerprint_follows_config_and_headers() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 1 << 30).unwrap();
    let first = ModelFolder::open(folder.path()).unwrap().fingerprint();
    assert_eq!(first, ModelFolder::open(folder.path()).unwrap().fingerprint());
    let mut other = config();
    other["rms_norm_eps"] = json!(1e-5);
    std::fs::write(folder.path().join("config.json"), other.to_string()).unwrap();
    assert_ne!(first, ModelFolder::open(folder.path()).unwrap().fingerprint());
}

/// A folder of some tensors and a config, in one file.
fn folder_of(config: &Value, tensors: &BTreeMap<String, HostTensor>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    write_tensors(&folder.path().join("model.safetensors"), tensors).unwrap();
    folder
}

#[test]
fn the_prefix_may_be_left_out_and_the_head_stays_where_it_is() {
    let mut config = config();
    config["tie_word_embeddings"] = json!(false);
    config["architectures"] = json!(["LlamaModel"]);
    let head = HostTensor::from_f32(vec![3, 4], &[0.5; 12]);
    let mut bare: BTreeMap<String, HostTensor> = tensors()
        .into_iter()
        .map(|(name, tensor)| (name.trim_start_matches("model.").to_owned(), tensor))
        .collect();
    bare.insert("lm_head.weight".to_owned(), head.clone());
    let folder = folder_of(&config, &bare);
    let model = ModelFolder::open(folder.path()).unwrap();
    assert_eq!(model.shape(EMBEDDING), Some(&[3, 4][..]));
    assert_eq!(model.dtype(EMBEDDING), Some(Dtype::BF16));
    assert_eq!(model.read_f32(NORM, &[4]).unwrap(), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(model.read("lm_head.weight", &[3, 4]).unwrap(), head);
    assert_eq!(model.main_dtype(), Dtype::BF16);
}

#[test]
fn a_head_that_files_call_otherwise_is_found_and_written_as_they_call_it() {
    let config = json!({"architectures": ["GPTNeoXForCausalLM"], "hidden_size": 4, "num_attention_heads": 2, "num_hidden_layers": 1,
                        "vocab_size": 3, "intermediate_size": 8, "rotary_pct": 1.0});
    let tensor = |value: f32| HostTensor::from_f32(vec![3, 4], &[value; 12]);
    let tensors = [
        ("gpt_neox.embed_in.weight".to_owned(), tensor(1.0)),
        ("embed_out.weight".to_owned(), tensor(2.0)),
    ];
    let folder = folder_of(&config, &tensors.into());
    let model = ModelFolder::open(folder.path()).unwrap();
    assert_eq!(model.read_f32("lm_head.weight", &[3, 4]).unwrap(), [2.0; 12]);
    let family = model.config().family;
    assert_eq!(family.name_in_files("lm_head.weight"), "embed_out.weight");
    assert_eq!(
        family.name_in_files("gpt_neox.embed_in.weight"),
        "gpt_neox.embed_in.weight"
    );
}

#[test]
fn a_tied_head_is_the_embedding_or_an_error() {
    let mut tied = tensors();
    tied.insert("lm_head.weight".to_owned(), tied[EMBEDDING].clone());
    assert!(ModelFolder::open(folder_of(&config(), &tied).path()).is_ok());
    tied.insert(
        "lm_head.weight".to_owned(),
        HostTensor::from_f32(vec![3, 4], &[0.5; 12]),
    );
    let error = ModelFolder::open(folder_of(&config(), &tied).path())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("`tie_word_embeddings` is true") && error.contains("another `lm_head.weight`"),
        "{error}"
    );

    let mut untied = config();
    untied["tie_word_embeddings"] = json!(false);
    let folder = folder_of(&untied, &tensors());
    let model = ModelFolder::open(folder.path()).unwrap();
    let error = model.read("lm_head.weight", &[3, 4]).unwrap_err().to_string();
    assert!(
        error.contains("`tie_word_embeddings` in config.json should be true"),
        "{error}"
    );
}

#[test]
fn an_expert_that_is_not_there_is_named() {
    let config = json!({"architectures": ["MixtralForCausalLM"], "hidden_size": 4, "num_attention_heads": 2, "num_hidden_layers": 1,
                        "num_key_value_heads": 1, "vocab_size": 3, "intermediate_size": 8, "tie_word_embeddings": true});
    let model = folder_of(&config, &tensors());
    let model = ModelFolder::open(model.path()).unwrap();
    let name = "model.layers.0.block_sparse_moe.experts.7.w2.weight";
    let error = model.read_packed(name, [4, 8]).unwrap_err().to_string();
    assert!(
        error.contains(name) && error.contains("how many experts a block has"),
        "{error}"
    );
}
