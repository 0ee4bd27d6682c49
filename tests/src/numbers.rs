//! Tensors and metrics that a run wrote, and how far they are from what they should be.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// The tensors of floats of a file, by name.
///
/// # Panics
/// When the file cannot be read.
pub fn tensors(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let floats = file.iter().filter_map(|(name, tensor)| {
        let halves = || tensor.data().chunks_exact(2).map(|bytes| [bytes[0], bytes[1]]);
        let words = || {
            tensor
                .data()
                .chunks_exact(4)
                .map(|bytes| [bytes[0], bytes[1], bytes[2], bytes[3]])
        };
        let numbers = match tensor.dtype() {
            Dtype::F32 => words().map(f32::from_le_bytes).collect(),
            Dtype::BF16 => halves().map(|bytes| bf16::from_le_bytes(bytes).to_f32()).collect(),
            Dtype::F16 => halves().map(|bytes| f16::from_le_bytes(bytes).to_f32()).collect(),
            _ => return None,
        };
        Some((name.to_owned(), numbers))
    });
    floats.collect()
}

/// The l2 distance between two tensors as a share of the norm of the second.
///
/// # Panics
/// When they are not of one length.
pub fn relative_distance(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len(), "the tensors differ in length");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let difference = norm(
        &mut found
            .iter()
            .zip(expected)
            .map(|(found, expected)| f64::from(*found) - f64::from(*expected)),
    );
    difference / norm(&mut expected.iter().map(|value| f64::from(*value))).max(f64::MIN_POSITIVE)
}

/// Fails unless two files hold the same f32 tensors up to a relative distance.
///
/// # Panics
/// When they do not, naming the tensor.
pub fn assert_close(found: &Path, expected: &Path, tolerance: f64) {
    let (found, expected) = (tensors(found), tensors(expected));
    assert!(
        found.keys().eq(expected.keys()),
        "{:?} and {:?}",
        found.keys(),
        expected.keys()
    );
    for (name, expected) in &expected {
        let off = relative_distance(&found[name], expected);
        assert!(off <= tolerance, "{name} is off by {off}, at most {tolerance}");
    }
}

/// Rows of a run's `metrics.jsonl` of one kind.
///
/// # Panics
/// When a line is not JSON.
pub fn rows(run: &Path, kind: &str) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).expect("the run wrote metrics");
    let rows = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("a row is JSON"));
    rows.filter(|row| row["kind"] == kind).collect()
}

/// One number of every training step.
///
/// # Panics
/// When a row lacks it.
pub fn column(run: &Path, key: &str) -> Vec<f64> {
    let rows = rows(run, "train");
    rows.iter()
        .map(|row| row[key].as_f64().unwrap_or_else(|| panic!("{key} in {row}")))
        .collect()
}
