//! Files that are complete or absent: written under another name, synced to disk, renamed.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::CheckpointError;

/// The name a file is written under before it is renamed.
pub fn partial_path(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.partial"))
}

/// Writes a file whole or not at all.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    write_through(path, |file| file.write_all(bytes))
}

/// The same for a writer that streams. A failed write leaves an existing file as it was and no partial one behind.
pub fn write_through(path: &Path, write: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<(), CheckpointError> {
    let partial = partial_path(path);
    let written = File::create(&partial).and_then(|mut file| {
        write(&mut file)?;
        file.sync_all()
    });
    let renamed = written.and_then(|()| std::fs::rename(&partial, path));
    if let Err(source) = renamed {
        // The partial file is of no use; that it cannot be removed changes nothing.
        std::fs::remove_file(&partial).ok();
        return Err(CheckpointError::io(path, source));
    }
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

/// Makes renames within a folder durable.
pub fn sync_folder(folder: &Path) -> Result<(), CheckpointError> {
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    File::open(folder)
        .and_then(|file| file.sync_all())
        .map_err(|source| CheckpointError::io(folder, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write_atomically(&path, b"old").unwrap();
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let error = write_through(&path, |file| file.write_all(b"ne").and(Err(full()))).unwrap_err();
        assert!(error.to_string().contains("the disk is full"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
