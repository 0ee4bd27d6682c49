//! Folders that Transformers saved quantised, and the cache of folders that are quantised here.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use interlingua_checkpoints::dtype::{Dtype, HostTensor};
use interlingua_checkpoints::merge::{Merge, Method, Options};
use interlingua_checkpoints::model_folder::ModelFolder;
use interlingua_checkpoints::packed::{PackedCache, Scheme};
use interlingua_checkpoints::quantization_config::StoredQuantization;
use interlingua_checkpoints::write::write_tensors;
use serde_json::{Value, json};

const DOUBLE: Scheme = Scheme::Nf4 {
    block: 64,
    double: true,
};
const PLAIN: Scheme = Scheme::Nf4 {
    block: 64,
    double: false,
};
const SAVED: [(&str, Scheme); 3] = [("nf4_double", DOUBLE), ("nf4", PLAIN), ("int8", Scheme::Int8)];
const DOWN: &str = "model.layers.0.mlp.down_proj.weight";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures/qlora")
        .join(name)
}

fn open(path: &Path) -> ModelFolder {
    ModelFolder::open(path).unwrap()
}

/// The linear layers of the fixture's blocks.
fn linears() -> Vec<(String, [usize; 2])> {
    let shapes = [
        ("self_attn.q_proj", [64, 64]),
        ("self_attn.k_proj", [32, 64]),
        ("self_attn.v_proj", [32, 64]),
        ("self_attn.o_proj", [64, 64]),
        ("mlp.gate_proj", [128, 64]),
        ("mlp.up_proj", [128, 64]),
        ("mlp.down_proj", [64, 128]),
    ];
    (0..2)
        .flat_map(|block| shapes.map(|(name, shape)| (format!("model.layers.{block}.{name}.weight"), shape)))
        .collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

#[test]
fn saved_folders_hold_what_quantising_their_base_gives() {
    let base = open(&fixture("base"));
    for (name, scheme) in SAVED {
        let saved = open(&fixture(&format!("saved/{name}")));
        let kind = match scheme {
            Scheme::Nf4 { double, .. } => StoredQuantization::Nf4 { double },
            Scheme::Int8 => StoredQuantization::Int8,
        };
        assert_eq!(saved.config().quantization, Some(kind));
        for (tensor, shape) in linears() {
            let read = saved.read_packed(&tensor, shape).unwrap();
            let made = base.pack(&tensor, shape, scheme).unwrap();
            assert!(saved.is_packed(&tensor) && read.is_mapped() && !made.is_mapped());
            assert_eq!(read.scheme(), Some(scheme));
            assert_eq!(
                (read.format(), read.codes()),
                (made.format(), made.codes()),
                "{name}: {tensor}"
            );
            assert_eq!(read.resident_bytes() + read.codes().len(), made.resident_bytes());
            assert_eq!(read.decode(), made.decode());
            // Codes from a file are still there after their pages were given back.
            read.release();
            read.prefetch();
            assert_eq!(read.in_memory().codes(), made.codes());
        }
    }
}

#[test]
fn saved_folders_are_read_as_if_they_were_not_quantised() {
    let base = open(&fixture("base"));
    for (name, scheme) in SAVED {
        let saved = open(&fixture(&format!("saved/{name}")));
        assert!(saved.names().eq(base.names()), "{name}");
        assert_eq!(saved.main_dtype(), Dtype::F32);
        for tensor in base.names() {
            assert_eq!(saved.shape(tensor), base.shape(tensor), "{name}: {tensor}");
            assert_eq!(saved.dtype(tensor), Some(Dtype::F32), "{name}: {tensor}");
        }
        let packed = base.pack(DOWN, [64, 128], scheme).unwrap();
        assert_eq!(saved.read_f32(DOWN, &[64, 128]).unwrap(), packed.decode());
        assert_eq!(saved.read(DOWN, &[64, 128]).unwrap().to_f32(), packed.decode());
        let error = saved.read_f32(DOWN, &[128, 64]).unwrap_err().to_string();
        assert!(error.contains("has the shape [64, 128], expected [128, 64]"), "{error}");
    }
}

#[test]
fn a_merge_of_quantised_folders_has_floats() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("merged");
    let inputs = [fixture("saved/nf4"), fixture("base")];
    let options = Options {
        method: Method::Linear,
        weights: None,
        density: None,
        scale: None,
        seed: 0,
        combination: None,
    };
    Merge::open(&inputs, None, &options).unwrap().write(&out).unwrap();
    let merged = open(&out);
    assert_eq!(merged.raw_config().get("quantization_config"), None);
    let halves = |tensor: &str, shape: &[usize]| -> Vec<f32> {
        let of = |path: &PathBuf| open(path).read_f32(tensor, shape).unwrap();
        let (one, two) = (of(&inputs[0]), of(&inputs[1]));
        one.iter().zip(two).map(|(one, two)| (one + two) / 2.0).collect()
    };
    let found = merged.read_f32(DOWN, &[64, 128]).unwrap();
    for (found, expected) in found.iter().zip(halves(DOWN, &[64, 128])) {
        assert!((found - expected).abs() < 1e-6);
    }
}

