//! Line-aligned files: one plain text file for each language, of which line N says the same. A blank line is a translation that
//! is missing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::lines::Lines;
use super::{Origin, Row};
use crate::error::DataError;

/// Rows {text: {language: line, …}} of line-aligned files.
pub(super) struct AlignedLines {
    languages: Vec<String>,
    files: Vec<Lines>,
}

impl AlignedLines {
    pub(super) fn open(source: usize, files: &BTreeMap<String, PathBuf>) -> Result<Self, DataError> {
        let lines = files.values().map(|file| {
            Lines::open(Origin {
                source,
                file: Arc::from(file.clone()),
            })
        });
        Ok(AlignedLines {
            languages: files.keys().cloned().collect(),
            files: lines.collect::<Result<_, _>>()?,
        })
    }

    /// Says which files differ in length, once one of them has ended.
    fn count(&mut self, ended: usize, others: usize) -> DataError {
        for index in [ended, others] {
            loop {
                match self.files[index].next_line() {
                    Ok(None) => break,
                    Ok(Some(_)) | Err(DataError::BadRow(_)) => {}
                    Err(error) => return error,
                }
            }
        }
        let of = |index: usize| {
            let lines = &self.files[index];
            (lines.origin.file.to_path_buf(), lines.number)
        };
        DataError::LineCount {
            files: Box::new([of(ended), of(others)]),
        }
    }
}

impl Iterator for AlignedLines {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (mut ended, mut going) = (None, None);
            let mut texts = Map::new();
            let mut bad = None;
            for (index, lines) in self.files.iter_mut().enumerate() {
                match lines.next_line() {
                    Ok(None) => ended = Some(index),
                    Ok(Some(line)) => {
                        going = Some(index);
                        if !line.trim().is_empty() {
                            texts.insert(self.languages[index].clone(), Value::from(line));
                        }
                    }
                    // The others go on to the same line first.
                    Err(error @ DataError::BadRow(_)) => {
                        going = Some(index);
                        bad = Some(error);
                    }
                    Err(error) => return Some(Err(error)),
                }
            }
            match (ended, going) {
                (Some(_), None) => return None,
                (Some(ended), Some(going)) => return Some(Err(self.count(ended, going))),
                _ => {}
            }
            if let Some(error) = bad {
                return Some(Err(error));
            }
            if !texts.is_empty() {
                let first = &self.files[0];
                return Some(Ok(Row {
                    place: first.origin.at(first.number),
                    values: Map::from_iter([("text".to_owned(), Value::Object(texts))]),
                }));
            }
        }
    }
}
