//! `.json`: one list of objects, or JSON Lines. The list is read element by element and never held whole.

use std::fs::File;
use std::io::{BufRead, BufReader};

use super::jsonl::JsonLines;
use super::{LONGEST_ROW, Origin, Row, Rows, lines, not_json};
use crate::error::{DataError, RowProblem};
use crate::formats;
use serde_json::Value;

/// Opens a file as what its first sign says it is.
pub(super) fn open(origin: Origin) -> Result<Rows, DataError> {
    let (bytes, offset) = lines::open(&origin)?;
    let mut list = List {
        bytes,
        origin,
        row: 0,
        line: 1,
        offset,
        state: State::Inside,
    };
    match list.skip_white_space()? {
        Some(b'[') => {
            list.consume_byte(b'[');
            Ok(Box::new(list))
        }
        _ => Ok(Box::new(JsonLines::open(list.origin)?)),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before an element or the end of the list.
    Inside,
    /// After the `]`.
    AfterEnd,
    /// Nothing more comes.
    Done,
}

/// The elements of a JSON list.
struct List {
    bytes: BufReader<File>,
    origin: Origin,
    /// Elements met, and so the number of the element met last, counted from 1.
    row: u64,
    /// The line that the next byte stands in, counted from 1.
    line: usize,
    /// Bytes of the file that were read.
    offset: u64,
    state: State,
}

impl List {
    /// Passes over white space; gives the byte after it, or `None` at the end of the file.
    fn skip_white_space(&mut self) -> Result<Option<u8>, DataError> {
        loop {
            let buffer = self.bytes.fill_buf().map_err(|reason| self.origin.unreadable(reason))?;
            match buffer.first() {
                None => return Ok(None),
                Some(&byte) if byte.is_ascii_whitespace() => self.consume_byte(byte),
                Some(&byte) => return Ok(Some(byte)),
            }
        }
    }

    fn consume_byte(&mut self, byte: u8) {
        self.bytes.consume(1);
        self.offset += 1;
        self.line += usize::from(byte == b'\n');
    }

    /// Reads on to the `,` or `]` that ends an element, into `element`; gives that byte, or `None` at the end of the file.
    fn scan(&mut self, element: &mut Vec<u8>) -> Result<Option<u8>, DataError> {
        let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
        loop {
            let buffer = self.bytes.fill_buf().map_err(|reason| self.origin.unreadable(reason))?;
            if buffer.is_empty() {
                return Ok(None);
            }
            let mut end = None;
            for (index, &byte) in buffer.iter().enumerate() {
                self.line += usize::from(byte == b'\n');
                match byte {
                    _ if escaped => escaped = false,
                    b'\\' if in_string => escaped = true,
                    b'"' => in_string = !in_string,
                    _ if in_string => {}
                    b',' | b']' if depth == 0 => {
                        end = Some((index, byte));
                        break;
                    }
                    b'[' | b'{' => depth += 1,
                    b']' | b'}' => depth = depth.saturating_sub(1),
                    _ => {}
                }
            }
            let taken = end.map_or(buffer.len(), |(index, _)| index);
            element.extend_from_slice(&buffer[..taken]);
            let consumed = taken + usize::from(end.is_some());
            self.bytes.consume(consumed);
            self.offset += consumed as u64;
            if element.len() > LONGEST_ROW {
                self.state = State::Done;
                return Err(DataError::LongRow {
                    place: self.origin.at(self.row),
                    limit: LONGEST_ROW,
                });
            }
            if let Some((_, byte)) = end {
                return Ok(Some(byte));
            }
        }
    }

    fn element(&mut self) -> Result<Option<Row>, DataError> {
        let (first, start) = (self.skip_white_space()?, self.offset);
        if self.state == State::AfterEnd || (first == Some(b']') && self.row == 0) {
            return self.end(first);
        }
        self.row += 1;
        let (place, line) = (self.origin.at(self.row), self.line);
        let mut text = Vec::new();
        match self.scan(&mut text)? {
            Some(b']') => self.state = State::AfterEnd,
            Some(_) => {}
            None => {
                self.state = State::Done;
                let advice = "The file ends before the list does: write it again.";
                return Err(DataError::bad_row(place, RowProblem::HalfRow { advice }));
            }
        }
        let problem = match std::str::from_utf8(&text).map(serde_json::from_str::<Value>) {
            Ok(Ok(Value::Object(values))) => return Ok(Some(Row { place, values })),
            Ok(Ok(other)) => {
                let advice = "Write a list of objects.";
                RowProblem::NotAnObject {
                    found: formats::kind(&other),
                    advice,
                }
            }
            Ok(Err(_)) if text.trim_ascii().is_empty() => RowProblem::NotJson {
                message: format!("nothing stands beside a comma in line {line}"),
            },
            Ok(Err(error)) => not_json(&error, line + error.line() - 1),
            Err(error) => RowProblem::NotUtf8 {
                offset: start + error.valid_up_to() as u64,
            },
        };
        Err(DataError::bad_row(place, problem))
    }

    /// Checks that nothing follows the list.
    fn end(&mut self, next: Option<u8>) -> Result<Option<Row>, DataError> {
        let next = if next == Some(b']') && self.state == State::Inside {
            self.consume_byte(b']');
            self.skip_white_space()?
        } else {
            next
        };
        self.state = State::Done;
        match next {
            None => Ok(None),
            Some(_) => {
                let message = format!("something follows the list in line {}", self.line);
                Err(DataError::bad_row(
                    self.origin.at(self.row),
                    RowProblem::NotJson { message },
                ))
            }
        }
    }
}

impl Iterator for List {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state == State::Done {
            None
        } else {
            self.element().transpose()
        }
    }
}
