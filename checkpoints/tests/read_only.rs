//! Folders that may not be written to.

#![cfg(test)]

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use interlingua_checkpoints::CheckpointError;
use interlingua_checkpoints::atomic::write_atomically;
use interlingua_checkpoints::dtype::HostTensor;
use interlingua_checkpoints::peft::{AdapterConfig, AdapterFolder};
use interlingua_checkpoints::run_state::save;
use interlingua_checkpoints::write::write_tensors;

/// What writing each kind of thing into a folder gives.
fn write_all(folder: &Path) -> [Result<(), CheckpointError>; 3] {
    let tensor = HostTensor::from_f32(vec![2], &[1.0, 2.0]);
    let config = AdapterConfig {
        base_model: "base".into(),
        rank: 1,
        alpha: 1.0,
        dropout: 0.0,
        target_modules: serde_json::Value::Null,
        modules_to_save: Vec::new(),
        use_rslora: false,
        use_dora: false,
        alpha_pattern: BTreeMap::new(),
        target_parameters: Vec::new(),
    };
    [
        write_tensors(&folder.join("model.safetensors"), &[("a".to_owned(), tensor)].into()),
        save(folder, 1, |partial| write_atomically(&partial.join("state"), b"{}")).map(drop),
        AdapterFolder::write(&folder.join("adapter"), &config, Vec::new(), ""),
    ]
}

#[test]
fn a_folder_that_may_not_be_written_to_is_named() {
    let own = tempfile::tempdir().unwrap();
    std::fs::set_permissions(own.path(), Permissions::from_mode(0o555)).unwrap();
    // Permissions do not stop root; the kernel's own folders do.
    let is_root = File::create(own.path().join("probe")).is_ok();
    let folder = if is_root { Path::new("/sys/kernel") } else { own.path() };
    for result in write_all(folder) {
        let text = result.unwrap_err().to_string();
        assert!(text.starts_with(&folder.display().to_string()), "{text}");
        assert!(text.contains("choose another folder"), "{text}");
    }
    std::fs::set_permissions(own.path(), Permissions::from_mode(0o755)).unwrap();
}
