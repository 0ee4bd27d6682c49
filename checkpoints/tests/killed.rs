//! Checkpoints survive: a process killed while it saves, a full disk.

#![cfg(test)]

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use interlingua_checkpoints::CheckpointError;
use interlingua_checkpoints::atomic::write_atomically;
use interlingua_checkpoints::dtype::HostTensor;
use interlingua_checkpoints::run_state::{latest_valid, list, prune, remove_partials, save};
use interlingua_checkpoints::write::write_tensors;

const FOLDER: &str = "INTERLINGUA_TEST_SAVES_INTO";

fn save_step(output: &Path, step: u64) -> Result<(), CheckpointError> {
    save(output, step, |folder| {
        let weights = HostTensor::from_f32(vec![1 << 16], &vec![step as f32; 1 << 16]);
        write_tensors(
            &folder.join("weights.safetensors"),
            &[("weights".to_owned(), weights)].into(),
        )?;
        write_atomically(&folder.join("step"), step.to_string().as_bytes())
    })
    .map(drop)
}

/// The killed process: this test by itself does nothing.
#[test]
fn saves_until_killed() {
    let Some(output) = std::env::var_os(FOLDER) else { return };
    let output = Path::new(&output);
    let first = list(output).unwrap().last().map_or(1, |(step, _)| step + 1);
    for step in first..first + 100_000 {
        save_step(output, step).unwrap();
        prune(output, 2).unwrap();
    }
}

#[test]
fn a_process_killed_at_any_instant_leaves_whole_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("run");
    let mut last = 0;
    for round in 0..10 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "saves_until_killed"])
            .env(FOLDER, &output)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // At different places of a save, once there has been one.
        while list(&output).unwrap().last().is_none_or(|(step, _)| *step <= last) {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(1700 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        remove_partials(&output).unwrap();
        let (latest, corrupt) = latest_valid(&output).unwrap();
        let (step, path) = latest.unwrap();
        assert_eq!(corrupt, []);
        assert!(step > last);
        assert_eq!(std::fs::read_to_string(path.join("step")).unwrap(), step.to_string());
        let names: Vec<String> = list(&output)
            .unwrap()
            .iter()
            .map(|(step, _)| format!("checkpoint-{step}"))
            .collect();
        let found = std::fs::read_dir(&output)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut found: Vec<String> = found.collect();
        found.sort_by_key(|name| (name.len(), name.clone()));
        assert_eq!(found, names, "nothing else is left");
        last = step;
    }
}

#[test]
fn a_full_disk_loses_nothing_that_was_saved() {
    if !Path::new("/dev/full").exists() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    save_step(folder.path(), 1).unwrap();
    // Writing to this device always finds the disk full.
    let failed = save::<CheckpointError>(folder.path(), 2, |partial| {
        symlink("/dev/full", partial.join(".weights.safetensors.partial")).unwrap();
        let weights = HostTensor::from_f32(vec![1 << 16], &vec![0.0; 1 << 16]);
        write_tensors(
            &partial.join("weights.safetensors"),
            &[("weights".to_owned(), weights)].into(),
        )
    });
    assert!(
        failed
            .unwrap_err()
            .to_string()
            .contains("the disk is full; free some space and start again")
    );
    assert_eq!(latest_valid(folder.path()).unwrap().0.unwrap().0, 1);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}
