//! Safetensors files, by their headers alone.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::Metadata;
use serde_json::{Value, json};

use super::{Facts, facts as object};
use crate::exit::Failure;

/// The longest header that safetensors files may have, in bytes.
const LONGEST_HEADER: u64 = 100_000_000;

/// What one or several safetensors files hold together.
#[derive(Default)]
pub(super) struct Totals {
    /// Number of tensors.
    pub(super) tensors: u64,
    /// Number of elements of all tensors.
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
            for info in header(path)?.tensors().values() {
                let elements = info.shape.iter().product::<usize>() as u64;
                totals.tensors += 1;
                totals.parameters += elements;
                totals.bytes += (info.data_offsets.1 - info.data_offsets.0) as u64;
                *totals.dtypes.entry(name(info)).or_default() += elements;
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

/// The number format's name as people write it: `f32`, `bf16`.
fn name(info: &safetensors::tensor::TensorInfo) -> String {
    format!("{:?}", info.dtype).to_lowercase()
}

/// The header of a file, its size checked.
fn header(path: &Path) -> Result<Metadata, Failure> {
    let broken = |what: String| Failure::usage(format!("{} {what}. Copy or download it again.", path.display()));
    let unreadable = |error: std::io::Error| broken(format!("cannot be read: {error}"));
    let mut file = File::open(path).map_err(unreadable)?;
    let size = file.metadata().map_err(unreadable)?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length)
        .map_err(|_| broken("is no safetensors file: it is shorter than 8 bytes".to_owned()))?;
    let header = u64::from_le_bytes(length);
    if header > LONGEST_HEADER || header > size.saturating_sub(8) {
        return Err(broken(
            "is no safetensors file, or was cut off inside its header".to_owned(),
        ));
    }
    let mut bytes = length.to_vec();
    file.take(header).read_to_end(&mut bytes).map_err(unreadable)?;
    let (_, metadata) =
        SafeTensors::read_metadata(&bytes).map_err(|error| broken(format!("is no safetensors file: {error}")))?;
    let expected = 8 + header + metadata.data_len() as u64;
    if size != expected {
        return Err(broken(format!("has {size} bytes where its header says {expected}")));
    }
    Ok(metadata)
}

/// What a file holds.
///
/// # Errors
/// As [`Totals::read`].
pub(super) fn facts(path: &Path) -> Result<Facts, Failure> {
    let metadata = header(path)?;
    let mut facts = object([("kind", json!("tensors")), ("path", json!(path))]);
    facts.extend(Totals::read(&[path.to_owned()])?.facts());
    if let Some(notes) = metadata.metadata() {
        facts.insert("metadata".to_owned(), json!(notes));
    }
    let mut list: Vec<_> = metadata.tensors().into_iter().collect();
    list.sort_by_key(|(_, info)| info.data_offsets);
    let rows = list
        .iter()
        .map(|(tensor, info)| json!({ "name": tensor, "dtype": name(info), "shape": format!("{:?}", info.shape) }));
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
