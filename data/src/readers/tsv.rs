//! `.tsv`: cells separated by one tab each; the first line that is not blank names the columns. Quotes mean nothing, so a
//! cell can hold neither tab nor line end, as in the files of parallel corpora.

use serde_json::{Map, Value};

use super::lines::Lines;
use super::{Origin, Row};
use crate::error::{DataError, RowProblem};

/// The rows of a file of tab-separated cells.
pub(super) struct TsvRows {
    lines: Lines,
    columns: Vec<String>,
}

impl TsvRows {
    pub(super) fn open(origin: Origin) -> Result<Self, DataError> {
        let mut lines = Lines::open(origin)?;
        let header = lines.next_full()?.unwrap_or_default();
        let columns = header.split('\t').map(|name| name.trim().to_owned()).collect();
        Ok(TsvRows { lines, columns })
    }
}

impl Iterator for TsvRows {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let cells: Vec<Value> = match self.lines.next_full() {
            Ok(None) => return None,
            Ok(Some(line)) => line.split('\t').map(Value::from).collect(),
            Err(error) => return Some(Err(error)),
        };
        let place = self.lines.origin.at(self.lines.number);
        if cells.len() != self.columns.len() {
            let problem = RowProblem::Cells {
                found: cells.len(),
                expected: self.columns.len(),
            };
            return Some(Err(DataError::bad_row(place, problem)));
        }
        let values: Map<String, Value> = self.columns.iter().cloned().zip(cells).collect();
        Some(Ok(Row { place, values }))
    }
}
