//! `.parquet`: columns of text, numbers, lists and structs. Read a row group's pages at a time, and only the columns that
//! the format asks for.

use std::fs::File;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row as ParquetRow};
use parquet::schema::types::Type;
use serde_json::{Map, Value};

use super::{Origin, Row};
use crate::error::DataError;

/// The rows of a Parquet file.
pub(super) struct ParquetRows {
    rows: RowIter<'static>,
    origin: Origin,
    row: u64,
    /// Columns that are in the file and were not asked for; they are null in each row, so that messages can name them.
    unread: Vec<String>,
    failed: bool,
}

impl ParquetRows {
    pub(super) fn open(origin: Origin, columns: &[String]) -> Result<Self, DataError> {
        let file = File::open(&origin.file).map_err(|reason| origin.unreadable(reason))?;
        let reader = SerializedFileReader::new(file).map_err(|error| damaged(&origin, &error))?;
        let schema = reader.metadata().file_metadata().schema().clone();
        let wanted = |column: &Arc<Type>| columns.iter().any(|name| name == column.name());
        let (mut read, unread): (Vec<_>, Vec<_>) = schema.get_fields().iter().cloned().partition(wanted);
        // The reader cannot count rows without a column.
        read.extend(unread.first().filter(|_| read.is_empty()).cloned());
        let projection = Type::group_type_builder(schema.name()).with_fields(read).build();
        let rows =
            projection.and_then(|projection| RowIter::from_file_into(Box::new(reader)).project(Some(projection)));
        let rows = rows.map_err(|error| damaged(&origin, &error))?;
        let unread = unread.iter().map(|column| column.name().to_owned()).collect();
        Ok(ParquetRows {
            rows,
            origin,
            row: 0,
            unread,
            failed: false,
        })
    }
}

impl Iterator for ParquetRows {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        self.row += 1;
        // The reader panics at some kinds of damage.
        let row = std::panic::catch_unwind(AssertUnwindSafe(|| self.rows.next()));
        let row = row.unwrap_or_else(|_| Some(Err(ParquetError::General("its index is damaged".to_owned()))));
        Some(match row? {
            Ok(row) => {
                let mut values = object(&row);
                values.extend(self.unread.iter().map(|name| (name.clone(), Value::Null)));
                Ok(Row {
                    place: self.origin.at(self.row),
                    values,
                })
            }
            Err(error) => {
                self.failed = true;
                Err(damaged(&self.origin, &error))
            }
        })
    }
}

fn damaged(origin: &Origin, error: &ParquetError) -> DataError {
    let message = error.to_string();
    let message = message
        .strip_prefix("Parquet error: ")
        .unwrap_or(&message)
        .trim_end_matches('.')
        .to_owned();
    DataError::Parquet {
        file: origin.file.to_path_buf(),
        message,
    }
}

fn object(row: &ParquetRow) -> Map<String, Value> {
    row.get_column_iter()
        .map(|(name, field)| (name.clone(), value(field)))
        .collect()
}

/// The JSON value of a field. Fields of structs that are null are left out: Parquet has no other way to say absent.
fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => Value::from(*value),
        Field::Byte(value) => Value::from(*value),
        Field::Short(value) => Value::from(*value),
        Field::Int(value) => Value::from(*value),
        Field::Long(value) => Value::from(*value),
        Field::UByte(value) => Value::from(*value),
        Field::UShort(value) => Value::from(*value),
        Field::UInt(value) => Value::from(*value),
        Field::ULong(value) => Value::from(*value),
        Field::Float16(value) => Value::from(f32::from(*value)),
        Field::Float(value) => Value::from(*value),
        Field::Double(value) => Value::from(*value),
        Field::Str(text) => Value::from(text.as_str()),
        // Some writers do not mark their text as such; what is no text is no use here.
        Field::Bytes(bytes) => std::str::from_utf8(bytes.data()).map_or(Value::Null, Value::from),
        Field::Group(row) => {
            let mut fields = object(row);
            fields.retain(|_, value| !value.is_null());
            Value::Object(fields)
        }
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::MapInternal(map) => {
            let name = |key: &Field| match value(key) {
                Value::String(text) => text,
                other => other.to_string(),
            };
            Value::Object(
                map.entries()
                    .iter()
                    .map(|(key, field)| (name(key), value(field)))
                    .collect(),
            )
        }
        date_or_decimal => Value::String(date_or_decimal.to_string()),
    }
}
