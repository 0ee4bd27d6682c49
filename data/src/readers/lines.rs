//! Lines of a text file, checked to be UTF-8, one at a time.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};

use super::{LONGEST_ROW, Origin};
use crate::error::{DataError, RowProblem};

/// Reads lines. A byte order mark is passed over; a line ends with \n or \r\n.
pub(super) struct Lines {
    reader: BufReader<File>,
    pub(super) origin: Origin,
    /// The number of the line read last, counted from 1.
    pub(super) number: u64,
    /// Bytes of the file that were read.
    offset: u64,
    /// Those before the line read last.
    start: u64,
    buffer: Vec<u8>,
}

impl Lines {
    pub(super) fn open(origin: Origin) -> Result<Self, DataError> {
        let (reader, offset) = open(&origin)?;
        Ok(Lines {
            reader,
            origin,
            number: 0,
            offset,
            start: offset,
            buffer: Vec::new(),
        })
    }

    /// The next line that is not blank.
    pub(super) fn next_full(&mut self) -> Result<Option<&str>, DataError> {
        while self.read()? {
            if !std::str::from_utf8(&self.buffer).is_ok_and(|line| line.trim().is_empty()) {
                return self.line().map(Some);
            }
        }
        Ok(None)
    }

    /// The next line, blank or not.
    pub(super) fn next_line(&mut self) -> Result<Option<&str>, DataError> {
        match self.read()? {
            true => self.line().map(Some),
            false => Ok(None),
        }
    }

    /// Reads a line into the buffer, without its end; false at the end of the file.
    fn read(&mut self) -> Result<bool, DataError> {
        self.buffer.clear();
        let limit = LONGEST_ROW as u64 + 2;
        let read = self.reader.by_ref().take(limit).read_until(b'\n', &mut self.buffer);
        let read = read.map_err(|reason| self.origin.unreadable(reason))? as u64;
        if read == 0 {
            return Ok(false);
        }
        self.number += 1;
        self.start = self.offset;
        self.offset += read;
        if read == limit {
            return Err(DataError::LongRow {
                place: self.origin.at(self.number),
                limit: LONGEST_ROW,
            });
        }
        if self.buffer.last() == Some(&b'\n') {
            self.buffer.pop();
        }
        if self.buffer.last() == Some(&b'\r') {
            self.buffer.pop();
        }
        Ok(true)
    }

    /// The line in the buffer.
    fn line(&self) -> Result<&str, DataError> {
        std::str::from_utf8(&self.buffer).map_err(|error| {
            let offset = self.start + error.valid_up_to() as u64;
            DataError::bad_row(self.origin.at(self.number), RowProblem::NotUtf8 { offset })
        })
    }
}

/// Opens a text file and passes over its byte order mark; gives the bytes passed over too.
pub(super) fn open(origin: &Origin) -> Result<(BufReader<File>, u64), DataError> {
    let file = File::open(&origin.file).map_err(|reason| origin.unreadable(reason))?;
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let start = reader.fill_buf().map_err(|reason| origin.unreadable(reason))?;
    if start.starts_with(b"\xFF\xFE") || start.starts_with(b"\xFE\xFF") {
        return Err(DataError::Utf16 {
            file: origin.file.to_path_buf(),
        });
    }
    let mark = if start.starts_with(b"\xEF\xBB\xBF") { 3 } else { 0 };
    reader.consume(mark);
    Ok((reader, mark as u64))
}
