//! File readers: a file becomes rows, one at a time, so that a file may be larger than memory. One file per kind of file.

mod aligned;
mod json;
mod jsonl;
mod lines;
mod parquet;
mod text;
mod tsv;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use interlingua_recipes::{Format, SourcePath};
use serde_json::{Map, Value};

use crate::error::{DataError, RowProblem};
use crate::formats;
use crate::sample::Place;

/// The most bytes that one row may have: a file without line ends must not fill the memory.
pub(crate) const LONGEST_ROW: usize = 256 << 20;

/// One row as the file has it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    /// Where it was read.
    pub(crate) place: Place,
    /// Its fields by the names that the file gives them.
    pub(crate) values: Map<String, Value>,
}

/// The rows of a file. After [`DataError::BadRow`] there may be more rows; any other error is the last item.
pub(crate) type Rows = Box<dyn Iterator<Item = Result<Row, DataError>> + Send>;

/// A file of a source.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub(crate) source: usize,
    pub(crate) file: Arc<Path>,
}

impl Origin {
    /// The place of a line or row, counted from 1.
    fn at(&self, line: u64) -> Place {
        Place {
            source: self.source,
            file: self.file.clone(),
            line,
        }
    }

    fn unreadable(&self, reason: std::io::Error) -> DataError {
        DataError::Unreadable {
            file: self.file.to_path_buf(),
            reason,
        }
    }
}

/// Opens a file. `columns` are the names that rows are read for: other columns may be left out where that saves work.
pub(crate) fn open(origin: Origin, format: Format, columns: &[String]) -> Result<Rows, DataError> {
    let extension = origin.file.extension().unwrap_or_default().to_ascii_lowercase();
    match extension.to_str() {
        Some("jsonl") => Ok(Box::new(jsonl::JsonLines::open(origin)?)),
        Some("json") => json::open(origin),
        Some("parquet") => Ok(Box::new(parquet::ParquetRows::open(origin, columns)?)),
        Some("tsv") => Ok(Box::new(tsv::TsvRows::open(origin)?)),
        Some("txt") if format == Format::Text => Ok(Box::new(text::TextLines::open(origin)?)),
        Some("txt") => Err(DataError::PlainText {
            file: origin.file.to_path_buf(),
            format: format.name(),
        }),
        _ => Err(DataError::Extension {
            file: origin.file.to_path_buf(),
        }),
    }
}

/// Opens line-aligned files, by language.
pub(crate) fn open_aligned(source: usize, files: &BTreeMap<String, PathBuf>) -> Result<Rows, DataError> {
    Ok(Box::new(aligned::AlignedLines::open(source, files)?))
}

/// The files of a source: those that a path or glob names, in alphabetical order, or the line-aligned ones in that of their
/// languages.
///
/// # Errors
/// When there is no such file, or it is a folder, or no file fits the glob.
pub(crate) fn files(path: &SourcePath) -> Result<Vec<PathBuf>, DataError> {
    match path {
        SourcePath::Files(path) => files_of(path),
        SourcePath::Aligned(files) => {
            for file in files.values() {
                if file.is_dir() {
                    return Err(DataError::Folder { file: file.clone() });
                }
                if !file.exists() {
                    return Err(DataError::Missing { file: file.clone() });
                }
            }
            Ok(files.values().cloned().collect())
        }
    }
}

fn files_of(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    let text = path.to_string_lossy();
    if path.is_dir() {
        return Err(DataError::Folder {
            file: path.to_path_buf(),
        });
    }
    if path.exists() {
        return Ok(vec![path.to_path_buf()]);
    }
    if !text.contains(['*', '?', '[']) {
        return Err(DataError::Missing {
            file: path.to_path_buf(),
        });
    }
    let found = glob::glob(&text).map_err(|error| DataError::Glob {
        pattern: text.to_string(),
        message: error.msg,
    })?;
    let mut files = Vec::new();
    for file in found {
        let file = file.map_err(|error| DataError::Unreadable {
            file: error.path().to_path_buf(),
            reason: error.into(),
        })?;
        if file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        Err(DataError::NoMatch {
            pattern: text.into_owned(),
        })
    } else {
        Ok(files)
    }
}

/// The object in a row of JSON text.
fn object(text: &str, advice: &'static str) -> Result<Map<String, Value>, RowProblem> {
    match serde_json::from_str(text) {
        Ok(Value::Object(values)) => Ok(values),
        Ok(other) => Err(RowProblem::NotAnObject {
            found: formats::kind(&other),
            advice,
        }),
        Err(error) => Err(not_json(&error, error.line())),
    }
}

/// The problem that the JSON parser met; the line is where to look for it in the file, or 1 where there is only one.
fn not_json(error: &serde_json::Error, line: usize) -> RowProblem {
    if error.is_eof() {
        let advice = "Write each row whole on one line; the last line of a file is cut when its writer was stopped. \
                      Rows over several lines can stand in a list [ … ] in a .json file.";
        return RowProblem::HalfRow { advice };
    }
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or_default();
    let place = if line > 1 {
        format!("line {line}, column {}", error.column())
    } else {
        format!("column {}", error.column())
    };
    RowProblem::NotJson {
        message: format!("{message} at {place}"),
    }
}
