//! Checkpoints of a run: complete or not there at all.
//!
//! A checkpoint is written into a folder of another name, every file synced, a manifest with the size and hash of each
//! file last, and the folder renamed. A process killed at any instant leaves either the whole checkpoint or a partial
//! folder that the next start removes.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::atomic::{sync_folder, write_atomically};
use crate::error::CheckpointError;

const MANIFEST: &str = "manifest.json";

/// Size and hash of one file.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    bytes: u64,
    blake3: String,
}

/// A checkpoint that cannot be used.
#[derive(Clone, Debug, PartialEq)]
pub struct Corrupt {
    /// Its folder.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// The folder of the checkpoint of a step.
pub fn checkpoint(output: &Path, step: u64) -> PathBuf {
    output.join(format!("checkpoint-{step}"))
}

/// The folder that the checkpoint of a step is written into before it is whole.
pub fn partial(output: &Path, step: u64) -> PathBuf {
    output.join(format!(".checkpoint-{step}.partial"))
}

/// Writes a checkpoint. `write` fills the folder it is given.
pub fn save<E: From<CheckpointError>>(
    output: &Path,
    step: u64,
    write: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<PathBuf, E> {
    let (partial, path) = (partial(output, step), checkpoint(output, step));
    let io = |path: &Path, source| CheckpointError::io(path, source);
    remove_if_there(&partial)?;
    std::fs::create_dir_all(&partial).map_err(|source| io(&partial, source))?;
    let written = write(&partial).and_then(|()| Ok(seal(&partial)?));
    if let Err(error) = written {
        // A partial folder is of no use; that it cannot be removed changes nothing.
        std::fs::remove_dir_all(&partial).ok();
        return Err(error);
    }
    remove_if_there(&path)?;
    std::fs::rename(&partial, &path).map_err(|source| io(&path, source))?;
    sync_folder(output)?;
    Ok(path)
}

fn remove_if_there(folder: &Path) -> Result<(), CheckpointError> {
    match std::fs::remove_dir_all(folder) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(CheckpointError::io(folder, source)),
        _ => Ok(()),
    }
}

/// Syncs every file of a folder and writes the manifest.
fn seal(folder: &Path) -> Result<(), CheckpointError> {
    let mut manifest = BTreeMap::new();
    for path in files(folder)? {
        File::open(&path)
            .and_then(|file| file.sync_all())
            .map_err(|source| CheckpointError::io(&path, source))?;
        let name = path
            .strip_prefix(folder)
            .unwrap_or(&path)
            .to_string_lossy()
            .into_owned();
        manifest.insert(name, entry(&path)?);
    }
    let text = serde_json::to_string_pretty(&manifest).map_err(|error| CheckpointError::Other(error.to_string()))?;
    write_atomically(&folder.join(MANIFEST), text.as_bytes())
}

/// All files in a folder, those in folders inside it too; these folders are synced on the way.
fn files(folder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let read =
        || -> std::io::Result<Vec<PathBuf>> { std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect() };
    let mut found = Vec::new();
    for path in read().map_err(|source| CheckpointError::io(folder, source))? {
        if path.is_dir() {
            found.extend(files(&path)?);
            sync_folder(&path)?;
        } else {
            found.push(path);
        }
    }
    Ok(found)
}

fn entry(path: &Path) -> Result<Entry, CheckpointError> {
    let mut hasher = blake3::Hasher::new();
    hasher
        .update_mmap_rayon(path)
        .map_err(|source| CheckpointError::io(path, source))?;
    Ok(Entry {
        bytes: hasher.count(),
        blake3: hasher.finalize().to_hex().to_string(),
    })
}

fn manifest(folder: &Path) -> Result<BTreeMap<String, Entry>, String> {
    let text = std::fs::read_to_string(folder.join(MANIFEST)).map_err(|_| format!("{MANIFEST} cannot be read"))?;
    serde_json::from_str(&text).map_err(|_| format!("{MANIFEST} is damaged"))
}

/// Whether all files of a checkpoint are there in their sizes: what can be seen without reading them.
fn looks_whole(folder: &Path) -> bool {
    let has_size = |(name, entry): (String, Entry)| {
        std::fs::metadata(folder.join(name)).is_ok_and(|metadata| metadata.len() == entry.bytes)
    };
    manifest(folder).is_ok_and(|manifest| manifest.into_iter().all(has_size))
}

/// Checks a checkpoint against its manifest.
fn verify(folder: &Path) -> Result<(), String> {
    for (name, expected) in manifest(folder)? {
        let found = entry(&folder.join(&name)).map_err(|_| format!("{name} cannot be read"))?;
        if found != expected {
            return Err(match found.bytes == expected.bytes {
                true => format!("{name} has other content than was saved"),
                false => format!("{name} has {} bytes, {} were saved", found.bytes, expected.bytes),
            });
        }
    }
    Ok(())
}

/// The checkpoints in an output folder, oldest first. There is none when the folder does not exist.
pub fn list(output: &Path) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
    let entries = match std::fs::read_dir(output) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|source| CheckpointError::io(output, source))?,
    };
    let mut found: Vec<(u64, PathBuf)> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let step = path.file_name()?.to_str()?.strip_prefix("checkpoint-")?.parse().ok()?;
            path.is_dir().then_some((step, path))
        })
        .collect();
    found.sort();
    Ok(found)
}

/// A checkpoint to go on from, by its step, and those that had to be passed over.
pub type Latest = (Option<(u64, PathBuf)>, Vec<Corrupt>);

