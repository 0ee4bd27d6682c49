//! What can be wrong with model folders, adapters and checkpoints.

use std::path::{Path, PathBuf};

/// An error of this crate. Messages say what is wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file or folder cannot be read or written.
    #[error("{}: {}", path.display(), describe_io(source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A folder lacks a file.
    #[error("{}: there is no {file} in this folder; {advice}", folder.display())]
    MissingFile {
        /// The folder.
        folder: PathBuf,
        /// What is missing.
        file: String,
        /// What to do.
        advice: String,
    },
    /// A JSON file cannot be read, or says something that cannot be used.
    #[error("{}: {problem}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A safetensors file is damaged.
    #[error("{}: {problem}; the file is damaged or was not copied whole, fetch it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A tensor is missing.
    #[error("{}: there is no tensor `{tensor}` in the weights; {advice}", folder.display())]
    MissingTensor {
        /// The folder.
        folder: PathBuf,
        /// Its name.
        tensor: String,
        /// What to do.
        advice: String,
    },
    /// A tensor has another shape than the config says.
    #[error(
        "{}: tensor `{tensor}` has the shape {found:?}, expected {expected:?}; {advice}",
        path.display()
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Expected shape.
        expected: Vec<usize>,
        /// Found shape.
        found: Vec<usize>,
        /// What to do.
        advice: String,
    },
    /// A model cannot be found or fetched.
    #[error("{0}")]
    NotFound(String),
    /// The hub has no such model, or not for this user.
    #[error("{id}: {reason}")]
    Refused {
        /// The hub id.
        id: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// What is to be merged does not fit together.
    #[error("{0}")]
    Merge(String),
    /// A writer of the caller failed.
    #[error("{0}")]
    Other(String),
}

impl CheckpointError {
    /// A file or folder that cannot be read or written.
    pub fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    /// A JSON file that cannot be used.
    pub fn config(path: &Path, problem: impl Into<String>) -> Self {
        Self::Config {
            path: path.to_owned(),
            problem: problem.into(),
        }
    }
}

fn describe_io(error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::NotFound => "there is no such file or folder".into(),
        ErrorKind::PermissionDenied => "permission denied; choose another folder or change its permissions".into(),
        ErrorKind::ReadOnlyFilesystem => "the file system is read-only; choose another folder".into(),
        ErrorKind::StorageFull => "the disk is full; free some space and start again, nothing saved was lost".into(),
        _ => error.to_string(),
    }
}