#[test]
fn a_folder_quantised_otherwise_is_refused() {
    let saved = open(&fixture("saved/nf4"));
    assert_eq!(saved.pack(DOWN, [64, 128], PLAIN).unwrap().scheme(), Some(PLAIN));
    let error = saved.pack(DOWN, [64, 128], DOUBLE).unwrap_err().to_string();
    assert!(
        error.contains("as NF4 with blocks of 64, and NF4 with blocks of 64 and double"),
        "{error}"
    );
    assert!(saved.pack(DOWN, [64, 128], Scheme::Int8).is_err());
    let error = saved
        .read_packed("model.layers.9.mlp.down_proj.weight", [64, 128])
        .unwrap_err();
    assert!(error.to_string().contains("there is no tensor"), "{error}");
}

/// Rewrites the header of a safetensors file, with room for a longer one.
fn change_header(path: &Path, change: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let bytes = fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    change(&mut header);
    let text = serde_json::to_vec(&header).unwrap();
    let mut changed = (text.len() as u64).to_le_bytes().to_vec();
    changed.extend(text);
    changed.extend(&bytes[8 + length..]);
    fs::write(path, changed).unwrap();
}

fn refused(name: &str, change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> String {
    let scratch = tempfile::tempdir().unwrap();
    copy(&fixture(&format!("saved/{name}")), scratch.path());
    change_header(&scratch.path().join("model.safetensors"), change);
    let error = ModelFolder::open(scratch.path()).and_then(|folder| folder.read_packed(DOWN, [64, 128]));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("model.safetensors: "), "{error}");
    error
}

#[test]
fn parts_that_are_missing_or_of_a_wrong_size_are_named() {
    let rename = |from: String| {
        move |header: &mut serde_json::Map<String, Value>| {
            let entry = header.remove(&from).unwrap();
            header.insert("other".into(), entry);
        }
    };
    for part in [
        ".absmax",
        ".quant_map",
        ".nested_absmax",
        ".nested_quant_map",
        ".quant_state.bitsandbytes__nf4",
    ] {
        let error = refused("nf4_double", rename(format!("{DOWN}{part}")));
        assert!(
            error.contains(&format!("no tensor `{DOWN}{part}`")) && error.contains("fetch them again"),
            "{error}"
        );
    }
    let error = refused("int8", rename(DOWN.replace("weight", "SCB")));
    assert!(
        error.contains("no tensor `model.layers.0.mlp.down_proj.SCB`"),
        "{error}"
    );
    let error = refused("nf4", |header| {
        let state = header.remove(&format!("{DOWN}.quant_state.bitsandbytes__nf4")).unwrap();
        header.insert(format!("{DOWN}.quant_state.bitsandbytes__fp4"), state);
    });
    assert!(error.contains("FP4"), "{error}");
    // The parts of two tensors exchanged.
    let error = refused("nf4", |header| {
        let other = "model.layers.0.self_attn.q_proj.weight.absmax";
        let (one, two) = (header[other].clone(), header[&format!("{DOWN}.absmax")].clone());
        header[&format!("{DOWN}.absmax")] = one;
        header[other] = two;
    });
    assert!(
        error.contains("`model.layers.0.mlp.down_proj.weight.absmax` has the shape [64], expected [128]"),
        "{error}"
    );
    let error = refused("nf4", |header| {
        let other = "model.layers.0.self_attn.q_proj.weight";
        let (one, two) = (header[other].clone(), header[DOWN].clone());
        header[DOWN] = one;
        header[other] = two;
    });
    assert!(
        error.contains("should be 4096 numbers of U8, and has the shape [2048, 1]"),
        "{error}"
    );
}