/// The newest checkpoint that is whole, and the newer ones that are not.
pub fn latest_valid(output: &Path) -> Result<Latest, CheckpointError> {
    let mut corrupt = Vec::new();
    for (step, path) in list(output)?.into_iter().rev() {
        match verify(&path) {
            Ok(()) => return Ok((Some((step, path)), corrupt)),
            Err(reason) => corrupt.push(Corrupt { path, reason }),
        }
    }
    Ok((None, corrupt))
}

/// Removes what a killed process left half written.
pub fn remove_partials(output: &Path) -> Result<(), CheckpointError> {
    let Ok(entries) = std::fs::read_dir(output) else {
        return Ok(());
    };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(".checkpoint-") && name.ends_with(".partial") {
            remove_if_there(&path)?;
        }
    }
    Ok(())
}

/// Removes the oldest checkpoints until `keep` are left; the newest whole one always stays.
pub fn prune(output: &Path, keep: usize) -> Result<(), CheckpointError> {
    let newest_first: Vec<PathBuf> = list(output)?.into_iter().rev().map(|(_, path)| path).collect();
    let whole = newest_first.iter().position(|path| looks_whole(path));
    for (index, path) in newest_first.iter().enumerate().skip(keep) {
        if Some(index) != whole {
            remove_if_there(path)?;
        }
    }
    Ok(())
}

/// Renames an output folder to `NAME.old-N` with the first free N; none when there is no such folder.
pub fn move_aside(output: &Path) -> Result<Option<PathBuf>, CheckpointError> {
    if !output.exists() {
        return Ok(None);
    }
    let name = output.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let free = (1..)
        .map(|number| output.with_file_name(format!("{name}.old-{number}")))
        .find(|path| !path.exists());
    let target = free.unwrap_or_default();
    std::fs::rename(output, &target).map_err(|source| CheckpointError::io(output, source))?;
    Ok(Some(target))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, step: u64, text: &str) -> PathBuf {
        save::<CheckpointError>(folder, step, |folder| {
            write_atomically(&folder.join("weights"), text.as_bytes())
        })
        .unwrap()
    }

    #[test]
    fn a_damaged_checkpoint_is_passed_over_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let first = write(folder.path(), 5, "five");
        let second = write(folder.path(), 10, "ten");
        assert_eq!(
            latest_valid(folder.path()).unwrap(),
            (Some((10, second.clone())), Vec::new())
        );
        std::fs::write(second.join("weights"), "tem").unwrap();
        let (latest, corrupt) = latest_valid(folder.path()).unwrap();
        assert_eq!(latest, Some((5, first)));
        assert_eq!(corrupt[0].reason, "weights has other content than was saved");
        std::fs::write(second.join("weights"), "t").unwrap();
        assert_eq!(
            latest_valid(folder.path()).unwrap().1[0].reason,
            "weights has 1 bytes, 3 were saved"
        );
        std::fs::remove_file(second.join(MANIFEST)).unwrap();
        assert_eq!(
            latest_valid(folder.path()).unwrap().1[0].reason,
            "manifest.json cannot be read"
        );
    }

    #[test]
    fn a_failed_save_leaves_the_others_alone() {
        let folder = tempfile::tempdir().unwrap();
        let first = write(folder.path(), 5, "five");
        let failed = save::<CheckpointError>(folder.path(), 6, |folder| {
            write_atomically(&folder.join("half"), b"half")?;
            Err(CheckpointError::io(folder, std::io::ErrorKind::StorageFull.into()))
        });
        assert!(failed.unwrap_err().to_string().contains("the disk is full"));
        assert_eq!(list(folder.path()).unwrap(), [(5, first)]);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_process_left_is_no_checkpoint_and_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let partial = folder.path().join(".checkpoint-7.partial");
        std::fs::create_dir(&partial).unwrap();
        assert_eq!(latest_valid(folder.path()).unwrap().0, None);
        remove_partials(folder.path()).unwrap();
        assert!(!partial.exists());
    }

    #[test]
    fn the_newest_ones_stay() {
        let folder = tempfile::tempdir().unwrap();
        (1..=4).for_each(|step| drop(write(folder.path(), step * 10, "x")));
        prune(folder.path(), 2).unwrap();
        let steps: Vec<u64> = list(folder.path()).unwrap().into_iter().map(|(step, _)| step).collect();
        assert_eq!(steps, [30, 40]);
        std::fs::remove_file(folder.path().join("checkpoint-40/weights")).unwrap();
        prune(folder.path(), 1).unwrap();
        assert_eq!(
            list(folder.path()).unwrap().len(),
            2,
            "the newest is damaged, so the one before stays"
        );
        prune(folder.path(), 0).unwrap();
        assert_eq!(list(folder.path()).unwrap()[0].0, 30);
    }

    #[test]
    fn files_in_folders_are_part_of_a_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let path = save::<CheckpointError>(folder.path(), 1, |folder| {
            std::fs::create_dir(folder.join("adapter")).unwrap();
            write_atomically(&folder.join("adapter/weights"), b"one")
        })
        .unwrap();
        assert!(latest_valid(folder.path()).unwrap().0.is_some());
        std::fs::write(path.join("adapter/weights"), b"two").unwrap();
        assert_eq!(
            latest_valid(folder.path()).unwrap().1[0].reason,
            "adapter/weights has other content than was saved"
        );
    }

    #[test]
    fn a_checkpoint_of_a_step_is_replaced_by_a_new_one() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), 5, "damaged");
        let path = write(folder.path(), 5, "new");
        assert_eq!(std::fs::read_to_string(path.join("weights")).unwrap(), "new");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_old_output_folder_is_renamed_never_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("run");
        assert_eq!(move_aside(&output).unwrap(), None);
        for number in 1..=2 {
            std::fs::create_dir(&output).unwrap();
            assert_eq!(
                move_aside(&output).unwrap(),
                Some(folder.path().join(format!("run.old-{number}")))
            );
        }
    }
}
