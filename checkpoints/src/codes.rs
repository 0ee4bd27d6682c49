//! Safetensors files of bytes: codes of quantised numbers. They are read with [`crate::tensors::TensorsFile::bytes`].

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensorError};

use crate::error::CheckpointError;

/// Writes vectors of bytes by name.
///
/// # Errors
/// When the disk refuses.
pub fn write_codes(path: &Path, codes: &BTreeMap<String, Vec<u8>>) -> Result<(), CheckpointError> {
    let written = views(codes).and_then(|views| safetensors::serialize_to_file(views, None, path));
    written.map_err(|error| match error {
        SafeTensorError::IoError(source) => CheckpointError::io(path, source),
        other => CheckpointError::Other(format!("{}: cannot be written: {other}", path.display())),
    })
}

fn views(codes: &BTreeMap<String, Vec<u8>>) -> Result<Vec<(&str, TensorView<'_>)>, SafeTensorError> {
    let mut views = Vec::with_capacity(codes.len());
    for (name, codes) in codes {
        views.push((name.as_str(), TensorView::new(Dtype::U8, vec![codes.len()], codes)?));
    }
    Ok(views)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensors::TensorsFile;

    #[test]
    fn bytes_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("codes.safetensors");
        let codes = BTreeMap::from([
            ("a".to_owned(), (0..=255).collect::<Vec<u8>>()),
            ("b".to_owned(), vec![7]),
        ]);
        write_codes(&path, &codes).unwrap();
        let file = TensorsFile::open(&path).unwrap();
        for (name, codes) in &codes {
            assert_eq!(file.bytes(name), Some(codes.as_slice()));
        }
        assert_eq!(file.bytes("c"), None);
        let error = write_codes(&folder.path().join("none/codes.safetensors"), &codes).unwrap_err();
        assert!(error.to_string().contains("none"), "{error}");
    }
}