#[test]
fn a_cut_file_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    copy(&fixture("saved/nf4_double"), scratch.path());
    let path = scratch.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
    let error = ModelFolder::open(scratch.path()).unwrap_err().to_string();
    assert!(error.contains("should end at byte"), "{error}");
}

/// The fixture's base with one number of a matrix replaced.
fn base_with(folder: &Path, [row, column]: [usize; 2], value: f32) {
    let base = open(&fixture("base"));
    fs::create_dir_all(folder).unwrap();
    fs::copy(fixture("base/config.json"), folder.join("config.json")).unwrap();
    let mut tensors: BTreeMap<String, HostTensor> = base
        .names()
        .map(|name| (name.to_owned(), base.read(name, base.shape(name).unwrap()).unwrap()))
        .collect();
    let mut values = base.read_f32(DOWN, &[64, 128]).unwrap();
    values[row * 128 + column] = value;
    let tensor = HostTensor::from_f32(vec![64, 128], &values).cast(Dtype::BF16);
    tensors.insert(DOWN.to_owned(), tensor);
    write_tensors(&folder.join("model.safetensors"), &tensors).unwrap();
}

#[test]
fn numbers_that_are_not_finite_are_named() {
    for (value, text) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let scratch = tempfile::tempdir().unwrap();
        base_with(scratch.path(), [3, 5], value);
        for (_, scheme) in SAVED {
            let error = open(scratch.path())
                .pack(DOWN, [64, 128], scheme)
                .unwrap_err()
                .to_string();
            let expected = format!("tensor `{DOWN}` has {text} in row 3, column 5");
            assert!(error.contains(&expected), "{error}");
        }
    }
}

/// Opens or makes the cache; what it says.
fn cached(cache: &Path, base: &Path, scheme: Scheme) -> (Option<PackedCache>, Vec<String>) {
    let mut said = Vec::new();
    let mut say = |text: &str| said.push(text.to_owned());
    let found = PackedCache::open_or_make(cache, &open(base), scheme, &linears(), &mut say).unwrap();
    (found, said)
}

fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.retain(|path| path.to_string_lossy().ends_with(ending));
    files.sort();
    files
}

#[test]
fn a_second_start_reads_what_the_first_one_made() {
    let scratch = tempfile::tempdir().unwrap();
    let (base, cache) = (fixture("base"), scratch.path().join("deep/cache"));
    for (count, (_, scheme)) in SAVED.into_iter().enumerate() {
        let mut times = Vec::new();
        for _ in 0..2 {
            let (found, said) = cached(&cache, &base, scheme);
            let found = found.unwrap();
            assert_eq!(said, [] as [&str; 0]);
            for (name, shape) in linears() {
                let (read, made) = (
                    found.read(&name, shape).unwrap(),
                    open(&base).pack(&name, shape, scheme).unwrap(),
                );
                assert_eq!((read.format(), read.codes()), (made.format(), made.codes()), "{name}");
                assert!(read.is_mapped() && !read.in_memory().is_mapped());
            }
            assert!(found.read(DOWN, [128, 64]).is_err() && found.read("lm_head.weight", [110, 64]).is_err());
            times.push(fs::metadata(found.path()).unwrap().modified().unwrap());
        }
        assert_eq!(times[0], times[1], "it was made twice");
        assert_eq!(files(&cache, ".safetensors").len(), count + 1);
        assert_eq!(files(&cache, ".partial"), [] as [&Path; 0]);
    }
}

#[test]
fn a_damaged_cache_is_noticed_and_made_again() {
    let scratch = tempfile::tempdir().unwrap();
    let (base, cache) = (fixture("base"), scratch.path());
    cached(cache, &base, DOUBLE);
    let path = files(cache, ".safetensors").remove(0);
    let whole = fs::read(&path).unwrap();
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        bytes
    };
    let state = whole.windows(9).position(|window| window == b"blocksize").unwrap();
    let damaged = [
        whole[..whole.len() / 2].to_vec(),
        whole[..4].to_vec(),
        Vec::new(),
        flipped(whole.len() - 1),
        flipped(whole.len() / 2),
        flipped(state + 30),
        flipped(60),
    ];
    for bytes in damaged {
        fs::write(&path, bytes).unwrap();
        let (found, said) = cached(cache, &base, DOUBLE);
        assert!(found.is_some());
        let [said] = said.as_slice() else { panic!("{said:?}") };
        assert!(
            said.contains("they are made again") && said.contains(&*path.to_string_lossy()),
            "{said}"
        );
        assert_eq!(fs::read(&path).unwrap(), whole);
    }
}

