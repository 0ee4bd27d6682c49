//! Safetensors files, by their headers alone.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Facts, facts as object};
use crate::exit::Failure;

/// The longest header that safetensors files may have, in bytes.
const LONGEST_HEADER: u64 = 100_000_000;

/// What one or several safetensors files hold together.
#[derive(Default)]
pub(super) struct Totals {
    /// Number of tensors.
    pub(super) tensors: u64,
    /// Number of elements of all tensors; of quantised ones that of the weights they stand for.
    pub(super) parameters: u64,
    /// Size of the tensors in bytes.
    pub(super) bytes: u64,
    /// Number of elements for each number format.
    pub(super) dtypes: BTreeMap<String, u64>,
}

impl Totals {
    /// Reads the headers of these files.
    ///
    /// # Errors
    /// When one is not a safetensors file or is shorter than its header says.
    pub(super) fn read(paths: &[PathBuf]) -> Result<Self, Failure> {
        let mut totals = Self::default();
        for path in paths {
            for (name, info) in header(path)?.tensors {
                let elements: u64 = info.shape.iter().product();
                totals.tensors += 1;
                totals.parameters += info.parameters(&name);
                totals.bytes += info.data_offsets.1.saturating_sub(info.data_offsets.0);
                *totals.dtypes.entry(info.dtype.to_lowercase()).or_default() += elements;
            }
        }
        Ok(totals)
    }

    /// As facts.
    pub(super) fn facts(&self) -> Facts {
        object([
            ("parameters", json!(self.parameters)),
            ("tensors", json!(self.tensors)),
            ("dtypes", json!(self.dtypes)),
            ("bytes", json!(self.bytes)),
        ])
    }
}

/// What a header says of one tensor.
#[derive(Deserialize)]
struct TensorInfo {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl TensorInfo {
    /// How many weights a tensor stands for: two for each byte of bitsandbytes' four-bit codes, none for the scales and
    /// tables beside codes.
    fn parameters(&self, name: &str) -> u64 {
        let elements = self.shape.iter().product();
        const BESIDE: [&str; 7] = [
            ".weight.absmax",
            ".weight.quant_map",
            ".weight.nested_absmax",
            ".weight.nested_quant_map",
            ".weight.quant_state.bitsandbytes__nf4",
            ".SCB",
            ".weight_format",
        ];
        let beside = BESIDE.iter().any(|part| name.ends_with(part));
        match (beside, self.dtype.as_str()) {
            (true, _) => 0,
            (false, "U8") if name.ends_with(".weight") => 2 * elements,
            (false, _) => elements,
        }
    }
}

/// The header of a file.
struct Header {
    /// In the order of the file.
    tensors: Vec<(String, TensorInfo)>,
    notes: Option<Value>,
}

/// The header of a file, its size checked.
fn header(path: &Path) -> Result<Header, Failure> {
    let broken = |what: String| Failure::usage(format!("{} {what}. Copy or download it again.", path.display()));
    let unreadable = |error: std::io::Error| broken(format!("cannot be read: {error}"));
    let mut file = File::open(path).map_err(unreadable)?;
    let size = file.metadata().map_err(unreadable)?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length)
        .map_err(|_| broken("is no safetensors file: it is shorter than 8 bytes".to_owned()))?;
    let length = u64::from_le_bytes(length);
    if length > LONGEST_HEADER || length > size.saturating_sub(8) {
        return Err(broken(
            "is no safetensors file, or was cut off inside its header".to_owned(),
        ));
    }
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes).map_err(unreadable)?;
    let wrong = |error: serde_json::Error| broken(format!("is no safetensors file: {error}"));
    let mut entries: Map<String, Value> = serde_json::from_slice(&bytes).map_err(wrong)?;
    let notes = entries.shift_remove("__metadata__");
    let mut tensors = entries
        .into_iter()
        .map(|(name, value)| Ok((name, serde_json::from_value::<TensorInfo>(value).map_err(wrong)?)))
        .collect::<Result<Vec<_>, Failure>>()?;
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let expected = 8 + length + tensors.last().map_or(0, |(_, info)| info.data_offsets.1);
    if size != expected {
        return Err(broken(format!("has {size} bytes where its header says {expected}")));
    }
    Ok(Header { tensors, notes })
}

/// What a file holds.
///
/// # Errors
/// As [`Totals::read`].
pub(super) fn facts(path: &Path) -> Result<Facts, Failure> {
    let header = header(path)?;
    let mut facts = object([("kind", json!("tensors")), ("path", json!(path))]);
    facts.extend(Totals::read(&[path.to_owned()])?.facts());
    if let Some(notes) = header.notes {
        facts.insert("metadata".to_owned(), notes);
    }
    let rows = header.tensors.iter().map(|(name, info)| {
        json!({ "name": name, "dtype": info.dtype.to_lowercase(), "shape": format!("{:?}", info.shape) })
    });
    facts.insert("contents".to_owned(), Value::Array(rows.collect()));
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path) -> PathBuf {
        let data: Vec<u8> = [1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0]
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2, 3], &data).unwrap();
        let path = folder.join("a.safetensors");
        safetensors::serialize_to_file([("w", view)], None, &path).unwrap();
        path
    }

    #[test]
    fn a_header_says_it_all() {
        let folder = tempfile::tempdir().unwrap();
        let facts = facts(&write(folder.path())).unwrap();
        assert_eq!(facts["parameters"], 6);
        assert_eq!(facts["bytes"], 24);
        assert_eq!(facts["dtypes"], json!({ "f32": 6 }));
        assert_eq!(facts["contents"][0]["shape"], "[2, 3]");
    }

    #[test]
    fn a_file_that_was_cut_off_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path());
        let bytes = std::fs::read(&path).unwrap();
        for length in [0, 4, 20, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(facts(&path).unwrap_err().message.contains("a.safetensors"), "{length}");
        }
    }
}
