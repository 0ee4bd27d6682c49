//! What can be wrong with a recipe, in sentences for the person who wrote it.

use std::fmt;
use std::path::PathBuf;

/// Why a recipe cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// There is no file at the path.
    #[error("there is no recipe at {}. Check the path, or write a shipped recipe out with `interlingua init NAME`.", file.display())]
    Missing {
        /// The path as given.
        file: PathBuf,
    },
    /// There is no file of tasks at the path.
    #[error("there is no file of tasks at {}. Check the path; the file holds [[eval.tasks]], as a recipe does.", file.display())]
    MissingTasks {
        /// The path as given.
        file: PathBuf,
    },
    /// The path is a folder.
    #[error("{} is a folder. Name the recipe file in it, such as {}.", file.display(), file.join("recipe.toml").display())]
    Folder {
        /// The path as given.
        file: PathBuf,
    },
    /// The file cannot be read.
    #[error("{} cannot be read: {reason}.", file.display())]
    Unreadable {
        /// The path as given.
        file: PathBuf,
        /// What the system says.
        reason: std::io::Error,
    },
    /// The file is not UTF-8.
    #[error("{}:{line}: the file is not UTF-8. Save it as UTF-8 text.", file.display())]
    NotUtf8 {
        /// The path as given.
        file: PathBuf,
        /// The line of the first byte that is not UTF-8, counted from 1.
        line: usize,
    },
    /// The file is not TOML.
    #[error("{}:{line}:{column}: the recipe is not valid TOML: {message}.", file.display())]
    Syntax {
        /// The path as given.
        file: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// Column in characters, counted from 1.
        column: usize,
        /// What the parser met.
        message: String,
    },
    /// A `--set` that cannot be laid over the recipe.
    #[error("--set {text}: {message}")]
    Override {
        /// The text as given.
        text: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// Keys or values that are wrong: all of them, in the order of the file.
    #[error("{}", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid {
        /// What is wrong, at least one.
        problems: Vec<Problem>,
    },
    /// A recipe made in code holds a value that TOML cannot hold.
    #[error("the resolved recipe cannot be written as TOML: {0}. Use a whole number below 2^63.")]
    Write(#[from] toml::ser::Error),
}

/// One wrong key or value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where it was written.
    pub place: Place,
    /// The dotted key, such as `data.sources.0.path`.
    pub key: String,
    /// What is wrong and what to do; names the key.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.place, self.message)
    }
}

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In a file.
    File {
        /// The path as given.
        file: PathBuf,
        /// Line, counted from 1; 0 when the value stands nowhere.
        line: usize,
    },
    /// On the command line, with this text after `--set`.
    Override(String),
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, line: 0 } => write!(formatter, "{}", file.display()),
            Self::File { file, line } => write!(formatter, "{}:{line}", file.display()),
            Self::Override(text) => write!(formatter, "--set {text}"),
        }
    }
}

/// A wrong key or value before it is known where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The key, one segment an element; list elements by index.
    pub(crate) path: Vec<String>,
    /// What is wrong and what to do; names the key.
    pub(crate) message: String,
}

impl Finding {
    /// A finding at a dotted key, whose message starts with the key.
    pub(crate) fn at(key: &str, message: &str) -> Self {
        Self {
            path: key.split('.').map(str::to_owned).collect(),
            message: format!("`{key}` {message}"),
        }
    }
}
