//! `.txt`: each line that is not blank is a row {text}.

use serde_json::{Map, Value};

use super::lines::Lines;
use super::{Origin, Row};
use crate::error::DataError;

/// The lines of a text file.
pub(super) struct TextLines {
    lines: Lines,
}

impl TextLines {
    pub(super) fn open(origin: Origin) -> Result<Self, DataError> {
        Ok(TextLines {
            lines: Lines::open(origin)?,
        })
    }
}

impl Iterator for TextLines {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let text = match self.lines.next_full() {
            Ok(None) => return None,
            Ok(Some(line)) => Value::String(line.to_owned()),
            Err(error) => return Some(Err(error)),
        };
        let values = Map::from_iter([("text".to_owned(), text)]);
        Some(Ok(Row {
            place: self.lines.origin.at(self.lines.number),
            values,
        }))
    }
}