#[test]
fn another_base_of_the_same_shape_has_another_cache() {
    let scratch = tempfile::tempdir().unwrap();
    let (cache, base) = (scratch.path().join("cache"), scratch.path().join("base"));
    let read = |found: Option<PackedCache>| found.unwrap().read(DOWN, [64, 128]).unwrap().decode();
    base_with(&base, [3, 5], 4.0);
    let file = || {
        fs::File::options()
            .write(true)
            .open(base.join("model.safetensors"))
            .unwrap()
    };
    let time = file().metadata().unwrap().modified().unwrap();
    let first = read(cached(&cache, &base, PLAIN).0);
    base_with(&base, [3, 5], 8.0);
    file().set_modified(time + Duration::from_nanos(10_000_000)).unwrap();
    assert_ne!(first, read(cached(&cache, &base, PLAIN).0));
    // What is in the files tells two bases apart that have one age.
    base_with(&base, [0, 0], 4.0);
    file().set_modified(time).unwrap();
    let first = read(cached(&cache, &base, PLAIN).0);
    base_with(&base, [0, 0], 8.0);
    file().set_modified(time).unwrap();
    assert_ne!(first, read(cached(&cache, &base, PLAIN).0));
    assert_eq!(files(&cache, ".safetensors").len(), 4);
}

#[test]
fn the_fingerprint_follows_the_weights_and_not_the_place() {
    let scratch = tempfile::tempdir().unwrap();
    let (one, two) = (scratch.path().join("one"), scratch.path().join("two"));
    copy(&fixture("base"), &one);
    assert_eq!(open(&one).fingerprint(), open(&fixture("base")).fingerprint());
    base_with(&one, [63, 127], 4.0);
    base_with(&two, [63, 127], 8.0);
    assert_ne!(open(&one).fingerprint(), open(&two).fingerprint());
}

#[test]
fn a_cache_that_cannot_be_written_is_said_once() {
    let scratch = tempfile::tempdir().unwrap();
    let blocked = scratch.path().join("file");
    fs::write(&blocked, "").unwrap();
    let (found, said) = cached(&blocked.join("cache"), &fixture("base"), DOUBLE);
    assert!(found.is_none());
    let [said] = said.as_slice() else { panic!("{said:?}") };
    assert!(
        said.starts_with("the quantised weights are not kept for the next start: "),
        "{said}"
    );
}

#[test]
fn weights_that_cannot_be_quantised_are_an_error_and_leave_no_file() {
    let scratch = tempfile::tempdir().unwrap();
    let (cache, base) = (scratch.path().join("cache"), scratch.path().join("base"));
    base_with(&base, [3, 5], f32::NAN);
    let error = PackedCache::open_or_make(&cache, &open(&base), DOUBLE, &linears(), &mut |_| ());
    assert!(error.unwrap_err().to_string().contains(DOWN));
    assert_eq!(files(&cache, ".safetensors"), [] as [&Path; 0]);
    assert_eq!(files(&cache, ".partial"), [] as [&Path; 0]);
}

#[test]
fn two_runs_that_start_at_once_share_one_cache() {
    let scratch = tempfile::tempdir().unwrap();
    let cache = scratch.path();
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| cached(cache, &fixture("base"), DOUBLE)))
            .collect();
        for run in runs {
            let (found, said) = run.join().unwrap();
            assert_eq!(said, [] as [&str; 0]);
            assert!(found.unwrap().read(DOWN, [64, 128]).is_ok());
        }
    });
    assert_eq!(files(cache, ".safetensors").len(), 1);
}

#[test]
fn other_quantisations_are_refused_by_name() {
    let scratch = tempfile::tempdir().unwrap();
    copy(&fixture("base"), scratch.path());
    let path = scratch.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["quantization_config"] = json!({"quant_method": "gptq", "bits": 4});
    fs::write(&path, config.to_string()).unwrap();
    let error = ModelFolder::open(scratch.path()).unwrap_err().to_string();
    assert!(error.contains("gptq") && error.contains("config.json"), "{error}");
}
