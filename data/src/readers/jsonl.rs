//! `.jsonl`: one JSON object in each line. Blank lines are passed over.

use super::lines::Lines;
use super::{Origin, Row, object};
use crate::error::DataError;

const ADVICE: &str = "Write one object a line; a file that holds one list of objects is a .json file.";

/// The rows of a JSON Lines file.
pub(super) struct JsonLines {
    lines: Lines,
}

impl JsonLines {
    pub(super) fn open(origin: Origin) -> Result<Self, DataError> {
        Ok(JsonLines {
            lines: Lines::open(origin)?,
        })
    }
}

impl Iterator for JsonLines {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let values = match self.lines.next_full() {
            Ok(None) => return None,
            Ok(Some(line)) => object(line, ADVICE),
            Err(error) => return Some(Err(error)),
        };
        let place = self.lines.origin.at(self.lines.number);
        Some(match values {
            Ok(values) => Ok(Row { place, values }),
            Err(problem) => Err(DataError::bad_row(place, problem)),
        })
    }
}
